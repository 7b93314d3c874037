"""When to look at a generation again, and when to give up.

One decision for the worker's loop and the triggerer's: no clock, no network; ``now`` is an argument.
"""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
)

if TYPE_CHECKING:
    from airflow_provider_modelscope.api import Answer
    from airflow_provider_modelscope.generation import Generation

MIN_POLL_INTERVAL = 1.0  # seconds; the service is not asked faster
NOT_FOUND_GRACE = 30.0  # seconds in which "task not found" may only mean "just accepted"
QUIET_AFTER_429 = 5.0  # seconds; the service was never seen to say how long
MAX_RETRY_AFTER = 300.0  # seconds; more than this is not believed

log = logging.getLogger(__name__)


class GenerationWait:
    """A wait for one generation: told of each look, it says when the next one is due.

    The first looks come every second, then each after a quarter of the generation's age, until
    ``poll_interval`` is reached: what is quickly done is quickly seen. Faults that pass never end a wait that
    still has time.

    :param generation_id: What is waited for.
    :param submitted_at: When it was submitted, in epoch seconds; when the wait began, if that is not known.
    :param end_time: When it ends, in epoch seconds: wall clock, so that it survives a restart.
    :param poll_interval: The longest time between looks, in seconds; below 1 it is 1.
    """

    def __init__(
        self, generation_id: str, *, submitted_at: float, end_time: float, poll_interval: float
    ) -> None:
        self.generation_id = generation_id
        self.submitted_at = submitted_at
        self.end_time = end_time
        self.poll_interval = max(MIN_POLL_INTERVAL, poll_interval)
        self.last_seen = "not seen yet"

    def after(self, look: Generation | ModelScopeError, *, now: float) -> Generation | float:
        """Return the generation where it is finished, else the seconds to sleep before the next look.

        :param look: What the look gave, an error included.
        :param now: When, in epoch seconds.
        :raises ModelScopeFinalError: the look's own error, where waiting does not help.
        :raises GenerationTimeoutError: where the time is up.
        """
        delay = min(self.poll_interval, max(MIN_POLL_INTERVAL, (now - self.submitted_at) / 4))
        if isinstance(look, ModelScopeFinalError):
            raise look
        if isinstance(look, ModelScopeError):
            self.last_seen = f"not to be seen: {look}"
            delay = max(delay, min(look.retry_after or 0.0, MAX_RETRY_AFTER))
            log.warning("Looking at generation %s failed: %s", self.generation_id, look)
        elif look.is_missing and now < self.submitted_at + NOT_FOUND_GRACE:
            self.last_seen = "not found"
        elif look.is_finished:
            return look
        else:
            self.last_seen = look.status or "without a status"
        if now >= self.end_time:
            raise self._timeout()
        return float(min(delay, self.end_time - now))  # the last look falls on the deadline

    def _timeout(self) -> GenerationTimeoutError:
        deadline = datetime.fromtimestamp(self.end_time, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return GenerationTimeoutError(
            f"The generation was {self.last_seen} at its deadline, {deadline}. It may yet finish: "
            "waiting for its id again costs nothing",
            generation_id=self.generation_id,
        )


class Quiet:
    """The time in which an account leaves the service alone, because the service asked it to."""

    def __init__(self) -> None:
        self._until = 0.0

    def hear(self, answer: Answer, *, now: float) -> None:
        """Take note of an answer: too fast (429), or with a ``Retry-After``, asks for quiet."""
        asked = answer.retry_after
        if asked is None and answer.status_code == 429:
            asked = QUIET_AFTER_429
        if asked is not None:
            self._until = max(self._until, now + min(asked, MAX_RETRY_AFTER))

    def seconds(self, now: float) -> float:
        """Return how many seconds of it remain."""
        return max(0.0, self._until - now)


def end_of_wait(
    timeout: float, execution_timeout: timedelta | None, *, started_at: float, now: float
) -> float:
    """Return when a task's wait ends, in epoch seconds: ``timeout`` seconds from now.

    A shorter ``execution_timeout``, which counts from the task's start, is honoured: Airflow does not enforce
    it while a task is deferred.
    """
    limit = math.inf if execution_timeout is None else execution_timeout.total_seconds()
    return min(now + timeout, started_at + limit)
