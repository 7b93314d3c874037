"""The Dags of the proofs. No task is retried, so that whatever fails is seen."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, BaseOperator, Context
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


class NaiveOperator(BaseOperator):
    """Defer at once, with a trigger of Airflow's own that fires when it is told to."""

    def __init__(self, *, seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def execute(self, context: Context) -> None:
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=self.seconds)), method_name="execute_complete")

    def execute_complete(self, context: Context, event: Any = None) -> None:
        pass


def pictures(dag_id: str, *, count: int, **parameters: Any) -> None:
    """Make a Dag of one task, mapped over so many prompts."""
    with DAG(dag_id, schedule=None, default_args={"retries": 0}):
        ModelScopeImageGenerationOperator.partial(
            task_id="draw",
            model="Qwen/Qwen-Image",
            modelscope_conn_id="{{ dag_run.conf['modelscope_conn_id'] }}",
            destination="{{ dag_run.conf['destination'] }}",
            **parameters,
        ).expand(prompt=[f"postcard {number}" for number in range(count)])


with DAG("naive", schedule=None, default_args={"retries": 0}):
    NaiveOperator.partial(task_id="wait").expand(seconds=[number % 3 for number in range(40)])

pictures("forty_deferred_at_once", count=40, deferrable=True, defer_after=0)
pictures("forty", count=40, deferrable=True)
pictures("twenty", count=20, deferrable=True)
pictures("one", count=1, deferrable=True)
pictures("one_on_its_worker", count=1, deferrable=False)
