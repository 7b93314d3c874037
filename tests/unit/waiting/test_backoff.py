"""When to submit again after a rejection, and the cooldown of an account."""

from __future__ import annotations

import pytest

from airflow_provider_modelscope.exceptions import QueueFullError, RateLimitedError, ServiceUnreachableError
from airflow_provider_modelscope.protocol.messages import HttpResponse
from airflow_provider_modelscope.waiting.backoff import (
    MAX_QUEUE_DELAY,
    MAX_RETRY_AFTER,
    Cooldown,
    SubmitBackoff,
    give_up,
)

NOW = 1_700_000_000.0
FULL = QueueFullError("enqueue failed: user queue is full.", code=500)


def queue_for(*, seconds: float = 3600, rejected: bool = True) -> SubmitBackoff:
    return SubmitBackoff(queued_at=NOW, end_time=NOW + seconds, rejected=rejected)


def test_the_delay_grows_and_varies() -> None:
    queue = queue_for()
    delays = [queue.next_delay(FULL, now=NOW) for _ in range(50)]
    for delay, usual in zip(delays, [2, 4, 8, 15, 15], strict=False):
        assert 0.75 * usual <= delay <= 1.25 * usual
    assert max(delays) <= 1.25 * MAX_QUEUE_DELAY
    assert len(set(delays)) > 40


@pytest.mark.parametrize(("retry_after", "seconds"), [(60, 60), (1e9, MAX_RETRY_AFTER)])
def test_retry_after_is_honoured(retry_after: float, seconds: float) -> None:
    assert queue_for().next_delay(RateLimitedError("slow", retry_after=retry_after), now=NOW) == seconds


def test_the_last_attempt_is_at_the_deadline() -> None:
    queue = queue_for(seconds=100)
    assert queue.next_delay(FULL, now=NOW + 99.5) == 0.5
    with pytest.raises(QueueFullError, match=r"Nothing was created within 100 s\. .*queue_timeout"):
        queue.next_delay(FULL, now=NOW + 100)


def test_the_error_at_the_deadline_says_how_many_waited() -> None:
    full = QueueFullError("The queue is full")
    with pytest.raises(QueueFullError, match="within 100 s with 6 other tasks of this account in the queue"):
        give_up(full, waited=100, waiting=7)


def test_only_a_service_that_responded_before_is_waited_for() -> None:
    gone = ServiceUnreachableError("no connection")
    never_seen = queue_for(rejected=False)
    assert [never_seen.next_delay(gone, now=NOW) for _ in range(2)] == [1.0, 1.0]
    with pytest.raises(ServiceUnreachableError):
        never_seen.next_delay(gone, now=NOW)
    rejected = queue_for(rejected=False)
    rejected.next_delay(FULL, now=NOW)
    for _ in range(10):
        assert rejected.next_delay(gone, now=NOW) > 1


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
def test_a_cooldown_lasts_as_long_as_the_service_asks(
    status_code: int, headers: dict[str, str], seconds: float
) -> None:
    cooldown = Cooldown()
    cooldown.observe(HttpResponse(status_code=status_code, headers=headers), now=NOW)
    assert cooldown.seconds(NOW) == seconds
    assert cooldown.seconds(NOW + seconds) == 0


def test_a_later_response_does_not_shorten_the_cooldown() -> None:
    cooldown = Cooldown()
    cooldown.observe(HttpResponse(status_code=429, headers={"Retry-After": "60"}), now=NOW)
    cooldown.observe(HttpResponse(status_code=200, headers={}), now=NOW + 1)
    cooldown.observe(HttpResponse(status_code=429, headers={}), now=NOW + 2)
    assert cooldown.seconds(NOW + 10) == 50
