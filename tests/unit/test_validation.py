"""Validation: all checks run, and every error is reported at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import (
    InvalidConnectionError,
    InvalidDestinationError,
    InvalidRequestError,
)
from airflow_provider_modelscope.validation import (
    INVALID,
    MAX_WAIT,
    check_all,
    choice_errors,
    raise_invalid,
    seconds_errors,
)


def raising(error: Exception) -> Callable[[], Any]:
    def check() -> Any:
        raise error

    return check


class TestCheckAll:
    def test_it_returns_the_results_in_order(self) -> None:
        assert check_all(lambda: 1, lambda: None, lambda: "b") == [1, None, "b"]
        assert check_all() == []

    def test_several_errors_become_one_sentence_of_the_first_class(self) -> None:
        with pytest.raises(InvalidDestinationError) as raised:
            check_all(
                raising(InvalidDestinationError("destination = 'cats': must be a URI")),
                lambda: raise_invalid(["steps = 0: must be positive", "seed = -1: must be positive"]),
                raising(InvalidConnectionError("Airflow connection 'a': password is empty.")),
            )
        assert str(raised.value) == (
            "Invalid parameters, nothing was sent: destination = 'cats': must be a URI; steps = 0: must be "
            "positive; seed = -1: must be positive; Airflow connection 'a': password is empty."
        )

    def test_one_error_is_raised_unchanged(self) -> None:
        error = InvalidConnectionError("password is empty.")
        with pytest.raises(InvalidConnectionError) as raised:
            check_all(lambda: 1, raising(error))
        assert raised.value is error

    def test_errors_come_before_what_may_pass(self) -> None:
        unreachable = ConnectionError("secrets backend")
        with pytest.raises(ConnectionError):
            check_all(raising(unreachable), lambda: None)
        with pytest.raises(InvalidRequestError, match=r"^invalid$"):
            check_all(raising(unreachable), raising(InvalidRequestError("invalid")))


@pytest.mark.parametrize("value", [1, 1.0, 900, MAX_WAIT])
def test_seconds_within_the_limits_are_valid(value: float) -> None:
    assert list(seconds_errors(least=1, timeout=value)) == []


@pytest.mark.parametrize("value", [0, 0.99, -1, MAX_WAIT + 1, float("nan"), float("inf"), True, "60", None])
def test_other_seconds_are_named_with_the_limits(value: Any) -> None:
    [error] = seconds_errors(least=1, timeout=value)
    assert error == f"timeout = {value!r}: must be a number of seconds from 1 to 31536000"


def test_a_choice_is_named_with_the_choices() -> None:
    assert list(choice_errors(("a", "b"), first="a", second="c")) == ["second = 'c': must be 'a' or 'b'"]


def test_nothing_is_raised_without_errors() -> None:
    raise_invalid(iter(()))
    with pytest.raises(InvalidRequestError, match=f"^{INVALID}a; b\\.$"):
        raise_invalid(iter(("a", "b")))
