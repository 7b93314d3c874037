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
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.xcoms import Submission

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.request import GenerationRequest

KEY = "modelscope_submission"

log = logging.getLogger(__name__)


def fingerprint_of(request: GenerationRequest, account: Account) -> str:
    """Return what tells a request of an account from any other; it gives neither away."""
    asked = [request.to_json(), account.base_url, account.token]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class SubmissionRecord:
    """The record of a task instance; where there is no store, nothing is kept.

    :param durable: Whether to keep it at all.
    :param on_lost_response: What to do where a submission was sent and nobody can tell whether it made a
        generation: ``"resubmit"`` or ``"fail"``.
    """

    def __init__(self, context: Context, *, durable: bool = True, on_lost_response: str = "resubmit") -> None:
        self._store: Any = context.get("task_state_store") if durable else None
        # Grows when the task is cleared, and only then: so it tells a retry from that.
        self._max_tries: int | None = getattr(context["ti"], "max_tries", None)
        self._lacks_store = durable and self._store is None and bool(self._max_tries)
        self._on_lost_answer = on_lost_response

    def recall(self, fingerprint: str) -> Submission | None:
        """Return the generation that an earlier try submitted, None where it is to be submitted.

        :raises SubmissionUnresolvedError: where it was about to submit, and must not do so again.
        :raises SubmissionRecordError: where the record cannot be read, which does not mean that there is none.
        """
        match self._read():
            case None:
                return None
            case {"done": int(max_tries)} if max_tries != self._max_tries:
                return None
            case {"fingerprint": str(other), **rest} if other != fingerprint:
                log.warning(
                    "An earlier try asked for something else, or as another account: submitting anew. Its "
                    "generation was %s",
                    rest.get("generation_id", "not known"),
                )
                return None
            case {
                "generation_id": str(generation_id),
                "model": str(model),
                "submitted_at": float() | int() as submitted_at,
            }:
                return Submission(generation_id=generation_id, model=model, submitted_at=submitted_at)
            case {"fingerprint": str(), "sent_at": float() | int() as sent_at}:
                seconds = time.time() - sent_at
                what_happened = f"An earlier try ended while it was submitting, {seconds:.0f} s ago"
                if self._on_lost_answer == "fail":
                    raise self._unresolved(what_happened)
                log.warning(
                    "%s, and nobody can tell whether that made a generation. Submitting again: this prompt "
                    "may be paid twice",
                    what_happened,
                )
                return None
            case record:
                raise SubmissionRecordError(
                    f"Nothing was sent: what this task's state store holds as {KEY!r} is no record of ours: "
                    f"{record!r:.200}. Delete it there, or set durable=False"
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
                raise self._unresolved(error.message) from None
            error.message += (
                '. A retry sends it again and may pay twice; on_lost_response="fail" prevents that'
            )
            raise
        except ModelScopeError:
            self.forget()
            raise

    def _unresolved(self, what_happened: str) -> SubmissionUnresolvedError:
        self.forget()  # the next to run this task is a person, who knows
        return SubmissionUnresolvedError(
            f"{what_happened}. on_lost_response='fail' forbids to pay twice: clear the task to submit again"
        )

    def keep(self, fingerprint: str, submission: Submission) -> None:
        """Keep the generation that was made, or say that this Airflow cannot."""
        if self._lacks_store:
            log.warning(
                "A retry would submit generation %s again: only Airflow 3.3 and later keep it between tries",
                submission.generation_id,
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
        except SubmissionRecordError as error:  # it is made and paid for: go on with it
            log.warning("A retry would submit generation %s again: %s", submission.generation_id, error)

    def miss(self) -> bool:
        """Note that the generation could not be brought to its end, though the service answered.

        The second time it is forgotten: what comes next is a new one. Return whether this is the second.
        """
        try:
            record = self._read()
            if not isinstance(record, dict):
                return False
            if not record.get("is_missed"):
                self._write({**record, "is_missed": True})
                return False
        except SubmissionRecordError as error:
            log.warning("%s", error)
            return False
        log.warning(
            "Generation %s is given up: what comes next is a new one, paid anew", record["generation_id"]
        )
        self.forget()
        return True

    def finish(self) -> None:
        """Note that the work is done. The record goes when Airflow has noted that as well.

        Until then a retry would take the generation up, while Clear means a new one.
        """
        if self._max_tries is None:
            return self.forget()
        try:
            if isinstance(record := self._read(), dict):
                self._write({**record, "done": self._max_tries})
        except SubmissionRecordError as error:
            log.warning("Clear would give the same images again: %s", error)

    def forget(self) -> None:
        """Forget what was submitted: there is nothing to take up."""
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
            raise SubmissionRecordError(f"This task's state store cannot be read: {error}") from error

    def _write(self, record: dict[str, Any]) -> None:
        try:
            if self._store is not None:
                self._store.set(KEY, record)
        except Exception as error:  # whatever its backend raises
            raise SubmissionRecordError(f"This task's state store cannot be written to: {error}") from error


def forget_submission(context: Context) -> None:
    """Let the record go, as ``on_success_callback``: Airflow has noted the success."""
    SubmissionRecord(context).forget()
