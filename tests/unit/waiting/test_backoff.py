"""When to submit again after a rejection."""

from __future__ import annotations

import pytest

from airflow_provider_modelscope.exceptions import QueueFullError, RateLimitedError, ServiceUnreachableError
from airflow_provider_modelscope.waiting.backoff import MAX_QUEUE_PAUSE, MAX_RETRY_AFTER, SubmitBackoff

NOW = 1_700_000_000.0
FULL = QueueFullError("enqueue failed: user queue is full.", code=500)


def queue_for(*, seconds: float = 3600, refused: bool = True) -> SubmitBackoff:
    return SubmitBackoff(since=NOW, end_time=NOW + seconds, refused=refused)


def test_the_delay_grows_and_varies() -> None:
    queue = queue_for()
    delays = [queue.after(FULL, now=NOW) for _ in range(50)]
    for delay, usual in zip(delays, [2, 4, 8, 15, 15], strict=False):
        assert 0.75 * usual <= delay <= 1.25 * usual
    assert max(delays) <= 1.25 * MAX_QUEUE_PAUSE
    assert len(set(delays)) > 40


@pytest.mark.parametrize(("retry_after", "seconds"), [(60, 60), (1e9, MAX_RETRY_AFTER)])
def test_retry_after_is_honoured(retry_after: float, seconds: float) -> None:
    assert queue_for().after(RateLimitedError("slow", retry_after=retry_after), now=NOW) == seconds


def test_the_last_attempt_is_at_the_deadline_and_says_who_waited() -> None:
    queue = queue_for(seconds=100)
    assert queue.after(FULL, now=NOW + 99.5) == 0.5
    says = r"queue is full\. It waited 100 s for room to submit, 6 more of this account .*queue_timeout"
    with pytest.raises(QueueFullError, match=says):
        queue.after(FULL, now=NOW + 100, waiting=7)


def test_only_a_service_that_responded_before_is_waited_for() -> None:
    gone = ServiceUnreachableError("no connection")
    never_seen = queue_for(refused=False)
    assert [never_seen.after(gone, now=NOW) for _ in range(2)] == [1.0, 1.0]
    with pytest.raises(ServiceUnreachableError):
        never_seen.after(gone, now=NOW)
    rejected = queue_for(refused=False)
    rejected.after(FULL, now=NOW)
    for _ in range(10):
        assert rejected.after(gone, now=NOW) > 1
