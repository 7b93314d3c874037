"""A turn comes when there is room, or soon will be: by simulation on the real rules."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.waiting.slots import LEAD_SECONDS, LONGEST, MAX_GUESS, SlotForecast

NOW = 1000.0  # later than anything here
STAND_BY, SETTLE, DEFERS_AT, TASKS = 6.0, 8.0, 9.5, 40


class World:
    """Forty tasks, one slot: those that are refused defer, stand in line, and come back to a worker.

    :param seconds: How long a generation runs.
    :param start: Seconds from a turn to its worker's first try, give or take a fifth.
    :param before: How long generations of that model ran before, if any were seen.
    :param is_seen: Whether the triggerer sees the generations that outlast their worker's first looks.
    """

    def __init__(
        self, seconds: float, *, start: float = 3.5, is_seen: bool = True, before: float | None = None
    ) -> None:
        self.seconds = seconds
        self.start = start
        self.is_seen = is_seen
        self.history = DurationHistory()
        for _ in range(20 if before else 0):
            self.history.record("a/b", None, before or 0)
        self.turns = SlotForecast()
        self.line: list[int] = []
        self.events: list[tuple[float, float, Callable[..., None], tuple[Any, ...]]] = []
        self.luck = random.Random(5)  # noqa: S311 - a simulation's
        self.ends: list[float] = [0.0]
        self.given = 0

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (when, self.luck.random(), what, arguments))

    def run(self) -> tuple[float, float]:
        """Return which part of the time the slot was busy, and how many turns an image needed."""
        self.submit(0.0, 0, 0.0)
        for task in range(1, TASKS):
            self.at(1 + SETTLE + self.luck.random(), self.join, task)
        while self.events and len(self.ends) <= TASKS:
            now, _, what, arguments = heapq.heappop(self.events)
            what(now, *arguments)
        return TASKS * self.seconds / self.ends[-1], self.given / (TASKS - 1)

    def submit(self, now: float, task: int, until: float) -> None:
        if now >= self.ends[-1]:
            self.ends.append(now + self.seconds)
            if self.is_seen and self.seconds > DEFERS_AT:
                self.at(now + DEFERS_AT, self.see, task, now)
        elif now < until:
            self.at(now + 1, self.submit, task, until)
        else:
            self.at(now + 1, self.refuse)
            self.at(now + 1 + SETTLE, self.join, task)

    def join(self, now: float, task: int) -> None:
        if not self.line:
            self.turns.begin(now=now)
        self.line = sorted([*self.line, task])
        self.give(now)

    def refuse(self, now: float) -> None:
        self.turns.refuse()
        self.give(now)

    def see(self, now: float, task: int, since: float) -> None:
        self.turns.see(str(task), since=since, usual_seconds=self.history.of("a/b", None).usual)
        self.at(since + self.seconds + 0.3, self.end, task)
        self.give(now)

    def end(self, now: float, task: int) -> None:
        self.history.record("a/b", None, self.seconds)
        self.turns.end(str(task), is_awaited=bool(self.line))
        self.give(now)

    def give(self, now: float) -> None:
        while self.line and self.turns.due(now=now) <= now:
            self.turns.take(now=now, usual_seconds=self.history.of("a/b", None).usual)
            self.given += 1
            there = now + self.start * self.luck.uniform(0.8, 1.2)
            self.at(there, self.submit, self.line.pop(0), there + STAND_BY)
        if self.line:
            self.at(self.turns.due(now=now) + 1e-6, self.give)


@pytest.mark.parametrize(
    ("world", "busy", "turns"),
    [
        (World(10), 0.92, 1.1),
        (World(25), 0.95, 1.2),
        (World(150), 0.98, 1.1),
        (World(25, start=15), 0.75, 1.4),
        (World(5), 0.7, 1.5),
        (World(150, is_seen=False), 0.75, 4),
        (World(10, before=2), 0.83, 1.7),
        (World(10, before=100), 0.8, 2.0),
    ],
    ids=[
        "10 s",
        "25 s",
        "150 s",
        "25 s, slow workers",
        "5 s: never seen here",
        "150 s, not seen here",
        "10 s, once 2 s",
        "10 s, once 100 s",
    ],
)
def test_an_account_is_busy_and_workers_do_not_come_for_nothing(
    world: World, busy: float, turns: float
) -> None:
    was_busy, needed = world.run()
    assert was_busy >= busy
    assert needed <= turns


def test_a_generation_that_is_known_gives_its_turn_ahead_of_its_end() -> None:
    turns = SlotForecast()
    turns.begin(now=100)
    turns.see("a", since=100, usual_seconds=50)
    assert turns.due(now=NOW) == 150 - LEAD_SECONDS


def test_one_that_is_not_known_gives_its_turn_when_it_ends() -> None:
    turns = SlotForecast()
    turns.begin(now=100)
    turns.see("a", since=100, usual_seconds=None)
    assert turns.due(now=NOW) == 100 + LONGEST
    turns.end("a", is_awaited=True)
    assert turns.due(now=NOW) == NOW


def test_the_room_of_one_generation_is_given_once() -> None:
    turns = SlotForecast()
    turns.see("a", since=100, usual_seconds=50)
    turns.take(now=145, usual_seconds=50)
    turns.end("a", is_awaited=True)
    assert turns.due(now=NOW) == 150 + 50 - LEAD_SECONDS
    turns.see("b", since=152, usual_seconds=50)
    assert turns.due(now=NOW) == 152 + 50 - LEAD_SECONDS


def test_several_slots_give_several_turns() -> None:
    turns = SlotForecast()
    turns.begin(now=100)
    for name, since in (("a", 100), ("b", 101), ("c", 102)):
        turns.see(name, since=since, usual_seconds=50)
    for end in (150, 151, 152):
        assert turns.due(now=NOW) == end - LEAD_SECONDS
        turns.take(now=end - LEAD_SECONDS, usual_seconds=50)
    assert turns.due(now=NOW) == 150 + 50 - LEAD_SECONDS


def test_who_finds_no_room_is_asked_again_when_the_end_was_seen() -> None:
    turns = SlotForecast()
    turns.see("a", since=100, usual_seconds=50)
    turns.take(now=145, usual_seconds=50)
    turns.refuse()
    assert turns.due(now=NOW) == 145 + LONGEST
    turns.end("a", is_awaited=True)
    assert turns.due(now=NOW) == NOW


def test_where_nothing_is_ever_seen_the_pauses_grow_to_a_minute() -> None:
    turns, now, pauses = SlotForecast(), 100.0, []
    turns.begin(now=now)
    for _ in range(8):
        pauses.append(turns.due(now=NOW) - now)
        now = turns.due(now=NOW)
        turns.take(now=now, usual_seconds=None)
        turns.refuse()
    assert pauses[0] < 10
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_GUESS


def test_what_nobody_waits_for_leaves_nothing_behind() -> None:
    turns = SlotForecast()
    for number in range(3):
        turns.see(str(number), since=100, usual_seconds=5)
        turns.end(str(number), is_awaited=False)
    assert turns.due(now=NOW) == -math.inf
