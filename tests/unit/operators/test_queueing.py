"""Operators and a full queue: no worker is held, nothing fails, and no submission is lost."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import timedelta
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from requests_mock import Mocker

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.exceptions import (
    ModelScopeFinalError,
    QueueFullError,
    ServiceUnreachableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from airflow_provider_modelscope.tasks import deferral as deferral_module
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from tests.unit.builders import (
    REQUEST,
    SLOT_FREE,
    Context,
    one_step,
    overdue,
    resume,
    sensor,
    submissions,
    submitter,
)
from tests.unit.conftest import TaskInstance, connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator


def deferred(task: Any, context: Context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    assert raised.value.method_name == "execute_queued"
    return raised.value


def test_a_full_queue_frees_the_worker(emulator: Emulator, context: Context) -> None:
    emulator.fail("submit:queue-full")
    task = submitter(deferrable=True)
    generation_id = resume(task, deferred(task, context), context)
    assert emulator.accepted == 1
    assert context["ti"].pushed["request"] == {
        **REQUEST,
        "generation_id": generation_id,
        "submitted_at": context["ti"].pushed["request"]["submitted_at"],
        "credit": context["ti"].pushed["request"]["credit"],
    }


def test_one_step_waits_for_a_slot_then_for_its_image(
    emulator: Emulator, context: Context, tmp_path: Path
) -> None:
    emulator.fail("submit:429")
    task = one_step(tmp_path, deferrable=True)
    [uri] = resume(task, deferred(task, context), context)
    assert uri.startswith(f"file://{tmp_path}/")
    assert context["ti"].pushed["images"][0]["model"] == "Qwen/Qwen-Image"


def test_the_queue_timeout_limits_the_wait(emulator: Emulator, context: Context) -> None:
    emulator.fail("submit:queue-full:always")
    kwargs = deferred(submitter(deferrable=True, queue_timeout=100), context).trigger.serialize()[1]
    assert kwargs["end_time"] == pytest.approx(kwargs["queued_at"] + 100)


@pytest.mark.parametrize("is_full", [False, True])
def test_after_the_queue_timeout_a_worker_makes_one_last_attempt(
    emulator: Emulator, context: Context, is_full: bool
) -> None:
    emulator.fail("submit:queue-full")
    task = submitter(deferrable=True)
    deferral = deferred(task, context)
    assert deferral.timeout is None  # Airflow does not end the wait before
    deferral.trigger.queued_at -= 7200
    deferral.trigger.end_time -= 7200
    if is_full:
        emulator.fail("submit:queue-full")
        with pytest.raises(QueueFullError, match=r"queue is full.* Nothing was created within 3600 s"):
            resume(task, deferral, context)
    else:
        assert resume(task, deferral, context)
    assert len(submissions(emulator)) == 2


def test_the_execution_timeout_limits_the_wait(emulator: Emulator, context: Context) -> None:
    emulator.fail("submit:queue-full:always")
    task = submitter(deferrable=True, execution_timeout=timedelta(seconds=50))
    kwargs = deferred(task, context).trigger.serialize()[1]
    assert kwargs["end_time"] == context["ti"].start_date.timestamp() + 50


@pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])
def test_at_the_execution_timeout_the_full_queue_is_the_error(
    emulator: Emulator, context: Context, deferrable: bool
) -> None:
    emulator.fail("submit:queue-full:2")
    task = submitter(deferrable=deferrable, execution_timeout=timedelta(minutes=1))
    with pytest.raises(QueueFullError):
        task.execute(overdue(context))


def test_a_short_queue_timeout_is_spent_on_the_worker(
    emulator: Emulator, context: Context, no_pauses: None
) -> None:
    emulator.fail("submit:queue-full:2")
    assert submitter(deferrable=True, queue_timeout=10).execute(context)
    assert emulator.accepted == 1


class Recording(TaskInstance):
    """A task instance that keeps every push."""

    def __init__(self) -> None:
        super().__init__()
        self.pushes: list[tuple[str, Any]] = []

    def xcom_push(self, key: str, value: Any) -> None:
        super().xcom_push(key, value)
        self.pushes.append((key, value))

    @property
    def progress(self) -> list[tuple[str, str | None]]:
        """The states and generations that were pushed."""
        return [(value["state"], value["generation_id"]) for key, value in self.pushes if key == "progress"]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("fault", ["queue-full", "429"])
def test_a_wait_on_a_worker_is_pushed_once(emulator: Emulator, tmp_path: Path, fault: str) -> None:
    emulator.fail(f"submit:{fault}:5")
    emulator.fail("poll:no-images:3")
    ti = Recording()
    begun_at = time.time()
    context: Context = {"ti": ti}
    one_step(tmp_path, deferrable=False, poll_interval=1).execute(context)
    generation_id = ti.pushed["request"]["generation_id"]
    assert ti.progress == [("queued", None), ("storing", generation_id)]
    assert [key for key, _ in ti.pushes] == ["progress", "request", "progress", "images"]
    assert begun_at <= ti.pushed["progress"]["since"] <= time.time()


@pytest.mark.usefixtures("no_pauses")
def test_a_deferrable_task_pushes_no_wait(emulator: Emulator, tmp_path: Path) -> None:
    emulator.fail("submit:queue-full:4")
    ti = Recording()
    context: Context = {"ti": ti}
    task = one_step(tmp_path, deferrable=True)
    resume(task, deferred(task, context), context)
    assert ti.progress == [("storing", ti.pushed["request"]["generation_id"])]


@pytest.mark.usefixtures("no_pauses")
def test_a_deferrable_task_that_waits_on_its_worker_says_so(emulator: Emulator) -> None:
    emulator.fail("submit:queue-full:2")
    ti = Recording()
    context: Context = {"ti": ti}
    submitter(deferrable=True, queue_timeout=10).execute(context)
    assert ti.progress == [("queued", None)]


@pytest.mark.usefixtures("no_pauses")
def test_a_service_that_is_not_reached_is_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
    ti = Recording()
    context: Context = {"ti": ti}
    with pytest.raises(ServiceUnreachableError):
        submitter(deferrable=False).execute(context)
    assert ti.progress == []


@pytest.mark.usefixtures("no_pauses")
def test_a_progress_that_cannot_be_pushed_costs_no_image(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(TaskInstance):
        def xcom_push(self, key: str, value: Any) -> None:
            if key == "progress":
                raise OSError("disk full")
            super().xcom_push(key, value)

    emulator.fail("submit:queue-full")
    ti = Failing()
    context: Context = {"ti": ti}
    assert one_step(tmp_path, deferrable=False).execute(context)
    assert ti.pushed.keys() == {"request", "images"}
    assert caplog.text.count("Could not push XCom 'progress': OSError('disk full')") == 2


def test_an_unreachable_service_is_not_waited_for(
    context: Context, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
    with pytest.raises(ServiceUnreachableError):
        submitter(deferrable=True).execute(context)


def test_a_rejected_submission_keeps_its_position(
    emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral_module, "EARLY_SLOT_RETRY", 0.0)
    monkeypatch.setattr(deferral_module, "EARLY_SLOT_RETRY_OF_START", 0.0)
    emulator.fail("submit:queue-full:2")
    task = submitter(deferrable=True)
    first = deferred(task, context)
    with pytest.raises(TaskDeferred) as raised:  # the submission is rejected once more
        resume(task, first, context)
    recorded = raised.value.trigger.serialize()[1]
    assert recorded == {**first.trigger.serialize()[1], "start_seconds": recorded["start_seconds"]}
    assert recorded["start_seconds"] >= 0
    assert resume(task, raised.value, context)


@pytest.mark.usefixtures("no_pauses")
def test_a_slot_granted_early_is_retried_from_the_worker(emulator: Emulator, context: Context) -> None:
    emulator.fail("submit:queue-full:4")
    task = submitter(deferrable=True)
    assert resume(task, deferred(task, context), context)
    assert (len(submissions(emulator)), emulator.accepted) == (5, 1)


@pytest.mark.parametrize(("start_seconds", "reported"), [(100, 100), (-100, 0)])
def test_a_rejected_task_reports_how_slowly_its_worker_started(
    emulator: Emulator,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    start_seconds: float,
    reported: float,
) -> None:
    monkeypatch.setattr(deferral_module, "early_slot_retry", lambda start_seconds: 0.0)
    emulator.fail("submit:queue-full:always")
    now = time.time()
    slot = {"queued_at": now, "end_time": now + 3600, "granted_at": now - start_seconds}
    with pytest.raises(TaskDeferred) as raised:
        submitter(deferrable=True).execute_queued(context, SLOT_FREE | slot)
    assert reported <= raised.value.trigger.serialize()[1]["start_seconds"] < reported + 60


def test_an_unreachable_service_is_waited_for_after_a_slot(
    emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral_module, "EARLY_SLOT_RETRY", 0.0)
    emulator.fail("submit:queue-full")
    task = submitter(deferrable=True)
    deferral = deferred(task, context)
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
    with pytest.raises(TaskDeferred):
        resume(task, deferral, context)


def test_private_images_are_sent_but_stored_nowhere(emulator: Emulator, context: Context) -> None:
    emulator.fail("submit:queue-full")
    images = ["https://bucket.example/cat.png?Signature=s3cret", "data:image/png;base64,iVBORw0KGgo="]
    task = submitter(deferrable=True, image_url=images, model="Qwen/Qwen-Image-Edit")
    deferral = deferred(task, context)
    resume(task, deferral, context)
    assert submissions(emulator)[-1].json["image_url"] == images
    recorded = context["ti"].pushed["request"]
    assert recorded["image_url"][0] == "https://bucket.example/cat.png?..."
    assert "s3cret" not in json.dumps([deferral.trigger.serialize(), recorded])


@pytest.mark.parametrize("fault", ["lost", "reset", "500", "no-id", "html"])
def test_a_lost_submission_is_not_sent_again(emulator: Emulator, context: Context, fault: str) -> None:
    emulator.fail("submit:queue-full")
    task = submitter(deferrable=True)
    deferral = deferred(task, context)
    emulator.fail(f"submit:{fault}")
    with pytest.raises(SubmissionLostError, match="was not sent again"):
        resume(task, deferral, context)
    assert len(submissions(emulator)) == 2


@pytest.mark.parametrize("fault", ["401", "quota", "balance", "unknown-model", "unbound"])
def test_a_permanent_error_ends_the_wait(emulator: Emulator, context: Context, fault: str) -> None:
    emulator.fail("submit:queue-full")
    task = submitter(deferrable=True)
    deferral = deferred(task, context)
    emulator.fail(f"submit:{fault}:always")
    with pytest.raises(ModelScopeFinalError):
        resume(task, deferral, context)


@pytest.mark.parametrize("event", [None, {}, {"status": "slot_free"}, "slot_free"], ids=str)
def test_an_unknown_event_is_never_a_success(event: Any, context: Context) -> None:
    with pytest.raises(ModelScopeFinalError, match="Unexpected trigger event"):
        submitter().execute_queued(context, event)


class TestSocksProxy:
    """A worker can use a SOCKS proxy, a triggerer cannot: the task waits on its worker, and pays once."""

    @pytest.fixture
    def service(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mocker]:
        monkeypatch.setenv("ALL_PROXY", "socks5://proxy.example:1080")
        socks = ModuleType("socks")
        socks.__spec__ = ModuleSpec("socks", None)
        monkeypatch.setitem(sys.modules, "socks", socks)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        connect(monkeypatch, "https://api.example")
        with Mocker() as service:
            yield service

    def test_a_full_queue_holds_the_worker(self, service: Mocker, context: Context) -> None:
        full = {"status_code": 500, "json": {"errors": {"message": "Queue is full"}}}
        service.post("https://api.example/v1/images/generations", [full, {"json": {"task_id": "7"}}])
        service.get("https://api.example/api/v1/inference/list_model_providers", status_code=404)
        service.get("https://api.example/openapi/v1/magicubes/balance", status_code=404)
        assert submitter(deferrable=True).execute(context) == "7"

    def test_a_running_generation_holds_the_worker(self, service: Mocker, context: Context) -> None:
        running, image = {"task_status": "PROCESSING"}, "https://images.example/1.png"
        finished = {"task_status": "SUCCEED", "output_images": [image]}
        service.get("https://api.example/v1/tasks/42", [{"json": running}, {"json": finished}])
        assert sensor(deferrable=True, defer_after=0).execute(context) == "42"


class TestLog:
    BUSY = "The account is busy, which is normal: ModelScope runs one generation of an account at a time"

    @pytest.fixture(autouse=True)
    def log(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """Log as the standard library does: where Airflow's own objects log to depends on its version."""
        for kind in (ModelScopeHook, ModelScopeTrigger, ModelScopeSubmitImageGenerationOperator):
            monkeypatch.setattr(kind, "log", logging.getLogger("task"))
        caplog.set_level(logging.INFO)

    @staticmethod
    def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
        """Return what was logged, without what differs in each run."""
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
        lines = [line for line in lines if not line.startswith(("Credit", "HTTP"))]
        lines = [re.sub(r"\d{4}-\d\d-\d\d [\d:]+ UTC", "T", line) for line in lines]
        return [re.sub(r"\d+ s\b", "N s", re.sub(r"\b\d{9,}\b", "ID", line)) for line in lines]

    def test_a_task_that_queued_logs_each_fact_once(
        self, emulator: Emulator, context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:queue-full")
        task = one_step(tmp_path, deferrable=True)
        resume(task, deferred(task, context), context)
        *lines, stored = self.lines(caplog)
        assert stored.startswith("Stored generation ID: file://")
        assert lines == [
            f"{self.BUSY}. Deferring until a slot is free, until T at the latest",
            "First in the queue after N s. Submitting",
            "Submitted generation ID to Qwen/Qwen-Image: '一只猫'",
            "Generation ID is SUCCEED",
            "Downloading 1 image of generation ID",
        ]

    @pytest.mark.usefixtures("no_pauses")
    def test_a_slot_that_was_not_free_yet_is_one_line(
        self,
        emulator: Emulator,
        context: Context,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(deferral_module, "early_slot_retry", lambda start_seconds: 0.05)
        emulator.fail("submit:queue-full:always")
        now = time.time()
        slot = {"queued_at": now - 70, "end_time": now + 3600, "granted_at": now}
        with pytest.raises(TaskDeferred):
            submitter(deferrable=True).execute_queued(context, SLOT_FREE | slot)
        assert len(submissions(emulator)) > 2
        assert self.lines(caplog) == [
            "First in the queue after N s. Submitting",
            "The account is still busy. Deferring until a slot is free, until T at the latest",
        ]

    @pytest.mark.usefixtures("no_pauses")
    def test_a_wait_on_a_worker_is_two_lines(
        self, emulator: Emulator, context: Context, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:queue-full:20")
        submitter(deferrable=False).execute(context)
        assert self.lines(caplog) == [
            f"{self.BUSY}. Submitting again until T",
            "Submitted generation ID to Qwen/Qwen-Image after N s in the queue: '一只猫'",
        ]

    def test_the_last_attempt_says_so_and_its_error_keeps_the_evidence(
        self, emulator: Emulator, context: Context, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:queue-full")
        slot = {"queued_at": 1.0, "end_time": 3601.0, "granted_at": 3601.5}
        with pytest.raises(QueueFullError, match=r"\(code 500, request id \S+\)$"):
            submitter(deferrable=True).execute_queued(context, SLOT_FREE | slot)
        assert self.lines(caplog) == ["No slot became free within 60 min. Submitting a last time"]

    def test_a_rate_limit_is_named(
        self, emulator: Emulator, context: Context, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:429")
        deferred(submitter(deferrable=True), context)
        [line] = self.lines(caplog)
        assert line.startswith("ModelScope received too many requests")
        assert line.endswith(". Deferring until a slot is free, until T at the latest")
