"""A batch: a file of prompts in object storage becomes a folder of images with a manifest, in one task.

The first task writes the file. In a real pipeline something else does: an export, a spreadsheet, a colleague.
The batch generates its images, in a folder of its own for each run. Run it again with *Clear*: nothing is
generated twice, unless you change the file. For each image, a task downstream runs: here it logs what a page
of a shop would need.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import ObjectStoragePath, Param, dag, task

from airflow_provider_modelscope import manifest
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator

log = logging.getLogger(__name__)

PRODUCTS = {
    "kettle": "A red enamel kettle on a white table",
    "lamp": "A brass reading lamp beside an armchair",
    "teapot": "一把青花瓷茶壶",
    "scarf": "A woollen scarf with a pattern of herring bones",
}


@dag(
    schedule=None,
    description="Generate an image for each line of a file",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "destination": Param(
            "file:///tmp/modelscope-images/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder for the file and the images: a URI that ends in /, such as s3://bucket/folder/",
        ),
    },
)
def example_batch() -> None:
    """Generate the images of all products."""

    @task
    def write_prompts(params: dict[str, Any] | None = None) -> str:
        """Write the file of prompts, and return its URI."""
        lines = [
            {"key": key, "prompt": f"{prompt}, soft light", "data": {"title": key.title()}}
            for key, prompt in PRODUCTS.items()
        ]
        folder = ObjectStoragePath(f"{(params or {})['destination']}batch")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "prompts.jsonl"
        path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
        return str(path)

    batch = ModelScopeImageBatchOperator(
        task_id="draw",
        requests=write_prompts(),
        destination="{{ params.destination }}batch/{{ run_id }}/",
        model="Tongyi-MAI/Z-Image-Turbo",
        size="1024x1024",
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=1),
    )

    @task
    def stored_rows(summary: Any) -> list[dict[str, Any]]:
        """Return the rows with an image. Airflow maps at most 1024; a loop over the manifest has no limit."""
        return [row.to_json() for row in manifest.read(summary["manifest"]) if row.status == "stored"]

    @task
    def publish(row: dict[str, Any]) -> None:
        """Log what a page needs."""
        log.info("%s: %s (%d x %d)", row["data"]["title"], row["uri"], row["width"], row["height"])

    publish.expand(row=stored_rows(batch.output))


example_batch()
