"""When to submit again after a rejection, and how long an account in cooldown sends nothing."""

from __future__ import annotations

import pytest

from airflow_provider_modelscope.exceptions import QueueFullError, RateLimitedError, ServiceUnreachableError
from airflow_provider_modelscope.protocol.messages import HttpResponse
from airflow_provider_modelscope.waiting.backoff import (
    MAX_QUEUE_DELAY,
    MAX_RETRY_AFTER,
    TURN_EVERY,
    TURN_SECONDS,
    Cooldown,
    SubmitBackoff,
    next_turn,
)

NOW = 1_700_000_000.0
TURN = 1_700_000_010.0  # at a full quarter of a minute
SLOW = RateLimitedError("too many requests", code=429)
FULL = QueueFullError("enqueue failed: user queue is full.", code=500)
GONE = ServiceUnreachableError("no connection")


def backoff_for(*, seconds: float = 3600, rejected: bool = True) -> SubmitBackoff:
    return SubmitBackoff(queued_at=NOW, end_time=NOW + seconds, rejected=rejected)


def test_delay_grows_and_varies() -> None:
    backoff = backoff_for()
    delays = [backoff.next_delay(SLOW, now=NOW) for _ in range(50)]
    for delay, usual in zip(delays, [2, 4, 8, 15, 15], strict=False):
        assert 0.75 * usual <= delay <= 1.25 * usual
    assert max(delays) <= 1.25 * MAX_QUEUE_DELAY
    assert len(set(delays)) > 40


@pytest.mark.parametrize("second", range(15))
def test_long_waits_for_a_slot_end_in_a_turn(second: int) -> None:
    backoff = backoff_for()
    now = TURN + second
    delays = [backoff.next_delay(FULL, now=now) for _ in range(50)]
    assert max(delays[:2]) <= 1.25 * 4
    for delay in delays[3:]:
        assert TURN_SECONDS / 2 < delay < TURN_EVERY + 2 * TURN_SECONDS
        assert 0 < (now + delay) % TURN_EVERY < TURN_SECONDS
    assert len(set(delays)) > 40


def test_the_next_turn_is_a_full_quarter_of_a_minute() -> None:
    assert [next_turn(TURN + second) - TURN for second in (0, 0.1, 14.9, 15)] == [0, 15, 15, 15]


@pytest.mark.parametrize(("retry_after", "seconds"), [(60, 60), (1e9, MAX_RETRY_AFTER)])
def test_retry_after_is_honoured(retry_after: float, seconds: float) -> None:
    assert backoff_for().next_delay(RateLimitedError("slow", retry_after=retry_after), now=NOW) == seconds


def test_last_attempt_is_at_the_deadline() -> None:
    backoff = backoff_for(seconds=100)
    assert backoff.next_delay(FULL, now=NOW + 99.5) == 0.5
    with pytest.raises(QueueFullError, match=r"is full\. Nothing was created within 100 s\. Inc"):
        backoff.next_delay(FULL, now=NOW + 100)


def test_giving_up_without_a_wait_keeps_the_message() -> None:
    with pytest.raises(QueueFullError, match=r"^Queue full\.$"):
        backoff_for(seconds=0).next_delay(QueueFullError("Queue full."), now=NOW)


def test_only_a_service_that_responded_before_is_waited_for() -> None:
    never_responded = backoff_for(rejected=False)
    assert [never_responded.next_delay(GONE, now=NOW) for _ in range(2)] == [1.0, 1.0]
    with pytest.raises(ServiceUnreachableError):
        never_responded.next_delay(GONE, now=NOW)
    responded = backoff_for(rejected=False)
    responded.next_delay(FULL, now=NOW)
    for _ in range(10):
        assert responded.next_delay(GONE, now=NOW) > 1


@pytest.mark.parametrize(
    ("status_code", "headers", "seconds"),
    [
        (200, {}, 0),
        (503, {}, 0),
        (429, {}, 5),
        (429, {"Retry-After": "20"}, 20),
        (503, {"Retry-After": "20"}, 20),
        (200, {"Retry-After": "0"}, 0),
        (429, {"Retry-After": "86400"}, 300),
    ],
)
def test_cooldown_lasts_as_long_as_the_service_asks(
    status_code: int, headers: dict[str, str], seconds: float
) -> None:
    cooldown = Cooldown()
    cooldown.observe(HttpResponse(status_code=status_code, headers=headers), now=NOW)
    assert cooldown.seconds(NOW) == seconds
    assert cooldown.seconds(NOW + seconds) == 0


def test_later_response_does_not_shorten_the_cooldown() -> None:
    cooldown = Cooldown()
    cooldown.observe(HttpResponse(status_code=429, headers={"Retry-After": "60"}), now=NOW)
    cooldown.observe(HttpResponse(status_code=200, headers={}), now=NOW + 1)
    cooldown.observe(HttpResponse(status_code=429, headers={}), now=NOW + 2)
    assert cooldown.seconds(NOW + 10) == 50


def test_cooldown_is_limited_after_the_clock_was_set_back() -> None:
    cooldown = Cooldown()
    cooldown.observe(HttpResponse(status_code=429, headers={}), now=NOW)
    assert cooldown.seconds(NOW - 86400) == MAX_RETRY_AFTER
