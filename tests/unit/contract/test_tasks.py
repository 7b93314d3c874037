"""A chain of tasks and the one-step task do the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeFinalError
from airflow_provider_modelscope.operators.image_batch import QUOTED_PARAMETERS
from airflow_provider_modelscope.operators.image_generation import (
    REQUEST_PARAMETERS,
    ModelScopeSubmitImageGenerationOperator,
)
from tests.unit.builders import (
    REQUEST,
    Context,
    batch,
    credit_sensor,
    one_step,
    rendered,
    run,
    sensor,
    submitter,
    transfer,
)
from tests.unit.conftest import TOKEN, TaskInstance, connect

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.mark.parametrize("make", [submitter, one_step, sensor, credit_sensor, transfer])
def test_multiple_outputs_is_refused_at_construction(make: Any) -> None:
    with pytest.raises(InvalidRequestError, match="multiple_outputs = True: must be False"):
        make(multiple_outputs=True)


# What templates can render: each parameter of a kind of task to a value that a check would quote.
SECRETS = [
    *(
        (make, name)
        for make in (submitter, one_step)
        for name in (*REQUEST_PARAMETERS, "fallback_models", "storage_conn_id")
    ),
    (one_step, "destination"),
    (one_step, "preflight"),
    *((batch, name) for name in QUOTED_PARAMETERS),
    (sensor, "generation_id"),
    (credit_sensor, "min_available"),
    (transfer, "generation_id"),
    (transfer, "destination"),
    (transfer, "storage_conn_id"),
]


@pytest.mark.parametrize(("make", "name"), SECRETS)
@pytest.mark.parametrize("host", [None, "ftp://a.example"], ids=["valid", "invalid connection"])
def test_no_error_quotes_a_rendered_token(
    make: Any,
    name: str,
    host: str | None,
    emulator: Emulator,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(monkeypatch, host or emulator.base_url)
    for value in (TOKEN, [TOKEN], {TOKEN: TOKEN}, f"  {TOKEN}\0", f"s3://{TOKEN}"):
        with pytest.raises(InvalidRequestError, match=f"{name}: must not contain the token") as raised:
            rendered(make(), **{name: value}).execute(context)
        assert TOKEN not in str(raised.value)
    assert not emulator.requests


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (submitter, "size"),
        (one_step, "size"),
        (batch, "destination"),
        (sensor, "generation_id"),
        (credit_sensor, "min_available"),
        (transfer, "destination"),
    ],
)
def test_an_invalid_connection_is_reported_with_other_errors(
    make: Any, name: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "ftp://a.example")
    with pytest.raises(ModelScopeFinalError, match=f"{name} = .*host must be a URL"):
        rendered(make(), **{name: ""} if name == "generation_id" else {name: "x"}).execute(context)


def test_a_subclass_that_returns_a_mapping_may_split_it() -> None:
    class Mapping(ModelScopeSubmitImageGenerationOperator):
        def execute(self, context: Context) -> Any:
            return {"id": super().execute(context)}

    assert Mapping(task_id="submit", **REQUEST, multiple_outputs=True).multiple_outputs


def test_the_summary_of_a_batch_may_be_split() -> None:
    assert batch(multiple_outputs=True).multiple_outputs


@pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])
def test_one_task_does_what_the_chain_does(
    emulator: Emulator, context: Context, deferrable: bool, tmp_path: Path
) -> None:
    chained: Any = {"ti": TaskInstance()}
    generation_id = submitter().execute(chained)
    assert run(sensor(generation_id, deferrable=deferrable), chained) == generation_id
    [chain_uri] = run(transfer(generation_id, tmp_path / "chain"), chained)
    [uri] = run(one_step(tmp_path, deferrable=deferrable), context)
    [image], [chain_image] = context["ti"].pushed["images"], chained["ti"].pushed["images"]
    assert Path(uri.removeprefix("file://")).read_bytes() in emulator.served.values()
    assert uri == f"file://{tmp_path}/{context['ti'].pushed['request']['generation_id']}-1.png"
    # Only a Dag knows which submit task stands upstream, so the model and the credit are not known here.
    assert image["parameters"].pop("model") == REQUEST["model"]
    own = {name: chain_image[name] for name in ("generation_id", "duration_ms")}
    assert chain_image == {**image, **own, "uri": chain_uri, "model": None, "credit": None}
    assert chain_image["generation_id"] == generation_id
    assert image["seed"] == 5
    assert image["model"] == REQUEST["model"]
