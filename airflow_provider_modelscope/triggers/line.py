"""The line before an account's full queue: first come, first served."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOLD_SECONDS = 15.0  # that room is kept for the worker of the one who was first: it starts in some 3


class Line:
    """Those who wait in one event loop to submit as the same account. Its length is how many they are."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._held_until = 0.0

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self, since: float) -> Iterator[Place]:
        """Give a place in the line while the context lasts.

        :param since: When its owner began to wait, in epoch seconds; whoever did so before is before it.
        """
        place = Place(self, since)
        insort(self._places, place, key=lambda other: other.since)
        try:
            yield place
        finally:
            was_first = self._places[0] is place
            self._places.remove(place)
            if was_first:
                self.call()

    def call(self) -> None:
        """Tell the first in the line that there may be room."""
        if self._places:
            self._places[0].called.set()

    def hold(self) -> None:
        """Keep the room for one whose worker submits: nobody here is to take it first."""
        self._held_until = time.monotonic() + HOLD_SECONDS

    @property
    def held(self) -> float:
        """For how many more seconds nobody here is to submit."""
        return max(0.0, self._held_until - time.monotonic())

    def ahead_of(self, place: Place) -> int:
        """Return how many are before a place."""
        return self._places.index(place)


class Place:
    """A place in a line."""

    def __init__(self, line: Line, since: float) -> None:
        self.since = since
        self.called = asyncio.Event()
        self._line = line

    @property
    def ahead(self) -> int:
        """How many are before it."""
        return self._line.ahead_of(self)

    async def wait(self, seconds: float) -> None:
        """Wait until it is called, at most so many seconds. A call that came before counts."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self.called.wait()
        self.called.clear()
