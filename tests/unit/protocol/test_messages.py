"""What is sent to ModelScope, to the byte, and what each of its answers means."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from requests.structures import CaseInsensitiveDict

from airflow_provider_modelscope.exceptions import (
    AccountNotReadyError,
    AuthenticationError,
    ModelScopeError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.protocol import messages
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.messages import HttpResponse, Quota
from airflow_provider_modelscope.protocol.request import GenerationRequest

TOKEN = "ms-8f3b1c9a-0000-4000-8000-0123456789ab"
ACCOUNT = Account(token=TOKEN)
MODEL = "Qwen/Qwen-Image"
URL = "https://muse-ai.oss-cn-hangzhou.aliyuncs.com/img/0f.jpeg"


def answer(status: int, body: Any = b"", **headers: str) -> HttpResponse:
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    secret = headers.pop("secret", "")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status_code=status, headers=CaseInsensitiveDict(named), body=raw, secret=secret)


def submitted(given: HttpResponse, account: Account = ACCOUNT, model: str = MODEL) -> str:
    return messages.read_submission(given, account=account, model=model)


def looked(given: HttpResponse) -> Any:
    return messages.read_status(given, account=ACCOUNT, generation_id="42")


def submission_error(given: HttpResponse, account: Account = ACCOUNT, model: str = MODEL) -> ModelScopeError:
    with pytest.raises(ModelScopeError) as caught:
        submitted(given, account, model)
    return caught.value


def look_error(given: HttpResponse) -> ModelScopeError:
    with pytest.raises(ModelScopeError) as caught:
        looked(given)
    return caught.value


def test_a_submission_is_sent_as_utf_8_with_its_headers_and_nothing_else() -> None:
    request = GenerationRequest(
        model=MODEL, prompt="一只金色的猫 😀", seed=7, extra_parameters={"n": None, "名": "值"}
    )
    call = messages.submission_request(Account(token=TOKEN, base_url="https://api.example/prefix"), request)
    assert (call.method, call.url) == ("POST", "https://api.example/prefix/v1/images/generations")
    assert call.headers == {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "X-ModelScope-Async-Mode": "true",
    }
    assert call.body == (
        '{"model": "Qwen/Qwen-Image", "prompt": "一只金色的猫 😀", "seed": 7, "n": null, "名": "值"}'.encode()
    )


@pytest.mark.parametrize(
    ("generation_id", "quoted"),
    [
        ("4003503", "4003503"),
        ("a-b_c.d~e", "a-b_c.d~e"),
        ("../../users", "..%2F..%2Fusers"),
        ("a?b#c", "a%3Fb%23c"),
        ("a b%2F", "a%20b%252F"),
        ("猫", "%E7%8C%AB"),
    ],
)
def test_a_look_has_the_header_without_which_it_finds_nothing_and_quotes_the_id(
    generation_id: str, quoted: str
) -> None:
    call = messages.status_request(ACCOUNT, generation_id)
    assert (call.method, call.body) == ("GET", None)
    assert call.url == f"https://api-inference.modelscope.cn/v1/tasks/{quoted}"
    assert call.headers == {
        "Authorization": f"Bearer {TOKEN}",
        "X-ModelScope-Task-Type": "image_generation",
    }


def test_a_token_is_tested_where_a_bad_one_is_told_from_a_good_one() -> None:
    call = messages.user_request(ACCOUNT, "https://modelscope.cn")
    assert (call.method, call.url, call.body) == ("GET", "https://modelscope.cn/openapi/v1/users/me", None)
    assert call.headers == {"Authorization": f"Bearer {TOKEN}"}


def test_no_call_shows_the_token_or_the_prompt() -> None:
    request = GenerationRequest(model=MODEL, prompt="a secret wish")
    calls = (
        messages.submission_request(ACCOUNT, request),
        messages.status_request(ACCOUNT, "42"),
        messages.user_request(ACCOUNT, ""),
    )
    for call in calls:
        assert TOKEN not in repr(call)
        assert "secret" not in repr(call)


@pytest.mark.parametrize(
    ("task_id", "generation_id"),
    [("4003503", "4003503"), (4003503, "4003503"), (" 7\n", "7"), (0, "0"), ("a/b", "a/b")],
)
@pytest.mark.parametrize("status", [200, 201, 202])
def test_an_accepted_submission_gives_an_opaque_id(status: int, task_id: Any, generation_id: str) -> None:
    body = {"task_status": "SUCCEED", "task_id": task_id, "request_id": "008f"}
    assert submitted(answer(status, body)) == generation_id


NO_IDS: list[Any] = [
    "", " ", None, True, False, 1.5, [], ["7"], {"id": "7"},
    "None", "..", "7\n8", "7  8", "7\0", "7" * 201, int("7" * 201), TOKEN, f"7?key={TOKEN}",
]  # fmt: skip


@pytest.mark.parametrize("task_id", NO_IDS, ids=range(len(NO_IDS)))
def test_an_answer_without_an_id_may_have_started_a_generation(task_id: Any) -> None:
    body = {"task_id": task_id, "errors": {"message": "odd"}, "request_id": "r-1"}
    error = submission_error(answer(200, body))
    assert type(error) is SubmissionLostError
    assert (error.code, error.request_id) == (200, "r-1")
    assert error.message.startswith("ModelScope's answer names no generation. It says: odd.")
    assert "may have started a generation all the same" in error.message


# Each row: status, message, what it means for a submission and for a look (None: what the submission says),
# and what its text adds. The class says whether a retry would help; the third column says it once more.
ANSWERS: dict[str, tuple[int, str, bool, type[ModelScopeError], type[ModelScopeError] | None, str]] = {
    "no such model": (
        400, f"Model id : {MODEL} , has no provider supported", True,
        UnknownModelError, None, "Choose a model that shows API-Inference",
    ),
    "parameters": (400, "image_url is required", True, RequestRejectedError, None, ""),
    "our bug": (
        400, f"{MODEL} does not support synchronous calls, set async", True, RequestRejectedError, None, "",
    ),
    "too large": (413, "Payload too large", True, RequestRejectedError, None, ""),
    "unprocessable": (422, "No", True, RequestRejectedError, None, ""),
    "bad token": (
        401, "Authentication failed, please make sure that a valid token is supplied", True,
        AuthenticationError, None, "https://modelscope.cn/my/myaccesstoken",
    ),
    "forbidden": (403, "No", True, AuthenticationError, None, "Check the connection's password"),
    "not bound": (
        401, "Please bind your Alibaba Cloud account before use.", True, AccountNotReadyError, None,
        "Do so at https://modelscope.cn/my/myaccesstoken",
    ),
    "not verified": (
        403, "Your account must be real name verified first", True, AccountNotReadyError, None, "Do so at",
    ),
    "not verified, hyphen": (401, "Needs Real-Name check", True, AccountNotReadyError, None, "Do so at"),
    "day's quota": (
        429, "You have exceeded today's quota for a model", True, QuotaExhaustedError, None, "or tomorrow",
    ),
    "day's quota, curly": (429, "You exceeded Today’s Quota", True, QuotaExhaustedError, None, "or tomorrow"),
    "day's quota of a model": (
        429, "Too many calls of qwen/QWEN-IMAGE", True, QuotaExhaustedError, RateLimitedError, "",
    ),
    "no balance": (402, "Payment required", True, QuotaExhaustedError, None, "credit is spent"),
    **{
        f"no balance, {said}": (429, said, True, QuotaExhaustedError, None, "credit is spent")
        for said in ("Your balance is 0", "Insufficient funds", "Out of credit", "账户余额不足", "账户已欠费")
    },
    "too fast": (429, "Request limit exceeded, slow down", False, RateLimitedError, None, ""),
    "queue full": (500, "enqueue failed: user queue is full", False, QueueFullError, None, ""),
    **{
        str(status): (status, "Sorry", False, SubmissionLostError, ServiceUnavailableError, "")
        for status in (408, 500, 502, 503, 504, 599)
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "envelope",
    [
        lambda said, code: {"errors": {"message": said, "code": code}, "request_id": "r-1"},
        lambda said, code: {"error": {"message": said, "code": code, "request_id": "r-1"}},
        lambda said, code: {"errors": said, "request_id": "r-1"},
    ],
    ids=["errors", "error", "text"],
)
@pytest.mark.parametrize(("status", "said", "final", "submit", "look", "adds"), ANSWERS.values(), ids=ANSWERS)
def test_an_error_means_what_a_caller_can_do_about_it(
    envelope: Any,
    status: int,
    said: str,
    final: bool,
    submit: type[ModelScopeError],
    look: type[ModelScopeError] | None,
    adds: str,
) -> None:
    given = answer(status, envelope(said, status), retry_after="7")
    for error, kind in ((submission_error(given), submit), (look_error(given), look or submit)):
        assert type(error) is kind
        assert said in error.message
        assert adds in error.message
        assert (error.code, error.request_id) == (status, "r-1")
        assert "request id r-1" in str(error)
        assert error.retry_after == (None if kind is SubmissionLostError else 7)
    assert issubclass(submit, AirflowFailException) is final


def test_a_person_is_sent_to_the_site_that_the_connection_names() -> None:
    international = Account(token=TOKEN, base_url="https://api-inference.modelscope.ai")
    for said in ("Authentication failed", "Please bind your Alibaba Cloud account before use."):
        error = submission_error(answer(401, {"errors": {"message": said}}), international)
        assert "https://modelscope.ai/my/myaccesstoken" in error.message


def test_another_models_name_in_a_429_is_not_a_spent_quota() -> None:
    given = answer(429, {"errors": {"message": "Slow down, black-forest-labs/FLUX.1-dev"}})
    assert type(submission_error(given)) is RateLimitedError


def test_an_error_is_judged_by_all_it_says_though_only_200_characters_are_shown() -> None:
    said = "We have to rate limit you. " * 10
    error = submission_error(answer(429, {"errors": {"message": f"{said}You exceeded today's quota"}}))
    assert type(error) is QuotaExhaustedError
    assert error.message.startswith(f"ModelScope says: {said[:200]}")
    assert "exceeded" not in error.message


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 399])
def test_a_redirect_is_not_followed_and_points_to_the_connection(status: int) -> None:
    body = {"task_id": "7", "task_status": "SUCCEED", "output_images": [URL]}
    given = answer(status, body, location="https://elsewhere.example")
    for error, kind in (
        (submission_error(given), SubmissionLostError),
        (look_error(given), ServiceUnavailableError),
    ):
        assert type(error) is kind
        assert error.message.startswith(
            "https://api-inference.modelscope.cn redirects, which is not followed"
        )


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "nothing"),
    "html": (b"<html>\n <body>502   Bad Gateway</body></html>", "<html> <body>502 Bad Gateway</body></html>"),
    "text": ("抱歉".encode(), "抱歉"),
    "bytes": (b"\xff\xfe\xfa", "\ufffd\ufffd\ufffd"),
    "list": (b"[]", "[]"),
    "null": (b"null", "null"),
    "number": (b"5", "5"),
    "broken": (b'{"task_id": "7', '{"task_id": "7'),
    "deep": (b"[" * 100_000, "[" * 200),
    "object": (b'{"a": 1}', '{"a": 1}'),
}


@pytest.mark.parametrize("status", [200, 204, 500, 502])
@pytest.mark.parametrize(("body", "says"), BODIES.values(), ids=BODIES)
def test_what_is_not_the_apis_json_is_a_passing_fault_that_shows_what_came(
    body: bytes, says: str, status: int
) -> None:
    given = answer(status, body)
    assert given.evidence == says
    for error, kind in (
        (submission_error(given), SubmissionLostError),
        (look_error(given), ServiceUnavailableError),
    ):
        assert type(error) is kind
        assert says in error.message
        assert (error.code, error.request_id) == (status, None)


@pytest.mark.parametrize(("body", "says"), BODIES.values(), ids=BODIES)
def test_a_refusal_that_is_not_json_is_a_refusal_all_the_same(body: bytes, says: str) -> None:
    for status, kind in ((400, RequestRejectedError), (401, AuthenticationError), (429, RateLimitedError)):
        error = submission_error(answer(status, body))
        assert type(error) is kind
        assert says in error.message
    assert type(submission_error(answer(404, body))) is RequestRejectedError


def test_a_look_that_meets_another_server_says_so() -> None:
    said = look_error(answer(200, b"<html>")).message
    assert said.startswith(
        "https://api-inference.modelscope.cn does not answer as ModelScope's API does. It says"
    )


@pytest.mark.parametrize("status", [400, 500, 503])
@pytest.mark.parametrize(
    ("body", "ended"),
    [
        ({"task_status": "FAILED", "errors": {"code": 400, "message": "No cats"}}, "FAILED"),
        ({"task_status": "SUCCEED", "output_images": [URL]}, "SUCCEED"),
        ({"task_status": "FAILED"}, None),
        ({"task_status": "SUCCEED"}, None),
        ({"task_status": "PROCESSING", "errors": {"message": "No cats"}}, None),
    ],
    ids=["failed", "succeed", "no reason", "no images", "runs"],
)
def test_an_end_that_the_body_describes_is_believed_under_a_status_of_its_own(
    status: int, body: Any, ended: str | None
) -> None:
    given = answer(status, body)
    if ended:
        assert (looked(given).status, looked(given).is_finished) == (ended, True)
    else:
        assert look_error(given).code == status


@pytest.mark.parametrize("status", [401, 402, 403, 408, 429])
def test_a_status_about_who_asks_or_how_often_is_no_verdict_on_the_generation(status: int) -> None:
    body = {"task_status": "FAILED", "errors": {"code": 500, "message": "No"}}
    assert look_error(answer(status, body)).code == status


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 405, 407, 500, 502])
@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"<!DOCTYPE html>wait", {}), (b"  <html>", {}), (b"Blocked", {"content_type": "text/html"})],
)
def test_a_page_of_a_proxy_or_firewall_is_no_verdict_on_a_generation(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    error = look_error(answer(status, body, **headers))
    assert type(error) is ServiceUnavailableError
    assert (error.code, error.generation_id) == (status, "42")
    assert body.decode().strip() in error.message


def test_json_that_calls_itself_a_page_is_json() -> None:
    given = answer(200, {"task_status": "PENDING"}, content_type="text/html")
    assert looked(given).status == "PENDING"


def test_a_failure_without_a_reason_shows_what_came_instead() -> None:
    failed = looked(answer(200, {"task_status": "FAILED", "why": "no cats"}))
    assert "without a reason: " in failed.error.message
    assert "no cats" in failed.error.message


@pytest.mark.parametrize("header", ["x-request-id", "X-Acs-Request-Id"])
def test_a_request_id_that_only_a_header_names_is_evidence_too(header: str) -> None:
    headers = {header: "r-2"}
    assert submission_error(answer(500, b"Sorry", **headers)).request_id == "r-2"
    assert looked(answer(200, {"task_status": "FAILED"}, **headers)).error.request_id == "r-2"
    assert look_error(answer(500, {"error": {"request_id": "r-1"}}, **headers)).request_id == "r-1"


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 429, 500])
def test_an_answer_that_repeats_the_token_does_not_bring_it_into_a_text(status: int) -> None:
    echo = f"You sent Bearer {TOKEN}"
    escaped = json.dumps(echo).replace("-", "\\u002d")
    bodies = [
        echo.encode(),
        {"errors": {"message": echo, "code": echo, "request_id": TOKEN}},
        f'{{"error": {escaped}, "request_id": {escaped}, "task_id": {escaped}}}'.encode(),
        {"task_status": f"X{TOKEN}", "task_id": TOKEN},
        {"task_status": "FAILED", "errors": [echo]},
        {"task_status": "FAILED", "echo": echo},
    ]
    for body in bodies:
        given = answer(status, body, x_request_id=TOKEN, location=f"https://a.example/?{echo}")
        said = str(submission_error(given))
        try:
            said += repr(looked(given))
        except ModelScopeError as error:
            said += str(error) + str(error.to_json())
        assert TOKEN not in said
        assert "***" in said
    assert TOKEN not in repr(answer(200, secret=TOKEN))


def test_an_integer_too_long_to_be_read_is_not_the_apis_json() -> None:
    body = b'{"task_status": "SUCCEED", "time_taken": ' + b"9" * 5000 + b"}"
    assert "task_status" in look_error(answer(200, body)).message


def test_a_redirect_says_where_to() -> None:
    error = look_error(answer(302, location="https://login.example/\n"))
    assert "to https://login.example/. Check the connection's host" in error.message


def test_calls_and_answers_are_frozen() -> None:
    for value in (answer(200), messages.status_request(ACCOUNT, "42")):
        for field in fields(value):
            with pytest.raises(FrozenInstanceError):
                setattr(value, field.name, None)


def test_a_model_whose_name_is_in_no_message_changes_nothing() -> None:
    assert type(submission_error(answer(429, b"Too many"), model="")) is RateLimitedError


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"task_status": "SUCCEED", "output_images": [URL], "task_id": "7"}, "SUCCEED"),
        ({"request_id": "", "task_id": "", "task_status": "PROCESSING", "outputs": {}}, "PROCESSING"),
        ({"task_status": None}, ""),
        ({"task_status": "FAILED", "errors": {"code": 500, "message": "boom"}}, "FAILED"),
    ],
    ids=str,
)
def test_a_look_gives_the_generation_that_was_asked_for(body: Any, status: str) -> None:
    generation = looked(answer(200, body))
    assert (generation.generation_id, generation.status) == ("42", status)
    assert generation.is_finished is (status in ("SUCCEED", "FAILED"))


@pytest.mark.parametrize(
    ("body", "says", "request_id"),
    [
        (b"404 page not found", "404 page not found", None),
        (b"", "nothing", None),
        ({"errors": {"message": "gone"}, "request_id": "r-1"}, "gone", "r-1"),
    ],
)
def test_a_404_is_no_verdict_on_a_generation(body: Any, says: str, request_id: str | None) -> None:
    error = look_error(answer(404, body))
    assert type(error) is ServiceUnavailableError
    assert says in error.message
    assert (error.code, error.request_id) == (404, request_id)


@pytest.mark.parametrize("status", [200, 401, 429, 500])
def test_an_error_of_a_look_names_the_generation(status: int) -> None:
    error = look_error(answer(status, {"errors": {"message": "No"}}))
    assert error.generation_id == "42"
    assert "generation 42" in str(error)


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("0", "", 0),
        ("7", "", 7),
        (" 120 ", "", 120),
        ("Wed, 21 Oct 2015 07:28:10 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 10),
        ("Wed, 21 Oct 2015 09:28:10 +0200", "Wed, 21 Oct 2015 07:28:00 GMT", 10),
        ("Wed, 21 Oct 2015 07:27:50 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", "", None),
        ("Wed, 21 Oct 2015 07:28:10 GMT", "today", None),
        ("Fri, 31 Dec 9999 23:59:59 -2300", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Mon, 32 Jan 2020 00:00:00 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        *[
            (odd, "Wed, 21 Oct 2015 07:28:00 GMT", None)
            for odd in ("", "soon", "-1", "1.5", "1e3", "４", "1" * 10)
        ],
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_read_against_the_answers_own(
    retry_after: str, date: str, seconds: float | None
) -> None:
    assert answer(429, retry_after=retry_after, date=date).retry_after == seconds
    assert look_error(answer(429, RETRY_AFTER=retry_after, DATE=date)).retry_after == seconds


def test_an_answer_that_asks_for_no_pause_says_so() -> None:
    assert answer(429).retry_after is None


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title], ids=lambda case: case.__name__)
def test_the_quota_is_shown_where_it_is_sent_in_any_case(case: Any) -> None:
    sent = {
        "modelscope-ratelimit-requests-limit": "2000",
        "modelscope-ratelimit-requests-remaining": "1999",
        "modelscope-ratelimit-model-requests-limit": "500",
        "modelscope-ratelimit-model-requests-remaining": "0",
    }
    quota = Quota(limit=2000, remaining=1999, model_limit=500, model_remaining=0)
    assert answer(200, **{case(name): value for name, value in sent.items()}).quota == quota
    remaining = "modelscope-ratelimit-requests-remaining"
    assert answer(200, **{case(remaining): "3"}).quota == Quota(remaining=3)
    for odd in ("", "x" * 100, "3\n", TOKEN):
        assert answer(200, **{remaining: odd}).quota == Quota()
    assert answer(200, **{"x-ratelimit-requests-remaining": "3"}).quota == Quota()


@pytest.mark.parametrize(
    ("quota", "words"),
    [
        (Quota(), ""),
        (Quota(remaining=3), "3 requests left"),
        (Quota(limit=2000), "at most 2000 requests"),
        (Quota(limit=2000, remaining=0), "0 of 2000 requests left"),
        (Quota(model_limit=500, model_remaining=7), "of this model 7 of 500 requests left"),
        (
            Quota(limit=2000, remaining=3, model_remaining=1),
            "3 of 2000 requests left, of this model 1 requests left",
        ),
    ],
)
def test_the_quota_says_as_much_as_the_service_did(quota: Quota, words: str) -> None:
    assert str(quota) == words
