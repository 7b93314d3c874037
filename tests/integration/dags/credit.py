"""Tasks that wait for credit, that may spend little of it, and whose model is retired."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

OPTIONS: dict[str, Any] = {
    "model": "Qwen/Qwen-Image",
    "destination": "{{ params.destination }}",
    "queue_timeout": 300,
    "retries": 3,
    "retry_delay": timedelta(seconds=1),
}
SERVED = "black-forest-labs/FLUX.1-Krea-dev"
PARAMS = {"destination": Param("", type="string")}

with DAG("waiting_for_credit", params=PARAMS):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw", deferrable=True, on_exhausted="wait", **OPTIONS
    ).expand(prompt=["one", "two", "three", "four", "five"])

with DAG("falling_back", params=PARAMS):
    ModelScopeImageGenerationOperator(
        task_id="draw",
        prompt="one",
        fallback_models=[SERVED],
        **OPTIONS,
    )

with DAG("spending_little", params=PARAMS):

    @task(retries=3, retry_delay=timedelta(seconds=1))
    def series() -> list[str]:
        context = get_current_context()
        uris = []
        for prompt in ("one", "two", "three", "four", "five"):
            draw = ModelScopeImageGenerationOperator(
                task_id=prompt,
                prompt=prompt,
                max_credit=2,
                **{**OPTIONS, "destination": context["params"]["destination"], "model": SERVED},
            )
            uris += draw.execute(context)
        return uris

    series()
