"""Dags that start when there is a picture: one draws it, the other is scheduled on it and knows what it got.

``@task.modelscope_image`` makes of a function that returns a prompt a task that draws it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, Param, dag, task

HERO = Asset("modelscope_hero_image")


@dag(
    schedule=None,
    tags=["modelscope", "example"],
    params={"destination": Param("file:///tmp/modelscope-images/hero/", type="string")},
)
def example_asset_producer() -> None:
    """Draw the picture of the day."""

    @task.modelscope_image(
        model="Qwen/Qwen-Image",
        size="1024x576",
        destination="{{ params.destination }}",
        deferrable=True,
        outlets=[HERO],
        sidecar=True,
        embed_metadata=True,
    )
    def hero(subject: str) -> dict[str, Any]:
        """Write the prompt; what is returned is sent as it is, with no template in it rendered."""
        return {"prompt": f"{subject}, wide shot, morning light", "negative_prompt": "text, watermark"}

    hero("A bakery on a corner")


@dag(schedule=[HERO], tags=["modelscope", "example"])
def example_asset_consumer() -> None:
    """Take what was drawn: the event of the asset tells where each image lies and what it is."""

    @task
    def publish(triggering_asset_events: Any = None) -> list[str]:
        """Stand in for an upload to a shop, a page, a newsletter."""
        images = [image for event in triggering_asset_events[HERO] for image in event.extra["images"]]
        for image in images:
            print(f"{image['uri']} by {image['model']}, seed {image['seed']}, sha256 {image['sha256']}")  # noqa: T201
        return [image["uri"] for image in images]

    publish()


example_asset_producer()
example_asset_consumer()
