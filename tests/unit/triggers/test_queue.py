"""The queue trigger: no event before a slot is free, first come, first served."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.clients import shared_client
from airflow_provider_modelscope.triggers.events import SlotFree, read_event
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger
from airflow_provider_modelscope.waiting import poll, submit_queue
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.waiting.poll import PollSchedule
from tests.unit.builders import REQUEST, event_of, submitter
from tests.unit.conftest import TOKEN, unreadable_connections

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator


def trigger(**kwargs: Any) -> ModelScopeQueueTrigger:
    arguments: dict[str, Any] = {
        "queued_at": time.time(),
        "modelscope_conn_id": "modelscope_default",
        "end_time": time.time() + 60,
        "min_deferral_seconds": 0.0,
    }
    return ModelScopeQueueTrigger(**{**arguments, **kwargs})


def set_task(trigger: ModelScopeTrigger, **task_instance: Any) -> None:
    """Say which task waits, as a triggerer does."""
    task: Any = SimpleNamespace(**task_instance)
    trigger.task_instance = task


def running(generation_id: str, **kwargs: Any) -> PollSchedule:
    now = time.time()
    return PollSchedule(generation_id, submitted_at=now, end_time=now + 60, poll_interval=1, **kwargs)


def test_serialization_keeps_every_argument() -> None:
    arguments: dict[str, Any] = {
        "queued_at": 3.5,
        "start_seconds": 2.5,
        "modelscope_conn_id": "other",
        "end_time": 12.25,
        "min_deferral_seconds": 0.5,
        "deferred_task": {"attempt": 3},
    }
    path, serialized = ModelScopeQueueTrigger(**arguments).serialize()
    assert path == "airflow_provider_modelscope.triggers.queue.ModelScopeQueueTrigger"
    assert json.loads(json.dumps(serialized)) == arguments
    assert ModelScopeQueueTrigger(**serialized).serialize() == (path, arguments)


def test_it_sends_nothing(emulator: Emulator) -> None:
    queued = trigger()
    event = asyncio.run(event_of(queued))
    assert event == {
        "status": "slot_free",
        "queued_at": queued.queued_at,
        "end_time": queued.end_time,
        "granted_at": event["granted_at"],
    }
    assert queued.queued_at <= event["granted_at"] <= time.time()
    assert not emulator.requests


def test_no_slot_is_granted_during_the_minimum_deferral(emulator: Emulator) -> None:
    async def run() -> Any:
        async with shared_client(ModelScopeHook().account):
            deferred = asyncio.create_task(event_of(trigger(queued_at=1.0, min_deferral_seconds=3600)))
            other = asyncio.create_task(event_of(trigger(queued_at=2.0, end_time=time.time() + 1)))
            event = await other
            deferred.cancel()
            return event

    assert asyncio.run(run())["status"] == "slot_free"


def test_queue_is_served_in_order_as_generations_end(emulator: Emulator) -> None:
    async def run() -> None:
        async with shared_client(ModelScopeHook().account) as client, asyncio.TaskGroup() as group:
            await event_of(trigger())  # takes the first slot
            tasks = {at: group.create_task(event_of(trigger(queued_at=at))) for at in (3.0, 1.0, 2.0)}
            while len(client.queue) < 3:
                await asyncio.sleep(0.01)
            for at in (1.0, 2.0, 3.0):
                assert not any(task.done() for task in tasks.values())
                generation_id = submitter().hook.submit_generation(GenerationRequest(**REQUEST))
                await client.wait_until_finished(running(generation_id))
                await tasks.pop(at)

    asyncio.run(run())


@pytest.mark.parametrize(("size", "is_granted"), [("8x8", True), ("64x64", False)])
def test_slot_follows_the_durations_of_model_and_size(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, size: str, is_granted: bool
) -> None:
    durations = DurationHistory()
    durations.record("a/b", "8x8", 1)
    durations.record("a/b", "64x64", 1000)
    monkeypatch.setattr(poll, "DURATIONS", durations)
    emulator.fail("poll:stall")
    generation_id = submitter().hook.submit_generation(GenerationRequest(**REQUEST))

    async def run() -> bool:
        async with shared_client(ModelScopeHook().account) as client:
            await event_of(trigger())  # takes the first slot
            waiting = asyncio.create_task(
                client.wait_until_finished(running(generation_id, model="a/b", size=size))
            )
            while not any(exchange.method == "GET" for exchange in emulator.requests):
                await asyncio.sleep(0.01)  # else it would be cancelled while it connects
            granted = await client.queue.wait_for_slot(queued_at=1.0, deadline=time.time() + 0.3)
            waiting.cancel()
            return granted

    assert asyncio.run(run()) is is_granted


def test_after_the_deadline_all_tasks_make_a_last_attempt(emulator: Emulator) -> None:
    async def three() -> list[Any]:
        async with shared_client(ModelScopeHook().account):
            await event_of(trigger())  # takes the first slot
            return await asyncio.gather(*(event_of(trigger(queued_at=1.0, end_time=2.0)) for _ in range(3)))

    for event in asyncio.run(three()):
        assert read_event(event, SlotFree).end_time == 2.0


def test_a_connection_that_stays_unreadable_allows_a_last_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable_connections(monkeypatch)
    assert asyncio.run(event_of(trigger(end_time=2.0)))["status"] == "slot_free"


@pytest.mark.parametrize("start_seconds", [0.0, 3.0, None])
def test_rejection_is_reported_to_the_queue(emulator: Emulator, start_seconds: float | None) -> None:
    async def run() -> bool:
        async with shared_client(ModelScopeHook().account) as client:
            await event_of(trigger())  # takes the first slot
            with client.queue.track("42", submitted_at=time.time() - 20, usual_seconds=20):
                await event_of(trigger())  # is granted the slot ahead
                queued = asyncio.create_task(event_of(trigger(start_seconds=start_seconds)))
                while len(client.queue) < 1:
                    await asyncio.sleep(0.01)
            granted, _ = await asyncio.wait([queued], timeout=0.5)
            queued.cancel()
            return bool(granted)  # if the slot was given back

    assert asyncio.run(run()) is (start_seconds is not None)


def test_events_and_arguments_contain_no_token(emulator: Emulator) -> None:
    queued = trigger()
    assert TOKEN not in str(asyncio.run(event_of(queued))) + str(queued.serialize())


def test_a_slot_is_granted_after_the_minimum_deferral(emulator: Emulator) -> None:
    queued = trigger(min_deferral_seconds=0.01)
    event = asyncio.run(asyncio.wait_for(event_of(queued), timeout=10))
    assert event["end_time"] == queued.end_time


def test_a_task_in_the_queue_logs_who_occupies_the_account(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(submit_queue, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(ModelScopeTrigger, "log", logging.getLogger("trigger"))
    caplog.set_level(logging.INFO, "trigger")
    monkeypatch.setattr(poll, "DURATIONS", DurationHistory())
    emulator.fail("poll:stall")
    now = time.time()
    generation_id = submitter().hook.submit_generation(GenerationRequest(**REQUEST))
    holder = ModelScopeImageGenerationTrigger(
        generation_id=generation_id,
        poll_interval=1.0,
        submitted_at=now,
        modelscope_conn_id="modelscope_default",
        end_time=now + 60,
    )
    set_task(holder, dag_id="postcards", task_id="draw", map_index=2)

    async def run() -> None:
        async with shared_client(ModelScopeHook().account) as client:
            await event_of(trigger())  # takes the first slot
            tasks = [asyncio.create_task(event_of(holder))]
            while not client.queue.running:
                await asyncio.sleep(0.01)
            tasks.append(asyncio.create_task(event_of(trigger())))
            while not caplog.messages:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()

    asyncio.run(asyncio.wait_for(run(), timeout=30))
    [line] = caplog.messages
    assert re.fullmatch(
        rf"Queued at position 1 of 1\. Now running: generation {generation_id} "
        r"\(task draw \[2\] of Dag postcards\), \d+ s",
        line,
    )


@pytest.mark.parametrize(
    ("map_index", "name"), [(-1, "draw of Dag d"), (None, "draw of Dag d"), (0, "draw [0] of Dag d")]
)
def test_a_task_is_named_by_task_map_index_and_dag(map_index: int | None, name: str) -> None:
    queued = trigger()
    assert queued.task_name is None  # outside of a triggerer
    set_task(queued, dag_id="d", task_id="draw", map_index=map_index)
    assert queued.task_name == name
