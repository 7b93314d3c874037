"""``on_exhausted``: a task without credit fails, or waits in the triggerer without using a retry."""

from __future__ import annotations

import logging
import re
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    CreditExhaustedError,
    InvalidRequestError,
    ModelRetiredError,
    QuotaExhaustedError,
)
from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from airflow_provider_modelscope.tasks import deferral as deferral_module
from tests.unit.builders import Context, one_step, rendered, resume, submissions, submitter
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_pauses", "short_intervals")

WAIT: dict[str, Any] = {"deferrable": True, "on_exhausted": "wait"}


def deferred(task: Any, context: Context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    assert raised.value.method_name == "execute_with_credit"
    assert raised.value.timeout is None  # Airflow does not end the wait before the last attempt
    return raised.value


@pytest.mark.parametrize("arguments", [{}, {"deferrable": True}, {"on_exhausted": "fail"}], ids=str)
def test_by_default_the_task_fails_at_once(
    poor: Emulator, context: Context, arguments: dict[str, Any]
) -> None:
    with pytest.raises(CreditExhaustedError, match="person who visits the site"):
        submitter(**arguments).execute(context)
    assert len(submissions(poor)) == 1


def test_the_task_submits_when_there_is_credit(poor: Emulator, context: Context) -> None:
    task = submitter(**WAIT)
    deferral = deferred(task, context)
    assert deferral.trigger.serialize()[1]["needed"] == 1
    poor.grant(TOKEN, 1)
    assert resume(task, deferral, context)
    assert (len(submissions(poor)), poor.accepted) == (2, 1)


def test_one_step_stores_its_image_after_the_wait(poor: Emulator, context: Context, tmp_path: Path) -> None:
    task = one_step(tmp_path, **WAIT)
    deferral = deferred(task, context)
    poor.grant(TOKEN, 1)
    [uri] = resume(task, deferral, context)
    assert uri.startswith(f"file://{tmp_path}/")


def test_a_task_that_is_refused_again_waits_again(poor: Emulator, context: Context) -> None:
    task = submitter(**WAIT)
    deferral = deferred(task, context)
    ends = []
    for _ in range(3):
        ends.append(deferral.trigger.serialize()[1]["end_time"])
        poor.grant(TOKEN, 1)
        submitter().execute(context)  # takes it
        deferral.trigger.needed = 0.0
        with pytest.raises(TaskDeferred) as raised:
            resume(submitter(**WAIT), deferral, context)
        deferral = raised.value
    assert len(set(ends)) == 1  # the time to wait does not begin again


def test_after_the_timeout_the_task_makes_one_last_attempt(poor: Emulator, context: Context) -> None:
    task = submitter(**WAIT, exhausted_timeout=100)
    deferral = deferred(task, context)
    assert deferral.trigger.end_time == pytest.approx(time.time() + 100, abs=30)
    deferral.trigger.end_time -= 1000
    deferral.trigger.deferred_task["parameters"]["_exhausted_end"] -= 1000
    with pytest.raises(CreditExhaustedError, match="None came until exhausted_timeout"):
        resume(task, deferral, context)
    assert len(submissions(poor)) == 2


def test_the_execution_timeout_limits_the_wait(poor: Emulator, context: Context) -> None:
    task = submitter(**WAIT, execution_timeout=timedelta(seconds=50))
    end = context["ti"].start_date.timestamp() + 50
    assert deferred(task, context).trigger.serialize()[1]["end_time"] == end


def test_a_quota_is_waited_for_until_the_next_day(emulator: Emulator, context: Context) -> None:
    emulator.fail("submit:quota")
    task = submitter(**WAIT)
    deferral = deferred(task, context)
    assert deferral.trigger.serialize()[1]["needed"] is None
    deferral.trigger.next_day = 1.0
    assert resume(task, deferral, context)
    assert emulator.accepted == 1


def test_a_retired_model_is_not_waited_for(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(retired_models=["a/retired"]) as emulator:
        connect(monkeypatch, emulator.base_url)
        with pytest.raises(ModelRetiredError, match=r"has credit, 100000 available.*no longer served"):
            submitter(**WAIT, model="a/retired").execute(context)


def test_the_same_words_without_credit_are_waited_for(poor: Emulator, context: Context) -> None:
    assert deferred(submitter(**WAIT, model="a/retired"), context).trigger.serialize()[1]["needed"] == 0.2


def test_a_task_that_cannot_defer_fails_and_says_why(
    poor: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context["ti"], "task", object(), raising=False)
    with pytest.raises(CreditExhaustedError, match="cannot wait for credit in the triggerer"):
        submitter(**WAIT).execute(context)


def test_waiting_on_a_worker_is_an_error_before_anything_is_sent(poor: Emulator, context: Context) -> None:
    with pytest.raises(InvalidRequestError, match="on_exhausted = 'wait': needs deferrable=True"):
        rendered(submitter(), on_exhausted="wait").execute(context)
    with pytest.raises(InvalidRequestError, match="must be 'fail' or 'wait'"):
        rendered(submitter(), on_exhausted="stop").execute(context)
    with pytest.raises(InvalidRequestError, match="exhausted_timeout = 0: must be a number of seconds"):
        rendered(submitter(), exhausted_timeout=0).execute(context)
    assert not poor.requests


def test_a_deadline_that_is_too_near_for_a_deferral_is_the_end(poor: Emulator, context: Context) -> None:
    seconds = deferral_module.MIN_QUEUE_DEFERRAL - 1
    with pytest.raises(QuotaExhaustedError, match="None came until exhausted_timeout"):
        submitter(**WAIT, exhausted_timeout=seconds).execute(context)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            "no-credit",
            r"Deferring until there is credit, until \S+ \S+ UTC at the latest: The account's credit is ",
        ),
        ("quota", r"Deferring until the next day, \S+ \S+ UTC: The daily quota is used up"),
    ],
)
def test_the_wait_is_a_warning_that_says_for_how_long(
    emulator: Emulator,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    line: str,
) -> None:
    monkeypatch.setattr(ModelScopeSubmitImageGenerationOperator, "log", logging.getLogger("task"))
    emulator.fail(f"submit:{fault}")
    deferred(submitter(**WAIT), context)
    record = [record for record in caplog.records if record.name == "task"][-1]
    assert record.levelno == logging.WARNING  # a person must visit the site
    assert re.match(line, record.getMessage())
    assert "request id" not in record.getMessage()
