"""Every error says whether a retry can help, keeps its details, and survives serialization."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import pytest

from airflow_provider_modelscope import exceptions
from airflow_provider_modelscope.compat import AirflowException, AirflowFailException
from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
    ModelScopeRetryableError,
)

TREE = {
    name: kind
    for name, kind in vars(exceptions).items()
    if isinstance(kind, type) and kind.__module__ == exceptions.__name__
}
KNOWN: dict[str, Any] = {"code": 429, "request_id": "r-1", "generation_id": "42", "retry_after": 7.5}


def drawn_tree() -> dict[str, str | None]:
    """Return each name in the tree of the module's docstring, with its parent."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        if drawn := re.match(r"    ([│├└─ ]*)(\w+Error)\b", line):
            depth = len(drawn[1]) // 4
            assert depth <= len(path)
            path[depth:] = [drawn[2]]
            parents[drawn[2]] = path[depth - 1] if depth else None
    return parents


def test_the_docstring_shows_the_tree_of_the_classes() -> None:
    parents = {
        name: next((base.__name__ for base in kind.__bases__ if base.__name__ in TREE), None)
        for name, kind in TREE.items()
    }
    assert list(drawn_tree().items()) == list(parents.items())


@pytest.mark.parametrize("kind", TREE.values())
def test_the_branch_of_an_error_says_whether_airflow_retries(kind: type[ModelScopeError]) -> None:
    branches = [issubclass(kind, branch) for branch in (ModelScopeFinalError, ModelScopeRetryableError)]
    assert sum(branches) == (kind is not ModelScopeError)
    assert issubclass(kind, AirflowFailException) is branches[0]
    assert issubclass(kind, AirflowException)


@pytest.mark.parametrize("known", [KNOWN, {}], ids=["all", "none"])
@pytest.mark.parametrize("kind", TREE.values())
@pytest.mark.parametrize(
    "serialized",
    [
        lambda error: ModelScopeError.from_json(json.loads(json.dumps(error.to_json()))),
        lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own bytes
        copy.copy,
    ],
    ids=["json", "pickle", "copy"],
)
def test_an_error_survives_serialization_with_all_details(
    serialized: Any, kind: type[ModelScopeError], known: dict[str, Any]
) -> None:
    error = kind("抱歉: no", **known)
    other = serialized(error)
    assert type(other) is kind
    assert vars(other) == vars(error) == {"message": "抱歉: no", **dict.fromkeys(KNOWN), **known}
    assert (str(other), other.args) == (str(error), error.args)


def test_the_json_of_an_error_contains_every_attribute() -> None:
    assert GenerationTimeoutError("late", **KNOWN).to_json() == {
        "kind": "GenerationTimeoutError",
        "message": "late",
        **KNOWN,
    }


@pytest.mark.parametrize("kind", ["Unheard", "ValueError", "AirflowSkipException", "", "__init__"])
def test_an_error_of_an_unknown_kind_is_a_plain_one(kind: str) -> None:
    error = ModelScopeError.from_json({"kind": kind, "message": "no", "generation_id": "42", "more": 1})
    assert type(error) is ModelScopeError
    assert (error.message, error.generation_id, error.code) == ("no", "42", None)


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({}, "no"),
        ({"retry_after": 7.5}, "no"),
        ({"code": 0}, "no (code 0)"),
        ({"generation_id": "42"}, "no (generation 42)"),
        (KNOWN, "no (code 429, request id r-1, generation 42)"),
    ],
    ids=str,
)
def test_the_text_of_an_error_contains_its_details(known: dict[str, Any], text: str) -> None:
    assert str(ModelScopeError("no", **known)) == text


def test_the_text_contains_details_that_are_set_later() -> None:
    error = ModelScopeError("no")
    error.generation_id = "42"
    assert str(error) == "no (generation 42)"


def test_an_error_is_one_short_printable_line() -> None:
    error = ModelScopeError(
        "no\r\n\x1b[31m\0\ud800猫\u202e" + "x" * 9000, request_id="r\n" * 5000, generation_id="\x07"
    )
    assert error.message.startswith("no  �[31m��猫�xxx")
    assert (str(error).isprintable(), len(str(error)) < 4300) == (True, True)
    assert "generation �" in str(error)


@pytest.mark.parametrize("kind", TREE.values())
def test_the_docstring_of_an_error_is_its_reference(kind: type[ModelScopeError]) -> None:
    first, _, advice = (kind.__doc__ or "").partition("\n\n")
    is_branch = kind in (ModelScopeFinalError, ModelScopeRetryableError)
    assert first.endswith(".")
    assert "\n" not in first
    assert bool(advice.strip()) is not is_branch
    if issubclass(kind, ModelScopeRetryableError) and not is_branch:
        assert "retry" in advice
