"""The queue of the tasks that wait to submit as one account: first come, first served."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from airflow_provider_modelscope.waiting.slots import SlotForecast


class SubmitQueue:
    """The queue of one account in one event loop. Its length is the number of waiting tasks."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._forecast = SlotForecast()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of generations of the account that are known to run."""
        return self._forecast.running

    async def wait_for_slot(self, *, queued_at: float, deadline: float) -> bool:
        """Wait until a slot is granted. Return False if the deadline passes first.

        :param queued_at: When the task began to wait, in epoch seconds. The earliest is served first.
        :param deadline: When to give up, in epoch seconds.
        """
        me = _Waiting(queued_at)
        insort(self._waiting, me, key=lambda waiting: waiting.queued_at)
        try:
            while (now := time.time()) < deadline:
                due = self._forecast.slot_due(now) if self._waiting[0] is me else deadline
                if due <= now:
                    self._forecast.grant(now)
                    return True
                await me.sleep(min(due, deadline) - now)
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
        self, generation_id: str, *, submitted_at: float, usual_seconds: float | None
    ) -> Iterator[None]:
        """Expect a slot when a generation of the account ends: it runs while the context is open.

        :param submitted_at: When it was submitted, in epoch seconds.
        :param usual_seconds: How long it usually runs; None if that is unknown.
        """
        self._forecast.generation_started(
            generation_id, submitted_at=submitted_at, usual_seconds=usual_seconds
        )
        self._wake_first()
        try:
            yield
        finally:
            self._forecast.generation_ended(generation_id)
            self._wake_first()

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
