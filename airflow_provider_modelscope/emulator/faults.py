"""The faults to inject: which responses fail, how, and how often. ``service`` creates these responses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FAULTS = {
    "submit": {
        "queue-full": "status 500, the queue of the account is full",
        "image-queue-full": "status 503, the queue of the service is full",
        "busy": "status 503, the service is overloaded",
        "busy-200": "the same error with status 200",
        "busy-400": "the same error with status 400",
        "too-many": "status 429, too many concurrent requests for the model",
        "too-fast": "status 429, too many requests, in Chinese",
        "quota": "status 429, the quota of the day is used up",
        "quota-200": "the same error with status 200",
        "quota-chinese": "the same error in Chinese",
        "balance": "status 402, no credit",
        "no-credit": "status 403 with the code `QuotaLimitExceed`, no credit",
        "no-credit-chinese": "status 429, no credit, in Chinese",
        "retired-model": 'status 429 with the words "insufficient balance (1008)"',
        "unbound": "status 401, the account is not bound to Alibaba Cloud",
        "unverified": "status 403, the account is not verified",
        "forbidden": "status 403 with the code `OperationNotAllowed`, the token lacks a permission",
        "unknown-model": "status 400, there is no such model",
        "model-not-found": "status 404, there is no such model",
        "moderated": "status 400 with the code `DataInspectionFailed`, the prompt is not allowed",
        "echo": "status 500, the message repeats the prompt",
        "nested-id": "the generation is created, its id is in an inner object",
        "images": "the generation is created, the response contains its images and no id",
        "no-end": "the generation is created, the response is shorter than its length says",
        "lost": "the generation is created, but the connection closes without a response",
        "reset": "the connection closes, nothing is created",
        "html": "status 200 with an HTML page, nothing is created",
        "no-id": "status 200 with JSON that contains no id, nothing is created",
    },
    "poll": {
        "failed": "the generation is FAILED from now on, with code 500",
        "rejected": "the generation is FAILED from now on, with code 400: its content",
        "moderated": "the generation is FAILED from now on, with the code `DataInspectionFailed`",
        "moderated-nested": "the same error, with all of it in an inner object",
        "moderated-40301": "the generation is FAILED from now on, with the code 40301",
        "moderated-chinese": "the generation is FAILED from now on, with code 500 and a reason in Chinese",
        "filtered": "SUCCEED without images from now on, filtered by the safety checker",
        "canceled": "the generation is CANCELED from now on",
        "expired": "the generation is EXPIRED from now on",
        "other-words": "when it has finished, the generation is COMPLETED, its images are in another shape",
        "partial": "when it has finished, the generation is PARTIAL_SUCCEEDED, with its images",
        "busy": "status 200 with an error, the service is overloaded",
        "stall": "the generation never finishes",
        "not-found": 'FAILED with "task not found", for this response only',
        "not-found-400": 'status 400 with "task not found", for this response only',
        "unlucky": "status 503 with the words of an unknown model",
        "bad-request": "status 400 with JSON",
        "forbidden": "status 403 with JSON of a gateway",
        "no-images": "SUCCEED without images, for this response only",
        "empty": "status 200 with an empty body",
        "reset": "the connection closes without a response",
        "html": "status 200 with an HTML page",
    },
    "image": {
        "truncated": "half of the image, then the connection closes",
        "garbage": "status 200 with bytes that are not an image",
        "wrong-suffix": "a JPEG at a URL that ends in `.png`",
        "signed": "a PNG with a manifest of Content Credentials (C2PA), which is not valid",
        "reset": "the connection closes without a response",
        "html": "status 200 with an HTML page",
    },
}
"""The named faults of each WHERE, and their effects. An HTTP status from 400 to 599 is allowed as well."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: the next ``count`` responses at ``where`` are ``what``. If ``count`` is None, all of them."""

    where: str
    what: str
    count: int | None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``WHERE:WHAT[:COUNT]``, for example ``submit:429:2``.

        :param text: COUNT is an integer from 1, or ``*`` or ``always``. The default is 1.
        :raises ValueError: if a part is not allowed; the message names what is.
        """
        where, _, rest = text.partition(":")
        what, colon, count = rest.partition(":")
        if where not in FAULTS:
            raise ValueError(
                f"Unknown WHERE in the fault {text!r}. Allowed: {', '.join(FAULTS)}. Example: submit:429:2"
            )
        if what not in FAULTS[where] and what not in map(str, range(400, 600)):
            raise ValueError(
                f"Unknown WHAT in the fault {text!r}. Allowed at {where}: an HTTP status from 400 to 599, "
                f"{', '.join(FAULTS[where])}"
            )
        if count in ("*", "always"):
            return cls(where=where, what=what, count=None)
        if colon and not re.fullmatch("[1-9][0-9]{0,8}", count):
            raise ValueError(
                f"Invalid COUNT in the fault {text!r}. Allowed: an integer from 1, or * or always for all"
            )
        return cls(where=where, what=what, count=int(count or 1))


class Faults:
    """The faults that are still to happen, in this order."""

    def __init__(self, faults: Iterable[str] = ()) -> None:
        self._faults = [Fault.parse(text) for text in faults]

    def add(self, text: str) -> None:
        """Append a fault."""
        self._faults.append(Fault.parse(text))

    def take(self, where: str) -> str:
        """Return the WHAT of the next response at ``where``, "" for no fault, and count it as used."""
        for index, fault in enumerate(self._faults):
            if fault.where == where:
                if fault.count == 1:
                    del self._faults[index]
                elif fault.count is not None:
                    self._faults[index] = replace(fault, count=fault.count - 1)
                return fault.what
        return ""


def describe_faults() -> str:
    """Return the table of all faults, as ``--help`` shows it."""
    lines = [
        "WHERE:WHAT[:COUNT] makes the next COUNT responses fail: 1 by default, all of them with * or always.",
        "A request that is rejected anyway uses up no fault. WHAT is an HTTP status from 400 to 599, or:",
    ]
    for where, names in FAULTS.items():
        lines += ["", *(f"  {where + ':' + name:<26} {effect}" for name, effect in names.items())]
    return "\n".join(lines)
