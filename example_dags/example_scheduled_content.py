"""Content on a schedule: every morning, one image for each prompt of the day, in a folder for that day.

The prompts are known only at run time, so the task is mapped over them. ModelScope runs one generation per
account at a time. The other tasks wait in the queue, without occupying a worker.

Unpausing the Dag starts no run: the first one is at the next 06:00 UTC. To see images now, trigger the Dag.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag, task
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


@dag(
    # Without a start date, and with run_immediately, the 06:00 that has passed is not run on unpausing.
    schedule=CronTriggerTimetable("0 6 * * *", timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    description="Generate the images of the day every morning",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "destination": Param(
            "file:///tmp/modelscope-images/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder for the folders of the days: a URI that ends in /, such as s3://bucket/folder/",
        ),
    },
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
