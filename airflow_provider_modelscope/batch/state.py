"""What a batch has done, in objects beside its images, so that a worker may be killed at any point.

``plan.jsonl``
    The rows of this attempt of the task. A part that resumes after a deferral works on the same rows.
``running.json``
    The generations that are paid for and not stored yet, and the latest results. It is replaced before each
    submission, and again when its response is there.
``results-....jsonl``
    Earlier results. Object stores cannot append, so these are never rewritten.

They belong to a task instance of a run, in all of its attempts.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    InvalidDestinationError,
    InvalidRequestError,
    SubmissionRecordError,
)
from airflow_provider_modelscope.images.object_storage import (
    LOCAL,
    TEMPORARY,
    open_filesystem,
    read_latest,
    write_file,
    write_object,
)
from airflow_provider_modelscope.json_values import text
from airflow_provider_modelscope.manifest import Progress, RunningRow, Segment
from airflow_provider_modelscope.redaction import preview
from airflow_provider_modelscope.xcoms import STATE_FOLDER, name_of

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_modelscope.batch.rows import Shard
    from airflow_provider_modelscope.batch.working_set import WorkingSet
    from airflow_provider_modelscope.images.object_storage import Destination

JSON = "application/json"
PLAN, RUNNING = "plan.jsonl", "running.json"
MAX_LATEST = 50  # results in running.json

log = logging.getLogger(__name__)


class BatchState:
    """The state of one task instance.

    :param destination: The folder of the images.
    :param ti: The task instance.
    :param shard: Its part of the rows, None if it has all.
    """

    def __init__(self, destination: Destination, ti: Any, shard: Shard | None = None) -> None:
        self._destination = destination
        self._name = name_of(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)
        self._batch = name_of(ti.dag_id, ti.run_id, ti.task_id, None)  # the same in all of its shards
        self._shard = str(shard) if shard else None
        self.uri = f"{destination.uri}{STATE_FOLDER}/{self._name}/"
        folder = self._path("")
        self.scratch = Path(folder.path) if folder.protocol in LOCAL else None
        self._latest: list[str] = []  # results as JSON text: they are written again and again
        self._latest_without_image = 0
        self._next_sequence = 1

    def load(self) -> tuple[Mapping[str, Any], Iterator[dict[str, Any]]]:
        """Return what ``running.json`` says, empty if there is none, and all results, the oldest first.

        :raises SubmissionRecordError: if it cannot be read, which does not mean that there is none.
        :raises InvalidRequestError: if it has paid for rows of another shard.
        """
        try:
            document = self._read_running(self._name)
            value = document.get("modelscope_batch", {})
            segments = self._segments(self._name)
            self._next_sequence = 1 + max((segment.sequence for segment in segments), default=0)
            # If a segment was written afterwards, it has these results, and perhaps newer ones.
            is_latest = value.get("next_sequence", 1) >= self._next_sequence
            latest = value.get("results", []) if is_latest else []
            for result in latest:
                self._keep(result)
        except Exception as error:  # of any store, or it is damaged
            raise self._unreadable(error) from error
        if value.get("shard") != self._shard and _has_paid(document, segments):
            raise self._shard_error(self._name, value)
        return value, self._results(segments, latest)

    def check_folder(self) -> None:
        """Check that no other batch has its images in the folder, which would replace each other's.

        Call this again after :meth:`write`: of two batches that start at once, at least one finds the other.
        One that has ended before it has paid for anything does not count.

        :raises InvalidDestinationError: if there is another batch.
        :raises InvalidRequestError: if another mapped task has rows of this shard.
        :raises SubmissionRecordError: if the state of another batch cannot be read.
        """
        for name in self._others():
            try:
                document = self._read_running(name)
                has_ended = not document or document["modelscope_batch"].get("is_finished")
                if has_ended and not _has_paid(document, self._segments(name)):
                    continue
            except Exception as error:  # of any store, or it is damaged
                raise self._unreadable(error, name) from error
            value = document.get("modelscope_batch", {})
            if value.get("batch") != self._batch:
                raise InvalidDestinationError(
                    f"destination = {preview(self._destination.uri, 300)}: another batch, {_readable(name)}, "
                    "has its images there, and this one would replace them. Add "
                    "'{{ ti.task_id }}/{{ run_id }}/' to it, or clear the task of that batch, which only "
                    "generates what has changed"
                )
            mine, theirs = self._shard or "", text(value.get("shard")) or ""
            if mine == theirs or mine.partition("/")[2] != theirs.partition("/")[2]:
                raise self._shard_error(name, value)

    def _others(self) -> list[str]:
        """Return the names of the states of other task instances in the folder."""
        try:
            names = self._list(self._destination.beside(f"{STATE_FOLDER}/"))
        except Exception as error:  # of any store
            raise self._unreadable(error) from error
        return [name for name in names if re.search("-[0-9a-f]{64}$", name) and name != self._name]

    def _shard_error(self, name: str, value: Mapping[str, Any]) -> InvalidRequestError:
        return InvalidRequestError(
            f"shard = {self._shard!r}: {_readable(name)} began with {text(value.get('shard'))!r}, and rows "
            "would be paid for twice. Give each mapped task a shard of its own, and keep their number in a "
            "retry or Clear: if an account is gone, map another connection twice"
        )

    def _read_running(self, name: str) -> dict[str, Any]:
        try:
            content = read_latest(self._path(RUNNING, name))
        except FileNotFoundError:
            return {}
        document = json.loads(content)
        if Progress.from_json(document) is None:
            raise ValueError(f"{content[:200]!r} is not what a batch writes: delete the folder to start anew")
        return dict(document)

    def _results(self, segments: list[Segment], latest: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for segment in segments:
            try:
                results = [json.loads(line) for line in read_latest(self._path(segment.name)).splitlines()]
                if len(results) != segment.count:
                    raise ValueError(f"{segment.name} has {len(results)} lines")
            except Exception as error:  # of any store, or it is damaged
                raise self._unreadable(error) from error
            yield from results
        yield from latest

    def _segments(self, name: str) -> list[Segment]:
        names = self._list(self._path("", name))
        if self.scratch and name == self._name:
            for one in names:
                if one.startswith(TEMPORARY):  # of a worker that was killed
                    (self.scratch / one).unlink(missing_ok=True)
        return sorted(filter(None, map(Segment.from_name, names)))

    def _list(self, folder: ObjectStoragePath) -> list[str]:
        filesystem = open_filesystem(folder)
        filesystem.invalidate_cache()
        try:
            return [PurePosixPath(path).name for path in filesystem.ls(folder.path, detail=False)]
        except FileNotFoundError:
            return []

    def add(self, result: Mapping[str, Any]) -> None:
        """Add a result. It is written by the next call of :meth:`write`."""
        self._keep(result)
        if len(self._latest) >= MAX_LATEST:
            try:
                self._write_segment()
            except SubmissionRecordError as error:  # the results stay in ``running.json``
                log.warning("%s", error)

    def _keep(self, result: Mapping[str, Any]) -> None:
        self._latest.append(json.dumps(result))
        self._latest_without_image += result["status"] != "stored"

    def _write_segment(self) -> None:
        segment = Segment(
            sequence=self._next_sequence,
            count=len(self._latest),
            without_image=self._latest_without_image,
            token=secrets.token_hex(4),
        )
        with self._failing(segment.name):
            content = "".join(f"{line}\n" for line in self._latest).encode()
            write_object(self._path(segment.name), content, JSON)
        self._next_sequence += 1
        self._latest.clear()
        self._latest_without_image = 0

    def write(self, progress: Mapping[str, Any], running: Iterable[RunningRow]) -> None:
        """Replace ``running.json``.

        :param progress: What it says beside the rows and results.
        :raises SubmissionRecordError: if it cannot be written.
        """
        rows = [row.to_json() for row in running]
        own = {"batch": self._batch, "shard": self._shard, "next_sequence": self._next_sequence}
        facts = json.dumps({**progress, **own, "running": rows})[:-1]
        document = f'{{"modelscope_batch": {facts}, "results": [{", ".join(self._latest)}]}}}}'
        with self._failing(RUNNING):
            write_object(self._path(RUNNING), document.encode(), JSON)

    def write_plan(self, rows: WorkingSet) -> None:
        """Replace the plan by these rows.

        :raises SubmissionRecordError: if it cannot be written.
        """
        with tempfile.TemporaryFile() as file, self._failing(PLAN):
            rows.write_plan(file)
            write_file(self._path(PLAN), file, JSON)

    def read_plan(self, rows: WorkingSet) -> None:
        """Add the rows of the plan.

        :raises SubmissionRecordError: if it cannot be read.
        """
        try:
            path = self._path(PLAN)
            filesystem = open_filesystem(path)
            filesystem.invalidate_cache()
            with filesystem.open(path.path, "rb") as file:
                rows.read_plan(file)
        except Exception as error:  # of any store, or it is damaged
            raise self._unreadable(error) from error

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any store
            raise SubmissionRecordError(
                f"The state of the batch, {self.uri}{name}, cannot be written: {error!r}"
            ) from error

    def _path(self, name: str, state: str | None = None) -> ObjectStoragePath:
        return self._destination.beside(f"{STATE_FOLDER}/{state or self._name}/{name}")

    def _unreadable(self, error: Exception, state: str | None = None) -> SubmissionRecordError:
        uri = f"{self._destination.uri}{STATE_FOLDER}/{state or self._name}/"
        return SubmissionRecordError(
            f"The state of the batch in {uri} cannot be read, nothing was sent: {error!r}"
        )


def _has_paid(document: Mapping[str, Any], segments: Iterable[Segment]) -> bool:
    """Whether a state has images, or generations that may still give some."""
    progress = Progress.from_json(document)
    return any(segment.count > segment.without_image for segment in segments) or bool(
        progress and (progress.running or any(result.generation_id for result in progress.results))
    )


def _readable(name: str) -> str:
    return name.rpartition("-")[0].removesuffix(".-1")
