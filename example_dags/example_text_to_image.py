"""A chain of three tasks: submit a prompt, wait for the generation, store the image.

Each task can be retried alone. Only the first one costs credit, because the others never submit. The image is
on the tab *Images* of the Dag run.
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
    description="Submit a prompt, wait without occupying a worker, and store the image",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "prompt": Param(
            "A lighthouse above a sea of clouds, watercolour",
            type="string",
            format="multiline",
            minLength=1,
            maxLength=1999,
            title="Prompt",
            description="What the image shows, in English or Chinese",
        ),
        "destination": Param(
            "file:///tmp/modelscope-images/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder of the image: a URI that ends in /, such as s3://bucket/folder/",
        ),
    },
)
def example_text_to_image() -> None:
    """Submit, wait and store in three tasks."""
    submit = ModelScopeSubmitImageGenerationOperator(
        task_id="submit",
        model="Qwen/Qwen-Image",
        prompt="{{ params.prompt }}",
        size="1024x768",
        deferrable=True,
        doc_md="Submits the prompt and returns the id of the generation. The only task that costs credit.",
    )
    wait = ModelScopeImageGenerationSensor(
        task_id="wait",
        generation_id=submit.output,
        deferrable=True,
        retries=3,
        doc_md="Waits in the triggerer until the generation has finished.",
    )
    ModelScopeImageToObjectStorageOperator(
        task_id="store",
        generation_id=wait.output,
        destination="{{ params.destination }}",
        retries=3,
        doc_md="Downloads the image, checks it and stores it. Returns its URI.",
    )


example_text_to_image()
