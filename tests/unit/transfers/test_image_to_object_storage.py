"""The transfer: a finished generation becomes objects in object storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    GenerationRejectedError,
    GenerationTimeoutError,
    ImageGoneError,
    InvalidDestinationError,
    InvalidRequestError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import ModelLink
from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
from tests.unit.builders import Context, rendered, submitter, transfer
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator
    from tests.unit.conftest import Supervisor

pytestmark = pytest.mark.usefixtures("no_pauses")


def test_a_retry_writes_the_same_objects_again(emulator: Emulator, context: Context, tmp_path: Path) -> None:
    generation_id = submitter().execute(context)
    first = transfer(generation_id, tmp_path).execute(context)
    assert transfer(generation_id, tmp_path).execute(context) == first
    assert len(list(tmp_path.iterdir())) == 1


def test_it_says_which_generation_it_stores(emulator: Emulator, context: Context, tmp_path: Path) -> None:
    generation_id = submitter().execute(context)
    with pytest.raises(InvalidRequestError):
        transfer(" ", tmp_path).execute(context)
    assert "progress" not in context["ti"].pushed
    transfer(generation_id, tmp_path).execute(context)
    said = context["ti"].pushed["progress"]
    assert (said["state"], said["generation_id"]) == ("storing", generation_id)


def test_the_suffix_of_the_destination_selects_a_format(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    generation_id = submitter().execute(context)
    [uri] = transfer(generation_id, destination=f"file://{tmp_path}/cat.JPG").execute(context)
    assert uri.endswith("/cat.JPG")
    [image] = context["ti"].pushed["images"]
    assert image["content_type"] == "image/jpeg"
    assert image["size_bytes"] == (tmp_path / "cat.JPG").stat().st_size


@pytest.mark.parametrize("name", ["generation_id", "destination", "storage_conn_id"])
def test_a_secret_is_not_stored(name: str, emulator: Emulator, context: Context, tmp_path: Path) -> None:
    value = f"file://{tmp_path}/{TOKEN}/" if name == "destination" else TOKEN
    with pytest.raises(InvalidRequestError, match=f"{name}: must not contain the token") as raised:
        rendered(transfer("42", tmp_path), **{name: value}).execute(context)
    assert TOKEN not in str(raised.value)
    assert not emulator.requests


def test_a_failed_generation_fails_it_without_retries(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    generation_id = submitter().execute(context)
    emulator.fail("poll:failed")
    with pytest.raises(GenerationRejectedError, match=f"FAILED: .*generation {generation_id}"):
        transfer(generation_id, tmp_path).execute(context)
    assert not list(tmp_path.iterdir())


def test_the_link_to_the_model_is_pushed_before_the_poll(
    emulator: Emulator, context: Context, supervisor: Supervisor
) -> None:
    generation_id = submitter().execute(context)
    context["ti"].upstream = {"generation_id": generation_id, "model": "a/b", "submitted_at": 5.0}
    with DAG("chain", schedule=None):
        submit, store = submitter(), transfer(generation_id)
        submit >> store
    emulator.fail("poll:401")
    with pytest.raises(AuthenticationError):
        store.execute(context)
    assert supervisor.pushed[ModelLink.xcom_key] == "https://modelscope.cn/models/a/b"


def test_the_credit_is_that_of_the_submission_upstream(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    generation_id = submitter().execute(context)
    context["ti"].upstream = context["ti"].pushed["request"]
    with DAG("chain", schedule=None):
        submit, store = submitter(), transfer(generation_id, tmp_path, sidecar=True)
        submit >> store
    store.execute(context)
    [image] = context["ti"].pushed["images"]
    [sidecar] = tmp_path.glob("*.json")
    assert image["credit"] == json.loads(sidecar.read_text())["credit"] == 1  # as the emulator charges


def test_an_expired_url_is_replaced_once(emulator: Emulator, context: Context, tmp_path: Path) -> None:
    generation_id = submitter().execute(context)
    emulator.fail("image:404")
    assert transfer(generation_id, tmp_path).execute(context)
    emulator.fail("image:404:2")
    with pytest.raises(ImageGoneError):
        transfer(generation_id, tmp_path).execute(context)


def test_nothing_is_stored_if_an_image_cannot_be_downloaded(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    generation_id = submitter().execute(context)
    emulator.fail("image:truncated:always")
    with pytest.raises(Exception, match=r"^Cannot download"):
        transfer(generation_id, tmp_path).execute(context)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_service_is_left_to_the_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises((GenerationTimeoutError, ServiceUnavailableError), match="Cannot reach"):
        fetch_finished_generation(ModelScopeHook(), "42", recheck_seconds=0)


def test_one_object_for_all_mapped_tasks_is_an_error(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    generation_id = submitter().execute(context)
    context["ti"].map_index = 0
    with DAG("a_dag", schedule=None) as context["dag"]:
        task = transfer(generation_id, destination=f"file://{tmp_path}/cat.png")
    with pytest.raises(InvalidDestinationError, match="each mapped task overwrites"):
        task.prepare_for_execution().execute(context)
    assert not list(tmp_path.iterdir())
