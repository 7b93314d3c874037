"""``@task.modelscope_image_batch``: the images of all requests that a function returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope import manifest
from airflow_provider_modelscope.compat import AirflowSkipException, TaskDeferred
from airflow_provider_modelscope.decorators.image_batch import modelscope_image_batch_task
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import InvalidRequestError
from tests.unit.builders import resume, submissions
from tests.unit.conftest import TOKEN, TaskInstance, connect

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_pauses")


def drawing(function: Callable[..., Any], folder: Path, *arguments: Any, **options: Any) -> Any:
    """Return the task that the decorator makes of a function."""
    given: dict[str, Any] = {"task_id": "draw_all", "model": "a/b", "size": "64x64", **options}
    with DAG("a_dag", schedule=None):
        drawn: Any = modelscope_image_batch_task(function, destination=f"file://{folder}/", **given)(
            *arguments
        )
    return drawn.operator


def execute(task: Any, context: Any) -> Any:
    task.render_template_fields(context)
    return task.execute(context)


def prompts(emulator: Emulator) -> list[str]:
    return [one.json["prompt"] for one in submissions(emulator)]


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance(), "params": {"animal": "cat"}, "ds": "2026-11-25"}


def test_each_returned_request_is_submitted(emulator: Emulator, context: Any, tmp_path: Path) -> None:
    def requests(animal: str, ds: str) -> list[Any]:
        return [f"A {animal}", {"prompt": ds, "key": "day", "seed": 5}]

    summary = execute(drawing(requests, tmp_path, "{{ params.animal }}"), context)
    assert prompts(emulator) == ["A cat", "2026-11-25"]
    assert [row.key for row in manifest.read(summary)] == ["000001", "day"]


def test_a_returned_uri_is_read(emulator: Emulator, context: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,key\nA cat,cat\n")
    summary = execute(drawing(lambda: f"file://{tmp_path}/rows.csv", tmp_path / "out"), context)
    assert [row.key for row in manifest.read(summary)] == ["cat"]


def test_what_is_returned_is_not_rendered(emulator: Emulator, context: Any, tmp_path: Path) -> None:
    execute(drawing(lambda: ["{{ params.animal }}"], tmp_path), context)
    assert prompts(emulator) == ["{{ params.animal }}"]


@pytest.mark.parametrize("returned", [None, "A cat", {"prompt": "A cat"}, 7, [7], [None]], ids=str)
def test_an_invalid_result_fails_the_task_and_sends_nothing(
    emulator: Emulator, context: Any, tmp_path: Path, returned: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=r"requests(\[0\]| = )"):
        execute(drawing(lambda: returned, tmp_path), context)
    assert not emulator.requests


def test_an_empty_list_may_skip_the_task(emulator: Emulator, context: Any, tmp_path: Path) -> None:
    with pytest.raises(AirflowSkipException):
        execute(drawing(list, tmp_path, on_empty="skip"), context)


@pytest.mark.parametrize(
    "row", [TOKEN, {"prompt": "A cat", "key": f"{'x' * 30}{TOKEN}/"}], ids=["prompt", "key"]
)
def test_a_returned_secret_is_refused_and_never_quoted(
    emulator: Emulator, context: Any, tmp_path: Path, row: Any
) -> None:
    with pytest.raises(InvalidRequestError, match="must not contain the token") as raised:
        execute(drawing(lambda: [row], tmp_path), context)
    assert TOKEN not in str(raised.value)


def test_an_attempt_calls_the_function_once(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def requests() -> list[str]:
        calls.append(1)
        return [f"A cat {len(calls)}"]

    with Emulator(duration=1000) as emulator:
        connect(monkeypatch, emulator.base_url)
        task = drawing(requests, tmp_path, deferrable=True, defer_after=0)
        with pytest.raises(TaskDeferred) as deferral:
            execute(task, context)
        emulator.finish()
        summary = resume(task, deferral.value, context)
        assert summary["counts"]["stored"] == len(calls) == emulator.accepted == 1
        context["ti"].try_number = 2
        with pytest.raises(TaskDeferred):  # for what it returned now
            task.execute(context)
        assert len(calls) == 2


def test_it_maps(tmp_path: Path) -> None:
    with DAG("a_dag", schedule=None):
        partial: Any = modelscope_image_batch_task(
            lambda name: [name], destination=f"file://{tmp_path}/{{{{ ti.map_index }}}}/", task_id="draw_all"
        )
        assert partial.expand(name=["A cat", "A dog"])
