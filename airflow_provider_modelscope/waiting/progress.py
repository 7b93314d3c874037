"""Where a wait stands, as values and in the words of a log: no clock and no network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

MAX_NAMED = 3  # running generations that a line names
END_OF_TIME = 253_402_300_799.0  # epoch seconds of the last time that has a text, in the year 9999


def utc(seconds: float) -> str:
    """Return a time, given in epoch seconds, as text."""
    return datetime.fromtimestamp(min(seconds, END_OF_TIME), tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def rounded(seconds: float) -> str:
    """Return a duration as text, such as ``40 s``, ``3 min`` or ``2.5 h``."""
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A generation that runs.

    :param task: The task that waits for it, such as ``draw [2] of Dag postcards``; None if it is unknown.
    :param submitted_at: In epoch seconds.
    :param usual_seconds: How long it usually runs; None if that is unknown.
    """

    generation_id: str
    task: str | None = None
    submitted_at: float
    usual_seconds: float | None

    def progress(self, now: float) -> str:
        """Return its age, of what it usually takes if that is known: ``14 s of about 30 s``."""
        age = rounded(now - self.submitted_at)
        return f"{age} of about {rounded(self.usual_seconds)}" if self.usual_seconds else age

    def describe(self, now: float) -> str:
        """Return which generation it is, whose, and its progress."""
        task = f" (task {self.task})" if self.task else ""
        return f"generation {self.generation_id}{task}, {self.progress(now)}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a task in the queue of its account, as far as one triggerer knows.

    :param position: 1 for the next one.
    :param waiting: The number of tasks in the queue.
    :param seconds: About how long it still waits; None if that is unknown.
    :param running: The generations that occupy the account.
    """

    position: int
    waiting: int
    seconds: float | None
    running: Collection[Running]

    def is_news(self, earlier: Place | None) -> bool:
        """Return whether it is worth a line after an earlier place, None for none.

        It is if half of the queue before the task is gone, or if more is known. So a thousand tasks that wait
        log ten lines each, and not one for each that leaves the queue.
        """
        return (
            earlier is None
            or 2 * self.position <= earlier.position
            or (bool(self.running), self.seconds is not None)
            > (bool(earlier.running), earlier.seconds is not None)
        )

    def describe(self, now: float) -> str:
        """Return the place, and who occupies the account, as a line of a log."""
        wait = f", for about {rounded(self.seconds)}" if self.seconds and self.seconds >= 1 else ""
        named = [one.describe(now) for one in list(self.running)[:MAX_NAMED]]
        if rest := len(self.running) - len(named):
            named.append(f"{rest} more")
        holders = "; ".join(named) or (
            "nothing that this triggerer knows of. Check for tasks on workers, another triggerer and "
            "other clients with the same token"
        )
        return f"Queued at position {self.position} of {self.waiting}{wait}. Now running: {holders}"
