"""The fault switches: which answers go wrong, how often, in which order. ``service`` makes the answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FAULTS = {
    "submit": {
        "queue-full": "500 enqueue failed: user queue is full; nothing is created",
        "quota": "429 that names today's quota",
        "balance": "402 insufficient balance",
        "unbound": "401 please bind your Alibaba Cloud account",
        "unverified": "403 real name not verified",
        "unknown-model": "400 has no provider supported",
        "lost": "accepted, but the connection closes without an answer",
        "reset": "the connection closes, nothing is created",
        "html": "200 with an HTML page, nothing is created",
        "no-id": "200 with JSON that has no task_id, nothing is created",
    },
    "poll": {
        "failed": "this generation is FAILED from now on, code 500",
        "rejected": "this generation is FAILED from now on, code 400: its content",
        "stall": "this generation stays PROCESSING for ever",
        "not-found": "FAILED, task not found: this once",
        "no-images": "SUCCEED without output_images: this once",
        "empty": "200 with an empty body",
        "reset": "the connection closes without an answer",
        "html": "200 with an HTML page",
    },
    "image": {
        "truncated": "half of the image, then the connection closes",
        "garbage": "200 with bytes that are no image",
        "wrong-suffix": "a JPEG under the .png URL",
        "reset": "the connection closes without an answer",
        "html": "200 with an HTML page",
    },
}
"""The named faults of each WHERE, with what they do; any HTTP status from 400 to 599 is allowed as well."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One switch: the next ``count`` answers at ``where`` are ``what``; a ``count`` of None means all."""

    where: str
    what: str
    count: int | None

    @classmethod
    def parse(cls, switch: str) -> Fault:
        """Read ``WHERE:WHAT[:COUNT]``, e.g. ``submit:429:2``.

        :param switch: COUNT is 1 or more, or ``*`` or ``always``; without it, 1.
        :raises ValueError: with what is allowed, when the switch is not.
        """
        where, _, rest = switch.partition(":")
        what, colon, count = rest.partition(":")
        if where not in FAULTS:
            raise ValueError(f"{switch!r}: WHERE must be one of {', '.join(FAULTS)}, as in submit:429:2")
        if what not in FAULTS[where] and what not in map(str, range(400, 600)):
            names = ", ".join(FAULTS[where])
            raise ValueError(
                f"{switch!r}: WHAT at {where} must be an HTTP status from 400 to 599 or one of {names}"
            )
        if count in ("*", "always"):
            return cls(where=where, what=what, count=None)
        if colon and not (count.isascii() and count.isdecimal() and 0 < len(count) < 10 and int(count)):
            raise ValueError(
                f"{switch!r}: COUNT must be a whole number from 1, or * or always for all answers"
            )
        return cls(where=where, what=what, count=int(count or 1))


class Faults:
    """The switches that are on; each is used up in the order given."""

    def __init__(self, switches: Iterable[str] = ()) -> None:
        self._faults = [Fault.parse(switch) for switch in switches]

    def add(self, switch: str) -> None:
        """Turn a switch on, after those that are on already."""
        self._faults.append(Fault.parse(switch))

    def take(self, where: str) -> str:
        """Tell what goes wrong with the answer that is due at ``where``: a WHAT, or "" for nothing."""
        for place, fault in enumerate(self._faults):
            if fault.where == where:
                if fault.count == 1:
                    del self._faults[place]
                elif fault.count is not None:
                    self._faults[place] = replace(fault, count=fault.count - 1)
                return fault.what
        return ""


def describe_faults() -> str:
    """Return the table of all switches, as ``--help`` shows it."""
    lines = [
        "WHERE:WHAT[:COUNT] makes the next COUNT answers go wrong (default 1, * or always: all).",
        "A request that is refused anyway uses no switch up. WHAT is an HTTP status from 400 to 599, or:",
    ]
    for where, names in FAULTS.items():
        lines += ["", *(f"  {where + ':' + name:<22} {meaning}" for name, meaning in names.items())]
    return "\n".join(lines)
