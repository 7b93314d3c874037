"""When to submit again after a rejection, and for how long an account in cooldown sends nothing."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_modelscope.exceptions import (
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
)

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.messages import HttpResponse

MAX_RETRY_AFTER = 300.0  # seconds; a longer Retry-After is cut to this
DEFAULT_COOLDOWN = 5.0  # seconds after a 429 without Retry-After; ModelScope was never seen to send one

MAX_ATTEMPTS = 3  # of a call whose error may pass
RETRY_DELAY = 1.0  # seconds between them

MIN_QUEUE_DELAY = 2.0  # seconds before a rejected submission is sent again; doubles with each rejection
DAY = 24 * 3600.0
NEXT_DAY_JITTER = 900.0  # seconds over which the tasks that wait for the next day submit

MAX_QUEUE_DELAY = 15.0  # seconds; an image may be late by as much

# Tasks that wait for long submit at a full quarter of a minute. A batch, which otherwise takes each slot
# before others see it, leaves it to them then. So they meet, although no process knows of another.
TURN_EVERY = 15.0  # seconds
TURN_SECONDS = 1.2  # in which they submit; the clocks of machines may differ a little


def next_day(now: float) -> float:
    """Return when the service's next day begins, and a little later for each caller, in epoch seconds."""
    zone = 8 * 3600  # Asia/Shanghai, all year
    midnight = math.ceil((now + zone + 1) / DAY) * DAY - zone
    return midnight + random.uniform(0, NEXT_DAY_JITTER)  # noqa: S311 - it spreads load, no security


def next_turn(now: float) -> float:
    """Return when those who wait for a slot submit next, in epoch seconds: now or later."""
    return math.ceil(now / TURN_EVERY) * TURN_EVERY


def why_rejected(error: RateLimitedError | ServiceUnreachableError) -> str:
    """Return why a submission created nothing, for the log of a task that goes on: a full queue is normal."""
    if isinstance(error, QueueFullError):
        return "The account is busy, which is normal: ModelScope runs one generation of an account at a time"
    return error.message.rstrip(".")


class SubmitBackoff:
    """When to submit again, and when to give up.

    :param queued_at: When the task began to wait, in epoch seconds: first come, first served.
    :param end_time: When it gives up, in epoch seconds.
    :param start_seconds: If it was granted a slot, the seconds from then until it was on a worker.
    :param rejected: Whether the service has rejected a submission before. A service that never responded is
        given up after a few attempts; later it is waited for as well.
    :param max_delay: Longest delay between attempts, in seconds.
    """

    def __init__(
        self,
        *,
        queued_at: float,
        end_time: float,
        start_seconds: float | None = None,
        rejected: bool = False,
        max_delay: float = MAX_QUEUE_DELAY,
    ) -> None:
        self.queued_at = queued_at
        self.end_time = end_time
        self.start_seconds = start_seconds
        self._rejected = rejected
        self._max_delay = max_delay
        self.attempts = 0  # that created nothing

    def next_delay(self, error: RateLimitedError | ServiceUnreachableError, *, now: float) -> float:
        """Return the seconds until the next attempt. The last attempt is at the deadline.

        :param error: Why the last attempt created nothing.
        :param now: In epoch seconds.
        :raises RateLimitedError: the error, after the deadline.
        :raises ServiceUnreachableError: the error, after the deadline or if the service never responded.
        """
        self.attempts += 1
        if isinstance(error, RateLimitedError):
            self._rejected = True
        elif not self._rejected:
            if self.attempts >= MAX_ATTEMPTS:
                raise error
            return RETRY_DELAY
        if now >= self.end_time:
            self._give_up(error)
        delay = min(self._max_delay, MIN_QUEUE_DELAY * 2.0 ** min(self.attempts - 1, 10))
        delay *= random.uniform(0.75, 1.25)  # noqa: S311 - it spreads load, no security
        if isinstance(error, QueueFullError) and delay > TURN_EVERY / 2:
            spread = random.uniform(0.1, 0.8) * TURN_SECONDS  # noqa: S311 - as above
            delay = next_turn(now + TURN_SECONDS) + spread - now
        delay = max(delay, min(error.retry_after or 0.0, MAX_RETRY_AFTER))
        return min(delay, self.end_time - now)

    def _give_up(self, error: RateLimitedError | ServiceUnreachableError) -> NoReturn:
        """Raise the error of the last attempt, and add how long the wait was."""
        if (waited := self.end_time - self.queued_at) > 0:
            error.message = (
                f"{error.message.rstrip('.')}. Nothing was created within {waited:.0f} s. "
                "Increase queue_timeout to wait longer"
            )
        raise error


class Cooldown:
    """How long an account sends nothing, because the service asked it to slow down."""

    def __init__(self) -> None:
        self._end = 0.0

    def observe(self, response: HttpResponse, *, now: float) -> None:
        """Extend the cooldown after a 429, or a response with ``Retry-After``.

        :param now: In epoch seconds.
        """
        seconds = response.retry_after
        if seconds is None and response.status_code == 429:
            seconds = DEFAULT_COOLDOWN
        if seconds is not None:
            self._end = max(self._end, now + min(seconds, MAX_RETRY_AFTER))

    def seconds(self, now: float) -> float:
        """Return the remaining seconds."""
        return min(MAX_RETRY_AFTER, max(0.0, self._end - now))  # the clock may have been set back
