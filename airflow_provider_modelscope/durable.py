"""What a task remembers of its submission across its tries, so that none is paid for twice.

It stands in Airflow's task state store, which there is from Airflow 3.3 on: before a submission is sent, that
it will be; after the answer, which generation it made. XCom would not do, since a retry begins by wiping it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    RecordError,
    SubmissionLostError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.upstream import Submission

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.request import GenerationRequest

KEY = "modelscope_submission"

log = logging.getLogger(__name__)


def fingerprint_of(request: GenerationRequest, account: Account) -> str:
    """Return what tells a request of an account from any other; it gives neither away."""
    asked = [request.to_json(), account.base_url, account.token]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class SubmissionRecord:
    """The record of a task instance; where there is no store, nothing is kept.

    :param durable: Whether to keep it at all.
    :param on_lost_answer: What to do where a submission was sent and nobody can tell whether it made a
        generation: ``"resubmit"`` or ``"fail"``.
    """

    def __init__(self, context: Context, *, durable: bool, on_lost_answer: str) -> None:
        self._store: Any = context.get("task_state_store") if durable else None
        self._on_lost_answer = on_lost_answer

    def recall(self, fingerprint: str) -> Submission | None:
        """Return the generation that an earlier try submitted, None where it is to be submitted.

        :raises SubmissionUnresolvedError: where it was about to submit, and must not do so again.
        :raises RecordError: where the record cannot be read, which does not mean that there is none.
        """
        match self._read():
            case None:
                return None
            case {"fingerprint": str(other)} if other != fingerprint:
                log.info("An earlier try asked for something else, or as another account: submitting anew")
                return None
            case {
                "generation_id": str(generation_id),
                "model": str(model),
                "submitted_at": float() | int() as submitted_at,
            }:
                return Submission(generation_id=generation_id, model=model, submitted_at=submitted_at)
            case {"fingerprint": str(), "sent_at": float() | int()}:
                if self._on_lost_answer == "fail":
                    raise self._unresolved("An earlier try ended while it was submitting")
                log.warning(
                    "An earlier try ended while it was submitting, and nobody can tell whether that made a "
                    "generation. Submitting again: this prompt may be paid twice"
                )
                return None
            case record:
                raise RecordError(
                    f"What this task's state store holds as {KEY!r} is no record of ours: {record!r:.200}. "
                    "Nothing was sent. Delete it there, or set durable=False"
                )

    @contextmanager
    def sending(self, fingerprint: str) -> Iterator[None]:
        """Keep in mind that a submission is being sent, until it is known to have created nothing.

        :raises SubmissionUnresolvedError: where it was lost, and must not be sent again.
        """
        self._write({"fingerprint": fingerprint, "sent_at": time.time()})
        try:
            yield
        except SubmissionLostError as error:
            if self._on_lost_answer == "fail":
                raise self._unresolved(error.message) from error
            raise
        except ModelScopeError:
            self.forget()
            raise

    def _unresolved(self, what_happened: str) -> SubmissionUnresolvedError:
        self.forget()  # the next to run this task is a person, who knows
        return SubmissionUnresolvedError(
            f"{what_happened}. A generation may have been made and charged, and on_lost_answer='fail' "
            "forbids to pay twice. Clear the task to submit again"
        )

    def keep(self, fingerprint: str, submission: Submission, *, is_taken_up: bool) -> None:
        """Keep a generation.

        :param is_taken_up: Whether an earlier try submitted it.
        """
        try:
            self._write({"fingerprint": fingerprint, **vars(submission), "is_taken_up": is_taken_up})
        except RecordError as error:  # it is made and paid for: go on with it
            log.warning("A retry would submit generation %s again: %s", submission.generation_id, error)

    def give_up(self) -> bool:
        """Forget a generation that a second try could not bring to its end either; tell whether it is one."""
        match self._read():
            case {"is_taken_up": True, "generation_id": generation_id}:
                log.warning(
                    "Two tries had no luck with generation %s: the next one is paid anew", generation_id
                )
                self.forget()
                return True
        return False

    def forget(self) -> None:
        """Forget what was submitted: the work is done, or there is none to take up."""
        if self._store is None:
            return
        try:
            self._store.delete(KEY)
        except Exception as error:  # whatever its backend raises; what was done stays done
            log.warning("The record %r could not be deleted from this task's state store: %r", KEY, error)

    def _read(self) -> Any:
        try:
            return None if self._store is None else self._store.get(KEY)
        except Exception as error:  # whatever its backend raises
            raise RecordError(f"Nothing was sent: this task's state store cannot be read: {error}") from error

    def _write(self, record: dict[str, Any]) -> None:
        try:
            if self._store is not None:
                self._store.set(KEY, record)
        except Exception as error:  # whatever its backend raises
            raise RecordError(f"This task's state store cannot be written to: {error}") from error
