"""Persist the submission of a task across its attempts, so that a retry resumes it instead of paying twice.

The record is in Airflow's task state store (Airflow 3.3 and later), or else in the folder that the setting
``[modelscope] submission_records`` names. It has one entry for each request, because a task may call several
operators. An entry is written before a submission is sent, and gets the ``generation_id`` from the response.
XComs do not work: a retry deletes them first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import airflow.sdk

from airflow_provider_modelscope.exceptions import (
    BrokenImageError,
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    ImageUnavailableError,
    InvalidRequestError,
    ModelScopeError,
    RequestRejectedError,
    ServiceUnreachableError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.resuming import SETTING, how_to_submit_again, submission_records
from airflow_provider_modelscope.tasks.cost import check_limit
from airflow_provider_modelscope.xcoms import Submission

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.tasks.record_store import RecordStore

KEY = "modelscope_submission"
_COSTS = ("credit", "sent_credit", "spent")  # marks
MAX_ENTRIES = 200  # so that the record stays below the 64 KiB of a database's text

log = logging.getLogger(__name__)

_lock = Lock()  # of the record of this process's task, which may call operators in several threads


def fingerprint_of(request: GenerationRequest, account: Account) -> str:
    """Return a digest of a request and its account, from which neither can be restored."""
    parts = [request.to_json(), account.base_url, account.token]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an earlier attempt submitted.

    :param was_cleared: Whether a person cleared the task after it ended without a usable image.
    :param is_given_up: Whether a new generation replaces it, unless it has finished by now.
    """

    submission: Submission
    was_cleared: bool
    is_given_up: bool


class SubmissionRecord:
    """The record of a task instance. Without a store nothing is recorded.

    An entry holds the ``generation_id``, ``model``, ``submitted_at`` and ``credit`` of a generation, and
    marks: ``sent_at`` and ``sent_credit`` of a submission without a response, the number of ``failures`` of
    each kind, ``blocked``, ``given_up``, ``ended`` and ``done`` with the number of tries at that time, the
    generation that it ``replaces``, and what earlier ones of the request have ``spent``. A generation stays
    in its entry until the id of the next one is known.

    :param durable: Whether to record anything.
    :param on_lost_response: What to do when a submission got no response, so that it may have created a
        generation: ``"resubmit"`` or ``"fail"``.
    """

    def __init__(self, context: Context, *, durable: bool = True, on_lost_response: str = "resubmit") -> None:
        self._ti = context["ti"]
        self._store: Any = context.get("task_state_store") if durable else None
        self._name = f"{KEY!r} in this task's state store"
        self._in_object_storage: RecordStore | None = None
        if durable and self._store is None and (folder := submission_records()):
            from airflow_provider_modelscope.tasks.record_store import RecordStore

            self._store = self._in_object_storage = RecordStore(folder, self._ti)
            self._name = repr(str(self._store))
        # Grows when the task is cleared, and only then: this distinguishes Clear from a retry.
        self._max_tries: int | None = getattr(self._ti, "max_tries", None)
        self._lacks_store = durable and self._store is None and bool(self._max_tries)
        self._on_lost_response = on_lost_response
        self._unsaved: dict[str, dict[str, Any]] = {}  # entries of paid generations

    def check(self) -> None:
        """Check that there can be a record, before anything is sent.

        :raises InvalidDestinationError: if the setting ``[modelscope] submission_records`` is invalid.
        :raises SubmissionRecordError: if the folder that it names is missing.
        """
        if self._in_object_storage:
            self._in_object_storage.check()

    def recall(self, *fingerprints: str) -> list[Earlier]:
        """Return what earlier attempts submitted and may be resumed, the newest first.

        :param fingerprints: Of the request of the task, and of those to its fallback models.
        :raises SubmissionUnresolvedError: if an earlier attempt ended while submitting, and resubmitting is
            not allowed.
        :raises SubmissionRecordError: if the record cannot be read, which does not mean that there is none.
        """
        entries = self._read()
        if entries.keys().isdisjoint(fingerprints):
            for other in _open_entries(entries):
                log.warning(
                    "Submitting again: the request or the account differs from that of an earlier attempt, "
                    "which submitted generation %s",
                    other.get("generation_id", "(unknown)"),
                )
        recorded = {name: entries[name] for name in fingerprints if name in entries}
        found = [self._recall(fingerprint, entry) for fingerprint, entry in recorded.items()]
        return sorted(filter(None, found), key=lambda one: one.submission.submitted_at, reverse=True)

    def _recall(self, fingerprint: str, entry: Mapping[str, Any]) -> Earlier | None:
        if isinstance(sent_at := entry.get("sent_at"), float | int):
            problem = f"An earlier attempt ended while submitting, {time.time() - sent_at:.0f} s ago"
            if self._on_lost_response == "fail":
                raise self._unresolved(fingerprint, entry, problem)
            log.warning(
                "Submitting again, which may be charged twice. %s, and may have created a generation", problem
            )
        match entry:
            case {"done": int(max_tries)} if max_tries != self._max_tries:
                return None
            case {
                "generation_id": str(generation_id),
                "model": str(model),
                "submitted_at": float() | int() as submitted_at,
            }:
                credit = entry.get("credit")
                if "done" in entry:
                    log.warning(
                        "Using generation %s again: this task has had it for an equal request. Give equal "
                        "requests different seeds to get different images",
                        generation_id,
                    )
                return Earlier(
                    submission=Submission(
                        generation_id=generation_id,
                        model=model,
                        submitted_at=submitted_at,
                        credit=credit if isinstance(credit, float | int) else None,
                    ),
                    was_cleared=self._was_cleared(entry),
                    is_given_up="given_up" in entry,
                )
            case {"replaces": str()} | {"sent_at": float() | int()} | {"spent": float() | int()}:
                return None
        raise self._invalid(entry)

    @contextmanager
    def sending(
        self, fingerprint: str, *, credit: float | None = None, max_credit: float | None = None
    ) -> Iterator[None]:
        """Record that a submission is being sent, until it is certain that it created nothing.

        :param credit: What it costs, if that is known.
        :param max_credit: The most that this task instance may spend in all its attempts.
        :raises CreditLimitError: if it would spend more. Nothing may be sent.
        :raises SubmissionUnresolvedError: if it got no response, and resubmitting is not allowed.
        """
        sent = {"sent_at": time.time(), "sent_credit": credit}
        check = partial(self._check_limit, credit, max_credit)
        before = self._change(fingerprint, lambda entry: {**_settled(entry), **sent}, check=check)
        try:
            yield
        except SubmissionLostError as error:
            if self._on_lost_response == "fail":
                raise self._unresolved(fingerprint, {**_settled(before), **sent}, error.message) from None
            error.message += (
                '. A retry submits again, which may be charged twice; on_lost_response="fail" prevents that'
            )
            raise
        except BaseException as error:
            # Of the service; or, before anything was sent, the end of the task.
            if isinstance(error, ModelScopeError) or isinstance(error.__cause__, ServiceUnreachableError):
                self._try_to_write(fingerprint, before)
            raise

    def _unresolved(
        self, fingerprint: str, entry: Mapping[str, Any], problem: str
    ) -> SubmissionUnresolvedError:
        self._try_to_write(fingerprint, _settled(entry))  # the next attempt is a person's decision
        return SubmissionUnresolvedError(
            f"{problem}. It may have been charged, and on_lost_response='fail' prevents a second charge: "
            "clear the task to submit again"
        )

    def _check_limit(
        self, credit: float | None, most: float | None, entries: Mapping[str, Mapping[str, Any]]
    ) -> None:
        if most is None:
            return
        if self._store is None:
            raise InvalidRequestError(
                f"max_credit = {most:g}: nothing was sent, because no record counts what the attempts of "
                f"this task spend. It needs durable=True and, before Airflow 3.3, the setting {SETTING}"
            )
        check_limit(most, spent=sum(map(_spent, entries.values())), cost=credit or 0.0)

    def refund(self, generation_id: str) -> None:
        """Record that the service has given back what a generation cost."""
        try:
            fingerprint, entry = self._find(generation_id)
        except SubmissionRecordError as error:
            log.warning("%s", error)
            return
        if entry is not None:
            self._try_to_write(fingerprint, {**entry, "credit": None})

    def save(self, fingerprint: str, submission: Submission) -> None:
        """Record the generation that was created, or warn if there is no store."""
        if self._lacks_store:
            log.warning(
                "A retry would submit generation %s again: set %s to a folder in object storage, or use "
                "Airflow 3.3 or later",
                submission.generation_id,
                SETTING,
            )
        self._unsaved[fingerprint] = {
            "generation_id": submission.generation_id,
            "model": submission.model,
            "submitted_at": submission.submitted_at,
            "credit": submission.credit,
        }
        self.save_again()

    def save_again(self) -> None:
        """Record the generations for which this failed. They are paid for, so an error is a warning."""
        for fingerprint, entry in list(self._unsaved.items()):
            try:
                self._change(fingerprint, partial(self._succeeded_by, entry))
                del self._unsaved[fingerprint]
            except SubmissionRecordError as error:
                log.warning("A retry would submit generation %s again: %s", entry["generation_id"], error)

    def _succeeded_by(self, entry: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
        is_over = "done" in before or self._was_cleared(before)
        earlier = _spent({**before, "sent_credit": None})
        return {
            **entry,
            "replaces": None if is_over else before.get("replaces"),
            "spent": earlier or None,
        }

    def name_open_generations(self, error: ModelScopeError) -> None:
        """Name what earlier attempts have paid for, in an error that prevents resuming it."""
        with suppress(SubmissionRecordError):
            entries = _open_entries(self._read())
            if paid := ", ".join(str(one["generation_id"]) for one in entries if "generation_id" in one):
                error.message += (
                    f". An earlier attempt submitted generation {paid}, which is charged: to store its "
                    "images, undo the change, or use ModelScopeImageToObjectStorageOperator"
                )

    def note_failure(self, error: GenerationTimeoutError | ImageError | RequestRejectedError) -> bool:
        """Record that a generation gave no image, and return whether to submit a new one now.

        :raises ImageUnavailableError: if the images of a replacement are gone as well, or those of a
            generation without an entry, so that nothing could count how often it is replaced.
        """
        self.save_again()
        try:
            fingerprint, entry = self._find(error.generation_id)
        except SubmissionRecordError as problem:
            log.warning("%s", problem)
            return False
        if entry is None:
            if isinstance(error, ImageGoneError) or error.code == 403:
                raise ImageUnavailableError(
                    f"{error.message}. No record of this generation is kept, so a retry would only pay for "
                    "another one. Store it with ModelScopeImageToObjectStorageOperator once its host is "
                    "allowed, or clear the task, which submits a new generation, which is charged",
                    code=error.code,
                    generation_id=error.generation_id,
                ) from None
            return False
        kind, was_cleared = type(error).__name__, self._was_cleared(entry)
        failures = {**entry.get("failures", {}), kind: entry.get("failures", {}).get(kind, 0) + 1}
        counted, ended = {**entry, "failures": failures}, {"ended": self._max_tries}
        match _verdict(error, entry, failures=failures[kind], was_cleared=was_cleared):
            case "count":
                self._try_to_write(fingerprint, counted)
            case "give up":
                log.warning(
                    "Giving up generation %s: unless it has finished by the next attempt, that one submits a "
                    "new one, which is charged",
                    error.generation_id,
                )
                self._try_to_write(fingerprint, {**counted, "given_up": True})
            case "end":
                self._try_to_write(fingerprint, counted | ended)
                error.message += f". If this persists, {how_to_submit_again()}"
            case "blocked":
                self._try_to_write(fingerprint, {**entry, "blocked": True})
            case "still blocked":
                self._try_to_write(fingerprint, entry | ended)
                error.message += (
                    ". It was blocked from the start, so a new image may be blocked as well. Once its host "
                    f"is allowed, {how_to_submit_again()}"
                )
            case "replace":
                self.warn_of_new_generation(error.generation_id)
                replaced = None if was_cleared else error.generation_id
                return self._try_to_write(fingerprint, {"replaces": replaced, "spent": _spent(entry) or None})
            case "end of replacement":
                self._try_to_write(fingerprint, entry | ended)
                raise ImageUnavailableError(
                    f"Generation {entry['replaces']} and its replacement gave no image, and no third one was "
                    f"submitted: {error.message}. To go on, {how_to_submit_again()}",
                    generation_id=error.generation_id,
                ) from None
        return False

    def warn_of_new_generation(self, given_up: str | None) -> None:
        """Log that a generation gave no image, so that another one will be charged."""
        log.warning(
            "Giving up generation %s: the next submission creates a new one, which is charged", given_up
        )

    def finish(self, generation_id: str) -> None:
        """Record that the task has what it wants of a generation.

        Until Airflow has recorded the success, a retry resumes the generation, while Clear submits a new one.
        This mark alone decides. That the record is deleted later is tidiness.
        """
        try:
            fingerprint, entry = self._find(generation_id)
        except SubmissionRecordError as error:
            log.warning("Clear would store the same images again: %s", error)
            return
        if entry is not None:
            done = {} if self._max_tries is None else {**entry, "done": self._max_tries}
            self._try_to_write(fingerprint, done)

    def forget_if_success_is_recorded(self) -> None:
        """Delete the record, unless Airflow does not know of the success and may retry the task.

        The callback runs even if Airflow did not learn of the success, so the task asks for its state.
        """
        if self._store is None:
            return
        try:
            if not self._success_is_recorded():
                log.warning("Keeping the record %s: Airflow did not record the success", self._name)
                return
        except Exception as error:  # Airflow cannot be reached
            log.warning("Keeping the record %s: the state of the task is unknown: %r", self._name, error)
            return
        self.forget()

    def _success_is_recorded(self) -> bool:
        """Return whether Airflow has this task instance as successful now."""
        ti = self._ti
        states = ti.get_task_states(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        return "success" in states.get(ti.run_id, {}).values()

    def forget(self) -> None:
        """Delete the record: there is nothing to resume."""
        try:
            if self._store is not None:
                self._store.delete(KEY)
        except Exception as error:  # any backend
            log.warning("The record %s was not deleted: %r", self._name, error)

    def _is_over(self, entry: Mapping[str, Any]) -> bool:
        """Whether the task was cleared after it had what it wants of a generation."""
        return bool(entry.get("done", self._max_tries) != self._max_tries)

    def _was_cleared(self, entry: Mapping[str, Any]) -> bool:
        """Whether a person cleared the task after it ended without a usable image."""
        return bool(entry.get("ended", self._max_tries) != self._max_tries)

    def _find(self, generation_id: str | None) -> tuple[str, dict[str, Any] | None]:
        """Return the entry of a generation and its fingerprint."""
        for fingerprint, entry in self._read().items():
            if entry.get("generation_id") == generation_id:
                return fingerprint, entry
        return "", None

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return the record as it is now: several operators of one task may change it."""
        try:
            record = None if self._store is None else self._store.get(KEY)
        except Exception as error:  # any backend
            raise SubmissionRecordError(f"The record {self._name} cannot be read: {error!r}") from error
        if record is None:
            return {}
        if isinstance(record, dict) and record and all(isinstance(entry, dict) for entry in record.values()):
            return record
        raise self._invalid(record)

    def _invalid(self, record: Any) -> SubmissionRecordError:
        return SubmissionRecordError(
            f"Invalid record {self._name}, nothing was sent: {record!r:.200}. Delete the record, or set "
            "durable=False"
        )

    def _change(
        self,
        fingerprint: str,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        check: Callable[[Mapping[str, Mapping[str, Any]]], None] = lambda _: None,
    ) -> Mapping[str, Any]:
        """Replace the entry of a request by what a function makes of it, and return what it was.

        Marks that are None are left out, and an empty entry is deleted.

        :param check: Called with all entries before anything changes.
        """
        if self._store is None:
            check({})
            return {}
        with _lock:
            recorded = self._read()
            entries = {name: entry for name, entry in recorded.items() if not self._is_over(entry)}
            check(entries)
            before = recorded.get(fingerprint, {})
            if entries.pop(fingerprint, None) is None:
                before = {name: mark for name, mark in before.items() if name not in _COSTS}
            if marks := {name: mark for name, mark in change(before).items() if mark is not None}:
                entries[fingerprint] = marks
            while len(entries) > MAX_ENTRIES:
                oldest = min(entries, key=lambda name: entries[name].get("submitted_at", math.inf))
                log.warning("A retry would submit a request again: the record %s is full", self._name)
                marks["spent"] = _spent(entries.pop(oldest)) + marks.get("spent", 0.0)
            try:
                if not entries:
                    self._store.delete(KEY)
                elif self._in_object_storage:
                    self._in_object_storage.set(KEY, entries)
                else:
                    self._store.set(KEY, entries, retention=getattr(airflow.sdk, "NEVER_EXPIRE", None))
            except Exception as error:  # any backend
                raise SubmissionRecordError(
                    f"The record {self._name} cannot be written: {error!r}"
                ) from error
        return before

    def _try_to_write(self, fingerprint: str, entry: Mapping[str, Any]) -> bool:
        """Replace the entry of a request, or warn that it stays as it was; return whether it was replaced."""
        try:
            self._change(fingerprint, lambda _: entry)
        except SubmissionRecordError as error:
            log.warning("%s", error)
            return False
        return True


_Verdict = Literal["count", "give up", "end", "blocked", "still blocked", "replace", "end of replacement", ""]


def _verdict(
    error: ModelScopeError, entry: Mapping[str, Any], *, failures: int, was_cleared: bool
) -> _Verdict:
    """Return what follows from a generation that gave no image; nothing if a retry may get it.

    :param failures: How often it failed in this way, now included.
    :param was_cleared: Whether a person has cleared the task since it ended, so that this is one more try.
    """
    match error:
        case ImageGoneError(code=403) if "blocked" in entry and not was_cleared:
            return "still blocked"
        case ImageGoneError() if not was_cleared and failures > 1 and "replaces" in entry:
            return "end of replacement"
        case ImageGoneError():
            return "replace" if was_cleared or failures > 1 else "end"
        case BrokenImageError():
            return "replace" if was_cleared else "end"
        case ImageError():
            return "blocked" if error.code == 403 else ""
        case GenerationStatusUnknownError() | RequestRejectedError():
            return "give up" if was_cleared else "end"
    return "give up" if failures > 1 else "count"


def _spent(entry: Mapping[str, Any]) -> float:
    """Return what the submissions of an entry have cost, or may have."""
    return sum(entry.get(mark) or 0.0 for mark in _COSTS)


def _settled(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without its submission that got no response, except for what that may have cost."""
    spent = _spent({**entry, "credit": None})
    return {**entry, "sent_at": None, "sent_credit": None, "spent": spent or None}


def _open_entries(entries: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries of what earlier attempts submitted, or may have, and did not finish with."""
    return [
        entry
        for entry in entries.values()
        if "done" not in entry and entry.keys() & {"generation_id", "sent_at"}
    ]


def forget_submission(context: Context) -> None:
    """Delete the record, as ``on_success_callback``, which runs even if no success was recorded."""
    SubmissionRecord(context).forget_if_success_is_recorded()
