"""Every store is asked whether it will take images, before a generation is paid for."""

from __future__ import annotations

import base64
import json
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import ImageStorageError, InvalidDestinationError
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.images.preflight import check_store
from tests.stores.conftest import attempt, one_step
from tests.stores.stores import azure, gcs, s3_by_path
from tests.stores.test_failures import KEPT, trouble
from tests.stores.test_storing import in_every_store, in_remote_stores

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from tests.stores.conftest import Record
    from tests.stores.stores import Bucket, Store

pytestmark = pytest.mark.usefixtures("no_backoff")
each_mode = pytest.mark.parametrize("mode", ["read", "write"])


def destination(bucket: Bucket) -> Destination:
    return Destination.parse(bucket.uri("new/folder/"), storage_conn_id=bucket.store.storage_conn_id)


def methods(store: Store) -> list[str]:
    """Return the methods of all requests to a store."""
    assert store.relay is not None
    return [head.partition(b" ")[0].decode() for head in store.relay.heads]


@each_mode
@in_every_store
def test_a_preflight_leaves_no_object(mode: str, store: Store, bucket: Bucket) -> None:
    bucket.put("cat.png", b"an older object")
    before = bucket.objects
    check_store(destination(bucket), mode)
    assert bucket.objects == before


@in_remote_stores
def test_a_preflight_reads_once_per_process(store: Store, bucket: Bucket) -> None:
    to = destination(bucket)  # may ask for an access token
    before = len(methods(store))
    for _ in range(3):
        check_store(to, "read")
    assert methods(store)[before:] in (["GET"], ["HEAD"])


@each_mode
@in_remote_stores
def test_a_missing_bucket_costs_nothing_until_it_exists(
    mode: str, emulator: Emulator, store: Store, missing_bucket: Bucket, record: Record
) -> None:
    task = one_step(missing_bucket.uri("cats/"), store.storage_conn_id, preflight=mode)
    with pytest.raises(InvalidDestinationError, match=f"'{missing_bucket.name}' does not exist") as raised:
        task.execute(attempt(record))
    assert f"destination = '{missing_bucket.uri('cats/')}'" in raised.value.message
    assert "Nothing was sent" in raised.value.message
    assert emulator.requests == []
    missing_bucket.make()
    assert task.execute(attempt(record)) == [*missing_bucket.objects]


@each_mode
@in_remote_stores
@pytest.mark.parametrize("what", ["503", "down"])
def test_a_store_that_is_away_costs_nothing_and_is_retried(
    what: str, mode: str, emulator: Emulator, store: Store, bucket: Bucket, record: Record
) -> None:
    task = one_step(bucket.uri("cats/"), store.storage_conn_id, preflight=mode)
    with trouble(store, what), pytest.raises(ImageStorageError, match="Nothing was sent"):
        task.execute(attempt(record))
    assert emulator.requests == []
    assert task.execute(attempt(record)) == [*bucket.objects]


@in_remote_stores
def test_only_a_write_tells_whether_a_forbidden_store_takes_images(
    store: Store, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with trouble(store, "403"):
        with pytest.raises(InvalidDestinationError, match=f"'{store.storage_conn_id}' may not write to it"):
            check_store(destination(bucket), "write")
        check_store(destination(bucket), "read")
    assert f"Submitting without a check of {bucket.uri('new/folder/')}, which cannot be listed" in caplog.text


@in_remote_stores
def test_a_resumed_generation_needs_no_preflight(
    emulator: Emulator, store: Store, bucket: Bucket, record: Record
) -> None:
    with trouble(store, "down"):
        with pytest.raises(ImageStorageError, match=KEPT):
            one_step(bucket.uri(), store.storage_conn_id, preflight="off").execute(attempt(record))
        with pytest.raises(ImageStorageError, match=KEPT):
            one_step(bucket.uri(), store.storage_conn_id).execute(attempt(record))
    assert emulator.accepted == 1


NO_KEY = {"login": None, "password": None}


@each_mode
@pytest.mark.parametrize(
    ("store", "changes"),
    [
        (s3_by_path, NO_KEY),
        (azure, NO_KEY),
        (azure, {"password": base64.b64encode(b"wrong").decode()}),
        (azure, {"password": "x"}),
        (gcs, {"extra": {}}),
    ],
    indirect=["store"],
    ids=["s3 without keys", "azure without a key", "azure, wrong key", "azure, no key at all", "gcs, no key"],
)
def test_unusable_credentials_cost_nothing(
    changes: dict[str, Any],
    mode: str,
    emulator: Emulator,
    store: Store,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    monkeypatch.setenv("AIRFLOW_CONN_UNUSABLE", json.dumps({**(store.connection or {}), **changes}))
    task = one_step(bucket.uri("cats/"), "unusable", preflight=mode)
    rejecting = trouble(store, "403") if store.name.startswith("s3") else nullcontext()
    with rejecting, pytest.raises(InvalidDestinationError, match="the connection 'unusable'"):
        task.execute(attempt())
    assert emulator.requests == []
    assert bucket.objects == {}
