"""When a batch may submit: how many generations its account runs at once, and when others get their turn.

No clock and no network: ``now`` is an argument.
"""

from __future__ import annotations

import math

from airflow_provider_modelscope.exceptions import (
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.waiting.backoff import (
    DEFAULT_COOLDOWN,
    TURN_SECONDS,
    SubmitBackoff,
    next_turn,
)

SOON = 0.5  # seconds to the next attempt if a slot should be free, because a generation has just ended
RAISE_AFTER = 100  # accepted submissions after a refusal, until "auto" tries one generation more

# A batch takes a slot as soon as its generation ends, so that others would never find it free. So it leaves
# them one of their turns now and then, and each of them once others were seen.
SEEK_OTHERS_EVERY = 60.0  # seconds, as long as the account seems to be ours alone; and only if a generation
SEEK_WITHIN = 0.7  # ends so many seconds before a turn, or
SEEK_WITHIN_OF_DURATION = 0.05  # so much of its duration
UNUSED_TURNS = 3  # in a row show that the account is ours alone again


class AccountShare:
    """The slots of an account that a batch may use.

    :param concurrency: The most generations to run at once; None raises it until the service refuses.
    :param queue_timeout: Seconds to retry if the service accepts nothing, although nothing of ours runs.
    :param queued_at: Since when it has accepted nothing, in epoch seconds; None if it has.
    """

    def __init__(
        self,
        concurrency: int | None,
        *,
        queue_timeout: float,
        now: float,
        queued_at: float | None = None,
    ) -> None:
        self._most = concurrency or math.inf
        self._queue_timeout = queue_timeout
        self._limit = 1.0 if concurrency is None else float(concurrency)
        self._was_refused = False
        self._accepted = 0  # since the last refusal
        self._not_before = now
        self._has_responded = queued_at is not None
        self._backoff = None if queued_at is None else self._backoff_since(queued_at)
        self._ended_at = -math.inf
        self._last_turn = now  # that was left to others
        self._unused_turns = UNUSED_TURNS  # below it, others use the account

    @property
    def refused_since(self) -> float | None:
        """Since when the service has accepted nothing, although nothing of ours runs; None if it does."""
        return self._backoff.queued_at if self._backoff else None

    def submit_at(self, running: int) -> float:
        """Return when to submit next, in epoch seconds; infinite as long as every slot is in use.

        :param running: How many generations of ours run.
        """
        return math.inf if running >= self._limit else self._not_before

    def accept(self, running: int, *, now: float) -> None:
        """Note that a submission was accepted.

        :param running: How many generations of ours run, with this one.
        """
        if self._backoff:
            self._backoff = None
        elif 0 <= now - self._last_turn <= 2 * TURN_SECONDS:
            self._unused_turns += 1
        self._has_responded = True
        self._accepted += 1
        if running >= self._limit < self._most and (self._accepted >= RAISE_AFTER or not self._was_refused):
            self._limit += 1

    def refuse(self, error: RateLimitedError | ServiceUnreachableError, running: int, *, now: float) -> None:
        """Note that a submission created nothing.

        :param running: How many generations of ours run.
        :raises RateLimitedError: the error, after the queue's timeout.
        :raises ServiceUnreachableError: the error, after the timeout, or if the service never responded.
        """
        self._accepted = 0
        if isinstance(error, QueueFullError) and running:
            self._was_refused = True
            self._limit = float(running)
            return
        if isinstance(error, QueueFullError) and now - self._ended_at > SOON:
            self._unused_turns = 0  # a generation of somebody else runs
        if self._backoff is None:
            self._backoff = self._backoff_since(now)
            if isinstance(error, QueueFullError):
                self._not_before = now + SOON
                return
        delay = self._backoff.next_delay(error, now=now)
        if isinstance(error, RateLimitedError) and not isinstance(error, QueueFullError):
            delay = max(delay, DEFAULT_COOLDOWN)
        self._not_before = now + delay

    def end(self, *, now: float, usual_seconds: float | None = None) -> None:
        """Note that a generation of ours has ended.

        :param usual_seconds: How long the generations usually take; None if that is unknown.
        """
        self._ended_at = now
        usual, turn = usual_seconds or 0.0, next_turn(now)
        if self._unused_turns < UNUSED_TURNS:
            is_left = now + usual > turn  # a generation of ours would run then
        else:
            within = max(SEEK_WITHIN, SEEK_WITHIN_OF_DURATION * usual)
            is_left = now - self._last_turn >= SEEK_OTHERS_EVERY and turn - now <= within
        if is_left:
            self._last_turn = turn
            self._not_before = max(self._not_before, turn + TURN_SECONDS)

    def _backoff_since(self, queued_at: float) -> SubmitBackoff:
        return SubmitBackoff(
            queued_at=queued_at,
            end_time=queued_at + self._queue_timeout,
            rejected=self._has_responded,
        )
