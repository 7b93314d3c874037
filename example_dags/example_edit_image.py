"""Edit a picture that lies in object storage, where ModelScope itself cannot see it.

The path is read through ``storage_conn_id`` and sent along, so the bucket may be private. Here the picture to
edit is drawn first; its path might as well be a param.
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
    """Draw a chair, then put a cat on it."""
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
