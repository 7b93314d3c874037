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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import airflow.sdk

from airflow_provider_modelscope.exceptions import (
    BrokenImageError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    ImageUnavailableError,
    ModelScopeError,
    RequestRejectedError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.resuming import SETTING, how_to_submit_again, submission_records
from airflow_provider_modelscope.xcoms import Submission

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.tasks.record_store import RecordStore

KEY = "modelscope_submission"
MAX_ENTRIES = 200  # so that the record stays below the 64 KiB of a database's text

log = logging.getLogger(__name__)


def fingerprint_of(request: GenerationRequest, account: Account) -> str:
    """Return a digest of a request and its account, from which neither can be restored."""
    parts = [request.to_json(), account.base_url, account.token]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class SubmissionRecord:
    """The record of a task instance. Without a store nothing is recorded.

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
        self._entries: dict[str, dict[str, Any]] = {}  # of each request, by its fingerprint
        self._replaces: str | None = None  # the generation whose lost images the next one replaces
        self.is_dead_end = False  # whether a person cleared the task after what is recalled gave no image

    def check(self) -> None:
        """Check that there can be a record, before anything is sent.

        :raises InvalidDestinationError: if the setting ``[modelscope] submission_records`` is invalid.
        :raises SubmissionRecordError: if the folder that it names is missing.
        """
        if self._in_object_storage:
            self._in_object_storage.check()

    def recall(self, fingerprint: str) -> Submission | None:
        """Return the submission of an earlier attempt, or None if the request is to be submitted.

        :raises SubmissionUnresolvedError: if an earlier attempt ended while submitting, and resubmitting is
            not allowed.
        :raises SubmissionRecordError: if the record cannot be read, which does not mean that there is none.
        """
        self._entries = self._read()
        entry = self._entries.get(fingerprint)
        self.is_dead_end = entry is not None and self._was_cleared(entry)
        if entry and "done" not in entry and not self.is_dead_end:
            self._replaces = entry.get("replaces")
        match entry:
            case None:
                for other in self._entries.values():
                    if "done" not in other and other.keys() & {"generation_id", "sent_at"}:
                        log.warning(
                            "Submitting again: the request or the account differs from that of an earlier "
                            "attempt, which submitted generation %s",
                            other.get("generation_id", "(unknown)"),
                        )
                return None
            case {"done": int(max_tries)} if max_tries != self._max_tries:
                return None
            case {
                "generation_id": str(generation_id),
                "model": str(model),
                "submitted_at": float() | int() as submitted_at,
            }:
                if "done" in entry:
                    log.warning(
                        "Using generation %s again: this task has had it for an equal request. Give equal "
                        "requests different seeds to get different images",
                        generation_id,
                    )
                return Submission(generation_id=generation_id, model=model, submitted_at=submitted_at)
            case {"sent_at": float() | int() as sent_at}:
                problem = f"An earlier attempt ended while submitting, {time.time() - sent_at:.0f} s ago"
                if self._on_lost_response == "fail":
                    raise self._unresolved(fingerprint, problem)
                log.warning(
                    "Submitting again, which may be charged twice. %s, and may have created a generation",
                    problem,
                )
                return None
            case {"replaces": str()}:
                return None
        raise self._invalid(entry)

    @contextmanager
    def sending(self, fingerprint: str) -> Iterator[None]:
        """Record that a submission is being sent, until it is certain that it created nothing.

        :raises SubmissionUnresolvedError: if it got no response, and resubmitting is not allowed.
        """
        self._write(fingerprint, {"sent_at": time.time()})
        try:
            yield
        except SubmissionLostError as error:
            if self._on_lost_response == "fail":
                raise self._unresolved(fingerprint, error.message) from None
            error.message += (
                '. A retry submits again, which may be charged twice; on_lost_response="fail" prevents that'
            )
            raise
        except ModelScopeError:
            self._try_to_write(fingerprint, {})
            raise

    def _unresolved(self, fingerprint: str, problem: str) -> SubmissionUnresolvedError:
        self._try_to_write(fingerprint, {})  # the next attempt is a person's decision
        return SubmissionUnresolvedError(
            f"{problem}. It may have been charged, and on_lost_response='fail' prevents a second charge: "
            "clear the task to submit again"
        )

    def save(self, fingerprint: str, submission: Submission) -> None:
        """Record the generation that was created, or warn if there is no store."""
        if self._lacks_store:
            log.warning(
                "A retry would submit generation %s again: set %s to a folder in object storage, or use "
                "Airflow 3.3 or later",
                submission.generation_id,
                SETTING,
            )
        try:
            self._write(
                fingerprint,
                {
                    "generation_id": submission.generation_id,
                    "model": submission.model,
                    "submitted_at": submission.submitted_at,
                },
            )
        except SubmissionRecordError as error:  # the generation is paid for: go on with it
            log.warning("A retry would submit generation %s again: %s", submission.generation_id, error)

    def note_failure(self, error: GenerationTimeoutError | ImageError | RequestRejectedError) -> bool:
        """Record that a generation gave no image, and return whether to submit a new one now.

        Timeouts are counted, and so are URLs that do not work. After the second timeout the next attempt
        submits a new generation, after the second failure of the URLs this attempt does so, but only once.
        If a person clears the task after it ended without a usable image, it tries once more. That includes
        a generation whose polls are all rejected.

        :raises ImageUnavailableError: if the URLs of that new generation do not work either, or those of one
            that has no entry, so that nothing could count how often it is replaced.
        """
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
        is_gone, is_timeout = isinstance(error, ImageGoneError), type(error) is GenerationTimeoutError
        kind, was_cleared = type(error).__name__, self._was_cleared(entry)
        if error.code == 403 and not is_gone:
            self._try_to_write(fingerprint, {**entry, "blocked": True})
            return False
        if error.code == 403 and "blocked" in entry and not was_cleared:
            error.message += (
                ". It was blocked from the start, so a new image may be blocked as well. Once its host is "
                f"allowed, {how_to_submit_again()}"
            )
            self._try_to_write(fingerprint, {**entry, "ended": self._max_tries})
            return False
        if isinstance(error, ImageError) and not isinstance(error, ImageGoneError | BrokenImageError):
            return False
        failures = {**entry.get("failures", {}), kind: entry.get("failures", {}).get(kind, 0) + 1}
        is_last = failures[kind] > 1 and (is_gone or is_timeout)
        if not is_last and (is_timeout or not was_cleared):
            ended = {} if is_timeout else {"ended": self._max_tries}
            self._try_to_write(fingerprint, {**entry, **ended, "failures": failures})
            if not is_timeout:
                error.message += f". If this persists, {how_to_submit_again()}"
            return False
        if is_gone and not was_cleared and "replaces" in entry:
            self._try_to_write(fingerprint, {**entry, "ended": self._max_tries})
            raise ImageUnavailableError(
                f"Generation {entry['replaces']} and its replacement gave no image, and no third one was "
                f"submitted: {error.message}. To go on, {how_to_submit_again()}",
                generation_id=error.generation_id,
            ) from None
        self.warn_of_new_generation(error.generation_id)
        self._replaces = error.generation_id if is_gone and not was_cleared else None
        return self._try_to_write(fingerprint, {}) and isinstance(error, ImageError)

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
            self._replaces = None
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

    def _was_cleared(self, entry: Mapping[str, Any]) -> bool:
        """Whether a person cleared the task after it ended without a usable image."""
        return bool(entry.get("ended", self._max_tries) != self._max_tries)

    def _find(self, generation_id: str | None) -> tuple[str, dict[str, Any] | None]:
        """Return the entry of a generation and its fingerprint, from the record as it is now."""
        self._entries = self._read()
        for fingerprint, entry in self._entries.items():
            if entry.get("generation_id") == generation_id:
                self._replaces = entry.get("replaces")
                return fingerprint, entry
        return "", None

    def _read(self) -> dict[str, dict[str, Any]]:
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

    def _write(self, fingerprint: str, entry: Mapping[str, Any]) -> None:
        """Replace the entry of a request; an empty one is deleted."""
        if self._store is None:
            return
        if self._replaces:
            entry = {**entry, "replaces": self._replaces}
        entries = {
            name: other
            for name, other in self._entries.items()
            if name != fingerprint and other.get("done", self._max_tries) == self._max_tries
        }
        if entry:
            entries[fingerprint] = dict(entry)
        while len(entries) > MAX_ENTRIES:
            oldest = min(entries, key=lambda name: entries[name].get("submitted_at", math.inf))
            log.warning("A retry would submit a request again: the record %s is full", self._name)
            del entries[oldest]
        self._entries = entries
        try:
            if not entries:
                self._store.delete(KEY)
            elif self._in_object_storage:
                self._in_object_storage.set(KEY, entries)
            else:
                self._store.set(KEY, entries, retention=getattr(airflow.sdk, "NEVER_EXPIRE", None))
        except Exception as error:  # any backend
            raise SubmissionRecordError(f"The record {self._name} cannot be written: {error!r}") from error

    def _try_to_write(self, fingerprint: str, entry: Mapping[str, Any]) -> bool:
        """Replace the entry of a request, or warn that it stays as it was; return whether it was replaced."""
        try:
            self._write(fingerprint, entry)
        except SubmissionRecordError as error:
            log.warning("%s", error)
            return False
        return True


def forget_submission(context: Context) -> None:
    """Delete the record, as ``on_success_callback``, which runs even if no success was recorded."""
    SubmissionRecord(context).forget_if_success_is_recorded()
