"""The account's credit, ModelScope's *magicubes*: the requests for it and for prices, and their responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_modelscope.exceptions import ServiceUnavailableError
from airflow_provider_modelscope.protocol.messages import HttpRequest, authorization, error_from

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.messages import HttpResponse

_MAX = 2.0**53
_NAMES = {"total": "total_balance", "available": "available_balance", "frozen": "frozen_amount"}


@dataclass(frozen=True, kw_only=True)
class Credit:
    """The credit of an account.

    :param total: The sum of the other two.
    :param available: What new generations can cost.
    :param frozen: Held for the generations that still run.
    """

    total: float
    available: float
    frozen: float

    def __str__(self) -> str:
        return f"{self.available:.10g} available, {self.frozen:.10g} frozen"


def credit_request(account: Account) -> HttpRequest:
    """Return the HTTP request for the account's credit."""
    url = f"{account.site_url}/openapi/v1/magicubes/balance"
    return HttpRequest(method="GET", url=url, headers=authorization(account))


def read_credit(response: HttpResponse, *, account: Account) -> Credit:
    """Return the credit that the response describes. One of its three numbers may be missing.

    :raises ServiceUnavailableError: if it does not.
    :raises ModelScopeError: the error that it describes.
    """
    body = response.parsed(secret=account.token)
    if response.status_code != 200 or body.error.is_error:
        raise error_from(response, account=account)
    match [_number(body.first(name)) for name in _NAMES.values()]:
        case [total, float() as available, float() as frozen]:
            return Credit(
                total=available + frozen if total is None else total, available=available, frozen=frozen
            )
        case [float() as total, None, float() as frozen]:
            return Credit(total=total, available=total - frozen, frozen=frozen)
        case [float() as total, float() as available, None]:
            return Credit(total=total, available=available, frozen=total - available)
    raise ServiceUnavailableError(
        f"The response does not say how much credit there is: {response.excerpt(secret=account.token)}",
        code=response.status_code,
    )


def price_request(account: Account, model: str) -> HttpRequest:
    """Return the HTTP request for what a generation of a model costs. It needs no token."""
    url = f"{account.site_url}/api/v1/inference/list_model_providers?ModelId={quote(model, safe='')}"
    return HttpRequest(method="GET", url=url, headers={})


def read_price(response: HttpResponse) -> float | None:
    """Return what a generation costs, or None if the response does not say it. It is never 0."""
    if response.status_code != 200 or not response.json:
        return None
    data = response.json.get("Data")
    providers = data.get("Providers") if isinstance(data, Mapping) else None
    if not isinstance(providers, list):
        return None
    prices = [
        (provider.get("Name") != "ModelScope", price)
        for provider in providers
        if isinstance(provider, Mapping)
        and (price := _number(provider.get("EstimatedMagicGrainCost"))) is not None
        and price > 0
    ]
    return min(prices, key=lambda named: named[0])[1] if prices else None


def _number(given: Any) -> float | None:
    """Return a number, which may be text, unless it is NaN or too large to calculate with."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        number = float(given)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= _MAX else None
