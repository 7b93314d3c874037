"""Reads a Dag run's XComs and task states from Airflow's database.

Airflow's public API cannot return all XComs of a run, and one call per image would take seconds. Queries name
single columns, which are the same from Airflow 3.1 on; the models' own methods are not.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
from airflow_provider_modelscope.json_values import number, text
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.xcoms import BATCH, BATCHES, ERROR, IMAGES, REQUEST, SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

MAX_QUEUE = 1000  # waiting tasks in all Dags; in a longer queue, no places are shown
QUEUE_TRIGGER = "airflow_provider_modelscope.triggers.queue.ModelScopeQueueTrigger"

log = logging.getLogger(__name__)


def read_version(dag_id: str, run_id: str, *, alive_since: float) -> str | None:
    """Return a text that changes when what :func:`read_run` returns may change, without reading it.

    None if the run has a batch, whose state is not in the database, or does not exist.

    :param alive_since: A triggerer that was seen since then is alive, in epoch seconds.
    """
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        run = session.execute(
            select(DagRun.id, DagRun.state, DagModel.is_paused)
            .outerjoin(DagModel, DagModel.dag_id == DagRun.dag_id)
            .where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
        ).first()
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
        if any(row.operator in BATCHES for row in tasks):
            return None
        xcoms = session.execute(
            select(func.count(), func.max(XComModel.timestamp)).where(XComModel.dag_run_id == run.id)
        ).all()
        waiting: list[Any] = []
        if any(row.state == "deferred" for row in tasks):
            seen_at = _triggerer_seen_at(session)
            is_alive = seen_at is not None and seen_at >= alive_since
            ids = (func.count(), func.sum(Trigger.id))
            queue = session.execute(select(*ids).where(Trigger.classpath == QUEUE_TRIGGER)).all()
            waiting = [is_alive or seen_at, queue]
    known = [tuple(run), sorted(map(repr, tasks)), xcoms, waiting]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def read_run(dag_id: str, run_id: str) -> Run | None:
    """Return a run with its task states and XComs, or None if it does not exist."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    def of_run(model: Any) -> list[Any]:
        return [model.dag_id == dag_id, model.run_id == run_id]

    with create_session() as session:
        found = session.execute(
            select(DagRun.id, DagRun.state, DagModel.is_paused)
            .outerjoin(DagModel, DagModel.dag_id == DagRun.dag_id)
            .where(*of_run(DagRun))
        ).first()
        if found is None:
            return None
        dag_run_id, state, is_paused = found
        xcoms = session.execute(
            select(*instance_columns(XComModel), XComModel.key, XComModel.value).where(
                XComModel.dag_run_id == dag_run_id,  # the first column of the primary key
                XComModel.key.in_([BATCH, ERROR, IMAGES, REQUEST]),
            )
        ).all()
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
        return Run(
            dag_id=dag_id,
            run_id=run_id,
            state=str(state),
            xcoms=[
                PushedXCom(instance=Instance.make(*ids), key=key, value=decode(value))
                for *ids, key, value in xcoms
            ],
            tasks=[_task_state(row, delays, rendered) for row in rows],
            is_paused=bool(is_paused),
            triggerer_seen_at=_triggerer_seen_at(session) if is_deferred else None,
            queue=_queue(session) if any(row.classpath == QUEUE_TRIGGER for row in rows) else {},
        )


def _task_state(
    row: Any, delays: Mapping[str, float], rendered: Mapping[Instance, Mapping[str, str]]
) -> TaskState:
    instance = Instance.make(*row[:3])
    ended_at = _seconds(row.end_date)
    delay = delays.get(row.task_id)
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
    """Return a parameter, or an empty text for one that Airflow has truncated."""
    found = (text(given.get(name)) if isinstance(given, dict) else None) or ""
    return "" if found.startswith("Truncated. ") else found


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


@lru_cache(maxsize=2 * MAX_QUEUE)
def _waiting(encrypted: str) -> tuple[str, float] | None:
    """Return the connection of a trigger and since when it waits. Its arguments never change."""
    from airflow.models.trigger import Trigger

    try:
        arguments = Trigger._decrypt_kwargs(encrypted)
        conn_id, queued_at = arguments["modelscope_conn_id"], number(arguments["queued_at"])
    except Exception as error:  # of any type: another key, or arguments of another version
        log.debug("The arguments of a trigger cannot be read: %r", error)
        return None
    return None if queued_at is None else (str(conn_id), queued_at)


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
