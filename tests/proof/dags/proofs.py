"""The Dags of the proofs. No task is retried, so that no failure is hidden."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, Context

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


class NaiveOperator(BaseOperator):
    """Defer immediately, with one of Airflow's own triggers, for ``seconds``."""

    def __init__(self, *, seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def execute(self, context: Context) -> None:
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=self.seconds)), method_name="execute_complete")

    def execute_complete(self, context: Context, event: Any = None) -> None:
        pass


def images(dag_id: str, *, count: int, **parameters: Any) -> None:
    """Create a Dag of one task that is mapped over ``count`` prompts."""
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

images("forty_deferred_at_once", count=40, deferrable=True, defer_after=0)
images("forty", count=40, deferrable=True)
images("twenty", count=20, deferrable=True)
images("one", count=1, deferrable=True)
images("one_on_its_worker", count=1, deferrable=False)
