"""An Airflow whose parts are machines of their own, a service and a store; and what can be seen of them."""

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

Seen = TypeVar("Seen")

DAGS = Path(__file__).parent / "dags"
DAG_IDS = ("in_parts", "in_one_step", "by_function")
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
TOKENS = {"first_account": "ms-cluster-1", "second_account": "ms-cluster-2"}  # by connection
SECONDS = 5.0  # of a generation
IMAGE_BUCKET = "postcards"
LOG_BUCKET = "logs"
SAFE_SECONDS = 1.5  # in which a machine is dead
LIMIT = 600.0  # seconds for whatever is waited for

SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{machine.__name__}.{machine.name.__name__}",
    "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
    "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
    "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": f"s3://{LOG_BUCKET}/",
    "AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID": "store",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "8",
    # The dead are missed in seconds, where Airflow takes minutes by default.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "60",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",  # see the proofs
}


TASK = "dag_id, run_id, task_id, map_index, coalesce(task_instance.state, 'none'), try_number, hostname"


class Task(NamedTuple):
    """A task instance; its columns are ``TASK``."""

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
    :param statsd: Where its metrics end.
    """

    def __init__(
        self, airflow: RealAirflow, parts: Parts, emulator: Emulator, store: Any, statsd: StatsD
    ) -> None:
        self.emulator = emulator
        self.statsd = statsd
        self.triggers: dict[str, set[int]] = {name: set() for name in TRIGGERERS}
        """The waits that each triggerer was seen to hold."""
        self._began_at = time.monotonic()
        self._airflow = airflow
        self._parts = parts
        self._store = store
        self._session = airflow.session(parts.url)

    def start_runs(self) -> None:
        """Start a run of each Dag; from here on it is told how many seconds have passed."""
        self._began_at = time.monotonic()
        for dag_id in DAG_IDS:
            start_run(self._session, self._parts.url, dag_id, {})

    @property
    def seconds(self) -> float:
        """How many have passed."""
        return time.monotonic() - self._began_at

    def until(self, condition: Callable[[], Seen | None], what: str) -> Seen:
        """Wait for a condition, and return what it says.

        :raises RuntimeError: where a part ends meanwhile, with the end of its log.
        :raises TimeoutError: where it takes too long.
        """
        deadline = time.monotonic() + LIMIT
        while not (seen := condition()):
            self._parts.check()
            for name, held in self.held_triggers().items():
                self.triggers[name] |= held
            if time.monotonic() > deadline:
                states = Counter((task.dag_id, task.task_id, task.state) for task in self.tasks())
                raise TimeoutError(f"not within {LIMIT:.0f} s: {what}. {states}")
            time.sleep(0.2)
        print(f"{self.seconds:4.0f} s: {what}", flush=True)
        return seen

    def kill(self, name: str) -> float:
        """Kill a machine (-9), all its processes at once; return when. It is not replaced."""
        self._parts.kill(name)
        print(f"{(killed_at := self.seconds):4.0f} s: {name} is killed", flush=True)
        return killed_at

    def tasks(self) -> list[Task]:
        """Return the task instances."""
        rows = self._airflow.query(
            f"select {TASK} from task_instance order by dag_id, task_id, map_index"  # noqa: S608 - our own
        )
        return [Task(*row) for row in rows]

    @property
    def accepted(self) -> list[Exchange]:
        """The submissions that made a generation."""
        return [one for one in list(self.emulator.requests) if one.note == "accepted"]

    def run_states(self) -> list[str]:
        """Return the states of the Dag runs."""
        return [state for (state,) in self._airflow.query("select state from dag_run")]

    def held_triggers(self) -> dict[str, set[int]]:
        """Return the triggers of our tasks that wait, by the triggerer that holds them."""
        rows = self._airflow.query(
            "select job.hostname, trigger.id from trigger join job on job.id = trigger.triggerer_id "
            "join task_instance on task_instance.trigger_id = trigger.id"
        )
        held: dict[str, set[int]] = {name: set() for name in TRIGGERERS}
        for name, trigger_id in rows:
            held[name].add(trigger_id)
        return held

    def watchers(self) -> list[Task]:
        """Return the tasks that watch the generations which run, in a moment in which none can be submitted.

        Whoever is killed between a submission and its answer takes the answer along. There is nobody while
        the slot of each account is taken for some time yet, by a generation that Airflow knows of.
        """
        running = {
            one.headers["Authorization"]: one.generation_id
            for one, (_, end) in zip(self.accepted, self.emulator.spans, strict=False)
            if time.monotonic() + SAFE_SECONDS < end
        }
        requests = self._airflow.query(
            f"select {TASK}, cast(value as text) from task_instance "  # noqa: S608 - our own columns
            "join xcom using (dag_id, run_id, task_id, map_index) where xcom.key = 'request'"
        )
        known = [Task(*task) for *task, value in requests if any(id_ in value for id_ in running.values())]
        return known if len(known) == len(TOKENS) else []

    def legs(self, worker: str) -> int:
        """Return how often a worker was given a task; one that defers comes again."""
        return self._parts.log_of(worker).read_text().count("Executing workload in Celery")

    def log_of(self, task: Task) -> str:
        """Return the log of a task's last try, as the API server gives it."""
        answer = self._session.get(
            f"{self._parts.url}/api/v2/dags/{task.dag_id}/dagRuns/{task.run_id}/taskInstances/"
            f"{task.task_id}/logs/{task.try_number}",
            params={"map_index": str(task.map_index), "full_content": "true"},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.text

    def has_log(self, task: Task) -> bool:
        """Whether a log of a task is in the store: it comes there when the task has ended already."""
        names = zip(Task._fields[:4], task[:4], strict=True)
        prefix = "".join(f"{name}={value}/" for name, value in names)
        return bool(self._store.list_objects_v2(Bucket=LOG_BUCKET, Prefix=prefix)["KeyCount"])

    def objects(self) -> dict[str, bytes]:
        """Return the stored images by name."""
        found = self._store.list_objects_v2(Bucket=IMAGE_BUCKET).get("Contents", [])
        names = [one["Key"] for one in found]
        return {name: self._store.get_object(Bucket=IMAGE_BUCKET, Key=name)["Body"].read() for name in names}

    def has_come_up(self) -> bool:
        """Whether each worker, each triggerer and each Dag has been heard of."""
        heard = self._airflow.query(
            "select hostname from job where job_type = 'TriggererJob' union select dag_id from dag"
        )
        ready = [f"celery@{name} ready" in self._parts.log_of(name).read_text() for name in WORKERS]
        return {name for (name,) in heard} == {*TRIGGERERS, *DAG_IDS} and all(ready)


@contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    """Run a cluster, and end it.

    :param folder: Where each machine has a folder of its own.
    :raises MissingError: where Redis is missing.
    """
    with ExitStack() as stack:
        broker_url = stack.enter_context(redis())
        store_url = stack.enter_context(moto())
        store = s3_client(store_url)
        for bucket in (IMAGE_BUCKET, LOG_BUCKET):
            store.create_bucket(Bucket=bucket)
        emulator = stack.enter_context(Emulator(duration=SECONDS, tokens=TOKENS.values()))
        services = {
            name: {"conn_type": "modelscope", "password": token, "host": emulator.base_url}
            for name, token in TOKENS.items()
        }
        airflow = RealAirflow(
            folder / "operator",  # whoever makes the database has a machine as well
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
                # One Airflow, so one set of keys.
                "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(),
                "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            }
        )
        airflow.migrate()
        machines = {name: Part(command, _only_on(name, folder)) for name, command in MACHINES.items()}
        parts = stack.enter_context(airflow.parts(machines))
        cluster = Cluster(airflow, parts, emulator, store, statsd)
        cluster.until(cluster.has_come_up, "all machines are up")
        yield cluster


def _only_on(name: str, folder: Path) -> dict[str, str]:
    """Return what a machine does not have in common with the others."""
    (temporary := folder / name / "tmp").mkdir(parents=True)
    return {
        "AIRFLOW_HOME": str(folder / name),
        "HOME": str(folder / name),
        "TMPDIR": str(temporary),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        machine.VARIABLE: name,
    }
