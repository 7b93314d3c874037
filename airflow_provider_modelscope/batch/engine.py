"""What a batch does next: rows, results and the clock in, the next action out.

No clock, no network, no storage and no Airflow: ``now`` is an argument. A loop, on a worker or in an event
loop, does what the engine says and reports what came of it.

The account is the bottleneck: a row is submitted as soon as a slot is free, before the image of the last one
is stored, and polls are close together when a generation is about to end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import (
    BrokenImageError,
    GenerationFailedError,
    GenerationRejectedError,
    ImageGoneError,
    ModelScopeError,
    RequestRejectedError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.waiting.poll import PollSchedule

if TYPE_CHECKING:
    from airflow_provider_modelscope.batch.rows import Row
    from airflow_provider_modelscope.batch.share import AccountShare
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.waiting.intervals import DurationHistory
    from airflow_provider_modelscope.xcoms import Submission

MAX_UNSTORED = 2  # images that wait to be stored, beside those of running generations: the store is slower
# A new generation may give an image where these did not.
_CURABLE = (GenerationFailedError, BrokenImageError, ImageGoneError, SubmissionLostError)
_REJECTIONS = (RequestRejectedError, GenerationRejectedError)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A row that has no image yet.

    :param attempts: How many generations this attempt of the task has submitted for it.
    :param submission: The last of them, or the one of an earlier attempt of the task.
    """

    row: Row
    fingerprint: str
    attempts: int = 0
    submission: Submission | None = None

    def submitted(self, submission: Submission) -> Work:
        """Return the row with one generation more."""
        return replace(self, attempts=self.attempts + 1, submission=submission)


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Submit this row, then call ``accept``, ``fail``, or ``refuse`` of the share."""

    work: Work


@dataclass(frozen=True, kw_only=True)
class Poll:
    """Poll the generation of this row, then call ``observe``."""

    work: Work


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Do nothing until then, in epoch seconds, or until an image is stored."""

    until: float


@dataclass(frozen=True, kw_only=True)
class Done:
    """Nothing is left to do."""


@dataclass(kw_only=True)
class _Running:
    work: Work
    schedule: PollSchedule
    next_poll: float


@dataclass(kw_only=True)
class Engine:
    """The rows that a batch works on.

    A row is running from its acceptance until ``observe`` returns its generation; then it is being stored,
    until ``finish`` or ``fail`` is called.

    :param take: Returns the next row that has no image, None if there is none.
    :param durations: How long the last generations took.
    :param item_attempts: The most generations to submit for a row, in one attempt of the task.
    :param timeout: Seconds from its submission until a generation is given up.
    :param poll_interval: The longest time between two polls, in seconds.
    """

    take: Callable[[], Work | None]
    share: AccountShare
    durations: DurationHistory
    item_attempts: int = 2
    timeout: float = 900.0
    poll_interval: float = 15.0
    _waiting: deque[Work] = field(default_factory=deque)  # taken, but not submitted
    _running: dict[str, _Running] = field(default_factory=dict)
    _storing: dict[str, Work] = field(default_factory=dict)
    _is_stopped: bool = False

    @property
    def open_work(self) -> list[Work]:
        """The rows whose generations run or are being stored."""
        return [*(running.work for running in self._running.values()), *self._storing.values()]

    @property
    def is_storing(self) -> bool:
        """Whether an image is being stored."""
        return bool(self._storing)

    @property
    def running_count(self) -> int:
        """How many generations run, as far as is known."""
        return len(self._running)

    @property
    def next_schedule(self) -> PollSchedule:
        """The wait for the generation that is polled next."""
        return min(self._running.values(), key=_next_poll).schedule

    def next_action(self, now: float) -> Submit | Poll | Wait | Done:
        """Return what to do next."""
        first = min(self._running.values(), key=_next_poll, default=None)
        if first and first.next_poll <= now:
            return Poll(work=first.work)
        submit_at = self._submit_at()
        if submit_at <= now:
            if work := self._next_work():
                return Submit(work=work)
            submit_at = math.inf
        until = min(submit_at, first.next_poll if first else math.inf)
        if until < math.inf or self._storing:
            return Wait(until=until)
        return Done()

    def resume(self, work: Work, *, attempt_started_at: float, now: float) -> None:
        """Poll a generation that an earlier attempt or part of the task submitted, now.

        :param attempt_started_at: Another attempt gives it the whole timeout again, another part does not.
        """
        assert work.submission is not None  # noqa: S101 - for the type checker
        end_time = max(work.submission.submitted_at, attempt_started_at) + self.timeout
        self._run(work, work.submission, end_time=end_time, next_poll=now)

    def accept(self, work: Work, submission: Submission, *, now: float) -> None:
        """Note that a row was accepted."""
        self._waiting.remove(work)
        running = self._run(
            work.submitted(submission), submission, end_time=submission.submitted_at + self.timeout
        )
        running.next_poll = now + running.schedule.first_delay(now=now)
        self.share.accept(len(self._running), now=now)

    def observe(self, work: Work, polled: Generation | ModelScopeError, *, now: float) -> Generation | None:
        """Note the result of a poll. Return the generation if it has finished: its images are to be stored.

        :raises ModelScopeError: if its end is not waited for any longer.
        """
        key = work.row.key
        running = self._running[key]
        try:
            outcome = running.schedule.observe(polled, now=now)
        except ModelScopeError:
            self._store(key, now=now)
            raise
        if isinstance(outcome, float):
            running.next_poll = now + outcome
            return None
        self._store(key, now=now)
        return outcome

    def finish(self, work: Work) -> None:
        """Note that a row has its image, or its final error."""
        self._storing.pop(work.row.key, None)
        if work in self._waiting:
            self._waiting.remove(work)

    def fail(self, work: Work, error: ModelScopeError) -> bool:
        """Note that a row has no image. Return whether it is tried again, with a new generation."""
        self.finish(work)
        attempts = work.attempts + isinstance(error, SubmissionLostError)
        if isinstance(error, _CURABLE) and attempts < self.item_attempts and not self._is_stopped:
            # First, as its attempts are not recorded: the task could defer before its turn.
            self._waiting.appendleft(replace(work, attempts=attempts, submission=None))
            return True
        return False

    def stop(self) -> None:
        """Submit nothing more. What runs is waited for and stored."""
        self._is_stopped = True

    def seconds_left(self, now: float) -> float:
        """Return how long all running generations will at least run on, as far as is known.

        One that runs for longer than usual, or for whose model no duration is known, is expected to run as
        long again.
        """
        left = [
            (usual - age if age < usual else age - usual)
            for running in self._running.values()
            for age in [now - running.schedule.submitted_at]
            for usual in [running.schedule.usual_seconds or 0.0]
        ]
        return min(left, default=0.0)

    def can_submit(self, now: float) -> bool:
        """Whether a row could be submitted before any generation ends."""
        return self._submit_at() < math.inf and self._next_work() is not None

    def _submit_at(self) -> float:
        if self._is_stopped or len(self._storing) >= MAX_UNSTORED + len(self._running):
            return math.inf
        return self.share.submit_at(len(self._running))

    def _next_work(self) -> Work | None:
        """Return the row to submit next. It stays the next one until something is reported of it."""
        if not self._waiting and (work := self.take()):
            self._waiting.append(work)
        return self._waiting[0] if self._waiting else None

    def _run(
        self, work: Work, submission: Submission, *, end_time: float, next_poll: float = math.inf
    ) -> _Running:
        schedule = PollSchedule(
            submission.generation_id,
            submitted_at=submission.submitted_at,
            end_time=end_time,
            poll_interval=self.poll_interval,
            model=submission.model,
            size=submission.size,
            durations=self.durations,
            is_close=True,
            log_level=_DEBUG,
        )
        running = _Running(work=work, schedule=schedule, next_poll=next_poll)
        self._running[work.row.key] = running
        return running

    def _store(self, key: str, *, now: float) -> None:
        running = self._running.pop(key)
        self._storing[key] = running.work
        self.share.end(now=now, usual_seconds=running.schedule.usual_seconds)


def _next_poll(running: _Running) -> float:
    return running.next_poll


def is_rejection(error: ModelScopeError) -> bool:
    """Whether the same request would be refused or fail again, whenever it is sent."""
    return isinstance(error, _REJECTIONS) and not isinstance(error, UnknownModelError)


_DEBUG = 10  # the level of what is of interest for one generation, not for thousands
