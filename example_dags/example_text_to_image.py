"""Parts that a Dag chains: the request, the wait and the storing are tasks of their own.

Each can be retried alone: what is paid for is the first task, and the others never submit again.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)


@dag(
    schedule=None,
    tags=["modelscope", "example"],
    params={
        "prompt": Param("A lighthouse above a sea of clouds, watercolour", type="string"),
        "destination": Param("file:///tmp/modelscope-images/", type="string"),
    },
)
def example_text_to_image() -> None:
    """Submit a prompt, wait without holding a worker, store the picture."""
    submit = ModelScopeSubmitImageGenerationOperator(
        task_id="submit",
        model="Qwen/Qwen-Image",
        prompt="{{ params.prompt }}",
        size="1024x768",
        deferrable=True,
    )
    wait = ModelScopeImageGenerationSensor(
        task_id="wait",
        generation_id=submit.output,
        deferrable=True,
        retries=3,
    )
    ModelScopeImageToObjectStorageOperator(
        task_id="store",
        generation_id=wait.output,
        destination="{{ params.destination }}",
        retries=3,
    )


example_text_to_image()
