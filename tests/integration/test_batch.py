"""A batch in a real Airflow: the example Dag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modelscope.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.real_airflow import RealAirflow

DAG = "example_batch"


def test_the_example_stores_an_image_for_each_row(
    airflow_for: Callable[[Emulator], RealAirflow], tmp_path: Path
) -> None:
    with Emulator(duration=1.0) as emulator:
        airflow = airflow_for(emulator)
        airflow.test_dag(DAG, {"destination": f"file://{tmp_path}/"})
        served = list(emulator.served.values())
        assert emulator.accepted == 4
    [summary] = airflow.xcoms(DAG, "draw", "return_value")
    [path] = Path(tmp_path, "batch").glob("*/manifest.jsonl")
    assert summary == {
        "manifest": f"file://{path}",
        "counts": {"stored": 4, "rejected": 0, "failed": 0, "skipped": 0},
        "credit": 0.8,
        "stopped_by": None,
    }
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["kettle", "lamp", "teapot", "scarf"]
    assert [Path(row["uri"].removeprefix("file://")).read_bytes() in served for row in rows] == [True] * 4
    assert [row["data"]["title"] for row in rows] == ["Kettle", "Lamp", "Teapot", "Scarf"]
    [mapped] = airflow.xcoms(DAG, "stored_rows", "return_value")
    assert mapped == rows
