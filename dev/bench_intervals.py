"""The schedule that learns beside fixed looks every 5 s: a simulation on the real code, without a clock.

``python -m dev.bench_intervals`` takes half a minute. For four kinds of generation times it counts looks and
seconds of lateness per generation, over the same generations as fixed looks, and prints the ratios.

Learned: after 20 generations of a model, over the 80 after them, in processes that each began with nothing
seen. "own looks": all that the schedule is told is between which of its looks a generation ended; "exact": it
is told the time, as the service often tells it. Targets: no more looks, half the lateness.

Nothing seen: every look is at the pace of 5 s, give or take its jitter, so it must be as good as fixed looks.
The jitter is chance: it moves each look by up to 5 % of a gap, and on average by nothing. What it may leave
over so many generations is two standard errors of the difference between both, taken generation by
generation. It is printed behind the ratio, and a ratio above 1 by no more than that meets the target.

At a poll_interval of 5 s no schedule has fewer looks than the fixed one: its k-th look comes at 5k seconds or
before, so whatever still runs at a fixed look has been looked at as often already. That is checked of each
generation, and what a quarter more looks buy stands beside it.

All seeds are fixed: the figures are the same in each run. With others "mixed" comes to a lateness of 0.47 to
0.51, the rest to within 0.02 of what is printed.
"""
# ruff: noqa: S311 - simulated times are no secrets

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable

from airflow_provider_modelscope.waiting.intervals import SeenTimes, Times, seconds_to_next_look

Draw = Callable[[random.Random], float]

FIXED = 5.0  # seconds between the looks compared with
LONGEST = 15.0  # seconds; the provider's own poll_interval
SPREAD = 0.15  # standard deviation of one model's times, as a part of their mean
WARM_UP = 20  # generations seen before any counts
COUNTED = 80  # generations after them
PROCESSES = 80
UNSEEN = 4000  # generations of unknown models

MOST_LOOKS, MOST_LATENESS = 1.0, 0.5  # the targets, as parts of the fixed looks' own


def around(median: float, spread: float) -> Draw:
    """Return a draw of times around a median, never negative, with a longer tail to the slow side."""
    sigma = math.sqrt(math.log1p(spread * spread))
    return lambda rng: median * math.exp(sigma * rng.gauss(0, 1))


def distributions(spread: float = SPREAD) -> dict[str, Draw]:
    one = {"short": around(6, spread), "middle": around(25, spread), "long": around(150, spread)}
    return {**one, "mixed": lambda rng: rng.choice(list(one.values()))(rng)}


class Sums:
    """A quantity of both schedules, summed over the same generations."""

    def __init__(self) -> None:
        self.generations = 0
        self.ours = self.fixed = self.squares = 0.0

    def add(self, ours: float, fixed: float) -> None:
        self.generations += 1
        self.ours += ours
        self.fixed += fixed
        self.squares += (ours - fixed) ** 2

    @property
    def ratio(self) -> float:
        return self.ours / self.fixed

    @property
    def noise(self) -> float:
        """Two standard errors of the ratio, the times given: of the difference, by generations."""
        variance = self.squares / self.generations - ((self.ours - self.fixed) / self.generations) ** 2
        return 2 * math.sqrt(self.generations * variance) / self.fixed


class Tally:
    """What looks and lateness came to."""

    def __init__(self) -> None:
        self.looks, self.lateness = Sums(), Sums()
        self.with_fewer_looks = 0  # generations

    def add(self, took: float, looks: int, seen_at: float) -> None:
        fixed_looks = math.ceil(took / FIXED)
        self.looks.add(looks, fixed_looks)
        self.lateness.add(seen_at - took, fixed_looks * FIXED - took)
        self.with_fewer_looks += looks < fixed_looks


def watch(times: Times, took: float, rng: random.Random, poll_interval: float) -> tuple[int, float, float]:
    """Return how many looks saw a generation finished, and when the last and the one before were."""
    looks, before, age = 0, 0.0, 0.0
    while age < took:
        before = age
        age += seconds_to_next_look(times, age=age, poll_interval=poll_interval, luck=rng.random())
        looks += 1
    return looks, age, before


def unseen(draw: Draw, *, generations: int = UNSEEN, poll_interval: float = LONGEST) -> Tally:
    """Return what it costs while nothing was seen."""
    tally, times = Tally(), Times()
    rng, luck = random.Random(1), random.Random(2)
    for _ in range(generations):
        took = draw(rng)
        looks, seen_at, _before = watch(times, took, luck, poll_interval)
        tally.add(took, looks, seen_at)
    return tally


def learned(
    draw: Draw,
    *,
    processes: int = PROCESSES,
    poll_interval: float = LONGEST,
    warm_up: int = WARM_UP,
    counted: int = COUNTED,
    is_told: bool = False,
) -> Tally:
    """Return what it costs after the warm-up.

    :param is_told: Whether the service says how long it took, or only the looks do.
    """
    tally = Tally()
    for seed in range(processes):
        rng, luck, seen = random.Random(seed), random.Random(f"luck {seed}"), SeenTimes()
        for number in range(warm_up + counted):
            took = draw(rng)
            looks, seen_at, before = watch(seen.of("a model"), took, luck, poll_interval)
            if is_told:
                seen.record("a model", took)
            else:
                seen.record("a model", seen_at, after=before)
            if number >= warm_up:
                tally.add(took, looks, seen_at)
    return tally


def print_row(kind: str, name: str, tally: Tally, verdict: str, *, with_noise: bool = False) -> None:
    cells = [
        f"{sums.ratio:5.2f}" + (f" ±{sums.noise:.3f}" if with_noise else " " * 7)
        for sums in (tally.looks, tally.lateness)
    ]
    print(f"{kind:20} | {name:6} | {cells[0]} | {cells[1]} | {verdict}", flush=True)


def main() -> int:
    """Print the table; return how many targets were missed."""
    missed = 0

    def verdict(is_met: bool) -> str:
        nonlocal missed
        missed += not is_met
        return "met" if is_met else "NOT met"

    print(
        f"The schedule beside fixed looks every {FIXED:g} s: ratios of looks and of lateness. Times around "
        f"6 s, 25 s, 150 s\nand a third of each, standard deviation {SPREAD:.0%}. Learned: from {WARM_UP} "
        f"generations on. poll_interval {LONGEST:g} s but where it is said.\n"
    )
    print("known                | times  |    looks     |   lateness   | target")
    for kind, is_told in (("learned, own looks", False), ("learned, exact", True)):
        for name, draw in distributions().items():
            tally = learned(draw, is_told=is_told)
            is_met = tally.looks.ratio <= MOST_LOOKS and tally.lateness.ratio <= MOST_LATENESS
            target = f"looks <= {MOST_LOOKS:g}, lateness <= {MOST_LATENESS:g}"
            print_row(kind, name, tally, f"{target}: {verdict(is_met)}")
    for name, draw in distributions().items():
        tally = unseen(draw)
        is_met = all(sums.ratio <= 1 + sums.noise for sums in (tally.looks, tally.lateness))
        target = "both <= 1 within the jitter's noise"
        print_row("nothing seen", name, tally, f"{target}: {verdict(is_met)}", with_noise=True)
    for name, draw in distributions().items():
        tally = learned(draw, poll_interval=FIXED)
        target = f"no generation with fewer looks, as proven: {verdict(not tally.with_fewer_looks)}"
        print_row(f"poll_interval {FIXED:g} s", name, tally, target)
    print(
        f"\nThe proof: where {FIXED:g} s is the longest gap, the k-th look comes at {FIXED:g}k s or before, "
        "so what still\nruns at a fixed look has been looked at as often already. No schedule has fewer."
    )
    return missed


if __name__ == "__main__":
    sys.exit(bool(main()))
