"""The requests for credit and prices, and what their responses say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    ModelScopeError,
    ServiceUnavailableError,
    UnknownModelError,
)
from airflow_provider_modelscope.protocol.account import BASE_URLS, Account
from airflow_provider_modelscope.protocol.credit import (
    Credit,
    credit_request,
    price_request,
    read_credit,
    read_price,
)
from airflow_provider_modelscope.protocol.messages import HttpResponse

ACCOUNT = Account(token="ms-12345678")
BALANCE = {"total_balance": 143, "available_balance": 140.5, "frozen_amount": 2.5}
CREDIT = Credit(total=143, available=140.5, frozen=2.5)


def response(body: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status_code=status, headers={}, body=json.dumps(body).encode())


def providers(*entries: Any) -> HttpResponse:
    return response({"Data": {"Providers": list(entries)}})


def test_the_credit_is_asked_of_the_site_of_the_service_with_the_token() -> None:
    urls = []
    for base_url in (*BASE_URLS, "http://127.0.0.1:8765"):
        call = credit_request(Account(token="ms-12345678", base_url=base_url))
        assert (call.method, call.headers) == ("GET", {"Authorization": "Bearer ms-12345678"})
        urls.append(call.url.removesuffix("/openapi/v1/magicubes/balance"))
    assert urls == ["https://modelscope.cn", "https://modelscope.ai", "http://127.0.0.1:8765"]


def test_a_price_is_asked_without_the_token() -> None:
    call = price_request(ACCOUNT, "Qwen/Qwen-Image&x=ü")
    assert call.headers == {}
    assert call.url == (
        "https://modelscope.cn/api/v1/inference/list_model_providers?ModelId=Qwen%2FQwen-Image%26x%3D%C3%BC"
    )


@pytest.mark.parametrize(
    "body",
    [
        {"success": True, "data": BALANCE, "request_id": "r"},
        BALANCE,
        {"data": {name: str(number) for name, number in BALANCE.items()}},
        *({"data": {**BALANCE, name: None}} for name in BALANCE),
    ],
)
def test_the_credit_is_read_in_any_shape(body: Any) -> None:
    assert read_credit(response(body), account=ACCOUNT) == CREDIT


@pytest.mark.parametrize(
    "body",
    [
        [], {}, None, "143", {"data": None}, {"data": []}, {"data": 143}, {"data": {"total_balance": 143}},
        {"data": dict.fromkeys(BALANCE, True)}, {"data": dict.fromkeys(BALANCE, "much")},
        {"data": dict.fromkeys(BALANCE, float("nan"))}, {"data": {name: [1] for name in BALANCE}},
        {"data": dict.fromkeys(BALANCE, float("inf"))}, {"data": dict.fromkeys(BALANCE, 10**400)},
    ],
)  # fmt: skip
def test_a_response_without_numbers_says_no_credit(body: Any) -> None:
    with pytest.raises(ServiceUnavailableError, match="does not say how much credit there is"):
        read_credit(response(body), account=ACCOUNT)


@pytest.mark.parametrize("status", [200, 401])
def test_an_error_response_raises_what_it_says(status: int) -> None:
    said = {"success": False, "code": "InvalidAuthentication", "message": "no ms-12345678"}
    with pytest.raises(AuthenticationError) as caught:
        read_credit(response(said, status), account=ACCOUNT)
    assert ACCOUNT.token not in str(caught.value)
    for status in (302, 404, 500):
        with pytest.raises(ModelScopeError):
            read_credit(response({"data": BALANCE}, status), account=ACCOUNT)


def test_the_price_is_that_of_modelscope_itself() -> None:
    other = {"Name": "Other", "EstimatedMagicGrainCost": 5}
    own = {"Name": "ModelScope", "EstimatedMagicGrainCost": 0.5, "CostTier": "lite"}
    assert read_price(providers(other, own)) == 0.5
    assert read_price(providers(other)) == 5
    assert read_price(providers(other, own | {"EstimatedMagicGrainCost": "0.2"})) == 0.2


@pytest.mark.parametrize(
    "cost", [None, 0, 0.0, -1, True, "", "free", [], {}, float("nan"), float("inf"), 1e308, 10**400]
)
def test_a_price_that_is_no_positive_number_is_unknown(cost: Any) -> None:
    assert read_price(providers({"Name": "ModelScope", "EstimatedMagicGrainCost": cost})) is None


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"Data": None}, {"Data": []}, {"Data": {"Providers": []}}, {"Data": {"Providers": [1]}}],
)
def test_a_response_of_another_shape_has_no_price(body: Any) -> None:
    assert read_price(response(body)) is None
    priced = {"Data": {"Providers": [{"EstimatedMagicGrainCost": 1}]}}
    assert read_price(response(priced, 500)) is None
    assert read_price(response(priced)) == 1


def test_a_model_without_providers_is_not_served() -> None:
    with pytest.raises(UnknownModelError, match="does not serve this model"):
        read_price(response({"Data": {"Providers": None}}))
