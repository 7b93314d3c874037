"""When to poll a generation again, and when to give up: the same rule on workers and in the triggerer.

No clock and no network: ``now`` is an argument.
"""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import (
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
)
from airflow_provider_modelscope.protocol.generation import SUCCEED
from airflow_provider_modelscope.redaction import one_line
from airflow_provider_modelscope.validation import MAX_WAIT
from airflow_provider_modelscope.waiting.backoff import MAX_RETRY_AFTER
from airflow_provider_modelscope.waiting.intervals import (
    MIN_POLL_INTERVAL,
    DurationHistory,
    seconds_to_close_poll,
    seconds_to_next_poll,
)
from airflow_provider_modelscope.waiting.progress import Running, rounded, utc

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow_provider_modelscope.protocol.generation import Generation

NOT_POLLED = "not polled yet"
MAX_MESSAGE_SHOWN = 300  # characters of a message of the service
DURATIONS = DurationHistory()  # of this process: many in a triggerer, none in a task's own process

log = logging.getLogger(__name__)


class PollSchedule:
    """The wait for one generation: after each poll it decides whether, and when, to poll again.

    The delays follow the last durations of the same model and size in this process. An error that may pass
    never ends the wait before its deadline.

    :param generation_id: The generation to wait for.
    :param submitted_at: When it was submitted, in epoch seconds; if unknown, when the wait began.
    :param end_time: When to give up, in epoch seconds: wall clock, so that it survives a restart.
    :param poll_interval: Longest time between polls, in seconds; below 1 it is 1.
    :param model: The model of the request, if known.
    :param size: The size of the request, if it has one.
    :param fast_poll_until_age: Age of the generation in seconds until which polls are a second or an eighth
        of the age apart, so that images of fast models arrive early.
    :param durations: The last durations of the models; by default those of this process.
    :param is_close: Whether to poll closely around the expected end, and not before it, as a batch does.
    :param log_level: Level to log the first status and the end at. Changes and errors in between are always
        logged, at INFO or above.
    :param is_continued: Whether another process began this wait, and logged the first status.
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
        durations: DurationHistory | None = None,
        is_close: bool = False,
        log_level: int = logging.INFO,
        is_continued: bool = False,
    ) -> None:
        self.generation_id = generation_id
        self.submitted_at = submitted_at
        self.end_time = end_time
        self.poll_interval = max(MIN_POLL_INTERVAL, poll_interval)
        self.model = model
        self.size = size
        self.fast_poll_until_age = fast_poll_until_age
        self.last_status = NOT_POLLED
        self._durations = DURATIONS if durations is None else durations
        self._is_close = is_close
        self._last_message = ""  # of the service
        self._log_level = log_level
        self._first_log_level = logging.DEBUG if is_continued else log_level
        self._logged = NOT_POLLED
        self._is_unknown = True
        self._running_at: float | None = None  # the age at the last poll that found it running

    @property
    def usual_seconds(self) -> float | None:
        """How long the last generations of the same model and size took; None if none is known."""
        return self._durations.of(self.model, self.size).usual

    @property
    def running(self) -> Running:
        """The generation as one that runs."""
        return Running(
            generation_id=self.generation_id, submitted_at=self.submitted_at, usual_seconds=self.usual_seconds
        )

    def first_delay(self, *, now: float) -> float:
        """Return the seconds until the first poll of a new generation.

        :param now: In epoch seconds.
        """
        return float(min(self._delay(now - self.submitted_at), self.end_time - now))

    def observe(self, polled: Generation | ModelScopeError, *, now: float) -> Generation | float:
        """Return the generation if it has finished, else the seconds until the next poll.

        The last poll is at the deadline. Images that it contains are taken, whatever the status.

        :param polled: The result of a poll, which may be an error.
        :param now: In epoch seconds.
        :raises ModelScopeFinalError: the error of the poll, if another poll cannot help.
        :raises GenerationTimeoutError: after the deadline.
        """
        age = now - self.submitted_at
        retry_after = 0.0
        if isinstance(polled, ModelScopeFinalError):
            raise polled
        if isinstance(polled, ModelScopeError):
            self._is_unknown = True
            self._set_status(f"unreachable ({polled})", logging.WARNING, f"unreachable ({polled.message})")
            retry_after = min(polled.retry_after or 0.0, MAX_RETRY_AFTER)
        elif polled.is_not_found and not polled.has_failed(age=age):
            self._set_status("not found")
        elif polled.is_finished:
            took = f" after {rounded(polled.duration_ms / 1000)}" if polled.duration_ms else ""
            self._set_status(polled.status, self._log_level, f"{polled.status}{took}")
            self._record_duration(polled, age)
            return polled
        else:
            self._running_at = age
            self._is_unknown = False
            suffix = " without images" if polled.status == SUCCEED else ""
            if polled.error.message:
                self._last_message = one_line(polled.error.message, MAX_MESSAGE_SHOWN)
                suffix += f" ({self._last_message})"
            self._set_status((polled.status or "without a status") + suffix)
        if now >= self.end_time:
            if not isinstance(polled, ModelScopeError) and polled.output_images:
                return polled.with_images_as_success()
            raise self._timeout()
        delay = max(self._delay(age), retry_after)
        return float(min(delay, self.end_time - now))

    def _set_status(self, status: str, level: int | None = None, text: str | None = None) -> None:
        """Set the status, and log it if it has changed.

        :param text: What to log instead: without what differs at each poll.
        """
        text = text or status
        if text != self._logged:
            if level is None:
                level = self._first_log_level if self._logged == NOT_POLLED else logging.INFO
            log.log(level, "Generation %s is %s", self.generation_id, text)
            self._logged = text
        self.last_status = status

    def _delay(self, age: float) -> float:
        if age < self.fast_poll_until_age:
            return min(self.poll_interval, max(MIN_POLL_INTERVAL, age / 8))
        durations = self._durations.of(self.model, self.size)
        if self._is_close:
            return seconds_to_close_poll(durations, age=age, poll_interval=self.poll_interval)
        jitter = random.random()  # noqa: S311 - it spreads load, no security
        return seconds_to_next_poll(durations, age=age, poll_interval=self.poll_interval, jitter=jitter)

    def _record_duration(self, finished: Generation, age: float) -> None:
        """Record how long it took: the service's own figure, unless the polls contradict it."""
        if self.model is None or not finished.output_images:
            return
        taken = (finished.duration_ms or 0.0) / 1000
        # One second of tolerance: the service's clock and ours do not start at the same moment.
        if taken > 0 and (self._running_at or 0.0) - 1 <= taken <= age + 1:
            self._durations.record(self.model, self.size, taken)
        elif self._running_at is not None or self._is_close:
            self._durations.record(self.model, self.size, age, after=self._running_at or 0.0)

    def _timeout(self) -> GenerationTimeoutError:
        kind = GenerationStatusUnknownError if self._is_unknown else GenerationTimeoutError
        earlier = "" if self._last_message in self.last_status else f"; earlier: {self._last_message}"
        return kind(
            f"The generation was {self.last_status} at its deadline, {utc(self.end_time)}{earlier}. It may "
            "still finish: wait for its id again, which is free of charge",
            generation_id=self.generation_id,
        )


def end_of_wait(
    timeout: float, execution_timeout: timedelta | None, *, since: float, started_at: float
) -> float:
    """Return when the wait of a task ends, in epoch seconds: ``timeout`` seconds after ``since``.

    It ends earlier if the task's ``execution_timeout`` does, which counts from the task's start: Airflow does
    not enforce it while a task is deferred.
    """
    limit = math.inf if execution_timeout is None else execution_timeout.total_seconds()
    return min(since + min(timeout, MAX_WAIT), started_at + limit)
