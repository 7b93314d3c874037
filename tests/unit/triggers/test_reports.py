"""What a triggerer reports of its accounts: how many tasks wait and generations run, and the 429s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope import compat, metrics
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.triggers import reports
from airflow_provider_modelscope.triggers.clients import with_client
from tests.unit.builders import REQUEST, event_of, submitter
from tests.unit.conftest import connect
from tests.unit.test_metrics import Stats
from tests.unit.triggers.test_queue import trigger

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from airflow_provider_modelscope.transport.event_loop import Client


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Stats:
    stats = Stats()
    monkeypatch.setattr(compat, "TriggererStats", stats, raising=False)
    monkeypatch.setattr(reports, "INTERVAL", 0.01)
    return stats


def run(work: Callable[[Client], Any], connection_id: str = "modelscope_default") -> None:
    """Run with a client, and wait until its last report is sent."""
    asyncio.run(asyncio.wait_for(with_client(connection_id, work, end_time=0), 30))
    reports._sender.submit(lambda: None).result()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def gauges(waiting: int, running: int) -> dict[str, int]:
    return {metrics.QUEUE_WAITING: waiting, metrics.RUNNING: running}


def test_waiting_tasks_and_running_generations_are_reported(emulator: Emulator, stats: Stats) -> None:
    async def work(client: Client) -> None:
        assert await client.queue.wait_for_slot(queued_at=0, deadline=time.time() + 60)  # the first slot
        one, other = (client.queue.track(id_, submitted_at=time.time(), usual_seconds=None) for id_ in "ab")
        with one, other, client.queue.track("b", submitted_at=time.time(), usual_seconds=None):
            waiting = [asyncio.create_task(event_of(trigger())) for _ in range(3)]
            await until(lambda: stats.gauges == gauges(3, 2))  # "b" is one generation with two waits
            for task in waiting:
                task.cancel()
            await until(lambda: stats.gauges == gauges(0, 2))

    run(work)
    hostname: str = compat.get_hostname()  # type: ignore[no-untyped-call]
    tags = {"modelscope_conn_id": "modelscope_default", "hostname": hostname}
    assert stats.tags == dict.fromkeys(stats.gauges, tags)
    assert not stats.counts


def test_the_last_report_of_an_account_is_zero(
    emulator: Emulator, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "INTERVAL", 3600)  # so that the last report is the only one

    async def wait() -> None:
        await with_client("modelscope_default", lambda _: asyncio.sleep(0), end_time=0)
        await until(lambda: stats.gauges == gauges(0, 0))

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_two_connections_of_one_account_report_once(
    emulator: Emulator, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, emulator.base_url, "same_account")

    async def work(client: Client) -> None:
        await with_client("same_account", lambda _: until(lambda: len(stats.gauges) == 2), end_time=0)

    run(work)
    assert {tags["modelscope_conn_id"] for tags in stats.tags.values()} == {"modelscope_default"}


def test_every_429_of_a_poll_is_counted_once(emulator: Emulator, stats: Stats) -> None:
    generation_id = submitter().hook.submit_generation(GenerationRequest(**REQUEST))
    emulator.fail("poll:429:3")

    async def work(client: Client) -> None:
        for _ in range(3):
            await client.poll(generation_id, end_time=0)
            await until(lambda: client.too_many_requests == 0)  # it was taken into a report
        emulator.fail("poll:503")
        await client.poll(generation_id, end_time=0)

    run(work)
    assert stats.counts == {metrics.TOO_MANY_REQUESTS: 3}


def test_a_backend_that_blocks_does_not_block_the_event_loop(
    emulator: Emulator, stats: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_sending, may_send = Event(), Event()

    def gauge(*_: object, **__: object) -> None:
        is_sending.set()
        may_send.wait()

    async def work(client: Client) -> None:
        monkeypatch.setattr(stats, "gauge", gauge)
        await until(is_sending.is_set)
        await client.poll("42", end_time=0)
        may_send.set()

    run(work)
    assert len(emulator.requests) == 1


def test_a_broken_backend_ends_no_wait(
    emulator: Emulator, stats: Stats, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compat, "TriggererStats", object())
    run(lambda _: until(lambda: "was not sent" in caplog.text))
    assert f"The metric {metrics.QUEUE_WAITING} was not sent: AttributeError" in caplog.text
