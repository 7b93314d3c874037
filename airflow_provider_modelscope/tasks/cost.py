"""The limit ``max_credit`` of a task, and the price of a generation under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import CreditLimitError, PriceUnknownError

if TYPE_CHECKING:
    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook

_ROUNDING = 1e-6  # sums of prices such as 0.2


def price_under_limit(hook: ModelScopeHook, model: str, limit: float | None) -> float | None:
    """Return what a generation of a model costs, None if that is unknown.

    :raises PriceUnknownError: if it is unknown, and there is a limit.
    """
    price = hook.get_price(model)
    if limit is not None and price is None:
        raise PriceUnknownError(
            f"max_credit = {limit:g}: nothing was sent, because ModelScope does not say what a "
            f"generation of {model} costs. Use another model, or no max_credit"
        )
    return price


def check_limit(limit: float | None, *, spent: float, cost: float) -> None:
    """Check that one more generation stays within the limit.

    :raises CreditLimitError: if it does not.
    """
    if limit is not None and spent + cost > limit + _ROUNDING:
        raise CreditLimitError(
            f"max_credit = {limit:g} would be exceeded: this task has spent {spent:g}, and one more "
            f"generation costs {cost:g}. Nothing was sent. Raise max_credit to go on"
        )
