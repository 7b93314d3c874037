"""S3 over TLS: servers that differ from Amazon's, and stores that hold other bytes than they were given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import ImageStorageError, InvalidDestinationError
from airflow_provider_modelscope.images import preflight, read_back
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import (
    Destination,
    describe_object,
    open_folder,
    read_latest,
    read_object,
    write_object,
)
from airflow_provider_modelscope.images.preflight import check_store
from tests.stores.manners import MannersServer
from tests.stores.recipes import RECIPES
from tests.stores.test_storing import png

if TYPE_CHECKING:
    import ssl

pytestmark = pytest.mark.usefixtures("no_backoff")
CONTENT = png(64, 48)
URI = "s3://bucket/cats/cat.png"


@pytest.fixture
def server(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> Iterator[MannersServer]:
    """The server behind two connections: ``plain``, and ``when_required``, with the options for OSS."""
    monkeypatch.setattr(read_back, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(preflight, "_passed", set())
    with MannersServer(tls) as server:
        for name, recipe in (("plain", RECIPES["MY_S3"]), ("when_required", RECIPES["MY_OSS"])):
            fields = recipe.fields
            fields["extra"] |= {"endpoint_url": server.url}
            fields["extra"].get("config_kwargs", {}).pop("s3", None)  # no bucket in the host name
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
        yield server


@pytest.fixture(params=["plain", "when_required"])
def connection(request: pytest.FixtureRequest) -> str:
    """The id of a connection to the server."""
    return str(request.param)


def store(connection: str) -> str:
    with Image.from_chunks([CONTENT]) as image:
        return Destination.parse(URI, storage_conn_id=connection).store(image, generation_id="42", number=1)


@pytest.mark.parametrize("manners", ["", "oss", "lock", "oss lock", "silent", "own-etag", "late", "kms"])
def test_a_server_of_any_manners_stores_an_image(
    manners: str, connection: str, server: MannersServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.manners.update(manners.split())
    assert store(connection) == URI
    assert server.objects == {"/bucket/cats/cat.png": CONTENT}
    [put] = server.puts()
    assert put.headers["Content-Type"] == "image/png"
    assert put.headers["x-amz-checksum-sha256"]
    assert "aws-chunked" not in str(put.headers)
    assert "without a check" not in caplog.text


@pytest.mark.parametrize("manners", ["b2", "r2", "b2 lock"])
def test_a_server_without_sha256_checks_the_md5(manners: str, server: MannersServer) -> None:
    server.manners.update(manners.split())
    assert store("when_required") == URI
    assert server.objects == {"/bucket/cats/cat.png": CONTENT}
    assert [bool(put.headers["Content-MD5"]) for put in server.puts()] == [False, True]


def test_an_error_about_aws_chunked_names_the_option(server: MannersServer) -> None:
    """A server that knows neither the checksum nor aws-chunked."""
    server.manners.update({"b2", "oss"})
    with pytest.raises(InvalidDestinationError, match=r'"request_checksum_calculation": "when_required"'):
        store("plain")
    assert store("when_required") == URI


@pytest.mark.parametrize(
    ("manner", "advice"),
    [
        ("expired", "renew them in the connection"),
        ("skewed", "or this machine's clock is wrong"),
        ("damage", "BadDigest|did not match"),
    ],
)
def test_what_a_retry_may_cure_is_retryable(
    manner: str, advice: str, connection: str, server: MannersServer
) -> None:
    server.manners.add(manner)
    with pytest.raises(ImageStorageError, match=rf"^{URI} was not stored .*{advice}.*ModelScope keeps"):
        store(connection)
    assert all(put.headers["x-amz-checksum-sha256"] for put in server.puts())
    server.manners.clear()
    assert store(connection) == URI


@pytest.mark.parametrize(
    ("manner", "advice"),
    [
        ("elsewhere", "Correct region_name or endpoint_url"),
        ("moved", "Correct region_name or endpoint_url"),
        ("invalid", "the store will never accept this"),
    ],
)
def test_what_never_changes_is_final(manner: str, advice: str, server: MannersServer) -> None:
    server.manners.add(manner)
    with pytest.raises(InvalidDestinationError, match=rf"cannot be written .*{advice}.*ModelScope keeps"):
        store("plain")


@pytest.mark.parametrize("manner", ["expired", "skewed"])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_preflight_names_credentials_that_have_expired(
    manner: str, mode: str, server: MannersServer
) -> None:
    server.manners.add(manner)
    to = Destination.parse(URI, storage_conn_id="plain")
    with pytest.raises(ImageStorageError, match=r"Nothing was sent.*The credentials have expired, or"):
        check_store(to, mode)
    assert server.objects == {}


@pytest.mark.parametrize("manners", ["", "oss lock"])
def test_a_preflight_writes_like_an_image(manners: str, connection: str, server: MannersServer) -> None:
    server.manners.update(manners.split())
    check_store(Destination.parse("s3://bucket/new/", storage_conn_id=connection), "write")
    [put] = server.puts()
    assert put.headers["x-amz-checksum-sha256"]
    assert server.objects == {}


@pytest.mark.parametrize("manners", ["flip", "flip silent", "flip own-etag"])
def test_a_flipped_bit_in_the_store_is_retryable(
    manners: str, connection: str, server: MannersServer
) -> None:
    server.manners.update(manners.split())
    with pytest.raises(ImageStorageError, match=rf"^{URI} was written, but the store holds other bytes"):
        store(connection)
    server.manners.clear()
    assert store(connection) == URI
    assert server.objects == {"/bucket/cats/cat.png": CONTENT}


def test_a_forbidden_head_stores_with_a_warning(
    connection: str, server: MannersServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.manners.add("head-403")
    assert store(connection) == URI
    assert re.search(r"Stored s3://\S+/cat.png without a check, because it cannot be read back", caplog.text)


def test_a_head_that_fails_is_no_failed_write(connection: str, server: MannersServer) -> None:
    server.manners.add("head-503")
    with pytest.raises(ImageStorageError, match=rf"^{URI} was written, but cannot be read back \("):
        store(connection)
    assert server.objects == {"/bucket/cats/cat.png": CONTENT}


def test_a_changed_connection_signs_the_next_request(
    server: MannersServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store("plain")
    folder = open_folder("s3://plain@bucket/records/", parameter="records")
    destination = Destination.parse(URI, storage_conn_id="plain")
    calls: list[Callable[[], Any]] = [
        lambda: read_object(URI, "plain", most=10**6),
        lambda: describe_object(URI, "plain"),
        lambda: destination.store(Image.from_bytes(CONTENT), generation_id="42", number=1),
        lambda: check_store(destination, "write"),
        lambda: write_object(folder, b"{}", "application/json"),
        lambda: read_latest(folder),
    ]
    for number, call in enumerate(calls):
        fields = RECIPES["MY_S3"].fields | {"login": f"KEY-{number}"}
        fields["extra"] |= {"endpoint_url": server.url}
        monkeypatch.setenv("AIRFLOW_CONN_PLAIN", json.dumps(fields))
        server.requests.clear()
        call()
        assert {one.access_key for one in server.requests} == {f"KEY-{number}"}
