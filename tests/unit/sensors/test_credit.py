"""The credit sensor: what it returns, how it waits, and how it ends."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope.compat import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    InvalidRequestError,
    ModelScopeFinalError,
)
from tests.unit.builders import DEFERRED, Context, credit_sensor, rendered, resume, run
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requests_mock import Mocker

WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])
BALANCE = "https://api.example/openapi/v1/magicubes/balance"

pytestmark = pytest.mark.usefixtures("short_intervals")


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A service where everybody has a credit of 5."""
    with Emulator(credit=5) as emulator:
        connect(monkeypatch, emulator.base_url)
        yield emulator


@pytest.fixture
def rescheduled(context: Context) -> Context:
    """The context of a sensor in mode ``reschedule`` that was not rescheduled before."""
    context["ti"].get_first_reschedule_date = lambda context: None
    return context


def credit(available: float) -> dict[str, Any]:
    return {"json": {"data": {"total_balance": available, "available_balance": available}}}


@WAYS
@pytest.mark.parametrize("minimum", [0, 5, 4.5, "5", " 2.5 "])
def test_it_returns_the_available_credit(
    account: Emulator, context: Context, deferrable: bool, minimum: Any
) -> None:
    assert credit_sensor(minimum, deferrable=deferrable).execute(context) == 5
    assert len(account.requests) == 1


def test_on_the_worker_it_reads_until_there_is_enough(
    requests_mock: Mocker, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "https://api.example")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    passing: list[dict[str, Any]] = [{"status_code": 503}, {"status_code": 429}, {"text": "<html>"}]
    requests_mock.get(BALANCE, [credit(0), *passing, credit(4.9), credit(5)])
    assert credit_sensor(5).execute(context) == 5
    assert pauses == [600] * 5


def test_in_the_triggerer_it_waits_for_a_grant(account: Emulator, context: Context) -> None:
    task = credit_sensor(7, deferrable=True)
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    account.grant(TOKEN, 2)
    assert resume(task, raised.value, context) == 7
    assert len(account.requests) == 2  # the triggerer's reading counts


def test_the_timeout_counts_from_the_start(account: Emulator, context: Context) -> None:
    started_at = context["ti"].start_date.timestamp()
    for given, seconds in ({"timeout": 60}, 60), ({"execution_timeout": timedelta(seconds=30)}, 30):
        with pytest.raises(TaskDeferred) as raised:
            credit_sensor(7, deferrable=True, **given).execute(context)
        assert raised.value.trigger.serialize()[1]["end_time"] == started_at + seconds
        assert raised.value.timeout > timedelta(seconds=seconds)


@WAYS
@pytest.mark.parametrize("timeout", [0, 0.01])
def test_after_the_timeout_it_fails(
    account: Emulator, context: Context, deferrable: bool, timeout: float
) -> None:
    with pytest.raises(AirflowSensorTimeout) as raised:
        run(credit_sensor(7, timeout=timeout, poke_interval=0.02, deferrable=deferrable), context)
    if deferrable:
        assert str(raised.value).startswith("Not enough credit within the timeout of ")
        assert "5 available, 0 frozen, min_available = 7. ModelScope grants" in str(raised.value)


@WAYS
def test_without_time_it_reads_once(account: Emulator, context: Context, deferrable: bool) -> None:
    with pytest.raises(AirflowSensorTimeout):  # no deferral, which takes longer than the reading
        credit_sensor(7, timeout=0, deferrable=deferrable).execute(context)
    assert len(account.requests) == 1


def test_the_last_reading_is_at_the_timeout(
    account: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"status": "credit_read", "available": None, "deferred_task": DEFERRED}
    assert credit_sensor(5, deferrable=True).execute_complete(context, event) == 5
    with pytest.raises(AirflowSensorTimeout, match="min_available = 6"):
        credit_sensor(6, deferrable=True).execute_complete(context, event)
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
    with pytest.raises(AirflowSensorTimeout, match="unknown, min_available = 5"):
        credit_sensor(5, deferrable=True).execute_complete(context, event)


@WAYS
def test_it_can_skip_instead_of_failing(account: Emulator, context: Context, deferrable: bool) -> None:
    with pytest.raises(AirflowSkipException):
        run(credit_sensor(7, timeout=0, deferrable=deferrable, soft_fail=True), context)


@WAYS
@pytest.mark.parametrize("soft", [{}, {"soft_fail": True}, {"never_fail": True}], ids=str)
def test_a_rejected_token_ends_it(
    monkeypatch: pytest.MonkeyPatch, context: Context, deferrable: bool, soft: dict[str, bool]
) -> None:
    with Emulator(tokens=["ms-another"]) as emulator:
        connect(monkeypatch, emulator.base_url)
        with pytest.raises(AirflowSkipException if soft else AuthenticationError, match="token"):
            run(credit_sensor(deferrable=deferrable, **soft), context)


@pytest.mark.parametrize("soft_fail", [False, True])
def test_in_mode_reschedule_it_frees_its_worker(
    account: Emulator, rescheduled: Context, soft_fail: bool
) -> None:
    task = credit_sensor(7, mode="reschedule", soft_fail=soft_fail)
    with pytest.raises(AirflowException) as raised:
        task.execute(rescheduled)
    assert type(raised.value).__name__ == "AirflowRescheduleException"  # of different modules
    account.grant(TOKEN, 2)
    assert task.execute(rescheduled) == 7


def test_in_mode_reschedule_its_timeout_counts_from_the_first_reading(
    account: Emulator, rescheduled: Context
) -> None:
    first = datetime.now(UTC) - timedelta(seconds=100)
    rescheduled["ti"].get_first_reschedule_date = lambda context: first
    with pytest.raises(AirflowSensorTimeout):
        credit_sensor(7, mode="reschedule", timeout=90).execute(rescheduled)


def test_in_another_task_it_waits_on_the_worker(
    account: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context["ti"].task = credit_sensor()
    monkeypatch.setattr(time, "sleep", lambda seconds: account.grant(TOKEN, 2))
    assert credit_sensor(7, deferrable=True).execute(context) == 7


INVALID = [-1, -0.5, "", " ", "much", None, True, [5], {}, float("nan"), float("inf"), 10**400, "None", b"5"]


@WAYS
@pytest.mark.parametrize("value", INVALID, ids=lambda value: str(value)[:20])
def test_an_invalid_minimum_is_rejected_without_a_reading(
    account: Emulator, context: Context, deferrable: bool, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=r"min_available = .*: must be a number from 0"):
        rendered(credit_sensor(deferrable=deferrable), min_available=value).execute(context)
    assert not account.requests


@pytest.mark.parametrize("value", [-1, "much", None, True])
def test_an_invalid_constant_minimum_is_an_import_error(value: Any) -> None:
    with DAG("a_dag", schedule=None), pytest.raises(InvalidRequestError, match="min_available = "):
        credit_sensor(value)


def test_a_template_is_no_constant() -> None:
    with DAG("a_dag", schedule=None):
        assert credit_sensor("{{ params.credit }}").min_available == "{{ params.credit }}"


@pytest.mark.parametrize("event", [None, {}, {"status": "credit_read"}, {"available": 5}], ids=str)
def test_an_unknown_event_is_never_a_success(account: Emulator, context: Context, event: Any) -> None:
    with pytest.raises(ModelScopeFinalError, match="Unexpected trigger event"):
        credit_sensor().execute_complete(context, event and event | {"deferred_task": DEFERRED})
