"""The trigger of a generation: one event, whatever the service does, and not before the minimum deferral."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    GenerationStatusUnknownError,
    GenerationTimeoutError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.events import GenerationFinished, read_event
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from tests.unit.builders import event_of
from tests.unit.conftest import TOKEN, connect, unreadable_connections

REQUEST = GenerationRequest(model="Qwen/Qwen-Image", prompt="A cat", size="64x64")


@pytest.fixture(autouse=True)
def no_cooldown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_modelscope.waiting.backoff.DEFAULT_COOLDOWN", 0.0)


def trigger(generation_id: str, **kwargs: Any) -> ModelScopeImageGenerationTrigger:
    arguments: dict[str, Any] = {
        "generation_id": generation_id,
        "modelscope_conn_id": "modelscope_default",
        "poll_interval": 1.0,
        "end_time": time.time() + 60,
        "min_deferral_seconds": 0.0,
    }
    return ModelScopeImageGenerationTrigger(**{**arguments, **kwargs})


def event(trigger: ModelScopeImageGenerationTrigger) -> Any:
    return asyncio.run(event_of(trigger))


def submitted() -> str:
    return ModelScopeHook().submit_generation(REQUEST)


def test_serialization_keeps_every_argument() -> None:
    arguments: dict[str, Any] = {
        "generation_id": "42",
        "modelscope_conn_id": "other",
        "poll_interval": 7.5,
        "end_time": 12.25,
        "submitted_at": 3.5,
        "model": "Qwen/Qwen-Image",
        "size": "64x64",
        "min_deferral_seconds": 0.5,
        "deferred_task": {"attempt": 3},
    }
    path, serialized = ModelScopeImageGenerationTrigger(**arguments).serialize()
    assert path == "airflow_provider_modelscope.triggers.image_generation.ModelScopeImageGenerationTrigger"
    assert json.loads(json.dumps(serialized)) == arguments
    assert ModelScopeImageGenerationTrigger(**serialized).serialize() == (path, arguments)


def test_it_emits_one_event_when_the_generation_has_finished(emulator: Emulator) -> None:
    generation_id = submitted()
    assert event(trigger(generation_id)) == {"status": "finished", "generation_id": generation_id}


def test_the_duration_is_recorded_by_model_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = DurationHistory()
    monkeypatch.setattr("airflow_provider_modelscope.waiting.poll.DURATIONS", durations)
    with Emulator(duration=0.001) as emulator:
        connect(monkeypatch, emulator.base_url)
        event(trigger(submitted(), model="a/b", size="64x64"))
    assert durations.of("a/b", "64x64").usual == pytest.approx(0.001)


def test_the_task_id_of_airflow_is_no_generation_id(emulator: Emulator) -> None:
    generation_id = submitted()
    waiting = trigger(generation_id)
    waiting.task_id = "a_task_of_airflow"
    assert event(waiting)["generation_id"] == generation_id


@pytest.mark.parametrize("fault", ["failed", "rejected"])
def test_a_failed_generation_is_finished(emulator: Emulator, fault: str) -> None:
    emulator.fail(f"poll:{fault}")
    assert event(trigger(submitted()))["status"] == "finished"


def test_the_age_counts_from_the_submission(emulator: Emulator) -> None:
    generation_id = submitted()
    emulator.fail("poll:not-found")
    event(trigger(generation_id, submitted_at=time.time() - 60))  # too old to be unknown yet
    assert len([exchange for exchange in emulator.requests if exchange.method == "GET"]) == 1


@pytest.mark.parametrize("fault", ["500", "429", "reset", "html", "empty", "no-images", "not-found"])
def test_an_error_that_may_pass_does_not_end_the_wait(emulator: Emulator, fault: str) -> None:
    emulator.fail(f"poll:{fault}")
    assert event(trigger(submitted()))["status"] == "finished"


def test_a_rejected_token_ends_the_wait(emulator: Emulator) -> None:
    emulator.fail("poll:401")
    with pytest.raises(AuthenticationError, match="Authentication failed"):
        read_event(event(trigger(submitted())), GenerationFinished)


def test_it_polls_once_at_its_deadline_and_then_gives_up(emulator: Emulator) -> None:
    finished, stalled = submitted(), submitted()
    assert event(trigger(finished, end_time=0.0))["status"] == "finished"
    emulator.fail("poll:stall")
    with pytest.raises(GenerationTimeoutError, match=f"PROCESSING at its deadline.*generation {stalled}"):
        read_event(event(trigger(stalled, end_time=0.0)), GenerationFinished)


def test_an_unreachable_service_is_polled_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9")  # the discard port is closed
    with pytest.raises(GenerationTimeoutError, match=r"unreachable \(No response from .*127\.0\.0\.1"):
        read_event(event(trigger("42", end_time=0.0)), GenerationFinished)


def test_a_connection_that_stays_unreadable_ends_as_an_unknown_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreadable_connections(monkeypatch)
    with pytest.raises(GenerationStatusUnknownError, match=r"cannot read Airflow connection .* at its deadl"):
        read_event(event(trigger("42", end_time=0.0)), GenerationFinished)


def test_no_event_is_emitted_before_the_minimum_deferral(emulator: Emulator) -> None:
    async def run() -> None:
        deferred = asyncio.create_task(event_of(trigger(generation_id, min_deferral_seconds=3600)))
        for _ in range(3):  # others emit theirs
            await event_of(trigger(generation_id))
        assert not deferred.done()
        deferred.cancel()

    generation_id = submitted()
    asyncio.run(run())


def test_a_cancelled_wait_closes_its_connections(emulator: Emulator) -> None:
    emulator.fail("poll:stall")
    waiting = trigger(submitted())

    async def cancel_after_the_first_poll() -> None:
        task = asyncio.ensure_future(anext(waiting.run()))
        while not any(exchange.method == "GET" for exchange in emulator.requests):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_after_the_first_poll())  # an open session would be a warning, which is an error


def test_every_poll_sends_the_task_type_and_the_token(emulator: Emulator) -> None:
    emulator.fail("poll:500")
    event(trigger(submitted()))
    polls = [exchange for exchange in emulator.requests if exchange.method == "GET"]
    assert len(polls) == 2
    for poll in polls:
        assert poll.headers["x-modelscope-task-type"] == "image_generation"
        assert poll.headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("fault", ["403", "failed"])
def test_no_event_contains_a_token_or_a_url(emulator: Emulator, fault: str) -> None:
    generation_id = submitted()
    emulator.fail(f"poll:{fault}")
    for _ in range(2):
        emitted = str(event(trigger(generation_id)))
        assert TOKEN not in emitted
        assert "/images/" not in emitted


@pytest.mark.parametrize("usual", [None, 30.0])
def test_the_age_is_logged_if_the_usual_duration_is_known(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    usual: float | None,
) -> None:
    durations = DurationHistory()
    if usual:
        durations.record("a/b", "64x64", usual)
    monkeypatch.setattr("airflow_provider_modelscope.waiting.poll.DURATIONS", durations)
    monkeypatch.setattr(ModelScopeTrigger, "log", logging.getLogger("trigger"))
    caplog.set_level(logging.INFO)
    generation_id = submitted()
    caplog.clear()
    event(trigger(generation_id, model="a/b", size="64x64", submitted_at=time.time() - 4000))
    assert [line.partition(" after ")[0] for line in caplog.messages] == [
        *([f"Waiting for generation {generation_id}, 67 min of about 30 s"] if usual else []),
        f"Generation {generation_id} is SUCCEED",
    ]
