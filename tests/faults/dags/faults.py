"""The Dags of the faults: one task, on a worker or deferred, a chain of three tasks, and batches.

Generations finish when a row finishes them, so tasks defer immediately and poll often.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)

RETRIES: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(seconds=1)}
SERVICE: dict[str, Any] = {"modelscope_conn_id": "{{ dag_run.conf['modelscope_conn_id'] }}"}
STORE: dict[str, Any] = {
    "destination": "{{ dag_run.conf['destination'] }}",
    "storage_conn_id": "{{ dag_run.conf['storage_conn_id'] }}",
}
REQUEST: dict[str, Any] = {"model": "Qwen/Qwen-Image", "size": "512x512"}
PROMPT = "a postcard from {{ run_id }}"
FIVE = 5
QUEUE_TIMEOUT = 20  # seconds, of a task that must not need a retry


def one_step(dag_id: str, **parameters: Any) -> None:
    """Create a Dag of one task that submits, waits and stores."""
    with DAG(dag_id, schedule=None, default_args=RETRIES):
        ModelScopeImageGenerationOperator(
            task_id="draw",
            prompt=PROMPT,
            poll_interval=2,
            defer_after=0,
            **REQUEST,
            **SERVICE,
            **STORE,
            **parameters,
        )


def chain(dag_id: str, *, deferrable: bool) -> None:
    """Create a Dag of three tasks: submit, wait, store."""
    with DAG(dag_id, schedule=None, default_args=RETRIES):
        submit = ModelScopeSubmitImageGenerationOperator(
            task_id="submit", prompt=PROMPT, deferrable=deferrable, **REQUEST, **SERVICE
        )
        wait = ModelScopeImageGenerationSensor(
            task_id="wait",
            generation_id=submit.output,
            poke_interval=2,
            deferrable=deferrable,
            defer_after=0,
            **SERVICE,
        )
        ModelScopeImageToObjectStorageOperator(task_id="store", generation_id=wait.output, **SERVICE, **STORE)


def batch(dag_id: str, *, rows: int, deferrable: bool) -> None:
    """Create a Dag of one task that generates an image for each of its rows."""
    with DAG(dag_id, schedule=None, default_args=RETRIES):
        ModelScopeImageBatchOperator(
            task_id="draw",
            requests=[f"postcard {number} of {rows}" for number in range(1, rows + 1)],
            poll_interval=2,
            deferrable=deferrable,
            defer_after=0,
            **REQUEST,
            **SERVICE,
            **STORE,
        )


one_step("deferred", deferrable=True)
one_step("on_worker", deferrable=False)
one_step("fail_on_lost_response", deferrable=True, on_lost_response="fail")
chain("chain_deferred", deferrable=True)
chain("chain_on_worker", deferrable=False)
batch("batch_deferred", rows=3, deferrable=True)
batch("batch_on_worker", rows=5, deferrable=False)

with DAG("queue_deferred", schedule=None):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        deferrable=True,
        poll_interval=2,
        defer_after=0,
        queue_timeout=QUEUE_TIMEOUT,
        **REQUEST,
        **SERVICE,
        **STORE,
    ).expand(prompt=["a postcard", "a postcard that waits in the queue"])

with DAG("five_deferred", schedule=None, default_args=RETRIES):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw", deferrable=True, poll_interval=2, defer_after=0, **REQUEST, **SERVICE, **STORE
    ).expand(prompt=[f"postcard {number} of {FIVE}" for number in range(1, FIVE + 1)])
