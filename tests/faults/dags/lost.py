"""The Dag of those who would rather have no image than pay for it twice."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

with DAG("never_twice", schedule=None, default_args={"retries": 2, "retry_delay": timedelta(seconds=1)}):
    ModelScopeImageGenerationOperator(
        task_id="draw",
        model="Qwen/Qwen-Image",
        prompt="a postcard from {{ run_id }}",
        on_lost_answer="fail",
        modelscope_conn_id="{{ dag_run.conf['modelscope_conn_id'] }}",
        destination="{{ dag_run.conf['destination'] }}",
        deferrable=True,
        poll_interval=2,
        defer_after=0,
    )
