"""What a batch does next: the account is kept busy, and no row is done twice or left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_modelscope.batch.engine import (
    MAX_UNSTORED,
    Done,
    Engine,
    Poll,
    Submit,
    Wait,
    Work,
    is_rejection,
)
from airflow_provider_modelscope.batch.share import SOON, AccountShare
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    BrokenImageError,
    GenerationFailedError,
    GenerationRejectedError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    InvalidRequestError,
    ModelScopeError,
    QueueFullError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.waiting.intervals import CLOSE, DurationHistory
from tests.unit.batch.builders import START, submission, work

RUNNING = Generation(generation_id="1", status="PROCESSING")
DONE = Generation(generation_id="1", status="SUCCEED", output_images=("https://a.example/1.png",))


class Batch:
    """An engine, with a clock that only the test moves."""

    def __init__(self, count: int = 4, *, concurrency: int | None = 1, **options: Any) -> None:
        self.now = START
        self.rows: Iterator[Work] = iter([work(number) for number in range(1, count + 1)])
        self.share = AccountShare(concurrency, queue_timeout=100, now=self.now)
        self.engine = Engine(
            take=lambda: next(self.rows, None),
            share=self.share,
            durations=DurationHistory(),
            **options,
        )

    def next(self) -> Any:
        return self.engine.next_action(self.now)

    def submit(self) -> Work:
        """Submit the next row, and return it with its generation."""
        action = self.next()
        assert isinstance(action, Submit)
        sent = submission(str(action.work.row.number), at=self.now)
        self.engine.accept(action.work, sent, now=self.now)
        return action.work.submitted(sent)

    def end(self, one: Work, polled: Any = DONE) -> Any:
        """Report a poll of a generation."""
        return self.engine.observe(one, polled, now=self.now)


def test_without_rows_the_batch_is_done() -> None:
    assert Batch(0).next() == Done()


def test_rows_are_submitted_in_their_order_one_at_a_time() -> None:
    batch = Batch(3, concurrency=1)
    for number in (1, 2, 3):
        one = batch.submit()
        assert one.row.number == number
        assert isinstance(batch.next(), Wait)
        batch.end(one)
        batch.engine.finish(one)
    assert batch.next() == Done()


def test_the_next_row_is_submitted_before_the_last_is_stored() -> None:
    batch = Batch()
    first = batch.submit()
    assert batch.end(first) == DONE
    second = batch.submit()
    assert batch.engine.is_storing
    assert [one.row.number for one in batch.engine.open_work] == [2, 1]
    assert second.attempts == 1


def test_a_row_stays_the_next_one_until_it_is_reported() -> None:
    batch = Batch()
    assert batch.next() == batch.next() == Submit(work=work(1))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_slow_store_holds_up_the_submissions(concurrency: int) -> None:
    batch = Batch(20, concurrency=concurrency)
    unstored = []
    while isinstance(batch.next(), Submit):
        one = batch.submit()
        batch.end(one)
        unstored.append(one)
    assert len(unstored) == MAX_UNSTORED
    assert batch.next() == Wait(until=float("inf"))
    batch.engine.finish(unstored[0])
    assert isinstance(batch.next(), Submit)


def test_as_many_run_as_concurrency_says() -> None:
    batch = Batch(9, concurrency=3)
    for _ in range(3):
        batch.submit()
    assert isinstance(batch.next(), Wait)
    assert batch.engine.running_count == 3


def test_auto_raises_until_the_service_refuses() -> None:
    batch = Batch(20, concurrency=None)
    running = [batch.submit() for _ in range(5)]
    batch.share.refuse(QueueFullError("full"), len(running), now=batch.now)
    assert isinstance(batch.next(), Wait)
    batch.end(running[0])
    batch.submit()
    assert isinstance(batch.next(), Wait)


@pytest.mark.parametrize("slots", [1, 4])
def test_auto_is_refused_at_most_once_in_a_hundred(slots: int) -> None:
    batch = Batch(1000, concurrency=None)
    running: list[Work] = []
    refused, most = 0, 0
    while not isinstance(action := batch.next(), Done):
        if isinstance(action, Submit) and len(running) == slots:
            refused += 1
            batch.share.refuse(QueueFullError("full"), len(running), now=batch.now)
        elif isinstance(action, Submit):
            running.append(batch.submit())
            most = max(most, len(running))
        else:
            batch.now += 0.01
            one = running.pop(0)
            batch.end(one)
            batch.engine.finish(one)
    assert most == slots
    assert 1 <= refused <= 10


def test_a_due_poll_comes_before_a_submission() -> None:
    batch = Batch(concurrency=2)
    first = batch.submit()
    batch.now += 60
    assert batch.next() == Poll(work=first)
    assert batch.end(first, RUNNING) is None
    assert isinstance(batch.next(), Submit)


def test_polls_are_close_around_the_expected_end() -> None:
    batch = Batch(9)
    batch.engine.durations.record("a/b", None, 10.0)
    one = batch.submit()
    first = batch.next()
    assert first == Wait(until=START + 10)
    batch.now = first.until
    batch.end(one, RUNNING)
    assert batch.next().until == pytest.approx(batch.now + 10 * CLOSE)


def test_the_wait_is_until_the_first_of_all_polls() -> None:
    batch = Batch(concurrency=2)
    batch.engine.durations.record("a/b", None, 10.0)
    first = batch.submit()
    batch.now += 3
    batch.submit()
    assert batch.next() == Wait(until=START + 10)
    assert batch.engine.next_schedule.generation_id == "1"
    batch.now = START + 10
    assert batch.next() == Poll(work=first)


def test_a_generation_is_given_up_at_its_timeout() -> None:
    batch = Batch(timeout=50)
    one = batch.submit()
    batch.now += 49
    assert batch.end(one, RUNNING) is None
    assert batch.next() == Wait(until=START + 50)
    batch.now += 1
    with pytest.raises(GenerationTimeoutError):
        batch.end(one, RUNNING)
    assert not batch.engine.fail(one, GenerationTimeoutError("late"))
    assert isinstance(batch.next(), Submit)


def test_an_error_that_may_pass_does_not_end_a_wait() -> None:
    batch = Batch()
    one = batch.submit()
    assert batch.end(one, ServiceUnavailableError("away")) is None
    assert batch.engine.running_count == 1


def test_an_error_of_the_account_keeps_the_row_open() -> None:
    batch = Batch()
    one = batch.submit()
    with pytest.raises(AuthenticationError):
        batch.end(one, AuthenticationError("revoked"))
    assert batch.engine.open_work == [one]


@pytest.mark.parametrize("error", [GenerationFailedError, BrokenImageError, ImageGoneError], ids=str)
@pytest.mark.parametrize("item_attempts", [1, 2, 3])
def test_a_row_gets_a_new_generation_so_often(error: type[ModelScopeError], item_attempts: int) -> None:
    batch = Batch(1, item_attempts=item_attempts)
    for attempt in range(1, item_attempts + 1):
        one = batch.submit()
        assert one.attempts == attempt
        batch.end(one)
        assert batch.engine.fail(one, error("no image")) == (attempt < item_attempts)
    assert batch.next() == Done()


def test_a_row_that_failed_is_submitted_before_new_ones() -> None:
    batch = Batch(concurrency=2)
    first = batch.submit()
    batch.submit()
    batch.end(first)
    assert isinstance(batch.next(), Submit)  # the third row is taken
    batch.engine.fail(first, GenerationFailedError("no image"))
    assert batch.submit().row.number == 1
    assert batch.engine.running_count == 2


def test_a_lost_response_counts_as_a_generation() -> None:
    batch = Batch(1, item_attempts=2)
    assert batch.engine.fail(batch.next().work, SubmissionLostError("lost"))
    assert not batch.engine.fail(batch.next().work, SubmissionLostError("lost"))
    assert batch.next() == Done()


@pytest.mark.parametrize(
    "error", [RequestRejectedError, GenerationRejectedError, InvalidRequestError, ImageError], ids=str
)
def test_other_errors_are_final_for_a_row(error: type[ModelScopeError]) -> None:
    batch = Batch(1)
    one = batch.submit()
    batch.end(one)
    assert not batch.engine.fail(one, error("no"))
    assert batch.next() == Done()


def test_after_a_stop_what_runs_is_waited_for() -> None:
    batch = Batch(concurrency=2)
    one = batch.submit()
    batch.engine.stop()
    assert isinstance(batch.next(), Wait)
    batch.end(one)
    assert batch.next() == Wait(until=float("inf"))
    assert not batch.engine.fail(one, GenerationFailedError("no image"))  # and not paid again
    assert batch.next() == Done()


def test_a_resumed_generation_is_polled_at_once() -> None:
    batch = Batch()
    resumed = Work(row=work(9).row, fingerprint="f", submission=submission("9", at=START - 500))
    batch.engine.resume(resumed, attempt_started_at=START, now=START)
    assert batch.next() == Poll(work=resumed)
    assert batch.end(resumed) == DONE


@pytest.mark.parametrize(("started", "end"), [(START, START + 900), (START - 800, START + 100)])
def test_only_another_attempt_gives_the_whole_timeout_again(started: float, end: float) -> None:
    batch = Batch()
    resumed = Work(row=work(9).row, fingerprint="f", submission=submission("9", at=START - 850))
    batch.engine.resume(resumed, attempt_started_at=started, now=START)
    assert batch.engine.next_schedule.end_time == end


def test_resumed_generations_use_the_slots() -> None:
    batch = Batch(concurrency=1)
    resumed = Work(row=work(9).row, fingerprint="f", submission=submission("9", at=START))
    batch.engine.resume(resumed, attempt_started_at=START, now=START)
    assert batch.end(resumed, RUNNING) is None
    assert isinstance(batch.next(), Wait)


class TestSecondsLeft:
    @pytest.mark.parametrize(("age", "left"), [(0, 100), (30, 70), (100, 0), (150, 50)])
    def test_a_usual_duration_says_it(self, age: float, left: float) -> None:
        batch = Batch()
        batch.engine.durations.record("a/b", None, 100.0)
        batch.submit()
        assert batch.engine.seconds_left(START + age) == pytest.approx(left)

    def test_an_unknown_duration_is_the_age_again(self) -> None:
        batch = Batch()
        batch.submit()
        assert batch.engine.seconds_left(START + 20) == pytest.approx(20)

    def test_the_first_to_end_decides(self) -> None:
        batch = Batch(concurrency=2)
        batch.engine.durations.record("a/b", None, 10.0)
        batch.submit()
        batch.now += 4
        batch.submit()
        assert batch.engine.seconds_left(batch.now) == pytest.approx(6)

    def test_nothing_is_left_if_nothing_runs(self) -> None:
        assert Batch().engine.seconds_left(START) == 0


class TestCanSubmit:
    def test_a_free_slot_and_a_row(self) -> None:
        assert Batch().engine.can_submit(START)
        assert not Batch(0).engine.can_submit(START)

    def test_not_if_every_slot_is_used(self) -> None:
        batch = Batch()
        batch.submit()
        assert not batch.engine.can_submit(START)

    def test_a_slot_that_others_have_for_now_counts(self) -> None:
        batch = Batch()
        batch.share.refuse(QueueFullError("full"), 0, now=START)
        assert batch.engine.can_submit(START)
        assert batch.next() == Wait(until=START + SOON)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestRejectedError, True),
        (GenerationRejectedError, True),
        (UnknownModelError, False),
        (InvalidRequestError, False),
        (GenerationFailedError, False),
    ],
    ids=str,
)
def test_only_the_service_rejects(error: type[ModelScopeError], expected: bool) -> None:
    assert is_rejection(error("no")) is expected
