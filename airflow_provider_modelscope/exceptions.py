"""All errors of this package. The two branches of the tree say whether a retry can help.

::

    ModelScopeError
    ├── ModelScopeFinalError            no: Airflow fails the task at once, without its retries
    │   ├── InvalidRequestError         a parameter is invalid; nothing was sent
    │   ├── InvalidConnectionError      the Airflow connection is invalid
    │   ├── InvalidDestinationError     the destination is invalid or not writable
    │   ├── RequestRejectedError        the service rejected the request
    │   │   └── UnknownModelError       it does not serve the model
    │   ├── AuthenticationError         it rejected the token
    │   ├── AccountNotReadyError        the account is not bound or not verified
    │   ├── QuotaExhaustedError         the daily quota of the account or the model is used up
    │   │   ├── CreditExhaustedError    the account's credit is used up
    │   │   └── ModelRetiredError       the model is no longer served, or there is no credit
    │   ├── CreditLimitError            ``max_credit`` would be exceeded; nothing was sent
    │   ├── SubmissionUnresolvedError   no usable response to a submission, and no second one is allowed
    │   ├── GenerationRejectedError     the generation FAILED, and a retry would fail as well
    │   ├── BatchRejectedError          too many rows of a batch have no image, and a retry would not help
    │   ├── ImageNotAllowedError        an output image is too large, or its address is not allowed
    │   └── ImageUnavailableError       the images are gone, and a retry could only pay for others
    └── ModelScopeRetryableError        yes: Airflow retries the task as its Dag says
        ├── ServiceUnavailableError     no usable response: network error, 5xx, or not the API's JSON
        │   └── ServiceUnreachableError no connection, so nothing was sent
        ├── RateLimitedError            too many requests, or overload; nothing was created
        │   └── QueueFullError          too many running generations; nothing was created
        ├── PriceUnknownError           what a generation costs is unknown, so ``max_credit`` forbids it
        ├── SubmissionLostError         no usable response to a submission: it may have been charged
        ├── SubmissionRecordError       the record of earlier submissions cannot be read or written
        ├── BatchFailedError            too many rows of a batch have no image; a retry does only these
        ├── GenerationFailedError       the generation FAILED; a new one may succeed
        ├── GenerationTimeoutError      the generation did not finish before its deadline
        │   └── GenerationStatusUnknownError   or its status at the deadline is unknown
        └── ImageError                  an output image could not be downloaded, decoded or stored
            ├── BrokenImageError        its bytes are complete, but no image
            ├── ImageGoneError          its URL has expired
            └── ImageStorageError       the disk is full, or the object store failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from airflow_provider_modelscope.compat import AirflowException, AirflowFailException
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line

_DETAILS = ("code", "request_id", "generation_id", "retry_after")  # what is known beside the message


class ModelScopeError(AirflowException):
    """The base class of all errors of this package. Text and attributes hold what is known of the failure.

    :param message: What failed, what is allowed and what to do, on one line of at most 4000 characters.
    :param code: The HTTP status, or the ``code`` in the body of the response.
    :param request_id: ModelScope's id of the response, for its support.
    :param generation_id: The generation that the error is about.
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
        """Return the error as JSON, for :meth:`from_json` in another process."""
        details = {name: getattr(self, name) for name in _DETAILS}
        return {"kind": type(self).__name__, "message": self.message, **details}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelScopeError:
        """Return the error that :meth:`to_json` described, or a plain one if its kind is unknown."""
        kinds = {kind.__name__: kind for kind in cls._descendants()}
        details = {name: value.get(name) for name in _DETAILS}
        return kinds.get(value["kind"], cls)(value["message"], **details)

    @classmethod
    def _descendants(cls) -> list[type[Self]]:
        return [cls, *(kind for child in cls.__subclasses__() for kind in child._descendants())]


class ModelScopeFinalError(ModelScopeError, AirflowFailException):
    """A retry cannot help. Airflow fails the task at once, without using its retries."""


class InvalidRequestError(ModelScopeFinalError):
    """A parameter is invalid, and nothing was sent.

    The message lists every invalid parameter with its value and the allowed values. Correct them in the Dag.
    """


class InvalidConnectionError(ModelScopeFinalError):
    """The Airflow connection is invalid, and nothing was sent.

    Correct the field or the environment variable that the message names.
    """


class InvalidDestinationError(ModelScopeFinalError):
    """The destination is invalid, or images cannot be written to it.

    Most causes are found before the generation is submitted; a missing permission may only show when an image
    is stored. Correct the destination or its permissions, then do what the message says. The
    folder of ``[modelscope] submission_records`` is checked in the same way.
    """


class RequestRejectedError(ModelScopeFinalError):
    """The service rejected the request; nothing was created.

    The message contains its reason. Correct the parameters or the prompt.
    """


class UnknownModelError(RequestRejectedError):
    """The service does not serve the model, or no longer does; nothing was created.

    Choose a model that shows API-Inference on its page.
    """


class AuthenticationError(ModelScopeFinalError):
    """The service rejected the token, or the token lacks a permission.

    Create a token on the page that the message names, and save it as the password of the connection.
    """


class AccountNotReadyError(ModelScopeFinalError):
    """The token is valid, but its account is not bound to Alibaba Cloud or not verified.

    Bind or verify the account on the page that the message names, then clear the task.
    """


class QuotaExhaustedError(ModelScopeFinalError):
    """The daily quota of the account or the model is used up; nothing was created.

    Use another model, or clear the task on the next day.
    """


class CreditExhaustedError(QuotaExhaustedError):
    """The credit of the account is used up; nothing was created.

    Get credit on the page that the message names, then clear the task.
    """


class ModelRetiredError(QuotaExhaustedError):
    """The model is no longer served, or the account has no credit; nothing was created.

    ModelScope uses the same words for both. If there is credit, use another model.
    """


class CreditLimitError(ModelScopeFinalError):
    """The next submission could exceed the ``max_credit`` of the task, and nothing was sent.

    All attempts of the task count, and so does a submission without a response. What the service gave back
    for a FAILED generation does not. Raise ``max_credit``, then clear the task.
    """


class SubmissionUnresolvedError(ModelScopeFinalError):
    """A submission got no usable response, and ``on_lost_response="fail"`` prohibits a second one.

    A generation may have been created and charged. Check the account's credit, then clear the task to submit
    again.
    """


class GenerationRejectedError(ModelScopeFinalError):
    """The generation FAILED, and a retry of this task would fail as well.

    Either the service rejects the prompt or a parameter, so change it; or this task only waits for the
    generation, as the sensor and the transfer do, so submit a new one.
    """


class BatchRejectedError(ModelScopeFinalError):
    """More rows of a batch than ``max_failures`` have no image, and would have none after a retry.

    The images of the other rows are stored. The manifest says what is wrong with each row. Correct the rows,
    then clear the task, which does only these.
    """


class ImageNotAllowedError(ModelScopeFinalError):
    """An output image is too large, or its address is not allowed.

    The limits are ``max_image_bytes`` and ``allowed_image_hosts`` in the connection's extra, https, and three
    redirects. Correct the connection, then store the generation without a second charge, see
    ``docs/concepts/charged-once.md``.
    """


class ImageUnavailableError(ModelScopeFinalError):
    """The images of a generation cannot be stored, and a retry could only pay for another one.

    Either those of its replacement could not be downloaded as well, or there is nothing that a retry could
    resume. Check what blocks the images' host, then do what the message says.
    """


class ModelScopeRetryableError(ModelScopeError):
    """A retry can help. Airflow retries the task as often as its Dag says."""


class ServiceUnavailableError(ModelScopeRetryableError):
    """The service sent no usable response: a network error, a 5xx, or something other than the API's JSON.

    A retry helps once the service is back. If the message shows the page of a proxy or firewall, check the
    connection's host and proxy.
    """


class ServiceUnreachableError(ServiceUnavailableError):
    """The service cannot be reached, so nothing was sent.

    A retry helps if the network was down. Otherwise check the connection's host, proxy and ``verify``.
    """


class RateLimitedError(ModelScopeRetryableError):
    """The service received too many requests, or was busy, until ``queue_timeout``; nothing was created.

    A retry submits again. Raise ``queue_timeout``, or let fewer tasks use the account at once.
    """


class QueueFullError(RateLimitedError):
    """The account ran its maximum of generations until ``queue_timeout``; nothing was created.

    A retry submits again. Raise ``queue_timeout``, or let fewer tasks use the account at once.
    """


class PriceUnknownError(ModelScopeRetryableError):
    """The service does not say what a generation costs, and the task has a ``max_credit``; nothing was sent.

    A retry helps if the service was away for a moment. Otherwise use another model, or no ``max_credit``.
    """


class SubmissionLostError(ModelScopeRetryableError):
    """A submission got no usable response: a generation may have been created and charged.

    A retry submits again, which may be charged twice; ``on_lost_response="fail"`` prevents that.
    """


class SubmissionRecordError(ModelScopeRetryableError):
    """The record of earlier submissions cannot be read or written, and nothing was sent.

    A retry helps once Airflow's task state store, or the folder of ``[modelscope] submission_records``, is
    back. If the message shows an invalid record, delete it, or set ``durable=False``.
    """


class BatchFailedError(ModelScopeRetryableError):
    """More rows of a batch than ``max_failures`` have no image, for reasons that may pass.

    The images of the other rows are stored. A retry does only the rows that failed.
    """


class GenerationFailedError(ModelScopeRetryableError):
    """The generation FAILED, was canceled or expired, for a reason that a new one may not share.

    A retry submits a new generation.
    """


class GenerationTimeoutError(ModelScopeRetryableError):
    """The generation did not finish before its deadline; it may still finish.

    A retry resumes waiting for it. Raise ``timeout`` if the model is slower.
    """


class GenerationStatusUnknownError(GenerationTimeoutError):
    """The status of the generation is unknown, because the service sent no usable response.

    A retry resumes waiting for the same generation.
    """


class ImageError(ModelScopeRetryableError):
    """An output image could not be downloaded completely or decoded, and was not stored.

    A retry downloads it again, without a new generation.
    """


class BrokenImageError(ImageError):
    """The service delivered an output image that is not complete, in no known format, or over a limit.

    A retry downloads it again. If it stays broken, clear the task to get a new generation.
    """

    sha256: str | None = None  # of the complete bytes, in hexadecimal


class ImageGoneError(ImageError):
    """The URL of an output image has expired, and so has the fresh one of the generation.

    A retry asks for another URL; if that fails as well, the next one submits a new generation.
    """


class ImageStorageError(ImageError):
    """An output image could not be stored: the disk or the object store is full or failed.

    No partial object remains. Free space in the worker's temporary folder (``TMPDIR``) or the store; a retry
    stores the image without a new generation. If the store failed before the submission, the message says
    that nothing was sent.
    """
