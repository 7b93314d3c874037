"""One Airflow on PostgreSQL for all proofs, with a service for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelscope.emulator import Emulator
from tests.support.postgres import postgres
from tests.support.real_airflow import RealAirflow

DAGS = Path(__file__).parent / "dags"
SERVICES: dict[str, dict[str, Any]] = {
    "warm_up": {"duration": 0.0},
    "race": {"duration": 1.0, "max_running": 40},
    "ready_after_1": {"duration": 1.0, "max_running": 40},
    "ready_after_2": {"duration": 2.0, "max_running": 40},
    "ready_after_3": {"duration": 3.0, "max_running": 40},
    "one_image": {"duration": 2.0},
    "one_slot": {"duration": 10.0, "max_running": 1},
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task instance that has ended."""

    map_index: int
    state: str
    try_number: int
    seconds: float  # from its start to its end


class Proof:
    """The Airflow in which the proofs run.

    :param url: URL of the API server.
    :param services: The services by connection id.
    """

    def __init__(self, airflow: RealAirflow, url: str, services: dict[str, Emulator]) -> None:
        self.services = services
        self._airflow = airflow
        self._url = url

    def run(
        self,
        dag_id: str,
        service: str = "",
        *,
        limit: float = 300.0,
        watch: Callable[[Counter[str]], object] = lambda states: None,
    ) -> list[Task]:
        """Run a Dag and return its task instances.

        :param service: Id of the connection.
        :param limit: Timeout in seconds.
        :param watch: Called every half second with the number of task instances in each state.
        """
        self._airflow.run_dag(
            self._url,
            dag_id,
            {"modelscope_conn_id": service, "destination": f"file://{self.folder(service)}/"},
            limit=limit,
            watch=lambda: watch(Counter(state for _, state in self._airflow.task_states(dag_id))),
        )
        rows = self._airflow.query(
            "select map_index, state, try_number, extract(epoch from end_date - start_date) "
            "from task_instance where dag_id = :dag_id and run_id = "
            "(select run_id from dag_run where dag_id = :dag_id order by id desc limit 1) order by map_index",
            dag_id=dag_id,
        )
        return [
            Task(map_index=map_index, state=state, try_number=try_number, seconds=float(seconds or 0))
            for map_index, state, try_number, seconds in rows
        ]

    def folder(self, service: str) -> Path:
        """Return the folder with the images of a service."""
        return self._airflow.home / "images" / service


@pytest.fixture(scope="session")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    with ExitStack() as stack:
        services = {name: stack.enter_context(Emulator(**options)) for name, options in SERVICES.items()}
        airflow = RealAirflow(
            tmp_path_factory.mktemp("proof"),
            dags=DAGS,
            connections={
                name: {"conn_type": "modelscope", "password": "ms-proof", "host": service.base_url}
                for name, service in services.items()
            },
            database_url=stack.enter_context(postgres()),
        )
        airflow.environment |= {
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",  # more tasks than any proof has
            # The API server has 40 threads. With the default of 15 connections they block each other.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",
        }
        airflow.migrate()
        proof = Proof(airflow, stack.enter_context(airflow.standalone()), services)
        proof.run("one", "warm_up")  # the first task of an Airflow takes 7 s longer
        yield proof
