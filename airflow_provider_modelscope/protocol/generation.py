"""What ModelScope reports about one generation, as an immutable value.

ModelScope's API calls a generation a task: ``task_id`` and ``task_status`` are renamed here, where the JSON
is read, because a task is something else in Airflow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationRejectedError,
    InvalidRequestError,
)
from airflow_provider_modelscope.protocol.errors import FAILED_STATUS, UNAVAILABLE, meaning_of, status_of
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line, preview

SUCCEED = "SUCCEED"
FAILED = "FAILED"
NOT_FOUND_GRACE = 30.0  # seconds in which "task not found" may only mean "just accepted"

MAX_ID = 200  # characters; observed ids have 7

# Words for the same, of sister services.
_SUCCEEDED = frozenset(("SUCCEED", "SUCCEEDED", "SUCCESS", "COMPLETED", "COMPLETE", "DONE", "FINISHED"))
_ENDED = frozenset(
    (
        "FAILED", "FAILURE", "FAIL", "ERROR", "CANCELED", "CANCELLED", "CANCEL", "ABORTED", "EXPIRED",
        "TIMEOUT", "TIMED_OUT", "REJECTED", "BLOCKED",
    )
)  # fmt: skip
_PARTS = ("output", "data")  # objects, or lists of one, that may hold what is expected beside them
_IMAGES = ("output_images", "outputs", "output", "data", "images", "results")
_IMAGE_DEPTH = 4  # levels of objects and lists in which to search for URLs

_MESSAGES, _CODES = ("message", "Message", "msg", "detail"), ("code", "Code")
_DETAIL_KEYS = frozenset(("errors", "error", *_MESSAGES, *_CODES))
_FINE_CODES, _FINE_WORDS = (0, 200, 20000), ("success", "succeed", "ok")  # not of an error


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
    """What the service reports about an error, in any of its envelopes.

    :param message: The message, after the textual code and a colon if there is one.
    :param code: The numeric code.
    :param is_error: Whether it reports an error, not only that all is well.
    """

    message: str = ""
    code: int | None = None
    request_id: str | None = None
    is_error: bool = field(default=False, compare=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, secret: str = "") -> Self:
        """Read ``{"errors": {...}}`` or ``{"error": {...}}``, or the details without an envelope.

        :param secret: Text to redact: the token.
        """
        if _DETAIL_KEYS.isdisjoint(body) and not body.get("request_id"):
            return cls()  # the response of a running generation: most responses
        inner = body.get("errors") or body.get("error")
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            inner = inner[0]
        envelope = inner if isinstance(inner, Mapping) else {"message": inner or _any(body, _MESSAGES)}
        code = _any(envelope, _CODES)
        code = _any(body, _CODES) if code is None else code
        message = _text(_any(envelope, _MESSAGES) or "")
        is_word = isinstance(code, str) and bool(code.strip()) and _integer(code) is None
        if is_word:
            message = f"{one_line(code, MAX_NAME, secret=secret)}: {message}"  # a textual code explains too
        request_id = _text(envelope.get("request_id") or body.get("request_id") or "")
        message, number = one_line(message, MAX_MESSAGE, secret=secret), _integer(code)
        return cls(
            message=message,
            code=number,
            request_id=one_line(request_id, MAX_NAME, secret=secret) or None,
            is_error=body.get("success", body.get("Success")) is False
            or (
                number not in _FINE_CODES
                and _text(code).strip().lower() not in _FINE_WORDS
                and (
                    bool(inner and (message or number))
                    or is_word
                    or (number or 0) >= 400
                    or meaning_of(200, message) is not UNAVAILABLE
                )
            ),
        )


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
    error: ErrorDetail = ErrorDetail()

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, generation_id: str, secret: str = "") -> Self:
        """Read the body of a status response. Its own ``task_id`` is empty while the generation runs.

        :param secret: Text to redact: the token.
        """
        images, used = output_images(body), body.get("input")
        error = ErrorDetail.from_json(body, secret=secret)
        word = one_line(_text(first(body, "task_status") or ""), MAX_NAME, secret=secret).upper()
        has_ended = word in _ENDED or (word == "UNKNOWN" and error.is_error)
        if word in _SUCCEEDED or (images and (has_ended or not word)):  # an image is paid for
            status = SUCCEED
        else:
            status = FAILED if has_ended else word
        if status == SUCCEED and not images and error.is_error:
            status, word = FAILED, f"{word} without images"
        if status == FAILED and word != FAILED:
            error = replace(error, message=f"{word}: {error.message}" if error.message else word)
        return cls(
            generation_id=generation_id,
            status=status,
            output_images=images,
            parameters=used if isinstance(used, Mapping) else {},
            duration_ms=_finite(body.get("time_taken")),
            error=error,
        )

    @property
    def is_not_found(self) -> bool:
        """Whether the service reports an unknown id. That is no verdict yet on a new generation."""
        return self.status == FAILED and bool(_NOT_FOUND.search(self.error.message.lower()))

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
        return _integer(self.parameters.get("seed"))

    @property
    def request_id(self) -> str | None:
        """ModelScope's id of this response, for its support."""
        return self.error.request_id

    def effective_parameters(self) -> dict[str, Any]:
        """Return the parameters that the service used, under the names that a request has for them.

        Values of unexpected types are left out; a database can store the rest.
        """
        used = self.parameters
        width, height = _integer(used.get("width")), _integer(used.get("height"))
        named = {
            "prompt": _storable_text(used.get("prompt")),
            "negative_prompt": _storable_text(used.get("negativePrompt")),
            "size": f"{width}x{height}" if width and height else None,
            "seed": self.seed,
            "steps": _integer(used.get("numInferenceSteps")),
            "guidance": _finite(used.get("guidanceScale")),
        }
        return {name: value for name, value in named.items() if value is not None}

    def raise_for_failure(self, *, retry_resubmits: bool) -> None:
        """Raise an error if the generation FAILED.

        :param retry_resubmits: Whether a retry of the calling Airflow task submits a new generation. If it
            only polls this one again, it cannot help.
        :raises GenerationFailedError: if a new generation may succeed.
        :raises GenerationRejectedError: if a retry cannot help.
        """
        if self.status != FAILED:
            return
        status = status_of(self.error.code, default=FAILED_STATUS)
        used = self.effective_parameters()
        echoes = [used.get(name, "") for name in ("prompt", "negative_prompt")]
        meaning = meaning_of(status if status < 500 else FAILED_STATUS, self.error.message, echoes=echoes)
        is_rejected = meaning.is_final and not self.is_not_found
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
    text = _text(generation_id).strip() if is_id else ""
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


def has_status(body: Mapping[str, Any]) -> bool:
    """Whether a response describes a generation."""
    return any("task_status" in part for part in _parts(body))


def first(body: Mapping[str, Any], name: str) -> Any:
    """Return the first value of a name in a body, which may be in an inner object; None if there is none."""
    return next((part[name] for part in _parts(body) if part.get(name) not in (None, "")), None)


def output_images(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URLs of the images in a body, in whatever shape; what is not a URL is left out."""
    return next(filter(None, (tuple(_urls(body.get(name), _IMAGE_DEPTH)) for name in _IMAGES)), ())


def _any(part: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((part[name] for name in names if part.get(name) is not None), None)


def _parts(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield body
    for part in map(body.get, _PARTS):
        inner = part[0] if isinstance(part, list) and part else part
        if isinstance(inner, Mapping):
            yield inner


def _urls(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str) and _is_url(value.strip()):
        yield value.strip()
    elif isinstance(value, list) and depth:
        for one in value:
            yield from _urls(one, depth - 1)
    elif isinstance(value, Mapping) and depth:
        for name in ("url", *_IMAGES):
            yield from _urls(value.get(name), depth - 1)


_NOT_FOUND = re.compile(
    r"\btask([_ ]id)?\b( with (the )?id)?[ :=]*['\"]?[\w-]{0,64}['\"]? ?(is |was |does |could |can)?"
    r"not (be )?(found|exist)|\bnot found.{0,9}\btask(_id)?\b"
    r"|\b(invalid|unknown|no such) task([ _]id)?\b|任务.{0,30}不存在"
)


def _integer(value: Any) -> int | None:
    try:
        number = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 2**63 else None  # the range of a database


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """Return a value as text, or an empty text if Python refuses to convert it."""
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deeply nested list ...
        return ""


def _storable_text(value: Any) -> str | None:
    """Return a prompt in a form that a database can store, or None if there is none."""
    if not isinstance(value, str) or not value.strip():
        return None
    return re.sub("[\0\ud800-\udfff]", "\ufffd", value[:MAX_MESSAGE])


def _is_url(value: Any) -> bool:
    """Whether a value is an http(s) URL with a host, of printable characters only."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return False
