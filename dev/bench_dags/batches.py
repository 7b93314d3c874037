"""The Dags that ``dev.bench_batch`` measures: for each load a batch, and the same images as mapped tasks.

No task is retried, so that no failure is hidden.
"""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.sdk import DAG

from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

# Connection id, number of images and destination of each Dag, by its id.
DAGS: dict[str, dict[str, Any]] = json.loads(os.environ["BENCH_DAGS"])

for dag_id, given in DAGS.items():
    prompts = [f"A postcard, number {number}" for number in range(given["images"])]
    common: dict[str, Any] = {
        "task_id": "draw",
        "modelscope_conn_id": given["modelscope_conn_id"],
        "model": given["model"],
        "size": given["size"],
        "destination": given["destination"],
    }
    with DAG(dag_id, schedule=None, default_args={"retries": 0}):
        if given["way"] == "batch":
            ModelScopeImageBatchOperator(requests=prompts, **common)
        else:
            ModelScopeImageGenerationOperator.partial(deferrable=True, **common).expand(prompt=prompts)
