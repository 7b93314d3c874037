"""The waits of a task: on its worker first, then in the triggerer.

Triggers are imported when a task defers, not when a Dag file is parsed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from airflow_provider_modelscope.exceptions import (
    ModelRetiredError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitedError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.waiting.backoff import SubmitBackoff, why_rejected

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from airflow.sdk import BaseOperator, Context

    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.triggers.events import DeferredTask
    from airflow_provider_modelscope.waiting.poll import PollSchedule

POLL_INTERVAL = 15.0  # seconds; most polls are closer, see ``waiting.intervals``
DEFER_AFTER = 8.0  # seconds of a generation's age to poll from a worker; fast models take 1 to 6
MIN_QUEUE_DEFERRAL = 15.0  # seconds; a shorter wait for a slot stays on the worker: a deferral takes as long
EARLY_SLOT_RETRY = 6.0  # seconds to retry from the worker if the slot was granted a little too early; or
EARLY_SLOT_RETRY_OF_START = 2 / 3  # of the time that the worker needed to start, if that is longer
LEAST_PRICE = 0.2  # credit, of the cheapest models; for a model whose price is unknown
# The parts of a query that differ each time that a URL is signed: of S3, Google, OSS, CloudFront, COS, Azure.
_SIGNATURE = re.compile(
    r"x-(amz|goog|oss|cos)-.*|q-(sign|ak|key|header|url).*|signature|expires|policy|key-pair-id"
    r"|(aws|oss)accesskeyid|googleaccessid|auth_key|(.*[-_])?token"
    r"|s(ig|e|p|v|r|t|s|ip|pr|rt|dd|i)|sk(oid|tid|t|e|s|v)",
    re.IGNORECASE,
)

Method = TypeVar("Method", bound=Callable[..., Any])


def resumes(method: Method) -> Method:
    """Decorate a method that resumes a deferred task: the event of an earlier attempt runs ``execute``.

    Airflow 3.0 resumes every retry with the event of the attempt that deferred.
    """

    @wraps(method)
    def resuming(self: BaseOperator, context: Context, event: Any = None) -> Any:
        from airflow_provider_modelscope.triggers.events import DeferredTask

        attempt = DeferredTask.from_event(event).attempt
        if attempt != context["ti"].try_number:
            self.log.info("Starting again: the trigger event belongs to attempt %d", attempt)
            return self.execute(context)
        return method(self, context, event)

    return cast("Method", resuming)


def deferred_task(
    task: BaseOperator, request: GenerationRequest, context: Context, names: Iterable[str]
) -> DeferredTask:
    """Return a task that submits as it is now, to resume with this request in another process.

    Signed URLs and image data are left out: Airflow stores and logs what a deferral contains.

    :param names: Its parameters beside those of the request.
    """
    from airflow_provider_modelscope.protocol.request import redacted_json
    from airflow_provider_modelscope.triggers.events import DeferredTask

    given = {name: getattr(task, name) for name in names} | vars(request)
    public = {name: redacted_json(value) for name, value in given.items()} | request.summary()
    return DeferredTask(
        attempt=context["ti"].try_number,
        parameters={name: value for name, value in given.items() if value == public[name]},
        digests={name: digest_of(value) for name, value in given.items() if value != public[name]},
    )


def digest_of(value: Any) -> str:
    """Return a digest of a parameter, without the signatures of URLs: a template may sign a URL again."""
    text = re.sub(r'(https?://[^"?]*)\?([^"]*)', _without_signature, json.dumps(value, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()


def _without_signature(url: re.Match[str]) -> str:
    kept = [part for part in url[2].split("&") if not _SIGNATURE.fullmatch(part.partition("=")[0])]
    return f"{url[1]}?{'&'.join(kept)}"


def can_defer(task: BaseOperator, context: Context, hook: ModelScopeHook) -> bool:
    """Return whether a deferrable task can wait in the triggerer; if not, log why.

    Not if another task calls its ``execute``: Airflow would resume the other task with the event of this one.
    The task instance is asked: before Airflow 3.1 ``context["task"]`` is another copy of the task.
    """
    if getattr(context["ti"], "task", task) is not task:
        task.log.info("Waiting on the worker instead of deferring: another task called execute()")
        return False
    return hook.can_defer()


def min_deferral_seconds() -> float:
    """Return for how long a deferred task must not resume, because Airflow may fail it.

    The scheduler can take the late "success" of the part that deferred for the end of the part that resumes,
    which is still queued: "the executor reported that the task finished" (apache/airflow issues 66374, 67287,
    71580, 72716). The report is late by the worker's heartbeat interval if its supervisor misses the end of
    the process, which happens every sixth time on 3.3.2. The rest is time for the executor and the scheduler.
    """
    from airflow_provider_modelscope.compat import conf

    return float(conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)) + 3.0


def early_slot_retry(start_seconds: float) -> float:
    """Return for how many seconds a task with a slot retries from its worker, before it defers again.

    :param start_seconds: Seconds from the grant until the task was on the worker.
    """
    return max(EARLY_SLOT_RETRY, EARLY_SLOT_RETRY_OF_START * start_seconds)


def submit_or_defer(
    task: BaseOperator,
    request: GenerationRequest,
    queue: SubmitBackoff,
    hook: ModelScopeHook,
    *,
    sending: Callable[[], AbstractContextManager[object]],
    on_wait: Callable[[], object],
    resume_with: DeferredTask,
) -> str:
    """Submit and return the ``generation_id``, or defer if the account's queue is full.

    The task resumes in its method ``execute_queued``.

    :param request: The request, with its images inlined.
    :param queue: The task's wait for a free slot. A slot that was granted may not be free yet.
    :param sending: Returns the context for one submission.
    :param on_wait: Called when it begins to wait for the account without deferring.
    :param resume_with: What the task resumes with.
    :raises ModelScopeError: if it cannot be submitted, or not before the queue's deadline.
    """
    has_slot = queue.start_seconds is not None
    until = time.time() + (0.0 if queue.start_seconds is None else early_slot_retry(queue.start_seconds))
    if queue.end_time < until + MIN_QUEUE_DEFERRAL:
        return hook.submit_with_backoff(request, queue, sending=sending, on_wait=on_wait)
    on_worker = SubmitBackoff(queued_at=until, end_time=until, rejected=has_slot, max_delay=1.0)
    try:
        return hook.submit_with_backoff(request, on_worker, sending=sending, log_level=logging.DEBUG)
    except (RateLimitedError, ServiceUnreachableError) as error:
        if isinstance(error, ServiceUnreachableError) and not has_slot:
            raise  # the service may not exist at all
        is_known = has_slot and isinstance(error, QueueFullError)
        reason = "The account is still busy" if is_known else why_rejected(error)
    defer_until_slot_free(
        task,
        hook,
        reason=reason,
        queued_at=queue.queued_at,
        start_seconds=queue.start_seconds,
        end_time=queue.end_time,
        resume_with=resume_with,
    )


def defer_until_slot_free(
    task: BaseOperator,
    hook: ModelScopeHook,
    *,
    reason: str,
    queued_at: float,
    start_seconds: float | None = None,
    end_time: float,
    resume_with: DeferredTask,
) -> NoReturn:
    """Defer until the account has a free slot. The task resumes in its method ``execute_queued``.

    :param reason: Why it cannot submit now, as the log says it.
    :param queued_at: When the task began to wait, in epoch seconds.
    :param start_seconds: If it was granted a slot before, the seconds from then until it was on a worker.
    :param end_time: When to give up, in epoch seconds.
    :param resume_with: What the task resumes with.
    """
    from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger
    from airflow_provider_modelscope.waiting.progress import utc

    task.log.info("%s. Deferring until a slot is free, until %s at the latest", reason, utc(end_time))
    trigger = ModelScopeQueueTrigger(
        queued_at=queued_at,
        start_seconds=start_seconds,
        modelscope_conn_id=hook.modelscope_conn_id,
        end_time=end_time,
        min_deferral_seconds=min_deferral_seconds(),
        deferred_task=resume_with.to_json(),
    )
    # Without a timeout of Airflow's, which would end it before the last attempt if no triggerer runs.
    task.defer(trigger=trigger, method_name="execute_queued")


def defer_until_credit(
    task: BaseOperator,
    error: QuotaExhaustedError,
    hook: ModelScopeHook,
    *,
    models: Sequence[str],
    end_time: float,
    resume_with: DeferredTask,
) -> NoReturn:
    """Defer until the account has credit or, if its quota is used up, until the next day.

    The task resumes in its method ``execute_with_credit``.

    :param error: Why the submission was refused.
    :param models: The models that the task asks.
    :param end_time: When to give up, in epoch seconds.
    :param resume_with: What the task resumes with.
    :raises QuotaExhaustedError: the error, if waiting cannot help, or after the deadline.
    """
    from airflow_provider_modelscope.triggers.credit import ModelScopeExhaustedTrigger
    from airflow_provider_modelscope.waiting.backoff import next_day
    from airflow_provider_modelscope.waiting.progress import utc

    now = time.time()
    needed = min(filter(None, map(hook.get_price, models)), default=LEAST_PRICE)
    if isinstance(error, ModelRetiredError) and (credit := hook.find_credit()) and credit.available >= needed:
        error.message += f". The account has credit, {credit}, so the model is no longer served"
        raise error
    if now + MIN_QUEUE_DEFERRAL > end_time:
        error.message += ". None came until exhausted_timeout"
        raise error
    until_next_day = type(error) is QuotaExhaustedError
    day = next_day(now)
    task.log.warning(
        "Deferring until %s: %s",
        f"the next day, {utc(min(day, end_time))}"
        if until_next_day
        else f"there is credit, until {utc(end_time)} at the latest",
        error.message,
    )
    trigger = ModelScopeExhaustedTrigger(
        needed=None if until_next_day else needed,
        next_day=day,
        modelscope_conn_id=hook.modelscope_conn_id,
        end_time=end_time,
        min_deferral_seconds=min_deferral_seconds(),
        deferred_task=resume_with.to_json(),
    )
    # Without a timeout of Airflow's, which would end it before the last attempt if no triggerer runs.
    task.defer(trigger=trigger, method_name="execute_with_credit")


def wait_or_defer(
    task: BaseOperator,
    wait: PollSchedule,
    hook: ModelScopeHook,
    *,
    defer_after: float | None,
    resume_with: DeferredTask,
) -> Generation:
    """Return the finished generation, or defer if it takes long.

    A deferral takes about 3 s, and its trigger may not fire within 8, so fast generations are polled from the
    worker. The task resumes in its method ``execute_complete``.

    :param defer_after: Age of the generation in seconds at which to defer; 0 polls once, None never defers.
    :param resume_with: What the task resumes with.
    :raises ModelScopeError: if the wait ends without a finished generation.
    """
    until = math.inf if defer_after is None else wait.submitted_at + defer_after
    generation = hook.poll_until(wait, until)
    if generation is not None:
        return generation
    defer_until_finished(task, wait, hook, resume_with=resume_with)


def defer_until_finished(
    task: BaseOperator, wait: PollSchedule, hook: ModelScopeHook, *, resume_with: DeferredTask
) -> NoReturn:
    """Defer until a generation has finished. The task resumes in its method ``execute_complete``."""
    from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
    from airflow_provider_modelscope.waiting.progress import rounded

    age = rounded(time.time() - wait.submitted_at)
    task.log.info("Deferring: generation %s is not finished after %s", wait.generation_id, age)
    trigger = ModelScopeImageGenerationTrigger(
        generation_id=wait.generation_id,
        poll_interval=wait.poll_interval,
        submitted_at=wait.submitted_at,
        model=wait.model,
        size=wait.size,
        modelscope_conn_id=hook.modelscope_conn_id,
        end_time=wait.end_time,
        min_deferral_seconds=min_deferral_seconds(),
        deferred_task=resume_with.to_json(),
    )
    # Airflow's own timeout is a little later, so that the error of the trigger, which says more, comes first.
    seconds = max(0.0, trigger.end_time - time.time()) + hook.account.request_timeout + 60
    task.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=seconds))
