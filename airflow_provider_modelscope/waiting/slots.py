"""When the first in an account's line is to go to a worker: so that it is there when a generation ends.

No clock, no waiting: ``now`` is an argument, and ``line`` does the waiting. A worker needs seconds to start,
and what it submits is first seen here when its task defers for it, if at all. So a turn is given a little
before the end that is expected, and what its owner will submit is expected to end as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAD_SECONDS = (
    5.0  # that a turn comes before the expected end; a deferred task is on a worker again in some 3
)
START_SECONDS = 3.0  # from a turn to the submission, where there is room
GUESS = 4.0  # seconds that a generation runs of which nothing is known; doubled where that was too short
MAX_GUESS = 60.0  # seconds
LONGEST = 300.0  # seconds without a turn, whatever is expected


@dataclass(kw_only=True, eq=False)
class _Run:
    """What takes room in the account's queue, or is about to."""

    since: float
    ends_at: float  # as expected, in epoch seconds; infinite where that must be seen
    is_promised: bool = False  # the room that it leaves, to one who had its turn


class SlotForecast:
    """The turns of one account's line."""

    def __init__(self) -> None:
        self._seen: dict[str, _Run] = {}  # by the generation's id
        self._unseen: list[_Run] = []  # of those who had their turn, the last of them last
        self._room = 0  # left by generations that ended, and given to nobody yet
        self._last = -math.inf
        self._guess = GUESS

    def begin(self, *, now: float) -> None:
        """Begin a line: somebody was just refused."""
        self._last = max(self._last, now)

    def due(self, *, now: float) -> float:
        """Return when the next turn is due, in epoch seconds."""
        if self._room:
            return now
        self._last = min(self._last, now)  # though the clock be set back
        ends = [run.ends_at for run in self._unpromised]
        expected = min(ends) - LEAD_SECONDS if ends else self._last + self._guess
        return min(expected, self._last + LONGEST)

    def take(self, *, now: float, usual_seconds: float | None) -> None:
        """Give a turn.

        :param usual_seconds: How long its generation will run, where that is known.
        """
        starts_at = now + START_SECONDS
        others = sorted(self._unpromised, key=lambda run: run.ends_at)
        if self._room:
            self._room -= 1
        elif others:
            before = others.pop(0)
            before.is_promised = True
            if before.ends_at < math.inf:
                starts_at = max(starts_at, before.ends_at)
        self._guess = max(GUESS, 0.75 * self._guess)
        if usual_seconds is None:
            usual_seconds = math.inf if others else self._guess
        self._unseen.append(_Run(since=now, ends_at=starts_at + usual_seconds))
        self._last = now

    def refuse(self) -> None:
        """Take the last turn back: its owner found no room."""
        self._guess = min(MAX_GUESS, 2 * self._guess)
        self._unseen = [run for run in self._unseen[:-1] if not run.is_promised]
        for run in self._seen.values():
            if run.is_promised:  # it runs longer than was expected
                run.is_promised, run.ends_at = False, math.inf

    def see(self, generation_id: str, *, since: float, usual_seconds: float | None) -> None:
        """Take note of a generation that runs.

        :param since: When it was submitted, in epoch seconds.
        :param usual_seconds: How long it will run, where that is known.
        """
        run = _Run(since=since, ends_at=since + (math.inf if usual_seconds is None else usual_seconds))
        earlier = [unseen for unseen in self._unseen if unseen.since <= since]
        if earlier:  # the last of these is this one, and those before it will not be seen
            run.is_promised = earlier[-1].is_promised
            late = run.ends_at - earlier[-1].ends_at
            self._unseen = self._unseen[len(earlier) :]
            if math.isfinite(late):  # and so will be those that begin when it ends
                for unseen in self._unseen:
                    unseen.ends_at += late
        self._seen[generation_id] = run

    def end(self, generation_id: str, *, is_awaited: bool) -> None:
        """Take note that a generation has ended.

        :param is_awaited: Whether anybody stands in the line for the room that it leaves.
        """
        run = self._seen.pop(generation_id, None)
        if run and is_awaited and not run.is_promised:
            self._room += 1

    @property
    def _unpromised(self) -> list[_Run]:
        return [run for run in (*self._seen.values(), *self._unseen) if not run.is_promised]
