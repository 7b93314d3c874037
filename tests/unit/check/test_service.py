"""The check finds each difference of the service, and survives any response."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import requests

from airflow_provider_modelscope.check.__main__ import run
from airflow_provider_modelscope.check.assumptions import ASSUMPTIONS, FREE, NO_QUOTA_HEADERS, SPENDING
from airflow_provider_modelscope.check.report import PROMPT
from airflow_provider_modelscope.check.service import BAD_TOKEN, UNKNOWN_MODEL
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.parameters import NO_SUCH_MODEL
from airflow_provider_modelscope.emulator.service import INVALID_TOKEN, Service
from airflow_provider_modelscope.emulator.traits import TRAITS
from tests.unit.check.conftest import HOST, OPTIONS, Answer, Checked, Wire
from tests.unit.conftest import TOKEN, connect

Check = Callable[..., Checked]
PATHS = {
    "models": "/v1/models",
    "user": "/openapi/v1/users/me",
    "balance": "/openapi/v1/magicubes/balance",
    "price": "/api/v1/inference/list_model_providers",
    "poll": "/v1/tasks/",
    "submit": "/v1/images/generations",
    "image": "/images/",
}
# The lines that a response at each path decides on.
LINES = {
    "models": {"models"},
    "user": {"user", "bad-token-site"},
    "balance": {"balance", "frozen", "spent"},
    "price": {"price", "frozen", "spent"},
    "poll": {"task", "task-without-header", "status"},
    "submit": {"bad-token-api", "unknown-model", "accepted", "one-at-a-time"},
    "image": {"content-type", "label"},
}


def answer_at(wire: Wire, where: str, answer: Answer | Exception) -> None:
    wire.instead = lambda method, path: answer if path.startswith(PATHS[where]) else None


def json_answer(status: int, body: Any) -> Answer:
    return Answer(json.dumps(body).encode(), status, {"Content-Type": "application/json"})


def test_a_service_as_assumed_is_all_ok(check: Check) -> None:
    checked = check()
    assert checked.verdicts == dict.fromkeys(ASSUMPTIONS, "ok")
    assert (checked.exit_code, checked.report["credit_used"]) == (0, 0.2)


def test_the_free_check_costs_nothing(check: Check, wire: Wire) -> None:
    checked = check(spend=False)
    assert checked.verdicts == dict.fromkeys([*FREE, NO_QUOTA_HEADERS], "ok")
    assert (checked.exit_code, checked.report["credit_used"]) == (0, 0)
    assert wire.service.accepted == 0
    assert wire.now == 0


def test_the_emulator_is_all_ok_over_http(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Emulator(duration=3600) as emulator:
        connect(monkeypatch, emulator.base_url)
        # Each pause finishes what runs.
        assert run(OPTIONS, sleep=lambda seconds: emulator.finish()) == 0
    report = json.loads(capsys.readouterr().out)
    assert {finding["verdict"] for finding in report["findings"]} == {"ok"}
    assert report["credit_used"] == 0.2


def test_a_lost_response_to_a_submission_reads_the_credit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Emulator(faults=["submit:lost"]) as emulator:
        connect(monkeypatch, emulator.base_url)
        assert run(OPTIONS) == 0
    report = json.loads(capsys.readouterr().out)
    untold = {finding["name"] for finding in report["findings"] if finding["verdict"] == "not told"}
    assert untold == SPENDING.keys()
    assert report["credit_used"] == 0.2


@pytest.mark.parametrize("trait", TRAITS)
def test_the_line_of_a_missing_trait_differs(check: Check, wire: Wire, trait: str) -> None:
    wire.service = Service(duration=8, without=[trait])
    checked = check()
    assert checked.differing == {trait}
    assert checked.exit_code == 1
    assert list(checked.verdicts) == list(ASSUMPTIONS)


def test_every_line_but_the_connection_has_a_trait() -> None:
    assert list(ASSUMPTIONS) == [*FREE, *SPENDING, NO_QUOTA_HEADERS]
    assert TRAITS.keys() == ASSUMPTIONS.keys() - {"connection"}


def test_what_does_not_exist_is_the_same_for_the_emulator() -> None:
    assert (UNKNOWN_MODEL, BAD_TOKEN) == (NO_SUCH_MODEL, INVALID_TOKEN)


DEEP = b'{"data":' * 900 + b"1" + b"}" * 900
ODD = {
    "a page": Answer(b"<!DOCTYPE html><title>Sign in</title>", headers={"Content-Type": "text/html"}),
    "empty": Answer(),
    "a list": Answer(b"[]"),
    "null": Answer(b"null"),
    "an empty object": Answer(b"{}"),
    "not UTF-8": Answer(b"\xff\xfe{"),
    "nested": Answer(DEEP),
    "very nested": Answer(b"[" * 100_000),
    "huge": Answer(b'{"data": "' + b"x" * 3_000_000 + b'"}'),
    "huge numbers": Answer(
        json.dumps(
            {
                "task_status": 10**4000,
                "task_id": "1" * 4000,
                "time_taken": 10**400,
                "data": {"total_balance": 10**400, "available_balance": 1e308, "frozen_amount": -1e308},
                "Data": {"Providers": [{"Name": "ModelScope", "EstimatedMagicGrainCost": 1e308}]},
            }
        ).encode()
    ),
    "other types": Answer(
        json.dumps(
            {
                "task_status": ["SUCCEED"],
                "task_id": {"id": []},
                "output_images": {"0": None},
                "input": [7],
                "errors": [[[]]],
                "data": [[], {"total_balance": "NaN", "available_balance": True}],
                "Data": {"Providers": [None, {"EstimatedMagicGrainCost": []}]},
            }
        ).encode()
    ),
    "an error": Answer(b'{"errors": {"code": 500, "message": "internal"}}', 500),
    "an error page": Answer(b"<html>Bad gateway</html>", 502),
    "a redirect": Answer(b"", 302, {"Location": "http://[::"}),
    "a refused permission": Answer(b"", 403),
    "an unusual status": Answer(b"", 599),
    "a broken connection": requests.ConnectionError("reset by peer"),
}


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_an_odd_response_is_never_ok_nor_an_exception(
    check: Check, wire: Wire, where: str, answer: Answer | Exception
) -> None:
    answer_at(wire, where, answer)
    checked = check()
    if where == "models" and isinstance(answer, Exception):
        assert checked.exit_code == 2
        return
    assert list(checked.verdicts) == list(ASSUMPTIONS)
    assert not [name for name in LINES[where] if checked.verdicts[name] == "ok"]
    assert all(len(came) <= 200 for came in checked.came.values())
    assert wire.now < 1000


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_passing_error_is_no_difference(check: Check, wire: Wire, status: int) -> None:
    wire.instead = lambda method, path: Answer(b"", status)
    checked = check()
    assert set(checked.verdicts.values()) == {"ok", "not told"}
    assert {name for name, verdict in checked.verdicts.items() if verdict == "ok"} == {
        "connection",
        NO_QUOTA_HEADERS,
    }
    assert checked.exit_code == 0


def test_a_token_for_the_api_only_is_no_difference(check: Check, wire: Wire) -> None:
    wire.instead = lambda method, path: (
        Answer(b"{}", 403) if path in (PATHS["user"], PATHS["balance"]) else None
    )
    checked = check()
    assert {checked.verdicts[name] for name in ("user", "balance", "frozen", "spent")} == {"not told"}
    assert checked.differing == {"bad-token-site"}
    assert checked.report["credit_used"] is None


def test_a_gateway_without_the_site_is_no_difference(check: Check, wire: Wire) -> None:
    wire.instead = lambda method, path: Answer(b"", 404) if "api/v1" in path else None
    checked = check()
    assert checked.differing == set()
    assert {checked.verdicts[name] for name in ("user", "balance", "price", "bad-token-site")} == {"not told"}
    assert checked.verdicts["accepted"] == "ok"


def test_a_site_of_modelscope_that_is_missing_differs(
    monkeypatch: pytest.MonkeyPatch, check: Check, wire: Wire
) -> None:
    connect(monkeypatch, "https://api-inference.modelscope.cn")
    wire.instead = lambda method, path: Answer(b"", 404) if "api/v1" in path else None
    assert check(spend=False).differing == {"user", "balance", "price", "bad-token-site"}


def test_an_unverified_connection_differs(monkeypatch: pytest.MonkeyPatch, check: Check, wire: Wire) -> None:
    connect(monkeypatch, "https://api.example", verify="false", proxy="http://proxy.example:3128")
    checked = check(spend=False)
    assert checked.differing == {"connection"}
    assert checked.came["connection"] == "TLS, not verified, proxy of the connection"
    connect(monkeypatch, "http://api.example", allow_http="1")
    assert check(spend=False).came["connection"] == "not encrypted, no proxy"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    connect(monkeypatch, "https://api.example")
    assert check(spend=False).came["connection"] == "TLS, verified, proxy of the environment"


def test_an_accepted_unknown_model_costs_credit(check: Check, wire: Wire) -> None:
    accepted = json.dumps({"task_id": "4003503"}).encode()

    def instead(method: str, path: str) -> Answer | None:
        posts = [sent for sent in wire.sent if sent[0] == "POST"]
        if method == "POST" and len(posts) == 2:
            wire.service.grant(TOKEN, 0)
            return Answer(accepted)
        if path == PATHS["balance"] and posts:
            data = {"total_balance": 99999, "available_balance": 99998.5, "frozen_amount": 0.5}
            return json_answer(200, {"success": True, "data": data})
        return None

    wire.instead = instead
    checked = check(spend=False)
    assert checked.differing == {"unknown-model"}
    assert checked.report["credit_used"] == 1.5


def test_a_second_generation_is_paid_for_and_counted(check: Check, wire: Wire) -> None:
    wire.service = Service(duration=8, max_running=2)
    checked = check()
    assert checked.differing == {"one-at-a-time"}
    assert wire.service.accepted == 2
    assert checked.report["credit_used"] == 0.4
    assert checked.came["spent"] == "0.4 for 2 at 0.2"


def test_a_generation_that_finishes_at_once_tells_less(check: Check, wire: Wire) -> None:
    wire.service = Service(duration=0)
    checked = check()
    assert {checked.verdicts[name] for name in ("one-at-a-time", "frozen")} == {"not told"}
    assert checked.came["status"] == "SUCCEED"


def test_an_account_without_credit_is_refused(check: Check, wire: Wire) -> None:
    wire.service = Service(duration=8, credit=0)
    checked = check()
    assert checked.differing == {"accepted"}
    assert "magicube balance exhausted" in checked.came["accepted"]
    assert checked.verdicts["spent"] == "not told"
    assert checked.report["credit_used"] == 0


@pytest.mark.parametrize(
    ("fault", "verdict", "came"),
    [
        ("poll:failed", "differs", "FAILED: Image generation failed"),
        ("poll:moderated", "differs", "FAILED: DataInspectionFailed"),
        ("poll:stall", "not told", "PROCESSING for 600 s"),
        ("poll:other-words", "differs", "PENDING, PROCESSING, COMPLETED"),
    ],
)
def test_a_generation_that_does_not_succeed_has_its_status(
    check: Check, wire: Wire, fault: str, verdict: str, came: str
) -> None:
    wire.service = Service(duration=8, faults=[fault])
    checked = check()
    assert checked.verdicts["status"] == verdict
    assert checked.came["status"].startswith(came)
    assert list(checked.verdicts) == list(ASSUMPTIONS)


def test_polls_that_fail_for_a_while_are_repeated(check: Check, wire: Wire) -> None:
    wire.service = Service(duration=8, faults=["poll:503:2", "poll:html", "poll:empty", "poll:reset"])
    checked = check()
    assert checked.differing == set()
    assert checked.came["status"] == "SUCCEED"


@pytest.mark.parametrize("fault", ["html", "no-id", "500"])
def test_a_submission_without_a_good_response_differs(check: Check, wire: Wire, fault: str) -> None:
    wire.service = Service(duration=8, faults=[f"submit:{fault}"])
    checked = check()
    assert checked.differing == {"accepted"}
    assert checked.verdicts["status"] == "not told"
    assert checked.report["credit_used"] == 0


@pytest.mark.parametrize("fault", ["garbage", "html", "404", "500", "truncated"])
def test_an_image_that_cannot_be_read_is_never_ok(check: Check, wire: Wire, fault: str) -> None:
    wire.service = Service(duration=8, faults=[f"image:{fault}:2"])
    checked = check()
    assert checked.verdicts["label"] == "not told"
    assert checked.verdicts["content-type"] in ("differs", "not told")
    assert checked.verdicts["spent"] == "ok"


def test_seconds_in_time_taken_are_found_however_short(check: Check, wire: Wire) -> None:
    for duration in (0.5, 8, 500):
        wire.service = Service(duration=duration, without=["time-taken"])
        assert check().differing == {"time-taken"}
        wire.service = Service(duration=duration)
        assert check().differing == set()


MIXED_TOKEN = "ms-0B1c2D3e-Test"
ENCODED = b64encode(MIXED_TOKEN.encode()).decode()
SECRETS = (MIXED_TOKEN, ENCODED[:20], PROMPT)


def echo(number: int) -> Answer:
    token = MIXED_TOKEN
    said = f"{token} {ENCODED} {PROMPT}"
    content = {
        "success": number % 2 == 0,
        "code": said,
        "message": said,
        "errors": {"code": token, "message": said},
        "request_id": token,
        "task_id": token if number % 3 else "42",
        "task_status": token if number % 4 else "SUCCEED",
        "output_images": [f"https://{token}.example/{token}?{token}"],
        "input": {token: token, "prompt": said, "seed": token},
        "data": {"total_balance": token, "available_balance": token, token: PROMPT},
        "Data": {"Providers": [{"Name": token, "EstimatedMagicGrainCost": token}]},
    }
    headers = {f"modelscope-ratelimit-{token}": token, "Location": f"/{token}", "Content-Type": said}
    return Answer(json.dumps(content).encode(), (200, 400, 500, 302, 404)[number % 5], headers)


@pytest.mark.parametrize("json_", [True, False])
@pytest.mark.parametrize("start", range(5))
def test_an_echo_of_token_and_prompt_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, check: Check, wire: Wire, start: int, json_: bool
) -> None:
    connection = {"conn_type": "modelscope", "password": MIXED_TOKEN, "host": HOST}
    monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(connection))
    numbers = count(start)
    wire.instead = lambda method, path: echo(next(numbers))
    output = check(json=json_).output
    assert not [secret for secret in SECRETS if secret.lower() in output.lower()]
    assert PROMPT[:14].lower() not in output.lower()
    assert "***" in output


def test_an_echo_in_a_failure_is_not_shown(check: Check, wire: Wire) -> None:
    wire.service = Service(duration=8, faults=["submit:echo"])
    checked = check()
    assert "(the prompt)" in checked.came["accepted"]
    assert PROMPT not in checked.output
