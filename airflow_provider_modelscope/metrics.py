"""What is counted and timed, through Airflow's own metrics; every name stands here and nowhere else.

Only workers count: they submit and store. Airflow sends to StatsD, Datadog or OpenTelemetry, or nowhere. As
StatsD drops tags where Airflow is not told to keep them, a reason stands in a metric's name as well.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from airflow_provider_modelscope.exceptions import ModelScopeError, SubmissionLostError

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.messages import Quota
    from airflow_provider_modelscope.xcoms import StoredImage, Submission

SENT = "modelscope.submission.sent"
ACCEPTED = "modelscope.submission.accepted"
REJECTED = "modelscope.submission.rejected"
UNCONFIRMED = "modelscope.submission.unconfirmed"
FAILED = "modelscope.task.failed"
DURATION = "modelscope.generation.duration"
DELIVERY_DELAY = "modelscope.generation.delivery_delay"
STORED = "modelscope.image.stored"
STORED_BYTES = "modelscope.image.stored_bytes"
QUOTA = "modelscope.quota.remaining"
MODEL_QUOTA = "modelscope.quota.model_remaining"

log = logging.getLogger(__name__)


class HasConnection(Protocol):
    """A task that has a connection to ModelScope."""

    modelscope_conn_id: str


Method = TypeVar("Method", bound=Callable[..., Any])


def reason_of(error: ModelScopeError) -> str:
    """Return the error's name as metrics have it: ``queue_full`` of a ``QueueFullError``."""
    return re.sub(r"\B(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()


@contextmanager
def counted_submission(*, modelscope_conn_id: str, model: str) -> Iterator[None]:
    """Count a submission that is sent, and what became of it."""
    tags = {"modelscope_conn_id": modelscope_conn_id, "model": model}
    _send("incr", SENT, tags=tags)
    try:
        yield
    except SubmissionLostError:
        _send("incr", UNCONFIRMED, tags=tags)
        raise
    except ModelScopeError as error:
        _count_by_reason(REJECTED, error, tags)
        raise
    _send("incr", ACCEPTED, tags=tags)


def show_quota(quota: Quota, *, modelscope_conn_id: str, model: str) -> None:
    """Show what the service says of the quota left."""
    tags = {"modelscope_conn_id": modelscope_conn_id}
    if quota.remaining is not None:
        _send("gauge", QUOTA, quota.remaining, tags=tags)
    if quota.model_remaining is not None:
        _send("gauge", MODEL_QUOTA, quota.model_remaining, tags={**tags, "model": model})


def count_stored(
    stored: Sequence[StoredImage], submission: Submission | None, *, modelscope_conn_id: str
) -> None:
    """Count the images of a generation that are stored now, and time the generation.

    :param submission: What was recorded when it was submitted, where that is known.
    """
    tags = {"modelscope_conn_id": modelscope_conn_id}
    if submission:
        tags["model"] = submission.model
    _send("incr", STORED, len(stored), tags=tags)
    _send("incr", STORED_BYTES, sum(image.size_bytes for image in stored), tags=tags)
    if (taken := stored[0].duration_ms) is not None and taken >= 0:
        _send("timing", DURATION, timedelta(milliseconds=taken), tags=tags)
        if submission:
            late = max(0.0, time.time() - submission.submitted_at - taken / 1000)
            _send("timing", DELIVERY_DELAY, timedelta(seconds=late), tags=tags)


@contextmanager
def count_failure(task: HasConnection) -> Iterator[None]:
    """Count the error of ours that ends a try of a task."""
    try:
        yield
    except ModelScopeError as error:
        tags = {"modelscope_conn_id": task.modelscope_conn_id}
        if model := getattr(task, "model", None):
            tags["model"] = str(model)
        _count_by_reason(FAILED, error, tags)
        raise


def counts_failures(method: Method) -> Method:
    """Make a method of a task count the error of ours that it ends with."""

    @wraps(method)
    def counting(self: HasConnection, *args: Any, **kwargs: Any) -> Any:
        with count_failure(self):
            return method(self, *args, **kwargs)

    return cast("Method", counting)


def _count_by_reason(metric: str, error: ModelScopeError, tags: Mapping[str, str]) -> None:
    reason = reason_of(error)
    _send("incr", metric, tags={**tags, "reason": reason})
    _send("incr", f"{metric}.{reason}", tags=tags)


def _send(kind: str, *arguments: Any, tags: Mapping[str, str]) -> None:
    from airflow.providers.common.compat.sdk import Stats

    try:
        getattr(Stats, kind)(*arguments, tags={**tags, **_task_tags()})
    except Exception as error:  # whatever a deployment's metrics raise; a generation may be paid for
        log.warning("The metric %s was not sent: %r", arguments[0], error)


def _task_tags() -> dict[str, str]:
    """Return the tags that Airflow's own metrics of a task have."""
    from airflow.sdk import get_current_context

    try:
        ti = get_current_context()["ti"]
    except RuntimeError:  # the hook is used outside of a task
        return {}
    return {"dag_id": ti.dag_id, "task_id": ti.task_id}
