"""A deferred task resumes as it was when it deferred: the same request, the same place, the same attempt."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.exceptions import GenerationFailedError, ModelScopeRetryableError
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from tests.unit.builders import Context, one_step, resume, sensor, submitter
from tests.unit.conftest import TaskInstance, connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")

SIGNED = "https://images.example/a.png?Signature="
CHANGED: dict[str, Any] = {
    "model": "a/other",
    "prompt": "A dog",
    "negative_prompt": None,
    "size": None,
    "seed": None,
    "steps": 7,
    "guidance": None,
    "image_url": None,
    "loras": {"a/b": 0.5, "c/d": 0.5},
    "extra_parameters": {"sampler": "Euler a"},
    "fallback_models": [{"model": "c/another", "steps": 9}],
    "modelscope_conn_id": "another",
    "queue_timeout": 99.5,
    "durable": False,
    "on_lost_response": "fail",
    "max_credit": None,
    "on_exhausted": "wait",
    "exhausted_timeout": 77.5,
}
CHANGED_IN_ONE_STEP = {
    **CHANGED,
    "poll_interval": 1.5,
    "timeout": 55,
    "defer_after": 0,
    "sidecar": True,
    "embed_metadata": True,
}
GIVEN: dict[str, Any] = {
    "task_id": "draw",
    "model": "a/b",
    "prompt": "A cat",
    "negative_prompt": "blurry",
    "size": "64x64",
    "seed": 42,
    "guidance": 3,
    "image_url": SIGNED,
    "loras": "a/b",
    "deferrable": True,
}


class ChangingSubmitter(ModelScopeSubmitImageGenerationOperator):
    changes: dict[str, Any] = CHANGED

    def execute(self, context: Context) -> Any:
        vars(self).update(self.changes)
        return super().execute(context)


class ChangingOneStep(ModelScopeImageGenerationOperator):
    changes: dict[str, Any] = CHANGED_IN_ONE_STEP

    def execute(self, context: Context) -> Any:
        vars(self).update(self.changes)
        return super().execute(context)


def deferred(task: Any, context: Context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


def sent(emulator: Emulator) -> list[Any]:
    return [request.json for request in emulator.requests if request.method == "POST"]


class TestSubclass:
    @pytest.mark.parametrize("kind", ["submit", "one step"])
    def test_every_change_in_execute_outlasts_a_deferral(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
    ) -> None:
        connect(monkeypatch, emulator.base_url, "another")
        emulator.fail("submit:queue-full")
        other = f"file://{tmp_path}/other/"
        make: Callable[[], Any] = partial(ChangingSubmitter, **GIVEN)
        if kind == "one step":
            ChangingOneStep.changes["destination"] = other
            make = partial(ChangingOneStep, destination=f"file://{tmp_path}/", **GIVEN)
        deferral = deferred(make(), context)
        task = make()
        result = resume(task, deferral, context)
        first, second = sent(emulator)
        assert first == second
        assert (second["prompt"], "negative_prompt" in second, "seed" in second) == ("A dog", False, False)
        assert {name: getattr(task, name) for name in task.changes} == task.changes
        assert kind == "submit" or result[0].startswith(other)

    @pytest.mark.parametrize(
        "image", [f"{SIGNED}secret".replace("a.png", "b.png"), f"data:image/png;base64,{'A' * 999}B"]
    )
    def test_a_change_that_is_not_stored_is_refused(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch, image: str
    ) -> None:
        monkeypatch.setattr(ChangingSubmitter, "changes", {"image_url": image})
        emulator.fail("submit:queue-full")
        given = {**GIVEN, "image_url": f"data:image/png;base64,{'A' * 999}A"}
        deferral = deferred(ChangingSubmitter(**given), context)
        with pytest.raises(
            ModelScopeRetryableError, match=r"^image_url was set in execute\(\) .*pre_execute"
        ):
            resume(ChangingSubmitter(**given), deferral, context)
        assert (len(sent(emulator)), emulator.accepted) == (1, 0)

    @pytest.mark.parametrize(
        "url",
        [
            "https://images.example/a.png?Signature={}&Expires={}&OSSAccessKeyId={}&security-token={}",
            "https://images.example/a.png?AWSAccessKeyId={}&x-id=GetObject&Signature={}&Expires={}",
            "https://images.example/a.png?X-Amz-Date={}&X-Amz-Signature={}&X-Amz-Security-Token={}&id=1",
            "https://images.example/a.png?X-Goog-Date={}&X-Goog-Signature={}",
            "https://images.example/a.png?sv={}&st={}&se={}&sr=b&sp=r&skoid={}&sktid={}&sig={}",
            "https://images.example/a.png?Policy={}&Key-Pair-Id={}&token={}",
        ],
    )
    def test_a_url_may_be_signed_again(self, emulator: Emulator, context: Context, url: str) -> None:
        emulator.fail("submit:queue-full")
        old, new = (url.replace("{}", when) for when in ("earlier", "later"))
        deferral = deferred(submitter(deferrable=True, image_url=old), context)
        assert "earlier" not in json.dumps(deferral.trigger.serialize())
        resume(submitter(deferrable=True, image_url=new), deferral, context)
        assert sent(emulator)[-1]["image_url"] == new

    @pytest.mark.parametrize("old", ["https://cdn.example/img?id=1", "https://cdn.example/1.png?Signature=a"])
    def test_a_url_of_another_image_is_refused(self, emulator: Emulator, context: Context, old: str) -> None:
        emulator.fail("submit:queue-full")
        deferral = deferred(submitter(deferrable=True, image_url=old), context)
        with pytest.raises(ModelScopeRetryableError, match="or its template gives another value each time"):
            resume(submitter(deferrable=True, image_url=old.replace("1", "2")), deferral, context)
        assert emulator.accepted == 0


class TestStaleEvent:
    """Airflow 3.0 resumes a retry with the event of the attempt that deferred."""

    def retry(self) -> Context:
        ti = TaskInstance()
        ti.try_number = 2
        return {"ti": ti}

    def test_a_retry_submits_again_after_a_failure(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("poll:no-images")
        make = partial(one_step, tmp_path, deferrable=True, defer_after=0)
        deferral = deferred(make(), context)
        emulator.fail("poll:failed")
        with pytest.raises(GenerationFailedError):
            resume(make(), deferral, context)
        assert resume(make(), deferral, self.retry())
        assert emulator.accepted == 2

    def test_a_retry_waits_in_the_queue_again(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:queue-full:2")
        deferral = deferred(submitter(deferrable=True), context)
        with pytest.raises(TaskDeferred) as again:
            resume(submitter(deferrable=True), deferral, self.retry())
        first, second = (one.trigger.serialize()[1] for one in (deferral, again.value))
        assert second["end_time"] > first["end_time"]
        assert second["deferred_task"]["attempt"] == 2

    def test_a_retry_of_the_sensor_polls_again(self, emulator: Emulator, context: Context) -> None:
        generation_id = submitter().execute(context)
        emulator.fail("poll:no-images")
        deferral = deferred(sensor(generation_id, deferrable=True, defer_after=0), context)
        emulator.fail("poll:401")
        task, ti = sensor(generation_id, deferrable=True), self.retry()
        assert resume(task, deferral, ti) == generation_id
