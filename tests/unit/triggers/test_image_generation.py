from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    GenerationTimeoutError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.transport.event_loop import TICK, align_to_tick
from airflow_provider_modelscope.triggers.events import GenerationFinished, read_event
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from tests.unit.conftest import TOKEN, connect


@pytest.fixture(autouse=True)
def no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_modelscope.waiting.backoff.DEFAULT_COOLDOWN", 0.0)


REQUEST = GenerationRequest(model="Qwen/Qwen-Image", prompt="A cat", size="64x64")


def trigger(generation_id: str, **kwargs: Any) -> ModelScopeImageGenerationTrigger:
    arguments: dict[str, Any] = {
        "generation_id": generation_id,
        "modelscope_conn_id": "modelscope_default",
        "poll_interval": 1.0,
        "end_time": time.time() + 60,
        "min_deferral_seconds": 0.0,
    }
    return ModelScopeImageGenerationTrigger(**{**arguments, **kwargs})


def events(trigger: ModelScopeImageGenerationTrigger) -> list[Any]:
    async def collect() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def submitted() -> str:
    return ModelScopeHook().submit_generation(REQUEST)


def test_serializing_and_building_again_loses_nothing() -> None:
    arguments: dict[str, Any] = {
        "generation_id": "42",
        "modelscope_conn_id": "other",
        "poll_interval": 7.5,
        "end_time": 12.25,
        "submitted_at": 3.5,
        "model": "Qwen/Qwen-Image",
        "size": "64x64",
        "min_deferral_seconds": 0.5,
    }
    path, serialized = ModelScopeImageGenerationTrigger(**arguments).serialize()
    assert path == "airflow_provider_modelscope.triggers.image_generation.ModelScopeImageGenerationTrigger"
    assert json.loads(json.dumps(serialized)) == arguments
    assert ModelScopeImageGenerationTrigger(**serialized).serialize() == (path, arguments)


def test_the_trigger_fires_once_when_the_generation_is_finished(emulator: Emulator) -> None:
    generation_id = submitted()
    assert events(trigger(generation_id)) == [{"status": "finished", "generation_id": generation_id}]


def test_the_wait_records_the_duration_by_model_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = DurationHistory()
    monkeypatch.setattr("airflow_provider_modelscope.waiting.poll.DURATIONS", durations)
    with Emulator(duration=0.001) as emulator:
        connect(monkeypatch, emulator.base_url)
        events(trigger(submitted(), model="a/b", size="64x64"))
    assert durations.of("a/b", "64x64").usual == pytest.approx(0.001)


def test_airflows_own_task_id_does_not_disturb_the_wait(emulator: Emulator) -> None:
    generation_id = submitted()
    waiting = trigger(generation_id)
    waiting.task_id = "a_task_of_airflow"
    assert events(waiting)[0]["generation_id"] == generation_id


@pytest.mark.parametrize("fault", ["failed", "rejected"])
def test_a_generation_that_failed_is_finished_too_and_the_task_asks_why(
    emulator: Emulator, fault: str
) -> None:
    emulator.fail(f"poll:{fault}")
    assert events(trigger(submitted()))[0]["status"] == "finished"


@pytest.mark.parametrize("fault", ["500", "429", "reset", "html", "empty", "no-images", "not-found"])
def test_a_fault_that_passes_does_not_end_the_wait(emulator: Emulator, fault: str) -> None:
    emulator.fail(f"poll:{fault}")
    assert events(trigger(submitted()))[0]["status"] == "finished"


def test_a_refused_token_ends_the_wait_with_the_services_words(emulator: Emulator) -> None:
    emulator.fail("poll:401")
    [event] = events(trigger(submitted()))
    with pytest.raises(AuthenticationError, match="Authentication failed"):
        read_event(event, GenerationFinished)


def test_at_its_deadline_it_looks_once_more_and_then_gives_up(emulator: Emulator) -> None:
    finished, stalled = submitted(), submitted()
    assert events(trigger(finished, end_time=0.0))[0]["status"] == "finished"
    emulator.fail("poll:stall")
    [event] = events(trigger(stalled, end_time=0.0))
    with pytest.raises(GenerationTimeoutError, match=f"PROCESSING at its deadline.*generation {stalled}"):
        read_event(event, GenerationFinished)


def test_a_service_that_is_gone_is_waited_for_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")  # nobody listens to the discard port
    [event] = events(trigger("42", end_time=0.0))
    with pytest.raises(GenerationTimeoutError, match=r"No response from.*127\.0\.0\.1"):
        read_event(event, GenerationFinished)


def test_it_does_not_fire_before_the_task_has_settled_in_its_deferral(emulator: Emulator) -> None:
    started_at = time.monotonic()
    assert events(trigger(submitted(), min_deferral_seconds=0.3))[0]["status"] == "finished"
    assert time.monotonic() - started_at >= 0.3


@pytest.mark.parametrize("seconds", [1, 1.1, 1.3, 2, 4.76, 15])
@pytest.mark.parametrize("now", [0.0, 1234.56, 1234.75])
def test_pauses_end_together_and_are_never_longer_nor_below_a_second(seconds: float, now: float) -> None:
    cut = align_to_tick(seconds, now=now)
    assert max(1, seconds - TICK) <= cut <= seconds
    assert cut == seconds or ((now + cut) / TICK).is_integer()


@pytest.mark.parametrize("seconds", [0.001, 0.5, 0.99])
def test_the_short_pause_before_a_deadline_is_not_cut(seconds: float) -> None:
    assert align_to_tick(seconds, now=1234.56) == seconds


def test_a_cancelled_wait_closes_its_connections(emulator: Emulator) -> None:
    emulator.fail("poll:stall")
    waiting = trigger(submitted())

    async def cancel_after_the_first_look() -> None:
        task = asyncio.ensure_future(anext(waiting.run()))
        while not any(exchange.method == "GET" for exchange in emulator.requests):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_after_the_first_look())  # an unclosed session would be a warning, which is an error


def test_every_look_says_what_it_asks_for_and_with_whose_token(emulator: Emulator) -> None:
    emulator.fail("poll:500")
    events(trigger(submitted()))
    looks = [exchange for exchange in emulator.requests if exchange.method == "GET"]
    assert len(looks) == 2
    for look in looks:
        assert look.headers["x-modelscope-task-type"] == "image_generation"
        assert look.headers["authorization"] == f"Bearer {TOKEN}"


def test_no_event_holds_a_token_or_a_url(emulator: Emulator) -> None:
    emulator.fail("poll:403")
    for event in (*events(trigger(submitted())), *events(trigger(submitted()))):
        assert TOKEN not in str(event)
        assert "/images/" not in str(event)
