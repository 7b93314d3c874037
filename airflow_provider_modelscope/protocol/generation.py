"""What ModelScope reports about one generation, as an immutable value.

ModelScope's API calls a generation a task: ``task_id`` and ``task_status`` are renamed here, where the JSON
is read, because a task is something else in Airflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationRejectedError,
    InvalidRequestError,
)
from airflow_provider_modelscope.protocol.body import (
    ENDED,
    SUCCEEDED,
    Body,
    ErrorDetail,
    finite,
    integer,
    text_of,
)
from airflow_provider_modelscope.protocol.errors import FAILED_STATUS, meaning_of, status_of
from airflow_provider_modelscope.redaction import MAX_MESSAGE, preview

SUCCEED = "SUCCEED"
FAILED = "FAILED"
NOT_FOUND_GRACE = 30.0  # seconds in which "task not found" may only mean "just accepted"

_CODES_OF_AN_UNKNOWN_ID = (400, 404, 410)  # others from 400 to 499 are about the request

MAX_ID = 200  # characters; observed ids have 7


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The state of one generation, as one response reports it.

    :param generation_id: ModelScope's ``task_id``.
    :param status: ModelScope's ``task_status`` in capitals. Words that mean the same as ``SUCCEED`` or
        ``FAILED`` become these, and so does a ``SUCCEED`` with an error in place of images. An end with
        images is a ``SUCCEED``, and so are images without a status. Any other text, even an empty one,
        means that the generation is still running.
    :param output_images: URLs of the images. Their lifetime is undocumented.
    :param parameters: The parameters that the service used (ModelScope's ``input``), such as a random seed.
    :param duration_ms: Duration of the generation, if reported.
    :param error: Details of a failure.
    """

    generation_id: str
    status: str
    output_images: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    duration_ms: float | None = None
    error: ErrorDetail = field(default_factory=ErrorDetail)

    @classmethod
    def from_body(cls, body: Body, *, generation_id: str) -> Self:
        """Read the response to a poll. Its own ``task_id`` is empty while the generation runs."""
        word, error, used = body.status_word, body.error, body.first("input")
        status = _status(word, has_images=bool(body.images), is_error=error.is_error)
        if status == FAILED and word != FAILED:
            reason = f"{word} without images" if word in SUCCEEDED else word
            error = replace(error, message=f"{reason}: {error.message}" if error.message else reason)
        return cls(
            generation_id=generation_id,
            status=status,
            output_images=body.images,
            parameters=used if isinstance(used, Mapping) else {},
            duration_ms=finite(body.first("time_taken")),
            error=error,
        )

    @property
    def is_not_found(self) -> bool:
        """Whether the service reports an unknown id. That is no verdict yet on a new generation."""
        code = self.error.code
        is_about_request = 400 <= status_of(code, default=0) < 500
        return (
            self.status == FAILED
            and (code in _CODES_OF_AN_UNKNOWN_ID or not is_about_request)
            and bool(_NOT_FOUND.match(self.error.message.lower()))
        )

    def has_failed(self, *, age: float) -> bool:
        """Whether the generation FAILED. A new generation that is not found has not failed yet.

        :param age: Seconds since the submission.
        """
        return self.status == FAILED and not (self.is_not_found and age < NOT_FOUND_GRACE)

    def with_images_as_success(self) -> Self:
        """Return the generation as finished: at the end of a wait its images count, whatever its status."""
        return replace(self, status=SUCCEED)

    @property
    def is_finished(self) -> bool:
        """Whether the status is final. ``SUCCEED`` without images is a broken response: poll again."""
        return self.status == FAILED or (self.status == SUCCEED and bool(self.output_images))

    @property
    def seed(self) -> int | None:
        """The seed that the service used, if reported."""
        return integer(self.parameters.get("seed"))

    @property
    def request_id(self) -> str | None:
        """ModelScope's id of this response, for its support."""
        return self.error.request_id

    def effective_parameters(self) -> dict[str, Any]:
        """Return the parameters that the service used, under the names that a request has for them.

        Values of unexpected types are left out; a database can store the rest.
        """
        used = self.parameters
        width, height = integer(used.get("width")), integer(used.get("height"))
        named = {
            "prompt": _storable_text(used.get("prompt")),
            "negative_prompt": _storable_text(used.get("negativePrompt")),
            "size": f"{width}x{height}" if width and height else None,
            "seed": self.seed,
            "steps": integer(used.get("numInferenceSteps")),
            "guidance": finite(used.get("guidanceScale")),
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def is_refunded(self) -> bool:
        """Whether it FAILED by a fault of the service. Whether a rejected prompt is refunded is unknown."""
        return self.status == FAILED and not self._is_rejected and not self.is_not_found

    @property
    def _is_rejected(self) -> bool:
        """Whether the same request would fail again."""
        status = status_of(self.error.code, default=FAILED_STATUS)
        used = self.effective_parameters()
        echoes = [used.get(name, "") for name in ("prompt", "negative_prompt")]
        meaning = meaning_of(status if status < 500 else FAILED_STATUS, self.error.message, echoes=echoes)
        return meaning.is_final

    def raise_for_failure(self, *, retry_resubmits: bool) -> None:
        """Raise an error if the generation FAILED.

        :param retry_resubmits: Whether a retry of the calling Airflow task submits a new generation. If it
            only polls this one again, it cannot help.
        :raises GenerationFailedError: if a new generation may succeed.
        :raises GenerationRejectedError: if a retry cannot help.
        """
        if self.status != FAILED:
            return
        is_rejected = self._is_rejected and not self.is_not_found
        kind = GenerationFailedError if retry_resubmits and not is_rejected else GenerationRejectedError
        message = f"Generation FAILED: {self.error.message or 'no reason given'}"
        if self.is_not_found:
            message = (
                f"{message.rstrip('.')}. The id may be wrong or expired, or belong to another account or "
                "host: check it, or submit again"
            )
        raise kind(
            message,
            code=self.error.code,
            request_id=self.error.request_id,
            generation_id=self.generation_id,
        )


def checked_id(generation_id: Any) -> str:
    """Return a generation id as text: an opaque word that fits into a URL.

    :raises InvalidRequestError: for any other value, such as None from an upstream task.
    """
    is_id = isinstance(generation_id, str | int) and not isinstance(generation_id, bool)
    text = text_of(generation_id).strip() if is_id else ""
    if (
        text in ("", "None", "null", ".", "..")  # a path that ends in dots is another path
        or text[0] in "[{("  # a list or mapping that a template rendered as text
        or len(text) > MAX_ID
        or not (text.isprintable() and len(text.split()) == 1)
    ):
        raise InvalidRequestError(
            f"generation_id = {preview(generation_id)}: must be the id that a submit task returned; "
            "for several ids, map over them with .expand(generation_id=...)"
        )
    return text


def _status(word: str, *, has_images: bool, is_error: bool) -> str:
    """Return what a word of the service means. An image is paid for: an end with one is a success."""
    kind = SUCCEED if word in SUCCEEDED else FAILED if word in ENDED else word
    match kind, has_images, is_error:
        case ("SUCCEED", False, True) | ("UNKNOWN", False, True):
            return FAILED
        case ("FAILED" | "", True, _) | ("UNKNOWN", True, True):
            return SUCCEED
    return kind


_ID = r"""[ :：=#'"]*(?:(?=[a-z_-]{0,63}\d)[\w-]{1,64})?['"]* ?"""  # an id contains a digit
# At the start: a generation may FAIL because something else is not found.
_NOT_FOUND = re.compile(
    rf"(?:[\w .-]{{1,60}}:)* ?(?:(?:the )?task(?:[ _]?id)?(?: with (?:the )?id)?{_ID}"
    r"(?:was |is |does |could |can)?not (?:be )?(?:found|exist)"
    rf"|(?:invalid|unknown|no such) task(?:[ _]?id)?{_ID}[.!]?$|任务(?: ?id)?{_ID}(?:不存在|未找到))"
    r"|not found:? ?(?:the )?task\b"
)


def _storable_text(value: Any) -> str | None:
    """Return a prompt in a form that a database can store, or None if there is none."""
    if not isinstance(value, str) or not value.strip():
        return None
    return re.sub("[\0\ud800-\udfff]", "\ufffd", value[:MAX_MESSAGE])
