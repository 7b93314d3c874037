"""The signatures that an editor shows: complete, documented, and the same parameter is always the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.decorators.image_batch import modelscope_image_batch_task
from airflow_provider_modelscope.decorators.image_generation import modelscope_image_task
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import (
    REQUEST_PARAMETERS,
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.sensors.credit import ModelScopeCreditSensor
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

CLASSES = (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
    ModelScopeImageGenerationSensor,
    ModelScopeImageToObjectStorageOperator,
)
# The function can return what the decorator does not say.
RETURNED = ("model", "prompt")


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    given = inspect.signature(function).parameters.values()
    return {parameter.name: parameter for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}


ONE_STEP = parameters(ModelScopeImageGenerationOperator)
BATCH = parameters(ModelScopeImageBatchOperator)
# A row may have a model of its own, a batch can end without credit, and it waits for many generations.
DIFFERENT_IN_BATCH = {"model", "on_exhausted", "defer_after"}


@pytest.mark.parametrize("task", [*CLASSES[1:], ModelScopeCreditSensor], ids=lambda task: task.__name__)
def test_a_parameter_is_the_same_in_every_class(task: type[BaseOperator]) -> None:
    shared = parameters(task).keys() & ONE_STEP.keys()
    assert "modelscope_conn_id" in shared
    assert {name: parameters(task)[name] for name in shared} == {name: ONE_STEP[name] for name in shared}


def test_the_sensor_and_the_transfer_share_the_generation_id() -> None:
    sensor, transfer = map(parameters, CLASSES[2:])
    assert sensor["generation_id"] == transfer["generation_id"]


def test_one_step_takes_all_parameters_of_its_parts() -> None:
    submit, sensor, transfer = map(parameters, CLASSES[1:])
    parts = submit | sensor | transfer
    assert ONE_STEP.keys() - parts.keys() == {"poll_interval", "preflight"}
    assert parts.keys() - ONE_STEP.keys() == {"generation_id", "poke_interval"}
    poll_interval, poke_interval = ONE_STEP["poll_interval"], sensor["poke_interval"]
    assert poll_interval == poke_interval.replace(name="poll_interval")


def test_the_decorator_takes_the_parameters_of_the_operator() -> None:
    decorator = parameters(modelscope_image_task)
    assert decorator.keys() == ONE_STEP.keys()
    for name, parameter in decorator.items():
        if name in RETURNED:
            assert parameter.default is None
            assert parameter.annotation == f"{ONE_STEP[name].annotation} | None"
        else:
            assert parameter == ONE_STEP[name]


def test_the_batch_takes_the_same_parameters_and_more() -> None:
    assert ONE_STEP.keys() - BATCH.keys() == {"prompt", "durable", "preflight"}
    shared = ONE_STEP.keys() & BATCH.keys()
    assert {name for name in shared if ONE_STEP[name] != BATCH[name]} == DIFFERENT_IN_BATCH


def test_the_decorator_of_the_batch_takes_all_but_the_requests() -> None:
    decorator = parameters(modelscope_image_batch_task)
    assert decorator == {name: parameter for name, parameter in BATCH.items() if name != "requests"}


def test_the_request_has_the_parameters_of_the_operators() -> None:
    request = inspect.signature(GenerationRequest).parameters
    assert tuple(request) == (*REQUEST_PARAMETERS, "check_ranges")
    for name in request:
        assert ONE_STEP[name].default == request[name].default


@pytest.mark.parametrize(
    "task", [*CLASSES, ModelScopeImageBatchOperator, ModelScopeCreditSensor], ids=lambda task: task.__name__
)
def test_every_parameter_is_documented_in_order(task: type[BaseOperator]) -> None:
    documented = re.findall(r":param (\w+): ", inspect.getdoc(task) or "")
    assert documented == list(parameters(task))
