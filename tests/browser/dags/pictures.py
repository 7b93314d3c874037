"""The Dags of the browser tests: three pictures for the one, and one for the other."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


def pictures(dag_id: str, *prompts: str) -> None:
    """Make a Dag of one task, mapped over the prompts."""
    with DAG(dag_id, schedule=None, params={"destination": Param(type="string")}):
        ModelScopeImageGenerationOperator.partial(
            task_id="draw",
            model="Qwen/Qwen-Image",
            size="512x512",
            destination="{{ params.destination }}",
            deferrable=False,
        ).expand(prompt=list(prompts))


pictures("browser_images", "A lighthouse above the clouds", "A cat on an armchair", "雨后的青瓦白墙,水墨画")
pictures("browser_other", "A postcard for somebody else")
