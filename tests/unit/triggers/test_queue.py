"""The queue trigger: no event before a slot is free, first come, first served."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import ModelScopeError, QueueFullError
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger
from airflow_provider_modelscope.waiting import poll, slots, submit_queue
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.waiting.poll import PollSchedule
from tests.unit.builders import REQUEST, event_of, submitter
from tests.unit.conftest import TOKEN

if TYPE_CHECKING:
    import pytest

    from airflow_provider_modelscope.emulator import Emulator


def trigger(**kwargs: Any) -> ModelScopeQueueTrigger:
    arguments: dict[str, Any] = {
        "since": time.time(),
        "model": "Qwen/Qwen-Image",
        "modelscope_conn_id": "modelscope_default",
        "end_time": time.time() + 60,
        "min_deferral_seconds": 0.0,
    }
    return ModelScopeQueueTrigger(**{**arguments, **kwargs})


def error_in(event: Any) -> ModelScopeError:
    assert event["status"] == "error"
    return ModelScopeError.from_json(event["error"])


def test_serialization_keeps_every_argument() -> None:
    arguments: dict[str, Any] = {
        "since": 3.5,
        "model": "a/b",
        "size": "64x64",
        "slot_rejected": True,
        "modelscope_conn_id": "other",
        "end_time": 12.25,
        "min_deferral_seconds": 0.5,
    }
    path, serialized = ModelScopeQueueTrigger(**arguments).serialize()
    assert path == "airflow_provider_modelscope.triggers.queue.ModelScopeQueueTrigger"
    assert json.loads(json.dumps(serialized)) == arguments
    assert ModelScopeQueueTrigger(**serialized).serialize() == (path, arguments)


def test_it_sends_nothing(emulator: Emulator, free_at_once: None) -> None:
    queued = trigger()
    event = asyncio.run(event_of(queued))
    assert event == {"status": "turn", "since": queued.since, "end_time": queued.end_time}
    assert not emulator.requests


def test_the_forecast_follows_the_durations_of_model_and_size(
    emulator: Emulator, free_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = DurationHistory()
    durations.record("a/b", "64x64", 1000)
    durations.record("a/b", "8x8", 1)
    monkeypatch.setattr(poll, "DURATIONS", durations)
    monkeypatch.setattr(submit_queue, "DURATIONS", durations)
    now = time.time()

    async def behind(ahead: PollSchedule) -> bool:
        queue = submit_queue.SubmitQueue()
        with queue.running(ahead):
            return await queue.turn(since=now, end_time=time.time() + 1, model="a/b")

    async def both() -> list[Any]:
        first = trigger(model="a/b", size="64x64", since=now)
        second = trigger(since=now + 1, end_time=time.time() + 1)
        return list(await asyncio.gather(event_of(first), event_of(second)))

    quick: dict[str, Any] = {"model": "a/b", "size": "8x8", "poll_interval": 5}
    assert asyncio.run(behind(PollSchedule("42", submitted_at=now, end_time=now + 60, **quick)))
    assert [event["status"] for event in asyncio.run(both())] == ["turn", "error"]


def test_no_slot_is_granted_before_the_minimum_deferral(emulator: Emulator, free_at_once: None) -> None:
    async def both() -> list[float]:
        ended = []

        async def wait_for(one: ModelScopeQueueTrigger) -> None:
            await event_of(one)
            ended.append(one.since)

        unsettled = trigger(since=1.0, min_deferral_seconds=0.3)
        await asyncio.gather(*(wait_for(one) for one in (unsettled, trigger(since=2.0))))
        return ended

    assert asyncio.run(both()) == [2.0, 1.0]


def test_each_finished_generation_grants_one_slot_in_order(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "GUESS", 3600.0)
    monkeypatch.setattr(slots, "MAX_GUESS", 3600.0)
    monkeypatch.setattr(slots, "LONGEST", 7200.0)
    granted: list[float] = []

    async def queue(since: float) -> None:
        await event_of(trigger(since=since, end_time=time.time() + 3600))
        granted.append(since)

    async def finish(generation_id: str) -> None:
        polling = ModelScopeImageGenerationTrigger(
            generation_id=generation_id,
            poll_interval=1,
            submitted_at=time.time(),
            modelscope_conn_id="modelscope_default",
            end_time=time.time() + 60,
            min_deferral_seconds=0.0,
        )
        [_] = [event async for event in polling.run()]

    async def all_three() -> None:
        queued = [asyncio.create_task(queue(since)) for since in (3.0, 1.0, 2.0)]
        await asyncio.sleep(0.2)
        assert not granted
        for number in range(1, 4):
            await finish(submitter().hook.submit_generation(GenerationRequest(**REQUEST)))
            await asyncio.sleep(0.1)
            assert granted == [1.0, 2.0, 3.0][:number]
        await asyncio.gather(*queued)

    asyncio.run(all_three())


def test_a_cancelled_wait_lets_the_next_one_forward(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "GUESS", 0.3)

    async def leave() -> Any:
        first = asyncio.create_task(event_of(trigger(since=1.0)))
        second = asyncio.create_task(event_of(trigger(since=2.0)))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    assert asyncio.run(leave())["since"] == 2.0


def test_the_error_at_the_deadline_says_how_many_waited(emulator: Emulator) -> None:
    async def three() -> list[Any]:
        end_time = time.time() + 0.3
        return await asyncio.gather(*(event_of(trigger(end_time=end_time)) for _ in range(3)))

    errors = [error_in(one) for one in asyncio.run(three())]
    assert all(type(error) is QueueFullError for error in errors)
    assert any("2 more of this account waited with it" in str(error) for error in errors)


def test_no_slot_is_granted_after_the_deadline(emulator: Emulator, free_at_once: None) -> None:
    late = trigger(since=time.time() - 7200, end_time=time.time() - 3600)
    assert isinstance(error_in(asyncio.run(event_of(late))), QueueFullError)


def test_events_and_arguments_contain_no_token(emulator: Emulator, free_at_once: None) -> None:
    queued = trigger()
    assert TOKEN not in str(asyncio.run(event_of(queued))) + str(queued.serialize())
