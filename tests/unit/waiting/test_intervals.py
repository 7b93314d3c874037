"""The schedule looks where images end, keeps both its bounds, and believes neither nonsense nor old news."""
# ruff: noqa: S311 - simulated times are no secrets

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import pytest

from airflow_provider_modelscope.waiting.intervals import (
    ENOUGH,
    HALF_LIFE,
    JITTER,
    KEPT_MODELS,
    SeenTimes,
    Times,
    seconds_to_next_look,
)
from dev.bench_intervals import Draw, around, distributions, learned, unseen, watch

DISTRIBUTIONS = distributions()


def seen(*seconds: float) -> Times:
    times = Times()
    for each in seconds:
        times.record(each)
    return times


def usual(median: float, count: int = 40) -> list[float]:
    rng, draw = random.Random(median), around(median, 0.15)
    return [draw(rng) for _ in range(count)]


def looks(times: Times, *, until: float, poll_interval: float = 15) -> list[float]:
    """Return at which ages it looks, without jitter."""
    ages = [0.0]
    while ages[-1] < until:
        delay = seconds_to_next_look(times, age=ages[-1], poll_interval=poll_interval, luck=0.5)
        ages.append(ages[-1] + delay)
    return ages[1:]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_seen_it_sleeps_a_second_at_least_and_poll_interval_at_most(seed: int) -> None:
    rng = random.Random(seed)
    times = Times()
    for _ in range([0, 1, ENOUGH - 1, ENOUGH, 11, 40, 250, 3000][seed]):
        seconds = rng.choice([10 ** rng.uniform(-3, 5), rng.gauss(20, 15), 5e-324, math.nan, -1.0, 7200.0])
        times.record(seconds, after=rng.choice([None, 0.0, seconds - 3, rng.uniform(0, 100), math.nan]))
    for poll_interval in (-1.0, 0.0, 1.0, 1.5, 5.0, 15.0, 60.0, 4000.0, 1e9, math.inf):
        ages = [0.0, -3.0, 1e-9, 0.999, 7199.0, 7200.0, 1e7, *(10 ** rng.uniform(-2, 5) for _ in range(40))]
        for age in ages:
            for luck in (0.0, rng.random(), 1.0):
                delay = seconds_to_next_look(times, age=age, poll_interval=poll_interval, luck=luck)
                assert 1 <= delay <= max(1, poll_interval), (age, luck, poll_interval)


@pytest.mark.parametrize("times", [Times(), seen(*usual(6)), seen(*usual(25), *usual(150))])
def test_a_later_age_never_has_an_earlier_next_look(times: Times) -> None:
    nexts = [
        age + seconds_to_next_look(times, age=age, poll_interval=15, luck=0.5)
        for age in (tenth / 10 for tenth in range(3000))
    ]
    assert all(earlier <= later + 1e-6 for earlier, later in pairwise(nexts))


@pytest.mark.parametrize("poll_interval", [5, 15])
@pytest.mark.parametrize("times", [Times(), seen(*usual(25))], ids=["unknown", "known"])
def test_a_thousand_tasks_that_began_together_do_not_look_together(
    times: Times, poll_interval: float
) -> None:
    rng = random.Random(1)
    delays = sorted(
        seconds_to_next_look(times, age=0, poll_interval=poll_interval, luck=rng.random())
        for _ in range(1000)
    )
    assert len(set(delays)) > 990
    assert delays[950] - delays[50] > 0.02 * delays[500]


@pytest.mark.parametrize(("poll_interval", "pace"), [(1, 1), (3, 3), (5, 5), (15, 5), (30, 10), (60, 20)])
def test_an_unknown_model_is_looked_at_at_a_third_of_poll_interval_or_every_five_seconds(
    poll_interval: float, pace: float
) -> None:
    ages = looks(Times(), until=100, poll_interval=poll_interval)
    assert [b - a for a, b in pairwise([0, *ages])] == pytest.approx([pace] * len(ages))


def test_an_unknown_model_that_takes_very_long_is_looked_at_ever_more_rarely() -> None:
    ages = looks(Times(), until=2000, poll_interval=30)
    gaps = [b - a for a, b in pairwise(ages)]
    assert gaps == pytest.approx(sorted(gaps), rel=0.01)
    assert gaps[-1] == pytest.approx(30, rel=0.05)


def test_a_few_times_are_not_believed_yet() -> None:
    assert looks(seen(*usual(150, ENOUGH - 1)), until=40) == looks(Times(), until=40)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_with_nothing_seen_it_is_as_good_as_fixed_looks(name: str) -> None:
    tally = unseen(DISTRIBUTIONS[name], generations=1000)
    assert tally.looks.ratio <= 1 + tally.looks.noise
    assert tally.lateness.ratio <= 1 + tally.lateness.noise


@pytest.mark.parametrize("is_told", [False, True], ids=["own looks", "exact"])
@pytest.mark.parametrize("name", ["short", "middle", "long"])
def test_once_twenty_were_seen_it_is_half_as_late_as_fixed_looks_with_no_more_of_them(
    name: str, is_told: bool
) -> None:
    tally = learned(DISTRIBUTIONS[name], processes=6, counted=40, is_told=is_told)
    assert tally.looks.ratio <= 1
    assert tally.lateness.ratio <= 0.5


def test_that_holds_for_a_mixture_of_quick_and_slow_too() -> None:
    tally = learned(DISTRIBUTIONS["mixed"], processes=30)
    assert tally.looks.ratio <= 1
    assert tally.lateness.ratio <= 0.5


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_between_the_tenth_and_the_twentieth_it_is_no_worse_than_fixed_looks(name: str) -> None:
    tally = learned(DISTRIBUTIONS[name], processes=15, warm_up=ENOUGH, counted=10)
    assert tally.looks.ratio <= 1
    assert tally.lateness.ratio <= 1


@pytest.mark.parametrize(
    "draw",
    [
        around(2, 0.15),
        around(25, 0.4),
        around(600, 0.15),
        lambda rng: 12.0,
        lambda rng: 240 ** rng.random(),
        lambda rng: 1 + rng.expovariate(1 / 30),
    ],
    ids=["quicker than the pace", "wide", "very long", "constant", "any size", "without memory"],
)
def test_where_there_is_little_to_learn_little_is_lost(draw: Draw) -> None:
    tally = learned(draw, processes=6, counted=60)
    assert tally.looks.ratio <= 1.04
    assert tally.lateness.ratio <= 1.1  # what the draw leaves to chance included


def test_where_poll_interval_leaves_nothing_to_save_a_quarter_more_looks_buy_half_the_lateness() -> None:
    tally = learned(DISTRIBUTIONS["middle"], processes=6, poll_interval=5)
    assert tally.with_fewer_looks == 0  # no schedule has fewer
    assert tally.looks.ratio <= 1.3
    assert tally.lateness.ratio <= 0.5


@pytest.mark.parametrize("median", [25, 150])
def test_before_the_fastest_time_seen_it_looks_no_more_often_than_it_must(median: float) -> None:
    times = usual(median)
    ages = looks(seen(*times), until=0.75 * min(times))
    assert len(ages) <= math.ceil(0.75 * min(times) / 15)


def test_it_looks_close_around_the_usual_times_and_wide_again_past_the_last() -> None:
    times = usual(150)
    ages = looks(seen(*times), until=500)

    def gap(start: float, end: float) -> float:
        return statistics.mean(after - age for age, after in pairwise(ages) if start <= age < end)

    assert gap(130, 170) < 2.5
    assert gap(1.4 * max(times), 490) > 1.9 * gap(130, 170)


def test_between_two_humps_it_waits() -> None:
    ages = looks(seen(*usual(6), *usual(150)), until=170)
    assert sum(20 < age < 95 for age in ages) <= 6
    assert sum(130 < age < 170 for age in ages) >= 10


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e6, 1e308])
def test_what_is_no_time_is_not_recorded(seconds: float) -> None:
    assert len(seen(seconds)) == 0


@pytest.mark.parametrize("after", [-1.0, 26.0, math.nan, math.inf, -math.inf])
def test_a_look_before_that_cannot_be_true_is_not_believed(after: float) -> None:
    odd = Times()
    for _ in range(20):
        odd.record(25.0, after=after)
    assert looks(odd, until=60) == looks(seen(*[25.0] * 20), until=60)


@pytest.mark.parametrize("outlier", [1.0, 2.0, 3000.0])
def test_a_single_outlier_changes_little(outlier: float) -> None:
    plain, odd = looks(seen(*usual(25)), until=35), looks(seen(*usual(25), outlier), until=35)
    assert abs(len(odd) - len(plain)) <= 2


@pytest.mark.parametrize(("before", "now"), [(150, 25), (150, 6), (25, 6), (6, 25), (25, 150)])
def test_a_service_that_became_quicker_or_slower_is_found_out_by_its_own_looks(
    before: float, now: float
) -> None:
    rng, luck, times = random.Random(3), random.Random(4), Times()
    late = []
    for draw in [around(before, 0.15)] * 200 + [around(now, 0.15)] * (20 + 2 * HALF_LIFE):
        took = draw(rng)
        _looks, seen_at, previous = watch(times, took, luck, 15)
        times.record(seen_at, after=previous)
        late.append(seen_at - took)
    assert max(late) <= 15
    assert statistics.mean(late[220:]) <= 2.5  # fixed looks: 2.5, and 3.4 around 6 s


def test_models_do_not_learn_from_each_other() -> None:
    kept = SeenTimes()
    for each in usual(150):
        kept.record("slow", each)
    assert looks(kept.of("quick"), until=30) == looks(Times(), until=30)
    assert looks(kept.of("slow"), until=30) == looks(seen(*usual(150)), until=30)


def test_only_the_models_seen_last_are_kept() -> None:
    kept = SeenTimes()
    for model in range(KEPT_MODELS + 50):
        kept.record(f"model {model}", 25.0)
        kept.record("always in use", 6.0)
    assert len(kept) == KEPT_MODELS
    assert len(kept.of("always in use")) == KEPT_MODELS + 50
    assert len(kept.of("model 0")) == 0


def test_to_ask_for_a_model_or_to_record_nonsense_of_it_keeps_nothing() -> None:
    kept = SeenTimes()
    assert len(kept.of("never seen")) == 0
    kept.record("nonsense", math.nan)
    assert len(kept) == 0


def test_a_table_is_made_once_for_many_looks_and_many_ends() -> None:
    times = seen(*usual(25, 200))
    tables = []
    for _ in range(40):
        times.record(25.0)
        tables.append(times.table(15.0))
    assert times.table(15.0) is tables[-1]
    assert len({id(table) for table in tables}) <= 10


def test_however_many_intervals_are_asked_for_few_tables_are_kept() -> None:
    times = Times()
    first = times.table(1.0)
    for poll_interval in range(2, 40):
        times.table(float(poll_interval))
    assert times.table(1.0) is not first


def test_the_jitter_is_small() -> None:
    early, late = (seconds_to_next_look(Times(), age=0, poll_interval=15, luck=luck) for luck in (0.0, 1.0))
    assert (early, late) == pytest.approx((5 * (1 - JITTER), 5 * (1 + JITTER)))
