"""The entry point of our pytest plugin, for runs of pytest outside of this repository.

It is that of the sources, which an environment may have installed before they had one.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import airflow_provider_modelscope

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
[(NAME, MODULE)] = PROJECT["entry-points"]["pytest11"].items()


def path_with_entry_point(folder: Path) -> str:
    """Return a PYTHONPATH with the package, and with its metadata, which are written into a folder."""
    metadata = folder / "airflow_provider_modelscope-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: airflow-provider-modelscope\nVersion: 0\n"
    )
    (metadata / "RECORD").write_text("airflow_provider_modelscope/__init__.py,,\n")
    (metadata / "entry_points.txt").write_text(f"[pytest11]\n{NAME} = {MODULE}\n")
    return f"{folder}{os.pathsep}{Path(airflow_provider_modelscope.__file__).parents[1]}"
