"""A full queue is a place in line: nothing fails, nobody holds a worker, first come, first served."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    ModelScopeFinalError,
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.tasks import deferral
from airflow_provider_modelscope.triggers.clients import shared_client
from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger
from airflow_provider_modelscope.waiting import backoff, poll
from airflow_provider_modelscope.waiting.backoff import MAX_QUEUE_PAUSE, MAX_RETRY_AFTER, SubmitBackoff
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.waiting.poll import PollSchedule
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

Context = Any
NOW = 1_700_000_000.0
ASKED: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "A cat", "size": "64x64"}
FULL = QueueFullError("enqueue failed: user queue is full.", code=500)


def submitter(**parameters: Any) -> ModelScopeSubmitImageGenerationOperator:
    arguments = {**ASKED, "deferrable": True, **parameters}
    return ModelScopeSubmitImageGenerationOperator(task_id="submit", **arguments)


def trigger(**kwargs: Any) -> ModelScopeQueueTrigger:
    arguments: dict[str, Any] = {
        "since": time.time(),
        "modelscope_conn_id": "modelscope_default",
        "end_time": time.time() + 60,
        "min_deferral_seconds": 0.0,
    }
    return ModelScopeQueueTrigger(**{**arguments, **kwargs})


async def event(of: ModelScopeQueueTrigger) -> Any:
    [event] = [event.payload async for event in of.run()]
    return json.loads(json.dumps(event))  # as the database holds it


def error_in(event: Any) -> ModelScopeError:
    assert event["status"] == "error"
    return ModelScopeError.from_json(event["error"])


def running(generation_id: str, **kwargs: Any) -> PollSchedule:
    now = time.time()
    return PollSchedule(generation_id, submitted_at=now, end_time=now + 60, poll_interval=1, **kwargs)


def submissions(emulator: Emulator) -> list[Any]:
    return [exchange for exchange in emulator.requests if exchange.method == "POST"]


class TestTheWaitForRoom:
    def queue(self, *, seconds: float = 3600, refused: bool = True) -> SubmitBackoff:
        return SubmitBackoff(since=NOW, end_time=NOW + seconds, refused=refused)

    def test_the_pauses_grow_and_are_never_twice_the_same(self) -> None:
        queue = self.queue()
        pauses = [queue.after(FULL, now=NOW) for _ in range(50)]
        for pause, usual in zip(pauses, [2, 4, 8, 15, 15], strict=False):
            assert 0.75 * usual <= pause <= 1.25 * usual
        assert max(pauses) <= 1.25 * MAX_QUEUE_PAUSE
        assert len(set(pauses)) > 40

    @pytest.mark.parametrize(("asked", "pause"), [(60, 60), (1e9, MAX_RETRY_AFTER)])
    def test_what_the_service_asks_for_is_honoured(self, asked: float, pause: float) -> None:
        assert self.queue().after(RateLimitedError("slow", retry_after=asked), now=NOW) == pause

    def test_the_last_try_falls_on_the_deadline_and_then_it_says_who_waited_how_long(self) -> None:
        queue = self.queue(seconds=100)
        assert queue.after(FULL, now=NOW + 99.5) == 0.5
        says = r"queue is full\. It waited 100 s for room to submit, 6 more of this account .*queue_timeout"
        with pytest.raises(QueueFullError, match=says):
            queue.after(FULL, now=NOW + 100, waiting=7)

    def test_a_service_that_never_answered_is_soon_given_up_but_one_that_did_is_waited_for(self) -> None:
        gone = ServiceUnreachableError("no connection")
        waiting = self.queue(refused=False)
        assert [waiting.after(gone, now=NOW) for _ in range(2)] == [1.0, 1.0]
        with pytest.raises(ServiceUnreachableError):
            waiting.after(gone, now=NOW)
        in_line = self.queue(refused=False)
        in_line.after(FULL, now=NOW)
        for _ in range(10):
            assert in_line.after(gone, now=NOW) > 1


class TestTheTrigger:
    def test_serializing_and_building_again_loses_nothing(self) -> None:
        arguments: dict[str, Any] = {
            "since": 3.5,
            "slot_rejected": True,
            "modelscope_conn_id": "other",
            "end_time": 12.25,
            "min_deferral_seconds": 0.5,
        }
        path, serialized = ModelScopeQueueTrigger(**arguments).serialize()
        assert path == "airflow_provider_modelscope.triggers.queue.ModelScopeQueueTrigger"
        assert json.loads(json.dumps(serialized)) == arguments
        assert ModelScopeQueueTrigger(**serialized).serialize() == (path, arguments)

    def test_it_asks_the_service_nothing(self, emulator: Emulator) -> None:
        waits = trigger()
        told = asyncio.run(event(waits))
        assert told == {"status": "turn", "since": waits.since, "end_time": waits.end_time}
        assert not emulator.requests

    def test_no_slot_is_granted_during_the_minimum_deferral(self, emulator: Emulator) -> None:
        async def run() -> Any:
            async with shared_client(ModelScopeHook().account) as client:
                deferred = asyncio.create_task(event(trigger(since=1.0, min_deferral_seconds=3600)))
                while client.users < 2:
                    await asyncio.sleep(0)
                other = await event(trigger(since=2.0, end_time=time.time() + 1))
                deferred.cancel()
                return other

        assert asyncio.run(run())["status"] == "turn"

    def test_queue_is_served_in_order_as_generations_end(self, emulator: Emulator) -> None:
        async def run() -> None:
            async with shared_client(ModelScopeHook().account) as client, asyncio.TaskGroup() as group:
                await event(trigger())  # takes the first slot
                tasks = {since: group.create_task(event(trigger(since=since))) for since in (3.0, 1.0, 2.0)}
                while len(client.queue) < 3:
                    await asyncio.sleep(0.01)
                for since in (1.0, 2.0, 3.0):
                    assert not any(task.done() for task in tasks.values())
                    generation_id = submitter().hook.submit_generation(GenerationRequest(**ASKED))
                    await client.wait_until_finished(running(generation_id))
                    await tasks.pop(since)

        asyncio.run(run())

    @pytest.mark.parametrize(("size", "status"), [("8x8", "turn"), ("64x64", "error")])
    def test_slot_follows_the_durations_of_model_and_size(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, size: str, status: str
    ) -> None:
        durations = DurationHistory()
        durations.record("a/b", "8x8", 1)
        durations.record("a/b", "64x64", 1000)
        monkeypatch.setattr(poll, "DURATIONS", durations)
        emulator.fail("poll:stall")
        generation_id = submitter().hook.submit_generation(GenerationRequest(**ASKED))

        async def run() -> Any:
            async with shared_client(ModelScopeHook().account) as client:
                await event(trigger())  # takes the first slot
                waiting = asyncio.create_task(
                    client.wait_until_finished(running(generation_id, model="a/b", size=size))
                )
                queued = await event(trigger(end_time=time.time() + 0.3))
                waiting.cancel()
                return queued

        assert asyncio.run(run())["status"] == status

    def test_at_the_deadline_it_says_how_many_waited(self, emulator: Emulator) -> None:
        async def three() -> list[Any]:
            async with shared_client(ModelScopeHook().account):
                await event(trigger())  # takes the first slot
                end_time = time.time() + 0.3
                return await asyncio.gather(*(event(trigger(end_time=end_time)) for _ in range(3)))

        errors = [error_in(one) for one in asyncio.run(three())]
        assert all(type(error) is QueueFullError for error in errors)
        assert any("2 more of this account waited with it" in str(error) for error in errors)

    def test_no_slot_is_granted_after_the_deadline(self, emulator: Emulator) -> None:
        late = trigger(since=time.time() - 7200, end_time=time.time() - 3600)
        assert isinstance(error_in(asyncio.run(event(late))), QueueFullError)

    @pytest.mark.parametrize(("slot_rejected", "status"), [(True, "turn"), (False, "error")])
    def test_rejection_is_reported_to_the_queue(
        self, emulator: Emulator, slot_rejected: bool, status: str
    ) -> None:
        async def run() -> Any:
            async with shared_client(ModelScopeHook().account) as client:
                await event(trigger())  # takes the first slot
                with client.queue.track("42", submitted_at=time.time() - 20, usual_seconds=20):
                    await event(trigger())  # is granted the slot ahead
                    other = trigger(slot_rejected=slot_rejected, end_time=time.time() + 0.5)
                    queued = asyncio.create_task(event(other))
                    while len(client.queue) < 1:
                        await asyncio.sleep(0.01)
                return await queued  # gets the slot if it was given back

        assert asyncio.run(run())["status"] == status

    def test_no_event_and_no_argument_holds_the_token(self, emulator: Emulator) -> None:
        waits = trigger()
        assert TOKEN not in str(asyncio.run(event(waits))) + str(waits.serialize())


class TestTheTask:
    def deferred(self, task: Any, context: Context) -> Any:
        with pytest.raises(TaskDeferred) as raised:
            task.execute(context)
        assert raised.value.method_name == "execute_queued"
        return raised.value

    def resume(self, task: Any, deferral: Any, context: Context, **changed: Any) -> Any:
        _, kwargs = deferral.trigger.serialize()
        again = ModelScopeQueueTrigger(**{**kwargs, "min_deferral_seconds": 0.0, **changed})
        told = asyncio.run(event(again))
        task.__dict__.pop("hook", None)  # a new process: what execute() kept is gone
        return task.resume_execution("execute_queued", {"event": told}, context)

    def test_a_full_queue_frees_the_worker_and_the_id_arrives_all_the_same(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("submit:queue-full")
        task = submitter()
        generation_id = self.resume(task, self.deferred(task, context), context)
        assert emulator.accepted == 1
        assert context["ti"].pushed["request"] == {
            **ASKED,
            "generation_id": generation_id,
            "submitted_at": context["ti"].pushed["request"]["submitted_at"],
        }

    def test_one_step_waits_in_line_then_for_its_image(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:429")
        arguments = {**ASKED, "destination": f"file://{tmp_path}/", "deferrable": True}
        task = ModelScopeImageGenerationOperator(task_id="draw", **arguments)
        [uri] = self.resume(task, self.deferred(task, context), context)
        assert uri.startswith(f"file://{tmp_path}/")
        assert context["ti"].pushed["images"][0]["model"] == "Qwen/Qwen-Image"

    def test_it_waits_for_room_as_long_as_its_queue_timeout_and_its_execution_timeout_allow(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("submit:queue-full:always")
        kwargs = self.deferred(submitter(queue_timeout=100), context).trigger.serialize()[1]
        assert kwargs["end_time"] == pytest.approx(kwargs["since"] + 100)
        with pytest.raises(QueueFullError):
            submitter(queue_timeout=0).execute(context)
        with pytest.raises(QueueFullError):
            submitter(queue_timeout=0, deferrable=False).execute(context)

    def test_its_place_in_line_is_kept_where_it_finds_no_room(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deferral, "STAND_BY", 0.0)
        emulator.fail("submit:queue-full:2")
        task = submitter()
        first = self.deferred(task, context)
        with pytest.raises(TaskDeferred) as raised:  # the worker is refused once more
            self.resume(task, first, context)
        kept = {**first.trigger.serialize()[1], "slot_rejected": True}
        assert raised.value.trigger.serialize()[1] == kept
        assert self.resume(task, raised.value, context)

    def test_one_whose_turn_came_early_stands_by_on_its_worker(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backoff, "QUEUE_PAUSE", 0.0)
        emulator.fail("submit:queue-full:4")
        task = submitter()
        assert self.resume(task, self.deferred(task, context), context)
        assert (len(submissions(emulator)), emulator.accepted) == (5, 1)

    def test_a_service_that_is_gone_when_the_turn_comes_is_waited_for(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deferral, "STAND_BY", 0.0)
        emulator.fail("submit:queue-full")
        task = submitter()
        deferral_ = self.deferred(task, context)
        connect(monkeypatch, "http://127.0.0.1:9")  # nobody listens to the discard port
        with pytest.raises(TaskDeferred):
            self.resume(task, deferral_, context)

    def test_what_is_private_is_kept_nowhere_and_sent_whole(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("submit:queue-full")
        pictures = ["https://bucket.example/cat.png?Signature=s3cret", "data:image/png;base64,iVBORw0KGgo="]
        task = submitter(image_url=pictures, model="Qwen/Qwen-Image-Edit")
        deferral_ = self.deferred(task, context)
        self.resume(task, deferral_, context)
        assert submissions(emulator)[-1].json["image_url"] == pictures
        kept = context["ti"].pushed["request"]
        assert kept["image_url"][0] == "https://bucket.example/cat.png?..."
        assert "s3cret" not in json.dumps([deferral_.trigger.serialize(), kept])

    @pytest.mark.parametrize("fault", ["lost", "reset", "500", "no-id", "html"])
    def test_what_may_have_been_charged_is_not_sent_again(
        self, emulator: Emulator, context: Context, fault: str
    ) -> None:
        emulator.fail("submit:queue-full")
        task = submitter()
        deferral_ = self.deferred(task, context)
        emulator.fail(f"submit:{fault}")
        with pytest.raises(SubmissionLostError, match="was not sent again"):
            self.resume(task, deferral_, context)
        assert len(submissions(emulator)) == 2

    @pytest.mark.parametrize("fault", ["401", "quota", "balance", "unknown-model", "unbound"])
    def test_what_waiting_does_not_help_ends_it(
        self, emulator: Emulator, context: Context, fault: str
    ) -> None:
        emulator.fail("submit:queue-full")
        task = submitter()
        deferral_ = self.deferred(task, context)
        emulator.fail(f"submit:{fault}:always")
        with pytest.raises(ModelScopeFinalError):
            self.resume(task, deferral_, context)

    @pytest.mark.parametrize("told", [None, {}, {"status": "submitted"}, {"status": "turn"}, "turn"], ids=str)
    def test_an_event_of_an_unknown_shape_never_passes_for_success(self, told: Any, context: Context) -> None:
        with pytest.raises(ModelScopeFinalError, match="not understood"):
            submitter().execute_queued(context, told)
