"""An Airflow on several machines, with a service and a store, and queries of their state."""

from __future__ import annotations

import base64
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from airflow_provider_modelscope.emulator import Emulator
from tests.cluster import machine
from tests.support.postgres import postgres
from tests.support.real_airflow import Part, Parts, RealAirflow, free_port, start_run
from tests.support.servers import moto, redis, s3_client, s3_connection
from tests.support.statsd import StatsD

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator.server import Exchange

Result = TypeVar("Result")

DAGS = Path(__file__).parent / "dags"
DAG_IDS = ("in_three_steps", "in_one_step", "by_function")
IMAGES = 60
WORKERS = ("worker-1", "worker-2")
TRIGGERERS = ("triggerer-1", "triggerer-2")
MACHINES = {
    "api-server": ("api-server",),
    "dag-processor": ("dag-processor",),
    "scheduler": ("scheduler",),
    **{name: ("celery", "worker", "--celery-hostname", name) for name in WORKERS},
    **dict.fromkeys(TRIGGERERS, ("triggerer",)),
}
TOKENS = {"first_account": "ms-cluster-1", "second_account": "ms-cluster-2"}  # by connection id
DURATION = 5.0  # seconds of a generation
IMAGE_BUCKET = "postcards"
LOG_BUCKET = "logs"
SAFE_SECONDS = 1.5  # more than a machine takes to die
LIMIT = 600.0  # seconds to wait for a condition

SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{machine.__name__}.{machine.name.__name__}",
    "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
    "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
    "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": f"s3://{LOG_BUCKET}/",
    "AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID": "store",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "8",
    # With its defaults, Airflow takes minutes to notice that a machine died.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    # A task that was on its way to a worker when that died stays queued: for 600 s by default.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "240",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "20",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "60",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",  # see tests/proof/conftest.py
}


TASK = "dag_id, run_id, task_id, map_index, coalesce(task_instance.state, 'none'), try_number, hostname"


class Task(NamedTuple):
    """A task instance, with the columns of ``TASK``."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str
    try_number: int
    machine: str


class Cluster:
    """A running cluster.

    :param store: A client of its object store.
    :param statsd: The server that receives its metrics.
    """

    def __init__(
        self, airflow: RealAirflow, parts: Parts, emulator: Emulator, store: Any, statsd: StatsD
    ) -> None:
        self.emulator = emulator
        self.statsd = statsd
        self.triggers: dict[str, set[int]] = {name: set() for name in TRIGGERERS}
        """Ids of the triggers that each triggerer has held so far."""
        self._started_at = time.monotonic()
        self._airflow = airflow
        self._parts = parts
        self._store = store
        self._session = airflow.session(parts.url)

    def start_runs(self) -> None:
        """Start a run of each Dag, and set the clock to 0."""
        self._started_at = time.monotonic()
        for dag_id in DAG_IDS:
            start_run(self._session, self._parts.url, dag_id, {})

    @property
    def seconds(self) -> float:
        """Seconds since the start of the Dag runs."""
        return time.monotonic() - self._started_at

    def until(self, condition: Callable[[], Result | None], what: str) -> Result:
        """Wait for a condition, and return its result.

        :raises RuntimeError: with the end of its log, if a part of Airflow ends.
        :raises TimeoutError: if it takes too long.
        """
        deadline = time.monotonic() + LIMIT
        while not (result := condition()):
            self._parts.check()
            for name, held in self.held_triggers().items():
                self.triggers[name] |= held
            if time.monotonic() > deadline:
                states = Counter((task.dag_id, task.task_id, task.state) for task in self.tasks())
                raise TimeoutError(f"Timeout after {LIMIT:.0f} s: {what}. Tasks: {states}")
            time.sleep(0.2)
        print(f"{self.seconds:4.0f} s: {what}", flush=True)
        return result

    def kill(self, name: str) -> float:
        """Kill a machine (-9) with all its processes, and return the time. It is not replaced."""
        self._parts.kill(name)
        print(f"{(killed_at := self.seconds):4.0f} s: {name} killed", flush=True)
        return killed_at

    def tasks(self) -> list[Task]:
        """Return all task instances."""
        rows = self._airflow.query(
            f"select {TASK} from task_instance order by dag_id, task_id, map_index"  # noqa: S608 - constant columns
        )
        return [Task(*row) for row in rows]

    @property
    def accepted(self) -> list[Exchange]:
        """The submissions that created a generation."""
        return [exchange for exchange in list(self.emulator.requests) if exchange.note == "accepted"]

    def run_states(self) -> list[str]:
        """Return the states of the Dag runs."""
        return [state for (state,) in self._airflow.query("select state from dag_run")]

    def held_triggers(self) -> dict[str, set[int]]:
        """Return the ids of the triggers of waiting tasks, by triggerer."""
        rows = self._airflow.query(
            "select job.hostname, trigger.id from trigger join job on job.id = trigger.triggerer_id "
            "join task_instance on task_instance.trigger_id = trigger.id"
        )
        held: dict[str, set[int]] = {name: set() for name in TRIGGERERS}
        for name, trigger_id in rows:
            held[name].add(trigger_id)
        return held

    def polling_tasks(self) -> list[Task]:
        """Return the tasks whose generations are running, if no worker can be submitting at this moment.

        A worker that is killed between a submission and its response loses the response. This cannot happen
        while each account has a generation that Airflow knows, and that runs for some time yet.
        """
        running = {
            exchange.headers["Authorization"]: exchange.generation_id
            for exchange, (_, end) in zip(self.accepted, self.emulator.spans, strict=False)
            if time.monotonic() + SAFE_SECONDS < end
        }
        requests = self._airflow.query(
            f"select {TASK}, cast(value as text) from task_instance "  # noqa: S608 - constant columns
            "join xcom using (dag_id, run_id, task_id, map_index) where xcom.key = 'request'"
        )
        known = [Task(*task) for *task, value in requests if any(id_ in value for id_ in running.values())]
        return known if len(known) == len(TOKENS) else []

    def tasks_given(self, worker: str) -> int:
        """Return how often a worker was given a task. A deferred task is given to a worker again."""
        return self._parts.log_of(worker).read_text().count("Executing workload in Celery")

    def log_of(self, task: Task) -> str:
        """Return the log of the last attempt of a task from the API server."""
        response = self._session.get(
            f"{self._parts.url}/api/v2/dags/{task.dag_id}/dagRuns/{task.run_id}/taskInstances/"
            f"{task.task_id}/logs/{task.try_number}",
            params={"map_index": str(task.map_index), "full_content": "true"},
            timeout=60,
        )
        response.raise_for_status()
        return response.text

    def has_log(self, task: Task) -> bool:
        """Whether the log of a task is in the store. It is written there after the task has ended."""
        names = zip(Task._fields[:4], task[:4], strict=True)
        prefix = "".join(f"{name}={value}/" for name, value in names)
        return bool(self._store.list_objects_v2(Bucket=LOG_BUCKET, Prefix=prefix)["KeyCount"])

    def objects(self) -> dict[str, bytes]:
        """Return the stored images by name."""
        listed = self._store.list_objects_v2(Bucket=IMAGE_BUCKET).get("Contents", [])
        names = [entry["Key"] for entry in listed]
        return {name: self._store.get_object(Bucket=IMAGE_BUCKET, Key=name)["Body"].read() for name in names}

    def is_ready(self) -> bool:
        """Whether each worker and each triggerer is running, and each Dag is known."""
        known = self._airflow.query(
            "select hostname from job where job_type = 'TriggererJob' union select dag_id from dag"
        )
        ready = [f"celery@{name} ready" in self._parts.log_of(name).read_text() for name in WORKERS]
        return {name for (name,) in known} == {*TRIGGERERS, *DAG_IDS} and all(ready)


@contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    """Run a cluster, and end it.

    :param folder: The parent of the folders of the machines.
    :raises MissingError: if Redis is not installed.
    """
    with ExitStack() as stack:
        broker_url = stack.enter_context(redis())
        store_url = stack.enter_context(moto())
        store = s3_client(store_url)
        for bucket in (IMAGE_BUCKET, LOG_BUCKET):
            store.create_bucket(Bucket=bucket)
        emulator = stack.enter_context(Emulator(duration=DURATION, tokens=TOKENS.values()))
        services = {
            name: {"conn_type": "modelscope", "password": token, "host": emulator.base_url}
            for name, token in TOKENS.items()
        }
        airflow = RealAirflow(
            folder / "operator",  # the machine that creates the database
            dags=DAGS,
            connections={"store": s3_connection(store_url), **services},
            database_url=stack.enter_context(postgres()),
        )
        statsd = stack.enter_context(StatsD())
        airflow.environment |= (
            SETTINGS
            | statsd.environment
            | {
                machine.VARIABLE: "operator",
                "AIRFLOW__CELERY__BROKER_URL": broker_url,
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{airflow.database_url}",
                # All machines of one Airflow have the same keys.
                "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(),
                "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            }
        )
        airflow.migrate()
        machines = {name: Part(command, _environment_of(name, folder)) for name, command in MACHINES.items()}
        parts = stack.enter_context(airflow.parts(machines))
        cluster = Cluster(airflow, parts, emulator, store, statsd)
        cluster.until(cluster.is_ready, "all machines are ready")
        yield cluster


def _environment_of(name: str, folder: Path) -> dict[str, str]:
    """Return the environment of one machine."""
    (temporary := folder / name / "tmp").mkdir(parents=True)
    return {
        "AIRFLOW_HOME": str(folder / name),
        "HOME": str(folder / name),
        "TMPDIR": str(temporary),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        machine.VARIABLE: name,
    }
