"""With a real scheduler, triggerer and workers: a wait that lasts holds no worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modelscope.emulator import Emulator

if TYPE_CHECKING:
    from tests.real_airflow import RealAirflow

DAG = "example_text_to_image"
SECONDS = 14.0  # longer than a task looks from its worker


def test_the_wait_moves_to_the_triggerer_and_back_and_leaks_nothing(
    airflow_for: Callable[[Emulator], RealAirflow], tmp_path: Path
) -> None:
    states: set[tuple[str, str]] = set()
    with Emulator(seconds=SECONDS) as emulator:
        airflow = airflow_for(emulator)
        with airflow.standalone() as url:
            state = airflow.run_dag(
                url,
                DAG,
                {"destination": f"file://{tmp_path}/images/"},
                watch=lambda: states.update(airflow.task_states(DAG)),
            )
        assert state == "success", airflow.task_states(DAG)
        [[image]] = airflow.xcoms(DAG, "store", "images")
        assert [Path(image["uri"].removeprefix("file://")).read_bytes()] == list(emulator.served.values())
        assert ("wait", "deferred") in states
        assert emulator.accepted == 1
    for log in [*airflow.home.rglob("*.log"), airflow.database]:
        assert b"ms-integration" not in log.read_bytes(), log
