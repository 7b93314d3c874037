"""``max_credit``: a number from 0, and no submission that could exceed it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import CreditLimitError, InvalidRequestError, PriceUnknownError
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.tasks.cost import check_limit, price_under_limit
from airflow_provider_modelscope.validation import checked_limit

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator


@pytest.mark.parametrize(("given", "limit"), [(None, None), (0, 0), (2.5, 2.5), ("2.5", 2.5), (" 7 ", 7)])
def test_a_limit_is_a_number_or_its_text(given: Any, limit: float | None) -> None:
    assert checked_limit(given) == limit


@pytest.mark.parametrize("given", [-1, "", "much", True, [1], float("nan"), float("inf"), 10**400], ids=str)
def test_anything_else_is_an_error(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_credit = "):
        checked_limit(given)


@pytest.mark.parametrize(
    ("limit", "spent", "cost"), [(None, 1e9, 1e9), (2, 1, 1), (0, 0, 0), (0.6, 0.4, 0.2)]
)
def test_what_stays_within_the_limit_is_allowed(limit: float | None, spent: float, cost: float) -> None:
    check_limit(limit, spent=spent, cost=cost)


def test_sums_of_prices_are_not_exact() -> None:
    assert 0.2 + 0.2 + 0.2 > 0.6
    check_limit(0.6, spent=0.2 + 0.2, cost=0.2)


@pytest.mark.parametrize(("limit", "spent", "cost"), [(0, 0, 0.2), (2, 1.9, 0.2), (2, 3, 0)])
def test_what_exceeds_the_limit_is_an_error(limit: float, spent: float, cost: float) -> None:
    with pytest.raises(CreditLimitError, match=f"max_credit = {limit} would be exceeded.*spent {spent}"):
        check_limit(limit, spent=spent, cost=cost)


def test_a_price_is_read_with_and_without_a_limit(emulator: Emulator) -> None:
    assert price_under_limit(ModelScopeHook(), "a/b", None) == price_under_limit(ModelScopeHook(), "a/b", 5)


def test_an_unknown_price_is_an_error_only_under_a_limit(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "modelscope", "password": "ms-test-0123", "host": f"{emulator.base_url}/no"}
    monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(connection))
    assert price_under_limit(ModelScopeHook(), "no such model", None) is None
    with pytest.raises(PriceUnknownError, match=r"max_credit = 5: nothing was sent.*no such model"):
        price_under_limit(ModelScopeHook(), "no such model", 5)
