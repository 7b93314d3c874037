"""Mistakes in what a Dag or a connection gave: found and told all at once, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeFinalError
from airflow_provider_modelscope.redaction import preview

MAX_WAIT = 365 * 24 * 3600.0  # seconds; a longer timeout is no date that Airflow can keep


def check_all(*checks: Callable[[], object]) -> None:
    """Make every check, so that nobody mends one mistake only to meet the next on the next run.

    :raises ModelScopeFinalError: of the first mistake's kind, with what every check found wrong.
    """
    mistakes: list[ModelScopeFinalError] = []
    passing: list[Exception] = []  # such as a secrets backend that is away
    for check in checks:
        try:
            check()
        except ModelScopeFinalError as mistake:
            mistakes.append(mistake)
        except Exception as fault:
            passing.append(fault)
    if len(mistakes) > 1:
        first, *others = (f"{str(mistake).rstrip('.')}." for mistake in mistakes)
        raise type(mistakes[0])(
            " ".join([first, *(text.removeprefix("Nothing was sent. ") for text in others)])
        )
    for error in (*mistakes, *passing):
        raise error


def check_seconds(**given: Any) -> None:
    """Check parameters that hold seconds, each given under its own name. They are no templates: no text.

    :raises InvalidRequestError: naming every one that is no number from 0 to :data:`MAX_WAIT`.
    """
    raise_invalid(
        f"{name} = {preview(value)}: must be a number of seconds from 0 to {MAX_WAIT:.0f}"
        for name, value in given.items()
        if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= MAX_WAIT)
    )


def check_choice(choices: Sequence[str], **given: Any) -> None:
    """Check parameters that are one of a few words, each given under its own name.

    :raises InvalidRequestError: naming every one that is none of them.
    """
    words = " or ".join(map(repr, choices))
    raise_invalid(
        f"{name} = {preview(value)}: must be {words}" for name, value in given.items() if value not in choices
    )


def raise_invalid(mistakes: Iterable[str]) -> None:
    """Raise what was found, each mistake with its parameter, its value and what is allowed.

    :raises InvalidRequestError: where there is any.
    """
    if found := "; ".join(mistakes):
        raise InvalidRequestError(f"Nothing was sent. Please correct {found}.")
