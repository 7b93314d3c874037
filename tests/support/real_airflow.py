"""A real Airflow in a folder of its own: its database, its environment, its commands.

Used by the tests and proofs that run Dags, and by ``make demo`` and ``make ui``. Nothing of the machine's
own Airflow settings comes in, and nothing goes out of the folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import requests
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

START_SECONDS = 180  # for all of Airflow to come up; some 40 here
PARTS = ("api-server", "scheduler", "triggerer", "dag-processor")
EXAMPLE_DAGS = Path(__file__).parents[2] / "example_dags"


class Part(NamedTuple):
    """A process of Airflow.

    :param command: What ``airflow`` is told to be.
    :param environment: What it has beyond the environment of all; an ``AIRFLOW_HOME`` puts it there.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}


class RealAirflow:
    """Airflow in one folder.

    :param home: Its ``AIRFLOW_HOME``; made and kept.
    :param dags: The folder of Dag files.
    :param connections: Airflow connections by id, as in Airflow's JSON form.
    :param database_url: Its database, for SQLAlchemy; a file of SQLite in ``home`` if None.
    :param login: User name and password for the REST API, where ``environment`` names an auth manager that
        asks for them. Run :meth:`parts` then: ``airflow standalone`` goes back to Airflow's simple one.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path = EXAMPLE_DAGS,
        connections: dict[str, dict[str, Any]] | None = None,
        database_url: str | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self.home = home
        self.login = login
        self.database = home / "airflow.db"
        self.database_url = database_url or f"sqlite:///{self.database}"
        foreign = ("AIRFLOW_", "PYTHONWARNINGS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment |= {
            "AIRFLOW_HOME": str(home),
            # ``airflow standalone`` starts ``airflow`` by its name.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database_url,
            # Talk to this machine directly, whatever proxy the environment names.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        for connection_id, connection in (connections or {}).items():
            self.environment[f"AIRFLOW_CONN_{connection_id.upper()}"] = json.dumps(connection)

    def migrate(self) -> None:
        """Make the database, if it is not there."""
        if not self.database.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            self.run("db", "migrate")

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of an ``airflow`` command of this Python."""
        return [sys.executable, "-m", "airflow", *arguments]

    def run(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
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
        if check and done.returncode:
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

    @contextmanager
    def standalone(self, *, port: int | None = None) -> Iterator[str]:
        """Run API server, scheduler, triggerer and Dag processor; yield the API server's URL; end them all.

        :param port: The API server's; a free one if None.
        :raises RuntimeError: with the end of their log, where they do not come up.
        """
        url = f"http://localhost:{port or free_port()}"
        environment = self._environment_at(url)
        log = self.home / "standalone.log"
        with log.open("w") as output:
            processes = subprocess.Popen(
                self.command("standalone"),
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of their own, to be ended as one
            )
            try:
                deadline = time.monotonic() + START_SECONDS
                while not _is_healthy(url):
                    if processes.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"Airflow did not start:\n{log.read_text()[-5000:]}")
                    time.sleep(0.5)
                yield url
            finally:
                _end_group(processes)

    @contextmanager
    def parts(self, which: Mapping[str, Part] | None = None) -> Iterator[Parts]:
        """Run parts of Airflow, each to be killed and started by itself; end them all.

        :param which: By the names that they go by; if None the same four, by those in ``PARTS``.
        :raises RuntimeError: with the end of its log, where one does not come up.
        """
        url = f"http://localhost:{free_port()}"
        which = which or {name: Part((name,)) for name in PARTS}
        parts = Parts(self, url, self._environment_at(url), which)
        try:
            for name in which:
                parts.start(name)
            parts.await_health()
            yield parts
        finally:
            parts.end()

    def _environment_at(self, url: str) -> dict[str, str]:
        return self.environment | {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # no login, on this machine only
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": url.rpartition(":")[2],
            "AIRFLOW__API__WORKERS": "1",  # Airflow 3.0 starts four, too many for a small machine to come up
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        }

    def session(self, url: str, login: tuple[str, str] | None = None) -> requests.Session:
        """Return a session that may use the REST API of the Airflow that runs at ``url``.

        :param login: Whose; that of the constructor if None.
        """
        if login := login or self.login:
            given = dict(zip(("username", "password"), login, strict=True))
            answer = requests.post(f"{url}/auth/token", json=given, timeout=30)
        else:
            answer = requests.get(f"{url}/auth/token", timeout=30)
        answer.raise_for_status()
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return session

    def run_dag(
        self,
        url: str,
        dag_id: str,
        conf: dict[str, Any],
        *,
        limit: float = 120.0,
        watch: Callable[[], object] = lambda: None,
    ) -> str:
        """Run a Dag on the Airflow that runs at ``url``, and return the state in which its run ended.

        :param limit: Seconds that it may take.
        :param watch: Called every half second until then.
        :raises TimeoutError: where it takes longer.
        """
        deadline = time.monotonic() + limit
        with self.session(url) as session:
            run_url = start_run(session, url, dag_id, conf)
            while True:
                look = session.get(run_url, timeout=30)
                state = str(look.json()["state"]) if look.ok else look.text  # SQLite under load: look again
                if state in ("success", "failed"):
                    return state
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{dag_id} is {state} after {limit} s: {self.task_states(dag_id)}")
                watch()
                time.sleep(0.5)

    def task_states(self, dag_id: str) -> list[tuple[str, str]]:
        """Return the task ids and states of the Dag's last run."""
        rows = self.query(
            "select task_id, coalesce(state, 'none') from task_instance where dag_id = :dag_id "
            "and run_id = (select run_id from dag_run where dag_id = :dag_id order by id desc limit 1) "
            "order by start_date",
            dag_id=dag_id,
        )
        return [(task_id, state) for task_id, state in rows]

    def xcoms(self, dag_id: str, task_id: str, key: str = "return_value") -> list[Any]:
        """Return what the task pushed in the Dag's last run, one entry for each map index."""
        rows = self.query(
            "select cast(value as text) from xcom "
            "where dag_id = :dag_id and task_id = :task_id and key = :key "
            "and run_id = (select run_id from dag_run where dag_id = :dag_id order by id desc limit 1) "
            "order by map_index",
            dag_id=dag_id,
            task_id=task_id,
            key=key,
        )
        return [json.loads(value) for (value,) in rows]

    def query(self, statement: str, **parameters: Any) -> list[Any]:
        """Return the rows that Airflow's database answers; ``:name`` in the statement is a parameter."""
        with create_engine(self.database_url, poolclass=NullPool).connect() as connection:
            return list(connection.execute(text(statement), parameters))


class Parts:
    """A running Airflow whose parts can be killed and started one by one, by their names."""

    def __init__(
        self, airflow: RealAirflow, url: str, environment: dict[str, str], which: Mapping[str, Part]
    ) -> None:
        self.url = url
        self._airflow = airflow
        self._environment = environment
        self._which = which
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started_at: dict[str, datetime] = {}

    def log_of(self, part: str) -> Path:
        """Return where a part writes its log, all its lives long."""
        return self._home_of(part) / f"{part}.log"

    def start(self, part: str) -> None:
        """Start a part; :meth:`await_health` waits until it works."""
        self._started_at[part] = datetime.now(UTC)
        (home := self._home_of(part)).mkdir(parents=True, exist_ok=True)
        with self.log_of(part).open("a") as output:
            self._processes[part] = subprocess.Popen(
                self._airflow.command(*self._which[part].command),
                env={**self._environment, **self._which[part].environment},
                cwd=home,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for those who started it
            )

    def _home_of(self, part: str) -> Path:
        return Path(self._which[part].environment.get("AIRFLOW_HOME", self._airflow.home))

    def await_health(self) -> None:
        """Wait until every part has been heard of since its start.

        :raises RuntimeError: with the end of its log, where one does not come up.
        """
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(self.url, since=self._started_at):
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError("\n".join(self._end_of_log(part) for part in self._processes))
            time.sleep(0.5)

    def check(self) -> None:
        """See that every part runs.

        :raises RuntimeError: with the end of its log, where one has ended by itself.
        """
        for part, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{part} ended with {process.returncode}: {self._end_of_log(part)}")

    def _end_of_log(self, part: str) -> str:
        return f"The log of {part} ends with:\n{self.log_of(part).read_text()[-5000:]}"

    def kill(self, part: str) -> None:
        """Kill a part with all its processes (-9); the scheduler's are also its workers and their tasks."""
        process = self._processes.pop(part)
        kill_tree(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind, where it had ended by itself
        process.wait()

    def end(self) -> None:
        """Kill what runs."""
        for part in list(self._processes):
            self.kill(part)


def start_run(session: requests.Session, url: str, dag_id: str, conf: dict[str, Any]) -> str:
    """Start a Dag run on the Airflow that runs at ``url``; return where the REST API has it.

    :param session: Of :meth:`RealAirflow.session`.
    """
    dag_url = f"{url}/api/v2/dags/{dag_id}"
    deadline = time.monotonic() + START_SECONDS
    while session.get(dag_url, timeout=30).status_code == 404 and time.monotonic() < deadline:
        time.sleep(0.5)  # its file has not been read yet
    session.patch(dag_url, json={"is_paused": False}, timeout=30).raise_for_status()
    run = session.post(f"{dag_url}/dagRuns", json={"logical_date": None, "conf": conf}, timeout=30)
    if not run.ok:
        raise RuntimeError(run.text)
    return f"{dag_url}/dagRuns/{run.json()['dag_run_id']}"


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started (-9), whatever process groups they made."""
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    stopped: list[psutil.Process] = []
    while started := [one for one in (root, *root.children(recursive=True)) if one not in stopped]:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.suspend()  # from here on it starts no other
        stopped += started
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_healthy(url: str, *, since: dict[str, datetime] | None = None) -> bool:
    """Whether the API server answers and has heard from scheduler, triggerer and Dag processor.

    :param since: When the parts were started, where only what was heard later counts.
    """
    try:
        health = requests.get(f"{url}/api/v2/monitor/health", timeout=5).json()
    except (requests.RequestException, ValueError):
        return False
    if any(part.get("status") != "healthy" for part in health.values()):
        return False
    for part, started_at in (since or {}).items():
        name = part.replace("-", "_")
        heard = health.get(name, {}).get(f"latest_{name}_heartbeat")
        if heard and datetime.fromisoformat(heard) < started_at:
            return False
    return True


def free_port(wanted: int = 0) -> int:
    """Return the wanted port of this machine if nobody listens there, else a free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("this machine has no free port")


def _end_group(processes: subprocess.Popen[bytes]) -> None:
    """Ask the process group to end, and make it."""
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(processes.pid, signal_)
        try:
            processes.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError):
        os.killpg(processes.pid, signal.SIGKILL)  # what the parent left behind
