"""The JSON of a response: where its values are, in whatever shape it comes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_modelscope.protocol.errors import UNAVAILABLE, meaning_of, status_of
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line

# Words for the same, of sister services.
SUCCEEDED = frozenset(("SUCCEED", "SUCCEEDED", "SUCCESS", "COMPLETED", "COMPLETE", "DONE", "FINISHED"))
ENDED = frozenset(
    (
        "FAILED", "FAILURE", "FAIL", "ERROR", "CANCELED", "CANCELLED", "CANCEL", "ABORTED", "EXPIRED",
        "TIMEOUT", "TIMED_OUT", "REJECTED", "BLOCKED",
    )
)  # fmt: skip

# Names, as :func:`_folded` spells them.
_MESSAGES, _CODES = ("message", "msg", "errormessage", "detail"), ("code", "errorcode")
_ERRORS = ("errors", "error")
_DETAIL_KEYS = frozenset((*_ERRORS, *_MESSAGES, *_CODES, "success"))
_MADE = ("outputimages", "outputimage", "outputs")  # never of the request
_IMAGES = (*_MADE, "output", "data", "images", "imageurls", "results")
_IN_OBJECT, _IN_LIST = (*_IMAGES, "url"), (*_IMAGES, "url", "imageurl")
_IMAGE_DEPTH = 4  # levels of objects and lists in which to search for URLs

_FINE = frozenset(("0", "200", "20000", "success", "succeed", "ok"))  # code or message, not of an error


@dataclass(frozen=True, kw_only=True)
class ErrorDetail:
    """What the service reports about an error, whichever JSON it uses for that.

    :param message: The message, after the textual code and a colon if there is one.
    :param code: The numeric code.
    :param request_id: ModelScope's id of the response, for its support.
    :param is_error: Whether it reports an error, not only that all is well.
    """

    message: str = ""
    code: int | None = None
    request_id: str | None = None
    is_error: bool = field(default=False, compare=False)


class Body:
    """The JSON object of a response.

    Each value is searched in the object itself, then in those under ``output`` and ``data``, which may be
    lists of one. Names are compared without case and underscores: sister services write ``Code``.

    :param secret: Text to redact: the token.
    """

    def __init__(self, content: Mapping[str, Any], *, secret: str = "") -> None:
        self._secret = secret
        self._top = _folded(content)
        self._output, self._data = (_inner(self._top.get(name)) for name in ("output", "data"))
        self._parts = tuple(filter(None, (self._top, self._output, self._data)))

    def first(self, name: str) -> Any:
        """Return the first value of a name; None if there is none."""
        name = _fold(name)
        return next((part[name] for part in self._parts if part.get(name) not in (None, "")), None)

    @property
    def has_status(self) -> bool:
        """Whether it describes a generation."""
        return any("taskstatus" in part for part in self._parts)

    @cached_property
    def status_word(self) -> str:
        """The service's ``task_status`` in capitals."""
        return one_line(text_of(self.first("task_status") or ""), MAX_NAME, secret=self._secret).upper()

    @cached_property
    def error(self) -> ErrorDetail:
        """What it reports about an error; empty if nothing."""
        found = [self._detail(part) for part in self._parts if not _DETAIL_KEYS.isdisjoint(part)]
        detail = max(found, key=lambda one: (one.is_error, bool(one.message)), default=ErrorDetail())
        request_id = detail.request_id or text_of(self.first("request_id") or "")
        if not request_id:
            return detail  # of a running generation: most responses
        return replace(detail, request_id=one_line(request_id, MAX_NAME, secret=self._secret) or None)

    def _detail(self, part: Mapping[str, Any]) -> ErrorDetail:
        given = next(filter(None, map(part.get, _ERRORS)), None)
        if isinstance(given, list) and given and isinstance(given[0], dict):
            given = given[0]
        envelope = _folded(given) if isinstance(given, dict) else {"message": given}
        own_code, said = _any(envelope, _CODES), _any(envelope, _MESSAGES)
        code = _any(part, _CODES) if own_code is None else own_code
        said = text_of((_any(part, _MESSAGES) if said is None else said) or "")
        number = integer(code)
        has_name = isinstance(code, str) and bool(code.strip()) and number is None
        message = f"{one_line(code, MAX_NAME, secret=self._secret)}: {said}" if has_name else said
        own = own_code if given else code  # a wrapper's code 200 says nothing about an error inside it
        is_fine = not _FINE.isdisjoint(text_of(word).strip().lower() for word in (own, said))
        says_more = message and (given or (has_name and said) or meaning_of(200, message) is not UNAVAILABLE)
        return ErrorDetail(
            message=one_line(message, MAX_MESSAGE, secret=self._secret),
            code=number,
            request_id=text_of(envelope.get("requestid") or "") or None,
            is_error=part.get("success") is False
            or status_of(number, default=0) > 0
            or bool(not is_fine and (says_more or (given and number))),
        )

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The URLs of the images; what is not a URL is left out.

        An error may contain other URLs, such as the page to visit or the source image. Beside one, only what
        the service calls output counts.
        """
        if self.status_word in SUCCEEDED or not (self.status_word in ENDED or self.error.is_error):
            return tuple(_urls_of(self._top, _IMAGES, _IMAGE_DEPTH))
        if not self.status_word and self.first("success") is False:
            return ()
        made = (
            _urls_of(part, _MADE if part is self._data else (*_MADE, "images"), _IMAGE_DEPTH)
            for part in self._parts
        )
        request = text_of([self.first("input"), self.first("image_url")])
        return tuple(url for url in next(filter(None, made), ()) if url not in request)


def integer(value: Any) -> int | None:
    """Return a value as an integer that a database can store; None for anything else."""
    try:
        number = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 2**63 else None


def finite(value: Any) -> float | None:
    """Return a number as a finite one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def text_of(value: Any) -> str:
    """Return a value as text, or an empty text if Python refuses to convert it."""
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deeply nested list ...
        return ""


def _fold(name: str) -> str:
    return name.replace("_", "").lower()


def _folded(content: Mapping[str, Any]) -> dict[str, Any]:
    return {_fold(name): value for name, value in content.items()}


def _inner(value: Any) -> dict[str, Any]:
    value = value[0] if isinstance(value, list) and value else value
    return _folded(value) if isinstance(value, dict) else {}


def _any(part: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((part[name] for name in names if part.get(name) is not None), None)


def _urls_of(part: Mapping[str, Any], names: Iterable[str], depth: int) -> list[str]:
    return next(filter(None, (_urls(part[name], depth) for name in names if part.get(name))), [])


def _urls(value: Any, depth: int, names: Iterable[str] = _IN_OBJECT) -> list[str]:
    """Return the URLs of images in a value: a URL, an object with one, or a list of them, or its JSON."""
    if isinstance(value, str):
        value = value.strip()
        if not value.startswith("["):
            return [value] if _is_url(value) else []
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, dict) and all(map(str.isdecimal, value)):
        value = list(value.values())  # {"0": url}
    if not depth:
        return []
    if isinstance(value, dict):
        return _urls_of(_folded(value), names, depth - 1)
    if isinstance(value, list):
        return [url for one in value for url in _urls(one, depth - 1, _IN_LIST)]
    return []


def _is_url(value: str) -> bool:
    """Whether a text is an http(s) URL with a host, of printable characters only."""
    try:
        parts = urlsplit(value) if value.isprintable() else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return False
