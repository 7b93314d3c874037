"""The events of the triggers as values: a trigger emits one, and the resumed task reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

from airflow_provider_modelscope.exceptions import ModelScopeError, ModelScopeFinalError
from airflow_provider_modelscope.redaction import preview


@dataclass(frozen=True, kw_only=True)
class Event:
    """How a wait ended.

    :param status: Names the class in the payload.
    """

    status: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return the payload of the event."""
        return {"status": self.status, **vars(self)}


@dataclass(frozen=True, kw_only=True)
class GenerationFinished(Event):
    """A generation has finished, which includes FAILED: the task polls for the images or the reason."""

    status = "finished"
    generation_id: str


@dataclass(frozen=True, kw_only=True)
class SlotFree(Event):
    """The account has a free slot, or soon will: the task may submit.

    :param queued_at: When the task began to wait, in epoch seconds.
    :param end_time: When the task gives up, in epoch seconds.
    :param granted_at: When the slot was granted, in epoch seconds.
    """

    status = "slot_free"
    queued_at: float
    end_time: float
    granted_at: float


@dataclass(frozen=True, kw_only=True)
class CreditAvailable(Event):
    """The account may have enough credit again, or the wait for it is over: the task may submit."""

    status = "credit_available"


@dataclass(frozen=True, kw_only=True)
class CreditRead(Event):
    """The account has enough credit, or the wait for it is over.

    :param available: The credit, None at the end of the wait.
    """

    status = "credit_read"
    available: float | None


@dataclass(frozen=True, kw_only=True)
class WaitFailed(Event):
    """The wait ended with an error, which the task raises."""

    status = "error"
    error: ModelScopeError

    def to_json(self) -> dict[str, Any]:
        """Return the payload of the event."""
        return {"status": self.status, "error": self.error.to_json()}


@dataclass(frozen=True, kw_only=True)
class DeferredTask:
    """A task when it deferred: its trigger takes it along, and every event returns it.

    :param attempt: The attempt that deferred. Airflow 3.0 gives its event to later attempts as well.
    :param parameters: The parameters to resume with. Attributes that were set in ``execute`` are lost.
    :param digests: Digests of the parameters that must not be stored.
    """

    attempt: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the argument of the trigger."""
        return dict(vars(self))

    @classmethod
    def from_event(cls, payload: Any) -> Self:
        """Return the task that the payload of an event contains.

        :raises ModelScopeFinalError: if it contains none.
        """
        match payload:
            case {
                "deferred_task": {
                    "attempt": int(attempt),
                    "parameters": dict(values),
                    "digests": dict(digests),
                }
            }:
                return cls(attempt=attempt, parameters=values, digests=digests)
        raise _unexpected(payload)


Expected = TypeVar("Expected", GenerationFinished, SlotFree, CreditAvailable, CreditRead)


def read_event(payload: Any, expected: type[Expected]) -> Expected:
    """Return the event of the expected type.

    :param payload: What ``to_json`` of an event returned, in another process.
    :raises ModelScopeError: if the wait failed, its error. Any other payload is a
        :class:`ModelScopeFinalError`, and never counts as success.
    """
    event: Event | None = None
    match payload:
        case {"status": "finished", "generation_id": str(generation_id)}:
            event = GenerationFinished(generation_id=generation_id)
        case {
            "status": "slot_free",
            "queued_at": float() | int() as queued_at,
            "end_time": float() | int() as end_time,
            "granted_at": float() | int() as granted_at,
        }:
            event = SlotFree(queued_at=queued_at, end_time=end_time, granted_at=granted_at)
        case {"status": "credit_available"}:
            event = CreditAvailable()
        case {"status": "credit_read", "available": float() | int() | None as available}:
            event = CreditRead(available=available)
        case {"status": "error", "error": {"kind": str(), "message": str()} as error}:
            raise ModelScopeError.from_json(error)
    if isinstance(event, expected):
        return event
    raise _unexpected(payload)


def _unexpected(payload: Any) -> ModelScopeFinalError:
    return ModelScopeFinalError(
        f"Unexpected trigger event: {preview(payload, 400)}. Clear the task to run it again"
    )
