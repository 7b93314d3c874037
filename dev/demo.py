"""``make demo``: generates one image with a real Airflow Dag, and prints where it is and how to open it.

It uses the emulator or, if ``MODELSCOPE_API_TOKEN`` is set, ModelScope itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from airflow_provider_modelscope.emulator import Emulator
from tests.support.real_airflow import RealAirflow

FOLDER = Path(__file__).parent.parent / ".demo"
DAG = "example_text_to_image"
DURATION = 12.0  # seconds of an emulated generation, long enough for a deferral


def main() -> int:
    """Run the Dag and print the result."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    with nullcontext() if token else Emulator(duration=DURATION) as emulator:
        connection = {"conn_type": "modelscope", "password": token or "any-token"}
        if emulator is not None:
            connection["host"] = emulator.base_url
        airflow = RealAirflow(FOLDER / "airflow", connections={"modelscope_default": connection})
        print(f"Service:  {f'emulator, {DURATION:.0f} s per generation' if emulator else 'ModelScope'}")
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
        path = image["uri"].removeprefix("file://")
        size = f"{image['width']}x{image['height']} {image['content_type']}, {image['size_bytes']} bytes"
        print(f"Image:    {path}\n          {size}, seed {image['seed']}, model {image['model']}")
        if command := viewer():
            print(f"Open it:  {command} {shlex.quote(path)}")
    print(f"Log:      {FOLDER / 'demo.log'}")
    print(f"Seconds:  {seconds:.1f}")
    print("Next:     make ui starts Airflow's UI, where the tab Images of a Dag run shows its images")
    return 0


def viewer() -> str | None:
    """Return the command that opens an image on this machine, or None if it has no desktop."""
    if sys.platform == "darwin":
        return "open"
    has_desktop = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    return "xdg-open" if has_desktop and shutil.which("xdg-open") else None


if __name__ == "__main__":
    sys.exit(main())
