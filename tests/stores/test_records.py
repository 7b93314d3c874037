"""Every store keeps the record of a submission, for Airflows without a task state store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import SubmissionRecordError
from tests.stores.conftest import one_step
from tests.stores.stores import ALL, REMOTE
from tests.unit.conftest import TaskInstance

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from tests.stores.stores import Bucket, Store

in_every_store = pytest.mark.parametrize("store", ALL, indirect=True, ids=lambda kind: kind.__name__)
in_remote_stores = pytest.mark.parametrize("store", REMOTE, indirect=True, ids=lambda kind: kind.__name__)
pytestmark = pytest.mark.usefixtures("no_backoff")


def draw(bucket: Bucket, store: Store, **options: Any) -> list[str]:
    """Run one attempt without a task state store."""
    context: Any = {"ti": TaskInstance()}
    uris: list[str] = one_step(bucket.uri("cats/"), store.storage_conn_id, **options).execute(context)
    return uris


def set_folder(monkeypatch: pytest.MonkeyPatch, bucket: Bucket, store: Store) -> None:
    scheme, _, path = bucket.uri("").partition("://")
    connection = f"{store.storage_conn_id}@" if store.storage_conn_id else ""
    monkeypatch.setenv("AIRFLOW__MODELSCOPE__SUBMISSION_RECORDS", f"{scheme}://{connection}{path}")


@in_every_store
def test_a_retry_resumes_and_leaves_no_record(
    emulator: Emulator, store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_folder(monkeypatch, bucket, store)
    emulator.fail("image:500:5")
    with pytest.raises(Exception, match="Cannot download"):
        draw(bucket, store)
    [record] = bucket.objects
    assert record.startswith(bucket.uri("a_dag.a_run.a_task.-1-"))
    uris = draw(bucket, store)
    assert list(bucket.objects) == uris
    assert emulator.accepted == 1


@in_remote_stores
def test_a_missing_bucket_stops_the_task_before_it_submits(
    emulator: Emulator, store: Store, missing_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_folder(monkeypatch, missing_bucket, store)
    with pytest.raises(SubmissionRecordError, match=r"The record .* cannot be"):
        draw(missing_bucket, store, preflight="off")
    assert emulator.accepted == 0
