"""Three Dags of twenty images each, written in different ways, with two accounts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task, task_group

from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)

PLACES = [
    *("Hangzhou", "Suzhou", "Guilin", "Dali", "Harbin", "Kashgar", "Lhasa", "Xiamen", "Qingdao", "Datong"),
    *("Lisbon", "Porto", "Bergen", "Visby", "Turku", "Riga", "Gdansk", "Trieste", "Split", "Naxos"),
]
COMMON: dict[str, Any] = {
    "schedule": None,
    "default_args": {"retries": 2, "retry_delay": timedelta(seconds=5)},
}
REQUEST: dict[str, Any] = {"model": "Qwen/Qwen-Image", "size": "512x512"}
STORE: dict[str, Any] = {"destination": "s3://postcards/{{ dag.dag_id }}/", "storage_conn_id": "store"}


@dag(**COMMON)
def in_three_steps() -> None:
    """Submit, wait and store in tasks of their own, with one account."""

    @task_group
    def postcard(prompt: str) -> None:
        account = "first_account"
        submit = ModelScopeSubmitImageGenerationOperator(
            task_id="submit", prompt=prompt, modelscope_conn_id=account, **REQUEST
        )
        wait = ModelScopeImageGenerationSensor(
            task_id="wait", generation_id=submit.output, modelscope_conn_id=account
        )
        ModelScopeImageToObjectStorageOperator(
            task_id="store", generation_id=wait.output, modelscope_conn_id=account, **STORE
        )

    postcard.expand(prompt=[f"{place} in spring" for place in PLACES])


@dag(**COMMON)
def in_one_step() -> None:
    """Use one task for each image, with the other account."""
    ModelScopeImageGenerationOperator.partial(
        task_id="draw", modelscope_conn_id="second_account", **REQUEST, **STORE
    ).expand(prompt=[f"{place} in summer" for place in PLACES])


@dag(**COMMON)
def by_function() -> None:
    """Use functions that return prompts, half of them with each account."""

    def draw(place: str) -> str:
        return f"{place} in winter"

    half = len(PLACES) // 2
    for account, places in (("first_account", PLACES[:half]), ("second_account", PLACES[half:])):
        task.modelscope_image(task_id=f"draw_for_{account}", modelscope_conn_id=account, **REQUEST, **STORE)(
            draw
        ).expand(place=places)


in_three_steps()
in_one_step()
by_function()
