"""When the next queued task of an account may go to a worker to submit.

No clock: ``now`` is an argument. A worker needs seconds to start, so a slot is granted a little before a
running generation is expected to end. How long before is learned from the tasks that return because they
were rejected: Celery starts a task in 3 s, Kubernetes may need a minute. If nothing is known to run, because
fast generations finish on their worker and others run in another triggerer, slots are granted at intervals
that adapt to rejections.
"""

from __future__ import annotations

import math
from collections import deque

# Seconds. Check a change with python -m dev.bench_slots.
MIN_LEAD = 5.0  # before the expected end of a generation: a deferred task needs some 3 s to be on a worker
MAX_LEAD = 120.0
LEAD_MARGIN = 3.0  # a task that is early waits on its worker; one that is late leaves the slot unused
MIN_INTERVAL = 4.0  # between two submissions if nothing is known to run
MAX_INTERVAL = 30.0
LONGEST_INTERVAL = 120.0  # whatever is known to run: a generation may be reported to run forever


class SlotForecast:
    """Which slots of one account are free, or soon will be, as far as one event loop can know."""

    def __init__(self) -> None:
        self._expected_ends: dict[str, float] = {}  # of running generations; infinite: wait for the real end
        self._free_slots = 0  # 1, 0, or below 0 the slots that were granted before a generation ended
        self._interval = MIN_INTERVAL
        self._starts: deque[float] = deque(maxlen=5)  # seconds from a grant until its task was on a worker
        self._last_submission = -math.inf  # or the last grant, which is followed by one

    @property
    def running(self) -> int:
        """The number of generations that are known to run."""
        return len(self._expected_ends)

    def slot_due(self, now: float) -> float:
        """Return when to grant the next slot, in epoch seconds; ``now`` or earlier if one is due."""
        if self._free_slots > 0:
            return now
        self._last_submission = min(self._last_submission, now)  # the clock may have been set back
        if not self._expected_ends:
            return self._last_submission + self._interval
        return min(self._next_end() - self._lead, self._last_submission + LONGEST_INTERVAL)

    def grant(self, now: float) -> None:
        """Note that a task goes to a worker to submit."""
        if self._free_slots > 0:
            self._free_slots -= 1
        elif self._expected_ends and self._next_end() - self._lead <= now:
            self._free_slots -= 1
            first = min(self._expected_ends, key=self._expected_ends.__getitem__)
            self._expected_ends[first] = math.inf
        self._interval = max(MIN_INTERVAL, 0.75 * self._interval)
        self._last_submission = now

    def reject(self, start_seconds: float) -> None:
        """Note that a task which was granted a slot was rejected: the account's queue was still full.

        :param start_seconds: Seconds from the grant until the task was on a worker.
        """
        self._starts.append(start_seconds)
        self._interval = min(MAX_INTERVAL, 2 * self._interval)
        if self._free_slots < 0:
            self._free_slots += 1

    def generation_started(
        self, generation_id: str, *, submitted_at: float, usual_seconds: float | None
    ) -> None:
        """Note that a generation runs.

        :param submitted_at: When it was submitted, in epoch seconds.
        :param usual_seconds: How long it usually runs; None if that is unknown.
        """
        self._expected_ends[generation_id] = submitted_at + (usual_seconds or math.inf)
        self._last_submission = max(self._last_submission, submitted_at)

    def generation_ended(self, generation_id: str) -> None:
        """Note that a generation has ended, or that its end is no longer waited for."""
        if self._expected_ends.pop(generation_id, None) is not None:
            self._free_slots = min(self._free_slots + 1, 1)  # slots that no task waits for do not add up

    @property
    def _lead(self) -> float:
        start_seconds = min(self._starts, default=0.0)
        return min(max(MIN_LEAD, start_seconds + LEAD_MARGIN), MAX_LEAD)

    def _next_end(self) -> float:
        return min(self._expected_ends.values())
