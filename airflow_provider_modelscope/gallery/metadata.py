"""Reads a Dag run's XComs and task states from Airflow's database. No other module does.

Airflow's public API cannot return all XComs of a run, and one call per image would take seconds. Queries name
single columns, which are the same from Airflow 3.1 on; the models' own methods are not.
"""

from __future__ import annotations

import json
from typing import Any

from airflow_provider_modelscope.gallery.cards import PushedXCom, Run, TaskState
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.xcoms import BATCH, IMAGES, REQUEST


def read_run(dag_id: str, run_id: str) -> Run | None:
    """Return a run with its task states and XComs, or None if it does not exist."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    def of_run(model: Any) -> list[Any]:
        return [model.dag_id == dag_id, model.run_id == run_id]

    with create_session() as session:
        found = session.execute(select(DagRun.id, DagRun.state).where(*of_run(DagRun))).first()
        if found is None:
            return None
        dag_run_id, state = found
        xcoms = session.execute(
            select(*_instance_columns(XComModel), XComModel.key, XComModel.value).where(
                XComModel.dag_run_id == dag_run_id,  # the first column of the primary key
                XComModel.key.in_([BATCH, IMAGES, REQUEST]),
            )
        ).all()
        columns: list[Any] = [
            *_instance_columns(TaskInstance),
            TaskInstance.state,
            TaskInstance.operator,
            TaskInstance.rendered_map_index,
            TaskInstance.start_date,
        ]
        tasks = session.execute(select(*columns).where(*of_run(TaskInstance))).all()
    return Run(
        dag_id=dag_id,
        run_id=run_id,
        state=str(state),
        xcoms=[
            PushedXCom(instance=Instance.make(*ids), key=key, value=_decode(value))
            for *ids, key, value in xcoms
        ],
        tasks=[
            TaskState(
                instance=Instance.make(*ids),
                state=None if state is None else str(state),
                operator=operator or "",
                label=label or "",
                started_at=started_at.timestamp() if started_at else None,
            )
            for *ids, state, operator, label, started_at in tasks
        ],
    )


def read_xcom(dag_id: str, run_id: str, instance: Instance, key: str) -> Any:
    """Return an XCom of a task instance, or None if it does not exist.

    Without a region, that of the only task instance with this index.
    """
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        rows = session.execute(
            select(*_instance_columns(XComModel), XComModel.value).where(
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
    return _decode(value)


def _instance_columns(model: Any) -> list[Any]:
    """Return the columns that identify a task instance in its run."""
    from sqlalchemy import null

    return [model.task_id, model.map_index, getattr(model, "region_id", null())]


def _decode(value: Any) -> Any:
    """Return a value as the task pushed it. Airflow stores JSON as a text in a JSON column."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):  # no JSON, or lists in lists in lists ...
        return value
