"""When to look at a generation again, when to submit again, and when to give up.

One decision for the worker's loop and the triggerer's: no clock, no network; ``now`` is an argument.
"""

from __future__ import annotations

import logging
import math
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    GenerationUnseenError,
    ModelScopeError,
    ModelScopeFinalError,
    RateLimitedError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.generation import SUCCEED
from airflow_provider_modelscope.mistakes import MAX_WAIT
from airflow_provider_modelscope.waiting.intervals import (
    MIN_POLL_INTERVAL,
    DurationHistory,
    seconds_to_next_poll,
)

if TYPE_CHECKING:
    from airflow_provider_modelscope.api import Answer
    from airflow_provider_modelscope.generation import Generation

POLL_INTERVAL = 15.0  # seconds; most polls are closer, see ``intervals``
QUIET_AFTER_429 = 5.0  # seconds; the service was never seen to say how long
MAX_RETRY_AFTER = 300.0  # seconds; more than this is not believed
TRIES = 3  # of what failed in passing
PAUSE = 1.0  # seconds between them
QUEUE_PAUSE = 2.0  # seconds before a refused submission is sent again; doubles with each refusal
MAX_QUEUE_PAUSE = 15.0  # seconds; what an image's time in the line may grow by

DURATIONS = DurationHistory()  # of this process: many in a triggerer, none in a task's own process

log = logging.getLogger(__name__)


class GenerationWait:
    """A wait for one generation: told of each look, it says when the next one is due.

    That follows the last durations of the model and size in this process. Faults that pass never end a wait
    that still has time.

    :param generation_id: What is waited for.
    :param submitted_at: When it was submitted, in epoch seconds; when the wait began, if that is not known.
    :param end_time: When it ends, in epoch seconds: wall clock, so that it survives a restart.
    :param poll_interval: The longest time between looks, in seconds; below 1 it is 1.
    :param model: The model of the request, if that is known.
    :param size: The size of the request, if it has one.
    :param quick_until: Age of the generation in seconds until which looks come every second, or after an
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
        quick_until: float = 0.0,
    ) -> None:
        self.generation_id = generation_id
        self.submitted_at = submitted_at
        self.end_time = end_time
        self.poll_interval = max(MIN_POLL_INTERVAL, poll_interval)
        self.model = model
        self.size = size
        self.quick_until = quick_until
        self.last_seen = "not seen yet"
        self._is_unseen = True
        self._ran_at: float | None = None  # its age when it was last seen to run

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
        elif look.is_missing and not look.has_failed(age=age):
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
        if age < self.quick_until:
            return min(self.poll_interval, max(MIN_POLL_INTERVAL, age / 8))
        durations = DURATIONS.of(self.model, self.size)
        jitter = random.random()  # noqa: S311 - it spreads load, and hides nothing
        return seconds_to_next_poll(durations, age=age, poll_interval=self.poll_interval, jitter=jitter)

    def _record_duration(self, finished: Generation, age: float) -> None:
        """Record how long it took: the service's own figure, unless the polls contradict it."""
        if self.model is None or not finished.output_images:
            return
        taken = (finished.milliseconds or 0.0) / 1000
        # One second of tolerance: the service's clock and ours do not start at the same moment.
        if taken > 0 and (self._ran_at or 0.0) - 1 <= taken <= age + 1:
            DURATIONS.record(self.model, self.size, taken)
        elif self._ran_at is not None:
            DURATIONS.record(self.model, self.size, age, after=self._ran_at)

    def _timeout(self) -> GenerationTimeoutError:
        deadline = datetime.fromtimestamp(self.end_time, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        kind = GenerationUnseenError if self._is_unseen else GenerationTimeoutError
        return kind(
            f"The generation was {self.last_seen} at its deadline, {deadline}. It may yet finish: "
            "waiting for its id again costs nothing",
            generation_id=self.generation_id,
        )


class QueueWait:
    """A wait for room to submit: told of each submission that created nothing, it says when to try again.

    :param since: When it began, in epoch seconds: first come, first served.
    :param end_time: When it ends, in epoch seconds.
    :param refused: Whether the service has refused already. Until then one that cannot be reached is soon
        given up; later it is waited for as well.
    :param longest_pause: Between tries, in seconds.
    """

    def __init__(
        self,
        *,
        since: float,
        end_time: float,
        refused: bool = False,
        longest_pause: float = MAX_QUEUE_PAUSE,
    ) -> None:
        self.since = since
        self.end_time = end_time
        self._refused = refused
        self._longest_pause = longest_pause
        self._tries = 0

    def after(
        self, error: RateLimitedError | ServiceUnreachableError, *, now: float, waiting: int = 1
    ) -> float:
        """Return the seconds to wait before submitting again.

        :param error: Why nothing was created.
        :param now: When, in epoch seconds.
        :param waiting: How many wait here to submit, this one included.
        :raises RateLimitedError: the error itself, where the time is up.
        :raises ServiceUnreachableError: the same, or where there is no sign of a service at all.
        """
        self._tries += 1
        if isinstance(error, RateLimitedError):
            self._refused = True
        elif not self._refused:
            if self._tries >= TRIES:
                raise error
            return PAUSE
        if now >= self.end_time:
            self.give_up(error, waiting=waiting)
        pause = min(self._longest_pause, QUEUE_PAUSE * 2.0 ** min(self._tries - 1, 10))
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 - it spreads load, and hides nothing
        pause = max(pause, min(error.retry_after or 0.0, MAX_RETRY_AFTER))
        return min(pause, self.end_time - now)  # the last try falls on the deadline

    def give_up(self, error: RateLimitedError | ServiceUnreachableError, *, waiting: int = 1) -> NoReturn:
        """Raise the error, saying how long it was waited, and how many did."""
        seconds = self.end_time - self.since
        if seconds > 0:
            others = f", {waiting - 1} more of this account waited with it" if waiting > 1 else ""
            error.message = (
                f"{error.message.rstrip('.')}. It waited {seconds:.0f} s for room to submit{others}; nothing "
                "was created. A longer queue_timeout waits longer"
            )
        raise error


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
        return min(MAX_RETRY_AFTER, max(0.0, self._until - now))  # no more, though the clock be set back


def end_of_wait(
    timeout: float, execution_timeout: timedelta | None, *, since: float, started_at: float
) -> float:
    """Return when a task's wait ends, in epoch seconds: ``timeout`` seconds after ``since``.

    A shorter ``execution_timeout``, which counts from the task's start, is honoured: Airflow does not enforce
    it while a task is deferred.
    """
    limit = math.inf if execution_timeout is None else execution_timeout.total_seconds()
    return min(since + min(timeout, MAX_WAIT), started_at + limit)
