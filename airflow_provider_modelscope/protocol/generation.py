"""What ModelScope says of one generation, as a value that judges itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationRejectedError,
    InvalidRequestError,
)
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line, preview

SUCCEED = "SUCCEED"
FAILED = "FAILED"
NOT_FOUND_GRACE = 30.0  # seconds in which "task not found" may only mean "just accepted"

MAX_ID = 200  # characters; ids seen have 7


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
    """What the service says of an error, out of either of its envelopes."""

    message: str = ""
    code: int | None = None
    request_id: str | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, secret: str = "") -> Self:
        """Read ``{"errors": {...}}`` or ``{"error": {...}}``; the details stand inside or beside it.

        :param secret: What not to show of it.
        """
        inner = body.get("errors") or body.get("error")
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            inner = inner[0]
        envelope = inner if isinstance(inner, Mapping) else {"message": inner or body.get("message")}
        code = envelope.get("code", body.get("code"))
        message = _text(envelope.get("message") or "")
        if isinstance(code, str) and code.strip() and _integer(code) is None:
            message = f"{one_line(code, MAX_NAME, secret=secret)}: {message}"  # a name says something too
        request_id = _text(envelope.get("request_id") or body.get("request_id") or "")
        return cls(
            message=one_line(message, MAX_MESSAGE, secret=secret),
            code=_integer(code),
            request_id=one_line(request_id, MAX_NAME, secret=secret) or None,
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer about a generation.

    :param generation_id: ModelScope's ``task_id``.
    :param status: ModelScope's ``task_status`` in capitals. ``SUCCEED`` and ``FAILED`` are known to be
        final; whatever else it says, an empty word included, means that it still runs.
    :param output_images: URLs of the images. Undocumented how long they live.
    :param parameters: The parameters really used (ModelScope's ``input``), the random seed among them.
    :param duration_ms: How long the generation took, where it says so.
    :param error: What it says of a failure.
    """

    generation_id: str
    status: str
    output_images: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    duration_ms: float | None = None
    error: ErrorDetail = ErrorDetail()

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, generation_id: str, secret: str = "") -> Self:
        """Read the body of an answer, whose own ``task_id`` is empty while it runs.

        :param secret: What not to show of what it says.
        """
        images, used = body.get("output_images"), body.get("input")
        return cls(
            generation_id=generation_id,
            status=one_line(_text(body.get("task_status") or ""), MAX_NAME, secret=secret).upper(),
            output_images=tuple(images) if isinstance(images, list) and all(map(_is_url, images)) else (),
            parameters=used if isinstance(used, Mapping) else {},
            duration_ms=_finite(body.get("time_taken")),
            error=ErrorDetail.from_json(body, secret=secret),
        )

    @property
    def is_missing(self) -> bool:
        """Whether the service says that it knows no such generation: at its start not yet a verdict."""
        is_so = re.search(r"\btask\b.{0,99}not found|not found.{0,9}\btask\b", self.error.message.lower())
        return self.status == FAILED and bool(is_so)

    def has_failed(self, *, age: float) -> bool:
        """Whether it FAILED, at this age in seconds."""
        return self.status == FAILED and not (self.is_missing and age < NOT_FOUND_GRACE)

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more. ``SUCCEED`` without images is a broken answer, not an end."""
        return self.status == FAILED or (self.status == SUCCEED and bool(self.output_images))

    @property
    def seed(self) -> int | None:
        """The seed that was really used, where the service says so."""
        return _integer(self.parameters.get("seed"))

    @property
    def request_id(self) -> str | None:
        """ModelScope's id of this answer, for its support."""
        return self.error.request_id

    def used_parameters(self) -> dict[str, Any]:
        """Return the parameters really used, under the names that a request has for them.

        Only what the service said, in the form that is known of it, and such that a database can hold it.
        """
        said = self.parameters
        width, height = _integer(said.get("width")), _integer(said.get("height"))
        used = {
            "prompt": _kept_text(said.get("prompt")),
            "negative_prompt": _kept_text(said.get("negativePrompt")),
            "size": f"{width}x{height}" if width and height else None,
            "seed": self.seed,
            "steps": _integer(said.get("numInferenceSteps")),
            "guidance": _finite(said.get("guidanceScale")),
        }
        return {name: value for name, value in used.items() if value is not None}

    def raise_for_failure(self, *, retry_submits: bool) -> None:
        """Raise if it FAILED.

        :param retry_submits: Whether a retry of the asking Airflow task would start a new generation. A
            retry that would only look at this one again cannot help.
        :raises GenerationFailedError: where a new generation may do better.
        :raises GenerationRejectedError: where it would not.
        """
        if self.status != FAILED:
            return
        # One that is missing is nobody's fault: a new one may do better.
        final = not retry_submits or (is_callers_fault(self.error.code) and not self.is_missing)
        unknown = "It does not know this generation: a wrong id, another account's or host's, or too old. "
        raise (GenerationRejectedError if final else GenerationFailedError)(
            f"{unknown if self.is_missing else ''}ModelScope says FAILED: "
            f"{self.error.message or 'without a reason'}",
            code=self.error.code,
            request_id=self.error.request_id,
            generation_id=self.generation_id,
        )


def checked_id(generation_id: Any) -> str:
    """Return a generation's id as text: opaque, but one word, there, and such that a URL can hold it.

    :raises InvalidRequestError: where it is none, as when the task upstream returned nothing.
    """
    is_id = isinstance(generation_id, str | int) and not isinstance(generation_id, bool)
    text = _text(generation_id).strip() if is_id else ""
    if (
        text in ("", "None", "null", ".", "..")  # a path that ends in dots is another path
        or text[0] in "[{("  # a list or a mapping that a template made text of
        or len(text) > MAX_ID
        or not (text.isprintable() and len(text.split()) == 1)
    ):
        raise InvalidRequestError(
            f"generation_id = {preview(generation_id)}: must be the id that a submit task returned; "
            "for several, map over them with .expand(generation_id=...)"
        )
    return text


def is_callers_fault(code: int | None) -> bool:
    """Whether a code says that the same request would be refused again: 4xx, but not 408 or 429."""
    return code is not None and 400 <= code < 500 and code not in (408, 429)


def _integer(value: Any) -> int | None:
    try:
        number = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 2**63 else None  # what a database can hold


def _finite(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: Any, as_text: Callable[[Any], str] = str) -> str:
    """Return a value as text, empty where there is no end of it."""
    try:
        return as_text(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in a list in a list ...
        return ""


def _kept_text(value: Any) -> str | None:
    """Return a prompt as it is, but such that a database can hold it; None where there is none."""
    if not isinstance(value, str) or not value.strip():
        return None
    return re.sub("[\0\ud800-\udfff]", "\ufffd", value[:MAX_MESSAGE])


def _is_url(value: Any) -> bool:
    """Whether a value is an http(s) URL with a host, and of characters that can be sent."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return False
