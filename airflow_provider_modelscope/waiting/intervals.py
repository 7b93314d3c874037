"""When the next look at a generation is worth it, learned from the times seen: no clock, no network.

Each look costs a request; the time from an image's end to the next look is lateness. With ``gap(t)`` seconds
between looks at age ``t``, a generation costs the sum of ``running(t) / gap(t)`` in looks and that of
``ending(t) * gap(t) / 2`` in lateness: ``running`` is the part of all that still runs at that age, ``ending``
the part that ends there. One plus a multiple of the other is least where ``gap(t)`` is proportional to
``sqrt(running(t) / ending(t))``: one over the root of the hazard rate. So looks are rare before the fastest
time seen and between two humps, close around the usual times, and wide again past the last.

The factor is the smallest that costs no more looks than the pace of an unknown model would, unless lateness
is little before that. No gap is longer than ``poll_interval``. Where that is the pace itself, nothing can be
saved: the k-th look falls at ``k * poll_interval`` or before, so no schedule has fewer looks than the fixed
one. There a quarter more looks buy half the lateness.

The next look is where the sum of ``1 / gap`` from now on passes one, give or take a jitter. That sum is
tabulated when times were recorded (a millisecond), so that a look costs two searches in a short table.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from itertools import accumulate, pairwise

MIN_POLL_INTERVAL = 1.0  # seconds; the service is not asked faster
PACE = 5.0  # seconds between looks while a model is unknown, at least
PACE_OF_LONGEST = 1 / 3  # of poll_interval, where that is more: who asks for rare looks gets them
PACE_OF_AGE = 0.02  # of the age, where that is more: after 250 s a little lateness is no longer felt
JITTER = 0.05  # of a gap, both ways

ENOUGH = 10  # times seen before they are believed
HALF_LIFE = 30  # times after which one counts half, so that a service that changed is found out
KEPT_MODELS = 100  # those of which times were recorded last
MAX_SECONDS = 7200.0  # a longer time is not believed

BLUR = 1 / 3  # of what a step of age holds is passed on to the next: a time stands for 10 % around it
DOUBT = 0.5  # of a generation, beside those seen, that may end at any age
SPARE_LOOKS = 0.05  # beside the pace's: one that costs it a single look could otherwise not be seen sooner
EXTRA_LOOKS = 1.25  # of the pace's, where the pace is poll_interval itself
LITTLE = 0.4  # of the pace's lateness: below it looks are saved instead

# Ages in steps of 8 %: fine enough for the quickest model, few enough to tabulate at once.
_STEP = 1.08
_EDGES = [0.0, *(_STEP**step for step in range(math.ceil(math.log(MAX_SECONDS, _STEP)) + 1))]
_WIDTHS = [end - start for start, end in pairwise(_EDGES)]
_MIDDLES = [(start + end) / 2 for start, end in pairwise(_EDGES)]


class Times:
    """The generation times seen of one model, older ones fading, and the schedule that follows from them."""

    def __init__(self) -> None:
        self._recorded = 0
        self._last: deque[float] = deque(maxlen=3)
        self._ended = [0.0] * len(_WIDTHS)  # how many in each step of age
        self._untabulated = 0
        self._tables: dict[float, list[float]] = {}

    def __len__(self) -> int:
        return self._recorded

    @property
    def usual(self) -> float | None:
        """How many seconds the last ones took, where any was seen."""
        return sorted(self._last)[len(self._last) // 2] if self._last else None

    def record(self, seconds: float, *, after: float | None = None) -> None:
        """Remember a time. One that is no time (negative, NaN, infinite, hours long) is ignored.

        :param seconds: How long the generation took, or its age at the look that found it finished.
        :param after: Its age at the look before, where only that is known: it took longer than this. Without
            it a schedule that looks late would believe that generations end late.
        """
        if not 0 < seconds <= MAX_SECONDS:
            return
        seconds = max(MIN_POLL_INTERVAL, seconds)
        self._last.append(seconds)
        exact = 0.99 * seconds  # finer than any step
        start = after if after is not None and 0 <= after <= exact else exact
        ended = [0.5 ** (1 / HALF_LIFE) * count for count in self._ended]
        step = _step_at(start)
        while step < len(ended) and _EDGES[step] < seconds:
            within = min(seconds, _EDGES[step + 1]) - max(start, _EDGES[step])
            ended[step] += within / (seconds - start)
            step += 1
        self._ended = ended
        self._recorded += 1
        self._untabulated += 1
        if self._untabulated >= 0.1 * sum(ended):  # a tenth is new: many ends at once tabulate rarely
            self._untabulated = 0
            self._tables = {}

    def table(self, longest: float) -> list[float]:
        """Return how many looks are due by each age of the table, counted from submission.

        :param longest: The longest time between looks, in seconds.
        """
        table = self._tables.get(longest)
        if table is None:
            if len(self._tables) >= 8:  # nobody has so many intervals: do not keep them all
                self._tables = {}
            table = self._tables[longest] = self._tabulate(longest)
        return table

    def _tabulate(self, longest: float) -> list[float]:
        paces = [_pace(age, longest) for age in _MIDDLES]
        at_pace = _due(paces)
        if self._recorded < ENOUGH:
            return at_pace
        ending = _blurred(self._ended)
        left = _left(ending)
        running = _means(left)
        doubt = DOUBT / sum(self._ended)
        roots = [
            math.sqrt((still + doubt * still_any) * width / (end + doubt * _ENDING_ANY))
            for still, still_any, end, width in zip(running, _RUNNING_ANY, ending, _WIDTHS, strict=True)
        ]
        # Past everything seen it is as if nothing was.
        limits = [longest if still > 0.001 else pace for still, pace in zip(running, paces, strict=True)]

        looks_at_pace, seen_at_pace = _expected(at_pace, left)
        budget = SPARE_LOOKS + looks_at_pace * max(1.0, EXTRA_LOOKS * _pace(0, longest) / longest)
        took = sum(still * width for still, width in zip(running, _WIDTHS, strict=True))
        soon_enough = took + LITTLE * (seen_at_pace - took)

        def table(factor: float) -> list[float]:
            gaps = zip(limits, roots, strict=True)
            return _due([min(limit, max(MIN_POLL_INTERVAL, factor * root)) for limit, root in gaps])

        dense, sparse = 0.02, 50.0  # what the factor lies between, whatever was seen
        for _ in range(10):
            factor = math.sqrt(dense * sparse)
            looks, seen = _expected(table(factor), left)
            dense, sparse = (factor, sparse) if looks > budget or seen < soon_enough else (dense, factor)
        return table(sparse)


class SeenTimes:
    """The generation times that this process has seen, per model, of only so many models."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, Times] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def record(self, model: str, seconds: float, *, after: float | None = None) -> None:
        """Remember a time of a model, as :meth:`Times.record` does."""
        times = self._models.get(model) or Times()
        times.record(seconds, after=after)
        if not times:
            return
        self._models[model] = times
        self._models.move_to_end(model)
        if len(self._models) > KEPT_MODELS:
            self._models.popitem(last=False)

    def of(self, model: str) -> Times:
        """Return the times of a model; none where it was not seen. To read only; ask again for each look."""
        return self._models.get(model, _NOTHING_SEEN)


def seconds_to_next_look(times: Times, *, age: float, poll_interval: float, luck: float) -> float:
    """Return how long to sleep before the next look: at least 1 second, at most ``poll_interval``.

    :param times: What was seen of the model.
    :param age: Seconds since submission.
    :param poll_interval: The longest time between looks, in seconds; below 1 it is 1.
    :param luck: A random number from 0 to 1, the jitter: tasks that began together do not look together.
    """
    longest = min(MAX_SECONDS, max(MIN_POLL_INTERVAL, poll_interval))
    age = max(0.0, age)
    jitter = JITTER * (2 * luck - 1)
    if age < _EDGES[-1]:
        table = times.table(longest)
        step = _step_at(age)
        due = table[step] + (age - _EDGES[step]) * (table[step + 1] - table[step]) / _WIDTHS[step]
        due += 1 + jitter
        step = min(bisect_right(table, due), len(_WIDTHS)) - 1
        delay = _EDGES[step] + (due - table[step]) * _WIDTHS[step] / (table[step + 1] - table[step]) - age
    else:
        delay = _pace(age, longest) * (1 + jitter)
    if delay > longest:  # mirrored, not cut off, which would bring half of the tasks together
        delay = 2 * longest - delay
    elif delay < MIN_POLL_INTERVAL:
        delay = 2 * MIN_POLL_INTERVAL - delay
    return min(longest, max(MIN_POLL_INTERVAL, delay))


def _pace(age: float, longest: float) -> float:
    """Return the seconds between looks at a model of which nothing is known."""
    return min(longest, max(PACE, PACE_OF_LONGEST * longest, PACE_OF_AGE * age))


def _step_at(age: float) -> int:
    return bisect_right(_EDGES, age) - 1


def _due(gaps: list[float]) -> list[float]:
    """Return how many looks are due by each edge, from the seconds between them in each step."""
    return list(accumulate((width / gap for width, gap in zip(_WIDTHS, gaps, strict=True)), initial=0.0))


def _left(ending: list[float]) -> list[float]:
    """Return which part still runs at each edge; summed from the end, so that little keeps its digits."""
    return list(accumulate(reversed(ending), initial=0.0))[::-1]


def _means(at_edges: list[float]) -> list[float]:
    return [(start + end) / 2 for start, end in pairwise(at_edges)]


def _blurred(ended: list[float]) -> list[float]:
    """Return which part ends in each step, if all that were seen stand for their surroundings too."""

    def passed_on(held: float, count: float) -> float:
        return BLUR * held + count

    up = accumulate(ended, passed_on)
    down = list(accumulate(reversed(ended), passed_on))[::-1]
    both = [below + above - count for below, above, count in zip(up, down, ended, strict=True)]
    total = sum(both)
    return [count / total for count in both]


def _expected(due: list[float], left: list[float]) -> tuple[float, float]:
    """Return how many looks a generation needs on average, and its age at the one that sees its end.

    Each look but the first is made by those that still ran at the one before; and those that still ran are
    not seen before the next.
    """
    looks, seen = 1.0, 0.0
    still, looked_at = 1.0, 0.0
    for step, width in enumerate(_WIDTHS):
        per_look = width / (due[step + 1] - due[step])
        fall = (left[step] - left[step + 1]) / width
        for number in range(math.floor(due[step]) + 1, math.floor(due[step + 1]) + 1):
            within = (number - due[step]) * per_look
            age = _EDGES[step] + within
            seen += still * (age - looked_at)
            still, looked_at = left[step] - within * fall, age
            looks += still
        if still < 1e-4:  # nobody is left to wait for
            return looks, seen
    return looks, seen + still * (_EDGES[-1] - looked_at)


# What is doubted: a time of any size, each as likely as its double.
_ENDING_ANY = 1 / len(_WIDTHS)
_RUNNING_ANY = _means(_left([_ENDING_ANY] * len(_WIDTHS)))
_NOTHING_SEEN = Times()
