"""Tasks that defer, and tasks that call other tasks, which cannot defer."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor

OPTIONS: dict[str, Any] = {
    "model": "Qwen/Qwen-Image",
    "poll_interval": 1,
    "deferrable": True,
    "defer_after": 0,
}
DESTINATION = "{{ params.destination }}"


class Series(ModelScopeImageGenerationOperator):
    """Draw three images, each by an operator of its own."""

    def execute(self, context: Any) -> list[str]:
        return [
            uri
            for prompt in ("one", "two", "three")
            for uri in ModelScopeImageGenerationOperator(
                task_id="inner", prompt=prompt, destination=self.destination, **OPTIONS
            ).execute(context)
        ]


with DAG("deferring", params={"destination": Param("", type="string")}):
    ModelScopeImageGenerationOperator(task_id="plain", prompt="plain", destination=DESTINATION, **OPTIONS)
    ModelScopeImageGenerationOperator.partial(task_id="mapped", destination=DESTINATION, **OPTIONS).expand(
        prompt=["mapped"]
    )

    @task.modelscope_image(destination=DESTINATION, **OPTIONS)
    def decorated() -> str:
        return "decorated"

    decorated()


with DAG("calling", params={"destination": Param("", type="string")}):
    Series(task_id="series", prompt="unused", destination=DESTINATION, **OPTIONS)

    @task
    def chain() -> str:
        context = get_current_context()
        generation_id = ModelScopeSubmitImageGenerationOperator(
            task_id="submit", model=OPTIONS["model"], prompt="chain"
        ).execute(context)
        options = {name: value for name, value in OPTIONS.items() if name in ("deferrable", "defer_after")}
        wait = ModelScopeImageGenerationSensor(task_id="wait", generation_id=generation_id, **options)
        return str(wait.execute(context))

    chain()

    @task.modelscope_image(destination=DESTINATION, **OPTIONS)
    def base_and_edit() -> dict[str, Any]:
        context = get_current_context()
        destination = context["params"]["destination"]
        base = ModelScopeImageGenerationOperator(
            task_id="base", prompt="base", destination=destination, **OPTIONS
        )
        return {"prompt": "edit", "image_url": base.execute(context)}

    base_and_edit()
