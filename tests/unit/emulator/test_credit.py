"""The emulator's credit: what a generation costs, when it is frozen, spent, refunded or missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.credit import PRICES, TIERS
from airflow_provider_modelscope.emulator.faults import FAULTS
from airflow_provider_modelscope.emulator.service import REFUNDED, Service
from tests.unit.emulator.api import AUTHORIZED, CHEAP, POLL, REQUEST, SUBMIT, TOKEN, get, message, submit

Balance = tuple[str, str, str]
BALANCE = "/openapi/v1/magicubes/balance"


def submit_to(service: Service, *, now: float = 0, token: str = TOKEN, **changes: Any) -> Any:
    headers = {**SUBMIT, "Authorization": f"Bearer {token}"}
    body = json.dumps({**REQUEST, **changes}).encode()
    return json.loads(service.respond("POST", "/v1/images/generations", headers, body, now=now).body)


def poll_of(service: Service, accepted: Any, *, now: float) -> Any:
    return json.loads(service.respond("GET", f"/v1/tasks/{accepted['task_id']}", POLL, now=now).body)


def balance(service: Service, *, now: float = 0, token: str = TOKEN) -> Balance:
    """Return total, available and frozen as they stand in the JSON."""
    response = service.respond("GET", BALANCE, {"Authorization": f"Bearer {token}"}, now=now)
    data = json.loads(response.body, parse_float=str, parse_int=str)["data"]
    assert list(data) == ["total_balance", "available_balance", "frozen_amount"]
    total, available, frozen = data.values()
    return total, available, frozen


def providers(service: Service, model: str) -> tuple[int, Any]:
    path = "/api/v1/inference/list_model_providers"
    response = service.respond("GET", path, {}, query={"ModelId": model}, now=0)
    return response.status, json.loads(response.body)


@pytest.mark.parametrize(
    ("credit", "model", "before", "during", "after"),
    [
        (143, "a/b", ("143", "143", "0"), ("143", "142", "1"), ("142", "142", "0")),
        (0.3, CHEAP["model"], ("0.3", "0.3", "0"), ("0.3", "0.1", "0.2"), ("0.1", "0.1", "0")),
        (2.0, "Qwen/Qwen-Image-2512", ("2", "2", "0"), ("2", "0", "2"), ("0", "0", "0")),
    ],
)
def test_the_price_is_frozen_while_it_runs_and_then_spent(
    credit: float, model: str, before: Balance, during: Balance, after: Balance
) -> None:
    service = Service(duration=10, credit=credit)
    assert balance(service) == before
    submit_to(service, model=model, size="512x512")
    assert balance(service, now=9.9) == during
    assert balance(service, now=10) == after


def test_many_small_prices_add_up_exactly() -> None:
    service = Service(duration=0, credit=1)
    for left in ("0.8", "0.6", "0.4", "0.2", "0"):
        submit_to(service, model=CHEAP["model"], size="512x512")
        assert balance(service) == (left, left, "0")


def test_each_account_has_its_own_credit() -> None:
    service = Service(duration=0, credit=1)
    submit_to(service)
    assert balance(service) == ("0", "0", "0")
    assert balance(service, token="ms-other") == ("1", "1", "0")
    assert "task_id" in submit_to(service, token="ms-other")


def test_without_enough_credit_nothing_is_created() -> None:
    with Emulator(credit=0.9) as emulator:
        response = submit(emulator)
        assert response.status_code == 403
        assert response.json().keys() == {"success", "code", "message", "request_id"}
        assert response.json()["code"] == "QuotaLimitExceed"
        assert message(response) == "magicube balance exhausted"
        assert emulator.accepted == 0
        assert submit(emulator, model=CHEAP["model"], size="512x512").ok


def test_frozen_credit_cannot_be_used_again() -> None:
    service = Service(duration=10, max_running=5, credit=2)
    assert ["task_id" in submit_to(service) for _ in range(3)] == [True, True, False]
    assert balance(service) == ("2", "0", "2")
    assert "task_id" not in submit_to(service, now=20)


def test_a_full_queue_is_reported_before_missing_credit() -> None:
    service = Service(duration=10, credit=1)
    submit_to(service)
    assert submit_to(service)["error"]["message"] == "enqueue failed: user queue is full"
    assert submit_to(service, now=10)["code"] == "QuotaLimitExceed"


CHARGED = {"rejected", "moderated", "moderated-nested", "moderated-40301", "moderated-chinese", "filtered"}


@pytest.mark.parametrize("fault", sorted(REFUNDED | CHARGED))
def test_a_fault_of_the_service_is_refunded_once(fault: str) -> None:
    service = Service(duration=10, credit=5, faults=[f"poll:{fault}"])
    accepted = submit_to(service)
    for now in (1, 20):
        poll_of(service, accepted, now=now)
        left = "5" if fault in REFUNDED else "4"
        assert balance(service, now=now) == (left, left, "0")


def test_every_failure_is_either_refunded_or_charged() -> None:
    failures = {name for name, effect in FAULTS["poll"].items() if "from now on" in effect}
    assert failures | {"moderated-nested"} == REFUNDED | CHARGED
    assert {"failed", "canceled", "expired"} == REFUNDED


def test_a_failure_in_a_single_response_refunds_nothing() -> None:
    service = Service(duration=10, credit=5, faults=["poll:not-found"])
    accepted = submit_to(service)
    assert poll_of(service, accepted, now=1)["task_status"] == "FAILED"
    assert balance(service, now=1) == ("5", "4", "1")
    assert balance(service, now=10) == ("4", "4", "0")


def test_a_stalled_generation_keeps_its_credit_frozen() -> None:
    service = Service(duration=10, credit=5, faults=["poll:stall"])
    poll_of(service, submit_to(service), now=1)
    assert balance(service, now=1000) == ("5", "4", "1")


@pytest.mark.parametrize("fault", ["lost", "no-end", "nested-id", "images"])
def test_a_generation_without_a_good_response_is_charged(fault: str) -> None:
    service = Service(duration=0, credit=5, faults=[f"submit:{fault}"])
    path, body = "/v1/images/generations", json.dumps(REQUEST).encode()
    service.respond("POST", path, SUBMIT, body, now=0)
    assert balance(service) == ("4", "4", "0")


def test_the_default_credit_is_enough_for_every_test(emulator: Emulator) -> None:
    data = get(emulator, BALANCE, AUTHORIZED).json()["data"]
    assert data == {"total_balance": 100000, "available_balance": 100000, "frozen_amount": 0}


def test_the_balance_needs_a_token(emulator: Emulator) -> None:
    response = get(emulator, BALANCE)
    assert (response.status_code, response.json()["code"]) == (401, "InvalidAuthentication")


@pytest.mark.parametrize("credit", [-1, float("nan"), float("inf"), 10**400, "5", True, None, [5]])
def test_credit_that_is_no_number_from_0_is_rejected(credit: Any) -> None:
    with pytest.raises(ValueError, match="credit must be a number from 0 to 1000000000"):
        Service(credit=credit)
    with Emulator() as emulator, pytest.raises(ValueError, match="credit must be a number from 0"):
        emulator.grant(TOKEN, credit)


# Prices


@pytest.mark.parametrize(("model", "price"), [*PRICES.items(), ("someone/a-new-model", 1)])
def test_the_price_shown_is_the_price_charged(model: str, price: Any) -> None:
    service = Service(credit=2)
    status, content = providers(service, model)
    assert status == 200
    assert content == {
        "Code": 200,
        "Data": {
            "Providers": [
                {
                    "Name": "ModelScope",
                    "CostTier": TIERS[price],
                    "EstimatedMagicGrainCost": float(price),
                }
            ],
            "TotalCount": 1,
        },
        "Success": True,
    }
    submit_to(service, model=model, size="512x512", image_url="https://a.example/b.png")
    assert balance(service)[2] == str(price)


def test_a_whole_price_is_an_integer(emulator: Emulator) -> None:
    for model, shown in (("a/b", "1"), (CHEAP["model"], "0.2")):
        response = get(emulator, f"/api/v1/inference/list_model_providers?ModelId={model}")
        assert f'"EstimatedMagicGrainCost": {shown}}}' in response.text


@pytest.mark.parametrize("model", ["nobody/no-such-model", "no-owner", "", "a/" + "b" * 1000])
def test_a_model_that_does_not_exist_has_no_price(model: str) -> None:
    status, content = providers(Service(), model)
    assert (status, content["Success"]) == (500, False)


def test_the_price_of_no_model_is_an_error(emulator: Emulator) -> None:
    assert get(emulator, "/api/v1/inference/list_model_providers").status_code == 500


def test_a_model_that_does_not_exist_is_rejected(emulator: Emulator) -> None:
    response = submit(emulator, model="nobody/no-such-model")
    assert response.status_code == 400
    assert message(response) == "Model id : nobody/no-such-model , has no provider supported"
    assert emulator.accepted == 0


def test_a_retired_model_has_no_provider_and_is_rejected() -> None:
    with Emulator(retired_models=["a/retired"]) as emulator:
        response = submit(emulator, model="a/retired")
        assert (response.status_code, message(response)) == (429, "insufficient balance (1008)")
        assert emulator.accepted == 0
        found = get(emulator, "/api/v1/inference/list_model_providers?ModelId=a/retired")
        assert found.status_code == 200
        assert found.json()["Data"] == {"Providers": None, "TotalCount": 0}
        assert submit(emulator).ok


# Grants


def grant(emulator: Emulator, body: bytes, token: str = TOKEN) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.post(f"{emulator.base_url}/emulator/grant", body, headers=headers, timeout=5)


def test_a_grant_adds_credit_to_one_account() -> None:
    with Emulator(credit=0) as emulator:
        assert submit(emulator).status_code == 403
        response = grant(emulator, b'{"credit": 1.5}')
        assert response.status_code == 200
        assert response.json()["data"] == {
            "total_balance": 1.5,
            "available_balance": 1.5,
            "frozen_amount": 0,
        }
        assert submit(emulator).ok
        emulator.grant(TOKEN, 50)
        assert get(emulator, BALANCE, AUTHORIZED).json()["data"]["available_balance"] == 50.5
        other = {"Authorization": "Bearer ms-other"}
        assert get(emulator, BALANCE, other).json()["data"]["available_balance"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"50", b"null", b"[50]", b"{}", b'{"credit": "50"}', b'{"credit": -1}', b'{"credit": true}',
        b'{"credit": NaN}', b'{"credit": 1e999}', b'{"credit": 1000000001}', b'{"credit": null}', b"\xff",
    ],
)  # fmt: skip
def test_nonsense_in_a_grant_is_rejected_with_status_400(emulator: Emulator, body: bytes) -> None:
    response = grant(emulator, body)
    assert response.status_code == 400
    assert message(response).startswith(("credit must be a number from 0 to ", "The request body "))
    assert get(emulator, BALANCE, AUTHORIZED).json()["data"]["available_balance"] == 100000


def test_a_grant_needs_a_valid_token() -> None:
    with Emulator(tokens=[TOKEN]) as emulator:
        assert grant(emulator, b'{"credit": 50}', token="ms-other").status_code == 401
        with pytest.raises(ValueError, match="No account has this token"):
            emulator.grant("ms-other", 50)


def test_no_response_has_headers_of_the_former_quota(emulator: Emulator) -> None:
    assert not [name for name in submit(emulator).headers if "ratelimit" in name.lower()]
