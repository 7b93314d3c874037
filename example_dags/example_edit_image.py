"""Edit an image in object storage that ModelScope cannot access.

The operator reads the image with ``storage_conn_id`` and sends its bytes, so the bucket can be private. This
Dag generates the image first. The path can also be a constant or a param.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


@dag(
    schedule=None,
    tags=["modelscope", "example"],
    params={"destination": Param("file:///tmp/modelscope-images/edited/", type="string")},
)
def example_edit_image() -> None:
    """Generate a chair, then put a cat on it."""
    draw = ModelScopeImageGenerationOperator(
        task_id="draw",
        model="Qwen/Qwen-Image",
        prompt="An empty green armchair by a window",
        size="512x512",
        seed=7,
        destination="{{ params.destination }}",
        deferrable=True,
    )
    edit = ModelScopeImageGenerationOperator(
        task_id="edit",
        model="Qwen/Qwen-Image-Edit",
        prompt="Put a sleeping grey cat on the armchair",
        image_url="{{ ti.xcom_pull('draw')[0] }}",
        destination="{{ params.destination }}{{ run_id | replace(':', '-') }}.jpg",
        timeout=1200,  # editing takes minutes
        deferrable=True,
    )
    draw >> edit


example_edit_image()
