"""The Airflow that the faults happen to, and for each row a service, a store and a Dag run of its own."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import requests
from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine, text

from airflow_provider_modelscope.emulator import Emulator
from tests.faults.leaks import files, find, tables
from tests.faults.proxy import Proxy
from tests.support.postgres import postgres
from tests.support.real_airflow import Parts, RealAirflow, kill_tree
from tests.support.servers import s3_client, s3_connection

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.faults.rows import Row

DAGS = Path(__file__).parent / "dags"
TOKEN = "ms-faults/8Gq+7Zx/K2p+Lw3w=="
HOURS = 3600.0  # seconds of a generation: it ends when its row says so
LIMIT = 120.0  # seconds for whatever a row waits for
BUCKET = "postcards"
TOLD = "charged twice"  # what the log says where that may be

# The dead are missed in seconds, where Airflow takes minutes by default.
SETTINGS = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__FERNET_KEY": "",  # triggers lie in the database as they are, so that a search reads them
    "AIRFLOW__CORE__PARALLELISM": "12",  # more at once starve the scheduler of a small machine
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",  # see the proofs
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
    """A task instance, as the database has it."""

    task_id: str
    state: str
    try_number: int
    pid: int | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a row is to come to, or came to.

    :param images: Stored objects that are, to the byte, what the service served.
    :param others: Stored objects, or half of them, that are not.
    :param submissions: That the service accepted.
    :param told: Whether the log says that a generation may be charged twice.
    :param ended: The state of the Dag run.
    :param tries: The most that a task of it took.
    :param problem: What stood in the way.
    """

    images: int = 1
    others: int = 0
    submissions: int = 1
    told: bool = False
    ended: str = "success"
    tries: int = field(default=1, compare=False)
    problem: str = ""

    def __str__(self) -> str:
        words = [_count(self.images, "image"), _count(self.submissions, "submission")]
        if self.told:
            words.append("told in the log")
        if self.others:
            words.append(f"{self.others} stored that were not served")
        return ", ".join([*words, self.ended])

    @property
    def seen(self) -> str:
        """The same, with what is not promised."""
        return ", ".join([f"{self} at try {self.tries}", *filter(None, [self.problem])])


class Scene:
    """Where one row plays: a Dag run, the service and the object store that it uses.

    :param wire: Before the service.
    :param store: Before the object store; None where images are stored in a folder.
    """

    def __init__(self, stage: Stage, row: Row, emulator: Emulator, wire: Proxy, store: Proxy | None) -> None:
        self.row = row
        self.emulator = emulator
        self.wire = wire
        self.store = store
        self._stage = stage
        self._problem = ""

    def attempt(self, act: Callable[[Scene], None]) -> None:
        """Act; what stands in the way belongs to the outcome, and ends nobody else's row."""
        try:
            act(self)
        except Exception as error:
            self._problem = self._problem or f"{type(error).__name__}: {error}"

    def start(self) -> None:
        """Trigger the Dag run."""
        name = self.row.name
        folder = f"s3://{BUCKET}/{name}/" if self.store else f"file://{self._folder}/"
        conf = {
            "modelscope_conn_id": name,
            "destination": folder,
            "storage_conn_id": f"store_{name}" if self.store else None,
        }
        body = {"dag_run_id": name, "logical_date": None, "conf": conf}
        self._stage.ask("POST", f"dags/{self.row.dag_id}/dagRuns", body)

    def tasks(self) -> list[Task]:
        """Return the Dag run's task instances."""
        rows = self._stage.query(
            "select task_id, coalesce(state, 'none'), try_number, pid from task_instance "
            "where run_id = :run_id order by task_id, map_index",
            run_id=self.row.name,
        )
        return [Task(*row) for row in rows]

    def until(self, condition: Callable[[], object], what: str, *, limit: float = LIMIT) -> None:
        """Wait for a condition.

        :raises TimeoutError: where it takes longer.
        """
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {what} within {limit:.0f} s: {self.tasks()}")
            self._stage.pause()

    def until_accepted(self, count: int = 1) -> None:
        """Wait until the service accepted so many submissions."""
        self.until(lambda: self.emulator.accepted >= count, "accepted")

    def until_recorded(self) -> None:
        """Wait until the task has written down which generation it started.

        A few seconds only: where none is written, the row shows it by what it submits.
        """

        def is_recorded() -> bool:
            ids = [one.generation_id for one in self.emulator.requests if one.note == "accepted"]
            values = self._stage.query(
                "select value from task_state_store where run_id = :run_id", run_id=self.row.name
            )
            return any(generation_id in value for (value,) in values for generation_id in ids)

        self.until_accepted()
        with suppress(TimeoutError):
            self.until(is_recorded, "recorded", limit=5)

    def until_looking(self) -> None:
        """Wait until somebody looks at the generation again and again."""
        self.until(lambda: sum(one.method == "GET" for one in self.emulator.requests) >= 2, "looked at")

    def until_deferred(self, count: int = 1) -> None:
        """Wait until so many tasks wait in the triggerer."""
        self.until(lambda: sum(one.state == "deferred" for one in self.tasks()) == count, "deferred")

    def until_storing(self) -> None:
        """Wait until the fault before the object store has met somebody."""
        self.until(lambda: self.store and self.store.caught, "storing")

    def until_tried(self) -> None:
        """Wait until a task's first try has failed."""
        self.until(
            lambda: any(one.state == "up_for_retry" or one.try_number > 1 for one in self.tasks()), "tried"
        )

    def until_ended(self) -> None:
        """Wait until the Dag run has ended; what the service still runs is finished meanwhile."""

        def has_ended() -> bool:
            self.emulator.finish()
            return self.state in ("success", "failed")

        self.until(has_ended, "ended")

    @property
    def state(self) -> str:
        """The state of the Dag run."""
        rows = self._stage.query("select state from dag_run where run_id = :run_id", run_id=self.row.name)
        return rows[0][0] if rows else "none"

    def kill_worker(self) -> None:
        """Kill (-9) the process of the task that runs, and the one that supervises it."""
        [pid] = [one.pid for one in self.tasks() if one.state == "running"]
        supervisor = psutil.Process(pid).parent()
        # A part of Airflow leads a session of its own: this is a worker, not the scheduler.
        assert supervisor is not None
        assert os.getsid(supervisor.pid) != supervisor.pid
        kill_tree(supervisor.pid)

    def clear(self) -> None:
        """Clear the tasks that have begun, as people do in the UI."""
        tasks = [one.task_id for one in self.tasks() if one.state != "none"]
        body = {"dry_run": False, "only_failed": False, "dag_run_id": self.row.name, "task_ids": tasks}
        self._stage.ask("POST", f"dags/{self.row.dag_id}/clearTaskInstances", body)

    def mark_failed(self) -> None:
        """Mark the task that waits as failed, as people do in the UI."""
        [task_id] = [one.task_id for one in self.tasks() if one.state == "deferred"]
        path = f"dags/{self.row.dag_id}/dagRuns/{self.row.name}/taskInstances/{task_id}"
        self._stage.ask("PATCH", path, {"new_state": "failed"})

    def stored(self) -> list[bytes]:
        """Return what lies where the row stores, to the last hidden file."""
        if self.store:
            return [
                content for name, content in self._stage.objects() if name.startswith(f"{self.row.name}/")
            ]
        return [path.read_bytes() for path in self._folder.rglob("*") if path.is_file()]

    def expect_nothing_stored(self) -> None:
        """See that not even a part of an image stands where one is to be.

        :raises AssertionError: where it does.
        """
        if sizes := [len(content) for content in self.stored()]:
            raise AssertionError(f"stored within the fault: {sizes} bytes")

    def outcome(self) -> Outcome:
        """Return what the row came to."""
        served = {hashlib.sha256(content).digest() for content in self.emulator.served.values()}
        as_served = [hashlib.sha256(content).digest() in served for content in self.stored()]
        logs = (self._stage.airflow.home / "logs").glob(f"dag_id=*/run_id={self.row.name}/**/*.log")
        return Outcome(
            images=sum(as_served),
            others=len(as_served) - sum(as_served),
            submissions=self.emulator.accepted,
            told=any(TOLD in log.read_text() for log in logs),
            ended=self.state,
            tries=max((one.try_number for one in self.tasks()), default=0),
            problem=self._problem,
        )

    @property
    def _folder(self) -> Path:
        return self._stage.airflow.home / "images" / self.row.name


class Stage:
    """One Airflow, its parts as processes of their own, with a scene for each row."""

    def __init__(self, airflow: RealAirflow, parts: Parts, engine: Engine, store_url: str) -> None:
        self.airflow = airflow
        self.parts = parts
        self.scenes: list[Scene] = []
        self.leaks: list[str] = []
        self._engine = engine
        self._store = s3_client(store_url)
        self._closed = threading.Event()
        answer = requests.get(f"{parts.url}/auth/token", timeout=30)
        self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def ask(self, method: str, path: str, body: dict[str, Any]) -> None:
        """Send a request to Airflow's REST API.

        :raises RuntimeError: with what it says, where it refuses.
        """
        url = f"{self.parts.url}/api/v2/{path}"
        answer = requests.request(method, url, json=body, headers=self._headers, timeout=60)
        if not answer.ok:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")

    def query(self, statement: str, **parameters: Any) -> list[Any]:
        """Return the rows that Airflow's database answers."""
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement), parameters))

    def objects(self) -> list[tuple[str, bytes]]:
        """Return the name and the content of each stored object."""
        found = self._store.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        names = [one["Key"] for one in found]
        return [(name, self._store.get_object(Bucket=BUCKET, Key=name)["Body"].read()) for name in names]

    def search(self) -> list[str]:
        """Look for the token in all that this Airflow has written, and return where it stands."""
        places = chain(files(self.airflow.home), tables(self._engine), self.objects())
        return find(TOKEN, places)

    @contextmanager
    def planted(self, text_: str) -> Iterator[list[str]]:
        """Write a text into a file, a table and an object; yield what a search calls them."""
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

        :raises InterruptedError: where the stage is closed.
        """
        if self._closed.wait(0.3):
            raise InterruptedError("the stage is closed")

    def close(self) -> None:
        """Wake whoever waits."""
        self._closed.set()


@contextmanager
def stage_for(rows: list[Row], home: Path) -> Iterator[Stage]:
    """Set the stage, and clear it."""
    with ExitStack() as stack:
        store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        store.start()
        stack.callback(store.stop)
        store_url = "http://{}:{}".format(*store.get_host_and_port())
        s3_client(store_url).create_bucket(Bucket=BUCKET)
        connections: dict[str, dict[str, Any]] = {}
        props = []
        for row in rows:
            emulator = stack.enter_context(Emulator(duration=HOURS, tokens=[TOKEN], faults=row.faults))
            wire = stack.enter_context(Proxy(emulator.base_url))
            connections[row.name] = {"conn_type": "modelscope", "password": TOKEN, "host": wire.url}
            before_store = None
            if row.in_s3:
                before_store = stack.enter_context(Proxy(store_url))
                connections[f"store_{row.name}"] = s3_connection(before_store.url)
            props.append((row, emulator, wire, before_store))
        database_url = stack.enter_context(postgres())
        airflow = RealAirflow(home, dags=DAGS, connections=connections, database_url=database_url)
        temporary = home / "tmp"
        temporary.mkdir(parents=True)
        airflow.environment |= SETTINGS | {"TMPDIR": str(temporary)}
        airflow.migrate()
        engine = create_engine(database_url, pool_size=20)
        stack.callback(engine.dispose)
        stage = Stage(airflow, stack.enter_context(airflow.parts()), engine, store_url)
        stack.callback(stage.close)
        stage.scenes = [Scene(stage, *prop) for prop in props]
        yield stage


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
