"""``@task.modelscope_image``: what a function returns is drawn, as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG

from airflow_provider_modelscope.decorators.image_generation import modelscope_image_task
from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeRetryableError
from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from tests.unit.conftest import TaskInstance

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")


def drawing(function: Callable[..., Any], folder: Path, *arguments: Any, **options: Any) -> Any:
    """Return the operator that the decorator makes of a function."""
    given = {
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
    def test_a_prompt_is_drawn(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        def draw(animal: str) -> str:
            return f"A {animal}"

        [uri] = execute(drawing(draw, tmp_path, "cat", seed=5), context)
        assert uri.startswith(f"file://{tmp_path}/")
        assert emulator.requests[0].json == {
            "model": "Qwen/Qwen-Image", "prompt": "A cat", "size": "64x64", "seed": 5,
        }  # fmt: skip

    def test_a_mapping_of_parameters_takes_precedence(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw() -> dict[str, Any]:
            return {"prompt": "A dog", "model": "a/b", "seed": 7}

        execute(drawing(draw, tmp_path, seed=5, prompt="A cat"), context)
        assert emulator.requests[0].json == {
            "model": "a/b", "prompt": "A dog", "size": "64x64", "seed": 7,
        }  # fmt: skip

    def test_no_jinja_runs_in_what_a_function_returns(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        hostile = "{{ 7 * 7 }} {% for x in [] %} {{ var.value.secret }}"
        execute(drawing(lambda: hostile, tmp_path), context)
        assert emulator.requests[0].json["prompt"] == hostile
        assert context["ti"].pushed["images"][0]["parameters"]["prompt"] == hostile

    def test_what_the_dag_itself_says_is_a_template(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw(animal: str) -> str:
            return f"A {animal}"

        given = {"negative_prompt": "{{ ds }}", "destination": f"file://{tmp_path}/{{{{ ds }}}}/"}
        [uri] = execute(drawing(draw, tmp_path, "{{ params.animal }}", **given), context)
        assert uri.startswith(f"file://{tmp_path}/2026-11-25/")
        assert emulator.requests[0].json["prompt"] == "A cat"
        assert emulator.requests[0].json["negative_prompt"] == "2026-11-25"

    def test_a_function_may_ask_for_what_airflow_knows(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw(ds: str | None = None) -> str:
            return f"A cat on {ds}"

        execute(drawing(draw, tmp_path), context)
        assert emulator.requests[0].json["prompt"] == "A cat on 2026-11-25"

    def test_a_hint_of_a_mapping_does_not_make_the_uris_one(
        self, emulator: Emulator, context: Any, tmp_path: Path
    ) -> None:
        def draw() -> dict[str, Any]:
            return {"prompt": "A cat"}

        assert drawing(draw, tmp_path).multiple_outputs is False

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            (None, "The function returned None: it must return a prompt, or a mapping"),
            (5, "The function returned 5"),
            (["A cat"], "The function returned .'A cat'.: it must return a prompt"),
            ("", "prompt = '': must describe the image"),
            ({}, "prompt = .*: must be text"),
            (
                {"promt": "A cat"},
                "returned 'promt' as a parameter: it may return model, prompt, negative_prompt",
            ),
            ({"prompt": "A cat", "destination": "file:///"}, "returned 'destination' as a parameter"),
            ({"prompt": "A cat", "steps": 0}, "steps = 0"),
            ({5: "A cat"}, "returned 5 as a parameter"),
        ],
        ids=str,
    )
    def test_what_is_wrong_ends_the_task_and_sends_nothing(
        self, emulator: Emulator, context: Any, tmp_path: Path, returned: Any, said: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=said):
            execute(drawing(lambda: returned, tmp_path), context)
        assert not emulator.requests

    def test_without_a_model_it_says_so(self, emulator: Emulator, context: Any, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequestError, match="model = None: must be text"):
            execute(drawing(lambda: "A cat", tmp_path, model=None), context)


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

    def test_the_function_is_called_once_and_its_prompt_outlives_the_wait_for_room(
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
        event = {"status": "turn", "since": 1.0, "end_time": 2.0**40}
        [uri] = again.resume_execution("execute_queued", {"event": event}, context)
        assert uri.startswith("file://")
        sent = [request.json["prompt"] for request in emulator.requests if request.json]
        assert sent == ["Cat number 1: {{ ds }}"] * 2
        assert calls == [1]
        assert context["ti"].pushed["images"][0]["parameters"]["prompt"] == "Cat number 1: {{ ds }}"

    def test_where_what_it_had_returned_is_gone_a_retry_calls_it_again(
        self, emulator: Emulator, context: Any, tmp_path: Path, function: Callable[[], str]
    ) -> None:
        again = drawing(function, tmp_path, deferrable=True)
        event = {"status": "turn", "since": 1.0, "end_time": 2.0**40}
        with pytest.raises(ModelScopeRetryableError, match="is gone with XCom 'modelscope_parameters'"):
            again.resume_execution("execute_queued", {"event": event}, context)
        assert not emulator.requests

    def test_where_it_cannot_be_kept_nothing_is_paid_for(
        self, emulator: Emulator, tmp_path: Path, function: Callable[[], str]
    ) -> None:
        class Failing(TaskInstance):
            def xcom_push(self, key: str, value: Any) -> None:
                if key == "modelscope_parameters":
                    raise OSError("no room")

        with pytest.raises(OSError, match="no room"):
            execute(drawing(function, tmp_path, deferrable=True), {"ti": Failing()})
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
    def test_what_is_private_is_not_kept_and_waits_on_the_worker(
        self, emulator: Emulator, context: Any, tmp_path: Path, private: dict[str, Any]
    ) -> None:
        emulator.fail("submit:queue-full")
        task = drawing(lambda: {"prompt": "A cat", **private}, tmp_path, deferrable=True)
        assert execute(task, context)
        kept = json.dumps(context["ti"].pushed)
        assert "modelscope_parameters" not in kept
        assert not re.search("Signature|user:secret|A{400}", kept)

    def test_what_is_paid_for_is_stored_though_what_was_kept_is_gone(
        self, emulator: Emulator, context: Any, tmp_path: Path, function: Callable[[], str]
    ) -> None:
        submitter = ModelScopeSubmitImageGenerationOperator(task_id="s", model="a/b", prompt="A cat")
        elsewhere: Any = {"ti": TaskInstance()}
        generation_id = submitter.execute(elsewhere)
        event = {"status": "finished", "generation_id": generation_id}
        again = drawing(function, tmp_path, deferrable=True)
        [uri] = again.resume_execution("execute_complete", {"event": event}, context)
        assert uri.endswith(f"{generation_id}-1.png")


def test_it_maps() -> None:
    with DAG("a_dag", schedule=None) as dag:

        @modelscope_image_task(model="a/b", destination="file:///tmp/")
        def draw(animal: str) -> str:
            return f"A {animal}"

        draw.expand(animal=["cat", "dog"])
    assert dag.task_ids == ["draw"]
