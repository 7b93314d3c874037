"""The Dag that the screenshots in ``docs/`` show."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

PROMPTS = [
    "A harbour in the north, fishing boats at dawn",
    "A tea garden in the hills after rain",
    "一座雨中的古城,青瓦白墙,水墨画",
    "A lighthouse above a sea of clouds",
    "A night market under paper lanterns",
    "A train crossing a viaduct in autumn",
    "A greenhouse full of orchids",
    "A village square on market day",
]

with DAG("postcards", schedule=None, params={"destination": Param(type="string")}):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        model="Qwen/Qwen-Image",
        negative_prompt="text, watermark",
        size="1024x1024",
        destination="{{ params.destination }}",
    ).expand(prompt=PROMPTS)
    ModelScopeImageGenerationOperator(
        task_id="poster",
        model="Tongyi-MAI/Z-Image-Turbo",
        prompt="A poster for all of them",
        destination="{{ params.destination }}",
        modelscope_conn_id="modelscope_slow",
    )
