"""The work of a batch on one worker: the engine decides, this does it and records it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.batch.engine import Done, Engine, Poll, Submit, Wait, Work, is_rejection
from airflow_provider_modelscope.batch.share import AccountShare
from airflow_provider_modelscope.exceptions import (
    BrokenImageError,
    CreditLimitError,
    GenerationFailedError,
    GenerationRejectedError,
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelRetiredError,
    ModelScopeError,
    ModelScopeFinalError,
    ModelScopeRetryableError,
    QuotaExhaustedError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnreachableError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
    UnknownModelError,
)
from airflow_provider_modelscope.images.sources import inline_images
from airflow_provider_modelscope.json_values import integer, number
from airflow_provider_modelscope.manifest import Result, RowError, RunningRow
from airflow_provider_modelscope.metrics import count_row, count_spent, show_rows_left
from airflow_provider_modelscope.protocol.fallbacks import requests_by_model
from airflow_provider_modelscope.redaction import preview
from airflow_provider_modelscope.tasks.cost import check_limit, price_under_limit
from airflow_provider_modelscope.tasks.deferral import LEAST_PRICE, MIN_QUEUE_DEFERRAL
from airflow_provider_modelscope.tasks.fallbacks import submit_to_first
from airflow_provider_modelscope.tasks.storing import land_images
from airflow_provider_modelscope.waiting.backoff import RETRY_DELAY, SubmitBackoff, why_rejected
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.xcoms import Submission

if TYPE_CHECKING:
    from airflow_provider_modelscope.batch.state import BatchState
    from airflow_provider_modelscope.batch.working_set import WorkingSet
    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.waiting.poll import PollSchedule
    from airflow_provider_modelscope.xcoms import StoredImage

REPORT_SECONDS, REPORT_ROWS = 60.0, 50  # between two log lines, whichever comes first
STORE_ATTEMPTS = 3  # of an image, as the store may be away for a moment
MAX_IN_VAIN = 3  # rows in a row that may have been paid for in vain: then nothing more is paid for
RATE_ROWS = 50  # finished rows that the rate is measured with

_Outcome = tuple[Work, "Generation", "list[StoredImage] | BaseException"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The parameters of the operator that decide what a batch does.

    :param fallbacks: What ``read_fallbacks`` returned.
    :param concurrency: None is "auto".
    :param defer_after: Seconds for which no generation must be about to end, to leave the worker; None stays.
    """

    fallbacks: list[dict[str, Any]]
    concurrency: int | None
    item_attempts: int
    max_credit: float | None
    on_exhausted: str
    on_lost_response: str
    queue_timeout: float
    timeout: float
    poll_interval: float
    defer_after: float | None
    redraw: bool
    sidecar: bool
    embed_metadata: bool


@dataclass(frozen=True, kw_only=True)
class UntilFinished:
    """The batch goes on when this generation has finished."""

    schedule: PollSchedule


@dataclass(frozen=True, kw_only=True)
class UntilSlotFree:
    """The batch goes on when the account has a free slot."""

    queued_at: float


class BatchRun:
    """One part of the task: its rows, their state, and the account.

    :param rows: The rows, still without results.
    :param ti: The task instance.
    """

    def __init__(
        self,
        rows: WorkingSet,
        state: BatchState,
        policy: Policy,
        *,
        hook: ModelScopeHook,
        destination: Destination,
        ti: Any,
    ) -> None:
        self.stopped: tuple[str, ModelScopeError] | None = None  # what ended it before its last row, and why
        self.has_submitted = False
        self._rows = rows
        self._state = state
        self._policy = policy
        self._hook = hook
        self._destination = destination
        self._ti = ti
        self._max_tries: int | None = getattr(ti, "max_tries", None)  # grows when the task is cleared
        self._total = len(rows)
        self._spent = 0.0
        self._credit_is_known = True
        self._part_started_at = self._attempt_started_at = self._started_at = time.time()
        self._end: dict[str, bool] = {}
        self._sending: RunningRow | None = None
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._refusals: dict[str, dict[str, Any]] = {}  # the errors of models that cannot be used
        self._storing_count = 0
        self._not_fetched = self._not_answered = 0  # rows in a row
        self._logged_busy = False
        self._logged_error = ""
        self._finished_at: deque[float] = deque(maxlen=RATE_ROWS)
        self._reported = (time.time(), 0)
        self._counts = dict.fromkeys(rows.counts(), 0)

    # Start

    def load(
        self,
        value: Mapping[str, Any],
        results: Iterator[Mapping[str, Any]],
        *,
        queued_at: float | None = None,
    ) -> None:
        """Take over what earlier parts and attempts of the task have done.

        :param value: What ``running.json`` says.
        :param results: The results, the oldest first.
        :param queued_at: Since when the batch waits for a free slot, if it does.
        :raises SubmissionRecordError: if it cannot be read.
        """
        now = time.time()
        unfinished: dict[str, tuple[str, Submission]] = {}
        for result in results:
            self._apply(result, unfinished)
        self._counts = self._rows.counts()
        if value:
            log.info("%d of %d rows are done already", sum(self._counts.values()), self._total)
        is_same_attempt = value.get("attempt") == self._ti.try_number
        if is_same_attempt:
            self._attempt_started_at = number(value.get("attempt_started_at")) or now
            self._not_fetched = integer(value.get("not_fetched")) or 0
        # If a worker is killed right after its success, Airflow does not know of it, and retries the task.
        was_cleared = value.get("max_tries") != self._max_tries
        if value and not (value.get("has_succeeded") and was_cleared):
            self._spend(number(value.get("spent")))
            self._started_at = number(value.get("started_at")) or now
        self._engine = Engine(
            take=self._rows.take,
            share=AccountShare(
                self._policy.concurrency,
                queue_timeout=self._policy.queue_timeout,
                now=now,
                queued_at=queued_at,
            ),
            durations=DurationHistory.from_json(value.get("durations")),
            item_attempts=self._policy.item_attempts,
            timeout=self._policy.timeout,
            poll_interval=self._policy.poll_interval,
        )
        running = value.get("running")
        for entry in running if isinstance(running, list) else ():
            if row := RunningRow.from_json(entry):
                self._take_over(
                    row if is_same_attempt else replace(row, attempts=0),
                    was_cleared=was_cleared,
                    now=now,
                )
        for key, (fingerprint, submission) in unfinished.items():
            if work := self._rows.take_row(key, fingerprint):
                self._resume(work, submission, now=now)

    def _apply(self, result: Mapping[str, Any], unfinished: dict[str, tuple[str, Submission]]) -> None:
        """Keep the result of a row. A row that failed and may be tried again stays without one."""
        known = Result.from_json(result)
        if known is None or known.fingerprint is None:
            return
        was_cleared = result.get("max_tries") != self._max_tries
        unfinished.pop(known.key, None)
        if known.status == "stored":
            self._rows.clear_overwritten(known.key, known.fingerprint)
        is_of_attempt = result.get("attempt") == self._ti.try_number  # of an earlier part, which deferred
        if known.image and is_of_attempt and self._rows.has_changed(known.key, known.fingerprint):
            raise InvalidDestinationError(
                f"destination = {preview(self._destination.uri, 300)}: this attempt of the task has stored "
                f"{known.image.uri} for another request. Give each batch of a loop a folder of its own"
            )
        is_kept = known.status != "failed" or (result.get("is_final") and not was_cleared) or is_of_attempt
        if is_kept and not (self._policy.redraw and was_cleared):
            self._rows.set_result(known.key, known.fingerprint, result)
            return
        self._rows.clear_result(known.key, known.fingerprint)
        submission = _submission_of(known.model, known.generation_id, known.credit, result)
        if submission and result.get("is_unfinished"):
            unfinished[known.key] = (known.fingerprint, submission)

    def _take_over(self, row: RunningRow, *, was_cleared: bool, now: float) -> None:
        """Go on with a row that an earlier part was working on."""
        name = f"row {row.number} ({row.key})"
        work = self._rows.take_row(row.key, row.fingerprint or "")
        if row.generation_id is None:
            self._take_over_sent(row, work, name, was_cleared=was_cleared, now=now)
        elif work is None:
            log.warning(
                "Generation %s is paid for, but not used: %s has changed or is gone",
                row.generation_id, name,
            )  # fmt: skip
        elif submission := _submission_of(row.model, row.generation_id, row.credit, row.to_json()):
            self._resume(replace(work, attempts=row.attempts or 0), submission, now=now)

    def _resume(self, work: Work, submission: Submission, *, now: float) -> None:
        """Wait for a generation that is paid for."""
        log.info("Resuming generation %s of %s", submission.generation_id, _name(work))
        self._engine.resume(
            replace(work, submission=self._described(submission, work)),
            attempt_started_at=self._attempt_started_at,
            now=now,
        )

    def _described(self, submission: Submission, work: Work) -> Submission:
        """Return a submission with its request, as the XCom of a single task has it."""
        asked = work.row.request
        accepted = requests_by_model(asked, self._policy.fallbacks).get(submission.model, asked)
        asked_model = None if submission.model == asked.model else asked.model
        return replace(submission, asked_model=asked_model, request=accepted.summary())

    def _take_over_sent(
        self, row: RunningRow, work: Work | None, name: str, *, was_cleared: bool, now: float
    ) -> None:
        self._spend(row.credit)
        seconds = now - (row.sent_at or now)
        problem = f"An earlier attempt ended while submitting {name}, {seconds:.0f} s ago"
        if work is None:
            log.warning("%s. It may have been charged, and the row has changed or is gone", problem)
        elif self._policy.on_lost_response == "fail" and not was_cleared:
            self._finish(work, error=_unresolved(problem))
        else:
            log.warning(
                "Submitting again, which may be charged twice. %s, and may have created a generation", problem
            )
            self._rows.give_back(work)

    def begin(self) -> None:
        """Record that this batch has the folder of its images.

        :raises ModelScopeError: if another batch has it. This one gives it up again.
        """
        self._record()
        try:
            self._state.check_folder()
        except ModelScopeError:
            self.finish(has_succeeded=False)
            raise

    # Work

    def work(self) -> UntilFinished | UntilSlotFree | None:
        """Work until every row is finished, or until it is worth leaving the worker.

        :raises ModelScopeError: if nothing can go on. What is paid for is recorded.
        """
        try:
            while not isinstance(action := self._engine.next_action(time.time()), Done):
                match action:
                    case Submit(work=work):
                        self._submit(work)
                    case Poll(work=work):
                        self._poll(work)
                    case Wait(until=until):
                        if leave := self._leave():
                            self._record()
                            return leave
                        self._wait(until)
                self._report()
        except BaseException as error:
            if isinstance(error, ModelScopeError):
                self._finish_storing()
            self._record_if_possible()
            raise
        self._record_if_possible()
        self._report(is_last=True)
        return None

    def finish(self, *, has_succeeded: bool) -> None:
        """Record the end of this attempt of the task."""
        self._end = {"is_finished": True, "has_succeeded": has_succeeded}
        self._record_if_possible()

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each status. What has no result is skipped."""
        return {**self._counts, "skipped": self._total - sum(self._counts.values())}

    @property
    def spent(self) -> float | None:
        """The credit that all attempts have spent, None if it is unknown."""
        return round(self._spent, 6) if self._credit_is_known else None

    def _leave(self) -> UntilFinished | UntilSlotFree | None:
        """Return what to wait for in the triggerer, or None to stay on the worker."""
        now = time.time()
        if self._policy.defer_after is None or self._engine.is_storing:
            return None
        if self._engine.running_count:
            if self._engine.can_submit(now) or self._engine.seconds_left(now) <= self._policy.defer_after:
                return None
            return UntilFinished(schedule=self._engine.next_schedule)
        since = self._engine.share.refused_since
        if since is not None and now - max(since, self._part_started_at) >= MIN_QUEUE_DEFERRAL:
            return UntilSlotFree(queued_at=since)
        return None

    def _wait(self, until: float) -> None:
        """Wait for a time or the outcome of storing an image, and note the outcome."""
        seconds = min(until, self._reported[0] + REPORT_SECONDS) - time.time()
        with suppress(Empty):
            work, generation, outcome = self._outcomes.get(timeout=max(0.0, seconds))
            self._storing_count -= 1
            self._note(work, generation, outcome)

    def _finish_storing(self) -> None:
        """Wait for the images that are being stored: until a retry, their URLs may expire."""
        while self._storing_count:
            work, _, outcome = self._outcomes.get()
            self._storing_count -= 1
            if not isinstance(outcome, BaseException):
                self._finish(work, images=outcome)

    # Submit

    def _submit(self, work: Work) -> None:
        try:
            submission = self._submit_row(work)
        except (RateLimitedError, ServiceUnreachableError) as error:
            log.log(logging.DEBUG, "Not accepted: %s: %s", _name(work), error)
            self._engine.share.refuse(error, self._engine.running_count, now=time.time())
            if self._engine.share.refused_since is not None and not self._logged_busy:
                self._logged_busy = True
                log.info("%s. Rows are submitted when it accepts them", why_rejected(error))
        except CreditLimitError as error:
            self._stop("max_credit", error)
        except QuotaExhaustedError as error:
            self._stop("credit", error)
        except SubmissionLostError as error:
            is_final = self._policy.on_lost_response == "fail"
            lost = _unresolved(f"{_name(work)}: {error.message}") if is_final else error
            if not self._fail(work, lost):
                self._not_answered += 1
            if self._not_answered == MAX_IN_VAIN:
                error.message = (
                    f"{MAX_IN_VAIN} rows in a row were submitted without a usable response, so the batch "
                    f"submits no more. A retry goes on. {error.message}"
                )
                raise
        except ModelScopeError as error:
            if not _is_about_row(error):
                raise
            self._fail(work, error)
        else:
            self._engine.accept(work, submission, now=time.time())
            self._not_answered = 0
            self._sending = None
            self.has_submitted = True
            self._record_if_possible()
            if self._hook.finished_at_once(submission.generation_id):  # no other process can fetch its images
                self._poll(work.submitted(submission))

    def _submit_row(self, work: Work) -> Submission:
        """Submit a row to the first model that takes it, and return its generation."""
        complete = inline_images(work.row.request, storage_conn_id=self._destination.storage_conn_id)
        candidates = requests_by_model(complete, self._policy.fallbacks)
        submission = submit_to_first(
            candidates.values(),
            lambda request: self._submit_request(request, work),
            modelscope_conn_id=self._hook.modelscope_conn_id,
            waits_for_credit=self._policy.on_exhausted == "wait",
        )
        return self._described(submission, work)

    def _submit_request(self, request: GenerationRequest, work: Work) -> Submission:
        if refusal := self._refusals.get(request.model):
            raise ModelScopeError.from_json(refusal)
        limit = self._policy.max_credit
        price = price_under_limit(self._hook, request.model, limit)
        check_limit(limit, spent=self._spent, cost=price or 0.0)
        now = time.time()
        try:
            generation_id = self._hook.submit_with_backoff(
                request,
                SubmitBackoff(queued_at=now, end_time=now, rejected=True),  # a single attempt
                sending=lambda: self._recorded(work, request, price),
            )
        except ModelRetiredError as error:
            credit = self._hook.find_credit()
            if credit is None or credit.available < (price or LEAST_PRICE):
                raise
            reason = f"{error.message}. The account has credit, {credit}, so the model is no longer served"
            retired = UnknownModelError(reason, code=error.code, request_id=error.request_id)
            self._refusals[request.model] = retired.to_json()
            raise retired from None
        except (UnknownModelError, QuotaExhaustedError) as error:
            self._refusals[request.model] = error.to_json()
            raise
        self._spend(price)
        count_spent(price, modelscope_conn_id=self._hook.modelscope_conn_id, model=request.model)
        return Submission(
            generation_id=generation_id, model=request.model, submitted_at=time.time(), credit=price
        )

    @contextmanager
    def _recorded(self, work: Work, request: GenerationRequest, price: float | None) -> Iterator[None]:
        """Record that a row is being submitted, until its generation is known or there is certainly none."""
        self._sending = replace(_running_row(work), sent_at=time.time(), model=request.model, credit=price)
        try:
            self._record()
            yield
        except SubmissionLostError:
            self._sending = None
            self._spend(price)
            raise
        except BaseException as error:
            # Of the service; or, before anything was sent, the end of the task.
            if isinstance(error, ModelScopeError) or isinstance(error.__cause__, ServiceUnreachableError):
                self._sending = None
                self._record_if_possible()
            raise

    def _stop(self, reason: str, error: ModelScopeError) -> None:
        """Submit nothing more, but wait for what runs."""
        log.warning("Submitting no more rows: %s", error)
        self.stopped = (reason, error)
        self._engine.stop()

    # Poll and store

    def _poll(self, work: Work) -> None:
        generation_id = _submission(work).generation_id
        polled = self._hook.poll(generation_id)
        age = time.time() - _submission(work).submitted_at
        if not isinstance(polled, ModelScopeError) and polled.is_not_found and polled.has_failed(age=age):
            self._hook.sleep_before_retry(RETRY_DELAY)
            polled = self._hook.poll(generation_id)  # one odd answer is no reason to pay again
        try:
            generation = self._engine.observe(work, polled, now=time.time())
            if generation is None:
                return
            generation.raise_for_failure(retry_resubmits=True)
        except ModelScopeError as error:
            if isinstance(error, GenerationFailedError) and not isinstance(polled, ModelScopeError):
                self._refund(work, polled)
            if not _is_about_row(error):
                raise
            if isinstance(polled, RequestRejectedError):  # of the poll, not of the row
                error = GenerationStatusUnknownError(polled.message, code=polled.code)
            self._fail(work, error)
        else:
            self._start_storing(work, generation)

    def _start_storing(self, work: Work, generation: Generation) -> None:
        # With the context of this thread, so that log lines say which task they belong to.
        thread = Thread(
            target=copy_context().run,
            args=[self._store, work, generation],
            name="modelscope-store",
            daemon=True,
        )
        thread.start()
        self._storing_count += 1

    def _store(self, work: Work, generation: Generation) -> None:
        """Store the images of a row, in a thread."""
        outcome: list[StoredImage] | BaseException
        try:
            outcome = self._stored(work, generation)
        except BaseException as error:  # raised by the main thread
            outcome = error
        self._outcomes.put((work, generation, outcome))

    def _stored(self, work: Work, generation: Generation) -> list[StoredImage]:
        attempts = 0
        while True:
            try:
                return land_images(
                    generation,
                    replace(self._destination, stem=work.row.key),
                    hook=self._hook,
                    ti=self._ti,
                    submission=work.submission,
                    sidecar=self._policy.sidecar,
                    embed_metadata=self._policy.embed_metadata,
                    log_level=logging.DEBUG,
                )
            except ImageStorageError as error:
                attempts += 1
                if attempts == STORE_ATTEMPTS:
                    raise
                log.warning("Storing again: %s: %s", _name(work), error)
                self._hook.sleep_before_retry(RETRY_DELAY * 2**attempts)

    def _note(self, work: Work, generation: Generation, outcome: list[StoredImage] | BaseException) -> None:
        """Note what came of storing the images of a row."""
        if not isinstance(outcome, BaseException):
            self._not_fetched = 0
            self._finish(work, images=outcome)
            return
        if not isinstance(outcome, ModelScopeError) or not _is_about_row(outcome):
            raise outcome
        if self._fail(work, outcome):
            return
        self._not_fetched += 1
        if self._not_fetched == MAX_IN_VAIN:
            outcome.message = (
                f"{MAX_IN_VAIN} images in a row, which are paid for, could not be fetched, so the batch "
                "pays for no more. Once this is mended, clear the task: it fetches those that are still "
                f"there. {outcome.message}"
            )
            raise outcome

    def _fail(self, work: Work, error: ModelScopeError) -> bool:
        """Note that a row has no image. Return whether it is tried again; else it is finished."""
        if self._engine.fail(work, error):
            risk = ", which may be charged twice" if isinstance(error, SubmissionLostError) else ""
            log.warning("Submitting again%s: %s: %s", risk, _name(work), error)
            return True
        self._finish(work, error=error)
        return False

    def _finish(
        self, work: Work, *, images: list[StoredImage] | None = None, error: ModelScopeError | None = None
    ) -> None:
        """Set the result of a row."""
        status = "stored" if images else "rejected" if error and is_rejection(error) else "failed"
        submission = work.submission
        now = time.time()
        result = Result(
            key=work.row.key,
            row=work.row.number,
            status=status,
            fingerprint=work.fingerprint,
            image=images[0] if images else None,
            further_images=tuple(images[1:]) if images else (),
            model=submission.model if submission else work.row.request.model,
            asked_model=submission.asked_model if submission else None,
            generation_id=submission.generation_id if submission else None,
            credit=submission.credit if submission else None,
            error=RowError.of(error) if error else None,
            prompt=work.row.request.prompt,
            data=work.row.data,
            finished_at=now,
        )
        private = {
            "is_final": isinstance(error, ModelScopeFinalError),
            "is_unfinished": _is_unfinished(work, error),
            "submitted_at": submission.submitted_at if submission else None,
            "attempt": self._ti.try_number,
            "max_tries": self._max_tries,
        }
        document = result.to_json() | private
        count = self._rows.set_result(work.row.key, work.fingerprint, document)
        self._counts[status] += count
        self._state.add(document)
        self._engine.finish(work)  # last: what interrupts this loses no generation
        self._finished_at.extend([now] * count)
        count_row(status, modelscope_conn_id=self._hook.modelscope_conn_id)
        if error:
            is_known = str(error) == self._logged_error  # as of a model that refuses each row
            self._logged_error = str(error)
            what = "failed" if status == "failed" else "is rejected"
            log.log(logging.DEBUG if is_known else logging.WARNING, "%s %s: %s", _name(work), what, error)

    # Credit

    def _spend(self, credit: float | None) -> None:
        if credit is None:
            self._credit_is_known = False
        else:
            self._spent += credit

    def _refund(self, work: Work, generation: Generation) -> None:
        """Note that the service has given back what a generation cost, if it says so."""
        if generation.is_refunded:
            self._spent = max(0.0, self._spent - (_submission(work).credit or 0.0))

    # Record and report

    def _record(self) -> None:
        """Write the state.

        :raises SubmissionRecordError: if it cannot be written.
        """
        rows = [_running_row(work) for work in self._engine.open_work]
        self._state.write(
            {
                "attempt": self._ti.try_number,
                "attempt_started_at": self._attempt_started_at,
                "not_fetched": self._not_fetched,
                "max_tries": self._max_tries,
                "total": self._total,
                "counts": self.counts if self._end else {**self._counts, "skipped": 0},
                "started_at": self._started_at,
                "updated_at": time.time(),
                "spent": self.spent,
                "per_minute": self._per_minute,
                "stopped_by": self.stopped[0] if self.stopped else None,
                "durations": self._engine.durations.to_json(),
                **self._end,
            },
            [*rows, self._sending] if self._sending else rows,
        )

    def _record_if_possible(self) -> None:
        """Write the state, or warn: the next submission tries again, and is not sent without it."""
        try:
            self._record()
        except SubmissionRecordError as error:
            log.warning("%s", error)

    @property
    def _per_minute(self) -> float | None:
        if len(self._finished_at) < 2:
            return None
        seconds = time.time() - self._finished_at[0]
        return 60 * (len(self._finished_at) - 1) / seconds if seconds > 0 else None

    def _report(self, *, is_last: bool = False) -> None:
        """Log how far the batch is, now and then."""
        now, done = time.time(), sum(self._counts.values())
        left = self._total - done
        reported_at, reported = self._reported
        is_due = left and (now - reported_at >= REPORT_SECONDS or done - reported >= REPORT_ROWS)
        if not is_last and not is_due:
            return
        self._reported = (now, done)
        counts = ", ".join(f"{self._counts[status]} {status}" for status in ("stored", "rejected", "failed"))
        rate = self._per_minute
        pace = f", {rate:.1f} a minute" if rate else ""
        rest = f", about {left / rate:.0f} min left" if rate and left and not is_last else ""
        log.info("%d of %d rows are done: %s%s%s", done, self._total, counts, pace, rest)
        show_rows_left(left, modelscope_conn_id=self._hook.modelscope_conn_id)


def _is_about_row(error: ModelScopeError) -> bool:
    """Whether an error is about one row, so that the others can go on."""
    if isinstance(error, ImageStorageError | SubmissionRecordError | InvalidDestinationError):
        return False
    return type(error) is ModelScopeRetryableError or isinstance(  # of a source image that cannot be read
        error,
        RequestRejectedError
        | GenerationRejectedError
        | InvalidRequestError
        | GenerationFailedError
        | GenerationTimeoutError
        | ImageError
        | ImageNotAllowedError
        | SubmissionLostError
        | SubmissionUnresolvedError,
    )


def _is_unfinished(work: Work, error: ModelScopeError | None) -> bool:
    """Whether the generation of a failed row may still give its image, without a second charge."""
    if isinstance(error, BrokenImageError | ImageGoneError):
        return False
    if isinstance(error, GenerationTimeoutError):
        return work.attempts > 0  # else it has been waited for in two attempts of the task
    return isinstance(error, ImageError | ImageNotAllowedError)


def _name(work: Work) -> str:
    return f"row {work.row.number} ({work.row.key})"


def _unresolved(problem: str) -> SubmissionUnresolvedError:
    return SubmissionUnresolvedError(
        f"{problem}. It may have been charged, and on_lost_response='fail' prevents a second charge: "
        "clear the task to submit the row again"
    )


def _submission(work: Work) -> Submission:
    assert work.submission is not None  # noqa: S101 - for the type checker
    return work.submission


def _running_row(work: Work) -> RunningRow:
    submission = work.submission
    row = RunningRow(
        key=work.row.key,
        number=work.row.number,
        prompt=work.row.request.prompt,
        fingerprint=work.fingerprint,
        attempts=work.attempts,
    )
    if submission is None:
        return row
    return replace(
        row,
        generation_id=submission.generation_id,
        submitted_at=submission.submitted_at,
        model=submission.model,
        asked_model=submission.asked_model,
        credit=submission.credit,
    )


def _submission_of(
    model: str | None, generation_id: str | None, credit: float | None, facts: Mapping[str, Any]
) -> Submission | None:
    submitted_at = facts.get("submitted_at")
    if model is None or generation_id is None or not isinstance(submitted_at, float | int):
        return None
    return Submission(generation_id=generation_id, model=model, submitted_at=submitted_at, credit=credit)
