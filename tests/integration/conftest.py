"""A real Airflow for each test. The database is migrated once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.real_airflow import EXAMPLE_DAGS, RealAirflow

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> RealAirflow:
    airflow = RealAirflow(tmp_path_factory.mktemp("migrated"))
    airflow.migrate()
    return airflow


@pytest.fixture
def airflow_for(migrated: RealAirflow, tmp_path: Path) -> Callable[..., RealAirflow]:
    """Create an Airflow whose connection ``modelscope_default`` points to an emulator."""

    def make(emulator: Emulator, dags: Path = EXAMPLE_DAGS) -> RealAirflow:
        connection: dict[str, Any] = {
            "conn_type": "modelscope",
            "password": "ms-integration",
            "host": emulator.base_url,
        }
        airflow = RealAirflow(tmp_path / "airflow", dags=dags, connections={"modelscope_default": connection})
        airflow.home.mkdir()
        shutil.copy(migrated.database, airflow.database)
        return airflow

    return make
