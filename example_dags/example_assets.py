"""Assets: one Dag generates an image, and another Dag runs when the image is stored.

`@task.modelscope_image` turns a function that returns a prompt into a task that generates the image. Unpause
`example_asset_consumer` first, then trigger `example_asset_producer`.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, Param, dag, task

HERO = Asset("modelscope_hero_image")


@dag(
    schedule=None,
    description="Generate the image of the day, which starts example_asset_consumer",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "subject": Param(
            "A bakery on a corner",
            type="string",
            format="multiline",
            minLength=1,
            maxLength=1999,
            title="Subject",
            description="What the image shows. The Dag adds the style",
        ),
        "destination": Param(
            "file:///tmp/modelscope-images/hero/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder of the image: a URI that ends in /, such as s3://bucket/folder/",
        ),
    },
)
def example_asset_producer() -> None:
    """Generate the image of the day."""

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
        """Return the parameters of the request. Jinja templates in them are not rendered."""
        return {"prompt": f"{subject}, wide shot, morning light", "negative_prompt": "text, watermark"}

    hero("{{ params.subject }}")


@dag(
    schedule=[HERO],
    description="Process each image that example_asset_producer stores",
    doc_md=__doc__,
    tags=["modelscope", "example"],
)
def example_asset_consumer() -> None:
    """Process the images. The event of the asset contains the URI and the parameters of each image."""

    @task
    def publish(triggering_asset_events: Any = None) -> list[str]:
        """Print the images. A real task would upload them to a shop or a newsletter."""
        images = [image for event in triggering_asset_events[HERO] for image in event.extra["images"]]
        for image in images:
            print(f"{image['uri']} by {image['model']}, seed {image['seed']}, sha256 {image['sha256']}")  # noqa: T201
        return [image["uri"] for image in images]

    publish()


example_asset_producer()
example_asset_consumer()
