"""In a real Airflow each task defers itself, and a task that another one calls waits on the worker."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modelscope.emulator import Emulator

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

DAGS = Path(__file__).with_name("dags")
DEFERS = r"Deferring: generation (\d+) is"
DURATION = 3.0  # seconds; no task finds its image at the first poll


def test_tasks_of_all_kinds_defer(airflow_for: Callable[..., RealAirflow], tmp_path: Path) -> None:
    with Emulator(duration=DURATION) as emulator:
        airflow = airflow_for(emulator, DAGS)
        airflow.environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] = "0"
        log = airflow.test_dag("deferring", {"destination": f"file://{tmp_path}/images/"})
        assert len(set(re.findall(DEFERS, log))) == 3
        assert sorted(drawn(emulator)) == ["decorated", "mapped", "plain"]


def test_a_task_that_another_one_calls_does_not_defer_it(
    airflow_for: Callable[..., RealAirflow], tmp_path: Path
) -> None:
    with Emulator(duration=DURATION) as emulator:
        airflow = airflow_for(emulator, DAGS)
        airflow.environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] = "0"
        log = airflow.test_dag("calling", {"destination": f"file://{tmp_path}/images/"})
        assert len(set(re.findall(DEFERS, log))) == 1  # base_and_edit itself, after its function
        assert sorted(drawn(emulator)) == ["base", "chain", "edit", "one", "three", "two"]
        assert len(airflow.xcoms("calling", "series")[0]) == 3
        assert len(airflow.xcoms("calling", "base_and_edit")[0]) == 1


def drawn(emulator: Emulator) -> list[str]:
    return [exchange.json["prompt"] for exchange in emulator.requests if exchange.method == "POST"]
