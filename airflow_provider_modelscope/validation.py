"""Validation: all checks run before anything is sent, and every error is reported at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeFinalError
from airflow_provider_modelscope.redaction import preview

MAX_WAIT = 365 * 24 * 3600.0  # seconds; Airflow cannot store the deadline of a much longer timeout
INVALID = "Invalid parameters, nothing was sent: "  # the start of every validation error


def check_all(*checks: Callable[[], Any]) -> list[Any]:
    """Run all checks and return their results, or report every error at once.

    :raises ModelScopeFinalError: of the first error's class, with the text of all errors.
    :raises Exception: any other exception of a check, such as an unreachable secrets backend. It may pass, so
        errors that cannot pass come first.
    """
    results: list[Any] = []
    errors: list[ModelScopeFinalError] = []
    faults: list[Exception] = []
    for check in checks:
        try:
            results.append(check())
        except ModelScopeFinalError as error:
            errors.append(error)
        except Exception as fault:
            faults.append(fault)
    if len(errors) > 1:
        raise type(errors[0])(_sentence(str(error).removeprefix(INVALID).rstrip(".") for error in errors))
    for first in (*errors, *faults):
        raise first
    return results


def seconds_errors(*, least: float = 0.0, **given: Any) -> Iterator[str]:
    """Yield an error for each parameter that is not a number of seconds from ``least`` to a year."""
    for name, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and least <= value <= MAX_WAIT):
            limits = f"from {least:.0f} to {MAX_WAIT:.0f}"
            yield f"{name} = {preview(value)}: must be a number of seconds {limits}"


def choice_errors(choices: Sequence[str], **given: Any) -> Iterator[str]:
    """Yield an error for each parameter that is not one of the choices."""
    for name, value in given.items():
        if value not in choices:
            yield f"{name} = {preview(value)}: must be {' or '.join(map(repr, choices))}"


def unknown_names(given: Iterable[Any], known: Sequence[str], *, kind: str) -> Iterator[str]:
    """Yield an error for each name that is not known, with the one that was perhaps meant."""
    from difflib import get_close_matches

    for name in given:
        if name not in known:
            near = get_close_matches(name.lower(), known, n=1) if isinstance(name, str) else []
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}"
            yield f"unknown {kind} {preview(name)} ({hint})"


def checked_credit(name: str, value: Any) -> float:
    """Return an amount of credit, which a template renders as text.

    :raises InvalidRequestError: if it is not a number from 0.
    """
    with suppress(ValueError, OverflowError):
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            credit = float(value)
            if 0 <= credit < math.inf:
                return credit
    raise InvalidRequestError(_sentence([f"{name} = {preview(value)}: must be a number from 0"]))


def checked_limit(max_credit: Any) -> float | None:
    """Return the parameter ``max_credit`` as a number, None if there is no limit.

    :raises InvalidRequestError: if it is no number from 0.
    """
    return None if max_credit is None else checked_credit("max_credit", max_credit)


def raise_invalid(errors: Iterable[str]) -> None:
    """Raise the errors, if there are any, each with its parameter, its value and what is allowed.

    :raises InvalidRequestError: with all of them.
    """
    if found := list(errors):
        raise InvalidRequestError(_sentence(found))


def _sentence(errors: Iterable[str]) -> str:
    return f"{INVALID}{'; '.join(errors)}."
