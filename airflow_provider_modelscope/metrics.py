"""The metrics: their names, and sending them through Airflow to StatsD, Datadog or OpenTelemetry.

The cause and the reason of an error are both tags and a suffix of the name, because StatsD drops tags by
default.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from airflow_provider_modelscope.exceptions import (
    AccountNotReadyError,
    AuthenticationError,
    ImageNotAllowedError,
    ImageStorageError,
    ImageUnavailableError,
    InvalidConnectionError,
    InvalidDestinationError,
    ModelScopeError,
    ModelScopeFinalError,
    QuotaExhaustedError,
    RateLimitedError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)

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
QUEUE_WAITING = "modelscope.queue.waiting"
QUEUE_SECONDS = "modelscope.queue.seconds"
RUNNING = "modelscope.generation.running"
TOO_MANY_REQUESTS = "modelscope.response.too_many_requests"

Cause = Literal["input", "account", "service", "storage"]
# The cause of an error is that of the nearest class above it.
CAUSES: dict[type[ModelScopeError], Cause] = {
    ModelScopeFinalError: "input",
    InvalidConnectionError: "account",
    AuthenticationError: "account",
    AccountNotReadyError: "account",
    QuotaExhaustedError: "account",
    ImageNotAllowedError: "account",  # the connection has the limits and the allowed hosts
    RateLimitedError: "account",
    InvalidDestinationError: "storage",
    ImageStorageError: "storage",
    SubmissionRecordError: "storage",
    SubmissionUnresolvedError: "service",
    ImageUnavailableError: "service",
    ModelScopeError: "service",
}

log = logging.getLogger(__name__)


class HasConnection(Protocol):
    """A task with a connection to ModelScope."""

    modelscope_conn_id: str


def reason_of(error: ModelScopeError) -> str:
    """Return the name of an error in metrics, such as ``queue_full`` for ``QueueFullError``."""
    return re.sub(r"\B(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()


def cause_of(error: ModelScopeError) -> Cause:
    """Return where to search for the cause of an error."""
    return next(CAUSES[kind] for kind in type(error).__mro__ if kind in CAUSES)


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
        _count(REJECTED, tags, reason=reason_of(error))
        raise
    _send("incr", ACCEPTED, 1, tags)


def count_fallback(refusal: ModelScopeError, *, modelscope_conn_id: str, model: str) -> None:
    """Count that a model refused a request, so that a fallback model is asked."""
    _count(FALLBACK, _tags(modelscope_conn_id, model), reason=reason_of(refusal))


def time_queue(seconds: float, *, modelscope_conn_id: str, model: str) -> None:
    """Send how long a task waited until its submission was accepted."""
    waited = timedelta(seconds=max(0.0, seconds))  # the clock may have been set back
    _send("timing", QUEUE_SECONDS, waited, _tags(modelscope_conn_id, model))


def count_too_many_requests(*, modelscope_conn_id: str) -> None:
    """Count a response with status 429."""
    _send("incr", TOO_MANY_REQUESTS, 1, _tags(modelscope_conn_id))


def count_spent(price: float | None, *, modelscope_conn_id: str, model: str) -> None:
    """Count what an accepted generation costs, if it is known.

    In hundredths of a credit: several StatsD servers cut the fraction of a counter off.
    """
    if price is not None:
        _send("incr", CREDIT_SPENT, round(100 * price), _tags(modelscope_conn_id, model))


def show_credit(credit: Credit, *, modelscope_conn_id: str) -> None:
    """Send the credit of an account.

    Without the tags of the task: a gauge that each task has for itself would keep its last value for ever.
    """
    tags = {"modelscope_conn_id": modelscope_conn_id}
    _send("gauge", CREDIT_AVAILABLE, credit.available, tags)
    _send("gauge", CREDIT_FROZEN, credit.frozen, tags)


def show_account(*, waiting: int, running: int, too_many_requests: int, modelscope_conn_id: str) -> None:
    """Send what a triggerer knows of an account. Call it in a thread, because it may block.

    :param waiting: Tasks that wait for a slot.
    :param running: Generations that are waited for.
    :param too_many_requests: Responses with status 429 since the last call.
    """
    from airflow_provider_modelscope.compat import get_hostname

    hostname: str = get_hostname()  # type: ignore[no-untyped-call]
    tags = {"modelscope_conn_id": modelscope_conn_id, "hostname": hostname}
    send = partial(_send, tags=tags, stats="TriggererStats")
    send("gauge", QUEUE_WAITING, waiting)
    send("gauge", RUNNING, running)
    if too_many_requests:
        send("incr", TOO_MANY_REQUESTS, too_many_requests)


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


def count_row(status: str, *, modelscope_conn_id: str) -> None:
    """Count a row of a batch that is finished."""
    _count(BATCH_ROW, _tags(modelscope_conn_id), status=status)


def show_rows_left(count: int, *, modelscope_conn_id: str) -> None:
    """Send how many rows of a batch are not finished."""
    _send("gauge", BATCH_ROWS_LEFT, count, _tags(modelscope_conn_id))


@contextmanager
def count_failure(task: HasConnection) -> Iterator[None]:
    """Count the error of ours that ends an attempt of a task, and push it for the gallery.

    The end of the task's ``execution_timeout`` is pushed as well, but not counted.
    """
    from airflow_provider_modelscope.compat import AirflowTaskTimeout
    from airflow_provider_modelscope.xcoms import AttemptError

    try:
        yield
    except AirflowTaskTimeout:
        AttemptError(type=AirflowTaskTimeout.__name__, message=_timeout_message(task)).record()
        raise
    except ModelScopeError as error:
        model = getattr(task, "model", None)
        tags = _tags(task.modelscope_conn_id, str(model) if model else None)
        _count(FAILED, tags, cause=cause_of(error), reason=reason_of(error))
        AttemptError(type=type(error).__name__, message=str(error)).record()
        raise


def _timeout_message(task: HasConnection) -> str:
    from airflow_provider_modelscope.resuming import how_to_store_again

    limit = getattr(task, "execution_timeout", None)
    after = f" after {limit.total_seconds():g} s" if limit else ""
    return (
        f"The execution_timeout of the task ended it{after}. A generation that it has submitted goes on at "
        "ModelScope, and occupies the account until it finishes. Set a longer execution_timeout. To store "
        f"its images, {how_to_store_again()}"
    )


def _tags(modelscope_conn_id: str, model: str | None = None) -> dict[str, str]:
    tags = {"modelscope_conn_id": modelscope_conn_id, **_task_tags()}
    return {**tags, "model": model} if model else tags


def _count(name: str, tags: Mapping[str, str], **details: str) -> None:
    """Count with the details as tags, and as a suffix of the name."""
    _send("incr", name, 1, {**tags, **details})
    _send("incr", ".".join([name, *details.values()]), 1, tags)


def _send(
    kind: Literal["incr", "gauge", "timing"],
    name: str,
    value: float | timedelta,
    tags: Mapping[str, str],
    *,
    stats: Literal["Stats", "TriggererStats"] = "Stats",
) -> None:
    from airflow_provider_modelscope import compat

    try:
        getattr(getattr(compat, stats), kind)(name, value, tags=tags)
    except Exception as error:  # any backend of metrics; a generation may be paid for
        log.warning("The metric %s was not sent: %r", name, error)


def _task_tags() -> dict[str, str]:
    """Return the tags that Airflow's own metrics of a task have."""
    from airflow.sdk import get_current_context

    try:
        ti = get_current_context()["ti"]
        return {"dag_id": ti.dag_id, "task_id": ti.task_id}
    except Exception:  # a RuntimeError outside of a task; nothing here may end a task that has paid
        return {}
