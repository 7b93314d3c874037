"""Links on a task's page lead to its images and its model, also while it runs."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import HAS_GALLERY, ImagesLink, ModelLink, image_path, push_links
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)
from airflow_provider_modelscope.triggers.events import GenerationFinished
from tests.unit.builders import DEFERRED
from tests.unit.conftest import TaskInstance

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from tests.unit.conftest import Supervisor

needs_gallery = pytest.mark.skipif(not HAS_GALLERY, reason="Airflow 3.0 has no tabs for plugins")
RUN = "manual__2026-11-25T13:47:58+00:00"
GALLERY = "modelscope/a_dag/images?run_id="

DRAW = ModelScopeImageGenerationOperator(
    task_id="draw", model="a/b", prompt="A cat", destination="file:///x/"
)


class Mapped(TaskInstance):
    run_id, task_id, map_index = RUN, "group.draw", 3


def key_of(kind: type[TaskInstance]) -> Any:
    """Return the key that Airflow passes to a link: the task instance itself."""
    return kind()


@pytest.mark.parametrize(
    "operator",
    [
        ModelScopeSubmitImageGenerationOperator,
        ModelScopeImageGenerationOperator,
        ModelScopeImageGenerationSensor,
        ModelScopeImageToObjectStorageOperator,
    ],
)
def test_every_task_has_both_links(operator: Any) -> None:
    names = [link.name for link in operator.operator_extra_links]
    assert names == [*(["Images"] if HAS_GALLERY else []), "Model on ModelScope"]


@needs_gallery
def test_links_are_pushed_before_the_submission(
    emulator: Emulator, context: Any, supervisor: Supervisor
) -> None:
    emulator.fail("submit:401")
    submit = ModelScopeSubmitImageGenerationOperator(task_id="draw", model="Qwen/Qwen-Image", prompt="A cat")
    with pytest.raises(Exception, match="401"):
        submit.execute(context)
    assert supervisor.pushed == {
        ModelLink.xcom_key: "https://modelscope.cn/models/Qwen/Qwen-Image",
        ImagesLink.xcom_key: f"{GALLERY}a_run&task_id=a_task&map_index=-1",
    }


@needs_gallery
@pytest.mark.usefixtures("emulator")
def test_a_sensor_links_to_the_images_of_the_run(context: Any, supervisor: Supervisor) -> None:
    wait = ModelScopeImageGenerationSensor(task_id="wait", generation_id="42", timeout=1)
    context["ti"].start_date -= timedelta(hours=1)
    with pytest.raises(Exception, match="42"):
        wait.execute(context)
    assert supervisor.pushed == {ImagesLink.xcom_key: f"{GALLERY}a_run", ModelLink.xcom_key: ""}


def test_links_do_not_go_through_the_xcom_backend(context: Any, supervisor: Supervisor) -> None:
    submit = ModelScopeSubmitImageGenerationOperator(task_id="draw", model="a/b", prompt="A cat")
    push_links(submit, context)
    assert supervisor.pushed
    assert not context["ti"].pushed


def test_a_failing_push_costs_no_image(
    context: Any, supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.error = OSError("disk full")
    submit = ModelScopeSubmitImageGenerationOperator(task_id="draw", model="a/b", prompt="A cat")
    push_links(submit, context)
    assert "Could not push the task's extra links: OSError('disk full')" in caplog.text


@needs_gallery
def test_a_mapped_task_instance_links_to_its_own_images() -> None:
    run_id = "manual__2026-11-25T13%3A47%3A58%2B00%3A00"
    link = ImagesLink().get_link(DRAW, ti_key=key_of(Mapped))
    assert link == f"{GALLERY}{run_id}&task_id=group.draw&map_index=3"


def test_an_iteration_of_a_loop_links_to_its_own_images() -> None:
    class Looped(TaskInstance):
        region_id, region_index = UUID(int=5), 3

    link = ImagesLink().get_link(DRAW, ti_key=key_of(Looped))
    assert link.endswith(f"&map_index=3&region_id={UUID(int=5)}")


def test_a_task_outside_loops_has_no_region_in_its_link() -> None:
    class Plain(TaskInstance):
        region_id, region_index = UUID(int=0), -1

    assert ImagesLink().get_link(DRAW, ti_key=key_of(Plain)).endswith("&map_index=-1")


@pytest.mark.parametrize("model", [None, "", "{{ ds }}", 5, "\ud800"], ids=repr)
@pytest.mark.usefixtures("emulator")
def test_an_unknown_model_has_an_empty_link(model: Any) -> None:
    draw = SimpleNamespace(model=model, hook=ModelScopeHook())
    assert ModelLink().get_link(draw, ti_key=key_of(Mapped)) == ""  # type: ignore[arg-type]


def test_an_unusable_connection_has_an_empty_link() -> None:
    submit = ModelScopeSubmitImageGenerationOperator(
        task_id="draw", model="a/b", prompt="A cat", modelscope_conn_id="missing"
    )
    assert ModelLink().get_link(submit, ti_key=key_of(Mapped)) == ""


@pytest.mark.usefixtures("no_pauses", "supervisor")
def test_a_sensor_that_resumes_links_to_its_model(emulator: Emulator, context: Any) -> None:
    with DAG("chain", schedule=None):
        submit = ModelScopeSubmitImageGenerationOperator(task_id="a_task", model="a/b", prompt="A cat")
        wait = ModelScopeImageGenerationSensor(task_id="wait", generation_id=submit.execute(context))
        submit >> wait
    context["ti"].upstream = context["ti"].pushed["request"]
    finished = GenerationFinished(generation_id=str(wait.generation_id)).to_json()
    wait.execute_complete(context, finished | {"deferred_task": DEFERRED})
    assert ModelLink().get_link(wait, ti_key=context["ti"]) == "https://modelscope.cn/models/a/b"


def test_an_image_path_names_task_instance_and_number() -> None:
    path = urlsplit(image_path("a_dag", RUN, "draw", 3, 2))
    assert path.path == "modelscope/a_dag/image"
    assert {name: value for name, [value] in parse_qs(path.query).items()} == {
        "run_id": RUN,
        "task_id": "draw",
        "map_index": "3",
        "number": "2",
    }


def test_an_image_path_names_the_iteration_of_a_loop() -> None:
    path = image_path("a_dag", RUN, "draw", 1, region_id=UUID(int=5))
    assert path.endswith(f"&map_index=1&region_id={UUID(int=5)}&number=1")
    assert "region_id" not in image_path("a_dag", RUN, "draw", region_id=UUID(int=0))
