"""With a real scheduler, triggerer and workers: a wait that lasts holds no worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from airflow_provider_modelscope.emulator import Emulator

if TYPE_CHECKING:
    from tests.real_airflow import RealAirflow

DAG = "example_text_to_image"
SECONDS = 14.0  # longer than a task looks from its worker
LIMIT = 120.0


def test_the_wait_moves_to_the_triggerer_and_back_and_leaks_nothing(
    airflow_for: Callable[[Emulator], RealAirflow], tmp_path: Path
) -> None:
    with Emulator(seconds=SECONDS) as emulator:
        airflow = airflow_for(emulator)
        with airflow.standalone() as url:
            states = _run(url, f"file://{tmp_path}/images/", airflow)
        [[image]] = airflow.xcoms(DAG, "store", "images")
        assert [Path(image["uri"].removeprefix("file://")).read_bytes()] == list(emulator.served.values())
        assert "deferred" in states
        assert emulator.accepted == 1
    for log in [*airflow.home.rglob("*.log"), airflow.database]:
        assert b"ms-integration" not in log.read_bytes(), log


def _run(url: str, destination: str, airflow: RealAirflow) -> list[str]:
    """Run the Dag and return the states in which its waiting task was seen."""
    with requests.Session() as session:
        session.headers["Authorization"] = (
            f"Bearer {session.get(f'{url}/auth/token', timeout=30).json()['access_token']}"
        )
        session.patch(f"{url}/api/v2/dags/{DAG}", json={"is_paused": False}, timeout=30).raise_for_status()
        run = session.post(
            f"{url}/api/v2/dags/{DAG}/dagRuns",
            json={"logical_date": None, "conf": {"destination": destination}},
            timeout=30,
        )
        assert run.ok, run.text
        run_url = f"{url}/api/v2/dags/{DAG}/dagRuns/{run.json()['dag_run_id']}"
        states: list[str] = []
        deadline = time.monotonic() + LIMIT
        while (state := session.get(run_url, timeout=30).json()["state"]) not in ("success", "failed"):
            assert time.monotonic() < deadline, (state, states, airflow.task_states(DAG))
            waiting = session.get(f"{run_url}/taskInstances/wait", timeout=30).json()["state"]
            if waiting not in states:
                states.append(waiting)
            time.sleep(0.25)
        assert state == "success", (states, json.dumps(airflow.task_states(DAG)))
        return states
