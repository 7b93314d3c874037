"""Build the tasks and values that unit tests use, and run tasks as Airflow does."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.sensors.credit import ModelScopeCreditSensor
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)
from airflow_provider_modelscope.xcoms import StoredImage
from tests.unit.conftest import TOKEN

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

    from airflow_provider_modelscope.emulator import Emulator
    from airflow_provider_modelscope.emulator.server import Exchange

Context = Any  # a mapping with a fake task instance
DEFERRED = {"attempt": 1, "parameters": {}, "digests": {}}  # a task that left nothing with its trigger
SLOT_FREE = {"status": "slot_free", "queued_at": 1.0, "end_time": 2.0**40, "granted_at": 1.0}
SLOT_FREE |= {"deferred_task": DEFERRED}
FOLDER = Path(gettempdir(), "cats")
REQUEST: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "一只猫", "size": "64x64", "seed": 5}
IMAGE = StoredImage(
    uri="s3://bucket/42-1.png",
    storage_conn_id="my_s3",
    content_type="image/png",
    width=64,
    height=32,
    size_bytes=5,
    sha256="ab" * 32,
    seed=7,
    model="a/b",
    asked_model="c/d",
    generation_id="42",
    parameters={"prompt": "A cat", "loras": {"a/b": 0.5}},
    duration_ms=5412.9,
    sidecar_uri="s3://bucket/42-1.png.json",
    credit=0.5,
)


def submitter(**arguments: Any) -> ModelScopeSubmitImageGenerationOperator:
    return ModelScopeSubmitImageGenerationOperator(**{"task_id": "submit", **REQUEST, **arguments})


def one_step(folder: Path = FOLDER, **arguments: Any) -> ModelScopeImageGenerationOperator:
    given = {"task_id": "draw", "destination": f"file://{folder}/", **REQUEST, **arguments}
    return ModelScopeImageGenerationOperator(**given)


def batch(
    folder: Path = FOLDER, *, requests: Any = ("A cat", "A dog"), **arguments: Any
) -> ModelScopeImageBatchOperator:
    given = {"task_id": "draw_all", "destination": f"file://{folder}/", "model": "a/b", "size": "64x64"}
    return ModelScopeImageBatchOperator(**{**given, "requests": requests, **arguments})


def sensor(generation_id: Any = "42", **arguments: Any) -> ModelScopeImageGenerationSensor:
    return ModelScopeImageGenerationSensor(**{"task_id": "wait", "generation_id": generation_id, **arguments})


def credit_sensor(min_available: Any = 1, **arguments: Any) -> ModelScopeCreditSensor:
    return ModelScopeCreditSensor(**{"task_id": "wait", "min_available": min_available, **arguments})


def transfer(
    generation_id: Any = "42", folder: Path = FOLDER, **arguments: Any
) -> ModelScopeImageToObjectStorageOperator:
    given = {"task_id": "store", "generation_id": generation_id, "destination": f"file://{folder}/"}
    return ModelScopeImageToObjectStorageOperator(**{**given, **arguments})


def rendered(task: Any, **values: Any) -> Any:
    """Return a task as it runs after rendering its arguments to these values."""
    for name, value in values.items():
        setattr(task, name, value)
    return task


def submissions(emulator: Emulator) -> list[Exchange]:
    """Return the submissions that reached the emulator, accepted or not."""
    return [exchange for exchange in emulator.requests if exchange.method == "POST"]


def run(task: Any, context: Context) -> Any:
    """Run a task on a worker, in the triggerer and on a worker again, and return its result."""
    try:
        return task.execute(context)
    except TaskDeferred as deferral:
        return resume(task, deferral, context)


def resume(task: Any, deferral: TaskDeferred, context: Context) -> Any:
    """Run the trigger of a deferred task, then the task in another process, and return its result."""
    _, kwargs = deferral.trigger.serialize()
    assert TOKEN not in json.dumps(kwargs)
    trigger = type(deferral.trigger)(**{**kwargs, "min_deferral_seconds": 0.0})
    event = asyncio.run(event_of(trigger))
    task.__dict__.pop("hook", None)
    return task.resume_execution(deferral.method_name, {"event": event}, context)


async def event_of(trigger: BaseTrigger) -> Any:
    """Run a trigger, and return its event as the database stores it."""
    [event] = [event.payload async for event in trigger.run()]
    return json.loads(json.dumps(event))


def overdue(context: Context) -> Context:
    """Return the context of a task that started an hour ago."""
    context["ti"].start_date -= timedelta(hours=1)
    return context
