"""Checks of constants when a Dag file is parsed: never a false alarm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
from airflow.sdk import DAG, Param, dag
from airflow.sdk.bases.operator import BaseOperator

from airflow_provider_modelscope.decorators.image_generation import modelscope_image_task
from airflow_provider_modelscope.exceptions import InvalidDestinationError, InvalidRequestError
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from tests.unit.builders import REQUEST, Context, one_step, rendered, sensor, submitter, transfer


class Text(str):
    """Text of an unknown type, which may change before the task runs."""


class Resolving:
    """A value that Airflow resolves when the task runs."""

    def resolve(self, context: Any) -> Any: ...


@pytest.fixture
def a_dag() -> Iterator[DAG]:
    """The Dag of the tasks: only then the syntax of their templates is known."""
    with DAG("a_dag", schedule=None) as dag:
        yield dag


TEMPLATES: list[tuple[str, Any]] = [
    ("model", "{{ params.model }}"),
    ("prompt", " {% if false %}A cat{% endif %} "),
    ("size", "{{ params.width }}*{{ params.height }}"),
    ("size", "1024*{# later #}"),
    ("seed", "{{ params.seed }}"),
    ("image_url", ["cat.png", "{{ params.image }}"]),
    ("loras", {"a/b": 0.5, "c/d": "{{ params.weight }}"}),
    ("loras", {"{{ params.lora }}": 0.5}),
    ("extra_parameters", {"seed": ["{{ params.seed }}"]}),
    ("extra_parameters", ("{{ params.name }}", 1)),
]
UNKNOWN: list[Any] = [
    Text("abc"),
    Resolving(),
    object(),
    PurePosixPath("cat.png"),
    [Text("abc")],
    {"a": {5, Text()}},
]


@pytest.mark.usefixtures("a_dag")
@pytest.mark.parametrize(("parameter", "value"), TEMPLATES, ids=str)
def test_a_template_is_not_a_constant(parameter: str, value: Any) -> None:
    assert submitter(**{parameter: value})


@pytest.mark.usefixtures("a_dag")
@pytest.mark.parametrize("value", UNKNOWN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("parameter", ["size", "seed", "image_url", "loras", "extra_parameters"])
def test_a_value_of_an_unknown_type_is_not_a_constant(parameter: str, value: Any) -> None:
    assert submitter(**{parameter: value})
    assert transfer(generation_id=value, destination=value)


@pytest.mark.usefixtures("a_dag")
def test_an_xcom_is_not_a_constant() -> None:
    xcom = submitter().output
    assert sensor(xcom)
    assert submitter(task_id="second", image_url=["cat.png", xcom], prompt=xcom)


def test_parameters_of_the_dag_are_not_constants() -> None:
    @dag(schedule=None, params={"prompt": Param("", type="string")})
    def cats(size: str = "large", prompt: str = "") -> None:
        submitter(size=size, prompt=prompt)

    assert cats().task_ids == ["submit"]


@pytest.mark.usefixtures("a_dag")
@pytest.mark.parametrize("prompt", ["x" * 1999 + "\n", "x\r\n" * 700])
def test_text_that_jinja_shortens_is_not_a_constant(prompt: str, context: Context) -> None:
    task = submitter(prompt=prompt)
    task.render_template_fields(context)
    assert task._request().prompt == task.prompt


@pytest.mark.parametrize(
    "options",
    [
        {"jinja_environment_kwargs": {"variable_start_string": "[[", "variable_end_string": "]]"}},
        {"render_template_as_native_obj": True},
    ],
    ids=str,
)
def test_text_is_not_a_constant_if_the_dag_changes_jinja(options: dict[str, Any]) -> None:
    with DAG("a_dag", schedule=None, **options):
        assert one_step(
            size="[[ params.size ]]", image_url="['https://a.example/1.png']", destination="[[ x ]]"
        )
        with pytest.raises(InvalidRequestError, match=r"seed = -1.*on_lost_response = 'again'"):
            submitter(seed=-1, on_lost_response="again")


def test_text_is_not_a_constant_before_the_task_has_a_dag() -> None:
    task = one_step(size="[[ params.size ]]", destination="[[ x ]]")
    assert task.get_dag() is None
    with pytest.raises(InvalidRequestError, match="seed = -1"):
        submitter(seed=-1)


@pytest.mark.usefixtures("a_dag")
@pytest.mark.skipif(
    not hasattr(BaseOperator, "render_template_as_native_obj"),
    reason="Airflow before 3.3 has it for Dags only",
)
def test_text_is_not_a_constant_if_the_task_changes_jinja() -> None:
    assert submitter(image_url="['https://a.example/1.png']", render_template_as_native_obj=True)


def test_default_arguments_are_checked_like_arguments() -> None:
    with DAG("a_dag", schedule=None, default_args={"seed": "{{ params.seed }}"}):
        assert ModelScopeSubmitImageGenerationOperator(task_id="a", model="a/b", prompt="A cat")
    with (
        DAG("a_dag", schedule=None, default_args={"seed": "abc"}),
        pytest.raises(InvalidRequestError, match="seed = 'abc'"),
    ):
        ModelScopeSubmitImageGenerationOperator(task_id="a", model="a/b", prompt="A cat")


@pytest.mark.usefixtures("a_dag")
def test_the_size_is_checked_against_a_constant_model_only() -> None:
    assert submitter(task_id="a", model="{{ params.model }}", size="9000x9000")
    assert submitter(task_id="b", model="Qwen/Qwen-Image", size="{{ params.size }}")
    with pytest.raises(InvalidRequestError, match="size = '9000x9000'"):
        submitter(task_id="c", model="Qwen/Qwen-Image", size="9000x9000")


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [("seed", "abc", InvalidRequestError), ("destination", "cats", InvalidDestinationError)],
)
def test_a_mapped_task_is_checked_when_it_runs(
    parameter: str, value: Any, error: type[Exception], context: Context
) -> None:
    arguments = {**REQUEST, "destination": "file:///cats/"}
    del arguments[parameter]
    with DAG("a_dag", schedule=None):
        partial = ModelScopeImageGenerationOperator.partial(task_id="draw", **arguments)
        mapped: Any = partial.expand(**{parameter: [value]})
    unmapped = mapped.unmap({parameter: value})
    with pytest.raises(error, match=f"{parameter} = '{value}'"):
        unmapped.execute(context)


@pytest.mark.usefixtures("a_dag")
def test_a_subclass_may_set_its_arguments_when_it_runs(context: Context) -> None:
    class DailyCat(ModelScopeSubmitImageGenerationOperator):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(model="", prompt="", **kwargs)

        def execute(self, context: Context) -> Any:
            return super().execute(context)

    task = DailyCat(task_id="a")
    with pytest.raises(InvalidRequestError, match=r"model = ''.*prompt = ''"):
        task.execute(context)


@pytest.mark.usefixtures("a_dag")
class TestDecorator:
    def drawn(self, **arguments: Any) -> Any:
        given = {"task_id": "draw", "destination": "file:///cats/", **arguments}
        return modelscope_image_task(lambda: "A cat", **given)()

    def test_what_the_function_may_return_is_not_checked(self) -> None:
        assert self.drawn()
        assert self.drawn(task_id="second", model="Qwen/Qwen-Image", size="9000x9000", prompt="")

    def test_invalid_constants_are_an_import_error(self) -> None:
        invalid = {"seed": "abc", "timeout": 0, "destination": "cats"}
        message = "seed = 'abc'.*timeout = 0.*destination = 'cats'"
        with pytest.raises(InvalidRequestError, match=message):
            self.drawn(**invalid)


def test_options_that_are_not_templated_are_always_constants() -> None:
    with pytest.raises(InvalidRequestError, match=r"^Invalid .*timeout = .*params"):
        one_step(timeout="{{ params.timeout }}")
    with pytest.raises(InvalidRequestError, match=r"^Invalid .*defer_after = .*params"):
        sensor(defer_after="{{ params.seconds }}")


def test_a_check_at_run_time_follows(context: Context) -> None:
    for task, values in ((submitter(), {"seed": "abc"}), (sensor(), {"generation_id": ""})):
        with pytest.raises(InvalidRequestError):
            rendered(task, **values).execute(context)
