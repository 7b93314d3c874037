"""Invalid input fails the task, or the import of its Dag file, and nothing is sent.

The error says which value is invalid and what is allowed.
"""

from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from airflow_provider_modelscope.compat import (
    AIRFLOW_VERSION,
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from airflow_provider_modelscope.exceptions import (
    InvalidConnectionError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeFinalError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import ImagesLink, ModelLink
from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
from airflow_provider_modelscope.validation import INVALID
from tests.unit.builders import Context, batch, credit_sensor, one_step, rendered, sensor, submitter, transfer
from tests.unit.conftest import TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

NUL = "must not contain NUL characters: Airflow's database cannot store them"
PROMPT = "must describe the image, in 1 to 1999 characters"
LONG = "must be shorter than 2000 characters, not "
MODEL = "must be a ModelScope model id, such as 'Qwen/Qwen-Image'"
UTF8 = "must be valid Unicode, without lone surrogates"
SIZE = "must be width x height in pixels, such as '1024x768'"
SEED = "must be an integer from 0 to 2147483647: leave seed out for a random one"
STEPS = "must be an integer from 1 to 100"
GUIDANCE = "must be a number from 1.5 to 20, or any number with check_ranges=False"
IMAGE_URL = "must be one or a list of: an http(s) URL, a 'data:image/...;base64,' URI, an object storage path"
LORAS = "must be a LoRA id, or a mapping of 1 to 6 ids to weights that sum to 1.0"
EXTRA = "must be a mapping of names to JSON values"
NOT_JSON = ": in a template, end it with '| tojson'"
SECONDS = "must be a number of seconds from {} to 31536000"
ID = "must be the id that a submit task returned; for several ids, map over them with .expand("
URI = "must be a URI such as 's3://bucket/folder/' or 'file:///folder/name.png'"
SIGNS = "must not contain '?', '#', '\\' or control characters"
HOST = "must be a URL such as https://api-inference.modelscope.cn"

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**5000
HALF = "a \ud800 cat"  # half of a pair of UTF-16

REQUESTS: list[tuple[str, Any, str]] = [
    ("model", None, "must be text, not NoneType"),
    ("model", "", MODEL),
    ("model", " \n", MODEL),
    ("model", "None", MODEL),
    ("model", "['Qwen/Qwen-Image']", MODEL),
    ("model", "Qwen/\x00Qwen-Image", NUL),
    ("prompt", "a\x00cat", NUL),
    ("extra_parameters", {"a": ["\x00"]}, NUL.removeprefix("must not contain ")),
    ("model", {"id": "Qwen/Qwen-Image"}, "must be text, not dict"),
    ("prompt", None, "must be text, not NoneType"),
    ("prompt", "", PROMPT),
    ("prompt", " \t\n", PROMPT),
    ("prompt", "None", PROMPT),
    ("prompt", "猫" * 2000, LONG + "2000"),
    ("prompt", "x" * 5_000_000, LONG + "5000000"),
    ("prompt", HALF, UTF8),
    ("prompt", ["a cat"], "must be text, not list"),
    ("prompt", b"a cat", "must be text, not bytes"),
    ("negative_prompt", "x" * 2000, LONG + "2000"),
    ("negative_prompt", HALF, UTF8),
    ("negative_prompt", True, "must be text, not bool"),
    ("size", "1024", SIZE),
    ("size", "1024,768", SIZE),
    ("size", "0x64", SIZE),
    ("size", "-64x64", SIZE),
    ("size", "１０２４x７６８", SIZE),
    ("size", "Nonex768", SIZE),
    ("size", (1024, 768), SIZE),
    ("size", "9" * 100_000 + "x64", SIZE),
    ("size", "1665x1664", "must be from 64x64 to 1664x1664 for Qwen-Image models"),
    ("size", "63x64", "must be from 64x64 to 1664x1664 for Qwen-Image models"),
    ("seed", -1, SEED),
    ("seed", 2**31, SEED),
    ("seed", True, SEED),
    ("seed", 1.5, SEED),
    ("seed", NAN, SEED),
    ("seed", INFINITE, SEED),
    ("seed", "random", SEED),
    ("seed", "４２", SEED),
    ("seed", "0x2a", SEED),
    ("seed", [42], SEED),
    ("seed", HUGE, SEED),
    ("steps", 0, STEPS),
    ("steps", 101, STEPS),
    ("steps", False, STEPS),
    ("steps", "30.5", STEPS),
    ("steps", " ", STEPS),
    ("guidance", 1.49, GUIDANCE),
    ("guidance", 20.01, GUIDANCE),
    ("guidance", "7,5", GUIDANCE),
    ("guidance", NAN, GUIDANCE),
    ("guidance", "inf", GUIDANCE),
    ("guidance", True, GUIDANCE),
    ("image_url", "cat.png", IMAGE_URL),
    ("image_url", "/data/cat.png", IMAGE_URL),
    ("image_url", "http://", IMAGE_URL),
    ("image_url", "https://[::1/cat.png", IMAGE_URL),
    ("image_url", "data:text/plain;base64,AAAA", IMAGE_URL),
    ("image_url", "data:image/png;base64,", IMAGE_URL),
    ("image_url", "data:image/png;base64,AAAA!", IMAGE_URL),
    ("image_url", "data:image/png;base64,A" + " " * 100_000 + "!", IMAGE_URL),
    ("image_url", "['https://a.example/1.png']", NOT_JSON),
    ("image_url", "[" * 100_000, NOT_JSON),
    ("image_url", ["https://a.example/1.png", None], IMAGE_URL),
    ("image_url", [["https://a.example/1.png"]], IMAGE_URL),
    ("image_url", {"url": "https://a.example/1.png"}, IMAGE_URL),
    ("image_url", f"https://a.example/{HALF}.png", UTF8),
    ("loras", {f"a/{number}": 1 / 7 for number in range(7)}, LORAS),
    ("loras", {"a/b": 0.5, "c/d": 0.4}, "these sum to 0.9"),
    ("loras", {"a/b": True}, "a weight must be a number"),
    ("loras", {"a/b": NAN}, "a weight must be a number"),
    ("loras", {"a/b": {"c/d": 1.0}}, "a weight must be a number"),
    ("loras", {"a/b": HUGE}, "a weight must be a number"),
    ("loras", {5: 1.0}, LORAS),
    ("loras", {"": 1.0}, LORAS),
    ("loras", ["a/b"], LORAS),
    ("loras", "['a/b']", LORAS),
    ("loras", "{'a/b': 1.0}", NOT_JSON),
    ("extra_parameters", {"prompt": "a dog"}, "must not contain prompt: use the parameter of that name"),
    ("extra_parameters", {" Seed ": 1, "STEPS": 1}, "must not contain seed, steps: use the parameter"),
    ("extra_parameters", '{"model": "other/model"}', "must not contain model"),
    ("extra_parameters", {"extra_parameters": {"seed": 1}}, "must not contain extra_parameters"),
    ("extra_parameters", {"when": timedelta(1)}, EXTRA),
    ("extra_parameters", {"scale": NAN}, EXTRA),
    ("extra_parameters", {1: "a"}, EXTRA),
    ("extra_parameters", {" ": 1}, "without empty names"),
    ("extra_parameters", {"a": HALF}, EXTRA),
    ("extra_parameters", '{"a":' * 100_000, NOT_JSON),
    ("extra_parameters", "{'a': 1}", NOT_JSON),
    ("extra_parameters", "n=1", EXTRA),
]  # fmt: skip

# Of each family whose sizes are documented: one pixel too small, one too large.
FAMILIES = [
    ("stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion", 64, 2048),
    ("black-forest-labs/FLUX.1-Krea-dev", "FLUX", 64, 1024),
    ("Qwen/Qwen-Image", "Qwen-Image", 64, 1664),
    ("Tongyi-MAI/Z-Image-Turbo", "Z-Image", 512, 2048),
]

# What templates make of what they are given: parameter, template, params, and what the error says.
TEMPLATES: list[tuple[str, str, Any, str]] = [
    ("model", "{{ params.given }}", None, MODEL),
    ("model", "{{ params.given }}", ["Qwen/Qwen-Image"], MODEL),
    ("prompt", "{{ params.given }}", None, PROMPT),
    ("prompt", " {{ params.nowhere }} ", "", PROMPT),
    ("size", "{{ params.width }}x{{ params.height }}", {}, SIZE),
    ("seed", "{{ params.given }}", [1, 2], SEED),
    ("seed", "{{ params.given * 2 }}", 2**30, SEED),
    ("steps", "{{ params.given }}", True, STEPS),
    ("guidance", "{{ params.given }}", {"low": 1.5}, GUIDANCE),
    ("image_url", "{{ params.given }}", ["https://a.example/1.png"], NOT_JSON),
    ("loras", "{{ params.given }}", {"a/b": 1.0}, NOT_JSON),
    ("loras", "{{ params.given | tojson }}", ["a/b"], LORAS),
    ("extra_parameters", "{{ params.given }}", {"n": 1}, NOT_JSON),
    ("extra_parameters", "{{ params.given | tojson }}", {"prompt": "a dog"}, "must not contain prompt"),
]

# Source images in the folder of the fixture below.
SOURCES = [
    ("missing.png", "cannot be read (FileNotFoundError: "),
    ("no/such/folder/cat.png", "cannot be read (FileNotFoundError: "),
    ("page.png/cat.png", "cannot be read (NotADirectoryError: "),
    ("folder", "is a folder or a device, not a file"),
    ("folder/", "is a folder or a device, not a file"),
    ("pipe", "is a folder or a device, not a file"),
    ("huge.png", "is larger than 10 MiB"),
    ("page.png", "holds 22 bytes that are not a complete image of at most"),
    ("empty.png", "holds 0 bytes that are not a complete image"),
    ("x" * 300 + ".png", "cannot be read (OSError: File name too long)"),
]

DESTINATIONS: list[tuple[Any, str]] = [
    (None, URI),
    ("", URI),
    (" ", URI),
    ("None", URI),
    (42, URI),
    (["s3://bucket/"], URI),
    ("{'uri': 's3://bucket/'}", URI),
    ("cats/", URI),
    ("/data/cats/", URI),
    ("C:\\cats\\", URI),
    ("file:/data/cats/", URI),
    ("://bucket/cats/", URI),
    ("file://data/cats/", "a local path has three slashes: 'file:///folder/'"),
    ("file:///data/../etc/", "must not contain the folders '.' and '..'"),
    ("file:///data\\cats/", SIGNS),
    ("s3://bucket/cats/?versionId=1", SIGNS),
    ("s3://bucket/cats#1.png", SIGNS),
    ("s3://bucket/cats\n/", SIGNS),
    ("s3://bucket/\x00/", SIGNS),
    (f"s3://bucket/{HALF}/", SIGNS),
    ("s3:///cats/", "contains no bucket"),
    ("s3://bucket", "end it with '/' to store into the bucket, or name an object"),
    ("s3://[bucket/cats/", "Invalid IPv6 URL"),
    ("file:///data/cats", "names an object without the suffix .png, .jpg or .webp: end it with '/'"),
    ("file:///data/cat.gif", "names an object without the suffix .png, .jpg or .webp: end it with '/'"),
]

# Destinations that only the worker can check.
UNWRITABLE: list[tuple[str, str]] = [
    (
        "nowhere://bucket/cats/",
        "): use s3://, gs://, abfs:// or file://",
    ),
    ("https://a.example/cats/", "No filesystem registered for scheme https"),
    ("file://{folder}/folder.png", "that is a folder: end it with '/' to store into it"),
    ("file://{folder}/page.png/", "/page.png' is a file: name a folder"),
    ("file://{folder}/page.png/deep/cat.png", "/page.png' is a file: name a folder"),
    ("file://{folder}/pipe.png", "that is a device: name a file or a folder"),
    ("file://{folder}/" + "x" * 300 + ".png", "it cannot be written to (File name too long)"),
]

GENERATION_IDS: list[Any] = [
    None, "", " ", "None", "null", True, 4.2, b"42", [], ["42"], {"generation_id": "42"}, "['42']",
    "[42, 43]", "{'generation_id': '42'}", "4 2", "42\n43", "42\x00", "4\ud8002", ["42"] * 1000,
]  # fmt: skip

NOT_SECONDS: list[Any] = [
    -1,
    -0.001,
    NAN,
    INFINITE,
    -INFINITE,
    HUGE,
    "60",
    "",
    None,
    True,
    [60],
    timedelta(1),
]

CONNECTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"password": ""}, "password", "is empty: set it to an API token from https://modelscope.cn/my/"),
    ({"password": " \n"}, "password", "is empty"),
    ({"password": "Bearer"}, "password", "is empty"),
    ({"password": f"{TOKEN}猫"}, "password", "contains characters that no API token has"),
    ({"password": f"{TOKEN}\x00"}, "password", "contains characters that no API token has"),
    ({"password": f"'{TOKEN}'"}, "password", "without quotes and without NAME="),
    ({"password": "ms-..."}, "password", "is a placeholder: replace it with an API token from https://"),
    ({"host": "https://modelscope.cn/models/a/b"}, "host", "not ModelScope's website: 'https://modelscope.cn"),
    ({"host": "https://api.openai.com/v1"}, "host", f"{HOST}, not another service, which would"),
    *[
        ({"host": host}, "host", f"{HOST}, with '://' after its scheme, not '{host}'")
        for host in ("https//a.example", "https:/a.example", "HTTP:a.example", "https/a.example/v1")
    ],
    ({"password": "hf_abcdefgh", "host": None}, "password", "is another service's token: replace it with an"),
    ({"host": "ftp://a.example"}, "host", f"{HOST}, not 'ftp://a.example'"),
    ({"host": "https://"}, "host", f"{HOST}, not 'https://'"),
    ({"host": "a b.example"}, "host", f"{HOST}, not 'https://a b.example'"),
    ({"host": "a..example"}, "host", f"{HOST}, not 'https://a..example'"),
    ({"host": "x" * 64}, "host", f"{HOST}, not 'https://xxx"),
    ({"host": "https://a.exa\nmple"}, "host", "must not contain spaces or control characters"),
    ({"host": "https:\\\\a.example"}, "host", "with '://' after its scheme, not 'https:"),
    ({"host": f"me:{TOKEN}@a.example"}, "host", "without user, query or fragment"),
    ({"host": f"https://a.example?token={TOKEN}"}, "host", "without user, query or fragment"),
    ({"host": "https://a.example/v1/images"}, "host", f"{HOST}, without the endpoint '/v1/images'"),
    ({"host": "a.example/v1/images/generations"}, "host", "without the endpoint '/v1/images/generations'"),
    ({"host": "a.example:0"}, "host", "its port must be from 1 to 65535, not 0"),
    ({"host": "a.example:65536"}, "host", "is not a URL: 'https://a.example:65536'"),
    ({"host": "a.example:https"}, "host", "is not a URL: 'https://a.example:https'"),
    ({"host": "a.example", "port": 65536}, "port", "must be an integer from 1 to 65535, not 65536"),
    ({"host": "a.example", "port": -1}, "port", "must be an integer from 1 to 65535, not -1"),
    ({"host": "https://[::1"}, "host", "is not a URL: 'https://[::1'"),
    ({"host": "http://a.example"}, "host", "would send the token unencrypted to a.example: use https, "),
    ({"host": "a.example", "schema": "http"}, "host", "would send the token unencrypted to a.example"),
    ({"extra": {"request_timout": 5}}, "unknown extra 'request_timout'", "(did you mean request_timeout?)"),
    ({"extra": {"Verify": False}}, "unknown extra 'Verify'", "(did you mean verify?)"),
    ({"extra": {"token": TOKEN}}, "unknown extra 'token'", "(allowed are request_timeout, verify, "),
    *[
        ({"extra": {"request_timeout": value}}, "request_timeout", "must be an integer from 1 to 600, not ")
        for value in (0, -1, 601, "soon", True, NAN, INFINITE, [5])
    ],
    *[
        ({"extra": {"max_image_bytes": value}}, "max_image_bytes", "must be an integer from 1 to 10995")
        for value in (0, "64 MiB", 2**41, [5])
    ],
    *[
        ({"extra": {"verify": value}}, "verify", "must be true, false, or the path of an existing CA bundle")
        for value in ("/no/such/bundle.pem", "yes", 2, ["true"], "x" * 5000, "nul\x00")
    ],
    *[
        ({"extra": {"allow_http": value}}, "allow_http", "must be true or false, not ")
        for value in ("yes", 2, [True])
    ],
    *[
        ({"extra": {"proxy": value}}, "proxy", "must be the URL of an HTTP proxy, such as http://proxy.example")
        for value in (
            "proxy.example:3128", "socks5://proxy.example", "http://", "http://p:0", "http://p:99999",
            "http://p q:1", "http://[::1", 3128,
        )
    ],
    ({"conn_type": "aws"}, "conn_type", "must be 'modelscope', not 'aws': another service's secret is not"),
    ({"conn_type": "postgres", "extra": {"sslmode": 1}}, "conn_type", "must be 'modelscope', not 'postgres'"),
]  # fmt: skip


OPERATORS = pytest.mark.parametrize("task", [submitter, one_step])
WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])


def label(value: Any) -> str:
    """Return a test id for a value."""
    try:
        return ascii(value)[:40]
    except (ValueError, RecursionError):
        return f"a huge {type(value).__name__}"


def ids(rows: list[Any]) -> list[str]:
    return [f"{row[0]}-{label(row[1])}" for row in rows]


def rejection(task: Any, context: Context, emulator: Emulator, kind: type[ModelScopeFinalError]) -> str:
    """Return the error of a task that fails at once, with nothing sent and nothing stored."""
    with pytest.raises(kind) as raised:
        task.execute(context)
    assert isinstance(raised.value, AirflowFailException)
    message = str(raised.value)
    assert message.isprintable()
    assert TOKEN not in message
    assert len(message) < 1000
    assert not emulator.requests
    assert context["ti"].pushed.keys() <= {ImagesLink.xcom_key, ModelLink.xcom_key}
    return message


def names(message: str, parameter: str, value: Any) -> bool:
    """Whether a message names a parameter and shows the beginning of its value, without a query."""
    try:
        return f"{parameter} = {repr(value)[:50].partition('?')[0]}" in message
    except (ValueError, RecursionError):
        return f"{parameter} = a huge {type(value).__name__}: " in message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "page.png").write_bytes(b"<!DOCTYPE html> secret")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10 * 1024 * 1024 + 1)
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


@OPERATORS
@pytest.mark.parametrize(("parameter", "value", "allowed"), REQUESTS, ids=ids(REQUESTS))
def test_an_invalid_parameter_is_named_with_what_is_allowed(
    task: Any, parameter: str, value: Any, allowed: str, emulator: Emulator, context: Context
) -> None:
    message = rejection(rendered(task(), **{parameter: value}), context, emulator, InvalidRequestError)
    assert message.startswith(INVALID)
    assert names(message, parameter, value)
    assert allowed in message


@OPERATORS
@pytest.mark.parametrize(("model", "family", "least", "most"), FAMILIES, ids=[row[1] for row in FAMILIES])
def test_the_range_of_the_size_depends_on_the_model(
    task: Any, model: str, family: str, least: int, most: int, emulator: Emulator, context: Context
) -> None:
    for size in (f"{least - 1}x{most}", f"{least}x{most + 1}"):
        message = rejection(rendered(task(), model=model, size=size), context, emulator, InvalidRequestError)
        assert (
            f"size = '{size}': must be from {least}x{least} to {most}x{most} for {family} models" in message
        )


@OPERATORS
@pytest.mark.parametrize(("parameter", "template", "given", "allowed"), TEMPLATES, ids=ids(TEMPLATES))
def test_rendered_text_is_checked_like_any_other(
    task: Any, parameter: str, template: str, given: Any, allowed: str, emulator: Emulator, context: Context
) -> None:
    templated = task(**{parameter: template})
    templated.render_template_fields({**context, "params": {"given": given}})
    message = rejection(templated, context, emulator, InvalidRequestError)
    assert f"{parameter} = " in message
    assert allowed in message


@OPERATORS
@pytest.mark.parametrize(("path", "problem"), SOURCES, ids=[label(row[0]) for row in SOURCES])
def test_an_unreadable_source_image_is_named(
    task: Any, path: str, problem: str, emulator: Emulator, context: Context, folder: Path
) -> None:
    uri = f"file://{folder}/{path}"
    message = rejection(task(image_url=uri), context, emulator, InvalidRequestError)
    assert message.startswith(INVALID)
    assert names(message, "image_url", uri)
    assert problem in message
    assert "secret" not in message  # no bytes of what may be any file


def test_a_missing_permission_on_the_worker_is_named(
    emulator: Emulator, context: Context, folder: Path
) -> None:
    (folder / "page.png").chmod(0)
    (folder / "folder").chmod(0o555)
    if os.access(folder / "page.png", os.R_OK):
        pytest.skip("root may do everything")
    unread = submitter(image_url=f"file://{folder}/page.png")
    assert "cannot be read (PermissionError" in rejection(unread, context, emulator, InvalidRequestError)
    unwritten = one_step(destination=f"file://{folder}/folder/new/")
    message = rejection(unwritten, context, emulator, InvalidDestinationError)
    assert f"this worker may not write to '{folder}/folder'" in message


def test_all_unreadable_source_images_are_named_at_once(
    emulator: Emulator, context: Context, folder: Path
) -> None:
    sources = [f"file://{folder}/page.png", "https://a.example/1.png", "ftp://a.example/2.png"]
    message = rejection(submitter(image_url=sources), context, emulator, InvalidRequestError)
    assert f"image_url = '{sources[0]}': holds 22 bytes" in message
    assert f"image_url = '{sources[2]}': cannot be opened (No filesystem registered for scheme ftp" in message
    assert message.count("nothing was sent") == 1


@pytest.mark.parametrize("task", [one_step, transfer])
@pytest.mark.parametrize(
    ("destination", "problem"),
    [*DESTINATIONS, *UNWRITABLE],
    ids=[label(row[0]) for row in [*DESTINATIONS, *UNWRITABLE]],
)
def test_an_invalid_destination_is_found_before_anything_is_sent(
    task: Any, destination: Any, problem: str, emulator: Emulator, context: Context, folder: Path
) -> None:
    if isinstance(destination, str):
        destination = destination.replace("{folder}", str(folder))
    before = sorted(folder.rglob("*"))
    message = rejection(rendered(task(), destination=destination), context, emulator, InvalidDestinationError)
    assert names(message, "destination", destination)
    assert problem in message
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def store_without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not check whether its connection is defined, like that of AWS."""
    # Where providers' filesystems are registered moved after Airflow 3.1.
    module = import_module("airflow.sdk.io.fs" if find_spec("airflow.sdk.io.fs") else "airflow.io")
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    monkeypatch.setitem(module._register_filesystems(), "memory", lambda conn_id: MemoryFileSystem())


@pytest.mark.usefixtures("store_without_checks")
@pytest.mark.parametrize("task", [one_step, transfer])
@pytest.mark.parametrize(
    ("connection", "problem"),
    [
        (5, "storage_conn_id = 5: must be the id of an Airflow connection"),
        (["aws_default"], "storage_conn_id = ['aws_default']: must be the id of an Airflow connection"),
        *[
            (name, f"(The conn_id `{name}` isn't defined): define that connection, or name another")
            for name in ("None", " ", "nowhere")
        ],
    ],
    ids=label,
)
def test_an_undefined_storage_connection_is_named(
    task: Any, connection: Any, problem: str, emulator: Emulator, context: Context
) -> None:
    wrong = task(destination="memory://bucket/cats/", storage_conn_id=connection)
    assert problem in rejection(wrong, context, emulator, InvalidDestinationError)


@pytest.mark.parametrize("task", [sensor, transfer])
@pytest.mark.parametrize("generation_id", GENERATION_IDS, ids=label)
def test_an_invalid_generation_id_is_rejected_without_a_poll(
    task: Any, generation_id: Any, emulator: Emulator, context: Context
) -> None:
    message = rejection(rendered(task(), generation_id=generation_id), context, emulator, InvalidRequestError)
    assert names(message, "generation_id", generation_id)
    assert ID in message


@pytest.mark.parametrize("task", [sensor, transfer])
def test_a_missing_xcom_is_not_a_generation_id(task: Any, emulator: Emulator, context: Context) -> None:
    templated = task(generation_id="{{ ti.xcom_pull(task_ids='missing', key='return_value') }}")
    templated.render_template_fields({**context, "params": {}})
    message = rejection(templated, context, emulator, InvalidRequestError)
    assert f"generation_id = 'None': {ID}" in message


def test_an_id_cannot_leave_the_path_of_the_status_request(emulator: Emulator) -> None:
    with pytest.raises(AirflowException):
        fetch_finished_generation(ModelScopeHook(), "../images/generations?a=b#c", recheck_seconds=0)
    for poll in emulator.requests:
        assert (poll.method, poll.path) == (
            "GET",
            "/v1/tasks/../images/generations?a=b#c",
        )  # unquoted by then


SECONDS_PARAMETERS = pytest.mark.parametrize(
    ("task", "parameter", "least"),
    [
        (submitter, "queue_timeout", 1),
        (one_step, "queue_timeout", 1),
        (one_step, "timeout", 1),
        (one_step, "poll_interval", 0),
        (one_step, "defer_after", 0),
        (batch, "queue_timeout", 1),
        (batch, "timeout", 1),
        (batch, "exhausted_timeout", 1),
        (batch, "poll_interval", 0),
        (batch, "defer_after", 0),
        (sensor, "defer_after", 0),
    ],
)


@SECONDS_PARAMETERS
@WAYS
@pytest.mark.parametrize("value", NOT_SECONDS, ids=label)
def test_an_invalid_number_of_seconds_is_named(
    task: Any, parameter: str, least: int, deferrable: bool, value: Any, emulator: Emulator, context: Context
) -> None:
    wrong = rendered(task(deferrable=deferrable), **{parameter: value})
    message = rejection(wrong, context, emulator, InvalidRequestError)
    assert names(message, parameter, value)
    assert SECONDS.format(least) in message


@pytest.mark.parametrize(
    ("task", "parameter"),
    [(submitter, "queue_timeout"), (one_step, "queue_timeout"), (one_step, "timeout"), (sensor, "timeout")],
)
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_timeout_is_at_least_a_second(
    task: Any, parameter: str, value: float, emulator: Emulator, context: Context
) -> None:
    message = rejection(rendered(task(), **{parameter: value}), context, emulator, InvalidRequestError)
    assert message == f"{INVALID}{parameter} = {value}: {SECONDS.format(1)}."
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        task(**{parameter: value})
    assert task(**{parameter: 1})


@pytest.mark.parametrize("task", [submitter, one_step])
@pytest.mark.parametrize("value", ["again", "", None, True], ids=label)
def test_on_lost_response_is_one_of_two_words(
    task: Any, value: Any, emulator: Emulator, context: Context
) -> None:
    message = rejection(rendered(task(), on_lost_response=value), context, emulator, InvalidRequestError)
    assert f"on_lost_response = {value!r}: must be 'resubmit' or 'fail'" in message


@pytest.mark.parametrize("parameter", ["poke_interval", "timeout"])
@pytest.mark.parametrize("value", [-1, NAN, INFINITE, "60", [60]], ids=label)
def test_airflow_itself_rejects_other_seconds_of_a_sensor(parameter: str, value: Any) -> None:
    with pytest.raises((ValueError, OverflowError, AirflowException)):
        sensor(**{parameter: value})


@pytest.mark.parametrize("task", [submitter, one_step, batch, sensor, credit_sensor, transfer])
@pytest.mark.parametrize("unknown", ["negativ_prompt", "n", "api_key"])
def test_an_unknown_argument_is_an_import_error(task: Any, unknown: str) -> None:
    with pytest.raises(TypeError, match=unknown):
        task(**{unknown: "a"})


def connection(monkeypatch: pytest.MonkeyPatch, emulator: Emulator, **fields: Any) -> None:
    """Define a connection to the emulator, with some fields changed."""
    defined = {"conn_type": "modelscope", "password": TOKEN, "host": emulator.base_url, **fields}
    monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(defined))


@pytest.mark.parametrize(
    ("fields", "name", "problem"),
    CONNECTIONS,
    ids=[label(json.dumps(row[0])[:60].replace(TOKEN, "TOKEN")) for row in CONNECTIONS],
)
def test_an_invalid_connection_field_is_named(
    fields: dict[str, Any],
    name: str,
    problem: str,
    emulator: Emulator,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection(monkeypatch, emulator, **fields)
    message = rejection(submitter(), context, emulator, InvalidConnectionError)
    assert message.startswith(f"Airflow connection 'modelscope_default': {name} ")
    assert problem in message
    assert ModelScopeHook().test_connection() == (False, message)
    assert not emulator.requests


@pytest.mark.skipif(
    AIRFLOW_VERSION < (3, 2),
    reason="Airflow 3.0 and 3.1 reject it themselves",
)
@pytest.mark.parametrize("extra", ["request_timeout=5", "[5]"])
def test_an_extra_that_is_not_a_json_object_is_named(
    extra: str, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(monkeypatch, emulator, extra=extra)
    message = rejection(submitter(), context, emulator, InvalidConnectionError)
    assert message == "Airflow connection 'modelscope_default': extra must be a JSON object."


@pytest.mark.parametrize("task", [submitter, one_step, batch, sensor, credit_sensor, transfer])
@WAYS
def test_all_errors_of_the_connection_come_at_once(
    task: Any, deferrable: bool, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"request_timeout": "soon", "verfy": False, "max_image_byte": 5}
    connection(monkeypatch, emulator, password="", host="ftp://a.example", extra=extra)
    wrong = task() if task is transfer else task(deferrable=deferrable)
    message = rejection(wrong, context, emulator, InvalidConnectionError)
    for part in (
        "request_timeout must be an integer from 1 to 600, not 'soon'",
        "unknown extra 'verfy' (did you mean verify?)",
        "unknown extra 'max_image_byte' (did you mean max_image_bytes?)",
        "password is empty",
        "host must be a URL",
    ):
        assert part in message


@pytest.mark.parametrize("conn_type", ["http", "https", "generic", ""])
def test_a_generic_connection_works_and_keeps_its_extras(
    conn_type: str, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {"request_timeout": 5} | ({"Accept": "*/*"} if conn_type else {})
    connection(monkeypatch, emulator, conn_type=conn_type, extra=extra)
    assert submitter().execute(context)
    assert ModelScopeHook().account.request_timeout == 5


def test_all_errors_of_a_task_come_in_one_sentence(
    emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(monkeypatch, emulator, password="")
    invalid = {"prompt": "", "steps": 0, "destination": "cats", "timeout": -1, "queue_timeout": None}
    message = rejection(rendered(one_step(), **invalid), context, emulator, InvalidRequestError)
    errors = message.removeprefix(INVALID).split("; ")
    names = (
        "prompt = ",
        "steps = ",
        "destination = ",
        "queue_timeout = ",
        "timeout = ",
        "Airflow connection",
    )
    assert [error.startswith(name) for error, name in zip(errors, names, strict=True)] == [True] * 6
    assert message.count("nothing was sent") == 1
    assert ".." not in message


def test_a_missing_connection_does_not_hide_the_errors(emulator: Emulator, context: Context) -> None:
    invalid = rendered(one_step(modelscope_conn_id="nowhere"), prompt="", destination="cats")
    message = rejection(invalid, context, emulator, InvalidRequestError)
    assert "prompt = '': " in message
    assert "destination = 'cats': " in message


@pytest.mark.parametrize("connection_id", [None, "", "nowhere", ["modelscope_default"]], ids=label)
@pytest.mark.parametrize("task", [submitter, one_step, batch, sensor, transfer])
def test_a_missing_connection_is_named_and_left_to_retries(
    task: Any, connection_id: Any, emulator: Emulator, context: Context
) -> None:
    with pytest.raises(AirflowException, match=re.escape(f"`{connection_id}`")) as raised:
        task(modelscope_conn_id=connection_id).execute(context)
    assert not isinstance(raised.value, AirflowFailException)
    assert not emulator.requests


def test_a_skipped_sensor_says_why(emulator: Emulator, context: Context) -> None:
    with pytest.raises(AirflowSkipException, match="generation_id = None: must be the id"):
        rendered(sensor(soft_fail=True), generation_id=None).execute(context)


# At parse time.

BATCH_CONSTANTS: list[tuple[str, Any]] = [
    *(("size", value) for value in ("64", "64x")),
    ("loras", {"a/b": 0.4}),
    ("fallback_models", "a/b"),
    ("destination", "s3://bucket/cat.png"),
    ("destination", "cats/"),
    ("max_credit", "much"),
    ("max_failures", "5"),
    ("item_attempts", 0),
    ("max_requests", True),
    ("concurrency", "many"),
    ("shard", "3/3"),
    ("on_empty", "stop"),
    ("on_exhausted", "retry"),
    ("on_lost_response", "again"),
    ("manifest_format", "csv"),
]
CONSTANTS: list[tuple[Any, str, Any]] = [
    *((task, parameter, value) for task in (submitter, one_step) for parameter, value, _ in REQUESTS),
    *((task, "destination", value) for task in (one_step, transfer) for value, _ in DESTINATIONS),
    *((task, "generation_id", value) for task in (sensor, transfer) for value in GENERATION_IDS),
    *((task, "on_lost_response", "again") for task in (submitter, one_step)),
    (one_step, "preflight", "none"),
    *((batch, parameter, value) for parameter, value in BATCH_CONSTANTS),
]


@pytest.mark.parametrize(
    ("task", "parameter", "value"),
    [row for row in CONSTANTS if row[2] not in (" \n", " \t\n")],  # Jinja removes the last newline
    ids=lambda part: getattr(part, "__name__", label(part)),
)
def test_an_invalid_constant_is_an_import_error(
    task: Any, parameter: str, value: Any, emulator: Emulator, context: Context
) -> None:
    with DAG("a_dag", schedule=None), pytest.raises(ModelScopeFinalError) as at_parse_time:
        task(**{parameter: value})
    kind = type(at_parse_time.value)
    assert str(at_parse_time.value) == rejection(
        rendered(task(), **{parameter: value}), context, emulator, kind
    )


@SECONDS_PARAMETERS
@pytest.mark.parametrize("value", NOT_SECONDS, ids=label)
def test_invalid_constant_seconds_are_an_import_error(
    task: Any, parameter: str, least: int, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{INVALID}{parameter} = .*{SECONDS.format(least)}"):
        task(**{parameter: value})


def test_all_errors_of_a_dag_file_come_in_one_sentence() -> None:
    with DAG("a_dag", schedule=None), pytest.raises(InvalidRequestError) as raised:
        one_step(model="Qwen/Qwen-Image", size="2000x64", seed="abc", destination="cats", timeout=0)
    assert str(raised.value) == (
        f"{INVALID}seed = 'abc': {SEED}; size = '2000x64': must be from 64x64 to 1664x1664 for Qwen-Image "
        f"models, or any size with check_ranges=False; timeout = 0: {SECONDS.format(1)}; "
        f"destination = 'cats': {URI}."
    )


@pytest.mark.parametrize(("destination", "_"), UNWRITABLE, ids=[label(row[0]) for row in UNWRITABLE])
def test_what_only_the_worker_can_check_is_no_import_error(destination: str, _: str, folder: Path) -> None:
    for task in (one_step, transfer):
        assert task(destination=destination.replace("{folder}", str(folder)))
