"""Reads the stored images of all runs of a Dag from Airflow's database, the newest run first.

The primary key of XComs begins with the id of the run, so the XComs of a few runs are found at once, however
many runs the Dag has.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.compat import AIRFLOW_VERSION
from airflow_provider_modelscope.gallery.dag_images import DagXCom, Found, Position, RunFacts, Wanted
from airflow_provider_modelscope.gallery.metadata import decode, has_key, instance_columns
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.xcoms import BATCH, IMAGES, StoredImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_XCOMS = 200  # that are read at once
MAX_CHOICES = 100  # runs that are suggested
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = logging.getLogger(__name__)


def read_xcoms(dag_id: str, wanted: Wanted, position: Position, runs: int) -> Found:
    """Return the next XComs of images from a position on.

    :param runs: How many runs to read.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import and_, or_, select

    if "\0" in wanted.run + wanted.task:  # no id contains NUL, and PostgreSQL rejects it
        return Found(xcoms=[], runs=0, older=None)
    columns: list[Any] = [DagRun.id, DagRun.run_id, DagRun.run_after]
    some_runs = select(*columns).where(DagRun.dag_id == dag_id, DagRun.id <= position.run)
    if wanted.run:
        some_runs = some_runs.where(DagRun.run_id == wanted.run)
    with create_session() as session:
        facts = {
            row.id: RunFacts(run_id=row.run_id, started_at=row.run_after)
            for row in session.execute(some_runs.order_by(DagRun.id.desc()).limit(runs))
        }
        if not facts:
            return Found(xcoms=[], runs=0, older=None)
        xcom = XComModel
        in_order: list[Any] = [xcom.dag_run_id.desc(), xcom.timestamp.desc(), xcom.task_id, xcom.map_index]
        rows = session.execute(
            select(xcom.dag_run_id, xcom.timestamp, *instance_columns(xcom), xcom.key, xcom.value)
            .where(
                *_of_runs(dag_id, {id_: run.run_id for id_, run in facts.items()}),
                *_of_images(wanted),
                or_(
                    xcom.dag_run_id < position.run,
                    and_(xcom.dag_run_id == position.run, xcom.timestamp <= _time(position.pushed_at)),
                ),
            )
            .order_by(*in_order, xcom.key)
            .offset(position.skipped)
            .limit(MAX_XCOMS)
        ).all()
    xcoms = []
    for row, at in zip(rows, _positions(rows, position), strict=True):
        _, _, *ids, key, value = row
        run, instance = facts[row.dag_run_id], Instance.make(*ids)
        xcoms.append(DagXCom(run=run, instance=instance, key=key, value=decode(value), position=at))
    older: Position | None = Position(run=min(facts) - 1)
    if len(rows) == MAX_XCOMS:
        older = replace(xcoms[-1].position, skipped=xcoms[-1].position.skipped + 1)
    elif len(facts) < runs:
        older = None
    return Found(xcoms=xcoms, runs=len(facts), older=older)


def _positions(rows: Any, start: Position) -> Iterator[Position]:
    here = replace(start, left=0, skipped=start.skipped - 1)
    for row in rows:
        pushed_at = _microseconds(row.timestamp)
        is_same = (here.run, here.pushed_at) == (row.dag_run_id, pushed_at)
        here = Position(run=row.dag_run_id, pushed_at=pushed_at, skipped=here.skipped + 1 if is_same else 0)
        yield here


def read_newer(dag_id: str, wanted: Wanted, position: Position) -> list[StoredImage]:
    """Return the images that the run of a position has just before it."""
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        own = select(DagRun.run_id).where(DagRun.id == position.run, DagRun.dag_id == dag_id)
        run_id = session.scalar(own)
        if run_id is None:
            return []
        values = session.scalars(
            select(XComModel.value)
            .where(
                *_of_runs(dag_id, {position.run: run_id}),
                XComModel.timestamp > _time(position.pushed_at),
                *_of_images(wanted),
            )
            .order_by(XComModel.timestamp)
            .limit(MAX_XCOMS)
        ).all()
    entries = [entry for value in map(decode, values) if isinstance(value, list) for entry in value]
    return [image for image in map(StoredImage.from_json, entries) if image]


def read_choices(dag_id: str) -> tuple[list[RunFacts], list[str]]:
    """Return the newest runs of a Dag, and the tasks that have images in them."""
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        columns: list[Any] = [DagRun.id, DagRun.run_id, DagRun.run_after]
        runs = session.execute(
            select(*columns).where(DagRun.dag_id == dag_id).order_by(DagRun.id.desc()).limit(MAX_CHOICES)
        ).all()
        tasks = session.scalars(
            select(XComModel.task_id)
            .where(*_of_runs(dag_id, {row.id: row.run_id for row in runs}), *_of_images(Wanted()))
            .distinct()
        ).all()
    return [RunFacts(run_id=row.run_id, started_at=row.run_after) for row in runs], sorted(tasks)


def read_params(dag_id: str) -> list[str]:
    """Return the names of the params of a Dag; none if it cannot be read."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils.session import create_session

    try:
        with create_session() as session:
            dag: Any = SerializedDagModel.get_dag(dag_id, session=session)
            return list(dag.params) if dag else []
    except Exception as error:  # of any type: it may have been serialized by another version
        log.debug("The params of Dag %r are unknown: %r", dag_id, error)
        return []


def _of_runs(dag_id: str, runs: Mapping[int, str]) -> list[Any]:
    """Return the conditions by which an index finds the XComs of some runs.

    :param runs: Their ids, by those in the database.
    """
    from airflow.models.xcom import XComModel

    if AIRFLOW_VERSION >= (3, 4):  # which reads the run from the task instance
        return [XComModel.dag_id == dag_id, XComModel.run_id.in_(runs.values())]
    return [XComModel.dag_run_id.in_(runs)]


def _of_images(wanted: Wanted) -> list[Any]:
    from airflow.models.xcom import XComModel

    of_task = [XComModel.task_id == wanted.task] if wanted.task else []
    return [has_key(BATCH, IMAGES), *of_task]


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
