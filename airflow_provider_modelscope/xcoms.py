"""The XComs of tasks beside their return value, as values: ``request``, ``images``, ``batch`` and so on.

Any task may push an XCom with the same key. Readers get ``None`` for an entry that they cannot use; of any
other entry, texts that UTF-8 can encode, and numbers that can be printed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow_provider_modelscope.json_values import integer, number, plain, printable, text
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

REQUEST = "request"  # one Submission
IMAGES = "images"  # a list of StoredImage
BATCH = "batch"  # one BatchLocation
ERROR = "error"  # one AttemptError
PROGRESS = "progress"  # one Progress

STATE_FOLDER = ".modelscope"  # beside the images of a batch: one folder in it for each task instance

# The classes of the tasks that push REQUEST, by the names that Airflow's database keeps: those that store the
# images too, and all.
STORING_SUBMITTERS = ("ModelScopeImageGenerationOperator", "_ModelScopeImageDecoratedOperator")
SUBMITTERS = ("ModelScopeSubmitImageGenerationOperator", *STORING_SUBMITTERS)
# The classes of the tasks that push BATCH.
BATCHES = ("ModelScopeImageBatchOperator", "_ModelScopeImageBatchDecoratedOperator")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One stored image; an entry of the XCom ``images``.

    Our own tasks set every field that has no default. Other tasks, such as one that moves an image, may leave
    out all but ``uri``, ``size_bytes`` and ``sha256``.

    :param storage_conn_id: The Airflow connection that it was stored with.
    :param asked_model: The model of the task, if a fallback model made the image.
    :param parameters: The parameters of the request, replaced by those that the service reports as used.
    :param duration_ms: How long the generation took, if the service reports it.
    :param sidecar_uri: The URI of its sidecar file, if it has one.
    :param credit: What its generation costs, with all its images, by the price when it was submitted.
    """

    uri: str
    storage_conn_id: str | None
    content_type: str | None
    width: int | None
    height: int | None
    size_bytes: int
    sha256: str
    seed: int | None
    model: str | None
    asked_model: str | None = None
    generation_id: str | None
    parameters: dict[str, Any]
    duration_ms: float | None
    sidecar_uri: str | None = None
    credit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the XCom."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, entry: Any) -> Self | None:
        """Return the image that an entry describes, or None if it lacks the URI, size or SHA-256.

        Optional facts of a wrong type become None.
        """
        match entry:
            case {"uri": str(uri), "size_bytes": size, "sha256": str(sha256)}:
                size_bytes = integer(size)
                storage_conn_id = entry.get("storage_conn_id")
                if (
                    not size_bytes
                    or not re.fullmatch("[0-9a-f]{64}", sha256)
                    or not isinstance(storage_conn_id, str | None)
                ):
                    return None
                parameters = plain(entry.get("parameters"))
                return cls(
                    uri=printable(uri),
                    storage_conn_id=text(storage_conn_id),
                    content_type=text(entry.get("content_type")),
                    width=integer(entry.get("width")),
                    height=integer(entry.get("height")),
                    size_bytes=size_bytes,
                    sha256=sha256,
                    seed=integer(entry.get("seed")),
                    model=text(entry.get("model")),
                    asked_model=text(entry.get("asked_model")),
                    generation_id=text(entry.get("generation_id")),
                    parameters=parameters if isinstance(parameters, dict) else {},
                    duration_ms=number(entry.get("duration_ms")),
                    sidecar_uri=text(entry.get("sidecar_uri")),
                    credit=number(entry.get("credit")),
                )
        return None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An accepted generation; the XCom ``request``.

    The service's responses name neither the model nor the time of the submission.

    :param submitted_at: In epoch seconds.
    :param asked_model: The model of the task, if a fallback model accepted the request.
    :param request: The parameters, as :meth:`GenerationRequest.summary` returns them; empty if unknown.
    :param credit: The price of the generation when it was submitted, None if unknown.
    """

    generation_id: str
    model: str
    submitted_at: float
    asked_model: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    credit: float | None = None

    @property
    def size(self) -> str | None:
        """The size of the request, None if it has none."""
        return text(self.request.get("size"))

    def to_json(self) -> dict[str, Any]:
        """Return the value of the XCom."""
        asked = {"asked_model": self.asked_model} if self.asked_model else {}
        return {
            **self.request,
            "model": self.model,
            **asked,
            "generation_id": self.generation_id,
            "submitted_at": self.submitted_at,
            "credit": self.credit,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the submission that a value describes, or None if it describes none."""
        match value:
            case {"generation_id": str(generation_id), "model": str(model), "submitted_at": time}:
                submitted_at = number(time)
                if submitted_at is None:
                    return None
                not_requested = ("generation_id", "submitted_at", "asked_model", "credit")
                request = {name: value for name, value in value.items() if name not in not_requested}
                return cls(
                    generation_id=printable(generation_id),
                    model=printable(model),
                    submitted_at=submitted_at,
                    asked_model=text(value.get("asked_model")),
                    request=plain(request),
                    credit=number(value.get("credit")),
                )
        return None

    @classmethod
    def find(cls, generation_id: str, *, task: BaseOperator, context: Context) -> Self | None:
        """Return what an upstream submit task of this Dag run recorded, or None if none did."""
        ti = context["ti"]
        submitters = [
            upstream.task_id
            for upstream in task.get_flat_relatives(upstream=True)
            # A mapped task has another class, which names the operator's class.
            if getattr(getattr(upstream, "operator_class", type(upstream)), "records_submission", False)
        ]
        # Almost always that of the same map index. A thousand tasks that each read a thousand are too many.
        own: list[dict[str, Any]] = [] if ti.map_index in (None, -1) else [{"map_indexes": ti.map_index}]
        for which, task_id in product([*own, {}], submitters):
            found = ti.xcom_pull(task_ids=task_id, key=REQUEST, **which)
            for value in [found] if isinstance(found, dict) else found or []:
                submission = cls.from_json(value)
                if submission and submission.generation_id == generation_id:
                    return submission
        return None

    @classmethod
    def own(cls, context: Context) -> Self | None:
        """Return what this task instance recorded in this attempt, or None if that cannot be read."""
        return cls.from_json(own_xcom(context, REQUEST))

    def record(self, context: Context) -> None:
        """Push the XCom, for downstream tasks and for people. A failure is logged, not raised."""
        _push(REQUEST, self.to_json(), context)


@dataclass(frozen=True, kw_only=True)
class AttemptError:
    """Why an attempt of a task ended; the XCom ``error``. Airflow deletes it when the next attempt starts.

    :param type: The name of the class of the error.
    :param message: Its text.
    """

    type: str
    message: str

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the error that a value describes, or None if it describes none."""
        match value:
            case {"type": str(type_), "message": str(message)} if type_ and message:
                return cls(
                    type=one_line(printable(type_), MAX_NAME),
                    message=one_line(printable(message), 2 * MAX_MESSAGE),
                )
        return None

    def record(self) -> None:
        """Push the XCom, for people. A failure is logged, not raised."""
        _push(ERROR, dict(vars(self)))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a task does on its worker that Airflow's database does not say; the XCom ``progress``.

    It is pushed at a change only, and stays when that is over: what the database says comes first.

    :param state: ``queued`` while the task waits for its account, ``storing`` from the first download on.
    :param since: In epoch seconds.
    :param generation_id: The generation whose images it stores.
    """

    state: Literal["queued", "storing"]
    since: float
    generation_id: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the progress that a value describes, or None if it describes none."""
        match value:
            case {"state": "queued", "since": time}:
                since = number(time)
                return None if since is None else cls(state="queued", since=since)
            case {"state": "storing", "since": time, "generation_id": str(generation_id)}:
                since, id_ = number(time), printable(generation_id)
                return None if since is None else cls(state="storing", since=since, generation_id=id_)
        return None

    @classmethod
    def record(
        cls, context: Context, state: Literal["queued", "storing"], generation_id: str | None = None
    ) -> None:
        """Push the XCom, for people. A failure is logged, not raised."""
        _push(PROGRESS, {"state": state, "since": time.time(), "generation_id": generation_id}, context)


@dataclass(frozen=True, kw_only=True)
class BatchLocation:
    """Where a batch keeps its state and writes its manifest; the XCom ``batch``.

    :param state: The URI of the folder of its state, which ends with ``/``.
    :param manifest: The URI of its manifest, which is written when the task ends.
    :param total: How many rows it has.
    """

    state: str
    storage_conn_id: str | None
    manifest: str
    total: int

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the location that a value describes, or None if it describes none."""
        match value:
            case {"state": str(state), "manifest": str(manifest), "total": int(total)}:
                storage_conn_id = value.get("storage_conn_id")
                if not isinstance(storage_conn_id, str | None) or integer(total) is None:
                    return None
                return cls(
                    state=printable(state),
                    storage_conn_id=text(storage_conn_id),
                    manifest=printable(manifest),
                    total=total,
                )
        return None

    def is_of(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> bool:
        """Whether this is the state of a task instance. A user who may write XComs can name any folder."""
        # Airflow's own map index is -1 in a loop, unless the task is mapped.
        names = [name_of(dag_id, run_id, task_id, index) for index in (map_index, -1)]
        return any(self.state.endswith(f"/{STATE_FOLDER}/{name}/") for name in names)


def name_of(dag_id: str, run_id: str, task_id: str, map_index: int | None) -> str:
    """Return a name of a task instance, the same in all of its attempts. No two have the same."""
    parts = [dag_id, run_id, task_id, map_index]
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", ".".join(map(str, parts)))[:150]
    return f"{readable}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def _push(key: str, value: dict[str, Any], context: Context | None = None) -> None:
    """Push an XCom of the task that runs.

    :param context: That of the task, if the caller has it.
    """
    from airflow.sdk import get_current_context

    try:
        (context or get_current_context())["ti"].xcom_push(key=key, value=value)
    except Exception as error:  # backends raise any type; a generation may already be paid for
        log.warning("Could not push XCom %r: %r", key, error)


def own_xcom(context: Context, key: str) -> Any:
    """Return what this task instance pushed in this attempt, or None if that cannot be read."""
    ti = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    try:
        return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=map_index)
    except Exception as error:  # backends raise any type; a generation may already be paid for
        log.warning("Could not read XCom %r of this task: %r", key, error)
        return None
