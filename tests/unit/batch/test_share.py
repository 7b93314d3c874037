"""The slots of an account: used as fully as the service allows, and shared with others."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from airflow_provider_modelscope.batch.share import (
    RAISE_AFTER,
    SEEK_OTHERS_EVERY,
    SOON,
    UNUSED_TURNS,
    AccountShare,
)
from airflow_provider_modelscope.exceptions import (
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.waiting.backoff import (
    DEFAULT_COOLDOWN,
    TURN_SECONDS,
    SubmitBackoff,
    next_turn,
)
from tests.unit.batch.builders import START

FULL = QueueFullError("full")
FAST = RateLimitedError("too fast")
AWAY = ServiceUnreachableError("away")


def share_of(concurrency: int | None = 1, **options: Any) -> AccountShare:
    return AccountShare(concurrency, **{"queue_timeout": 100.0, "now": START, **options})


def test_a_slot_is_used_at_once_and_then_no_other() -> None:
    share = share_of()
    assert share.submit_at(0) == START
    assert share.submit_at(1) == math.inf


def test_auto_starts_with_one_and_raises() -> None:
    share = share_of(None)
    assert share.submit_at(1) == math.inf
    for running in range(1, 6):
        share.accept(running, now=START)
        assert share.submit_at(running) == START
        assert share.submit_at(running + 1) == math.inf


def test_a_number_is_not_raised() -> None:
    share = share_of(3)
    for _ in range(2 * RAISE_AFTER):
        share.accept(3, now=START)
    assert share.submit_at(2) == START
    assert share.submit_at(3) == math.inf


@pytest.mark.parametrize("concurrency", [None, 5])
def test_a_refusal_shows_how_many_fit(concurrency: int | None) -> None:
    share = share_of(concurrency)
    for running in (1, 2):
        share.accept(running, now=START)
    share.refuse(FULL, 2, now=START)
    assert share.submit_at(1) == START
    assert share.submit_at(2) == math.inf


@pytest.mark.parametrize("concurrency", [None, 5])
def test_after_many_accepted_one_more_is_tried(concurrency: int | None) -> None:
    share = share_of(concurrency)
    share.accept(1, now=START)
    share.refuse(FULL, 1, now=START)
    for _ in range(RAISE_AFTER - 1):
        share.accept(1, now=START)
        assert share.submit_at(1) == math.inf
    share.accept(1, now=START)
    assert share.submit_at(1) == START
    assert share.submit_at(2) == math.inf


def test_a_slot_that_was_just_freed_is_tried_again_soon() -> None:
    share = share_of()
    share.accept(1, now=START)
    share.end(now=START + 5)
    share.refuse(FULL, 0, now=START + 5)
    assert share.submit_at(0) == START + 5 + SOON
    assert share.refused_since == START + 5
    share.accept(1, now=START + 6)
    assert share.refused_since is None


@pytest.mark.parametrize("error", [FULL, FAST])
def test_the_error_comes_after_the_queue_timeout(error: RateLimitedError) -> None:
    share = share_of(queue_timeout=100)
    share.refuse(error, 0, now=START)
    share.refuse(error, 0, now=START + 99)
    assert START + 99 < share.submit_at(0) <= START + 105
    with pytest.raises(RateLimitedError) as raised:
        share.refuse(error, 0, now=START + 100)
    assert raised.value is error


def test_the_timeout_begins_again_after_an_acceptance() -> None:
    share = share_of(queue_timeout=100)
    share.refuse(FULL, 0, now=START)
    share.accept(1, now=START + 90)
    share.end(now=START + 95)
    share.refuse(FULL, 0, now=START + 150)
    assert share.refused_since == START + 150


def test_a_resumed_wait_keeps_its_deadline_and_tries_at_once() -> None:
    share = share_of(queue_timeout=100, queued_at=START - 100)
    assert share.submit_at(0) == START
    with pytest.raises(QueueFullError):
        share.refuse(FULL, 0, now=START)


def test_a_cooldown_is_kept_whatever_runs() -> None:
    share = share_of(3)
    share.accept(1, now=START)
    share.refuse(FAST, 1, now=START)
    assert share.submit_at(1) >= START + DEFAULT_COOLDOWN
    assert share.submit_at(2) < math.inf  # the limit stays


def test_retry_after_is_honoured() -> None:
    share = share_of()
    share.refuse(RateLimitedError("too fast", retry_after=60), 0, now=START)
    assert share.submit_at(0) == START + 60


def test_a_service_that_never_responded_is_given_up_soon() -> None:
    share = share_of()
    for _ in range(2):
        share.refuse(AWAY, 0, now=START)
    with pytest.raises(ServiceUnreachableError):
        share.refuse(AWAY, 0, now=START)


def test_a_service_that_responded_is_waited_for() -> None:
    share = share_of()
    share.accept(1, now=START)
    for second in range(90):
        share.refuse(AWAY, 0, now=START + second)
    with pytest.raises(ServiceUnreachableError):
        share.refuse(AWAY, 0, now=START + 100)


class Account:
    """A simulated account with one slot: a batch and others use it. Time is a number."""

    def __init__(self, *, duration: float, others: int) -> None:
        self.duration = duration
        self.free_at = START
        self.batch_done = self.others_done = self.refused = 0
        self.others = [
            (START + number, SubmitBackoff(queued_at=START, end_time=math.inf)) for number in range(others)
        ]

    def run(self, seconds: float) -> None:
        share, now, end = share_of(queue_timeout=1e9), START, START + seconds
        runs_until = math.inf
        while now < end:
            if runs_until <= now:
                share.end(now=now, usual_seconds=self.duration)
                runs_until = math.inf
                self.batch_done += 1
            batch_at = share.submit_at(0 if runs_until == math.inf else 1)
            if batch_at <= now:
                if self.free_at <= now:
                    self.free_at = runs_until = now + self.duration
                    share.accept(1, now=now)
                else:
                    self.refused += 1
                    share.refuse(FULL, 0, now=now)
            for index, (at, backoff) in enumerate(self.others):
                if at <= now and self.free_at <= now:
                    self.free_at = now + self.duration
                    self.others_done += 1
                    backoff = SubmitBackoff(queued_at=now, end_time=math.inf)
                    self.others[index] = (now + self.duration + 1, backoff)
                elif at <= now:
                    self.others[index] = (now + backoff.next_delay(FULL, now=now), backoff)
            now += 0.1


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(7)


@pytest.mark.parametrize("duration", [1.0, 5.0, 20.0])
def test_alone_the_account_is_busy(duration: float) -> None:
    account = Account(duration=duration, others=0)
    account.run(1200)
    assert account.batch_done * duration >= 0.85 * 1200
    assert account.refused == 0


@pytest.mark.parametrize("duration", [1.0, 5.0, 20.0])
def test_others_get_their_turn(duration: float) -> None:
    account = Account(duration=duration, others=3)
    account.run(1200)
    assert account.others_done >= 10
    assert account.batch_done >= 10
    assert (account.batch_done + account.others_done) * duration >= 0.7 * 1200  # the account is busy


def test_a_turn_that_nobody_uses_is_not_left_again() -> None:
    share = share_of()
    share.refuse(FULL, 0, now=START)  # somebody else runs a generation
    share.accept(1, now=START + 1)
    left, now = 0, START + 1
    for _ in range(100):
        now += 5
        share.end(now=now, usual_seconds=5)
        if (until := share.submit_at(0)) > now:
            left += 1
            assert until == next_turn(now) + TURN_SECONDS
            now = until
        share.accept(1, now=now)
        if now > START + SEEK_OTHERS_EVERY:
            break
    assert left == UNUSED_TURNS
