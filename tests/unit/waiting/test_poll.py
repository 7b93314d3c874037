"""When a wait polls again, and when it ends: only at its deadline, or if waiting cannot help."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_modelscope import exceptions
from airflow_provider_modelscope.exceptions import (
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
    ModelScopeRetryableError,
    RateLimitedError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.protocol.body import ErrorDetail
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.waiting.poll import PollSchedule, end_of_wait

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC

ERRORS = [
    kind
    for kind in vars(exceptions).values()
    if isinstance(kind, type) and issubclass(kind, ModelScopeError) and kind.__module__ == exceptions.__name__
]
FINAL = [kind for kind in ERRORS if issubclass(kind, ModelScopeFinalError)]
RETRYABLE = [kind for kind in ERRORS if not issubclass(kind, ModelScopeFinalError)]


def generation(status: str, message: str = "", *images: str) -> Generation:
    error = ErrorDetail(message=message)
    return Generation(generation_id="42", status=status, output_images=images, error=error)


RUNNING = generation("PROCESSING")
DONE = generation("SUCCEED", "", "https://a.example/1.png")
FAILED = generation("FAILED", "boom")
MISSING = generation("FAILED", "task not found")
EMPTY = generation("SUCCEED")
GONE = ServiceUnavailableError("gone")


def schedule_of(*, seconds: float = 900, **arguments: Any) -> PollSchedule:
    return PollSchedule(
        "42", **{"submitted_at": START, "end_time": START + seconds, "poll_interval": 15, **arguments}
    )


def gaps(ages: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(ages)]


def polls(schedule: PollSchedule, polled: Generation | ModelScopeError) -> list[float]:
    """Return the ages of the polls until the wait gives up, if each of them returns the same."""
    ages = [0.0]
    while True:
        try:
            outcome = schedule.observe(polled, now=START + ages[-1])
        except GenerationTimeoutError:
            return ages
        assert isinstance(outcome, float)
        assert outcome > 0
        ages.append(ages[-1] + outcome)


def test_fast_polls_are_a_second_or_an_eighth_of_the_age_apart() -> None:
    ages = polls(schedule_of(seconds=48, fast_poll_until_age=10), RUNNING)
    assert ages[:11] == pytest.approx([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.125], abs=1e-3)
    for gap in gaps(ages[10:-1]):  # then as usual
        assert 4.5 <= gap <= 5.5


@pytest.mark.parametrize("poll_interval", [60, 15, 5, 1.5, 1, 0.1, 0, -5])
@pytest.mark.parametrize("age", [-3600, 0, 4, 7.9, 20, 500])  # -3600: the clock was set back
@pytest.mark.parametrize("fast_poll_until_age", [0, 8])
@pytest.mark.parametrize("polled", [RUNNING, EMPTY, GONE], ids=["running", "empty", "error"])
def test_delay_is_between_a_second_and_the_interval(
    polled: Any, fast_poll_until_age: float, age: float, poll_interval: float
) -> None:
    schedule = schedule_of(poll_interval=poll_interval, fast_poll_until_age=fast_poll_until_age)
    outcome = schedule.observe(polled, now=START + age)
    assert isinstance(outcome, float)
    assert 1 <= outcome <= max(1, poll_interval)


def test_last_poll_is_at_the_deadline() -> None:
    schedule = schedule_of(seconds=100)
    assert schedule.observe(RUNNING, now=START + 97.5) == 2.5
    assert schedule.observe(GONE, now=START + 99.75) == 0.25
    with pytest.raises(GenerationTimeoutError):
        schedule.observe(RUNNING, now=START + 100)


@pytest.mark.parametrize("finished", [DONE, FAILED], ids=["SUCCEED", "FAILED"])
@pytest.mark.parametrize("age", [0, 99, 100, 5000])
def test_finished_generation_ends_the_wait_at_any_age(finished: Generation, age: float) -> None:
    assert schedule_of(seconds=100).observe(finished, now=START + age) is finished


@pytest.fixture
def durations(monkeypatch: pytest.MonkeyPatch) -> DurationHistory:
    """The durations that this process knows: none."""
    durations = DurationHistory()
    monkeypatch.setattr("airflow_provider_modelscope.waiting.poll.DURATIONS", durations)
    return durations


def took(duration_ms: float | None) -> Generation:
    return replace(DONE, duration_ms=duration_ms)


def test_wait_follows_durations_of_its_model_and_size(durations: DurationHistory) -> None:
    same: dict[str, Any] = {"model": "a/b", "size": "64x64"}
    for number in range(20):
        schedule = schedule_of(**same)
        schedule.observe(RUNNING, now=START + 39)
        schedule.observe(took(40_000 + 10 * number), now=START + 41)
    first = schedule_of(**same).observe(RUNNING, now=START + 22)
    assert isinstance(first, float)
    assert 13 <= first <= 15  # shortly before the fastest, or poll_interval
    [*before, _deadline] = polls(schedule_of(**same, seconds=45), RUNNING)
    assert sum(38 < age < 43 for age in before) >= 2, before
    unknown: list[dict[str, Any]] = [{**same, "model": "c/d"}, {**same, "size": "8x8"}, {"model": "a/b"}, {}]
    for other in unknown:
        assert 4.5 <= float(schedule_of(**other).observe(RUNNING, now=START + 22)) <= 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("duration_ms", "ran_at", "recorded"),
    [
        (5412.9, 4, 5.4129),  # the service's figure
        (5412.9, None, 5.4129),
        (5412.9, 6.2, 5.4129),  # within the tolerance of a second
        (None, 7, 7.5),  # between the last two polls
        (2000, 7, 7.5),  # it contradicts the polls
        (20_000, 7, 7.5),
        (-1, 7, 7.5),
        (math.nan, 7, 7.5),
        (None, None, None),  # it may have finished at any time
        (20_000, None, None),
    ],
)
def test_reported_duration_is_recorded_unless_polls_contradict(
    durations: DurationHistory, duration_ms: float | None, ran_at: float | None, recorded: float | None
) -> None:
    schedule = schedule_of(model="a/b", size="64x64")
    if ran_at is not None:
        schedule.observe(RUNNING, now=START + ran_at)
    schedule.observe(took(duration_ms), now=START + 8)
    assert durations.of("a/b", "64x64").usual == (recorded and pytest.approx(recorded))


def test_failed_generation_records_no_duration(durations: DurationHistory) -> None:
    schedule = schedule_of(model="a/b")
    schedule.observe(RUNNING, now=START + 1)
    schedule.observe(FAILED, now=START + 2)
    assert not len(durations)


def test_not_found_is_final_after_30_seconds() -> None:
    for age in (0, 10, 29.99):
        assert isinstance(schedule_of().observe(MISSING, now=START + age), float)
    assert schedule_of().observe(MISSING, now=START + 30) is MISSING


@pytest.mark.parametrize("status", ["PARTIAL_SUCCEEDED", "UNKNOWN", "PROCESSING"])
def test_images_are_taken_at_the_deadline_whatever_the_status(status: str) -> None:
    schedule = schedule_of(seconds=100)
    polled = generation(status, "", "https://a.example/1.png")
    assert isinstance(schedule.observe(polled, now=START + 99), float)
    assert schedule.observe(polled, now=START + 100) == DONE


def test_success_without_images_is_polled_again() -> None:
    assert polls(schedule_of(seconds=3, fast_poll_until_age=8), EMPTY) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", RETRYABLE)
def test_retryable_error_never_ends_a_wait_before_its_deadline(kind: type[ModelScopeError]) -> None:
    schedule = schedule_of(seconds=100)
    for age in (0, 20, 99.9):
        assert isinstance(schedule.observe(kind("gone"), now=START + age), float)
    assert schedule.observe(DONE, now=START + 100) is DONE


@pytest.mark.parametrize("kind", FINAL)
@pytest.mark.parametrize("age", [0, 5000])
def test_final_error_is_raised_at_once(kind: type[ModelScopeError], age: float) -> None:
    error = kind("no")
    with pytest.raises(kind) as caught:
        schedule_of().observe(error, now=START + age)
    assert caught.value is error


@pytest.mark.parametrize(
    ("retry_after", "age", "delay"),
    [
        (None, 0, 1),
        (0, 0, 1),
        (0.5, 0, 1),
        (7, 0, 7),
        (1, 10, 1.25),
        (300, 0, 300),
        (301, 0, 300),
        (1e9, 0, 300),
        (60, 880, 20),
    ],
)
def test_retry_after_is_honoured_up_to_5_minutes(retry_after: float | None, age: float, delay: float) -> None:
    error = RateLimitedError("slow down", retry_after=retry_after)
    assert schedule_of(fast_poll_until_age=math.inf).observe(error, now=START + age) == delay


@pytest.mark.parametrize(
    ("polled", "status"),
    [
        (RUNNING, "PROCESSING"),
        (EMPTY, "SUCCEED without images"),
        (generation("QUEUED", "no GPU\n is free"), "QUEUED (no GPU  is free)"),
        (generation("QUEUED", "x" * 5000), f"QUEUED ({'x' * 300})"),
        (generation(""), "without a status"),
        (MISSING, "not found"),
        (ServiceUnavailableError("gone", code=502), "unreachable (gone (code 502))"),
    ],
    ids=["running", "no images", "message", "long message", "no status", "not found", "error"],
)
def test_timeout_names_generation_status_and_deadline(polled: Any, status: str) -> None:
    schedule = schedule_of(seconds=10)
    assert schedule.last_status == "not polled yet"
    schedule.observe(generation("PENDING"), now=START + 9)
    assert schedule.last_status == "PENDING"
    with pytest.raises(GenerationTimeoutError) as caught:
        schedule.observe(polled, now=START + 10)
    assert schedule.last_status == status
    assert str(caught.value) == (
        f"The generation was {status} at its deadline, 2023-11-14 22:13:30 UTC. It may still finish: "
        "wait for its id again, which is free of charge (generation 42)"
    )
    assert caught.value.generation_id == "42"
    assert isinstance(caught.value, ModelScopeRetryableError)


@pytest.mark.parametrize(("last", "status"), [(RUNNING, "PROCESSING"), (GONE, "unreachable (gone)")])
def test_timeout_shows_the_last_message_seen(last: Any, status: str) -> None:
    schedule = schedule_of(seconds=10)
    for age, message in enumerate(("no GPU is free", "second in the queue", "")):
        schedule.observe(generation("QUEUED", message), now=START + age)
    with pytest.raises(GenerationTimeoutError) as caught:
        schedule.observe(last, now=START + 10)
    assert caught.value.message.startswith(
        f"The generation was {status} at its deadline, 2023-11-14 22:13:30 UTC; earlier: second in the queue."
    )


@pytest.mark.parametrize(
    ("polls", "is_unknown"),
    [
        ([RUNNING], False),
        ([GONE], True),
        ([MISSING], True),
        ([GONE, RUNNING], False),
        ([RUNNING, GONE], True),
    ],
    ids=["running", "error", "not found", "recovered", "lost"],
)
def test_timeout_tells_whether_the_status_is_known(polls: list[Any], is_unknown: bool) -> None:
    schedule = schedule_of(seconds=10)
    for polled in polls[:-1]:
        schedule.observe(polled, now=START + 5)
    with pytest.raises(GenerationTimeoutError) as caught:
        schedule.observe(polls[-1], now=START + 10)
    assert isinstance(caught.value, GenerationStatusUnknownError) == is_unknown


def test_wait_long_past_its_deadline_still_polls_once() -> None:
    schedule = PollSchedule("42", submitted_at=START, end_time=0, poll_interval=5)
    assert schedule.observe(DONE, now=START) is DONE
    with pytest.raises(GenerationTimeoutError, match="1970-01-01 00:00:00 UTC"):
        schedule.observe(RUNNING, now=START)


@pytest.mark.parametrize(
    ("timeout", "execution_timeout", "since", "end"),
    [
        (900, None, 0, 900),
        (900, None, 50, 950),
        (900, None, -50, 850),
        (900, 3600, 50, 950),
        (900, 600, 0, 600),
        (900, 600, 50, 600),
        (900, 900, 50, 900),
        (900, 30, 50, 30),
        (0, 30, 0, 0),
        (math.inf, 30, 0, 30),
        (math.inf, None, 0, 365 * 24 * 3600),
    ],
)
def test_wait_ends_with_its_timeout_or_the_execution_timeout(
    timeout: float, execution_timeout: float | None, since: float, end: float
) -> None:
    limit = None if execution_timeout is None else timedelta(seconds=execution_timeout)
    assert end_of_wait(timeout, limit, since=START + since, started_at=START) == START + end


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_log_shows_each_change_of_the_status_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    schedule = schedule_of()
    for polled in (generation("PENDING"), RUNNING, RUNNING, GONE, GONE, RUNNING, DONE):
        schedule.observe(polled, now=START + 1)
    assert lines(caplog) == [
        (logging.INFO, "Generation 42 is PENDING"),
        (logging.INFO, "Generation 42 is PROCESSING"),
        (logging.WARNING, "Generation 42 is unreachable (gone)"),
        (logging.INFO, "Generation 42 is PROCESSING"),
        (logging.INFO, "Generation 42 is SUCCEED"),
    ]


def test_errors_that_differ_in_the_request_id_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    schedule = schedule_of()
    for number in range(20):
        error = ServiceUnavailableError("gone", code=500, request_id=str(number))
        schedule.observe(error, now=START + number)
    assert lines(caplog) == [(logging.WARNING, "Generation 42 is unreachable (gone)")]
    with pytest.raises(GenerationTimeoutError, match=r"unreachable \(gone \(code 500, request id 19\)\)"):
        schedule.observe(error, now=START + 900)


def test_log_of_the_end_says_how_long_the_generation_took(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    schedule_of().observe(replace(DONE, duration_ms=14_300.0), now=START + 60)
    assert lines(caplog) == [(logging.INFO, "Generation 42 is SUCCEED after 14 s")]


def test_continued_wait_does_not_repeat_the_first_status(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    schedule = schedule_of(is_continued=True)
    for polled in (RUNNING, DONE):
        schedule.observe(polled, now=START + 1)
    assert lines(caplog) == [(logging.INFO, "Generation 42 is SUCCEED")]


def test_log_level_is_that_of_the_first_status_and_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    schedule = schedule_of(log_level=logging.DEBUG)
    for polled in (generation("PENDING"), RUNNING, GONE, DONE):
        schedule.observe(polled, now=START + 1)
    assert [level for level, _ in lines(caplog)] == [
        logging.DEBUG,
        logging.INFO,
        logging.WARNING,
        logging.DEBUG,
    ]


class TestClose:
    """The wait of a batch."""

    def test_the_first_poll_is_at_the_expected_end(self, durations: DurationHistory) -> None:
        durations.record("a/b", None, 6.0)
        wait = schedule_of(model="a/b", durations=durations, is_close=True)
        assert wait.usual_seconds == 6
        assert wait.first_delay(now=START) == 6
        assert wait.first_delay(now=START + 2) == 4

    def test_the_first_poll_is_at_the_deadline_at_the_latest(self, durations: DurationHistory) -> None:
        durations.record("a/b", None, 6.0)
        wait = schedule_of(model="a/b", durations=durations, is_close=True, seconds=4)
        assert wait.first_delay(now=START) == 4

    def test_polls_are_closer_than_those_of_a_single_task(self) -> None:
        durations = DurationHistory()
        for _ in range(3):
            durations.record("a/b", None, 6.0)
        delays = [
            schedule_of(model="a/b", durations=durations, is_close=is_close).observe(RUNNING, now=START + 6.1)
            for is_close in (True, False)
        ]
        assert delays[0] == pytest.approx(0.3)
        assert isinstance(delays[1], float)
        assert delays[1] >= 1

    def test_a_single_poll_teaches_how_long_it_took(self) -> None:
        for is_close in (True, False):
            durations = DurationHistory()
            wait = schedule_of(model="a/b", durations=durations, is_close=is_close)
            wait.observe(DONE, now=START + 10)
            assert durations.of("a/b", None).recent == ((9.0,) if is_close else ())
