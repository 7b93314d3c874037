"""``make demo``: one picture, made by a real Airflow Dag, and where it lies.

Against the emulator, or against ModelScope itself where ``MODELSCOPE_API_TOKEN`` is set.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from airflow_provider_modelscope.emulator import Emulator
from tests.support.real_airflow import RealAirflow

FOLDER = Path(__file__).parent.parent / ".demo"
DAG = "example_text_to_image"
SECONDS = 12.0  # of the emulated generation: long enough to see the wait leave the worker


def main() -> int:
    """Run the Dag and say what came of it."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    with nullcontext() if token else Emulator(duration=SECONDS) as emulator:
        connection = {"conn_type": "modelscope", "password": token or "any-token"}
        if emulator is not None:
            connection["host"] = emulator.base_url
        airflow = RealAirflow(FOLDER / "airflow", connections={"modelscope_default": connection})
        print(f"Service:  {f'emulator, {SECONDS:.0f} s for a picture' if emulator else 'ModelScope'}")
        print(f"Airflow:  {airflow.home}", flush=True)
        airflow.migrate()
        print(f"Dag:      {DAG}, running ...", flush=True)
        started_at = time.monotonic()
        try:
            log = airflow.test_dag(DAG, {"destination": f"file://{FOLDER}/images/"})
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        seconds = time.monotonic() - started_at
    (FOLDER / "demo.log").write_text(log)
    for line in re.findall(r"\[info *\] (.*\bgeneration \d.*?) +\[", log, re.IGNORECASE):
        print(f"          {line}")
    print("Tasks:    " + ", ".join(f"{task} {state}" for task, state in airflow.task_states(DAG)))
    [images] = airflow.xcoms(DAG, "store", "images")
    for image in images:
        size = f"{image['width']}x{image['height']} {image['content_type']}, {image['bytes']} bytes"
        print(f"Image:    {image['uri']}\n          {size}, seed {image['seed']}, model {image['model']}")
    print(f"Log:      {FOLDER / 'demo.log'}")
    print(f"Seconds:  {seconds:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
