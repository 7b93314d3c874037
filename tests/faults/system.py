"""An Airflow with faults, and for each row a service, a store and a Dag run of its own."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import requests
from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine, text

from airflow_provider_modelscope.compat import AIRFLOW_VERSION
from airflow_provider_modelscope.emulator import Emulator
from tests.faults.leaks import files, find, tables
from tests.faults.rows import Outcome
from tests.support.postgres import postgres
from tests.support.proxy import Proxy
from tests.support.real_airflow import Parts, RealAirflow, kill_tree
from tests.support.servers import s3_client, s3_connection
from tests.support.tls import HOST, server_context, write_certificate

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.faults.rows import Row

DAGS = Path(__file__).parent / "dags"
TOKEN = "ms-faults/8Gq+7Zx/K2p+Lw3w=="
DURATION = 3600.0  # seconds; generations finish only when their row finishes them
LIMIT = 120.0  # seconds to wait for a condition
BUCKET = "postcards"
RECORDS = "records/"  # the folder of the setting submission_records, in the same bucket
WARNING = "Submitting again, which may be charged twice"  # in the log, if a response was lost
HAS_TASK_STATE_STORE = AIRFLOW_VERSION >= (3, 3)

# With its defaults, Airflow takes minutes to notice that a process died.
SETTINGS = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__FERNET_KEY": "",  # not encrypted, so that the search can read the triggers
    "AIRFLOW__CORE__PARALLELISM": "12",  # more would slow down the scheduler on a small machine
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",  # see tests/proof/conftest.py
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}


class Task(NamedTuple):
    """A task instance, from the database."""

    task_id: str
    state: str
    try_number: int
    pid: int | None


class Run:
    """The Dag run of one row, with its service and its object store.

    :param service_proxy: The proxy before the service.
    :param store_proxy: The proxy before the object store. None if images are stored in a folder.
    """

    def __init__(
        self, system: System, row: Row, emulator: Emulator, service_proxy: Proxy, store_proxy: Proxy | None
    ) -> None:
        self.row = row
        self.emulator = emulator
        self.service_proxy = service_proxy
        self.store_proxy = store_proxy
        self._system = system
        self._problem = ""

    def perform(self, action: Callable[[Run], None]) -> None:
        """Perform an action. An error becomes part of the outcome, and the other rows continue."""
        try:
            action(self)
        except Exception as error:
            self._problem = self._problem or f"{type(error).__name__}: {error}"

    def start(self) -> None:
        """Trigger the Dag run."""
        name = self.row.name
        bucket = BUCKET if self.row.has_bucket else f"no-{BUCKET}"
        folder = f"s3://{bucket}/{name}/" if self.store_proxy else f"file://{self._folder}/"
        conf = {
            "modelscope_conn_id": name,
            "destination": folder,
            "storage_conn_id": f"store_{name}" if self.store_proxy else None,
        }
        body = {"dag_run_id": name, "logical_date": None, "conf": conf}
        self._system.call("POST", f"dags/{self.row.dag_id}/dagRuns", body)

    def tasks(self) -> list[Task]:
        """Return the Dag run's task instances."""
        rows = self._system.query(
            "select task_id, coalesce(state, 'none'), try_number, pid from task_instance "
            "where run_id = :run_id order by task_id, start_date",
            run_id=self.row.name,
        )
        return [Task(*row) for row in rows]

    def until(self, condition: Callable[[], object], what: str, *, limit: float = LIMIT) -> None:
        """Wait for a condition.

        :param limit: Seconds.
        :raises TimeoutError: if it takes longer.
        """
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Timeout after {limit:.0f} s: waiting for {what}. Tasks: {self.tasks()}")
            self._system.pause()

    def until_accepted(self, count: int = 1) -> None:
        """Wait until the service has accepted ``count`` submissions."""
        self.until(lambda: self.emulator.accepted >= count, "acceptance")

    def until_recorded(self) -> None:
        """Wait until the task has recorded its generation, for 5 seconds at most.

        If there is no record, the number of submissions shows it.
        """

        def is_recorded() -> bool:
            ids = [
                exchange.generation_id for exchange in self.emulator.requests if exchange.note == "accepted"
            ]
            records = self._system.records(self.row.name)
            return any(generation_id in record for record in records for generation_id in ids)

        self.until_accepted()
        with suppress(TimeoutError):
            self.until(is_recorded, "the record", limit=5)

    def until_polling(self) -> None:
        """Wait until the service has got two polls."""
        self.until(lambda: self._polls() >= 2, "two polls")

    def _polls(self) -> int:
        return sum(exchange.path.startswith("/v1/tasks/") for exchange in self.emulator.requests)

    def until_deferred(self, count: int = 1) -> None:
        """Wait until ``count`` tasks are deferred."""
        self.until(lambda: sum(task.state == "deferred" for task in self.tasks()) == count, "deferral")

    def until_storing(self) -> None:
        """Wait until a request to the object store had a fault."""
        self.until(lambda: self.store_proxy and self.store_proxy.caught, "a fault of the store")

    def until_stored(self, count: int) -> None:
        """Finish the generations of a batch until it has stored ``count`` images, and then none of them.

        The next one is running then, and polled.
        """

        def is_stored() -> bool:
            if self.emulator.accepted <= count:
                self.emulator.finish()
            return len(self.stored()) >= count and self.emulator.accepted > count

        self.until(is_stored, f"stored images: {count}")
        polls = self._polls()
        self.until(lambda: self._polls() >= polls + 2, "two polls")

    def until_failed_once(self) -> None:
        """Wait until the first attempt of a task has failed."""
        self.until(
            lambda: any(task.state == "up_for_retry" or task.try_number > 1 for task in self.tasks()),
            "a failed attempt",
        )

    def until_ended(self) -> None:
        """Finish all generations, and wait until the Dag run has ended."""

        def has_ended() -> bool:
            self.emulator.finish()
            return self.state in ("success", "failed")

        self.until(has_ended, "the end of the run")

    @property
    def state(self) -> str:
        """The state of the Dag run."""
        rows = self._system.query("select state from dag_run where run_id = :run_id", run_id=self.row.name)
        return rows[0][0] if rows else "none"

    def kill_worker(self) -> None:
        """Kill (-9) the process of the running task and its supervisor."""
        [pid] = [task.pid for task in self.tasks() if task.state == "running"]
        supervisor = psutil.Process(pid).parent()
        # Parts of Airflow are session leaders. This process is not one, so it is not the scheduler.
        assert supervisor is not None
        assert os.getsid(supervisor.pid) != supervisor.pid
        kill_tree(supervisor.pid)

    def clear(self) -> None:
        """Clear the tasks that have started, as the UI does; on Airflow 3.4 keep their task state."""
        tasks = [task.task_id for task in self.tasks() if task.state != "none"]
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.row.name, "task_ids": tasks}
        if AIRFLOW_VERSION >= (3, 4):
            body["keep_task_state"] = True
        self._system.call("POST", f"dags/{self.row.dag_id}/clearTaskInstances", body)

    def mark_failed(self) -> None:
        """Mark the deferred task as failed, as the UI does."""
        [task_id] = [task.task_id for task in self.tasks() if task.state == "deferred"]
        path = f"dags/{self.row.dag_id}/dagRuns/{self.row.name}/taskInstances/{task_id}"
        self._system.call("PATCH", path, {"new_state": "failed"})

    def stored(self) -> list[bytes]:
        """Return all objects of the row, or all of its files, hidden ones included.

        Without the manifest and the state of a batch.
        """
        if self.store_proxy:
            prefix = f"{self.row.name}/"
            found = {
                name.removeprefix(prefix): content
                for name, content in self._system.objects()
                if name.startswith(prefix)
            }
        else:
            files_ = [path for path in self._folder.rglob("*") if path.is_file()]
            found = {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in files_}
        of_batch = ("manifest.jsonl", ".modelscope/")
        return [content for name, content in found.items() if not name.startswith(of_batch)]

    def expect_nothing_stored(self) -> None:
        """Check that nothing is stored, not even a part of an image.

        :raises AssertionError: if something is.
        """
        if sizes := [len(content) for content in self.stored()]:
            raise AssertionError(f"Objects were stored during the fault, with {sizes} bytes")

    def outcome(self) -> Outcome:
        """Return the outcome so far."""
        served = {hashlib.sha256(content).digest() for content in self.emulator.served.values()}
        as_served = [hashlib.sha256(content).digest() in served for content in self.stored()]
        logs = (self._system.airflow.home / "logs").glob(f"dag_id=*/run_id={self.row.name}/**/*.log")
        return Outcome(
            images=sum(as_served),
            others=len(as_served) - sum(as_served),
            submissions=self.emulator.accepted,
            warned=any(WARNING in log.read_text() for log in logs),
            state=self.state,
            attempts=max((task.try_number for task in self.tasks()), default=0),
            problem=self._problem,
        )

    @property
    def _folder(self) -> Path:
        return self._system.airflow.home / "images" / self.row.name


class System:
    """One Airflow, each part a process of its own, with a run for each row."""

    def __init__(self, airflow: RealAirflow, parts: Parts, engine: Engine, store_url: str) -> None:
        self.airflow = airflow
        self.parts = parts
        self.runs: list[Run] = []
        self.leaks: list[str] = []
        self._engine = engine
        self._store = s3_client(store_url)
        self._closed = threading.Event()
        token = requests.get(f"{parts.url}/auth/token", timeout=30)
        self._headers = {"Authorization": f"Bearer {token.json()['access_token']}"}

    def call(self, method: str, path: str, body: dict[str, Any]) -> None:
        """Call Airflow's REST API.

        :raises RuntimeError: with the response, if the status is 400 or higher.
        """
        url = f"{self.parts.url}/api/v2/{path}"
        response = requests.request(method, url, json=body, headers=self._headers, timeout=60)
        if not response.ok:
            raise RuntimeError(f"{method} {path}: {response.status_code} {response.text}")

    def query(self, statement: str, **parameters: Any) -> list[Any]:
        """Return the rows of a query of Airflow's database."""
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement), parameters))

    def objects(self) -> list[tuple[str, bytes]]:
        """Return the name and the content of each stored object."""
        listed = self._store.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        names = [entry["Key"] for entry in listed]
        return [(name, self._store.get_object(Bucket=BUCKET, Key=name)["Body"].read()) for name in names]

    def records(self, run_id: str) -> list[str]:
        """Return the records of submissions that a Dag run has now."""
        if HAS_TASK_STATE_STORE:
            rows = self.query("select value from task_state_store where run_id = :run_id", run_id=run_id)
            return [value for (value,) in rows]
        return [
            content.decode()
            for name, content in self.objects()
            if name.startswith(RECORDS) and f".{run_id}." in name
        ]

    def search(self) -> list[str]:
        """Search everything that this Airflow has written for the token, and return where it was found."""
        places = chain(files(self.airflow.home), tables(self._engine), self.objects())
        return find(TOKEN, places)

    @contextmanager
    def planted(self, text_: str) -> Iterator[list[str]]:
        """Write a text to a file, a table and an object. Yield the names that a search reports for them."""
        path = self.airflow.home / "logs" / "planted.log"
        path.write_text(text_)
        self._store.put_object(Bucket=BUCKET, Key="planted", Body=text_.encode())
        variable = "insert into variable (key, val, is_encrypted) values ('planted', :val, false)"
        with self._engine.begin() as connection:
            connection.execute(text(variable), {"val": text_})
        try:
            yield [str(path), "variable.val", "planted"]
        finally:
            path.unlink()
            self._store.delete_object(Bucket=BUCKET, Key="planted")
            with self._engine.begin() as connection:
                connection.execute(text("delete from variable where key = 'planted'"))

    def pause(self) -> None:
        """Sleep for a moment.

        :raises InterruptedError: if the system is closed.
        """
        if self._closed.wait(0.3):
            raise InterruptedError("The system is closed")

    def close(self) -> None:
        """End every wait."""
        self._closed.set()


@contextmanager
def system_for(rows: list[Row], home: Path) -> Iterator[System]:
    """Start the system, and end it."""
    with ExitStack() as stack:
        store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        store.start()
        stack.callback(store.stop)
        store_url = "http://{}:{}".format(*store.get_host_and_port())
        s3_client(store_url).create_bucket(Bucket=BUCKET)
        connections = {"records": s3_connection(store_url)}
        certificate = write_certificate(home.parent / "certificate.pem")
        tls = server_context(certificate)
        connected = []
        for row in rows:
            emulator = stack.enter_context(Emulator(duration=DURATION, tokens=[TOKEN], faults=row.faults))
            service_proxy = stack.enter_context(
                Proxy(emulator.base_url, tls=tls if row.network else None, has_tunnel=row.network == "tunnel")
            )
            connections[row.name] = {
                "conn_type": "modelscope",
                "password": TOKEN,
                "host": f"https://{HOST}" if row.network == "tunnel" else service_proxy.url,
                "extra": {
                    "": {},
                    "tls": {"verify": str(certificate)},
                    "tunnel": {"verify": str(certificate), "proxy": service_proxy.url},
                }[row.network],
            }
            store_proxy = None
            if row.in_s3:
                store_proxy = stack.enter_context(Proxy(store_url))
                connections[f"store_{row.name}"] = s3_connection(store_proxy.url)
            connected.append((row, emulator, service_proxy, store_proxy))
        database_url = stack.enter_context(postgres())
        airflow = RealAirflow(home, dags=DAGS, connections=connections, database_url=database_url)
        temporary = home / "tmp"
        temporary.mkdir(parents=True)
        airflow.environment |= SETTINGS | {"TMPDIR": str(temporary)}
        if not HAS_TASK_STATE_STORE:
            records = f"s3://records@{BUCKET}/{RECORDS}"
            airflow.environment["AIRFLOW__MODELSCOPE__SUBMISSION_RECORDS"] = records
        airflow.migrate()
        engine = create_engine(database_url, pool_size=20)
        stack.callback(engine.dispose)
        system = System(airflow, stack.enter_context(airflow.parts()), engine, store_url)
        stack.callback(system.close)
        system.runs = [Run(system, *arguments) for arguments in connected]
        yield system
