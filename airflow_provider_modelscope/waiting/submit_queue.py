"""The queue of the tasks that wait to submit as one account: first come, first served."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from airflow_provider_modelscope.waiting.progress import Place, Running
from airflow_provider_modelscope.waiting.slots import SlotForecast

FIRST_REPORT = 3.0  # seconds after a task began to wait: tasks that begin together are in the queue then
REPORT_EVERY = 60.0  # seconds, at least, between two reports of a task's place


class SubmitQueue:
    """The queue of one account in one event loop. Its length is the number of waiting tasks."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._running: dict[str, Running] = {}
        self._forecast = SlotForecast()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of generations of the account that are known to run."""
        return self._forecast.running

    def expected_seconds(self, position: int, *, now: float) -> float | None:
        """Return about how long until a position of the queue gets a slot; None if that is unknown.

        :param position: 1 for the next task.
        :param now: In epoch seconds.
        """
        usual = [one.usual_seconds for one in self._running.values() if one.usual_seconds]
        if not usual or len(usual) < len(self._running):
            return None
        ends = sorted(
            max(now, one.submitted_at + (one.usual_seconds or 0.0)) for one in self._running.values()
        )
        rounds, slot = divmod(position - 1, len(ends))
        return ends[slot] - now + rounds * sum(usual) / len(usual)

    async def wait_for_slot(
        self, *, queued_at: float, deadline: float, report: Callable[[Place], None] = lambda place: None
    ) -> bool:
        """Wait until a slot is granted. Return False if the deadline passes first.

        :param queued_at: When the task began to wait, in epoch seconds. The earliest is served first.
        :param deadline: When to give up, in epoch seconds.
        :param report: Called with the task's place in the queue, and again when it has changed by much.
        """
        me = _Waiting(queued_at)
        reported: Place | None = None
        report_at = time.time() + FIRST_REPORT
        insort(self._waiting, me, key=lambda waiting: waiting.queued_at)
        try:
            while (now := time.time()) < deadline:
                due = self._forecast.slot_due(now) if self._waiting[0] is me else deadline
                if due <= now:
                    self._forecast.grant(now)
                    return True
                if now >= report_at:
                    report_at = now + REPORT_EVERY
                    if (place := self._place(me, now)).is_news(reported):
                        report(place)
                        reported = place
                await me.sleep(min(due, deadline, report_at) - now)
            return False
        finally:
            self._waiting.remove(me)
            self._wake_first()

    def reject(self, start_seconds: float) -> None:
        """Report that a task which was granted a slot was rejected by the service.

        :param start_seconds: Seconds from the grant until the task was on a worker.
        """
        self._forecast.reject(start_seconds)

    @contextmanager
    def track(
        self,
        generation_id: str,
        *,
        submitted_at: float,
        usual_seconds: float | None,
        task: str | None = None,
    ) -> Iterator[None]:
        """Expect a slot when a generation of the account ends: it runs while the context is open.

        :param submitted_at: When it was submitted, in epoch seconds.
        :param usual_seconds: How long it usually runs; None if that is unknown.
        :param task: The task that waits for it, as in :class:`Running`.
        """
        self._forecast.generation_started(
            generation_id, submitted_at=submitted_at, usual_seconds=usual_seconds
        )
        self._running[generation_id] = Running(
            generation_id=generation_id, task=task, submitted_at=submitted_at, usual_seconds=usual_seconds
        )
        self._wake_first()
        try:
            yield
        finally:
            self._forecast.generation_ended(generation_id)
            self._running.pop(generation_id, None)  # two tasks may wait for one generation
            self._wake_first()

    def _place(self, me: _Waiting, now: float) -> Place:
        position = self._waiting.index(me) + 1
        return Place(
            position=position,
            waiting=len(self._waiting),
            seconds=self.expected_seconds(position, now=now),
            running=tuple(self._running.values()),
        )

    def _wake_first(self) -> None:
        """Let the first task check again when its slot is due."""
        if self._waiting:
            self._waiting[0].wake.set()


class _Waiting:
    """A waiting task."""

    def __init__(self, queued_at: float) -> None:
        self.queued_at = queued_at
        self.wake = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Sleep so many seconds, or until woken."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        self.wake.clear()
