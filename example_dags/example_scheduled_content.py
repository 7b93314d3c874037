"""Content on a schedule: every morning, one image for each prompt of the day, in a folder for that day.

The prompts are known only at run time, so the task is mapped over them. ModelScope runs one generation per
account at a time. The other tasks wait in the queue, without occupying a worker.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag, task
from pendulum import datetime

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


@dag(
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    tags=["modelscope", "example"],
    params={"destination": Param("file:///tmp/modelscope-images/", type="string")},
)
def example_scheduled_content() -> None:
    """Generate the images of the day."""

    @task
    def todays_prompts(ds: str | None = None) -> list[str]:
        """Return constant prompts. A real task would read a calendar, a table of products or a feed."""
        places = ["a harbour in the north", "a tea garden in the hills", "一座雨中的古城"]
        return [f"A postcard of {place}, {ds}" for place in places]

    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        model="Tongyi-MAI/Z-Image-Turbo",
        size="1024x1024",
        destination="{{ params.destination }}{{ ds }}/",
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=1),
    ).expand(prompt=todays_prompts())


example_scheduled_content()
