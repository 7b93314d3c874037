"""Every error of this package, in one tree whose two branches answer "would a retry help?".

::

    ModelScopeError
    ├── ModelScopeFinalError            no: Airflow ends the task at once, whatever its retries
    │   ├── InvalidRequestError         parameters out of range; nothing was sent
    │   ├── InvalidConnectionError      the Airflow connection cannot be used
    │   ├── InvalidDestinationError     the destination cannot be written to
    │   ├── RequestRejectedError        the service refused the parameters
    │   │   └── UnknownModelError       it has no such model
    │   ├── AuthenticationError         it refused the token
    │   ├── AccountNotReadyError        the account is not bound or not verified
    │   ├── QuotaExhaustedError         the day's quota or the credit is spent
    │   ├── SubmissionUnresolvedError   sent, but not answered, and not to be sent again
    │   ├── GenerationRejectedError     the generation FAILED, and doing the same again would too
    │   └── ImageNotAllowedError           an output image is too large, or where images may not come from
    └── ModelScopeRetryableError        yes: left to the retries of the Dag's author
        ├── ServiceUnavailableError     no usable answer: network, 5xx, something that is not JSON
        │   └── ServiceUnreachableError no connection at all, so nothing was sent
        ├── RateLimitedError            too fast (429); nothing was created
        │   └── QueueFullError          the account already runs as many generations as it may
        ├── SubmissionLostError         sent, but not answered: a generation may have been made and charged
        ├── SubmissionRecordError                 the record of what was submitted cannot be read or written
        ├── GenerationFailedError       the generation FAILED; a new one may not
        ├── GenerationTimeoutError      it did not finish in time
        │   └── GenerationStatusUnknownError   nobody knows, as the service could not be asked at the end
        └── ImageError                  an output image could not be had whole
            ├── ImageGoneError          its URL works no longer
            └── ImageStorageError     no room for it on a disk, or the store failed to take it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line


class ModelScopeError(AirflowException):
    """The parent of all; what is known of the failure stands in the text and in the attributes.

    :param message: What went wrong, and what to do; kept as one line of at most 4000 characters.
    :param code: The answer's HTTP status, or the ``code`` that the service gave in its body.
    :param request_id: ModelScope's id of its answer, for its support.
    :param generation_id: The generation it is about.
    :param retry_after: Seconds that the service asked to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        request_id: str | None = None,
        generation_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = one_line(message, MAX_MESSAGE)
        super().__init__(self.message)
        self.code = code
        self.request_id = request_id
        self.generation_id = generation_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        known = {"code": self.code, "request id": self.request_id, "generation": self.generation_id}
        evidence = ", ".join(
            f"{name} {one_line(str(value), MAX_NAME)}" for name, value in known.items() if value is not None
        )
        return f"{self.message} ({evidence})" if evidence else self.message

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` needs to raise the same error in another process."""
        return {
            "kind": type(self).__name__,
            "message": self.message,
            "code": self.code,
            "request_id": self.request_id,
            "generation_id": self.generation_id,
            "retry_after": self.retry_after,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelScopeError:
        """Return the error that :meth:`to_json` described; a plain one where its kind is not known."""
        kinds = {kind.__name__: kind for kind in cls._descendants()}
        details = {key: value.get(key) for key in ("code", "request_id", "generation_id", "retry_after")}
        return kinds.get(value["kind"], cls)(value["message"], **details)

    @classmethod
    def _descendants(cls) -> list[type[Self]]:
        return [cls, *(kind for child in cls.__subclasses__() for kind in child._descendants())]


class ModelScopeFinalError(ModelScopeError, AirflowFailException):
    """Waiting does not help: Airflow ends the task without using its retries."""


class InvalidRequestError(ModelScopeFinalError):
    """Parameters that the service would refuse, all mistakes at once; nothing was sent."""


class InvalidConnectionError(ModelScopeFinalError):
    """The Airflow connection cannot be used as it is."""


class InvalidDestinationError(ModelScopeFinalError):
    """The destination is not one that an image can be written to."""


class RequestRejectedError(ModelScopeFinalError):
    """The service refused the parameters."""


class UnknownModelError(RequestRejectedError):
    """The service has no such model, or no longer."""


class AuthenticationError(ModelScopeFinalError):
    """The service refused the token."""


class AccountNotReadyError(ModelScopeFinalError):
    """The token is good, but its account is not bound to Alibaba Cloud or not verified."""


class QuotaExhaustedError(ModelScopeFinalError):
    """The day's quota or the account's credit is spent; waiting minutes does not help."""


class SubmissionUnresolvedError(ModelScopeFinalError):
    """A submission was sent and not answered, and ``on_lost_response="fail"`` forbids to send it again."""


class GenerationRejectedError(ModelScopeFinalError):
    """The generation FAILED, and what this task would do again would end the same way."""


class ImageNotAllowedError(ModelScopeFinalError):
    """An output image is larger than the connection allows, or at an address it may not come from."""


class ModelScopeRetryableError(ModelScopeError):
    """A later try may do better: left to the retries of the Dag's author."""


class ServiceUnavailableError(ModelScopeRetryableError):
    """There was no usable answer: the network, a 5xx, or something that is not the API's JSON."""


class ServiceUnreachableError(ServiceUnavailableError):
    """No connection was made, so nothing was sent."""


class RateLimitedError(ModelScopeRetryableError):
    """Requests come too fast; nothing was created."""


class QueueFullError(RateLimitedError):
    """The account already runs as many generations as it may; nothing was created."""


class SubmissionLostError(ModelScopeRetryableError):
    """A submission was sent and not answered: a generation may have been made, and charged."""


class SubmissionRecordError(ModelScopeRetryableError):
    """The record of what earlier tries submitted cannot be read, or not be written; nothing was sent."""


class GenerationFailedError(ModelScopeRetryableError):
    """The generation FAILED for a reason that a new one need not share."""


class GenerationTimeoutError(ModelScopeRetryableError):
    """The generation did not finish in time; it may yet."""


class GenerationStatusUnknownError(GenerationTimeoutError):
    """Whether the generation finished in time is not known: the service could not be asked at the end."""


class ImageError(ModelScopeRetryableError):
    """An output image could not be had whole; nothing was stored."""


class ImageGoneError(ImageError):
    """The URL of an output image works no longer; the generation may have a fresh one."""


class ImageStorageError(ImageError):
    """A disk has no room for an output image, or the store failed to take it; nothing half stands there."""
