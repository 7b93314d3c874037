"""When a slot is granted: rule by rule, then in the simulation of a busy account."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from airflow_provider_modelscope.waiting.slots import (
    LEAD_MARGIN,
    LONGEST_INTERVAL,
    MAX_INTERVAL,
    MAX_LEAD,
    MIN_INTERVAL,
    MIN_LEAD,
    SlotForecast,
)
from dev.bench_slots import (
    BUSY,
    BUSY_SLOW,
    BUSY_SLOWER,
    ON_WORKERS,
    SLOW,
    SLOWER,
    WORST,
    Case,
    measure,
)

NOW = 1000.0


def forecast(*, granted_at: float = NOW, **usual_seconds: float | None) -> SlotForecast:
    """Return a forecast after its first grant, with generations that were submitted at the same time."""
    slots = SlotForecast()
    slots.grant(granted_at)
    for generation_id, usual in usual_seconds.items():
        slots.generation_started(generation_id, submitted_at=granted_at, usual_seconds=usual)
    return slots


def test_first_slot_is_due_at_once() -> None:
    assert SlotForecast().slot_due(NOW) <= NOW


def test_slot_is_due_shortly_before_the_expected_end() -> None:
    assert forecast(a=50).slot_due(NOW) == NOW + 50 - MIN_LEAD


@pytest.mark.parametrize(
    ("start_seconds", "lead"),
    [
        ([40, 38, 45, 60, 42], 38 + LEAD_MARGIN),
        ([90, 2, 40, 40, 40, 40, 40], 40 + LEAD_MARGIN),
        ([1.0], MIN_LEAD),
        ([3600.0], MAX_LEAD),
    ],
)
def test_lead_is_learned_from_the_last_tasks_that_returned(start_seconds: list[float], lead: float) -> None:
    slots = SlotForecast()
    for seconds in start_seconds:
        slots.reject(seconds)
    slots.generation_started("a", submitted_at=NOW + 1000, usual_seconds=LONGEST_INTERVAL)
    assert slots.slot_due(NOW + 1000) == NOW + 1000 + LONGEST_INTERVAL - lead


def test_memory_is_bounded_with_and_without_rejections() -> None:
    slots = SlotForecast()
    size = len(pickle.dumps(slots))
    for number in range(20_000):  # images that no triggerer sees
        slots.grant(slots.slot_due(NOW + 4 * number))
    assert len(pickle.dumps(slots)) < size + 50
    for _ in range(20_000):
        slots.reject(3.0)
    assert len(pickle.dumps(slots)) < size + 100


def test_first_slot_waits_for_a_known_generation() -> None:
    slots = SlotForecast()
    slots.generation_started("a", submitted_at=NOW, usual_seconds=50)
    assert slots.slot_due(NOW) == NOW + 50 - MIN_LEAD


def test_slot_waits_for_the_end_of_an_unknown_duration() -> None:
    slots = forecast(a=None)
    assert slots.slot_due(NOW) == NOW + LONGEST_INTERVAL
    slots.generation_ended("a")
    assert slots.slot_due(NOW + 30) == NOW + 30


def test_end_of_a_generation_frees_one_slot() -> None:
    slots = forecast(a=None, b=None)
    slots.generation_ended("a")
    slots.grant(NOW + 30)
    assert slots.slot_due(NOW + 30) == NOW + 30 + LONGEST_INTERVAL


def test_slot_granted_ahead_is_not_granted_again_at_the_end() -> None:
    slots = forecast(a=50)
    slots.grant(NOW + 45)
    slots.generation_ended("a")
    assert slots.slot_due(NOW + 51) == NOW + 45 + MIN_INTERVAL > NOW + 48
    slots.generation_started("b", submitted_at=NOW + 50, usual_seconds=50)
    assert slots.slot_due(NOW + 60) == NOW + 100 - MIN_LEAD


def test_each_of_several_slots_is_granted_ahead() -> None:
    slots = forecast(a=50, b=60, c=70)
    for end in (50, 60, 70):
        due = slots.slot_due(NOW + 10)
        assert due == NOW + end - MIN_LEAD
        slots.grant(due)
    assert slots.slot_due(NOW + 70) == NOW + 70 - MIN_LEAD + LONGEST_INTERVAL


def test_slot_rejected_ahead_is_granted_again_at_the_end() -> None:
    slots = forecast(a=50)
    slots.grant(NOW + 45)
    slots.reject(2.0)
    assert slots.slot_due(NOW + 55) == NOW + 45 + LONGEST_INTERVAL
    slots.generation_ended("a")
    assert slots.slot_due(NOW + 80) == NOW + 80


def test_rejection_does_not_take_a_free_slot() -> None:
    slots = forecast(a=None)
    slots.generation_ended("a")
    slots.reject(2.0)
    assert slots.slot_due(NOW) == NOW


def test_grant_after_the_longest_interval_is_not_one_ahead_of_an_end() -> None:
    slots = forecast(a=200)
    slots.grant(NOW + LONGEST_INTERVAL)
    assert slots.slot_due(NOW + LONGEST_INTERVAL) == NOW + 200 - MIN_LEAD


def test_generation_that_is_seen_late_brings_no_slot_forward() -> None:
    slots = forecast(granted_at=NOW + 100)
    slots.generation_started("a", submitted_at=NOW, usual_seconds=None)
    assert slots.slot_due(NOW + 100) == NOW + 100 + LONGEST_INTERVAL


def test_intervals_double_with_rejections_and_shrink_with_grants() -> None:
    slots, now, intervals = SlotForecast(), NOW, []
    for is_rejected in [True] * 5 + [False] * 12:
        slots.grant(now)
        if is_rejected:
            slots.reject(2.0)
        intervals.append(slots.slot_due(now) - now)
        now += intervals[-1]
    assert intervals[0] == 2 * MIN_INTERVAL
    assert intervals[:5] == sorted(intervals[:5])
    assert max(intervals) == MAX_INTERVAL == intervals[4]
    assert intervals[4:] == sorted(intervals[4:], reverse=True)
    assert intervals[-1] == MIN_INTERVAL


def test_rejections_before_any_grant_cost_no_more_than_an_interval() -> None:
    slots = SlotForecast()
    for _ in range(50):  # after a restart, those that the former triggerer granted
        slots.reject(2.0)
    slots.grant(NOW)
    assert slots.slot_due(NOW) - NOW <= MAX_INTERVAL


def test_generation_that_never_ends_does_not_block_the_queue() -> None:
    slots = forecast(a=7200)
    assert slots.slot_due(NOW) == NOW + LONGEST_INTERVAL


def test_slots_are_not_saved_up() -> None:
    slots = forecast(a=5, b=5, c=5)
    for generation_id in "abc":
        slots.generation_ended(generation_id)
    slots.grant(NOW + 60)
    assert slots.slot_due(NOW + 60) == NOW + 60 + MIN_INTERVAL


def test_generation_that_two_tasks_wait_for_frees_one_slot() -> None:
    slots = forecast(a=None)
    slots.generation_started("a", submitted_at=NOW, usual_seconds=None)
    slots.generation_ended("a")
    slots.grant(NOW + 60)
    slots.generation_ended("a")
    assert slots.slot_due(NOW + 60) > NOW + 60


def test_clock_set_back_delays_a_slot_by_one_interval() -> None:
    slots = forecast(granted_at=NOW + 3600)
    assert slots.slot_due(NOW) == NOW + MIN_INTERVAL == slots.slot_due(NOW + 1)


@pytest.mark.parametrize(
    ("case", "busy", "rejected"),
    [
        (Case(name="5 s", seconds=5), 0.75, 5.5),
        (Case(name="10 s", seconds=10), 0.82, 9),
        (Case(name="30 s", seconds=30), 0.9, 9),
        (Case(name="120 s", seconds=120), 0.95, 9),
        (Case(name="30 s, two slots", seconds=30, slots=2), 0.88, 7),
        (Case(name="5 s, two triggerers", seconds=5, triggerers=2), 0.7, 7),
        (Case(name="10 s, two triggerers", seconds=10, triggerers=2), 0.8, 12),
        (Case(name="30 s, workers start in 6 to 10 s", seconds=30, start=(6, 10)), 0.83, 9),
        (SLOW, BUSY_SLOW, 15),
        (SLOWER, BUSY_SLOWER, 35),
        (replace(SLOW, triggerers=2), BUSY_SLOW, 20),
        (replace(SLOWER, triggerers=2), BUSY_SLOWER, 45),
        (Case(name="30 s, workers start in 15 s", seconds=30, start=(13, 17)), 0.87, 20),
        (Case(name="30 s, each tenth never ends", seconds=30, stuck=10), 0.65, 9),
        (Case(name="30 s, never polled in a triggerer", seconds=30, is_polled=False), 0.65, 10),
        (Case(name="10 s, was 100 s", seconds=10, usual=100), 0.82, 9),
        (Case(name="5 s, was 120 s", seconds=5, usual=120), 0.75, 5.5),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_account_is_busy_with_few_rejections(case: Case, busy: float, rejected: float) -> None:
    figures = measure(case, SlotForecast, runs=6)
    assert figures.busy >= busy
    assert figures.rejected <= rejected


def test_model_that_became_slow_occupies_few_workers() -> None:
    figures = measure(WORST, SlotForecast, runs=6)
    assert figures.busy >= BUSY
    assert figures.on_workers <= ON_WORKERS
