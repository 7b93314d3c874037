"""When a task leaves its worker, and what the trigger gets."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import BaseOperator

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.tasks.deferral import early_slot_retry
from tests.unit.builders import REQUEST, Context, one_step, run, sensor, submitter

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")


def deferred(task: Any, context: Context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


def test_a_fast_generation_needs_no_triggerer(emulator: Emulator, context: Context) -> None:
    generation_id = submitter().execute(context)
    assert sensor(generation_id, deferrable=True, defer_after=0).execute(context) == generation_id


def test_a_slow_generation_is_left_to_the_trigger(emulator: Emulator, context: Context) -> None:
    generation_id = submitter().execute(context)
    emulator.fail("poll:stall:always")
    task = sensor(generation_id, deferrable=True, defer_after=0, poke_interval=7, timeout=100)
    deferral = deferred(task, context)
    kwargs = deferral.trigger.serialize()[1]
    assert kwargs["generation_id"] == generation_id
    assert kwargs["modelscope_conn_id"] == "modelscope_default"
    assert kwargs["poll_interval"] == 7
    assert kwargs["min_deferral_seconds"] == 8
    # Airflow's own limit leaves the trigger the time for a last poll, so that its message comes first.
    assert deferral.timeout is not None
    assert deferral.timeout.total_seconds() > 100 + 30


def test_the_trigger_gets_the_model_and_size_of_the_request(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    emulator.fail("poll:stall")
    task = one_step(tmp_path, deferrable=True, defer_after=0)
    kwargs = deferred(task, context).trigger.serialize()[1]
    assert (kwargs["model"], kwargs["size"]) == (REQUEST["model"], REQUEST["size"])


class TestCalledByAnotherTask:
    """Airflow would resume the other task, with the event and the parameters of the one that deferred."""

    @pytest.mark.parametrize(
        "other", [BaseOperator(task_id="other"), one_step()], ids=["any task", "one of ours"]
    )
    def test_an_operator_waits_on_the_worker(
        self, emulator: Emulator, context: Context, tmp_path: Path, other: Any
    ) -> None:
        context["ti"].task = other
        for prompt in ("one", "two"):
            for fault in ("submit:queue-full", "poll:no-images"):
                emulator.fail(fault)
            task = one_step(tmp_path, prompt=prompt, deferrable=True, defer_after=0, poll_interval=1)
            assert task.execute(context)
        assert emulator.accepted == 2

    def test_a_sensor_waits_on_the_worker(self, emulator: Emulator, context: Context) -> None:
        generation_id = submitter().execute(context)
        context["ti"].task = submitter()
        emulator.fail("poll:no-images")
        task = sensor(generation_id, deferrable=True, defer_after=0, poke_interval=1)
        assert task.execute(context) == generation_id

    def test_the_task_itself_defers(self, emulator: Emulator, context: Context, tmp_path: Path) -> None:
        emulator.fail("poll:no-images")
        context["ti"].task = task = one_step(tmp_path, deferrable=True, defer_after=0)
        context["task"] = one_step(tmp_path)  # as on Airflow 3.0, a copy
        assert deferred(task, context)


@pytest.mark.parametrize(("start_seconds", "seconds"), [(0, 6), (3, 6), (15, 10), (60, 40)])
def test_a_worker_that_started_slowly_retries_for_longer(start_seconds: float, seconds: float) -> None:
    assert early_slot_retry(start_seconds) == seconds


def test_triggers_wait_until_the_deferral_is_reported(
    emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "20")
    generation_id = submitter().execute(context)
    emulator.fail("poll:stall:always")
    emulator.fail("submit:queue-full:always")
    for task in (sensor(generation_id, deferrable=True, defer_after=0), submitter(deferrable=True)):
        assert deferred(task, context).trigger.serialize()[1]["min_deferral_seconds"] == 23


def test_a_shorter_execution_timeout_ends_the_wait(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    emulator.fail("poll:stall:always")
    limits = {"deferrable": True, "defer_after": 0, "execution_timeout": timedelta(seconds=50)}
    for task in (one_step(tmp_path, **limits), sensor(submitter().execute(context), **limits)):
        deferral = deferred(task, context)
        started_at = context["ti"].start_date.timestamp()
        assert deferral.trigger.serialize()[1]["end_time"] == started_at + 50
        assert deferral.timeout is not None
        assert deferral.timeout.total_seconds() < 50 + 30 + 61


def test_the_trigger_polls_the_rest_of_the_time(emulator: Emulator, context: Context, tmp_path: Path) -> None:
    emulator.fail("poll:no-images")  # not finished at the first poll, but at the second
    [uri] = run(one_step(tmp_path, deferrable=True, defer_after=0), context)
    assert Path(uri.removeprefix("file://")).exists()
    polls = [exchange for exchange in emulator.requests if exchange.path.startswith("/v1/tasks/")]
    assert len(polls) == 3  # the worker's, the trigger's, and the worker's for a fresh list
