"""The Dags of the browser tests."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from io import BytesIO
from typing import Any

from airflow.sdk import DAG, Asset, AssetAlias, ObjectStoragePath, Param, task

from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

HOSTILE = (
    "<script>window.top.hacked = 1; window.hacked = 1</script>",
    "\"><img src=x onerror='window.top.hacked = 1; window.hacked = 1'> {{ 7 * 7 }} </template><b>bold</b>",
)


def images(dag_id: str, *prompts: str, **options: Any) -> None:
    """Make a Dag with one task that is mapped over the prompts."""
    with DAG(dag_id, schedule=None, params={"destination": Param(type="string")}):
        ModelScopeImageGenerationOperator.partial(
            task_id="draw",
            model="Qwen/Qwen-Image",
            size="512x512",
            destination="{{ params.destination }}",
            deferrable=False,
            **options,
        ).expand(prompt=list(prompts))


images("browser_images", "A lighthouse above the clouds", "A cat on an armchair", "雨后的青瓦白墙,水墨画")
images("browser_other", "A postcard for another user")
images("browser_hostile", *("{% raw %}" + prompt + "{% endraw %}" for prompt in HOSTILE))
images("browser_waiting", "An image that takes its time", modelscope_conn_id="modelscope_slow")
images("browser_failing", "An image that fails", modelscope_conn_id="modelscope_slow")


with DAG("browser_mixed", schedule=None, params={"destination": Param(type="string")}):
    posters = ("A poster of the sea", "A poster of a lake", "{{ '' }}")
    for number, prompt in enumerate(posters, start=1):  # the last one fails
        ModelScopeImageGenerationOperator(
            task_id=f"poster_{number}",
            model="Qwen/Qwen-Image",
            size="768x512",
            prompt=prompt,
            destination="{{ params.destination }}",
            deferrable=False,
        )
    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        model="Qwen/Qwen-Image",
        size="512x512",
        destination="{{ params.destination }}",
        deferrable=False,
    ).expand(prompt=["A stamp with a snail", "A stamp with a sloth"])


with DAG("browser_states", schedule=None, params={"destination": Param(type="string")}):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        model="Qwen/Qwen-Image",
        size="512x512",
        destination="{{ params.destination }}",
        defer_after=0,
        deferrable=True,
        retries=1,
        retry_delay=timedelta(hours=1),
        on_exhausted="wait",
        modelscope_conn_id="modelscope_crowded",
    ).expand(prompt=["A snail", "A tortoise", "A sloth"])


CROWDED = "modelscope_crowded"
images("browser_workers", "A heron", "A crane", modelscope_conn_id=CROWDED)
images("browser_timeout", "A crab", modelscope_conn_id=CROWDED, execution_timeout=timedelta(seconds=12))


with DAG("browser_batch", schedule=None, params={"destination": Param(type="string")}):
    ModelScopeImageBatchOperator(
        task_id="draw",
        requests=[
            {"key": key, "prompt": f"A product photo of a {key}"} for key in ("kettle", "lamp", "vase")
        ],
        destination="{{ params.destination }}",
        model="Qwen/Qwen-Image",
        size="512x512",
        max_failures=1,
        poll_interval=1,
        deferrable=False,
        modelscope_conn_id="modelscope_slow",
    )


with DAG("browser_taskflow", schedule=None, params={"destination": Param(type="string")}):

    @task.modelscope_image(
        model="Qwen/Qwen-Image",
        destination="{{ params.destination }}",
        modelscope_conn_id="modelscope_slow",
        deferrable=True,
        defer_after=0,
    )
    def imagine(subject: str) -> str:
        """Return a new prompt on each call, with braces that are no template."""
        return f"{subject} {{{{ 7 * 7 }}}} {time.time_ns()}"

    imagine("A dream")


FILES = AssetAlias("browser_files")
images("browser_files", "An image for other Dags", outlets=[FILES])
with DAG("browser_files_consumer", schedule=FILES):

    @task
    def receive(triggering_asset_events: Any = None) -> list[Any]:
        """Return the URI and the extra of each file."""
        return [
            [asset.uri, event.extra]
            for asset, events in triggering_asset_events.items()
            for event in events
            if isinstance(asset, Asset)
        ]

    receive()


with DAG("browser_many", schedule=None, params={"destination": Param(type="string")}):

    @task
    def paint(params: Any = None, ti: Any = None) -> None:
        """Store 200 images and push their XCom ``images``."""
        from PIL import Image

        entries = []
        for number in range(200):
            file = BytesIO()
            gradient = Image.linear_gradient("L").resize((1024, 1024)).rotate(number)
            Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).save(file, "PNG")
            content = file.getvalue()
            path = ObjectStoragePath(f"{params['destination']}{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            entries.append(
                {
                    "uri": str(path),
                    "storage_conn_id": None,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size_bytes": len(content),
                    "width": 1024,
                    "height": 1024,
                    "generation_id": str(number),
                    "parameters": {"prompt": f"Image number {number}. " * 20, "seed": number},
                }
            )
        ti.xcom_push(key="images", value=entries)

    paint()


with DAG("browser_empty", schedule=None, params={"destination": Param(type="string")}):

    @task
    def nothing() -> None:
        """Store no image."""

    nothing()
