"""A real Airflow in a folder of its own, with its database, environment and commands.

Tests that run Dags use it, and so do ``make demo`` and ``make ui``. It ignores the machine's own Airflow
settings, and writes only to its folder.
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
from requests.adapters import HTTPAdapter
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from urllib3 import Retry

from airflow_provider_modelscope.compat import AIRFLOW_VERSION

START_SECONDS = 180  # the limit; on two cores Airflow starts in 40 s
PARTS = ("api-server", "scheduler", "triggerer", "dag-processor")
EXAMPLE_DAGS = Path(__file__).parents[2] / "example_dags"
# Before each query: Airflow 3.4 keeps XComs in another table, without the columns of the task instance.
XCOM = (
    "with xcom as (select dag_id, run_id, task_id, region_index as map_index, key, value"
    " from xcom_v2 join task_instance on task_instance.id = task_instance_id) "
    if AIRFLOW_VERSION >= (3, 4)
    else ""
)


class Part(NamedTuple):
    """A process of Airflow.

    :param command: The arguments of ``airflow``.
    :param environment: Added to the common environment. ``AIRFLOW_HOME`` moves it to another folder.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}


class RealAirflow:
    """Airflow in one folder.

    :param home: Its ``AIRFLOW_HOME``. Created if missing, and kept.
    :param dags: The folder of Dag files.
    :param connections: Airflow connections by id, in Airflow's JSON form.
    :param database_url: Its database, for SQLAlchemy. If None, a file of SQLite in ``home``.
    :param login: User name and password for the REST API, if ``environment`` sets an auth manager that needs
        them. Use :meth:`parts` then, because ``airflow standalone`` always uses the simple auth manager.
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
        ignored = ("AIRFLOW_", "PYTHONWARNINGS")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
        self.environment |= {
            "AIRFLOW_HOME": str(home),
            # ``airflow standalone`` finds ``airflow`` in the path.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database_url,
            # No proxy for connections to this machine.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        for connection_id, connection in (connections or {}).items():
            self.environment[f"AIRFLOW_CONN_{connection_id.upper()}"] = json.dumps(connection)

    def migrate(self) -> None:
        """Create the database, if it does not exist."""
        if not self.database.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            self.run("db", "migrate")

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of an ``airflow`` command of this Python."""
        return [sys.executable, "-m", "airflow", *arguments]

    def run(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
        """Run an ``airflow`` command and return its output.

        :param timeout: Seconds.
        :raises RuntimeError: with its output, if it fails.
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
            raise RuntimeError(
                f"airflow {' '.join(arguments)} failed with exit status {done.returncode}:\n{done.stdout}"
            )
        return done.stdout

    def test_dag(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Run a Dag in one process, triggers included, and return its log.

        :raises RuntimeError: if a task fails.
        """
        log = self.run("dags", "test", dag_id, "--conf", json.dumps(conf))
        failed = {f"{task}: {state}" for task, state in self.task_states(dag_id) if state != "success"}
        if failed:
            raise RuntimeError(f"Tasks of {dag_id} did not succeed: {', '.join(sorted(failed))}\n{log}")
        return log

    @contextmanager
    def standalone(self, *, port: int | None = None) -> Iterator[str]:
        """Run API server, scheduler, triggerer and Dag processor, and yield the URL of the API server.

        :param port: Port of the API server. If None, a free one.
        :raises RuntimeError: with the end of their log, if they do not start.
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
                start_new_session=True,  # one process group, so that all can be ended together
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
        """Run parts of Airflow that can be killed and started one by one. End them all at the end.

        :param which: The parts by name. If None, the four of ``PARTS``.
        :raises RuntimeError: with the end of its log, if one does not start.
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
            "AIRFLOW__API__WORKERS": "1",  # Airflow 3.0 starts four, too many for a small machine
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        }

    def session(self, url: str, login: tuple[str, str] | None = None) -> requests.Session:
        """Return a session that is authorized for the REST API at ``url``.

        :param login: User name and password. If None, those of the constructor.
        """
        if login := login or self.login:
            credentials = dict(zip(("username", "password"), login, strict=True))
            response = requests.post(f"{url}/auth/token", json=credentials, timeout=30)
        else:
            response = requests.get(f"{url}/auth/token", timeout=30)
        response.raise_for_status()
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
        # Airflow writes its audit log in the event loop. On SQLite, that and a task's request which writes at
        # the same time wait for each other, until the audit log gives up after 5 s, and with it the call.
        retries = Retry(total=3, status_forcelist=[500], allowed_methods=None, raise_on_status=False)
        session.mount(url, HTTPAdapter(max_retries=retries))
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
        """Run a Dag on the Airflow at ``url``, and return the final state of its run.

        :param limit: Timeout in seconds.
        :param watch: Called every half second until the run has ended.
        :raises TimeoutError: if it takes longer.
        """
        deadline = time.monotonic() + limit
        with self.session(url) as session:
            run_url = start_run(session, url, dag_id, conf)
            while True:
                response = session.get(run_url, timeout=30)
                # Under load, SQLite can cause an error: poll again.
                state = str(response.json()["state"]) if response.ok else response.text
                if state in ("success", "failed"):
                    return state
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{dag_id} is still {state} after {limit} s. Tasks: {self.task_states(dag_id)}"
                    )
                watch()
                time.sleep(0.5)

    def task_states(self, dag_id: str) -> list[tuple[str, str]]:
        """Return the ids and states of the tasks in the last run of a Dag."""
        rows = self.query(
            "select task_id, coalesce(state, 'none') from task_instance where dag_id = :dag_id "
            "and run_id = (select run_id from dag_run where dag_id = :dag_id order by id desc limit 1) "
            "order by start_date",
            dag_id=dag_id,
        )
        return [(task_id, state) for task_id, state in rows]

    def xcoms(self, dag_id: str, task_id: str, key: str = "return_value") -> list[Any]:
        """Return the XComs of a task in the last run of its Dag, one for each map index."""
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
        """Return the rows of a query of Airflow's database. ``:name`` in the statement is a parameter."""
        with create_engine(self.database_url, poolclass=NullPool).connect() as connection:
            return list(connection.execute(text(XCOM + statement), parameters))


class Parts:
    """A running Airflow whose parts can be killed and started by name."""

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
        """Return the log file of a part. A restarted part appends to it."""
        return self._home_of(part) / f"{part}.log"

    def start(self, part: str) -> None:
        """Start a part. :meth:`await_health` waits until it is ready."""
        self._started_at[part] = datetime.now(UTC)
        (home := self._home_of(part)).mkdir(parents=True, exist_ok=True)
        with self.log_of(part).open("a") as output:
            self._processes[part] = subprocess.Popen(
                self._airflow.command(*self._which[part].command),
                env={**self._environment, **self._which[part].environment},
                cwd=home,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must not reach it
            )

    def _home_of(self, part: str) -> Path:
        return Path(self._which[part].environment.get("AIRFLOW_HOME", self._airflow.home))

    def await_health(self) -> None:
        """Wait until every part has sent a heartbeat since its start.

        :raises RuntimeError: with the end of its log, if one does not start.
        """
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(self.url, since=self._started_at):
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError("\n".join(self._end_of_log(part) for part in self._processes))
            time.sleep(0.5)

    def check(self) -> None:
        """Check that every part is running.

        :raises RuntimeError: with the end of its log, if one has ended.
        """
        for part, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(
                    f"{part} ended with exit status {process.returncode}. {self._end_of_log(part)}"
                )

    def _end_of_log(self, part: str) -> str:
        return f"End of the log of {part}:\n{self.log_of(part).read_text()[-5000:]}"

    def kill(self, part: str) -> None:
        """Kill a part and its processes (-9). Those of the scheduler include the workers and their tasks."""
        process = self._processes.pop(part)
        kill_tree(process.pid)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its remaining processes, if it had ended before
        process.wait()

    def cpu_seconds(self, part: str) -> float:
        """Return the CPU time that a part and its processes have used."""
        root = psutil.Process(self._processes[part].pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return float(sum(time.user + time.system for time in times))

    def end(self) -> None:
        """Kill all parts."""
        for part in list(self._processes):
            self.kill(part)


def start_run(session: requests.Session, url: str, dag_id: str, conf: dict[str, Any]) -> str:
    """Start a Dag run on the Airflow at ``url``, and return its URL in the REST API.

    :param session: From :meth:`RealAirflow.session`.
    """
    dag_url = f"{url}/api/v2/dags/{dag_id}"
    deadline = time.monotonic() + START_SECONDS
    while session.get(dag_url, timeout=30).status_code == 404 and time.monotonic() < deadline:
        time.sleep(0.5)  # the Dag processor has not read its file yet
    session.patch(dag_url, json={"is_paused": False}, timeout=30).raise_for_status()
    run = session.post(f"{dag_url}/dagRuns", json={"logical_date": None, "conf": conf}, timeout=30)
    if not run.ok:
        raise RuntimeError(run.text)
    return f"{dag_url}/dagRuns/{run.json()['dag_run_id']}"


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants (-9), in all process groups."""
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    stopped: list[psutil.Process] = []
    while running := [
        process for process in (root, *root.children(recursive=True)) if process not in stopped
    ]:
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.suspend()  # a suspended process starts no other
        stopped += running
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_healthy(url: str, *, since: dict[str, datetime] | None = None) -> bool:
    """Whether the API server responds and reports scheduler, triggerer and Dag processor as healthy.

    :param since: Start times of the parts. Earlier heartbeats do not count.
    """
    try:
        health = requests.get(f"{url}/api/v2/monitor/health", timeout=5).json()
    except (requests.RequestException, ValueError):
        return False
    if any(part.get("status") != "healthy" for part in health.values()):
        return False
    for part, started_at in (since or {}).items():
        name = part.replace("-", "_")
        heartbeat = health.get(name, {}).get(f"latest_{name}_heartbeat")
        if heartbeat and datetime.fromisoformat(heartbeat) < started_at:
            return False
    return True


def free_port(wanted: int = 0) -> int:
    """Return the wanted port of this machine if it is free, otherwise another free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("This machine has no free port")


def _end_group(processes: subprocess.Popen[bytes]) -> None:
    """Terminate a process group, and kill it if it does not end."""
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(processes.pid, signal_)
        try:
            processes.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError):
        os.killpg(processes.pid, signal.SIGKILL)  # the remaining children
