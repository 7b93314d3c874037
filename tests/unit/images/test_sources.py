"""Source images in object storage are sent inline, or the task fails before anything is sent."""

from __future__ import annotations

import base64
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeRetryableError
from airflow_provider_modelscope.images.sources import MAX_SOURCE_BYTES, inline_images
from airflow_provider_modelscope.protocol.request import GenerationRequest
from tests.unit.images.conftest import AzureError, GoogleError, Store, encoded, of_size

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.images.conftest import Register

TEN_MIB = 10 * 1024 * 1024


def edit(image_url: str | list[str]) -> GenerationRequest:
    """Return a request with no parameter at its default."""
    return GenerationRequest(
        model="Qwen/Qwen-Image-Edit",
        prompt="一只猫",
        negative_prompt="模糊",
        size="64x64",
        seed=5,
        steps=30,
        guidance=7.5,
        image_url=image_url,
        loras={"a/b": 1.0},
        extra_parameters={"sampler": "Euler a"},
    )


def inlined(image_url: str, storage_conn_id: str | None = None) -> str:
    url = inline_images(edit(image_url), storage_conn_id=storage_conn_id).image_url
    assert isinstance(url, str)
    return url


def data_uri(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat", "一只 猫%41.txt"])
@pytest.mark.parametrize(
    ("format_", "mime"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_an_image_becomes_its_bytes_with_their_type(
    name: str, format_: str, mime: str, tmp_path: Path, memory: Store
) -> None:
    content = encoded(format_)
    (tmp_path / name).write_bytes(content)
    memory.pipe_file(f"bucket/{name}", content)
    for uri in (f"file://{tmp_path}/{name}", f"local://{tmp_path}/{name}", f"memory://bucket/{name}"):
        assert inlined(uri) == data_uri(content, mime)


@pytest.mark.parametrize(
    "url",
    [
        "ht tp://h/a?sig=SIGNED",
        "http://[::1/a?sig=SIGNED",
        "memory://bucket/none.png?sig=SIGNED",
        ["https://h/a.png", "ht tp://h/b?sig=SIGNED"],
        '["ht tp://h/a?sig=SIGNED"]',
        "ht tp://me:SIGNED@h/a",
    ],
    ids=str,
)
def test_an_error_shows_no_signature(url: Any, memory: Store) -> None:
    with pytest.raises((InvalidRequestError, ModelScopeRetryableError), match="image_url = ") as raised:
        inline_images(edit(url))
    assert "SIGNED" not in str(raised.value)
    with pytest.raises(InvalidRequestError, match="image_url = ") as raised:
        edit(url).to_json()
    assert "SIGNED" not in str(raised.value)


def test_a_list_keeps_its_order_and_its_public_urls(tmp_path: Path, memory: Store) -> None:
    one, two = encoded(side=10), encoded("JPEG", side=20)
    (tmp_path / "1.png").write_bytes(one)
    memory.pipe_file("bucket/2.jpg", two)
    urls = [
        "https://example.com/0.png",
        f"file://{tmp_path}/1.png",
        "HTTP://example.com/0.png",
        "memory://bucket/2.jpg",
        "data:image/png;base64,AAAA",
        f"file://{tmp_path}/1.png",
    ]
    assert inline_images(edit(urls)).image_url == [
        "https://example.com/0.png",
        data_uri(one),
        "HTTP://example.com/0.png",
        data_uri(two, "image/jpeg"),
        "data:image/png;base64,AAAA",
        data_uri(one),
    ]


def test_a_list_of_one_stays_a_list(memory: Store) -> None:
    memory.pipe_file("bucket/1.png", encoded())
    memory.pipe_file("bucket/2.png", encoded())
    request = inline_images(edit(["memory://bucket/1.png"]))
    assert isinstance(request.image_url, list)
    assert len(request.image_url) == 1


def test_other_parameters_stay_and_the_request_is_sendable(memory: Store) -> None:
    content = encoded()
    memory.pipe_file("bucket/1.png", content)
    before = edit("memory://bucket/1.png")
    after = inline_images(before)
    changed = {f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)}
    assert changed == {"image_url"}
    assert after.to_json()["image_url"] == data_uri(content)
    assert before.image_url == "memory://bucket/1.png"


@pytest.mark.parametrize(
    "image_url",
    [
        "https://example.com/a.png?x=1#y",
        "http://example.com/a.png",
        "data:image/png;base64,AAAA",
        ["https://example.com/a.png", "data:image/png;base64,AAAA"],
    ],
)
def test_urls_that_the_service_can_read_stay(image_url: str | list[str]) -> None:
    request = edit(image_url)
    assert inline_images(request, storage_conn_id="nowhere") is request


def test_a_request_without_an_image_stays() -> None:
    request = GenerationRequest(model="a/b", prompt="a cat")
    assert inline_images(request) is request


@pytest.mark.parametrize(
    ("uri", "storage_conn_id"),
    [
        ("s3://bucket/cat.png", "mine"),
        ("s3://mine@bucket/cat.png", None),
        ("s3://other@bucket/cat.png", "mine"),
    ],
)
def test_the_connection_opens_the_store(
    uri: str, storage_conn_id: str | None, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "other"):
        connection = f'{{"conn_type": "aws", "host": "{name}.example"}}'
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)
    s3, content = register("s3"), encoded("WEBP")
    s3.pipe_file("bucket/cat.png", content)
    assert inlined(uri, storage_conn_id) == data_uri(content, "image/webp")
    assert s3.opened_with == ["mine.example"]


def test_ten_mebibytes_are_the_limit(tmp_path: Path) -> None:
    assert MAX_SOURCE_BYTES == TEN_MIB
    path = tmp_path / "cat.png"
    path.write_bytes(of_size(TEN_MIB))
    assert inlined(f"file://{path}") == data_uri(path.read_bytes())
    path.write_bytes(of_size(TEN_MIB + 1))
    with pytest.raises(InvalidRequestError, match="is larger than 10 MiB"):
        inlined(f"file://{path}")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("page.png", "holds 15 bytes that are not a complete image"),
        ("empty.png", "holds 0 bytes that are not a complete image"),
        ("half.png", "holds 200 bytes that are not a complete image"),
        ("missing.png", "cannot be read .FileNotFoundError: "),
        ("no/such/folder.png", "cannot be read .FileNotFoundError: "),
        ("folder", "is a folder or a device|FileNotFoundError: "),
        ("folder/", "is a folder or a device|FileNotFoundError: "),
    ],
)
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_an_object_that_is_no_image_is_a_final_error(
    path: str, problem: str, protocol: str, tmp_path: Path, memory: Store
) -> None:
    stored = {
        "page.png": b"<!DOCTYPE html>",
        "empty.png": b"",
        "half.png": encoded()[:200],
        "folder/x": b"",
    }
    for name, content in stored.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        memory.pipe_file(f"bucket/{name}", content)
    uri = f"file://{tmp_path}/{path}" if protocol == "file" else f"memory://bucket/{path}"
    with pytest.raises(InvalidRequestError, match=problem) as raised:
        inlined(uri)
    assert str(raised.value).startswith(f"Invalid parameters, nothing was sent: image_url = {uri!r}: ")


def test_a_path_through_a_file_is_a_final_error(tmp_path: Path) -> None:
    (tmp_path / "page.png").touch()
    with pytest.raises(InvalidRequestError, match=r"cannot be read \(NotADirectoryError: "):
        inlined(f"file://{tmp_path}/page.png/inside.png")


@pytest.mark.parametrize(
    ("uri", "storage_conn_id", "problem"),
    [
        ("unheard-of://bucket/cat.png", None, "cannot be opened"),
        ("ftp://server/cat.png", None, "No filesystem registered for scheme ftp"),
        ("memory://bucket/cat.png", "nowhere", "nowhere.*define that connection"),
    ],
)
def test_a_store_that_cannot_be_opened_is_a_final_error(
    uri: str, storage_conn_id: str | None, problem: str, memory: Store
) -> None:
    with pytest.raises(InvalidRequestError, match=f"nothing was sent: image_url = '{uri}': .*{problem}"):
        inlined(uri, storage_conn_id)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (PermissionError("Access Denied"), InvalidRequestError),
        (ValueError("Parameter validation failed"), InvalidRequestError),
        (OSError("Forbidden: https://storage.googleapis.com/download"), InvalidRequestError),
        (AzureError("not this account", 403), InvalidRequestError),
        (AzureError("busy", 503), ModelScopeRetryableError),
        (GoogleError("busy", 503), ModelScopeRetryableError),
        (ConnectionResetError("reset by peer"), ModelScopeRetryableError),
        (TimeoutError("timed out"), ModelScopeRetryableError),
        (OSError(5, "Input/output error"), ModelScopeRetryableError),
    ],
)
def test_a_temporary_error_of_a_store_is_retryable(
    fault: Exception, error: type[Exception], register: Register
) -> None:
    class Failing(Store):
        def _open(*_: Any, **__: Any) -> Any:
            raise fault

    register("s3", Failing())
    with pytest.raises(error, match=rf"image_url = 's3://bucket/cat.png': .*{fault.args[-1]}") as raised:
        inlined("s3://bucket/cat.png")
    assert "nothing was sent" in str(raised.value).lower()
