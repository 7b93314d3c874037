"""``make ui``: starts Airflow's UI on localhost, with the emulator, a connection and the example Dags."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from airflow_provider_modelscope.emulator import Emulator
from tests.support.real_airflow import EXAMPLE_DAGS, RealAirflow, free_port

DAG = "example_edit_image"
FORM = "example_params_form"
FOLDER = Path(__file__).parent.parent / ".ui"


def main() -> int:
    """Start everything, print the URLs, and stop on Ctrl-C."""
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # explicit, because a shell can ignore SIGINT
        signal.signal(signal_, signal.default_int_handler)
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    with Emulator(duration=10.0) as emulator:
        connection = {"conn_type": "modelscope", "password": token or "any-token"}
        if not token:
            connection["host"] = emulator.base_url
        airflow = RealAirflow(FOLDER / "airflow")
        airflow.environment |= {
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__PARALLELISM": "4",  # with more, SQLite is locked too often
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",  # seconds until a new Dag file is read
        }
        airflow.migrate()
        # The UI shows connections in the database, but not those in the environment.
        airflow.run("connections", "delete", "modelscope_default", check=False)
        airflow.run("connections", "add", "modelscope_default", "--conn-json", json.dumps(connection))
        print("Starting Airflow, about 40 s ...", flush=True)
        with airflow.standalone(port=free_port(8080)) as url:
            print(f"\nAirflow:  {url}")
            print(f"Service:  {'ModelScope' if token else f'emulator on {emulator.base_url}'}")
            print(f"Dags:     those in {EXAMPLE_DAGS.name}; your own can go there too")
            print(f"Form:     {url}/dags/{FORM}: choose Trigger")
            if not token:  # with a token, the run would cost credit
                print(f"Images:   {url}/{_images(airflow, url, emulator)}")
            print("Ctrl-C stops everything.", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
        print("Stopped.")
    return 0


def _images(airflow: RealAirflow, url: str, emulator: Emulator) -> str:
    """Return the page of a run's images in the UI. If there is no run yet, start one."""

    def runs() -> list[str]:
        query = "select run_id from xcom where dag_id = :dag_id and key = 'images'"
        return [run_id for (run_id,) in airflow.query(query, dag_id=DAG)]

    if not runs():
        conf = {"destination": f"file://{FOLDER}/images/"}
        airflow.run_dag(url, DAG, conf, watch=emulator.finish)
    return f"dags/{DAG}/runs/{quote(runs()[0], safe=':+')}/plugin/modelscope-images"


if __name__ == "__main__":
    sys.exit(main())
