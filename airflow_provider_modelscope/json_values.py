"""Values of JSON that any task or person may have written, read without trust.

What is returned can be printed, and written as JSON and UTF-8.
"""

from __future__ import annotations

import re
from typing import Any

_MAX_NUMBER = 2**53  # the largest integer that every JSON reader keeps exactly
_MAX_FLOAT = 1e308
_MAX_DEPTH = 20  # of lists and objects in a parameter


def plain(value: Any, depth: int = 0) -> Any:
    """Return a parameter of any type as one that can be printed, stored and repeated."""
    if depth > _MAX_DEPTH:
        return None
    match value:
        case None | bool():
            return value
        case str():
            return printable(value)
        case int() | float():
            return value if abs(value) <= _MAX_FLOAT else None  # not NaN either
        case list() | tuple():
            return [plain(item, depth + 1) for item in value]
        case dict():
            return {printable(str(name)): plain(item, depth + 1) for name, item in value.items()}
    return None


def printable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can hold, but UTF-8 cannot."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def text(value: Any) -> str | None:
    """Return a text, or None for any other value."""
    return printable(value) if isinstance(value, str) else None


def integer(value: Any) -> int | None:
    """Return an integer from 0, or None for any other value."""
    return value if isinstance(value, int) and number(value) is not None else None


def number(value: Any) -> float | None:
    """Return a number from 0, or None for any other value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= _MAX_NUMBER else None
