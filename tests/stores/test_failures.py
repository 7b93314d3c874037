"""A store that fails holds no partial object, says what to do, and gets the same image from a retry."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.gallery.files import ImageUnavailableError, find_object, read_image
from airflow_provider_modelscope.xcoms import StoredImage
from tests.stores.conftest import attempt, one_step, submitted, transfer
from tests.stores.stores import Object, Store, azure
from tests.stores.test_storing import in_remote_stores, png

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from tests.stores.conftest import Record
    from tests.stores.stores import Bucket

pytestmark = pytest.mark.usefixtures("no_backoff")
BEFORE = b"an older object"
KEPT = "ModelScope keeps the generation: clear the task"


@contextmanager
def trouble(store: Store, what: str) -> Iterator[None]:
    """Let a store refuse connections (``down``), or let its relay inject a fault."""
    relay = store.relay
    assert relay is not None
    caught = relay.caught
    if what == "down":
        relay.down()
    else:
        relay.fault = what  # type: ignore[assignment] # the parameter's values are the fault's
    try:
        yield
    finally:
        if what == "down":
            relay.up()
        else:
            relay.fault = ""
            assert relay.caught > caught


@in_remote_stores
@pytest.mark.parametrize(
    ("what", "error", "advice"),
    [
        ("403", InvalidDestinationError, "that the connection or the worker's user may write to it"),
        ("503", ImageStorageError, KEPT),
        ("down", ImageStorageError, KEPT),
        ("cut", ImageStorageError, KEPT),
    ],
    ids=["403", "503", "down", "cut"],
)
def test_a_failed_store_keeps_its_object_until_the_retry(
    what: str,
    error: type[ModelScopeError],
    advice: str,
    emulator: Emulator,
    store: Store,
    bucket: Bucket,
    record: Record,
) -> None:
    uri = bucket.put("cat.png", BEFORE)
    before = bucket.objects
    with trouble(store, what), pytest.raises(error, match=advice) as raised:
        one_step(uri, store.storage_conn_id, preflight="off").execute(attempt(record))
    assert uri in raised.value.message
    assert str((store.connection or {}).get("password")) not in raised.value.message
    assert bucket.objects == before
    assert one_step(uri, store.storage_conn_id).execute(attempt(record)) == [uri]
    assert bucket.objects == {uri: Object([*emulator.served.values()][-1], "image/png")}
    assert emulator.accepted == 1


@in_remote_stores
def test_a_missing_bucket_is_a_final_error_until_it_exists(
    emulator: Emulator, store: Store, missing_bucket: Bucket
) -> None:
    task = transfer(submitted(), missing_bucket.uri("cat.png"), store.storage_conn_id)
    with pytest.raises(InvalidDestinationError, match="Check that its bucket or folder exists") as raised:
        task.execute(attempt())
    assert missing_bucket.uri("cat.png") in raised.value.message
    missing_bucket.make()
    assert missing_bucket.objects == {}
    assert task.execute(attempt()) == [*missing_bucket.objects]


@in_remote_stores
def test_a_missing_source_is_found_before_anything_is_charged(
    emulator: Emulator, store: Store, bucket: Bucket, missing_bucket: Bucket
) -> None:
    for missing in (bucket.uri("none.png"), missing_bucket.uri("none.png")):
        with pytest.raises(InvalidRequestError, match="cannot be read") as raised:
            one_step(bucket.uri(), store.storage_conn_id, image_url=missing).execute(attempt())
        assert missing in raised.value.message
    assert emulator.requests == []


@in_remote_stores
@pytest.mark.parametrize(
    ("what", "error", "problem"),
    [
        ("403", InvalidRequestError, "cannot be read"),
        ("503", ModelScopeRetryableError, "Nothing was sent"),
        ("down", ModelScopeRetryableError, "Nothing was sent"),
    ],
    ids=["403", "503", "down"],
)
def test_an_unreadable_source_costs_nothing_and_can_be_retried(
    what: str,
    error: type[ModelScopeError],
    problem: str,
    emulator: Emulator,
    store: Store,
    bucket: Bucket,
    record: Record,
) -> None:
    task = one_step(
        bucket.uri("edited/"), store.storage_conn_id, image_url=bucket.put("a.png", content := png())
    )
    with trouble(store, what), pytest.raises(error, match=problem) as raised:
        task.execute(attempt(record))
    assert bucket.uri("a.png") in raised.value.message
    assert emulator.requests == []
    task.execute(attempt(record))
    [sent] = [one.json["image_url"] for one in emulator.requests if one.note == "accepted"]
    assert base64.b64decode(sent.partition(",")[2]) == content


@in_remote_stores
@pytest.mark.parametrize("what", ["403", "503", "down"])
def test_the_gallery_shows_an_image_when_its_store_is_back(what: str, store: Store, bucket: Bucket) -> None:
    uri = bucket.put("cat.png", content := png())
    checksum = sha256(content).hexdigest()
    stored = StoredImage.from_json(
        {
            "uri": uri,
            "storage_conn_id": store.storage_conn_id,
            "sha256": checksum,
            "size_bytes": len(content),
        }
    )
    assert stored
    with trouble(store, what), pytest.raises(ImageUnavailableError, match=f"{uri} does not contain"):
        read_image(find_object(stored))
    assert read_image(find_object(stored)) == (content, "image/png")


@pytest.mark.parametrize("store", [azure], indirect=True, ids=lambda kind: kind.__name__)
def test_a_rejected_key_of_azure_is_a_final_error(
    emulator: Emulator, store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.connection is not None
    wrong = store.connection | {"password": base64.b64encode(b"wrong").decode()}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG_KEY", json.dumps(wrong))
    task = transfer(submitted(), bucket.uri("cat.png"), "wrong_key")
    with pytest.raises(InvalidDestinationError, match="that the connection or the worker's user may write"):
        task.execute(attempt())
    assert bucket.objects == {}
