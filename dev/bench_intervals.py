"""What known durations save: a simulation of the polls of many generations, without a clock.

``python -m dev.bench_intervals`` takes seconds. For each kind of durations it prints polls and seconds late
per generation: of a poll every 5 s, of the provider's rule after 20 generations of a model, and of the
statistical schedule that the rule replaced, over the same durations. "From polls": the service reports no
duration, so the rule knows only between which polls a generation finished. "Exact": the service reports it.

The targets: at most 0.15 s later than the replaced schedule, with at most 1.6 times its polls. A mix of 6, 25
and 150 s under the same model and size is shown, but is no target. The seeds are fixed: each run prints the
same.
"""
# ruff: noqa: S311 - simulated durations are no secrets

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable

from airflow_provider_modelscope.waiting.intervals import DurationHistory, seconds_to_next_poll
from dev.figures import Bench

Draw = Callable[[random.Random], float]

FIXED = 5.0  # seconds between the polls compared with
WARM_UP, COUNTED = 20, 80  # generations of one process
PROCESSES = 80
MORE_POLLS, MORE_SECONDS = 1.6, 0.15  # than the replaced schedule, at most

# Polls and seconds late of the replaced schedule: from polls, and exact.
REPLACED = {
    "6 s": ((1.63, 1.12), (1.25, 1.19)),
    "25 s": ((5.21, 0.96), (5.06, 0.96)),
    "150 s": ((29.01, 0.98), (29.24, 0.97)),
    "mixed": ((12.48, 1.37), (12.56, 1.36)),
}


def around(median: float, spread: float) -> Draw:
    """Return a log-normal draw of durations.

    :param spread: The standard deviation, as a share of the mean.
    """
    sigma = math.sqrt(math.log1p(spread * spread))
    return lambda rng: median * math.exp(sigma * rng.gauss(0, 1))


DRAWS = {"6 s": around(6, 0.15), "25 s": around(25, 0.15), "150 s": around(150, 0.15)}
SINGLE = tuple(DRAWS.values())
DRAWS["mixed"] = lambda rng: rng.choice(SINGLE)(rng)


def wait(
    history: DurationHistory, seconds: float, jitter: random.Random, *, is_exact: bool, poll_interval: float
) -> tuple[int, float]:
    """Poll one generation until it is finished and record its duration; return polls and seconds late."""
    durations = history.of("a/b", None)
    polls, age, ran_at = 0, 0.0, 0.0
    while age < seconds:
        ran_at = age
        age += seconds_to_next_poll(durations, age=age, poll_interval=poll_interval, jitter=jitter.random())
        polls += 1
    if is_exact:
        history.record("a/b", None, seconds)
    else:
        history.record("a/b", None, age, after=ran_at)
    return polls, age - seconds


def simulate(
    draw: Draw,
    *,
    is_exact: bool = False,
    poll_interval: float = 15.0,
    warm_up: int = WARM_UP,
    counted: int = COUNTED,
    processes: int = PROCESSES,
) -> tuple[float, float, float, float]:
    """Return polls and seconds late per generation: of the rule, then of fixed polls of the same ones.

    :param warm_up: Generations of each process that are not counted.
    """
    polls, late, fixed_polls, fixed_late = 0, 0.0, 0, 0.0
    for process in range(processes):
        history, rng, jitter = DurationHistory(), random.Random(process), random.Random(f"jitter {process}")
        for number in range(warm_up + counted):
            seconds = draw(rng)
            made = wait(history, seconds, jitter, is_exact=is_exact, poll_interval=poll_interval)
            if number >= warm_up:
                polls, late = polls + made[0], late + made[1]
                fixed = math.ceil(seconds / FIXED)
                fixed_polls, fixed_late = fixed_polls + fixed, fixed_late + fixed * FIXED - seconds
    total = processes * counted
    return polls / total, late / total, fixed_polls / total, fixed_late / total


def main() -> int:
    """Print the table; return how many targets were missed."""
    missed = 0
    bench = Bench("intervals", "python -m dev.bench_intervals")
    print("Polls and seconds late per generation\n")
    print("durations          | fixed 5 s    | this rule    | replaced     | target")
    for number, kind in enumerate(("from polls", "exact")):
        for name, draw in DRAWS.items():
            polls, late, fixed_polls, fixed_late = simulate(draw, is_exact=kind == "exact")
            old_polls, old_late = REPLACED[name][number]
            is_met = polls <= MORE_POLLS * old_polls and late <= old_late + MORE_SECONDS
            verdict = "none" if name == "mixed" else "met" if is_met else "MISSED"
            missed += verdict == "MISSED"
            pairs = ((fixed_polls, fixed_late), (polls, late), (old_polls, old_late))
            cells = " | ".join(f"{polls:5.2f} {late:5.2f} " for polls, late in pairs)
            print(f"{name:5}, {kind:11} | {cells} | {verdict}", flush=True)
            bench.add(f"{name}, {kind}", {"polls": polls / fixed_polls, "late": late / fixed_late})
    bench.write()
    return missed


if __name__ == "__main__":
    sys.exit(bool(main()))
