"""In a real Airflow, tasks without credit wait in the triggerer, and no task spends more than it may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modelscope.emulator import Emulator

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

RETIRED, FALLBACK = "Qwen/Qwen-Image", "black-forest-labs/FLUX.1-Krea-dev"
DAGS = Path(__file__).with_name("dags")
TOKEN = "ms-integration"
# Airflow runs it at the start of each of its parts.
SETTINGS = """
from airflow_provider_modelscope.waiting import credit

credit.MIN_INTERVAL, credit.MAX_INTERVAL = 2.0, 3.0
"""


def images(folder: Path) -> int:
    return len(list(folder.glob("*.png")))


def log_of(airflow: RealAirflow, dag_id: str) -> str:
    [log] = airflow.home.rglob(f"dag_id={dag_id}/**/attempt=*.log")
    return log.read_text()


def page_of_last_run(airflow: RealAirflow, url: str, dag_id: str) -> str:
    [(run_id,)] = airflow.query("select run_id from dag_run where dag_id = :dag_id", dag_id=dag_id)
    with airflow.session(url) as session:
        response = session.get(f"{url}/modelscope/{dag_id}/images", params={"run_id": run_id}, timeout=30)
    response.raise_for_status()
    return response.text


def attempts(airflow: RealAirflow, dag_id: str) -> list[tuple[str, int]]:
    rows = airflow.query("select state, try_number from task_instance where dag_id = :dag_id", dag_id=dag_id)
    return [(state, try_number) for state, try_number in rows]


def test_five_tasks_share_the_credit_for_three_until_there_is_more(
    airflow_for: Callable[..., RealAirflow], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    with Emulator(credit=3, duration=1, max_running=5) as emulator:
        airflow = airflow_for(emulator, DAGS)
        (airflow.home / "config").mkdir()
        (airflow.home / "config" / "airflow_local_settings.py").write_text(SETTINGS)
        seen: list[list[str]] = []

        def watch() -> None:
            states = sorted(state for _, state in airflow.task_states("waiting_for_credit"))
            if states == ["deferred", "deferred", "success", "success", "success"]:
                seen.append(states)
                if len(seen) == 10:  # for five seconds; two readings or more
                    assert images(folder) == emulator.accepted == 3
                    emulator.grant(TOKEN, 2)

        with airflow.standalone() as url:
            conf = {"destination": f"file://{folder}/"}
            assert airflow.run_dag(url, "waiting_for_credit", conf, limit=180, watch=watch) == "success"
        assert images(folder) == emulator.accepted == 5
        assert attempts(airflow, "waiting_for_credit") == [("success", 1)] * 5


def test_limits_and_fallbacks_decide_what_is_paid(
    airflow_for: Callable[..., RealAirflow], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    with Emulator(max_running=5, retired_models=["Qwen/Qwen-Image"]) as emulator:
        airflow = airflow_for(emulator, DAGS)
        airflow.environment["AIRFLOW__MODELSCOPE__SUBMISSION_RECORDS"] = f"file://{airflow.home}/"
        with airflow.standalone() as url:
            conf = {"destination": f"file://{folder}/"}
            assert airflow.run_dag(url, "spending_little", conf, limit=180) == "failed"
            assert images(folder) == emulator.accepted == 2
            assert "max_credit = 2 would be exceeded" in log_of(airflow, "spending_little")
            assert airflow.run_dag(url, "falling_back", conf, limit=180) == "success"
            page = page_of_last_run(airflow, url, "falling_back")
        assert images(folder) == emulator.accepted == 3
        [[image]] = airflow.xcoms("falling_back", "draw", "images")
        assert (image["model"], image["asked_model"], image["credit"]) == (FALLBACK, RETIRED, 1)
        assert f"Asking {FALLBACK} instead of {RETIRED}" in log_of(airflow, "falling_back")
        assert "Model asked first" in page
        assert RETIRED in page
