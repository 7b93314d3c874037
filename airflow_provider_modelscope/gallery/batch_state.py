"""Reads the state of a batch from object storage, for users who may see its images.

An XCom says where the state is, and a user who may write XComs could name any object. So only the folder that
belongs to the task instance is read, and only what parses as the state of a batch is shown. Errors do not
reveal whether another object exists.

Segments are never rewritten, so what was read of one is kept by its name.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import InvalidDestinationError
from airflow_provider_modelscope.images.object_storage import describe_object, list_folder, read_object
from airflow_provider_modelscope.manifest import Progress, Result, Segment
from airflow_provider_modelscope.xcoms import BatchLocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_modelscope.links import Instance

RUNNING = "running.json"
THREADS = 4  # that read segments, if many are needed at once
_MAX_BYTES = 16 * 1024 * 1024  # of one object
_MAX_SEGMENTS = 5000  # of one batch; the newest are shown
_MAX_SEARCHED = 20  # segments that are searched for an image; it was in none when its page was made

log = logging.getLogger(__name__)


class StateUnavailableError(Exception):
    """The state of a batch cannot be read. The text is shown to the user."""


def location_of(value: Any, dag_id: str, run_id: str, instance: Instance) -> BatchLocation | None:
    """Return the location in the XCom of a task instance, None if it names no state or that of another."""
    location = BatchLocation.from_json(value)
    ids = (dag_id, run_id, instance.task_id, instance.map_index)
    return location if location and location.is_of(*ids) else None


def describe_state(location: BatchLocation) -> str:
    """Return a text that changes when the state of a batch does, an empty one if it cannot be found."""
    try:
        return describe_object(f"{location.state}{RUNNING}", location.storage_conn_id)
    except Exception as error:  # each filesystem raises errors of its own
        log.debug("Could not find the state %s: %r", location.state, error)
        return ""


def read_progress(location: BatchLocation) -> Progress | None:
    """Return how far a batch is, or None if its state says nothing usable.

    :raises StateUnavailableError: if this process cannot open its store.
    """
    return Progress.from_json(_document(_read(location.state, location.storage_conn_id, RUNNING)))


def list_segments(location: BatchLocation) -> list[Segment]:
    """Return the segments of a batch, the oldest first; none if they cannot be listed."""
    try:
        names = list_folder(location.state, location.storage_conn_id)
    except Exception as error:  # each filesystem raises errors of its own
        log.warning("Could not list %s: %r", location.state, error)
        return []
    return sorted(segment for name in names if (segment := Segment.from_name(name)))[-_MAX_SEGMENTS:]


def read_segment(location: BatchLocation, segment: Segment) -> tuple[Result, ...]:
    """Return the results in a segment, the oldest first and without their data; none if it cannot be read."""
    with suppress(_UnreadableError, StateUnavailableError):
        return _results(location.state, location.storage_conn_id, segment.name)
    return ()


def read_keys(location: BatchLocation, segments: Sequence[Segment]) -> list[tuple[tuple[str, bool], ...]]:
    """Return the key of each result in some segments, and whether its row is stored."""

    def keys_of(segment: Segment) -> tuple[tuple[str, bool], ...]:
        with suppress(_UnreadableError, StateUnavailableError):
            return _keys(location.state, location.storage_conn_id, segment.name)
        return ()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(keys_of, segments))


def find_result(location: BatchLocation, key: str, segment_name: str) -> Result | None:
    """Return the latest result of a row.

    :param segment_name: The segment that holds it, if it was in one when the page was made.
    :raises StateUnavailableError: if this process cannot open its store.
    """
    if segment := Segment.from_name(segment_name):
        return _last(key, read_segment(location, segment))
    progress = read_progress(location)
    if progress and (found := _last(key, progress.results)):
        return found
    for segment in reversed(list_segments(location)[-_MAX_SEARCHED:]):
        if found := _last(key, read_segment(location, segment)):
            return found
    return None


def _last(key: str, results: Sequence[Result]) -> Result | None:
    return next((result for result in reversed(results) if result.key == key), None)


@lru_cache(maxsize=100)  # about 100 KB each
def _results(state: str, conn_id: str | None, name: str) -> tuple[Result, ...]:
    content = _read(state, conn_id, name)
    if content is None:
        raise _UnreadableError
    results = map(_result, content.splitlines())
    return tuple(result for result in results if result)


@lru_cache(maxsize=1000)  # about 8 KB each
def _keys(state: str, conn_id: str | None, name: str) -> tuple[tuple[str, bool], ...]:
    return tuple((result.key, result.status == "stored") for result in _results(state, conn_id, name))


def _result(line: bytes) -> Result | None:
    document = _document(line)
    # Data can be large, and the page does not show it.
    return Result.from_json(document | {"data": None}) if isinstance(document, dict) else None


def _document(content: bytes | None) -> Any:
    try:
        return json.loads(content or b"null")
    except (ValueError, RecursionError):  # no JSON, or lists in lists in lists ...
        return None


class _UnreadableError(Exception):
    """An object cannot be read now. It is raised so that nothing is cached."""


def _read(state: str, conn_id: str | None, name: str) -> bytes | None:
    """Return an object of a state, or None if it cannot be read or is too large to be one."""
    try:
        content = read_object(f"{state}{name}", conn_id, most=_MAX_BYTES)
    except FileNotFoundError:  # the batch has only begun
        return None
    except InvalidDestinationError as error:
        raise StateUnavailableError(f"The API server cannot open this batch: {error.message}") from error
    except Exception as error:  # each filesystem raises errors of its own
        log.warning("Could not read %s%s: %r", state, name, error)
        return None
    return content if len(content) <= _MAX_BYTES else None
