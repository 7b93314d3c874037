"""A real Airflow in a folder of its own: its database, its environment, its commands.

Used by the tests that run Dags and by ``make demo`` and ``make ui``. Nothing of the machine's own Airflow
settings comes in, and nothing goes out of the folder.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

EXAMPLE_DAGS = Path(__file__).parent.parent / "example_dags"


class RealAirflow:
    """Airflow with SQLite in one folder.

    :param home: Its ``AIRFLOW_HOME``; made and kept.
    :param dags: The folder of Dag files.
    :param connections: Airflow connections by id, as in Airflow's JSON form.
    """

    def __init__(self, home: Path, *, dags: Path = EXAMPLE_DAGS, connections: dict[str, dict[str, Any]]) -> None:
        self.home = home
        self.database = home / "airflow.db"
        foreign = ("AIRFLOW_", "PYTHONWARNINGS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment |= {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}",
            # Talk to this machine directly, whatever proxy the environment names.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        for connection_id, connection in connections.items():
            self.environment[f"AIRFLOW_CONN_{connection_id.upper()}"] = json.dumps(connection)

    def migrate(self) -> None:
        """Make the database, if it is not there."""
        if not self.database.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            self.run("db", "migrate")

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of an ``airflow`` command of this Python."""
        return [sys.executable, "-m", "airflow", *arguments]

    def run(self, *arguments: str, timeout: float = 300) -> str:
        """Run an ``airflow`` command and return what it prints.

        :raises RuntimeError: with its output, where it fails.
        """
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"airflow {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def test_dag(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Run a Dag to its end in one process, triggers included, and return its log.

        :raises RuntimeError: where a task fails.
        """
        log = self.run("dags", "test", dag_id, "--conf", json.dumps(conf))
        failed = {f"{task}: {state}" for task, state in self.task_states(dag_id) if state != "success"}
        if failed:
            raise RuntimeError(f"{dag_id}: {', '.join(sorted(failed))}\n{log}")
        return log

    def task_states(self, dag_id: str) -> list[tuple[str, str]]:
        """Return the task ids and states of the Dag's last run."""
        return self._query(
            "select task_id, coalesce(state, 'none') from task_instance where dag_id = ? and run_id = "
            "(select run_id from dag_run where dag_id = ? order by id desc limit 1)",
            dag_id,
            dag_id,
        )

    def xcoms(self, dag_id: str, task_id: str, key: str = "return_value") -> list[Any]:
        """Return what the task pushed in the Dag's last run, one entry for each map index."""
        rows = self._query(
            "select value from xcom where dag_id = ? and task_id = ? and key = ? and run_id = "
            "(select run_id from dag_run where dag_id = ? order by id desc limit 1) order by map_index",
            dag_id,
            task_id,
            key,
            dag_id,
        )
        return [json.loads(value) for (value,) in rows]

    def _query(self, statement: str, *parameters: str) -> list[Any]:
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(statement, parameters).fetchall()
