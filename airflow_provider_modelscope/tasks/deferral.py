"""A task's waits: first on its worker, then in the triggerer, then on a worker again.

The triggers themselves stand in ``triggers``; they are imported when a task defers, not when a Dag file is
read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_modelscope.exceptions import (
    RateLimitedError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.waiting.backoff import SubmitBackoff

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
    from airflow_provider_modelscope.waiting.poll import PollSchedule

SHORT = 15.0  # seconds that are waited for room on a worker, as a deferral takes nearly as long
STAND_BY = 6.0  # seconds to go on trying from a worker whose turn came a little early
DEFER_AFTER = 8.0  # seconds of a generation's age to look from a worker; fast models need 1 to 6


def min_deferral_seconds() -> float:
    """Return for how long a task that deferred must not be resumed, or Airflow may fail it.

    The scheduler takes the late "success" of the leg that deferred for one of the leg that resumes, which it
    finds queued: "the executor reported that the task finished" (apache/airflow issues 66374, 67287, 71580,
    72716). It is late by a worker's heartbeat interval where its supervisor misses the end of the process,
    which on 3.3.2 is every sixth time; the rest is for the executor and the scheduler to hear of it.
    """
    from airflow.providers.common.compat.sdk import conf

    return float(conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)) + 3.0


def submit_or_defer(
    task: BaseOperator,
    request: GenerationRequest,
    queue: SubmitBackoff,
    hook: ModelScopeHook,
    *,
    slot_rejected: bool,
    sending: Callable[[], AbstractContextManager[object]],
) -> str:
    """Return the id of the generation that was started; where the account's queue is full, defer.

    The task goes on in its method ``execute_queued``.

    :param request: What to submit, its pictures inlined.
    :param queue: The task's wait for room.
    :param slot_rejected: Whether it was told that there is room, or soon will be.
    :param sending: Makes the context in which it is sent, anew for each time.
    :raises ModelScopeError: where it cannot be submitted, or not in time.
    """
    from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger

    until = time.time() + (STAND_BY if slot_rejected else 0)
    if queue.end_time < until + SHORT:  # it would hardly have settled in the line before the time is up
        return hook.submit_with_backoff(request, queue, sending=sending)
    stand_by = SubmitBackoff(since=until, end_time=until, refused=slot_rejected, longest_pause=1.0)
    try:
        return hook.submit_with_backoff(request, stand_by, sending=sending)
    except (RateLimitedError, ServiceUnreachableError) as refusal:
        if isinstance(refusal, ServiceUnreachableError) and not slot_rejected:
            raise  # there is no sign of a service at all
        if time.time() >= queue.end_time:
            queue.give_up(refusal)
        task.log.info("Leaving the wait for room in the account's queue to the triggerer: %s", refusal)
    trigger = ModelScopeQueueTrigger(
        since=queue.since,
        slot_rejected=slot_rejected,
        modelscope_conn_id=hook.modelscope_conn_id,
        end_time=queue.end_time,
        min_deferral_seconds=min_deferral_seconds(),
    )
    _defer(task, trigger, hook, "execute_queued")


def wait_or_defer(
    task: BaseOperator, wait: PollSchedule, hook: ModelScopeHook, *, defer_after: float | None
) -> Generation:
    """Return the generation once it is finished; a deferrable task looks for some seconds, then defers.

    A deferral costs some 3 s, and its trigger may not fire within 8: what is faster is not worth one. The
    task goes on in its method ``execute_complete``.

    :param defer_after: Until which age of the generation, in seconds, to look first, 0 for one look; None
        never defers.
    :raises ModelScopeError: where the wait ends without a finished generation.
    """
    from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger

    until = math.inf if defer_after is None else wait.submitted_at + defer_after
    generation = hook.poll_until(wait, until)
    if generation is not None:
        return generation
    task.log.info("Leaving generation %s (%s) to the triggerer", wait.generation_id, wait.last_seen)
    trigger = ModelScopeImageGenerationTrigger(
        generation_id=wait.generation_id,
        poll_interval=wait.poll_interval,
        submitted_at=wait.submitted_at,
        model=wait.model,
        size=wait.size,
        modelscope_conn_id=hook.modelscope_conn_id,
        end_time=wait.end_time,
        min_deferral_seconds=min_deferral_seconds(),
    )
    _defer(task, trigger, hook, "execute_complete")


def _defer(task: BaseOperator, trigger: ModelScopeTrigger, hook: ModelScopeHook, method: str) -> NoReturn:
    # Airflow's own limit on the deferral is a little later, so that the trigger's message, which says more,
    # comes first.
    seconds = max(0.0, trigger.end_time - time.time()) + hook.account.request_timeout + 60
    task.defer(trigger=trigger, method_name=method, timeout=timedelta(seconds=seconds))
