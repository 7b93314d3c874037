"""When to look at a generation again, when to submit again, and when to give up.

One decision for the worker's loop and the triggerer's: no clock, no network; ``now`` is an argument.
"""

from __future__ import annotations

import logging
import math
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import (
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
)
from airflow_provider_modelscope.protocol.generation import SUCCEED
from airflow_provider_modelscope.validation import MAX_WAIT
from airflow_provider_modelscope.waiting.backoff import MAX_RETRY_AFTER
from airflow_provider_modelscope.waiting.intervals import (
    MIN_POLL_INTERVAL,
    DurationHistory,
    seconds_to_next_poll,
)

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.generation import Generation

DURATIONS = DurationHistory()  # of this process: many in a triggerer, none in a task's own process

log = logging.getLogger(__name__)


class PollSchedule:
    """A wait for one generation: told of each look, it says when the next one is due.

    That follows the last durations of the model and size in this process. Faults that pass never end a wait
    that still has time.

    :param generation_id: What is waited for.
    :param submitted_at: When it was submitted, in epoch seconds; when the wait began, if that is not known.
    :param end_time: When it ends, in epoch seconds: wall clock, so that it survives a restart.
    :param poll_interval: The longest time between looks, in seconds; below 1 it is 1.
    :param model: The model of the request, if that is known.
    :param size: The size of the request, if it has one.
    :param fast_poll_until_age: Age of the generation in seconds until which looks come every second, or after an
        eighth of its age: what is quickly done is quickly seen.
    """

    def __init__(
        self,
        generation_id: str,
        *,
        submitted_at: float,
        end_time: float,
        poll_interval: float,
        model: str | None = None,
        size: str | None = None,
        fast_poll_until_age: float = 0.0,
    ) -> None:
        self.generation_id = generation_id
        self.submitted_at = submitted_at
        self.end_time = end_time
        self.poll_interval = max(MIN_POLL_INTERVAL, poll_interval)
        self.model = model
        self.size = size
        self.fast_poll_until_age = fast_poll_until_age
        self.last_seen = "not seen yet"
        self._is_unseen = True
        self._ran_at: float | None = None  # its age when it was last seen to run

    @property
    def usual_seconds(self) -> float | None:
        """How long the last generations of the same model and size took; None if none is known."""
        return DURATIONS.of(self.model, self.size).usual

    def after(self, look: Generation | ModelScopeError, *, now: float) -> Generation | float:
        """Return the generation where it is finished, else the seconds to sleep before the next look.

        :param look: What the look gave, an error included.
        :param now: When, in epoch seconds.
        :raises ModelScopeFinalError: the look's own error, where waiting does not help.
        :raises GenerationTimeoutError: where the time is up.
        """
        age = now - self.submitted_at
        retry_after = 0.0
        if isinstance(look, ModelScopeFinalError):
            raise look
        if isinstance(look, ModelScopeError):
            self._is_unseen = True
            self.last_seen = f"not to be seen: {look}"
            retry_after = min(look.retry_after or 0.0, MAX_RETRY_AFTER)
            log.warning("Generation %s could not be looked at: %s", self.generation_id, look)
        elif look.is_not_found and not look.has_failed(age=age):
            self._see("not found")
        elif look.is_finished:
            self._see(look.status)
            self._record_duration(look, age)
            return look
        else:
            self._ran_at = age
            self._is_unseen = False
            without = " without images" if look.status == SUCCEED else ""
            self._see((look.status or "without a status") + without)
        if now >= self.end_time:
            raise self._timeout()
        delay = max(self._delay(age), retry_after)
        return float(min(delay, self.end_time - now))  # the last look falls on the deadline

    def _see(self, what: str) -> None:
        if what != self.last_seen:
            log.info("Generation %s is %s", self.generation_id, what)
        self.last_seen = what

    def _delay(self, age: float) -> float:
        if age < self.fast_poll_until_age:
            return min(self.poll_interval, max(MIN_POLL_INTERVAL, age / 8))
        durations = DURATIONS.of(self.model, self.size)
        jitter = random.random()  # noqa: S311 - it spreads load, and hides nothing
        return seconds_to_next_poll(durations, age=age, poll_interval=self.poll_interval, jitter=jitter)

    def _record_duration(self, finished: Generation, age: float) -> None:
        """Record how long it took: the service's own figure, unless the polls contradict it."""
        if self.model is None or not finished.output_images:
            return
        taken = (finished.duration_ms or 0.0) / 1000
        # One second of tolerance: the service's clock and ours do not start at the same moment.
        if taken > 0 and (self._ran_at or 0.0) - 1 <= taken <= age + 1:
            DURATIONS.record(self.model, self.size, taken)
        elif self._ran_at is not None:
            DURATIONS.record(self.model, self.size, age, after=self._ran_at)

    def _timeout(self) -> GenerationTimeoutError:
        deadline = datetime.fromtimestamp(self.end_time, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        kind = GenerationStatusUnknownError if self._is_unseen else GenerationTimeoutError
        return kind(
            f"The generation was {self.last_seen} at its deadline, {deadline}. It may yet finish: "
            "waiting for its id again costs nothing",
            generation_id=self.generation_id,
        )


def end_of_wait(
    timeout: float, execution_timeout: timedelta | None, *, since: float, started_at: float
) -> float:
    """Return when a task's wait ends, in epoch seconds: ``timeout`` seconds after ``since``.

    A shorter ``execution_timeout``, which counts from the task's start, is honoured: Airflow does not enforce
    it while a task is deferred.
    """
    limit = math.inf if execution_timeout is None else execution_timeout.total_seconds()
    return min(since + min(timeout, MAX_WAIT), started_at + limit)
