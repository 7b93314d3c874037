"""The trigger of tasks that wait for credit: it fires when the credit suffices, or the next day."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.triggers import accounts
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.credit import (
    ModelScopeCreditTrigger,
    ModelScopeExhaustedTrigger,
)
from airflow_provider_modelscope.triggers.events import CreditAvailable, CreditRead, read_event
from airflow_provider_modelscope.waiting import credit as waiting
from tests.unit.builders import event_of
from tests.unit.conftest import TOKEN, connect, serve_connections, unreadable_connections

FIRED = {"status": "credit_available"}
LATER = 2.0**40

pytestmark = pytest.mark.usefixtures("short_intervals")


def trigger(**kwargs: Any) -> ModelScopeExhaustedTrigger:
    arguments: dict[str, Any] = {
        "needed": 1.0,
        "next_day": LATER,
        "modelscope_conn_id": "modelscope_default",
        "end_time": time.time() + 60,
        "min_deferral_seconds": 0.0,
    }
    return ModelScopeExhaustedTrigger(**{**arguments, **kwargs})


def readings(emulator: Emulator) -> int:
    return [exchange.path for exchange in emulator.requests].count("/openapi/v1/magicubes/balance")


async def some_readings(emulator: Emulator) -> None:
    """Wait for two readings that begin from now on."""
    before = readings(emulator)
    while readings(emulator) < before + 2:
        await asyncio.sleep(0.005)


def test_serialization_keeps_every_argument() -> None:
    arguments: dict[str, Any] = {
        "needed": 0.5,
        "next_day": 7.5,
        "modelscope_conn_id": "other",
        "end_time": 12.25,
        "min_deferral_seconds": 0.5,
        "deferred_task": {"attempt": 3},
    }
    path, serialized = ModelScopeExhaustedTrigger(**arguments).serialize()
    assert path == "airflow_provider_modelscope.triggers.credit.ModelScopeExhaustedTrigger"
    assert json.loads(json.dumps(serialized)) == arguments
    assert ModelScopeExhaustedTrigger(**serialized).serialize() == (path, arguments)


def test_the_event_is_read_as_a_value() -> None:
    assert read_event(CreditAvailable().to_json(), CreditAvailable) == CreditAvailable()


def test_as_many_tasks_submit_as_the_credit_suffices_for(poor: Emulator) -> None:
    async def run() -> None:
        waits = [asyncio.create_task(event_of(trigger())) for _ in range(5)]
        await some_readings(poor)
        assert not any(wait.done() for wait in waits)
        poor.grant(TOKEN, 2)
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            done, _ = await asyncio.wait(waits, timeout=0.01)
        assert [await wait for wait in done] == [FIRED, FIRED]
        for wait in waits:
            wait.cancel()

    asyncio.run(run())


def test_a_thousand_tasks_cost_one_reading_each_time(poor: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MIN_INTERVAL", 0.5)
    monkeypatch.setattr(waiting, "MAX_INTERVAL", 0.5)

    async def run() -> None:
        waits = [asyncio.create_task(event_of(trigger())) for _ in range(1000)]
        await some_readings(poor)
        poor.grant(TOKEN, 1000)
        assert await asyncio.gather(*waits) == [FIRED] * 1000

    asyncio.run(run())
    assert readings(poor) <= 4
    assert not [exchange for exchange in poor.requests if exchange.method == "POST"]


def test_at_the_deadline_the_task_submits(poor: Emulator) -> None:
    assert asyncio.run(event_of(trigger(end_time=time.time() + 0.1))) == FIRED
    before = readings(poor)
    assert asyncio.run(event_of(trigger(end_time=1.0))) == FIRED
    assert readings(poor) == before


@pytest.mark.parametrize("needed", [None, 1.0])
def test_without_a_reading_the_task_submits_on_the_next_day(
    needed: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
    assert asyncio.run(event_of(trigger(needed=needed, next_day=time.time() + 0.2))) == FIRED


def test_with_a_reading_the_next_day_alone_is_no_reason(poor: Emulator) -> None:
    async def run() -> None:
        wait = asyncio.create_task(event_of(trigger(next_day=1.0)))
        await some_readings(poor)
        assert not wait.done()
        wait.cancel()

    asyncio.run(run())


def test_a_quota_is_waited_for_until_the_next_day_without_readings(emulator: Emulator) -> None:
    assert asyncio.run(event_of(trigger(needed=None, next_day=time.time() + 0.1))) == FIRED
    assert not emulator.requests


def test_a_rejected_token_is_no_error_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(tokens=["ms-another"]) as emulator:
        connect(monkeypatch, emulator.base_url)
        assert asyncio.run(event_of(trigger(next_day=1.0))) == FIRED
        assert readings(emulator) == 1


def test_a_rotated_token_is_used_for_the_next_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(tokens=["ms-rotated-0"]) as emulator:
        connect(monkeypatch, emulator.base_url)

        async def run() -> Any:
            wait = asyncio.create_task(event_of(trigger(next_day=LATER)))
            while not readings(emulator):
                await asyncio.sleep(0.005)
            connection = {"conn_type": "modelscope", "password": "ms-rotated-0", "host": emulator.base_url}
            monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(connection))
            return await wait

        assert asyncio.run(run()) == FIRED


def test_an_unreadable_connection_ends_the_wait_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable_connections(monkeypatch)
    assert asyncio.run(event_of(trigger(end_time=time.time() + 0.2))) == FIRED


def test_an_invalid_connection_is_the_error_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", "postgres://host")
    event = asyncio.run(event_of(trigger()))
    assert (event["status"], event["error"]["kind"]) == ("error", "InvalidConnectionError")


class TestCreditTrigger:
    """The trigger of the sensor: it fires when there is enough credit, and says how much there is."""

    @staticmethod
    def trigger(min_available: float = 2.0, seconds: float = 60.0) -> ModelScopeCreditTrigger:
        return ModelScopeCreditTrigger(
            min_available=min_available,
            modelscope_conn_id="modelscope_default",
            end_time=time.time() + seconds,
            min_deferral_seconds=0.0,
        )

    def test_serialization_keeps_every_argument(self) -> None:
        arguments: dict[str, Any] = {
            "min_available": 0.5,
            "modelscope_conn_id": "other",
            "end_time": 12.25,
            "min_deferral_seconds": 0.5,
            "deferred_task": {"attempt": 3},
        }
        path, serialized = ModelScopeCreditTrigger(**arguments).serialize()
        assert path == "airflow_provider_modelscope.triggers.credit.ModelScopeCreditTrigger"
        assert json.loads(json.dumps(serialized)) == arguments

    @pytest.mark.parametrize("event", [CreditRead(available=0.5), CreditRead(available=None)])
    def test_the_event_is_read_as_a_value(self, event: CreditRead) -> None:
        assert read_event(json.loads(json.dumps(event.to_json())), CreditRead) == event

    def test_a_thousand_sensors_cost_one_reading_each_time(
        self, poor: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "MIN_INTERVAL", 0.5)
        monkeypatch.setattr(waiting, "MAX_INTERVAL", 0.5)

        async def run() -> list[Any]:
            waits = [asyncio.create_task(event_of(self.trigger())) for _ in range(1000)]
            await some_readings(poor)
            assert not any(wait.done() for wait in waits)
            poor.grant(TOKEN, 2)  # all fire: a sensor takes nothing from the others
            return await asyncio.gather(*waits)

        assert asyncio.run(run()) == [{"status": "credit_read", "available": 2.0}] * 1000
        assert readings(poor) <= 4

    @pytest.mark.parametrize("seconds", [0.1, -3600.0])
    def test_at_the_deadline_a_worker_reads(self, poor: Emulator, seconds: float) -> None:
        event = asyncio.run(event_of(self.trigger(seconds=seconds)))
        assert event == {"status": "credit_read", "available": None}

    def test_a_fault_that_may_pass_ends_no_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")  # the discard port

        async def run() -> Any:
            wait = asyncio.create_task(event_of(self.trigger()))
            await asyncio.sleep(0.2)
            assert not wait.done()
            with Emulator(credit=2) as emulator:
                connect(monkeypatch, emulator.base_url)
                monkeypatch.setattr(accounts, "CACHE_SECONDS", 0.0)
                return await wait

        assert asyncio.run(run()) == {"status": "credit_read", "available": 2.0}

    def test_a_rejected_token_is_the_error_of_the_sensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Emulator(tokens=["ms-another"]) as emulator:
            connect(monkeypatch, emulator.base_url)
            event = asyncio.run(event_of(self.trigger()))
        assert (event["status"], event["error"]["kind"]) == ("error", "AuthenticationError")

    def test_a_rotated_token_is_used_for_the_next_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = iter(["ms-expired-1", "ms-rotated-0"])
        with Emulator(tokens=["ms-rotated-0"], credit=2) as emulator:

            async def read(connection_id: str) -> object:
                from airflow.sdk import Connection

                return Connection(
                    conn_id=connection_id,
                    conn_type="modelscope",
                    host=emulator.base_url,
                    password=next(tokens),
                )

            serve_connections(monkeypatch, read)
            event = asyncio.run(event_of(self.trigger()))
        assert event == {"status": "credit_read", "available": 2.0}
        assert readings(emulator) == 2


def test_the_credit_is_logged_when_it_changes(
    poor: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ModelScopeTrigger, "log", logging.getLogger("trigger"))
    caplog.set_level(logging.INFO, "trigger")

    async def run() -> None:
        waiting = asyncio.create_task(event_of(trigger()))
        await some_readings(poor)
        await some_readings(poor)
        poor.grant(TOKEN, 1)
        await waiting

    asyncio.run(asyncio.wait_for(run(), timeout=30))
    assert caplog.messages == [
        "Credit: 0 available, 0 frozen. This task needs 1",
        "Credit: 1 available, 0 frozen. This task needs 1",
    ]


def test_an_unknown_credit_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ModelScopeTrigger, "log", logging.getLogger("trigger"))
    caplog.set_level(logging.INFO, "trigger")
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
    asyncio.run(event_of(trigger(next_day=time.time() + 0.2)))
    [record] = [record for record in caplog.records if record.name == "trigger"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("The credit is unknown: ")
