"""Content on a schedule: every morning one picture for each of the day's prompts, in a folder of that day.

The prompts are known only when the Dag runs, so the drawing task is mapped over them. ModelScope runs one
generation per account at a time; the others wait for their turn.
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
    """Draw the day's pictures."""

    @task
    def todays_prompts(ds: str | None = None) -> list[str]:
        """Stand in for a look into a calendar, a table of products, a news feed."""
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
