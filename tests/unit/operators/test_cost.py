"""What a generation costs: read before it is submitted, logged and kept; never a reason to fail."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import requests
from requests_mock import Mocker

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from tests.unit.builders import DEFERRED, Context, one_step, submitter
from tests.unit.conftest import connect
from tests.unit.tasks.conftest import TaskStateStore, die

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_pauses")

BASE = "https://api.example"
SUBMIT = f"{BASE}/v1/images/generations"
BALANCE = f"{BASE}/openapi/v1/magicubes/balance"
PRICE = f"{BASE}/api/v1/inference/list_model_providers"
PRICED = {"Data": {"Providers": [{"Name": "ModelScope", "EstimatedMagicGrainCost": 0.5}]}}
BROKEN = [
    {"exc": requests.ConnectTimeout("slow")},
    {"exc": requests.ReadTimeout("slow")},
    {"status_code": 401, "json": {"code": "InvalidAuthentication"}},
    {"status_code": 503, "text": "<html>"},
    {"json": {"data": {"available_balance": "much"}}},
    {"content": b"\xff{"},
]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mocker]:
    """A service where a generation costs 0.5 of 143."""
    connect(monkeypatch, BASE)
    with Mocker() as service:
        service.get(PRICE, json=PRICED)
        service.get(BALANCE, [credit(143, 0), credit(142.5, 0.5)])
        service.post(SUBMIT, json={"task_id": "7"})
        yield service


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns what was logged about the credit."""
    for kind in (ModelScopeHook, ModelScopeSubmitImageGenerationOperator):
        monkeypatch.setattr(kind, "log", logging.getLogger("cost"))  # Airflow's own depends on its version
    caplog.set_level(logging.INFO, "cost")
    return lambda: [text for text in caplog.messages if "redit" in text]


def credit(available: float, frozen: float) -> dict[str, Any]:
    data = {"total_balance": available + frozen, "available_balance": available, "frozen_amount": frozen}
    return {"json": {"success": True, "data": data}}


def paths(service: Mocker) -> list[str]:
    return [request.path.rpartition("/")[2] for request in service.request_history]


def test_the_credit_is_logged_before_and_after(
    service: Mocker, context: Context, log: Callable[[], list[str]]
) -> None:
    submitter().execute(context)
    assert log() == [
        "Credit before the submission: 143 available, 0 frozen; this generation costs 0.5",
        "Credit after the submission: 142.5 available, 0.5 frozen",
    ]
    assert paths(service) == ["list_model_providers", "balance", "generations", "balance"]


def test_the_price_is_kept_with_the_submission(service: Mocker, context: Context) -> None:
    store = TaskStateStore()
    die(submitter(), store)
    assert store.record["credit"] == 0.5
    service.get(f"{BASE}/v1/tasks/7", json={"task_status": "PROCESSING"})
    service.get(PRICE, json={"Data": {"Providers": None}})
    context = store.attempt()
    submitter().execute(context)
    assert context["ti"].pushed["request"]["credit"] == 0.5


@pytest.mark.parametrize("recorded", [None, "0.5", [0.5]], ids=str)
def test_a_record_without_a_price_is_resumed(service: Mocker, recorded: Any) -> None:
    store = TaskStateStore()
    die(submitter(), store)
    store.change(credit=recorded)
    service.get(f"{BASE}/v1/tasks/7", json={"task_status": "PROCESSING"})
    context = store.attempt()
    assert submitter().execute(context) == "7"
    assert context["ti"].pushed["request"]["credit"] is None
    assert paths(service).count("generations") == 1


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_credit_that_cannot_be_read_fails_no_task(
    service: Mocker, context: Context, log: Callable[[], list[str]], broken: dict[str, Any]
) -> None:
    service.get(BALANCE, **broken)
    assert submitter().execute(context) == "7"
    unknown, before = log()
    assert unknown.startswith("The credit is unknown: ")
    assert before == "Credit before the submission: unknown; this generation costs 0.5"
    assert paths(service).count("balance") == 1  # a slow site delays a task once


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_price_that_cannot_be_read_fails_no_task(
    service: Mocker, context: Context, log: Callable[[], list[str]], broken: dict[str, Any]
) -> None:
    service.get(PRICE, **broken)
    assert submitter().execute(context) == "7"
    before = next(line for line in log() if "this generation" in line)
    credit = "unknown" if "exc" in broken else "143 available, 0 frozen"  # a slow site delays a task once
    assert before.endswith(f"the submission: {credit}; this generation costs an unknown amount")
    assert context["ti"].pushed["request"]["credit"] is None


def test_a_granted_slot_does_not_wait_for_the_credit(service: Mocker, context: Context) -> None:
    now = time.time()
    event = {"status": "slot_free", "queued_at": now, "end_time": now + 60, "granted_at": now}
    assert submitter(deferrable=True).execute_queued(context, event | {"deferred_task": DEFERRED}) == "7"
    assert paths(service) == ["list_model_providers", "generations", "balance"]


def test_polls_do_not_read_the_credit(
    service: Mocker, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    running, failed = {"task_status": "PROCESSING"}, {"task_status": "FAILED", "errors": {"message": "no"}}
    service.get(f"{BASE}/v1/tasks/7", [{"json": running}, {"json": running}, {"json": failed}])
    with pytest.raises(Exception, match="no"):
        one_step(preflight="off", deferrable=False).execute(context)
    assert paths(service)[4:] == ["7", "7", "7"]
