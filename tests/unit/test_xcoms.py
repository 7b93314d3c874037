"""A task finds what the submit task upstream recorded, and manages without."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.xcoms import Submission

RECORDED = {"generation_id": "42", "model": "a/b", "submitted_at": 5.0, "prompt": "A cat"}
OTHER = {"generation_id": "41", "model": "c/d", "submitted_at": 4.0, "prompt": "A dog"}


@pytest.fixture(params=[False, True], ids=["one submit task", "a mapped submit task"])
def task(request: pytest.FixtureRequest) -> Any:
    """A sensor below a submit task, with a task between them."""
    submitter = ModelScopeSubmitImageGenerationOperator
    with DAG("chain", schedule=None):
        if request.param:
            submit: Any = submitter.partial(task_id="submit", model="a/b").expand(prompt=["A dog", "A cat"])
        else:
            submit = submitter(task_id="submit", model="a/b", prompt="A cat")
        wait = ModelScopeImageGenerationSensor(task_id="wait", generation_id="42")
        later = ModelScopeImageGenerationSensor(task_id="later", generation_id="42")
        submit >> wait >> later
    return later


@pytest.mark.parametrize("found", [RECORDED, [OTHER, RECORDED], [None, RECORDED]], ids=str)
def test_what_was_recorded_of_the_generation_is_found(task: Any, context: Any, found: Any) -> None:
    context["ti"].upstream = found
    assert Submission.find("42", task=task, context=context) == Submission(
        generation_id="42", model="a/b", submitted_at=5.0, request={"model": "a/b", "prompt": "A cat"}
    )


@pytest.mark.parametrize(("recorded", "size"), [({}, None), ({"size": "8x8"}, "8x8"), ({"size": [8]}, None)])
def test_the_size_is_that_of_the_request_if_it_has_one(
    task: Any, context: Any, recorded: Any, size: Any
) -> None:
    context["ti"].upstream = {**RECORDED, **recorded}
    submission = Submission.find("42", task=task, context=context)
    assert submission
    assert submission.size == size


@pytest.mark.parametrize("found", [None, [], [None], OTHER, [OTHER, OTHER]], ids=str)
def test_a_generation_that_was_submitted_elsewhere_is_not_found(task: Any, context: Any, found: Any) -> None:
    context["ti"].upstream = found
    assert Submission.find("42", task=task, context=context) is None


def test_a_task_without_a_submit_task_upstream_asks_for_no_xcom(context: Any) -> None:
    context["ti"].upstream = RECORDED
    with DAG("alone", schedule=None):
        alone = ModelScopeImageGenerationSensor(task_id="wait", generation_id="42")
    assert Submission.find("42", task=alone, context=context) is None


def test_what_is_recorded_shows_what_was_asked_for(context: Any) -> None:
    request = GenerationRequest(model="a/b", prompt="A cat", seed=3)
    summary = request.summary()
    Submission(generation_id="42", model="a/b", submitted_at=5.0, request=summary).record(context)
    assert context["ti"].pushed == {"request": {**RECORDED, "seed": 3}}
