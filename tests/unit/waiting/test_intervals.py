"""Polls are dense when a generation is likely to finish, rare otherwise, and always within the bounds."""
# ruff: noqa: S311 - simulated durations are no secrets

from __future__ import annotations

import json
import math
import random
import statistics
from itertools import pairwise

import pytest

from airflow_provider_modelscope.waiting.intervals import (
    CLOSE,
    EARLIEST,
    MAX_DURATION,
    MAX_DURATIONS,
    MAX_KEYS,
    MIN_CLOSE_INTERVAL,
    MIN_DURATIONS,
    DurationHistory,
    Durations,
    seconds_to_close_poll,
    seconds_to_next_poll,
)
from dev.bench_intervals import DRAWS, Draw, around, simulate, wait

UNKNOWN = Durations()


def known(median: float, count: int = MAX_DURATIONS) -> Durations:
    draw, rng = around(median, 0.15), random.Random(median)
    return Durations(tuple(draw(rng) for _ in range(count)))


def polls(
    durations: Durations, *, until: float, poll_interval: float = 15, jitter: float = 0.5
) -> list[float]:
    """Return the ages of all polls up to an age."""
    ages = [0.0]
    while ages[-1] < until:
        delay = seconds_to_next_poll(durations, age=ages[-1], poll_interval=poll_interval, jitter=jitter)
        ages.append(ages[-1] + delay)
    return ages[1:]


def gaps(ages: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(ages)]


@pytest.mark.parametrize("poll_interval", [-1.0, 0.0, 1.0, 1.5, 5.0, 15.0, 60.0, 4000.0, 1e9, math.inf])
@pytest.mark.parametrize("count", [0, 1, MIN_DURATIONS, MAX_DURATIONS])
def test_a_sleep_is_a_second_at_least_and_poll_interval_at_most(count: int, poll_interval: float) -> None:
    rng = random.Random(count)
    for _ in range(20):
        durations = Durations(tuple(10 ** rng.uniform(-3, 3.8) for _ in range(count)))
        near = [share * duration for duration in durations.recent for share in (0.89, 0.91, 1.19, 1.21)]
        for age in (0.0, -3.0, 0.999, 7199.0, 1e7, 10 ** rng.uniform(-2, 5), *near):
            for jitter in (0.0, rng.random(), 1.0):
                delay = seconds_to_next_poll(durations, age=age, poll_interval=poll_interval, jitter=jitter)
                assert 1 <= delay <= max(1, min(poll_interval, MAX_DURATION)), (durations, age, jitter)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("median", [25, 150])
def test_no_poll_before_the_fastest_but_those_of_poll_interval(median: float, jitter: float) -> None:
    durations = known(median)
    start = 0.9 * min(durations.recent)
    early = [age for age in polls(durations, until=start, jitter=jitter) if age < start]
    assert len(early) <= start / 13.5


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("median", [6, 25, 150])
def test_polls_are_dense_around_known_durations(median: float, jitter: float) -> None:
    durations = known(median)
    fastest, slowest = min(durations.recent), max(durations.recent)
    ages = polls(durations, until=2 * slowest, jitter=jitter)
    first = next(age for age in ages if age >= 0.9 * fastest)
    assert first <= 0.9 * fastest + 2
    assert max(gaps([age for age in ages if fastest <= age <= 1.2 * slowest])) <= 2


@pytest.mark.parametrize("median", [6, 25, 150])
def test_polls_back_off_past_the_slowest_to_poll_interval(median: float) -> None:
    durations = known(median)
    ages = polls(durations, until=1000)
    past = gaps([age for age in ages if age > max(durations.recent)])
    assert past == pytest.approx(sorted(past))
    assert past[-1] == pytest.approx(0.95 * 15)


def test_between_quick_and_slow_durations_polls_are_rare() -> None:
    both = Durations(known(6, 6).recent + known(150, 6).recent)
    ages = polls(both, until=170)
    assert sum(20 < age < 0.85 * min(both.recent[6:]) for age in ages) <= 6
    assert sum(130 < age < 170 for age in ages) >= 10


@pytest.mark.parametrize(
    "durations", [UNKNOWN, known(6), known(25), known(150)], ids=["unknown", "6 s", "25 s", "150 s"]
)
@pytest.mark.parametrize("poll_interval", [5, 15])
def test_tasks_that_began_together_do_not_poll_together(durations: Durations, poll_interval: float) -> None:
    rng = random.Random(1)
    delays = sorted(
        seconds_to_next_poll(durations, age=0, poll_interval=poll_interval, jitter=rng.random())
        for _ in range(1000)
    )
    assert len(set(delays)) > 990
    assert delays[950] - delays[50] > 0.05 * delays[500]


@pytest.mark.parametrize(("poll_interval", "pace"), [(1, 1), (3, 3), (5, 5), (15, 5), (30, 10), (60, 20)])
def test_an_unknown_model_is_polled_every_5_s_or_third_of_interval(poll_interval: float, pace: float) -> None:
    sleeps = gaps(polls(UNKNOWN, until=100, poll_interval=poll_interval, jitter=0))
    assert sleeps == pytest.approx([pace] * len(sleeps))


def test_an_unknown_model_is_polled_ever_more_rarely() -> None:
    sleeps = gaps(polls(UNKNOWN, until=2000, poll_interval=30))
    assert sleeps == pytest.approx(sorted(sleeps))
    assert sleeps[-1] == pytest.approx(0.95 * 30)


def test_too_few_durations_are_not_used() -> None:
    few, enough = known(150, MIN_DURATIONS - 1), known(150, MIN_DURATIONS)
    assert polls(few, until=40) == polls(UNKNOWN, until=40) != polls(enough, until=40)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf, MAX_DURATION + 1, 1e308])
def test_an_impossible_duration_is_ignored(seconds: float) -> None:
    history = DurationHistory()
    history.record("a/b", None, seconds)
    assert len(history) == 0


@pytest.mark.parametrize(
    ("after", "recorded"),
    [
        (None, 20),
        (19, 19.5),  # the middle
        (18, 19),
        (10, 18),  # at most a tenth earlier
        (0, 18),
        *[(odd, 20) for odd in (-1.0, 20.1, math.nan, math.inf, -math.inf)],
    ],
)
def test_between_two_polls_the_middle_is_recorded(after: float | None, recorded: float) -> None:
    history = DurationHistory()
    history.record("a/b", "64x64", 20, after=after)
    assert history.of("a/b", "64x64").recent == pytest.approx((recorded,))


def test_the_usual_duration_is_the_median_of_the_last_three() -> None:
    assert UNKNOWN.usual is None
    assert Durations((5,)).usual == 5
    assert Durations((5, 7)).usual == 7
    assert Durations((1, 1, 9, 5, 7)).usual == 7


def test_models_and_sizes_do_not_learn_from_each_other() -> None:
    history = DurationHistory()
    history.record("a/b", "64x64", 25)
    history.record("a/b", None, 6)
    assert history.of("a/b", "64x64").recent == (25,)
    assert history.of("a/b", None).recent == (6,)
    for other in (("a/b", "8x8"), ("c/d", "64x64"), (None, None)):
        assert history.of(*other) == UNKNOWN
    assert len(history) == 2


def test_history_keeps_few_durations_of_the_keys_used_last() -> None:
    history = DurationHistory()
    last = MAX_KEYS + 2
    for number in range(1, last + 1):
        history.record(f"model {number}", None, 25)
        history.record("always in use", None, number)
    assert len(history) == MAX_KEYS
    assert history.of("model 1", None) == UNKNOWN
    assert history.of("always in use", None).recent == tuple(range(last - MAX_DURATIONS + 1, last + 1))


@pytest.mark.parametrize(("before", "now"), [(150, 25), (150, 6), (25, 6), (6, 25), (25, 150), (6, 150)])
def test_a_service_that_became_slower_or_faster_is_found_out(before: float, now: float) -> None:
    history, rng, jitter = DurationHistory(), random.Random(3), random.Random(4)
    late = []
    for draw in [around(before, 0.15)] * 30 + [around(now, 0.15)] * 60:
        _, seconds = wait(history, draw(rng), jitter, is_exact=False, poll_interval=15)
        late.append(seconds)
    assert max(late) <= 15
    assert statistics.mean(late[42:]) <= 1.5


@pytest.mark.parametrize("is_exact", [False, True], ids=["from polls", "exact"])
@pytest.mark.parametrize("name", ["6 s", "25 s", "150 s"])
def test_known_durations_halve_lateness_for_few_more_polls(name: str, is_exact: bool) -> None:
    polls, late, fixed_polls, fixed_late = simulate(DRAWS[name], is_exact=is_exact, processes=8)
    assert polls <= 1.2 * fixed_polls
    assert late <= 0.5 * fixed_late


def test_a_short_poll_interval_halves_lateness_too() -> None:
    polls, late, fixed_polls, fixed_late = simulate(DRAWS["25 s"], poll_interval=5, processes=8)
    assert polls <= 1.6 * fixed_polls
    assert late <= 0.5 * fixed_late


def test_mixed_durations_are_found_sooner_than_by_fixed_polls() -> None:
    polls, late, fixed_polls, fixed_late = simulate(DRAWS["mixed"], processes=15)
    assert polls <= 1.3 * fixed_polls
    assert late <= 0.7 * fixed_late


@pytest.mark.parametrize("name", DRAWS)
def test_the_first_generations_are_no_later_than_by_fixed_polls(name: str) -> None:
    polls, late, fixed_polls, fixed_late = simulate(DRAWS[name], warm_up=0, counted=12, processes=25)
    assert polls <= 1.2 * fixed_polls
    assert late <= fixed_late


@pytest.mark.parametrize(
    ("draw", "polls_of_fixed", "lateness_of_fixed"),
    [
        (around(2, 0.15), 1.2, 0.4),
        (around(25, 0.4), 1.6, 0.5),
        (around(600, 0.15), 0.7, 1),
        (lambda rng: 12.0, 0.7, 0.4),
        (lambda rng: 240 ** rng.random(), 1.6, 1.3),
        (lambda rng: 1 + rng.expovariate(1 / 30), 1.8, 1),
    ],
    ids=["quick", "wide", "very long", "constant", "any duration", "memoryless"],
)
def test_other_distributions_cost_no_more_than_is_known(
    draw: Draw, polls_of_fixed: float, lateness_of_fixed: float
) -> None:
    polls, late, fixed_polls, fixed_late = simulate(draw, processes=6)
    assert polls <= polls_of_fixed * fixed_polls
    assert late <= lateness_of_fixed * fixed_late


def test_a_single_outlier_changes_little() -> None:
    usual = known(25)
    plain = len(polls(usual, until=35))
    for outlier in (1.0, 2.0, 3000.0):
        odd = Durations((*usual.recent[1:], outlier))
        assert abs(len(polls(odd, until=35)) - plain) <= 2


class TestClosePolls:
    """Of a batch, whose account is idle until it knows of the end."""

    @staticmethod
    def ages(durations: Durations, *, until: float, poll_interval: float = 15) -> list[float]:
        """Return the ages of all polls up to an age."""
        ages = [0.0]
        while ages[-1] < until:
            delay = seconds_to_close_poll(durations, age=ages[-1], poll_interval=poll_interval)
            ages.append(ages[-1] + delay)
        return ages[1:]

    @pytest.mark.parametrize("recent", [(), (1.0,), (5.0, 5.1, 4.9), (100.0, 3.0)])
    @pytest.mark.parametrize("age", [-5.0, 0.0, 3.0, 5.0, 1e6])
    @pytest.mark.parametrize("poll_interval", [0.0, 1.0, 15.0])
    def test_they_are_a_fifth_of_a_second_to_poll_interval_apart(
        self, recent: tuple[float, ...], age: float, poll_interval: float
    ) -> None:
        delay = seconds_to_close_poll(Durations(recent), age=age, poll_interval=poll_interval)
        assert MIN_CLOSE_INTERVAL <= delay <= max(MIN_CLOSE_INTERVAL, poll_interval)

    def test_there_is_none_before_the_fastest_known_duration(self) -> None:
        assert self.ages(Durations((5.2, 5.0, 5.1)), until=5)[0] == 5.0

    def test_one_fast_outlier_brings_them_forward_only_a_little(self) -> None:
        assert self.ages(Durations((5.0, 0.5, 5.0)), until=5)[0] == pytest.approx(EARLIEST * 5)

    @pytest.mark.parametrize("usual", [1.0, 5.0, 100.0])
    def test_around_the_end_they_are_a_twentieth_apart(self, usual: float) -> None:
        ages = self.ages(Durations((usual,)), until=1.2 * usual, poll_interval=1000)
        assert max(gaps(ages)) == pytest.approx(max(MIN_CLOSE_INTERVAL, CLOSE * usual))

    def test_they_back_off_past_the_slowest(self) -> None:
        apart = gaps(self.ages(Durations((5.0,)), until=300))
        assert apart == sorted(apart)
        assert apart[-1] == 15

    def test_an_unknown_duration_costs_few_polls(self) -> None:
        ages = self.ages(UNKNOWN, until=60)
        assert len(ages) <= 30
        assert max(gaps([age for age in ages if age < 10])) <= 2


class TestHistoryAsJson:
    def test_another_process_goes_on_with_it(self) -> None:
        history = DurationHistory()
        history.record("a/b", None, 5.0)
        history.record("a/b", None, 6.0)
        history.record("c/d", "64x64", 7.5)
        again = DurationHistory.from_json(json.loads(json.dumps(history.to_json())))
        assert again.of("a/b", None) == Durations((5.0, 6.0))
        assert again.of("c/d", "64x64") == Durations((7.5,))

    @pytest.mark.parametrize(
        "value",
        [
            None,
            7,
            "a",
            {},
            [7, None, [], ["a/b"], ["a/b", 5, [1]], [None, None, [1]], ["a/b", None, 5], ["a/b", None, "12"]],
            [["a/b", None, ["x", None, -1, 0, math.nan, math.inf, 1e9]]],
        ],
        ids=str,
    )
    def test_anything_else_is_left_out(self, value: object) -> None:
        assert len(DurationHistory.from_json(value)) == 0
