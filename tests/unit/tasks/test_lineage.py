"""OpenLineage gets the inputs and outputs of a task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator
from airflow_provider_modelscope.tasks.lineage import lineage_of
from tests.unit.builders import IMAGE

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator
    from airflow_provider_modelscope.xcoms import StoredImage


pytest.importorskip("airflow.providers.openlineage", reason="its provider")


def image(uri: str, **parameters: Any) -> StoredImage:
    return replace(IMAGE, uri=uri, model=parameters.get("model"), parameters=parameters)


def names(datasets: Any) -> list[tuple[str, str]]:
    return [(dataset.namespace, dataset.name) for dataset in datasets]


def test_inputs_are_model_and_sources_and_outputs_are_objects() -> None:
    sources = ["s3://in/a/b.png", "https://images.example/c.png?...", "data:image/png;base64,AAAA"]
    stored = [image(f"s3://out/x/{n}.png", model="a/b", image_url=sources) for n in (1, 2)]
    lineage = lineage_of(stored)
    assert names(lineage.inputs) == [
        ("modelscope", "a/b"),
        ("s3://in", "a/b.png"),
        ("https://images.example", "c.png"),
    ]
    assert names(lineage.outputs) == [("s3://out", "x/1.png"), ("s3://out", "x/2.png")]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("file:///tmp/a.png", ("file", "/tmp/a.png")),  # noqa: S108
        ("gs://bucket/a b.png", ("gs://bucket", "a b.png")),
        ("abfs://container/a.png", ("abfs://container", "a.png")),
        ("s3://conn@bucket/a.png", ("s3://bucket", "a.png")),
    ],
)
def test_objects_have_openlineage_names(uri: str, name: tuple[str, str]) -> None:
    assert names(lineage_of([image(uri)]).outputs) == [name]


@pytest.mark.usefixtures("no_pauses")
def test_a_task_reports_its_images_after_it_stored_them(
    emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    draw = ModelScopeImageGenerationOperator(
        task_id="draw", model="a/b", prompt="A cat", destination=f"file://{tmp_path}/cat.png"
    )
    assert names(draw.get_openlineage_facets_on_complete(context["ti"]).outputs) == []
    draw.execute(context)
    lineage = draw.get_openlineage_facets_on_complete(context["ti"])
    assert names(lineage.inputs) == [("modelscope", "a/b")]
    assert names(lineage.outputs) == [("file", f"{tmp_path}/cat.png")]
