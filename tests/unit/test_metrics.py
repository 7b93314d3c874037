"""The metrics that tasks send to Airflow, run against the emulator."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import airflow.sdk
import pytest

from airflow_provider_modelscope import compat, metrics
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    GenerationFailedError,
    ImageUnavailableError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeFinalError,
    ModelScopeRetryableError,
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.xcoms import AttemptError, Submission
from tests.unit.builders import IMAGE, SLOT_FREE, one_step, rendered, run, sensor, submitter, transfer
from tests.unit.conftest import connect

if TYPE_CHECKING:
    from pathlib import Path

    from requests_mock import Mocker

    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")

MODEL = "Qwen/Qwen-Image"
TAGS = {"modelscope_conn_id": "modelscope_default", "model": MODEL}


class Stats:
    """A metrics backend of Airflow, in memory."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.times: dict[str, timedelta] = {}
        self.gauges: dict[str, float] = {}
        self.tags: dict[str, dict[str, str]] = {}

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str]) -> None:
        self.counts[stat] = self.counts.get(stat, 0) + count
        self.tags[stat] = tags

    def timing(self, stat: str, dt: timedelta, *, tags: dict[str, str]) -> None:
        self.times[stat] = dt
        self.tags[stat] = tags

    def gauge(self, stat: str, value: float, *, tags: dict[str, str]) -> None:
        self.gauges[stat] = value
        self.tags[stat] = tags


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Stats:
    stats = Stats()
    monkeypatch.setattr(compat, "Stats", stats, raising=False)
    return stats


def submit(queue_timeout: float = 0.0) -> str:
    return ModelScopeHook().submit_generation(
        GenerationRequest(model=MODEL, prompt="a cat"), queue_timeout=queue_timeout
    )


def test_an_image_is_counted_from_submission_to_storage(
    emulator: Emulator, stats: Stats, context: Any, tmp_path: Path
) -> None:
    run(one_step(tmp_path), context)
    [image] = context["ti"].pushed["images"]
    assert stats.counts == {
        metrics.SENT: 1,
        metrics.ACCEPTED: 1,
        metrics.STORED: 1,
        metrics.STORED_BYTES: image["size_bytes"],
    } | {name: count for name, count in stats.counts.items() if name == metrics.CREDIT_SPENT}
    assert stats.times.keys() == {metrics.QUEUE_SECONDS, metrics.DURATION, metrics.DELIVERY_DELAY}
    assert stats.times[metrics.DURATION] == timedelta(milliseconds=image["duration_ms"])
    assert timedelta(0) <= stats.times[metrics.DELIVERY_DELAY] < timedelta(seconds=30)
    account = {"modelscope_conn_id": "modelscope_default"}
    assert stats.gauges.keys() == {metrics.CREDIT_AVAILABLE, metrics.CREDIT_FROZEN}
    assert stats.tags == dict.fromkeys(stats.tags, TAGS) | dict.fromkeys(stats.gauges, account)


def test_a_transfer_without_a_submit_task_knows_no_model(
    emulator: Emulator, stats: Stats, context: Any, tmp_path: Path
) -> None:
    transfer(submit(), tmp_path).execute(context)
    assert stats.counts[metrics.STORED] == 1
    assert stats.tags[metrics.STORED] == {"modelscope_conn_id": "modelscope_default"}
    assert stats.times.keys() == {metrics.DURATION}


@pytest.mark.parametrize(
    ("fault", "error", "counts"),
    [
        ("queue-full", QueueFullError, {metrics.REJECTED: 1, f"{metrics.REJECTED}.queue_full": 1}),
        ("401", AuthenticationError, {metrics.REJECTED: 1, f"{metrics.REJECTED}.authentication": 1}),
        ("503", SubmissionLostError, {metrics.UNCONFIRMED: 1}),
    ],
)
def test_a_rejected_submission_is_counted_by_its_reason(
    emulator: Emulator,
    stats: Stats,
    fault: str,
    error: type[ModelScopeError],
    counts: dict[str, int],
) -> None:
    emulator.fail(f"submit:{fault}")
    with pytest.raises(error):
        submit()
    assert stats.counts == {metrics.SENT: 1, **counts}
    assert stats.tags[metrics.SENT] == TAGS


def test_every_submission_is_counted(emulator: Emulator, stats: Stats) -> None:
    emulator.fail("submit:queue-full:2")
    submit(queue_timeout=60)
    assert stats.counts == {
        metrics.SENT: 3,
        metrics.REJECTED: 2,
        f"{metrics.REJECTED}.queue_full": 2,
        metrics.ACCEPTED: 1,
    }


def test_an_unreachable_service_counts_as_a_rejection(stats: Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ServiceUnreachableError):
        submit()
    assert stats.counts[f"{metrics.REJECTED}.service_unreachable"] == stats.counts[metrics.SENT]


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("poll:failed:always", GenerationFailedError, "generation_failed"),
        ("image:404:always", ImageUnavailableError, "image_unavailable"),
    ],
)
def test_a_failed_task_is_counted_by_cause_and_reason(
    emulator: Emulator,
    stats: Stats,
    context: Any,
    tmp_path: Path,
    fault: str,
    error: type[ModelScopeError],
    reason: str,
) -> None:
    emulator.fail(fault)
    with pytest.raises(error):
        run(one_step(tmp_path), context)
    name = f"{metrics.FAILED}.service.{reason}"
    assert stats.counts[metrics.FAILED] == stats.counts[name] == 1
    assert stats.tags[metrics.FAILED] == {**TAGS, "cause": "service", "reason": reason}
    assert stats.tags[name] == TAGS
    assert metrics.STORED not in stats.counts


def test_an_invalid_request_is_a_failure_but_no_submission(
    emulator: Emulator, stats: Stats, context: Any
) -> None:
    with pytest.raises(InvalidRequestError):
        rendered(submitter(), steps=0).execute(context)
    assert stats.counts == {metrics.FAILED: 1, f"{metrics.FAILED}.input.invalid_request": 1}


def test_a_skipped_sensor_counts_its_error(emulator: Emulator, stats: Stats, context: Any) -> None:
    emulator.fail("poll:failed:always")
    waiting = sensor(submit(), soft_fail=True)
    with pytest.raises(compat.AirflowSkipException):
        waiting.execute(context)
    assert stats.counts[f"{metrics.FAILED}.input.generation_rejected"] == 1


@pytest.mark.parametrize(
    ("price", "spent"), [(0.2, 20), (0.5, 50), (1, 100), (2.0, 200), (0.29, 29), (None, None), (0, None)]
)
def test_the_price_of_an_accepted_generation_is_counted(
    stats: Stats,
    context: Any,
    requests_mock: Mocker,
    monkeypatch: pytest.MonkeyPatch,
    price: float | None,
    spent: int | None,
) -> None:
    connect(monkeypatch, "https://api.example")
    priced = {"Data": {"Providers": [{"Name": "ModelScope", "EstimatedMagicGrainCost": price}]}}
    requests_mock.get("https://api.example/api/v1/inference/list_model_providers", json=priced)
    requests_mock.get("https://api.example/openapi/v1/magicubes/balance", status_code=404)
    refused = {"status_code": 401, "json": {"errors": {"message": "no"}}}
    requests_mock.post("https://api.example/v1/images/generations", [refused, {"json": {"task_id": "7"}}])
    with pytest.raises(AuthenticationError):
        submitter().execute(context)
    assert metrics.CREDIT_SPENT not in stats.counts
    submitter().execute(context)
    assert stats.counts.get(metrics.CREDIT_SPENT) == spent
    assert type(stats.counts.get(metrics.CREDIT_SPENT)) is type(spent)  # 20.0 is cut off or refused
    assert stats.tags.get(metrics.CREDIT_SPENT, TAGS) == TAGS


def test_every_reading_of_the_credit_is_shown(
    stats: Stats, requests_mock: Mocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "https://api.example")
    data = {"total_balance": 143, "available_balance": 142.5, "frozen_amount": 0.5}
    balance = "https://api.example/openapi/v1/magicubes/balance"
    requests_mock.get(balance, [{"json": {"data": data}}, {"status_code": 503}])
    ModelScopeHook().get_credit()
    assert ModelScopeHook().find_credit() is None
    assert stats.gauges == {metrics.CREDIT_AVAILABLE: 142.5, metrics.CREDIT_FROZEN: 0.5}
    assert stats.tags[metrics.CREDIT_FROZEN] == {"modelscope_conn_id": "modelscope_default"}


def test_a_broken_metrics_backend_costs_no_image(
    emulator: Emulator,
    context: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no such host")

    monkeypatch.setattr(compat, "Stats", Broken(), raising=False)
    assert len(run(one_step(tmp_path), context)) == 1
    assert f"The metric {metrics.ACCEPTED} was not sent: RuntimeError('no such host')" in caplog.text


def test_the_delivery_delay_is_the_time_after_the_generation(stats: Stats) -> None:
    image = replace(IMAGE, duration_ms=4000.0)
    submission = Submission(generation_id="42", model=MODEL, submitted_at=time.time() - 10)
    metrics.count_stored([image], submission, modelscope_conn_id="modelscope_default")
    assert stats.times[metrics.DURATION] == timedelta(seconds=4)
    assert timedelta(seconds=6) <= stats.times[metrics.DELIVERY_DELAY] < timedelta(seconds=36)


def test_metrics_have_the_tags_of_the_task(
    emulator: Emulator, stats: Stats, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow.sdk, "get_current_context", lambda: context, raising=False)
    submit()
    assert stats.tags[metrics.SENT] == {**TAGS, "dag_id": "a_dag", "task_id": "a_task"}


def test_the_error_that_ends_an_attempt_is_pushed(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow.sdk, "get_current_context", lambda: context, raising=False)
    emulator.fail("submit:401")
    with pytest.raises(AuthenticationError) as raised:
        submitter().execute(context)
    pushed = context["ti"].pushed["error"]
    assert pushed == {"type": "AuthenticationError", "message": str(raised.value)}
    assert AttemptError.from_json(pushed)


@pytest.mark.parametrize(("limit", "after"), [(timedelta(seconds=90), " after 90 s"), (None, "")])
def test_the_end_of_the_execution_timeout_is_pushed_not_counted(
    stats: Stats, context: Any, monkeypatch: pytest.MonkeyPatch, limit: timedelta | None, after: str
) -> None:
    monkeypatch.setattr(airflow.sdk, "get_current_context", lambda: context, raising=False)
    with pytest.raises(compat.AirflowTaskTimeout), metrics.count_failure(submitter(execution_timeout=limit)):
        raise compat.AirflowTaskTimeout("Timeout, PID: 7")
    pushed = AttemptError.from_json(context["ti"].pushed["error"])
    assert pushed
    assert pushed.type == "AirflowTaskTimeout"
    assert pushed.message.startswith(f"The execution_timeout of the task ended it{after}. A generation")
    assert not stats.counts


@pytest.mark.parametrize("error", [ValueError, compat.TaskDeferred, SystemExit])
def test_other_errors_are_not_pushed(context: Any, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    monkeypatch.setattr(airflow.sdk, "get_current_context", lambda: context, raising=False)
    raised = error(trigger=None, method_name="a") if error is compat.TaskDeferred else error("a secret")
    with pytest.raises(error), metrics.count_failure(submitter()):
        raise raised
    assert not context["ti"].pushed


def test_an_error_that_cannot_be_pushed_is_still_raised(
    emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(airflow.sdk, "get_current_context", lambda: {"ti": None}, raising=False)
    emulator.fail("submit:401")
    with pytest.raises(AuthenticationError):
        submitter().execute(context)
    assert "Could not push XCom 'error'" in caplog.text


def test_the_credit_of_an_account_has_no_tags_of_a_task(
    poor: Emulator, stats: Stats, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow.sdk, "get_current_context", lambda: context, raising=False)
    ModelScopeHook().get_credit()
    assert stats.gauges[metrics.CREDIT_AVAILABLE] == 0
    assert stats.tags[metrics.CREDIT_AVAILABLE] == {"modelscope_conn_id": "modelscope_default"}


def test_the_time_in_the_queue_counts_from_the_first_attempt(
    emulator: Emulator, stats: Stats, context: Any
) -> None:
    queued_at = time.time() - 100
    event = {**SLOT_FREE, "queued_at": queued_at, "granted_at": queued_at}
    submitter(deferrable=True).execute_queued(context, event)
    assert timedelta(seconds=100) <= stats.times[metrics.QUEUE_SECONDS] < timedelta(seconds=130)
    assert stats.tags[metrics.QUEUE_SECONDS] == TAGS


def test_a_rejected_submission_has_no_time_in_the_queue(
    emulator: Emulator, stats: Stats, context: Any
) -> None:
    emulator.fail("submit:401")
    with pytest.raises(AuthenticationError):
        submitter().execute(context)
    assert stats.times == {}


def test_a_clock_that_is_set_back_gives_no_negative_time(stats: Stats) -> None:
    metrics.time_queue(-3600.0, modelscope_conn_id="a", model="b")
    assert stats.times[metrics.QUEUE_SECONDS] == timedelta(0)


def test_every_response_429_is_counted(emulator: Emulator, stats: Stats) -> None:
    emulator.fail("submit:too-fast:2")
    generation_id = submit(queue_timeout=60)
    emulator.fail("poll:429")
    ModelScopeHook().get_generation(generation_id)
    emulator.fail("submit:queue-full")
    submit(queue_timeout=60)
    assert stats.counts[metrics.TOO_MANY_REQUESTS] == 3
    assert stats.tags[metrics.TOO_MANY_REQUESTS] == {"modelscope_conn_id": "modelscope_default"}


def test_a_reading_of_the_credit_counts_its_429(
    stats: Stats, requests_mock: Mocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "https://api.example")
    requests_mock.get("https://api.example/openapi/v1/magicubes/balance", status_code=429)
    assert ModelScopeHook().find_credit() is None
    assert stats.counts == {metrics.TOO_MANY_REQUESTS: 1}


def test_an_error_without_a_cause_of_its_own_has_that_of_its_parent() -> None:
    class LaterError(QueueFullError):
        pass

    assert metrics.cause_of(LaterError("")) == metrics.CAUSES[RateLimitedError] == "account"


@pytest.mark.parametrize("kind", [ModelScopeError, ModelScopeFinalError, ModelScopeRetryableError])
def test_every_error_has_a_cause(kind: type[ModelScopeError]) -> None:
    assert metrics.cause_of(kind("")) in get_args(metrics.Cause)
