"""``@task.modelscope_image``: the image of what a function returns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.decorators.image_generation import modelscope_image_task
from airflow_provider_modelscope.exceptions import (
    ImageGoneError,
    ImageUnavailableError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeFinalError,
)
from tests.unit.builders import resume, submissions
from tests.unit.conftest import TaskInstance
from tests.unit.tasks.conftest import TaskStateStore

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")


def drawing(function: Callable[..., Any], folder: Path, *arguments: Any, **options: Any) -> Any:
    """Return the task that the decorator makes of a function."""
    given: dict[str, Any] = {
        "task_id": "draw",
        "model": "Qwen/Qwen-Image",
        "size": "64x64",
        "destination": f"file://{folder}/",
        **options,
    }
    with DAG("a_dag", schedule=None):
        drawn: Any = modelscope_image_task(function, **given)(*arguments)
    return drawn.operator


def execute(task: Any, context: Any) -> Any:
    task.render_template_fields(context)
    return task.execute(context)


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance(), "params": {"animal": "cat"}, "ds": "2026-11-25"}


class TestReturned:
    def test_a_prompt_is_submitted(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        def draw(animal: str) -> str:
            return f"A {animal}"

        [uri] = execute(drawing(draw, tmp_path, "cat", seed=5), context)
        assert uri.startswith(f"file://{tmp_path}/")
        assert submissions(emulator)[0].json == {
            "model": "Qwen/Qwen-Image", "prompt": "A cat", "size": "64x64", "seed": 5,
        }  # fmt: skip

    def test_keyword_arguments_reach_the_function(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        with DAG("a_dag", schedule=None):

            @modelscope_image_task(model="a/b", destination=f"file://{tmp_path}/")
            def draw(animal: str) -> str:
                return f"A {animal}"

            drawn: Any = draw(animal="{{ params.animal }}")
        execute(drawn.operator, context)
        assert submissions(emulator)[0].json["prompt"] == "A cat"

    def test_a_mapping_of_parameters_takes_precedence(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw() -> dict[str, Any]:
            return {"prompt": "A dog", "model": "a/b", "seed": 7}

        execute(drawing(draw, tmp_path, seed=5, prompt="A cat"), context)
        assert submissions(emulator)[0].json == {
            "model": "a/b", "prompt": "A dog", "size": "64x64", "seed": 7,
        }  # fmt: skip

    def test_the_result_is_not_rendered(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        hostile = "{{ 7 * 7 }} {% for x in [] %} {{ var.value.secret }}"
        execute(drawing(lambda: hostile, tmp_path), context)
        assert submissions(emulator)[0].json["prompt"] == hostile
        assert context["ti"].pushed["images"][0]["parameters"]["prompt"] == hostile

    def test_arguments_of_the_decorator_are_rendered(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw(animal: str) -> str:
            return f"A {animal}"

        given = {"negative_prompt": "{{ ds }}", "destination": f"file://{tmp_path}/{{{{ ds }}}}/"}
        [uri] = execute(drawing(draw, tmp_path, "{{ params.animal }}", **given), context)
        assert uri.startswith(f"file://{tmp_path}/2026-11-25/")
        assert submissions(emulator)[0].json["prompt"] == "A cat"
        assert submissions(emulator)[0].json["negative_prompt"] == "2026-11-25"

    def test_a_function_gets_the_context(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        def draw(ds: str | None = None) -> str:
            return f"A cat on {ds}"

        execute(drawing(draw, tmp_path), context)
        assert submissions(emulator)[0].json["prompt"] == "A cat on 2026-11-25"

    def test_a_mapping_as_type_hint_does_not_split_the_uris(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw() -> dict[str, Any]:
            return {"prompt": "A cat"}

        assert drawing(draw, tmp_path).multiple_outputs is False

    def test_multiple_outputs_is_refused_at_construction(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequestError, match="multiple_outputs = True: must be False"):
            drawing(lambda: "A cat", tmp_path, multiple_outputs=True)

    @pytest.mark.parametrize(
        ("returned", "error"),
        [
            (None, "function result = None: must be a prompt, or a mapping of model, prompt"),
            (5, "function result = 5"),
            (["A cat"], "function result = .'A cat'.: must be a prompt"),
            ("", "prompt = '': must describe the image"),
            ({}, "prompt = .*: must be text"),
            (
                {"promt": "A cat"},
                "function result contains 'promt': must only contain model, prompt, negative_prompt",
            ),
            ({"prompt": "A cat", "destination": "file:///"}, "function result contains 'destination'"),
            ({"prompt": "A cat", "steps": 0}, "steps = 0"),
            ({5: "A cat"}, "function result contains 5: "),
        ],
        ids=str,
    )
    def test_an_invalid_result_fails_the_task_and_sends_nothing(
        self, emulator: Emulator, context: Any, tmp_path: Path, returned: Any, error: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=error):
            execute(drawing(lambda: returned, tmp_path), context)
        assert not emulator.requests

    def test_a_missing_model_is_named(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        destination = f"file://{tmp_path}/"
        drawn: Any = modelscope_image_task(lambda: "A cat", task_id="draw", destination=destination)()
        with pytest.raises(InvalidRequestError, match="model = None: must be text"):
            execute(drawn.operator, context)


class TestDeferred:
    @pytest.fixture
    def calls(self) -> list[int]:
        return []

    @pytest.fixture
    def function(self, calls: list[int]) -> Callable[[], str]:
        def draw() -> str:
            calls.append(1)
            return f"Cat number {len(calls)}: {{{{ ds }}}}"

        return draw

    def test_the_function_is_called_once_and_its_result_kept(
        self,
        emulator: Emulator,
        context: Any,
        tmp_path: Path,
        function: Callable[[], str],
        calls: list[int],
    ) -> None:
        emulator.fail("submit:queue-full")
        with pytest.raises(TaskDeferred) as deferred:
            execute(drawing(function, tmp_path, deferrable=True), context)
        assert deferred.value.method_name == "execute_queued"
        again = drawing(function, tmp_path, deferrable=True)  # another process
        again.render_template_fields(context)
        [uri] = resume(again, deferred.value, context)
        assert uri.startswith("file://")
        sent = [request.json["prompt"] for request in emulator.requests if request.json]
        assert sent == ["Cat number 1: {{ ds }}"] * 2
        assert calls == [1]
        assert context["ti"].pushed["images"][0]["parameters"]["prompt"] == "Cat number 1: {{ ds }}"

    def test_a_parameter_that_the_function_removed_stays_removed(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        given = {"size": "64x64", "negative_prompt": "blurry", "seed": 42, "loras": "a/b"}

        def draw() -> dict[str, Any]:
            return {"prompt": "A cat", **dict.fromkeys(given)}

        emulator.fail("submit:queue-full")
        with pytest.raises(TaskDeferred) as deferred:
            execute(drawing(draw, tmp_path, deferrable=True, **given), context)
        resume(drawing(draw, tmp_path, deferrable=True, **given), deferred.value, context)
        sent = [request.json for request in emulator.requests if request.json]
        assert sent == [{"model": "Qwen/Qwen-Image", "prompt": "A cat"}] * 2

    def test_images_that_are_gone_are_replaced_by_the_same_request(
        self, emulator: Emulator, tmp_path: Path, function: Callable[[], str], calls: list[int]
    ) -> None:
        store, given = TaskStateStore(), {"deferrable": True, "defer_after": 0}
        emulator.fail("image:404:4")
        with pytest.raises(ImageGoneError):
            execute(drawing(lambda: "A cat", tmp_path, **given), store.attempt())
        emulator.fail("poll:no-images:2")
        context = store.attempt()
        with pytest.raises(TaskDeferred) as deferred:
            execute(drawing(lambda: "A cat", tmp_path, **given), context)
        assert resume(drawing(function, tmp_path, **given), deferred.value, context)
        sent = [request.json["prompt"] for request in emulator.requests if request.json]
        assert (sent, calls) == (["A cat"] * 2, [])

    def test_a_foreign_event_sends_nothing(
        self, emulator: Emulator, context: Any, tmp_path: Path, function: Callable[[], str]
    ) -> None:
        again = drawing(function, tmp_path, deferrable=True)
        event = {"status": "slot_free", "queued_at": 1.0, "end_time": 2.0**40, "granted_at": 1.0}
        with pytest.raises(ModelScopeFinalError, match="Unexpected trigger event"):
            again.resume_execution("execute_queued", {"event": event}, context)
        assert not emulator.requests

    @pytest.mark.parametrize(
        "private",
        [
            {"image_url": "https://images.example/a.png?Signature=secret"},
            {"image_url": [f"data:image/png;base64,{'A' * 1000}"]},
            {"extra_parameters": {"mask": "https://user:secret@images.example/a.png"}},
        ],
        ids=str,
    )
    def test_private_results_are_not_kept_but_wait_on_the_worker(
        self, emulator: Emulator, context: Any, tmp_path: Path, private: dict[str, Any]
    ) -> None:
        emulator.fail("submit:queue-full")
        task = drawing(lambda: {"prompt": "A cat", **private}, tmp_path, deferrable=True)
        assert execute(task, context)
        kept = json.dumps(context["ti"].pushed)
        assert not re.search("Signature|user:secret|A{400}", kept)

    def test_a_secret_of_the_decorator_does_not_prevent_deferring(
        self, emulator: Emulator, context: Any, tmp_path: Path, function: Callable[[], str]
    ) -> None:
        emulator.fail("submit:queue-full")
        given = {"deferrable": True, "image_url": "https://images.example/a.png?Signature=secret"}
        with pytest.raises(TaskDeferred) as deferred:
            execute(drawing(function, tmp_path, **given), context)
        assert "Signature" not in json.dumps(deferred.value.trigger.serialize())
        assert resume(drawing(function, tmp_path, **given), deferred.value, context)
        assert emulator.requests[-4].json["image_url"] == given["image_url"]


class TestShown:
    """What Airflow stores of the template fields after each part of the task."""

    SECRETS = {
        "image_url": ["https://images.example/a.png?Signature=secret", f"data:image/png;base64,{'A' * 1000}"],
        "extra_parameters": {"mask": "https://user:secret@images.example/a.png"},
    }

    def shown(self, task: Any) -> str:
        fields = {name: str(getattr(task, name)) for name in task.template_fields}
        return json.dumps(fields)

    def draw(self) -> dict[str, Any]:
        return {"prompt": "A cat", **self.SECRETS}

    @pytest.mark.parametrize("fault", [None, "submit:401", "poll:failed", "image:404:always"], ids=str)
    def test_no_secret_is_left_at_any_end(
        self, emulator: Emulator, context: Any, tmp_path: Path, fault: str | None
    ) -> None:
        if fault:
            emulator.fail(fault)
        task = drawing(self.draw, tmp_path, seed=5)
        with nullcontext() if fault is None else pytest.raises(ModelScopeError):
            execute(task, context)
        assert "https://images.example/a.png?..." in self.shown(task)
        assert not re.search("Signature|user:secret|A{400}", self.shown(task))
        assert (task.model, task.prompt, task.seed) == ("Qwen/Qwen-Image", "A cat", 5)

    def test_no_secret_of_an_invalid_request_is_left(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        task = drawing(lambda: {**self.draw(), "steps": 0}, tmp_path)
        with pytest.raises(InvalidRequestError, match="steps = 0"):
            execute(task, context)
        assert not re.search("Signature|user:secret|A{400}", self.shown(task))

    @pytest.mark.parametrize("fault", [None, "image:404:always"], ids=str)
    def test_no_secret_is_left_after_a_deferral(
        self, emulator: Emulator, context: Any, tmp_path: Path, fault: str | None
    ) -> None:
        for wait in ("submit:queue-full", "poll:no-images"):
            emulator.fail(wait)
        if fault:
            emulator.fail(fault)
        given = {"deferrable": True, "defer_after": 0, **self.SECRETS}
        task = drawing(lambda: "A cat", tmp_path, **given)
        part: Callable[[], Any] = partial(execute, task, context)
        for _ in range(2):
            with pytest.raises(TaskDeferred) as deferred:
                part()
            assert not re.search("Signature|user:secret|A{400}", self.shown(task))
            task = drawing(lambda: "A cat", tmp_path, **given)
            part = partial(resume, task, deferred.value, context)
        with nullcontext() if fault is None else pytest.raises(ImageUnavailableError):
            part()
        assert not re.search("Signature|user:secret|A{400}", self.shown(task))


def test_it_maps() -> None:
    with DAG("a_dag", schedule=None) as dag:

        @modelscope_image_task(model="a/b", destination="file:///tmp/")
        def draw(animal: str) -> str:
            return f"A {animal}"

        draw.expand(animal=["cat", "dog"])
    assert dag.task_ids == ["draw"]


def test_default_arguments_fill_in_missing_arguments() -> None:
    default_args = {"model": "a/b", "destination": "file:///tmp/", "steps": 7, "sidecar": True}
    with DAG("a_dag", schedule=None, default_args=default_args):

        @modelscope_image_task(sidecar=False)
        def draw() -> str:
            return "A cat"

        task = draw().operator  # type: ignore[attr-defined]
    assert (task.model, task.destination, task.steps, task.sidecar) == ("a/b", "file:///tmp/", 7, False)
