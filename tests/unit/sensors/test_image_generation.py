"""The sensor: when it polls, when it gives up, and how it ends."""

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
from airflow_provider_modelscope.exceptions import GenerationRejectedError, InvalidRequestError
from tests.unit.builders import REQUEST, Context, overdue, rendered, run, sensor, submitter
from tests.unit.conftest import TOKEN

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")

WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])


def below_a_submit_task(context: Context, *, age: float, **arguments: Any) -> Any:
    """Return a sensor whose generation a task upstream submitted, so many seconds ago."""
    generation_id = submitter().execute(context)
    context["ti"].upstream = {
        "generation_id": generation_id,
        "model": REQUEST["model"],
        "size": REQUEST["size"],
        "submitted_at": time.time() - age,
    }
    with DAG("chain", schedule=None):
        submit, wait = submitter(), sensor(generation_id, **arguments)
        submit >> wait
    return wait


@pytest.fixture
def rescheduled(context: Context) -> Context:
    """The context of a sensor in mode ``reschedule`` that was not rescheduled before."""
    context["ti"].get_first_reschedule_date = lambda context: None
    return context


def test_its_defaults_suit_the_service() -> None:
    assert (sensor().poke_interval, sensor().timeout) == (15, 900)


@pytest.mark.parametrize("generation_id", ["", " ", "None", None, ["42"], True, 4.2])
def test_an_invalid_id_is_rejected_without_a_poll(
    emulator: Emulator, context: Context, generation_id: Any
) -> None:
    with pytest.raises(InvalidRequestError, match="generation_id = "):
        rendered(sensor(), generation_id=generation_id).execute(context)
    assert not emulator.requests


def test_a_secret_is_no_id(emulator: Emulator, context: Context) -> None:
    with pytest.raises(InvalidRequestError, match="generation_id: must not contain the token") as raised:
        rendered(sensor(), generation_id=TOKEN).execute(context)
    assert TOKEN not in str(raised.value)
    assert not emulator.requests


def test_an_id_may_be_a_number(emulator: Emulator, context: Context) -> None:
    generation_id = submitter().execute(context)
    assert sensor(int(generation_id)).execute(context) == generation_id


def test_transient_errors_do_not_end_it(emulator: Emulator, context: Context) -> None:
    generation_id = submitter().execute(context)
    emulator.fail("poll:503:6")  # two polls of three attempts each
    assert sensor(generation_id, poke_interval=0).execute(context) == generation_id


@WAYS
@pytest.mark.parametrize("fault", ["failed", "rejected"])
def test_a_failed_generation_fails_it_with_the_services_reason(
    emulator: Emulator, context: Context, deferrable: bool, fault: str
) -> None:
    generation_id = submitter().execute(context)
    emulator.fail(f"poll:{fault}")
    with pytest.raises(GenerationRejectedError, match=f"FAILED: .*generation {generation_id}") as raised:
        run(sensor(generation_id, deferrable=deferrable), context)
    assert raised.value.request_id


class TestTimeout:
    @WAYS
    def test_it_counts_from_the_start_without_a_submit_task(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        emulator.fail("poll:stall")
        generation_id = submitter().execute(context)
        late = sensor(generation_id, timeout=60, deferrable=deferrable)
        with pytest.raises(
            AirflowSensorTimeout, match=f"PROCESSING at its deadline.*generation {generation_id}"
        ):
            run(late, overdue(context))

    @WAYS
    def test_it_counts_from_the_submission_upstream(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        emulator.fail("poll:stall:2")
        for age, timeout in ((100, 90), (100, 100)):
            late = below_a_submit_task(context, age=age, timeout=timeout, deferrable=deferrable)
            with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
                run(late, context)

    @WAYS
    def test_a_late_sensor_still_finds_a_finished_generation(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        late = below_a_submit_task(context, age=1000, timeout=90, deferrable=deferrable)
        assert run(late, context) == late.generation_id

    @WAYS
    def test_it_counts_from_the_start_after_a_clear(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        emulator.fail("poll:no-images")  # not finished at the first poll
        context["ti"].max_tries = 3  # Airflow allows as many retries again
        late = below_a_submit_task(
            context, age=1000, timeout=90, retries=2, poke_interval=1, deferrable=deferrable
        )
        assert run(late, context) == late.generation_id

    @WAYS
    def test_a_retry_keeps_the_deadline_of_the_submission(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        emulator.fail("poll:stall")
        context["ti"].max_tries, context["ti"].try_number = 2, 2
        late = below_a_submit_task(context, age=1000, timeout=90, retries=2, deferrable=deferrable)
        with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
            run(late, context)

    def test_after_a_clear_it_ends_as_well(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("poll:stall")
        overdue(context)["ti"].max_tries = 1
        late = below_a_submit_task(context, age=5000, timeout=90)
        with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
            late.execute(context)

    def test_the_retries_of_a_task_that_calls_it_are_no_clear(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("poll:stall")
        context["ti"].task, context["ti"].max_tries = submitter(retries=2), 2
        with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
            below_a_submit_task(context, age=100, timeout=90).execute(context)

    def test_in_mode_reschedule_it_gives_up_at_its_deadline(
        self, emulator: Emulator, rescheduled: Context
    ) -> None:
        emulator.fail("poll:stall")
        late = below_a_submit_task(rescheduled, age=100, timeout=90, mode="reschedule")
        with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
            late.execute(rescheduled)

    @WAYS
    @pytest.mark.parametrize("soft", ["soft_fail", "never_fail"])
    @pytest.mark.parametrize("fault", ["failed", "stall", "401"])
    def test_it_can_skip_instead_of_failing(
        self, emulator: Emulator, context: Context, deferrable: bool, soft: str, fault: str
    ) -> None:
        emulator.fail(f"poll:{fault}:always")
        generation_id = submitter().execute(context)
        task = sensor(generation_id, timeout=60, deferrable=deferrable, **{soft: True})
        with pytest.raises(AirflowSkipException):
            run(task, overdue(context))


def test_the_trigger_gets_what_the_submit_task_recorded(emulator: Emulator, context: Context) -> None:
    emulator.fail("poll:stall")
    with pytest.raises(TaskDeferred) as raised:
        below_a_submit_task(context, age=100, deferrable=True).execute(context)
    kwargs = raised.value.trigger.serialize()[1]
    submitted_at = context["ti"].upstream["submitted_at"]
    assert (kwargs["model"], kwargs["size"]) == (REQUEST["model"], REQUEST["size"])
    assert kwargs["submitted_at"] == submitted_at
    assert kwargs["end_time"] == submitted_at + 900


class TestModeReschedule:
    @pytest.mark.parametrize("seconds", [0, 40])
    def test_an_unknown_id_fails_it_after_a_while(
        self, emulator: Emulator, rescheduled: Context, seconds: float
    ) -> None:
        first = datetime.now(UTC) - timedelta(seconds=seconds)
        rescheduled["ti"].get_first_reschedule_date = lambda context: first
        waiting = sensor("99999999", mode="reschedule")
        if seconds:
            with pytest.raises(GenerationRejectedError, match="The id may be wrong"):
                waiting.poke(rescheduled)
        else:
            assert waiting.poke(rescheduled) is False

    def test_its_timeout_counts_from_the_first_poll(self, emulator: Emulator, rescheduled: Context) -> None:
        emulator.fail("poll:stall:always")
        first = datetime.now(UTC) - timedelta(seconds=100)
        rescheduled["ti"].get_first_reschedule_date = lambda context: first
        waiting = sensor(submitter().execute(rescheduled), mode="reschedule", timeout=90)
        with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
            waiting.poke(rescheduled)

    @pytest.mark.parametrize("seconds", [None, 30, 100])
    def test_after_a_clear_its_timeout_counts_from_the_first_poll(
        self, emulator: Emulator, rescheduled: Context, seconds: float | None
    ) -> None:
        emulator.fail("poll:stall:always")
        first = None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)
        rescheduled["ti"].get_first_reschedule_date = lambda context: first
        rescheduled["ti"].max_tries = 1
        waiting = below_a_submit_task(rescheduled, age=1000, timeout=90, mode="reschedule")
        if seconds == 100:
            with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
                waiting.poke(rescheduled)
        else:
            assert waiting.poke(rescheduled) is False

    @pytest.mark.parametrize("soft_fail", [False, True])
    def test_it_frees_its_worker_between_polls(
        self, emulator: Emulator, rescheduled: Context, soft_fail: bool
    ) -> None:
        emulator.fail("poll:no-images")
        generation_id = submitter().execute(rescheduled)
        waiting = sensor(generation_id, mode="reschedule", poke_interval=60, soft_fail=soft_fail)
        with pytest.raises(AirflowException) as raised:
            waiting.execute(rescheduled)
        assert type(raised.value).__name__ == "AirflowRescheduleException"  # of different modules
        assert waiting.execute(rescheduled) == generation_id

    def test_it_can_skip_instead_of_failing(self, emulator: Emulator, rescheduled: Context) -> None:
        emulator.fail("poll:failed")
        generation_id = submitter().execute(rescheduled)
        with pytest.raises(AirflowSkipException):
            sensor(generation_id, mode="reschedule", soft_fail=True).execute(rescheduled)

    def test_an_invalid_id_fails_it(self, emulator: Emulator, rescheduled: Context) -> None:
        task = rendered(sensor(mode="reschedule", silent_fail=True), generation_id="")
        with pytest.raises(InvalidRequestError, match="generation_id = ''"):
            task.execute(rescheduled)
        assert not emulator.requests
