"""A chain of three tasks: submit the request, wait for the generation, store the image.

Each can be retried alone. Only the first one costs credit, because the others never submit.
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
    """Submit a prompt, wait without occupying a worker, and store the image."""
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
