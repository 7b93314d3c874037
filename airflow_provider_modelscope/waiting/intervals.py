"""How long to sleep before the next poll of a generation.

The last durations of the same model and size show when it may finish. Poll densely around each of them, sleep
in between, and back off past the slowest. No clock and no network: the age is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

MIN_POLL_INTERVAL = 1.0  # seconds
PACE = 5.0  # seconds between polls while too few durations are known; more in two cases:
PACE_OF_POLL_INTERVAL = 1 / 3  # if the user asks for rare polls
PACE_OF_AGE = 0.02  # if it runs for long, and some lateness no longer matters

# Measured: check a change with python -m dev.bench_intervals.
DENSE = 0.4  # of the pace, near a known duration
NEAR_FROM, NEAR_UNTIL = 0.9, 1.2  # of a known duration
BACKOFF = 0.25  # of the time since the slowest known duration
JITTER = 0.1  # of a sleep, at most

# For a batch, whose account is idle until it knows of the end.
MIN_CLOSE_INTERVAL = 0.2  # seconds
CLOSE = 1 / 20  # of the usual duration, near the expected end
CLOSE_OF_AGE = 1 / 5  # of the age while no duration is known
EARLIEST = 0.7  # of the usual duration: an outlier that was faster does not bring polls forward

MIN_DURATIONS = 3  # fewer are not used
MAX_DURATIONS = 12  # per model and size; the oldest is dropped first
MAX_KEYS = 100  # pairs of model and size; the one recorded longest ago is dropped first
MAX_DURATION = 7200.0  # seconds
MAX_CORRECTION = 0.1  # of the age at the poll that found a generation finished


@dataclass(frozen=True)
class Durations:
    """The last durations of one model and size.

    :param recent: In seconds, oldest first.
    """

    recent: tuple[float, ...] = ()

    @property
    def usual(self) -> float | None:
        """The median of the last three, in seconds; None if none is known."""
        last = sorted(self.recent[-3:])
        return last[len(last) // 2] if last else None


class DurationHistory:
    """The last durations of each model and size. Its memory is bounded.

    The size None is that of requests without a size, which each model chooses itself.
    """

    def __init__(self) -> None:
        self._durations: dict[tuple[str | None, str | None], Durations] = {}

    def __len__(self) -> int:
        return len(self._durations)

    def to_json(self) -> list[list[Any]]:
        """Return the durations as JSON, for :meth:`from_json` in another process."""
        return [[*key, durations.recent] for key, durations in self._durations.items()]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the durations that :meth:`to_json` described. What it did not describe is left out."""
        history = cls()
        for entry in value if isinstance(value, list) else ():
            match entry:
                case [str(model), str() | None as size, [*recent]]:
                    for seconds in recent:
                        if isinstance(seconds, int | float):
                            history.record(model, size, seconds)
        return history

    def of(self, model: str | None, size: str | None) -> Durations:
        """Return what is known of a model and size; of an unknown model, None, it is nothing."""
        return self._durations.get((model, size), Durations())

    def record(self, model: str, size: str | None, seconds: float, *, after: float | None = None) -> None:
        """Add a duration. Zero, negative and infinite values, NaN and more than two hours are ignored.

        :param seconds: The duration, or the age at the poll that found the generation finished.
        :param after: In the second case, the age at the poll before: it finished between the two. What is
            recorded lies in the middle, but at most a tenth earlier than ``seconds``. So late polls do not
            teach later ones, and a single poll teaches little.
        """
        if not 0 < seconds <= MAX_DURATION:
            return
        if after is not None and 0 <= after <= seconds:
            seconds = max((after + seconds) / 2, (1 - MAX_CORRECTION) * seconds)
        recent = self._durations.pop((model, size), Durations()).recent
        self._durations[model, size] = Durations((*recent, seconds)[-MAX_DURATIONS:])
        if len(self._durations) > MAX_KEYS:
            del self._durations[next(iter(self._durations))]


def seconds_to_next_poll(durations: Durations, *, age: float, poll_interval: float, jitter: float) -> float:
    """Return how long to sleep before the next poll: at least 1 second, at most ``poll_interval``.

    :param age: Seconds since submission; negative if the clock was set back.
    :param poll_interval: The longest sleep in seconds; below 1 it is 1.
    :param jitter: A random number from 0 to 1, so that tasks that began together do not poll together.
    """
    longest = min(max(MIN_POLL_INTERVAL, poll_interval), MAX_DURATION)
    pace = min(longest, max(PACE, PACE_OF_POLL_INTERVAL * longest, PACE_OF_AGE * age))
    dense = DENSE * pace
    shorter = 1 - JITTER * jitter
    known = sorted(durations.recent)
    ahead = [duration for duration in known if age < NEAR_UNTIL * duration]
    if len(known) < MIN_DURATIONS:
        delay = pace * shorter
    elif not ahead:
        delay = max(dense, BACKOFF * (age - known[-1])) * shorter
    elif (start := NEAR_FROM * ahead[0]) > age:
        delay = start - age + dense * jitter
    else:
        delay = dense * shorter
    return max(MIN_POLL_INTERVAL, min(delay, longest * shorter))


def seconds_to_close_poll(durations: Durations, *, age: float, poll_interval: float) -> float:
    """Return how long to sleep before the next poll, if each second until the end is known costs a second.

    Sleep until the fastest of the last durations, then poll a twentieth of the usual one apart, and back off
    past the slowest. At least 0.2 seconds, at most ``poll_interval``.

    :param age: Seconds since submission; negative if the clock was set back.
    """
    if durations.usual is None:
        delay = CLOSE_OF_AGE * age
    elif age < (start := max(min(durations.recent), EARLIEST * durations.usual)):
        delay = start - age
    else:
        past = age - max(durations.recent)
        delay = max(CLOSE * durations.usual, BACKOFF * (past - (NEAR_UNTIL - 1) * durations.usual))
    return max(MIN_CLOSE_INTERVAL, min(delay, poll_interval))
