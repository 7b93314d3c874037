"""Every error says whether a retry would help, keeps what is known, and crosses processes whole."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_modelscope import exceptions
from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.redaction import one_line

TREE = {
    name: kind
    for name, kind in vars(exceptions).items()
    if isinstance(kind, type) and kind.__module__ == exceptions.__name__
}
KNOWN: dict[str, Any] = {"code": 429, "request_id": "r-1", "generation_id": "42", "retry_after": 7.5}


def drawn_tree() -> dict[str, str | None]:
    """Return each name that the module's docstring draws, with the name that it hangs on."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        if drawn := re.match(r"    ([│├└─ ]*)(\w+Error)\b", line):
            depth = len(drawn[1]) // 4
            assert depth <= len(path)
            path[depth:] = [drawn[2]]
            parents[drawn[2]] = path[depth - 1] if depth else None
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    parents = {
        name: next((base.__name__ for base in kind.__bases__ if base.__name__ in TREE), None)
        for name, kind in TREE.items()
    }
    assert list(drawn_tree().items()) == list(parents.items())


@pytest.mark.parametrize("kind", TREE.values())
def test_the_branch_of_an_error_says_whether_airflow_tries_again(kind: type[ModelScopeError]) -> None:
    branches = [issubclass(kind, branch) for branch in (ModelScopeFinalError, ModelScopeRetryableError)]
    assert sum(branches) == (kind is not ModelScopeError)
    assert issubclass(kind, AirflowFailException) is branches[0]
    assert issubclass(kind, AirflowException)


@pytest.mark.parametrize("known", [KNOWN, {}], ids=["all", "none"])
@pytest.mark.parametrize("kind", TREE.values())
@pytest.mark.parametrize(
    "crossing",
    [
        lambda error: ModelScopeError.from_json(json.loads(json.dumps(error.to_json()))),
        lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 - our own bytes
        copy.copy,
    ],
    ids=["json", "pickle", "copy"],
)
def test_an_error_crosses_processes_with_all_that_is_known(
    crossing: Any, kind: type[ModelScopeError], known: dict[str, Any]
) -> None:
    error = kind("抱歉: no", **known)
    other = crossing(error)
    assert type(other) is kind
    assert vars(other) == vars(error) == {"message": "抱歉: no", **dict.fromkeys(KNOWN), **known}
    assert (str(other), other.args) == (str(error), error.args)


def test_every_attribute_is_in_the_json() -> None:
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
def test_the_text_holds_the_evidence(known: dict[str, Any], text: str) -> None:
    assert str(ModelScopeError("no", **known)) == text


def test_what_is_learnt_later_is_in_the_text_too() -> None:
    error = ModelScopeError("no")
    error.generation_id = "42"
    assert str(error) == "no (generation 42)"


def test_an_error_is_one_line_that_every_log_and_database_can_hold() -> None:
    error = ModelScopeError(
        "no\r\n\x1b[31m\0\ud800猫\u202e" + "x" * 9000, request_id="r\n" * 5000, generation_id="\x07"
    )
    assert error.message.startswith("no  �[31m��猫�xxx")
    assert (str(error).isprintable(), len(str(error)) < 4300) == (True, True)
    assert "generation �" in str(error)


def test_a_secret_is_not_in_the_line_unless_it_is_too_short_to_be_one() -> None:
    assert (
        one_line("Bearer ms-0123456789 or ms-0123456789", 20, secret="ms-0123456789") == "Bearer *** or ***"
    )
    assert one_line("task not found", 100, secret="not") == "task not found"
    assert one_line("task not found", 100) == "task not found"
