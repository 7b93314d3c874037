"""Edit an image in object storage that ModelScope cannot access.

The operator reads the image with `storage_conn_id` and sends its bytes, so the bucket can be private. This
Dag generates the image first. The path can also be a constant or a param. Both images are on the tab *Images*
of the Dag run.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


@dag(
    schedule=None,
    description="Generate an image and edit it",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "prompt": Param(
            "An empty green armchair by a window",
            type="string",
            format="multiline",
            minLength=1,
            maxLength=1999,
            title="Prompt",
            description="What the first image shows",
        ),
        "edit": Param(
            "Put a sleeping grey cat on the armchair",
            type="string",
            format="multiline",
            minLength=1,
            maxLength=1999,
            title="Edit",
            description="What to change in it",
        ),
        "destination": Param(
            "file:///tmp/modelscope-images/edited/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder of the images: a URI that ends in /, such as s3://bucket/folder/",
        ),
    },
)
def example_edit_image() -> None:
    """Generate an image, then edit it."""
    draw = ModelScopeImageGenerationOperator(
        task_id="draw",
        model="Qwen/Qwen-Image",
        prompt="{{ params.prompt }}",
        size="512x512",
        seed=7,
        destination="{{ params.destination }}",
        deferrable=True,
    )
    edit = ModelScopeImageGenerationOperator(
        task_id="edit",
        model="Qwen/Qwen-Image-Edit",
        prompt="{{ params.edit }}",
        image_url="{{ ti.xcom_pull('draw')[0] }}",
        destination="{{ params.destination }}{{ run_id | replace(':', '-') }}.jpg",
        timeout=1200,  # editing takes minutes
        deferrable=True,
        doc_md="Sends the bytes of the stored image with the edit, and stores the result as a JPEG.",
    )
    draw >> edit


example_edit_image()
