"""The Dags that the screenshots in ``docs/`` show."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

PROMPTS = [
    ("A harbour in the north, fishing boats at dawn", "default"),
    ("A tea garden in the hills after rain", "default"),
    ("一座雨中的古城,青瓦白墙,水墨画", "default"),
    ("A lighthouse above a sea of clouds", "slow"),
    ("A night market under paper lanterns", "slow"),
    ("A train crossing a viaduct in autumn", "default"),
    ("A greenhouse full of orchids", "default"),
    ("A village square on market day", "default"),
]
MODELS = {"default": "Qwen/Qwen-Image", "slow": "Tongyi-MAI/Z-Image-Turbo"}
SIGNS = ["A shop sign for a bakery", "A shop sign for a locksmith", "A shop sign for a florist"]
PRODUCTS = ["kettle", "lamp", "vase", "clock", "chair", "teapot", "radio", "bicycle", "basket", "mirror"]
DESTINATION = {"destination": Param(type="string")}

with DAG("postcards", schedule=None, params=DESTINATION):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        negative_prompt="text, watermark",
        size="1024x1024",
        destination="{{ params.destination }}",
        defer_after=0,
        deferrable=True,
    ).expand_kwargs(
        [
            {"prompt": prompt, "model": MODELS[service], "modelscope_conn_id": f"modelscope_{service}"}
            for prompt, service in PROMPTS
        ]
    )

with DAG("signs", schedule=None, params=DESTINATION):
    ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        model="Qwen/Qwen-Image",
        destination="{{ params.destination }}",
        modelscope_conn_id="modelscope_picky",
        max_active_tis_per_dag=1,
        retries=0,
        execution_timeout=timedelta(minutes=5),
    ).expand(prompt=SIGNS)

with DAG("products", schedule=None, params=DESTINATION):
    ModelScopeImageBatchOperator(
        task_id="photos",
        requests=[{"key": product, "prompt": f"A product photo of a {product}"} for product in PRODUCTS],
        model="Qwen/Qwen-Image",
        size="1024x1024",
        destination="{{ params.destination }}",
        modelscope_conn_id="modelscope_steady",
        max_failures=1,
        poll_interval=1,
        deferrable=False,
    )
