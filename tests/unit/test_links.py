"""Links on a task's page lead to its images and its model, also while it runs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_modelscope.links import HAS_GALLERY, ImagesLink, ModelLink, image_path, push_links
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)
from tests.unit.conftest import TaskInstance

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

needs_gallery = pytest.mark.skipif(not HAS_GALLERY, reason="Airflow 3.0 has no tabs for plugins")
RUN = "manual__2026-11-25T13:47:58+00:00"
GALLERY = "modelscope/images?dag_id=a_dag&run_id="


class Mapped(TaskInstance):
    run_id, task_id, map_index = RUN, "group.draw", 3


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
def test_links_are_pushed_before_the_submission(emulator: Emulator, context: Any) -> None:
    emulator.fail("submit:401")
    submit = ModelScopeSubmitImageGenerationOperator(task_id="draw", model="Qwen/Qwen-Image", prompt="A cat")
    with pytest.raises(Exception, match="401"):
        submit.execute(context)
    assert context["ti"].pushed == {
        ModelLink.xcom_key: "https://modelscope.cn/models/Qwen/Qwen-Image",
        ImagesLink.xcom_key: f"{GALLERY}a_run&task_id=a_task&map_index=-1",
    }


@needs_gallery
def test_a_mapped_task_instance_links_to_its_own_images() -> None:
    ti = Mapped()
    push_links({"ti": ti}, model_url=None)  # type: ignore[typeddict-item]
    run_id = "manual__2026-11-25T13%3A47%3A58%2B00%3A00"
    assert ti.pushed == {ImagesLink.xcom_key: f"{GALLERY}{run_id}&task_id=group.draw&map_index=3"}


@needs_gallery
def test_a_sensor_links_to_the_images_of_the_run(emulator: Emulator, context: Any, tmp_path: Path) -> None:
    wait = ModelScopeImageGenerationSensor(task_id="wait", generation_id="42", timeout=1)
    context["ti"].start_date -= timedelta(hours=1)
    with pytest.raises(Exception, match="42"):
        wait.execute(context)
    assert context["ti"].pushed == {ImagesLink.xcom_key: f"{GALLERY}a_run"}


def test_a_failing_push_costs_no_image(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(TaskInstance):
        def xcom_push(self, key: str, value: Any) -> None:
            raise OSError("disk full")

    push_links({"ti": Failing()}, model_url="https://modelscope.cn/models/a/b")  # type: ignore[typeddict-item]
    assert "Could not push the task's extra links: OSError('disk full')" in caplog.text


def test_an_image_path_names_task_instance_and_number() -> None:
    path = urlsplit(image_path("a_dag", RUN, "draw", 3, 2))
    assert path.path == "modelscope/image"
    assert {name: value for name, [value] in parse_qs(path.query).items()} == {
        "dag_id": "a_dag",
        "run_id": RUN,
        "task_id": "draw",
        "map_index": "3",
        "number": "2",
    }
