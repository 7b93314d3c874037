"""The Dags of the browser tests."""

from __future__ import annotations

import hashlib
from io import BytesIO
from typing import Any

from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, Param
from airflow.sdk import task

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

HOSTILE = (
    "<script>window.top.hacked = 1; window.hacked = 1</script>",
    "\"><img src=x onerror='window.top.hacked = 1; window.hacked = 1'> {{ 7 * 7 }} </template><b>bold</b>",
)


def pictures(dag_id: str, *prompts: str, **options: Any) -> None:
    """Make a Dag of one task, mapped over the prompts."""
    with DAG(dag_id, schedule=None, params={"destination": Param(type="string")}):
        ModelScopeImageGenerationOperator.partial(
            task_id="draw",
            model="Qwen/Qwen-Image",
            size="512x512",
            destination="{{ params.destination }}",
            deferrable=False,
            **options,
        ).expand(prompt=list(prompts))


pictures("browser_images", "A lighthouse above the clouds", "A cat on an armchair", "雨后的青瓦白墙,水墨画")
pictures("browser_other", "A postcard for somebody else")
pictures("browser_hostile", *("{% raw %}" + prompt + "{% endraw %}" for prompt in HOSTILE))
pictures("browser_waiting", "A picture that takes its time", modelscope_conn_id="modelscope_slow")
pictures("browser_failing", "A picture that cannot be", modelscope_conn_id="modelscope_slow")


with DAG("browser_many", schedule=None, params={"destination": Param(type="string")}):

    @task
    def paint(params: Any = None, ti: Any = None) -> None:
        """Store two hundred pictures at once, as a task with that many would tell of them."""
        from PIL import Image

        images = []
        for number in range(200):
            file = BytesIO()
            picture = Image.linear_gradient("L").resize((1024, 1024)).rotate(number)
            Image.merge("RGB", (picture, picture.rotate(90), picture.rotate(180))).save(file, "PNG")
            content = file.getvalue()
            path = ObjectStoragePath(f"{params['destination']}{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            images.append(
                {
                    "uri": str(path),
                    "storage_conn_id": None,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "bytes": len(content),
                    "width": 1024,
                    "height": 1024,
                    "generation_id": str(number),
                    "parameters": {"prompt": f"Picture number {number}. " * 20, "seed": number},
                }
            )
        ti.xcom_push(key="images", value=images)

    paint()


with DAG("browser_empty", schedule=None, params={"destination": Param(type="string")}):

    @task
    def nothing() -> None:
        """Make no image."""

    nothing()
