"""A Dag whose runs have more images than a page of all of them."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

with DAG(
    "browser_history",
    schedule=None,
    params={
        "prompt": Param("A default prompt", type="string", format="multiline"),
        "size": Param("1024x1024", type="string", enum=["1024x1024", "512x512"]),
        "seed": Param(None, type=["null", "integer"], minimum=1, section="More parameters"),
        "destination": Param("file:///nowhere/", type="string"),
    },
):

    @task
    def copy(**context: Any) -> None:
        """Report the image of the upstream task 65 times, each with another seed."""
        ti = context["ti"]
        [image] = ti.xcom_pull(task_ids="draw", key="images")
        copies = [
            image | {"generation_id": f"copy-{n}", "parameters": image["parameters"] | {"seed": n}}
            for n in range(65)
        ]
        ti.xcom_push(key="images", value=copies)

    (
        ModelScopeImageGenerationOperator(
            task_id="draw",
            model="Qwen/Qwen-Image",
            prompt="{{ params.prompt }}",
            size="{{ params.size }}",
            seed="{{ params.seed }}",
            destination="{{ params.destination }}",
            deferrable=False,
        )
        >> copy()
    )
