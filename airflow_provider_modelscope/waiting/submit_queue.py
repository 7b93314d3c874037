"""The line before an account's full queue: first come, first served; ``turns`` says when."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from airflow_provider_modelscope.waiting.poll import DURATIONS, PollSchedule
from airflow_provider_modelscope.waiting.slots import SlotForecast


class SubmitQueue:
    """Those who wait in one event loop to submit as the same account. Its length is how many they are."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._turns = SlotForecast()
        self._given = 0

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def running(self, wait: PollSchedule) -> Iterator[None]:
        """Let the line know of a generation of the account while it runs."""
        usual_seconds = DURATIONS.of(wait.model, wait.size).usual
        self._turns.see(wait.generation_id, since=wait.submitted_at, usual_seconds=usual_seconds)
        self._call()
        try:
            yield
        finally:
            self._turns.end(wait.generation_id, is_awaited=bool(self._places))
            self._call()

    def refuse(self) -> None:
        """Let the line know that one who had a turn found no room."""
        if self._given:  # else another triggerer's line gave it, which is no more
            self._given -= 1
            self._turns.refuse()
            self._call()

    async def turn(self, *, since: float, end_time: float, model: str, size: str | None = None) -> bool:
        """Wait for a turn, and tell whether it came before the end.

        :param since: When its owner began to wait, in epoch seconds; whoever did so before is before it.
        :param end_time: When it gives up, in epoch seconds.
        :param model: The model of its request.
        :param size: The size of its request, if it has one.
        """
        place = _Place(since)
        if not self._places:
            self._turns.begin(now=time.time())
        insort(self._places, place, key=lambda other: other.since)
        try:
            while (now := time.time()) < end_time:
                due = self._turns.due(now=now) if self._places[0] is place else end_time
                if due <= now:
                    self._turns.take(now=now, usual_seconds=DURATIONS.of(model, size).usual)
                    self._given += 1
                    return True
                await place.wait(min(due, end_time) - now)
            return False
        finally:
            self._places.remove(place)
            self._call()

    def _call(self) -> None:
        """Let the first in the line look again when its turn is due."""
        if self._places:
            self._places[0].called.set()


class _Place:
    def __init__(self, since: float) -> None:
        self.since = since
        self.called = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait until it is called, at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.called.wait()
        self.called.clear()
