"""Reads a Dag run's XComs and task states from Airflow's database.

Airflow's public API cannot return all XComs of a run, and one call per image would take seconds. Queries name
single columns, which are the same from Airflow 3.1 on; the models' own methods are not.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_modelscope.compat import DYNAMIC
from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
from airflow_provider_modelscope.json_values import number, text
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.xcoms import BATCH, ERROR, IMAGES, PROGRESS, REQUEST, SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

MAX_QUEUE = 1000  # waiting tasks in all Dags; in a longer queue, no places are shown
QUEUE_TRIGGER = "airflow_provider_modelscope.triggers.queue.ModelScopeQueueTrigger"
GENERATION_TRIGGER = "airflow_provider_modelscope.triggers.image_generation.ModelScopeImageGenerationTrigger"
RECENT_RUNS = 3  # whose images say how long a generation usually takes
RECENT_XCOMS = 50  # and so many of their XComs at most
RECENT_ENTRIES = 20  # and so many images of each
# The events of Airflow's audit log when a person changes the state of a task, a group of tasks or a run.
MARKED = ("patch_task_instance", "patch_task_group_instances", "patch_dag_run")
MARKING = timedelta(seconds=30)  # from the entry until the last task is set to failed
HEARTBEAT = "heartbeat timeout"  # the event when the scheduler gives a task up whose worker is silent

log = logging.getLogger(__name__)


def read_version(dag_id: str, run_id: str, *, alive_since: float) -> tuple[str, list[PushedXCom]] | None:
    """Return a text that changes when what :func:`read_run` returns may change, without reading it.

    With it come the XComs of the run's batches, whose state is not in the database. None if there is no such
    run.

    :param alive_since: A triggerer that was seen since then is alive, in epoch seconds.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import case, func, select

    with create_session() as session:
        run = _dag_run(session, dag_id, run_id)
        if run is None:
            return None
        of_state: list[Any] = [TaskInstance.operator, TaskInstance.state]
        times = (TaskInstance.scheduled_dttm, TaskInstance.queued_dttm, TaskInstance.start_date)
        tasks = session.execute(
            select(
                *of_state,
                func.count(),
                func.sum(TaskInstance.try_number),
                func.max(TaskInstance.trigger_id),
                *map(func.max, (*times, TaskInstance.end_date)),
            )
            .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
            .group_by(*of_state)
        ).all()
        pushed = (func.count(), func.max(XComModel.timestamp), func.sum(case((XComModel.key == BATCH, 1))))
        [xcoms] = session.execute(select(*pushed).where(XComModel.dag_run_id == run.id)).all()
        batches = _xcoms(session, run.id, BATCH) if xcoms[-1] else []
        waiting: list[Any] = []
        if any(row.state == "deferred" for row in tasks):
            seen_at = _triggerer_seen_at(session)
            is_alive = seen_at is not None and seen_at >= alive_since
            waiting = [is_alive or seen_at]
            is_queued = select(TaskInstance.trigger_id).join(Trigger, Trigger.id == TaskInstance.trigger_id)
            of_run = [TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id]
            if session.scalar(is_queued.where(*of_run, Trigger.classpath == QUEUE_TRIGGER).limit(1)):
                ids = (Trigger.classpath, func.count(), func.sum(Trigger.id))
                of_place = Trigger.classpath.in_([QUEUE_TRIGGER, GENERATION_TRIGGER])
                queue = session.execute(select(*ids).where(of_place).group_by(Trigger.classpath)).all()
                waiting += sorted(map(repr, queue))
        if _is_waiting(tasks):
            waiting += _recent_runs(session, dag_id, run.id)
    known = [tuple(run), sorted(map(repr, tasks)), tuple(xcoms), waiting]
    return repr(known), batches


def read_run(dag_id: str, run_id: str) -> Run | None:
    """Return a run with its task states and XComs, or None if it does not exist."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from sqlalchemy import null, select

    def of_run(model: Any) -> list[Any]:
        return [model.dag_id == dag_id, model.run_id == run_id]

    with create_session() as session:
        run = _dag_run(session, dag_id, run_id)
        if run is None:
            return None
        xcoms = _xcoms(session, run.id, BATCH, ERROR, IMAGES, PROGRESS, REQUEST)
        columns: list[Any] = [
            *instance_columns(TaskInstance),
            TaskInstance.state,
            TaskInstance.operator,
            TaskInstance.rendered_map_index,
            TaskInstance.try_number,
            TaskInstance.scheduled_dttm,
            TaskInstance.queued_dttm,
            TaskInstance.start_date,
            TaskInstance.end_date,
            TaskInstance.next_method,
            TaskInstance.id.label("attempt_id"),
            getattr(TaskInstance, "retry_delay_override", null()).label("retry_delay"),
            Trigger.id,
            Trigger.classpath,
            Trigger.created_date,
        ]
        rows = session.execute(
            select(*columns)
            .outerjoin(Trigger, Trigger.id == TaskInstance.trigger_id)
            .where(*of_run(TaskInstance))
        ).all()
        rendered = _rendered(session, of_run(TaskInstance))
        retried = {row.task_id for row in rows if row.state == "up_for_retry"}
        delays = _retry_delays(session, dag_id, retried)
        is_deferred = any(row.state == "deferred" for row in rows)
        has_error = {xcom.instance for xcom in xcoms if xcom.key == ERROR}
        failed = [row for row in rows if row.state == "failed" and Instance.make(*row[:3]) not in has_error]
        ended_by = _ended_by(session, dag_id, run_id, failed)
        is_queued = any(row.classpath == QUEUE_TRIGGER for row in rows)
        return Run(
            dag_id=dag_id,
            run_id=run_id,
            state=str(run.state),
            xcoms=xcoms,
            tasks=[_task_state(row, delays, rendered, ended_by) for row in rows],
            is_paused=bool(run.is_paused),
            is_stale=bool(run.is_stale),
            triggerer_seen_at=_triggerer_seen_at(session) if is_deferred else None,
            queue=_queue(session) if is_queued else {},
            running=_running(session) if is_queued else {},
            recent_images=_recent_images(session, dag_id, run.id) if _is_waiting(rows) else (),
        )


def _dag_run(session: Any, dag_id: str, run_id: str) -> Any:
    """Return the row of a run with what is shown of its Dag, or None if it does not exist."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    return session.execute(
        select(DagRun.id, DagRun.state, DagModel.is_paused, DagModel.is_stale)
        .outerjoin(DagModel, DagModel.dag_id == DagRun.dag_id)
        .where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    ).first()


def _task_state(
    row: Any,
    delays: Mapping[str, float],
    rendered: Mapping[Instance, Mapping[str, str]],
    ended_by: Mapping[Instance, Literal["person", "heartbeat"]],
) -> TaskState:
    instance = Instance.make(*row[:3])
    ended_at = _seconds(row.end_date)
    delay = delays.get(row.task_id) if row.retry_delay is None else row.retry_delay  # of a retry policy
    return TaskState(
        instance=instance,
        state=None if row.state is None else str(row.state),
        operator=row.operator or "",
        label=row.rendered_map_index or "",
        **rendered.get(instance, {}),
        attempt=row.try_number or 0,
        scheduled_at=_seconds(row.scheduled_dttm),
        queued_at=_seconds(row.queued_dttm),
        started_at=_seconds(row.start_date),
        ended_at=ended_at,
        next_method=row.next_method or "",
        trigger=(row.classpath or "").rpartition(".")[2],
        trigger_id=row.id,
        deferred_at=_seconds(row.created_date),
        retry_at=ended_at + delay if ended_at is not None and delay is not None else None,
        ended_by=ended_by.get(instance, ""),
    )


def _seconds(time: datetime | None) -> float | None:
    return time.timestamp() if time else None


def _rendered(session: Any, of_run: list[Any]) -> dict[Instance, dict[str, str]]:
    """Return the prompts and models of tasks that have started and not succeeded, without secrets."""
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import and_, select

    fields: Any = RenderedTaskInstanceFields
    if hasattr(fields, "task_instance_id"):  # Airflow 3.4
        same = [fields.task_instance_id == TaskInstance.id]
    else:
        names = ("dag_id", "run_id", "task_id", "map_index")
        same = [getattr(fields, name) == getattr(TaskInstance, name) for name in names]
    rows = session.execute(
        select(*instance_columns(TaskInstance), fields.rendered_fields)
        .join(fields, and_(*same))
        .where(*of_run, TaskInstance.operator.in_(SUBMITTERS), TaskInstance.state != "success")
    ).all()
    return {
        Instance.make(*ids): {name: _rendered_text(given, name) for name in ("prompt", "model")}
        for *ids, given in rows
    }


def _rendered_text(given: Any, name: str) -> str:
    """Return a parameter, or an empty text for one that Airflow has truncated or does not know yet."""
    found = (text(given.get(name)) if isinstance(given, dict) else None) or ""
    return "" if found.startswith(("Truncated. ", DYNAMIC)) else found


def _triggerer_seen_at(session: Any) -> float | None:
    """Return when any triggerer last sent a heartbeat."""
    from airflow.jobs.job import Job
    from sqlalchemy import func, select

    last = select(func.max(Job.latest_heartbeat)).where(Job.job_type == "TriggererJob")
    return _seconds(session.scalar(last))


def _queue(session: Any) -> dict[int, tuple[str, float]]:
    """Return the connection and the time since which each trigger waits for a slot, in all Dags."""
    from airflow.models.trigger import Trigger
    from sqlalchemy import select

    columns: list[Any] = [Trigger.id, Trigger.encrypted_kwargs]
    rows = session.execute(select(*columns).where(Trigger.classpath == QUEUE_TRIGGER).limit(MAX_QUEUE + 1))
    queue = {trigger_id: _waiting(encrypted) for trigger_id, encrypted in rows}
    known = {trigger_id: waiting for trigger_id, waiting in queue.items() if waiting}
    return known if len(queue) == len(known) <= MAX_QUEUE else {}


def _running(session: Any) -> dict[str, int]:
    """Return how many generations triggers wait for, by connection, in all Dags."""
    from airflow.models.trigger import Trigger
    from sqlalchemy import select

    encrypted = select(Trigger.encrypted_kwargs).where(Trigger.classpath == GENERATION_TRIGGER)
    running = Counter(map(_connection, session.scalars(encrypted.limit(MAX_QUEUE))))
    return {conn_id: count for conn_id, count in running.items() if conn_id is not None}


@lru_cache(maxsize=2 * MAX_QUEUE)
def _waiting(encrypted: str) -> tuple[str, float] | None:
    """Return the connection of a trigger and since when it waits. Its arguments never change."""
    arguments = _arguments(encrypted)
    conn_id, queued_at = text(arguments.get("modelscope_conn_id")), number(arguments.get("queued_at"))
    return None if conn_id is None or queued_at is None else (conn_id, queued_at)


@lru_cache(maxsize=2 * MAX_QUEUE)
def _connection(encrypted: str) -> str | None:
    """Return the connection of a trigger."""
    return text(_arguments(encrypted).get("modelscope_conn_id"))


def _arguments(encrypted: str) -> Mapping[str, Any]:
    """Return the arguments of a trigger, none if they cannot be read."""
    from airflow.models.trigger import Trigger

    try:
        return dict(Trigger._decrypt_kwargs(encrypted))
    except Exception as error:  # of any type: another key, or arguments of another version
        log.debug("The arguments of a trigger cannot be read: %r", error)
        return {}


def _is_waiting(rows: Iterable[Any]) -> bool:
    """Whether a task waits for the account or for a generation, so that the usual duration is of use."""
    return any(row.state in ("running", "deferred") and row.operator in SUBMITTERS for row in rows)


def _recent_runs(session: Any, dag_id: str, dag_run_id: int) -> list[int]:
    """Return the last runs of a Dag that were created before a run and have ended."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    ended = [DagRun.dag_id == dag_id, DagRun.id < dag_run_id, DagRun.state.in_(["success", "failed"])]
    found = select(DagRun.id).where(*ended).order_by(DagRun.id.desc()).limit(RECENT_RUNS)
    return list(session.scalars(found))


def _recent_images(session: Any, dag_id: str, dag_run_id: int) -> list[Any]:
    """Return some values of the XCom ``images`` of the last runs of a Dag, each a list."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    values: list[Any] = []
    for id_ in _recent_runs(session, dag_id, dag_run_id):
        found = select(XComModel.value).where(XComModel.dag_run_id == id_, has_key(IMAGES))
        values += session.scalars(found.limit(RECENT_XCOMS - len(values)))
    return [value[:RECENT_ENTRIES] for value in map(decode, values) if isinstance(value, list)]


def _ended_by(
    session: Any, dag_id: str, run_id: str, failed: Sequence[Any]
) -> dict[Instance, Literal["person", "heartbeat"]]:
    """Return what ended tasks that failed, as far as Airflow's audit log says it.

    Not who marked them failed: a user who may read XComs may not read the audit log.

    :param failed: Those without an error of ours.
    """
    from airflow.models.log import Log
    from sqlalchemy import null, select

    if not failed:
        return {}
    attempt_id = getattr(Log, "task_instance_id", null())  # from Airflow 3.4 on
    columns: list[Any] = [Log.event, Log.dttm, Log.extra, Log.task_id, Log.map_index, Log.try_number]
    entries = session.execute(
        select(*columns, attempt_id.label("attempt_id")).where(
            Log.dag_id == dag_id, Log.run_id == run_id, Log.event.in_([*MARKED, HEARTBEAT])
        )
    ).all()
    marks = [(entry, decode(entry.extra)) for entry in entries if entry.event in MARKED]
    lost = {entry.attempt_id or tuple(entry[3:6]) for entry in entries if entry.event == HEARTBEAT}
    ended_by: dict[Instance, Literal["person", "heartbeat"]] = {}
    for row in failed:
        instance = Instance.make(*row[:3])
        if not lost.isdisjoint((row.attempt_id, (row.task_id, row.map_index, row.try_number))):
            ended_by[instance] = "heartbeat"
        elif any(_marks(extra, entry.task_id, entry.dttm, instance, row.end_date) for entry, extra in marks):
            ended_by[instance] = "person"
    return ended_by


def _marks(
    extra: Any, task_id: str | None, at: datetime | None, instance: Instance, ended_at: datetime | None
) -> bool:
    """Whether an entry of the audit log is that of a person who set this task instance to failed.

    :param extra: The query and the body of the request.
    :param task_id: The task that it names, None for a run or a group.
    """
    if not isinstance(extra, dict) or "failed" not in (extra.get("new_state"), extra.get("state")):
        return False
    # Airflow writes the entry before it checks the permission, so that alone it proves nothing.
    if not at or not ended_at or not timedelta(0) <= ended_at - at <= MARKING:
        return False
    if task_id != instance.task_id:
        return task_id is None or True in (extra.get("include_upstream"), extra.get("include_downstream"))
    index = extra.get("region_index", extra.get("map_index"))
    is_of_region = extra.get("region_id") in (None, instance.region_id)
    return is_of_region and index in (None, instance.map_index, str(instance.map_index))


def _retry_delays(session: Any, dag_id: str, task_ids: set[str]) -> dict[str, float]:
    """Return the seconds between the attempts of tasks, of those for which they are always the same."""
    from airflow.models.serialized_dag import SerializedDagModel

    delays: dict[str, float] = {}
    if not task_ids:
        return delays
    try:
        dag: Any = SerializedDagModel.get_dag(dag_id, session=session)
        for task_id in task_ids:
            task = dag.get_task(task_id)
            if not task.retry_exponential_backoff:
                delays[task_id] = task.retry_delay.total_seconds()
    except Exception as error:  # of any type: the Dag may have changed since
        log.debug("The retry delay of Dag %r is unknown: %r", dag_id, error)
    return delays


def _xcoms(session: Any, dag_run_id: int, *keys: str) -> list[PushedXCom]:
    """Return the XComs of a run with these keys."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    columns = [*instance_columns(XComModel), XComModel.key, XComModel.value]
    rows = session.execute(
        select(*columns).where(
            XComModel.dag_run_id == dag_run_id,  # the first column of the primary key
            XComModel.key.in_(keys),
        )
    )
    return [
        PushedXCom(instance=Instance.make(*ids), key=key, value=decode(value)) for *ids, key, value in rows
    ]


def read_xcom(dag_id: str, run_id: str, instance: Instance, key: str) -> Any:
    """Return an XCom of a task instance, or None if it does not exist.

    Without a region, that of the only task instance with this index.
    """
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.execute(
            select(*instance_columns(XComModel), XComModel.value).where(
                XComModel.dag_id == dag_id,
                XComModel.run_id == run_id,
                XComModel.task_id == instance.task_id,
                XComModel.map_index == instance.map_index,
                XComModel.key == key,
            )
        ).all()
    found = {Instance.make(*ids).region_id: value for *ids, value in rows}
    if not instance.region_id and len(found) == 1:
        [value] = found.values()
    else:
        value = found.get(instance.region_id)
    return decode(value)


def has_key(*keys: str) -> Any:
    """Return the condition that an XCom of the runs in the same query has one of these keys."""
    from airflow.models.xcom import XComModel

    # Without "", SQLite chooses the index of the key, which leads to the images of all Dags.
    return (XComModel.key + "").in_(keys)


def instance_columns(model: Any) -> list[Any]:
    """Return the columns that identify a task instance in its run."""
    from sqlalchemy import null

    return [model.task_id, model.map_index, getattr(model, "region_id", null())]


def decode(value: Any) -> Any:
    """Return a value as the task pushed it. Airflow stores JSON as a text in a JSON column."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):  # no JSON, or lists in lists in lists ...
        return value
