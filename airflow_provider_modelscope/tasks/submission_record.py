"""Persist the submission of a task across its attempts, so that a retry resumes it instead of paying twice.

The record is in Airflow's task state store (Airflow 3.3 and later), or else in the folder that the setting
``[modelscope] submission_records`` names. It is written before a submission is sent, and gets the
``generation_id`` from the response. XComs do not work: a retry deletes them first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import airflow.sdk

from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.resuming import SETTING, submission_records
from airflow_provider_modelscope.xcoms import Submission

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.tasks.record_store import RecordStore

KEY = "modelscope_submission"

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
        match self._read():
            case None:
                return None
            case {"done": int(max_tries)} if max_tries != self._max_tries:
                return None
            case {"fingerprint": str(other), **rest} if other != fingerprint:
                log.warning(
                    "Submitting again: the request or the account differs from that of an earlier attempt, "
                    "which submitted generation %s",
                    rest.get("generation_id", "(unknown)"),
                )
                return None
            case {
                "generation_id": str(generation_id),
                "model": str(model),
                "submitted_at": float() | int() as submitted_at,
            }:
                return Submission(generation_id=generation_id, model=model, submitted_at=submitted_at)
            case {"fingerprint": str(), "sent_at": float() | int() as sent_at}:
                problem = f"An earlier attempt ended while submitting, {time.time() - sent_at:.0f} s ago"
                if self._on_lost_response == "fail":
                    raise self._unresolved(problem)
                log.warning(
                    "Submitting again, which may be charged twice. %s, and may have created a generation",
                    problem,
                )
                return None
            case record:
                raise SubmissionRecordError(
                    f"Invalid record {self._name}, nothing was sent: {record!r:.200}. Delete the record, or "
                    "set durable=False"
                )

    @contextmanager
    def sending(self, fingerprint: str) -> Iterator[None]:
        """Record that a submission is being sent, until it is certain that it created nothing.

        :raises SubmissionUnresolvedError: if it got no response, and resubmitting is not allowed.
        """
        self._write({"fingerprint": fingerprint, "sent_at": time.time()})
        try:
            yield
        except SubmissionLostError as error:
            if self._on_lost_response == "fail":
                raise self._unresolved(error.message) from None
            error.message += (
                '. A retry submits again, which may be charged twice; on_lost_response="fail" prevents that'
            )
            raise
        except ModelScopeError:
            self.forget()
            raise

    def _unresolved(self, problem: str) -> SubmissionUnresolvedError:
        self.forget()  # the next attempt is a person's decision
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
                {
                    "fingerprint": fingerprint,
                    "generation_id": submission.generation_id,
                    "model": submission.model,
                    "submitted_at": submission.submitted_at,
                }
            )
        except SubmissionRecordError as error:  # the generation is paid for: go on with it
            log.warning("A retry would submit generation %s again: %s", submission.generation_id, error)

    def note_failure(self) -> bool:
        """Record that the generation gave no image although the service responded.

        The second time the record is deleted, so that the next attempt submits a new generation.

        :return: Whether this is the second time.
        """
        try:
            record = self._read()
            if not isinstance(record, dict):
                return False
            if not record.get("failed_once"):
                self._write({**record, "failed_once": True})
                return False
        except SubmissionRecordError as error:
            log.warning("%s", error)
            return False
        log.warning(
            "Giving up generation %s: the next submission creates a new one, which is charged",
            record["generation_id"],
        )
        self.forget()
        return True

    def finish(self) -> None:
        """Record that the task is done: a retry resumes the generation, while Clear submits a new one.

        This mark alone decides. That the record is deleted later is tidiness.
        """
        if self._max_tries is None:
            return self.forget()
        try:
            if isinstance(record := self._read(), dict):
                self._write({**record, "done": self._max_tries})
        except SubmissionRecordError as error:
            log.warning("Clear would store the same images again: %s", error)

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
        if self._store is None:
            return
        try:
            self._store.delete(KEY)
        except Exception as error:  # any backend
            log.warning("The record %s was not deleted: %r", self._name, error)

    def _read(self) -> Any:
        try:
            return None if self._store is None else self._store.get(KEY)
        except Exception as error:  # any backend
            raise SubmissionRecordError(f"The record {self._name} cannot be read: {error!r}") from error

    def _write(self, record: dict[str, Any]) -> None:
        try:
            if self._in_object_storage:
                self._in_object_storage.set(KEY, record)
            elif self._store is not None:
                self._store.set(KEY, record, retention=getattr(airflow.sdk, "NEVER_EXPIRE", None))
        except Exception as error:  # any backend
            raise SubmissionRecordError(f"The record {self._name} cannot be written: {error!r}") from error


def forget_submission(context: Context) -> None:
    """Delete the record, as ``on_success_callback``, which runs even if no success was recorded."""
    SubmissionRecord(context).forget_if_success_is_recorded()
