"""When to submit again after a rejection, and how long an account leaves the service alone."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_modelscope.exceptions import RateLimitedError, ServiceUnreachableError

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.messages import HttpResponse

QUIET_AFTER_429 = 5.0  # seconds; the service was never seen to say how long
MAX_RETRY_AFTER = 300.0  # seconds; more than this is not believed
TRIES = 3  # of what failed in passing
PAUSE = 1.0  # seconds between them
QUEUE_PAUSE = 2.0  # seconds before a refused submission is sent again; doubles with each refusal
MAX_QUEUE_PAUSE = 15.0  # seconds; what an image's time in the line may grow by


class SubmitBackoff:
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


class Cooldown:
    """The time in which an account leaves the service alone, because the service asked it to."""

    def __init__(self) -> None:
        self._until = 0.0

    def hear(self, answer: HttpResponse, *, now: float) -> None:
        """Take note of an answer: too fast (429), or with a ``Retry-After``, asks for quiet."""
        asked = answer.retry_after
        if asked is None and answer.status_code == 429:
            asked = QUIET_AFTER_429
        if asked is not None:
            self._until = max(self._until, now + min(asked, MAX_RETRY_AFTER))

    def seconds(self, now: float) -> float:
        """Return how many seconds of it remain."""
        return min(MAX_RETRY_AFTER, max(0.0, self._until - now))  # no more, though the clock be set back
