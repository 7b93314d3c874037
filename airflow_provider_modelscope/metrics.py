"""The metrics of workers: their names, and sending them through Airflow to StatsD, Datadog or OpenTelemetry.

The reason of an error is both a tag and a suffix of the name, because StatsD drops tags by default.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from airflow_provider_modelscope.exceptions import ModelScopeError, SubmissionLostError

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.credit import Credit
    from airflow_provider_modelscope.xcoms import StoredImage, Submission

SENT = "modelscope.submission.sent"
ACCEPTED = "modelscope.submission.accepted"
REJECTED = "modelscope.submission.rejected"
UNCONFIRMED = "modelscope.submission.unconfirmed"
FALLBACK = "modelscope.submission.fallback"
FAILED = "modelscope.task.failed"
DURATION = "modelscope.generation.duration"
DELIVERY_DELAY = "modelscope.generation.delivery_delay"
STORED = "modelscope.image.stored"
STORED_BYTES = "modelscope.image.stored_bytes"
BATCH_ROW = "modelscope.batch.row"
BATCH_ROWS_LEFT = "modelscope.batch.rows_left"
CREDIT_SPENT = "modelscope.credit.spent"
CREDIT_AVAILABLE = "modelscope.credit.available"
CREDIT_FROZEN = "modelscope.credit.frozen"

log = logging.getLogger(__name__)


class HasConnection(Protocol):
    """A task with a connection to ModelScope."""

    modelscope_conn_id: str


Method = TypeVar("Method", bound=Callable[..., Any])


def reason_of(error: ModelScopeError) -> str:
    """Return the name of an error in metrics, such as ``queue_full`` for ``QueueFullError``."""
    return re.sub(r"\B(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()


@contextmanager
def counted_submission(*, modelscope_conn_id: str, model: str) -> Iterator[None]:
    """Count a submission and its outcome."""
    tags = _tags(modelscope_conn_id, model)
    _send("incr", SENT, 1, tags)
    try:
        yield
    except SubmissionLostError:
        _send("incr", UNCONFIRMED, 1, tags)
        raise
    except ModelScopeError as error:
        _count_by_reason(REJECTED, error, tags)
        raise
    _send("incr", ACCEPTED, 1, tags)


def count_fallback(refusal: ModelScopeError, *, modelscope_conn_id: str, model: str) -> None:
    """Count that a model refused a request, so that a fallback model is asked."""
    _count_by_reason(FALLBACK, refusal, _tags(modelscope_conn_id, model))


def count_spent(price: float | None, *, modelscope_conn_id: str, model: str) -> None:
    """Count what an accepted generation costs, if it is known.

    In hundredths of a credit: several StatsD servers cut the fraction of a counter off.
    """
    if price is not None:
        _send("incr", CREDIT_SPENT, round(100 * price), _tags(modelscope_conn_id, model))


def show_credit(credit: Credit, *, modelscope_conn_id: str) -> None:
    """Send the credit of an account."""
    _send("gauge", CREDIT_AVAILABLE, credit.available, _tags(modelscope_conn_id))
    _send("gauge", CREDIT_FROZEN, credit.frozen, _tags(modelscope_conn_id))


def count_stored(
    stored: Sequence[StoredImage], submission: Submission | None, *, modelscope_conn_id: str
) -> None:
    """Count the stored images of a generation, and send its duration and the delay of their delivery.

    :param submission: The submission, if it is known; without it there is no delay.
    """
    tags = _tags(modelscope_conn_id, submission.model if submission else None)
    _send("incr", STORED, len(stored), tags)
    _send("incr", STORED_BYTES, sum(image.size_bytes for image in stored), tags)
    duration_ms = stored[0].duration_ms
    if duration_ms is None or duration_ms < 0:
        return
    _send("timing", DURATION, timedelta(milliseconds=duration_ms), tags)
    if submission:
        delay = time.time() - submission.submitted_at - duration_ms / 1000
        _send("timing", DELIVERY_DELAY, timedelta(seconds=max(0.0, delay)), tags)


def count_rows(status: str, count: int, *, modelscope_conn_id: str) -> None:
    """Count rows of a batch that are finished, by their status."""
    tags = _tags(modelscope_conn_id)
    _send("incr", BATCH_ROW, count, {**tags, "status": status})
    _send("incr", f"{BATCH_ROW}.{status}", count, tags)


def show_rows_left(count: int, *, modelscope_conn_id: str) -> None:
    """Send how many rows of a batch are not finished."""
    _send("gauge", BATCH_ROWS_LEFT, count, _tags(modelscope_conn_id))


@contextmanager
def count_failure(task: HasConnection) -> Iterator[None]:
    """Count the error of ours that ends an attempt of a task."""
    try:
        yield
    except ModelScopeError as error:
        model = getattr(task, "model", None)
        _count_by_reason(FAILED, error, _tags(task.modelscope_conn_id, str(model) if model else None))
        raise


def counts_failures(method: Method) -> Method:
    """Decorate a method of a task: count the error of ours that it raises."""

    @wraps(method)
    def counting(self: HasConnection, *args: Any, **kwargs: Any) -> Any:
        with count_failure(self):
            return method(self, *args, **kwargs)

    return cast("Method", counting)


def _tags(modelscope_conn_id: str, model: str | None = None) -> dict[str, str]:
    tags = {"modelscope_conn_id": modelscope_conn_id}
    return {**tags, "model": model} if model else tags


def _count_by_reason(name: str, error: ModelScopeError, tags: Mapping[str, str]) -> None:
    reason = reason_of(error)
    _send("incr", name, 1, {**tags, "reason": reason})
    _send("incr", f"{name}.{reason}", 1, tags)


def _send(
    kind: Literal["incr", "gauge", "timing"],
    name: str,
    value: float | timedelta,
    tags: Mapping[str, str],
) -> None:
    from airflow_provider_modelscope.compat import Stats

    try:
        getattr(Stats, kind)(name, value, tags={**tags, **_task_tags()})
    except Exception as error:  # any backend of metrics; a generation may be paid for
        log.warning("The metric %s was not sent: %r", name, error)


def _task_tags() -> dict[str, str]:
    """Return the tags that Airflow's own metrics of a task have."""
    from airflow.sdk import get_current_context

    try:
        ti = get_current_context()["ti"]
    except RuntimeError:  # outside of a task
        return {}
    return {"dag_id": ti.dag_id, "task_id": ti.task_id}
