"""A full queue is a place in line: nothing fails, nobody holds a worker, first come, first served."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_modelscope import waiting
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    ModelScopeFinalError,
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.triggers import line as line_module
from airflow_provider_modelscope.triggers import submission
from airflow_provider_modelscope.triggers.line import Line
from airflow_provider_modelscope.triggers.submission import ModelScopeSubmissionTrigger
from airflow_provider_modelscope.waiting import MAX_QUEUE_PAUSE, MAX_RETRY_AFTER, QueueWait
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

Context = Any
NOW = 1_700_000_000.0
ASKED: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "A cat", "size": "64x64"}
FULL = QueueFullError("enqueue failed: user queue is full.", code=500)


def submitter(**parameters: Any) -> ModelScopeSubmitImageGenerationOperator:
    arguments = {**ASKED, "deferrable": True, **parameters}
    return ModelScopeSubmitImageGenerationOperator(task_id="submit", **arguments)


def trigger(prompt: str = "A cat", **kwargs: Any) -> ModelScopeSubmissionTrigger:
    arguments: dict[str, Any] = {
        "request": {**ASKED, "prompt": prompt},
        "since": time.time(),
        "modelscope_conn_id": "modelscope_default",
        "end_time": time.time() + 60,
        "settling_seconds": 0.0,
    }
    return ModelScopeSubmissionTrigger(**{**arguments, **kwargs})


async def event(of: ModelScopeSubmissionTrigger) -> Any:
    [event] = [event.payload async for event in of.run()]
    return json.loads(json.dumps(event))  # as the database holds it


def error_in(event: Any) -> ModelScopeError:
    assert event["status"] == "error"
    return ModelScopeError.from_json(event["error"])


def submissions(emulator: Emulator) -> list[Any]:
    return [exchange for exchange in emulator.requests if exchange.method == "POST"]


class TestTheWaitForRoom:
    def queue(self, *, seconds: float = 3600, refused: bool = True) -> QueueWait:
        return QueueWait(since=NOW, end_time=NOW + seconds, refused=refused)

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


class TestTheLine:
    def test_first_come_first_served_whoever_arrives_in_between(self) -> None:
        served: list[float] = []

        async def stand(line: Line, since: float) -> None:
            with line.place(since) as place:
                while place.ahead:
                    await place.wait(60)
                served.append(since)
                await asyncio.sleep(0)

        async def all_stand() -> None:
            line = Line()
            await asyncio.gather(*(stand(line, since) for since in (1.0, 5.0, 3.0, 4.0, 2.0)))
            assert not len(line)

        asyncio.run(all_stand())
        assert served == [1, 2, 3, 4, 5]

    def test_one_that_leaves_lets_the_next_forward_also_when_it_is_cancelled(self) -> None:
        async def leave() -> None:
            line = Line()
            with line.place(2.0) as second:

                async def first() -> None:
                    with line.place(1.0):
                        await asyncio.sleep(3600)

                task = asyncio.create_task(first())
                await asyncio.sleep(0)
                assert second.ahead == 1
                task.cancel()
                await second.wait(60)
                assert second.ahead == 0

        asyncio.run(leave())

    def test_only_the_first_to_leave_calls_the_next(self) -> None:
        async def leave() -> None:
            line = Line()
            with line.place(1.0) as first:
                with line.place(2.0):
                    pass
                assert not first.called.is_set()

        asyncio.run(leave())

    def test_a_call_that_comes_before_the_wait_counts_once(self) -> None:
        async def call() -> None:
            line = Line()
            with line.place(1.0) as place:
                line.call()
                await place.wait(3600)
                waited_from = time.monotonic()
                await place.wait(0.05)
                assert time.monotonic() - waited_from >= 0.04

        asyncio.run(call())


class TestTheTrigger:
    def test_serializing_and_building_again_loses_nothing(self) -> None:
        arguments: dict[str, Any] = {
            "request": {**ASKED, "loras": {"a/b": 0.5, "c/d": 0.5}},
            "since": 3.5,
            "modelscope_conn_id": "other",
            "end_time": 12.25,
            "settling_seconds": 0.5,
        }
        path, serialized = ModelScopeSubmissionTrigger(**arguments).serialize()
        assert path == "airflow_provider_modelscope.triggers.submission.ModelScopeSubmissionTrigger"
        assert json.loads(json.dumps(serialized)) == arguments
        assert ModelScopeSubmissionTrigger(**serialized).serialize() == (path, arguments)

    def test_it_submits_by_itself_and_tells_all_that_is_to_be_recorded(self, emulator: Emulator) -> None:
        before = time.time()
        told = asyncio.run(event(trigger("一只猫")))
        [sent] = submissions(emulator)
        assert sent.json == {**ASKED, "prompt": "一只猫"}
        assert before <= told.pop("submitted_at") <= time.time()
        assert told == {"status": "submitted", "generation_id": sent.generation_id, "request": sent.json}

    @pytest.mark.parametrize("fault", ["queue-full", "429"])
    def test_a_refusal_is_tried_again_and_a_generation_paid_for_once(
        self, emulator: Emulator, fault: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "QUEUE_PAUSE", 0.0)
        monkeypatch.setattr(waiting, "QUIET_AFTER_429", 0.0)
        emulator.fail(f"submit:{fault}:3")
        assert asyncio.run(event(trigger()))["status"] == "submitted"
        assert (len(submissions(emulator)), emulator.accepted) == (4, 1)

    def test_nothing_is_submitted_while_the_task_settles_in_its_deferral(self, emulator: Emulator) -> None:
        begun = time.monotonic()
        asyncio.run(event(trigger(settling_seconds=0.3)))
        assert emulator.accepted == 1
        assert time.monotonic() - begun >= 0.3

    def test_all_get_their_turn_in_the_order_in_which_they_came(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The end of a generation calls the next: nobody is helped by a pause that passes.
        monkeypatch.setattr(waiting, "QUEUE_PAUSE", 3600.0)
        monkeypatch.setattr(waiting, "MAX_QUEUE_PAUSE", 3600.0)

        async def all_of_them() -> list[Any]:
            now = time.time()
            return await asyncio.gather(*(event(trigger(str(n), since=now + n)) for n in (2, 0, 1)))

        with Emulator(seconds=0.2, user_queue=1) as emulator:
            connect(monkeypatch, emulator.base_url)
            told = asyncio.run(all_of_them())
        accepted = [one.json["prompt"] for one in submissions(emulator) if one.status == 200]
        assert accepted == ["0", "1", "2"]
        assert sorted(one["request"]["prompt"] for one in told) == accepted

    def test_at_the_deadline_it_says_how_many_waited(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emulator.fail("submit:queue-full:always")
        monkeypatch.setattr(waiting, "QUEUE_PAUSE", 0.01)

        async def three() -> list[Any]:
            end_time = time.time() + 0.3
            return await asyncio.gather(*(event(trigger(end_time=end_time)) for _ in range(3)))

        errors = [error_in(one) for one in asyncio.run(three())]
        assert all(type(error) is QueueFullError for error in errors)
        assert any("2 more of this account waited with it" in str(error) for error in errors)
        assert any("tasks waited before this one" in str(error) for error in errors)
        assert emulator.accepted == 0

    @pytest.mark.parametrize("fault", ["lost", "reset", "500", "no-id", "html"])
    def test_what_may_have_been_charged_is_not_sent_again(self, emulator: Emulator, fault: str) -> None:
        emulator.fail(f"submit:{fault}")
        assert isinstance(error_in(asyncio.run(event(trigger()))), SubmissionLostError)
        assert len(submissions(emulator)) == 1

    @pytest.mark.parametrize("fault", ["401", "quota", "balance", "unknown-model", "unbound"])
    def test_what_waiting_does_not_help_ends_it(self, emulator: Emulator, fault: str) -> None:
        emulator.fail(f"submit:{fault}:always")
        assert isinstance(error_in(asyncio.run(event(trigger()))), ModelScopeFinalError)

    def test_a_service_that_cannot_be_reached_is_waited_for_until_the_deadline(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "QUEUE_PAUSE", 0.01)
        connect(monkeypatch, "http://127.0.0.1:9")  # nobody listens to the discard port
        error = error_in(asyncio.run(event(trigger(end_time=time.time() + 0.2))))
        assert type(error) is ServiceUnreachableError

    def test_pictures_go_back_to_the_worker_and_nobody_takes_the_room_meanwhile(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submission, "HAND_BACK_PAUSE", 0.01)
        monkeypatch.setattr(line_module, "HOLD_SECONDS", 0.3)

        async def both() -> tuple[Any, float]:
            now = time.time()
            pictures = trigger(request=None, since=now - 2)
            room, _ = await asyncio.gather(event(pictures), event(trigger(since=now - 1)))
            assert room == {"status": "room", "since": now - 2, "end_time": pictures.end_time}
            return now, time.time()

        begun, ended = asyncio.run(both())
        assert ended - begun >= 0.3
        assert emulator.accepted == 1

    def test_a_line_that_nobody_watched_for_hours_submits_nothing(self, emulator: Emulator) -> None:
        late = trigger(since=time.time() - 7200, end_time=time.time() - 3600)
        assert isinstance(error_in(asyncio.run(event(late))), QueueFullError)
        assert not submissions(emulator)

    def test_no_event_and_no_argument_holds_the_token(self, emulator: Emulator) -> None:
        emulator.fail("submit:403")
        waiting = trigger()
        assert TOKEN not in str(asyncio.run(event(waiting))) + str(waiting.serialize())


class TestTheTask:
    def deferred(self, task: Any, context: Context) -> Any:
        with pytest.raises(TaskDeferred) as raised:
            task.execute(context)
        assert raised.value.method_name == "execute_queued"
        return raised.value

    def resume(self, task: Any, deferral: Any, context: Context, **changed: Any) -> Any:
        _, kwargs = deferral.trigger.serialize()
        again = ModelScopeSubmissionTrigger(**{**kwargs, "settling_seconds": 0.0, **changed})
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

    def test_pictures_are_not_kept_in_the_database_and_its_place_in_line_is_kept(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submission, "HAND_BACK_PAUSE", 0.0)
        emulator.fail("submit:queue-full:2")
        task = submitter(image_url="data:image/png;base64,iVBORw0KGgo=", model="Qwen/Qwen-Image-Edit")
        first = self.deferred(task, context)
        assert first.trigger.serialize()[1]["request"] is None
        with pytest.raises(TaskDeferred) as raised:  # the worker is refused once more
            self.resume(task, first, context)
        assert raised.value.trigger.serialize() == first.trigger.serialize()
        assert self.resume(task, raised.value, context)
        assert submissions(emulator)[-1].json["image_url"].startswith("data:image/png")

    @pytest.mark.parametrize(
        "parameters",
        [
            {"loras": {"a/b": 0.25, "c/d": "0.75"}, "guidance": "7.5", "steps": "30", "seed": 0},
            {"extra_parameters": {"sampler": "Euler a", "nested": {"a": [1, None]}}, "negative_prompt": "雾"},
            {"image_url": ["https://images.example/" + "a" * 500 + ".png", "http://images.example/b.png"]},
        ],
        ids=["numbers", "extra", "long URLs"],
    )
    def test_the_triggerer_sends_what_the_worker_would(
        self, emulator: Emulator, context: Context, parameters: dict[str, Any]
    ) -> None:
        emulator.fail("submit:queue-full")
        task = submitter(**parameters)
        self.resume(task, self.deferred(task, context), context)
        refused, accepted = submissions(emulator)
        assert accepted.json == refused.json

    def test_a_signed_url_is_kept_nowhere_and_sent_by_the_worker(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submission, "HAND_BACK_PAUSE", 0.0)
        emulator.fail("submit:queue-full")
        task = submitter(image_url="https://bucket.example/cat.png?Signature=s3cret")
        deferral = self.deferred(task, context)
        self.resume(task, deferral, context)
        assert submissions(emulator)[-1].json["image_url"].endswith("?Signature=s3cret")
        kept = context["ti"].pushed["request"]
        assert kept["image_url"] == "https://bucket.example/cat.png?..."
        assert "s3cret" not in json.dumps([deferral.trigger.serialize(), kept])

    def test_an_error_in_the_triggerer_is_the_tasks_error(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:queue-full")
        task = submitter()
        deferral = self.deferred(task, context)
        emulator.fail("submit:lost")
        with pytest.raises(SubmissionLostError, match="was not sent again"):
            self.resume(task, deferral, context)

    @pytest.mark.parametrize(
        "told", [None, {}, {"status": "submitted"}, {"status": "room"}, "submitted"], ids=str
    )
    def test_an_event_of_an_unknown_shape_never_passes_for_success(self, told: Any, context: Context) -> None:
        with pytest.raises(ModelScopeFinalError, match="not understood"):
            submitter().execute_queued(context, told)
