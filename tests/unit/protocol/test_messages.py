"""What is sent to ModelScope, to the byte, and what each of its responses means."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any

import pytest
from requests.structures import CaseInsensitiveDict

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    CreditExhaustedError,
    GenerationFailedError,
    ModelScopeError,
    ModelScopeRetryableError,
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
from airflow_provider_modelscope.protocol.body import ErrorDetail
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.protocol.messages import HttpResponse
from airflow_provider_modelscope.protocol.request import GenerationRequest
from tests.unit.protocol.test_errors import EXAMPLES, has_code

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.errors import Meaning

TOKEN = "ms-8f3b1c9a-0000-4000-8000-0123456789ab"
ACCOUNT = Account(token=TOKEN)
MODEL = "Qwen/Qwen-Image"
URL = "https://muse-ai.oss-cn-hangzhou.aliyuncs.com/img/0f.jpeg"


def response(status: int, body: Any = b"", **headers: str) -> HttpResponse:
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status_code=status, headers=CaseInsensitiveDict(named), body=raw)


def submitted(given: HttpResponse, account: Account = ACCOUNT) -> Generation:
    return messages.read_submission(given, account=account)


def polled(given: HttpResponse) -> Generation:
    return messages.read_status(given, account=ACCOUNT, generation_id="42")


def submission_error(given: HttpResponse, account: Account = ACCOUNT) -> ModelScopeError:
    with pytest.raises(ModelScopeError) as caught:
        submitted(given, account)
    return caught.value


def poll_error(given: HttpResponse) -> ModelScopeError:
    with pytest.raises(ModelScopeError) as caught:
        polled(given)
    return caught.value


def test_a_submission_is_utf_8_with_exactly_its_headers() -> None:
    request = GenerationRequest(
        model=MODEL, prompt="一只金色的猫 😀", seed=7, extra_parameters={"n": None, "名": "值"}
    )
    sent = messages.submission_request(Account(token=TOKEN, base_url="https://api.example/prefix"), request)
    assert (sent.method, sent.url) == ("POST", "https://api.example/prefix/v1/images/generations")
    assert sent.headers == {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "X-ModelScope-Async-Mode": "true",
    }
    assert sent.body == (
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
def test_a_poll_has_the_task_type_header_and_quotes_the_id(generation_id: str, quoted: str) -> None:
    request = messages.status_request(ACCOUNT, generation_id)
    assert (request.method, request.body) == ("GET", None)
    assert request.url == f"https://api-inference.modelscope.cn/v1/tasks/{quoted}"
    assert request.headers == {
        "Authorization": f"Bearer {TOKEN}",
        "X-ModelScope-Task-Type": "image_generation",
    }


def test_a_token_is_verified_with_the_user_endpoint() -> None:
    request = messages.user_request(ACCOUNT, "https://modelscope.cn")
    assert (request.method, request.url, request.body) == (
        "GET",
        "https://modelscope.cn/openapi/v1/users/me",
        None,
    )
    assert request.headers == {"Authorization": f"Bearer {TOKEN}"}


def test_the_repr_of_a_request_hides_token_and_prompt() -> None:
    request = GenerationRequest(model=MODEL, prompt="a secret wish")
    requests = (
        messages.submission_request(ACCOUNT, request),
        messages.status_request(ACCOUNT, "42"),
        messages.user_request(ACCOUNT, ""),
    )
    for sent in requests:
        assert TOKEN not in repr(sent)
        assert "secret" not in repr(sent)


@pytest.mark.parametrize(
    ("task_id", "generation_id"),
    [
        ("4003503", "4003503"),
        (4003503, "4003503"),
        (4003503.0, "4003503"),
        (" 7\n", "7"),
        (0, "0"),
        ("a/b", "a/b"),
    ],
)
@pytest.mark.parametrize("status", [200, 201, 202])
def test_an_accepted_submission_returns_an_opaque_id(status: int, task_id: Any, generation_id: str) -> None:
    body = {"task_status": "SUCCEED", "task_id": task_id, "request_id": "008f"}
    assert submitted(response(status, body)) == Generation(generation_id=generation_id, status="")


IDS: dict[str, Any] = {
    "id": {"id": "7", "task_status": "PENDING"},
    "output": {"output": {"task_id": "7", "task_status": "PENDING"}},
    "data": {"data": {"task_id": 7}},
    "list": {"data": [{"task_id": "7"}]},
    "after an empty one": {"task_id": "", "output": {"task_id": "7"}},
    "no status": {"task_id": "7"},
    "beside an error": {"task_id": "7", "errors": {"message": "Server is busy, please try again later"}},
    "beside images": {"task_id": "7", "output_images": [URL]},
    "failed": {"task_id": "7", "task_status": "FAILED"},
}


@pytest.mark.parametrize("body", IDS.values(), ids=IDS)
def test_the_id_is_found_in_every_shape(body: Any) -> None:
    assert submitted(response(200, body)) == Generation(generation_id="7", status="")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_id_beside_a_passing_error_is_accepted(status: int) -> None:
    body = {"task_id": "7", "errors": {"message": "Server is busy, please try again later"}}
    assert submitted(response(status, body)).generation_id == "7"
    assert (
        type(submission_error(response(400, {**body, "errors": {"message": "No"}}))) is RequestRejectedError
    )


@pytest.mark.parametrize(
    "body",
    [
        {"images": [{"url": URL}]},
        {"data": [{"url": URL, "id": "7"}], "created": 1},
        {"code": 20000, "message": "success", "data": {"images": [URL]}},
        {"output_images": [URL], "task_status": "SUCCEED", "task_id": ""},
        {"output": {"results": [{"url": URL}, None]}, "id": "7"},
        {"code": 200, "message": "ok", "data": {"image_urls": [URL]}},
    ],
    ids=str,
)
def test_a_submission_with_its_images_is_finished(body: Any) -> None:
    generation = submitted(response(200, body))
    assert (generation.is_finished, generation.output_images) == (True, (URL,))
    assert generation.generation_id == submitted(response(200, body)).generation_id
    assert len(generation.generation_id) == 32


@pytest.mark.parametrize(
    "body",
    [
        {"success": False, "message": "No", "data": {"url": URL}},
        {"success": False, "message": "No", "images": [URL]},
        {"errors": {"message": "No"}, "data": {"url": URL}},
        {"code": "BadRequest", "message": "invalid parameter", "output": {"url": URL}},
        {"success": False, "message": "No", "data": {"images": [URL]}},
        {"data": {"errors": {"message": "No"}, "url": URL}},
    ],
    ids=str,
)
def test_a_url_in_an_error_is_no_image(body: Any) -> None:
    assert type(submission_error(response(200, body))) is RequestRejectedError
    assert type(poll_error(response(200, body))) is ServiceUnavailableError


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ({"output": {"code": "Arrearage", "message": "overdue"}}, CreditExhaustedError, "overdue"),
        ({"data": {"errors": {"message": "今日额度已用完"}}}, QuotaExhaustedError, "今日额度"),
        ({"Code": 1, "Message": "Model not found", "Success": False}, UnknownModelError, "Model not found"),
        ({"msg": "today's quota is used up", "status": "error"}, QuotaExhaustedError, "quota"),
        ({"code": "InternalError", "message": "An error"}, ServiceUnavailableError, "An error"),
    ],
    ids=str,
)
def test_a_refusal_of_another_shape_is_not_unconfirmed(
    body: Any, kind: type[ModelScopeError], said: str
) -> None:
    error = submission_error(response(200, body))
    assert type(error) is kind
    assert said in error.message


def test_images_beside_an_error_are_images() -> None:
    body = {"errors": {"message": "No watermark"}, "images": [{"url": URL}]}
    assert submitted(response(200, body)).output_images == (URL,)


def test_a_failed_submission_with_images_is_finished() -> None:
    body = {"task_status": "FAILED", "images": [URL]}
    assert submitted(response(200, body)).is_finished
    assert type(submission_error(response(200, {**body, "images": []}))) is SubmissionLostError


NO_IDS: list[Any] = [
    " ", True, False, 1.5, 1e300, [], ["7"], {"id": "7"},
    "None", "..", "7\n8", "7  8", "7\0", "7" * 201, int("7" * 201), TOKEN, f"7?key={TOKEN}",
]  # fmt: skip


@pytest.mark.parametrize("task_id", NO_IDS, ids=range(len(NO_IDS)))
def test_an_unusable_id_is_a_lost_submission(task_id: Any) -> None:
    body = {"task_id": task_id, "errors": {"message": "odd"}, "request_id": "r-1"}
    error = submission_error(response(200, body))
    assert type(error) is SubmissionLostError
    assert (error.code, error.request_id) == (200, "r-1")
    assert error.message.startswith(
        "ModelScope's response contains no generation id: odd. The service may have"
    )
    assert "may have started and charged a generation" in error.message


NO_ERRORS: list[Any] = [
    {}, {"task_status": "SUCCEED"}, {"task_id": ""}, {"task_id": None, "request_id": "r-1"}, {"errors": {}},
    {"error": None}, {"success": True, "code": 200, "message": "ok"}, {"code": "Success", "message": "ok"},
    {"errors": {"code": 0, "message": ""}}, {"task_status": "FAILED"}, {"errors": {"message": "success"}},
    {"code": 20000, "message": "success", "data": {"task_status": "SUCCEED"}}, {"code": "Odd"},
]  # fmt: skip


@pytest.mark.parametrize("body", NO_ERRORS, ids=str)
def test_neither_id_nor_error_is_a_lost_submission(body: Any) -> None:
    error = submission_error(response(200, body))
    assert type(error) is SubmissionLostError
    assert "contains no generation id" in error.message


TOKENS, SETTINGS, CREDIT = (
    f"https://modelscope.cn/{path}" for path in ("my/myaccesstoken", "my/accountsettings", "magicube/usage")
)
QUOTA = f"You have exceeded today's quota for model {MODEL}, please try again tomorrow"
BUSY = "Server is busy, please try again later"
FULL = "enqueue failed: user queue is full"

# The status decides if neither code nor words are known: the error of a submission and of a poll (None: the
# same), and a part of its text.
STATUSES: list[tuple[int, str, type[ModelScopeError], type[ModelScopeError] | None, str]] = [
    (400, "image_url is required", RequestRejectedError, None, ""),
    (400, f"{MODEL} does not support synchronous calls, set async", RequestRejectedError, None, ""),
    (409, "No", RequestRejectedError, ServiceUnavailableError, ""),
    (413, "Payload too large", RequestRejectedError, ServiceUnavailableError, ""),
    (422, "No", RequestRejectedError, ServiceUnavailableError, ""),
    (401, "No", AuthenticationError, None, TOKENS),
    *[(403, said, RequestRejectedError, ServiceUnavailableError, TOKENS) for said in ("No", "Forbidden")],
    (403, "Forbidden", RequestRejectedError, ServiceUnavailableError, "egress rules, the connection's proxy"),
    (403, "request was denied due to request throttling", RateLimitedError, None, ""),
    (402, "Payment required", CreditExhaustedError, ServiceUnavailableError, CREDIT),
    (429, "Request limit exceeded", RateLimitedError, None, ""),
    (429, f"Too many calls of {MODEL}", RateLimitedError, None, ""),
    *[
        (status, said, SubmissionLostError, ServiceUnavailableError, "")
        for status in (408, 500, 502, 503, 504, 599)
        for said in ("Sorry", "enqueue failed: redis timeout", "rate limit", "disk quota exceeded")
        if (status, said) != (408, "rate limit")
    ],
    *[
        (status, said, SubmissionLostError, ServiceUnavailableError, "")
        for status in (500, 503)
        for said in (
            "model not available, please retry", "model file not found on worker 12", "审核服务调用失败",
            "upstream model server not available", "old system overloaded with wires",
            "failed: the user said that the queue is full",
        )
    ],
]  # fmt: skip

ENVELOPES = {
    "errors": lambda said, code: {"errors": {"message": said, "code": code}, "request_id": "r-1"},
    "error": lambda said, code: {"error": {"message": said, "code": code, "request_id": "r-1"}},
    "hub": lambda said, code: {"success": False, "message": said, "code": code, "request_id": "r-1"},
    "list": lambda said, code: {"errors": [{"message": said, "code": code}], "request_id": "r-1"},
    "capitals": lambda said, code: {"Success": False, "Code": code, "Message": said, "RequestId": "r-1"},
    "output": lambda said, code: {
        "output": {"code": code, "message": said, "success": False},
        "request_id": "r-1",
    },
    "data": lambda said, code: {
        "success": True,
        "data": [{"errors": {"code": code, "msg": said}}],
        "request_id": "r-1",
    },
    "names": lambda said, code: {"error": {"detail": said, "error_code": code}, "request_id": "r-1"},
}


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize(("said", "row"), EXAMPLES, ids=[said for said, _ in EXAMPLES])
def test_code_and_words_mean_the_same_at_every_status(envelope: Any, said: str, row: Meaning) -> None:
    code, _, message = said.partition(": ") if has_code(said) else ("", "", said)
    urls = {name: getattr(ACCOUNT, name) for name in ("credit_url", "account_url", "token_url")}
    for status in (200, 400, 401, 403, 404, 429, 500, 503):
        counts = bool(code) or status in row.words_at
        kind, advice = (row.kind, row.advice.format(**urls)) if counts else (SubmissionLostError, "")
        error = submission_error(response(status, envelope(message, code or None), retry_after="7"))
        assert type(error) is kind, status
        assert " ".join(said.split()).rstrip(".") in error.message
        assert advice in error.message
        assert (error.code, error.request_id) == (status, "r-1")
        assert error.retry_after == (None if kind is SubmissionLostError else 7)


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize(("status", "said", "submit", "poll", "advice"), STATUSES, ids=str)
def test_the_status_decides_if_the_words_are_unknown(
    envelope: Any,
    status: int,
    said: str,
    submit: type[ModelScopeError],
    poll: type[ModelScopeError] | None,
    advice: str,
) -> None:
    given = response(status, envelope(said, status), retry_after="7")
    for error, kind in ((submission_error(given), submit), (poll_error(given), poll or submit)):
        assert type(error) is kind
        assert said in error.message
        assert advice in error.message or kind is ServiceUnavailableError
        assert (error.code, error.request_id) == (status, "r-1")
        assert "request id r-1" in str(error)
        assert error.retry_after == (None if kind is SubmissionLostError else 7)


ECHOED = "No credit, a real name, NSFW: server is busy, the queue is full"
ECHOES = {
    "quotes": lambda text: {"message": f"cannot process prompt '{text}'"},
    "double quotes": lambda text: {"message": f'Internal Server Error: "{text}" failed'},
    "cut off": lambda text: {"message": f"cannot process prompt '{text[:50]}"},
    "bare": lambda text: {"message": f"Failed: {text}"},
    "bare, cut off": lambda text: {"message": f"Failed: {text[:50]}"},
    "other case": lambda text: {"message": f"Failed: {text.upper()}\n"},
    "negative": lambda text: {"message": "failed negative_prompt=nsfw, lowres"},
    "escaped": lambda text: {"message": f"Failed: {json.dumps(text)}"},
}


@pytest.mark.parametrize(
    "text", [ECHOED, f'"{ECHOED}"\n猫', "A fashion model's busy queue, server is busy"], ids=range(3)
)
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_repeated_prompt_means_nothing(echo: Any, text: str) -> None:
    for prompt, negative_prompt in ((text, None), ("A cat", text)):
        request = GenerationRequest(model=MODEL, prompt=prompt, negative_prompt=negative_prompt)
        for status, kind in ((500, SubmissionLostError), (400, RequestRejectedError)):
            given = response(status, {"errors": echo(text)})
            with pytest.raises(ModelScopeError) as caught:
                messages.read_submission(given, account=ACCOUNT, request=request)
            assert type(caught.value) is kind


def test_a_repeated_prompt_in_unknown_json_means_nothing() -> None:
    for text in (ECHOED, f'a "{ECHOED}" sign, 猫'):
        body = {"detail": [{"loc": ["body", "size"], "msg": "too small", "input": {"prompt": text}}]}
        with pytest.raises(RequestRejectedError):
            messages.read_submission(
                response(422, body), account=ACCOUNT, request=GenerationRequest(model=MODEL, prompt=text)
            )


def test_a_short_prompt_hides_no_word_of_the_service() -> None:
    request = GenerationRequest(model=MODEL, prompt="Busy")
    with pytest.raises(RateLimitedError):
        messages.read_submission(response(503, {"error": BUSY}), account=ACCOUNT, request=request)


@pytest.mark.parametrize(
    ("code", "kind", "shown"),
    [
        (None, RequestRejectedError, 200),
        (429, RateLimitedError, 429),
        ("429", RateLimitedError, 429),
        (40301, RequestRejectedError, 40301),
        (401, AuthenticationError, 401),
        (500, ServiceUnavailableError, 500),
        (20012, RequestRejectedError, 20012),
    ],
)
def test_a_200_with_an_error_is_a_refusal_by_its_code(
    code: Any, kind: type[ModelScopeError], shown: int
) -> None:
    error = submission_error(response(200, {"errors": {"message": "No cats", "code": code}}))
    assert (type(error), error.code) == (kind, shown)
    assert "No cats" in error.message
    assert "charged" not in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"errors": {"message": "No cats"}},
        {"error": "No cats"},
        {"errors": [{"message": "No cats"}]},
        {"success": False, "message": "No cats"},
        {"success": False, "code": 200, "message": "No cats"},
        {"code": 422, "message": "No cats"},
        {"code": "InputParameterError", "message": "No cats"},
        {"code": "NoCats", "message": "No cats"},
        {"Code": "InvalidParameter", "Message": "No cats", "Success": False},
        {"code": 400, "msg": "No cats"},
        {"detail": "No cats: invalid parameter"},
        {"message": "No cats: invalid parameter"},
        {"error_message": "No cats", "error_code": 400},
        {"code": 200, "message": "ok", "errors": {"message": "No cats"}},
        {"output": {"task_status": "FAILED", "code": "InvalidParameter", "message": "No cats"}},
        {"success": True, "data": {"errors": {"message": "No cats"}}},
        {"data": [{"errors": {"detail": "No cats"}}]},
        {"task_status": "FAILED", "task_id": "", "errors": {"message": "No cats"}},
    ],
    ids=str,
)
def test_a_200_with_an_error_in_any_envelope_is_a_refusal(body: Any) -> None:
    error = submission_error(response(200, body))
    assert type(error) is RequestRejectedError
    assert "No cats" in error.message


@pytest.mark.parametrize("status", [200, 401, 403, 429, 500])
@pytest.mark.parametrize("said", [QUOTA, "magicube balance exhausted", BUSY, FULL])
def test_an_account_without_credit_still_polls(status: int, said: str) -> None:
    error = poll_error(response(status, {"errors": {"message": said}}))
    assert isinstance(error, ModelScopeRetryableError)
    assert said in error.message


@pytest.mark.parametrize("said", ["No cats", "NSFW", "Model not found", "Authentication failed"])
def test_a_200_without_a_status_is_not_a_verdict_on_a_generation(said: str) -> None:
    error = poll_error(response(200, {"errors": {"message": said}}))
    assert type(error) is ServiceUnavailableError
    assert said in error.message


@pytest.mark.parametrize("said", [QUOTA, BUSY, FULL, "Model not found", "NSFW"])
def test_the_words_on_a_proxys_page_mean_nothing(said: str) -> None:
    for status, kind in ((503, SubmissionLostError), (200, SubmissionLostError), (429, RateLimitedError)):
        assert type(submission_error(response(status, f"\n<html>{said}</html>".encode()))) is kind


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b"<html>SSO login</html>"),
        (401, b"\xef\xbb\xbf<html>SSO login</html>"),
        (403, b"<html>Forbidden</html>"),
        (403, b"\xef\xbb\xbf<!DOCTYPE html>Authentication failed"),
        (403, b"RBAC: access denied"),
        (403, b"error code: 1020"),
        (403, b'\xef\xbb\xbf{"message": "Forbidden"}'),
    ],
    ids=str,
)
def test_a_refusal_of_a_proxy_names_proxy_and_token(status: int, body: bytes) -> None:
    error = submission_error(response(status, body))
    assert type(error) is RequestRejectedError
    assert error.message.startswith(
        "A proxy or firewall, or ModelScope, refused the request to https://api-inference.modelscope.cn: "
    )
    assert "\ufffd" not in error.message
    assert (
        f"Check the egress rules, the connection's proxy, and what the token may do: {TOKENS}"
        in error.message
    )


def test_a_plain_403_may_be_rate_limiting() -> None:
    assert type(submission_error(response(403, b"Throttled by USER Flow Control"))) is RateLimitedError


def test_the_services_words_may_be_plain_text() -> None:
    assert type(submission_error(response(503, BUSY.encode()))) is RateLimitedError
    assert type(submission_error(response(500, FULL.encode()))) is QueueFullError


def test_an_error_links_to_the_site_of_the_connection() -> None:
    international = Account(token=TOKEN, base_url="https://api-inference.modelscope.ai")
    for said, path in (
        ("Authentication failed", "my/myaccesstoken"),
        ("Please bind your Alibaba Cloud account before use.", "my/accountsettings"),
        ("magicube balance exhausted", "magicube/usage"),
    ):
        error = submission_error(response(401, {"errors": {"message": said}}), international)
        assert f"https://modelscope.ai/{path}" in error.message


def test_an_error_is_classified_by_all_of_its_text() -> None:
    said = "We have to rate limit you. " * 10
    error = submission_error(response(429, {"errors": {"message": f"{said}You exceeded today's quota"}}))
    assert type(error) is QuotaExhaustedError
    assert error.message.startswith(f"The daily quota is used up: {said[:200]}")
    assert "exceeded" not in error.message


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 399])
def test_a_redirect_is_an_error_about_the_connections_host(status: int) -> None:
    body = {"task_id": "7", "task_status": "SUCCEED", "output_images": [URL]}
    given = response(status, body, location="https://elsewhere.example")
    for error, kind in (
        (submission_error(given), SubmissionLostError),
        (poll_error(given), ServiceUnavailableError),
    ):
        assert type(error) is kind
        assert error.message.startswith(
            "Redirect from https://api-inference.modelscope.cn not followed: https://elsewhere.example. Check"
        )


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "(empty response)"),
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
@pytest.mark.parametrize(("body", "excerpt"), BODIES.values(), ids=BODIES)
def test_other_bodies_than_the_apis_json_are_retryable_and_shown(
    body: bytes, excerpt: str, status: int
) -> None:
    given = response(status, body)
    assert given.excerpt(secret="") == excerpt
    for error, kind in (
        (submission_error(given), SubmissionLostError),
        (poll_error(given), ServiceUnavailableError),
    ):
        assert type(error) is kind
        assert excerpt in error.message
        assert (error.code, error.request_id) == (status, None)


@pytest.mark.parametrize(("body", "excerpt"), BODIES.values(), ids=BODIES)
def test_a_submission_refused_without_json_is_still_refused(body: bytes, excerpt: str) -> None:
    of_401 = RequestRejectedError if b"<html>" in body else AuthenticationError
    for status, kind in ((400, RequestRejectedError), (401, of_401), (429, RateLimitedError)):
        error = submission_error(response(status, body))
        assert type(error) is kind
        assert excerpt in error.message
    assert type(submission_error(response(404, body))) is RequestRejectedError


def test_a_poll_answered_by_another_server_says_so() -> None:
    said = poll_error(response(200, b"<html>")).message
    assert said.startswith(
        "https://api-inference.modelscope.cn sent a response that is not from ModelScope's API: <html>. Check"
    )


@pytest.mark.parametrize("status", [402, 403, 404, 409, 421, 422, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(("code", "said"), [("DataInspectionFailed", "NSFW"), ("ModelNotFound", "No")])
def test_no_word_ends_the_wait_for_a_paid_generation(status: int, code: str, said: str) -> None:
    error = poll_error(response(status, {"errors": {"code": code, "message": said}}))
    assert isinstance(error, ModelScopeRetryableError)


@pytest.mark.parametrize("status", [400, 404, 410])
@pytest.mark.parametrize(
    "said",
    [
        "task not found",
        "Task 42 not found",
        "task_id: 'a-7' was not found",
        "Task with id 42 could not be found",
        "task_id does not exist",
        "Invalid task id",
        "任务不存在",
    ],
)
def test_an_unknown_task_is_not_found_without_a_status(status: int, said: str) -> None:
    generation = polled(response(status, {"errors": {"code": status, "message": said}}))
    assert (generation.is_not_found, generation.has_failed(age=29), generation.has_failed(age=30)) == (
        True,
        False,
        True,
    )
    with pytest.raises(GenerationFailedError):
        generation.raise_for_failure(retry_resubmits=True)


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
def test_a_final_status_in_the_body_counts_under_400_and_5xx(
    status: int, body: Any, ended: str | None
) -> None:
    given = response(status, body)
    if ended:
        assert (polled(given).status, polled(given).is_finished) == (ended, True)
    else:
        assert poll_error(given).code == status


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422, 429])
def test_images_count_under_every_error_status(status: int) -> None:
    given = response(status, {"task_status": "SUCCEED", "output_images": [URL]})
    assert polled(given).output_images == (URL,)


def test_succeed_without_images_shows_the_response() -> None:
    broken = polled(response(200, {"task_status": "SUCCEED", "output_images": ["/img/0f.jpeg"]}))
    assert not broken.is_finished
    assert "/img/0f.jpeg" in broken.error.message
    long = polled(response(200, {"task_status": "SUCCEED", "why": "x" * 5000}))
    assert len(long.error.message) < 250


def test_a_gateways_403_does_not_end_the_wait() -> None:
    assert type(poll_error(response(403, {"message": "Forbidden"}))) is ServiceUnavailableError
    refused = response(403, {"errors": {"code": "OperationNotAllowed", "message": "No"}})
    assert type(poll_error(refused)) is AuthenticationError


@pytest.mark.parametrize("status", [401, 402, 403, 408, 429])
def test_401_to_429_are_not_a_verdict_on_the_generation(status: int) -> None:
    body = {"task_status": "FAILED", "errors": {"code": 500, "message": "No"}}
    assert poll_error(response(status, body)).code == status


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 405, 407, 500, 502])
@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"<!DOCTYPE html>wait", {}), (b"  <html>", {}), (b"Blocked", {"content_type": "text/html"})],
)
def test_a_page_of_a_proxy_is_not_a_verdict_on_a_generation(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    error = poll_error(response(status, body, **headers))
    assert type(error) is ServiceUnavailableError
    assert (error.code, error.generation_id) == (status, "42")
    assert body.decode().strip() in error.message


def test_json_with_an_html_content_type_is_json() -> None:
    given = response(200, {"task_status": "PENDING"}, content_type="text/html")
    assert polled(given).status == "PENDING"


def test_a_failure_without_a_reason_shows_the_response() -> None:
    failed = polled(response(200, {"task_status": "FAILED", "why": "no cats"}))
    assert "no reason given, response: " in failed.error.message
    assert "no cats" in failed.error.message


@pytest.mark.parametrize("header", ["x-request-id", "X-Acs-Request-Id"])
def test_a_request_id_in_a_header_is_reported_too(header: str) -> None:
    headers = {header: "r-2"}
    assert submission_error(response(500, b"Sorry", **headers)).request_id == "r-2"
    assert polled(response(200, {"task_status": "FAILED"}, **headers)).error.request_id == "r-2"
    assert poll_error(response(500, {"error": {"request_id": "r-1"}}, **headers)).request_id == "r-1"


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 429, 500])
def test_an_echoed_token_is_redacted_everywhere(status: int) -> None:
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
        given = response(status, body, x_request_id=TOKEN, location=f"https://a.example/?{echo}")
        said = str(submission_error(given))
        try:
            said += repr(polled(given))
        except ModelScopeError as error:
            said += str(error) + str(error.to_json())
        assert TOKEN not in said
        assert "***" in said
        assert TOKEN not in repr(given)


def test_an_integer_too_long_for_python_is_not_the_apis_json() -> None:
    body = b'{"task_status": "SUCCEED", "time_taken": ' + b"9" * 5000 + b"}"
    assert "task_status" in poll_error(response(200, body)).message


def test_a_redirect_error_contains_the_target() -> None:
    error = poll_error(response(302, location="https://login.example/\n"))
    assert "not followed: https://login.example/. Check the connection's host" in error.message


def test_http_requests_and_responses_are_frozen() -> None:
    for value in (response(200), messages.status_request(ACCOUNT, "42")):
        for field in fields(value):
            with pytest.raises(FrozenInstanceError):
                setattr(value, field.name, None)


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
def test_a_poll_returns_the_generation_with_the_given_id(body: Any, status: str) -> None:
    generation = polled(response(200, body))
    assert (generation.generation_id, generation.status) == ("42", status)
    assert generation.is_finished is (status in ("SUCCEED", "FAILED"))


@pytest.mark.parametrize(
    ("body", "excerpt", "request_id"),
    [
        (b"404 page not found", "404 page not found", None),
        (b"", "(empty response)", None),
        ({"errors": {"message": "gone"}, "request_id": "r-1"}, "gone", "r-1"),
    ],
)
def test_a_404_is_not_a_verdict_on_a_generation(body: Any, excerpt: str, request_id: str | None) -> None:
    error = poll_error(response(404, body))
    assert type(error) is ServiceUnavailableError
    assert excerpt in error.message
    assert (error.code, error.request_id) == (404, request_id)


@pytest.mark.parametrize("status", [200, 401, 429, 500])
def test_an_error_of_a_poll_contains_the_generation_id(status: int) -> None:
    error = poll_error(response(status, {"errors": {"message": "No"}}))
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
def test_retry_after_is_seconds_or_relative_to_the_date_header(
    retry_after: str, date: str, seconds: float | None
) -> None:
    assert response(429, retry_after=retry_after, date=date).retry_after == seconds
    assert poll_error(response(429, RETRY_AFTER=retry_after, DATE=date)).retry_after == seconds


def test_retry_after_is_none_without_the_header() -> None:
    assert response(429).retry_after is None


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title], ids=lambda case: case.__name__)
def test_rate_limits_are_read_from_headers_in_any_case(case: Any) -> None:
    sent = {
        "modelscope-ratelimit-requests-limit": "2000",
        "modelscope-ratelimit-requests-remaining": "1999",
        "x-ratelimit-requests-remaining": "3",
    }
    limits = response(200, **{case(name): value for name, value in sent.items()}).rate_limits
    assert limits == "requests-limit 2000, requests-remaining 1999"
    remaining = case("modelscope-ratelimit-requests-remaining")
    for odd in ("", "x" * 100, "3\n", "3\n4", "1" * 13, TOKEN):
        assert response(200, **{remaining: odd}).rate_limits == ""
    assert response(200, **{case(f"modelscope-ratelimit-{TOKEN}"): "3"}).rate_limits == ""
    assert response(200).rate_limits == ""


class NoHeaders(dict[str, str]):
    def get(self, *_: Any) -> Any:
        raise AssertionError("a running generation needs no header")


def test_a_running_generation_is_read_without_its_error_details() -> None:
    body = b'{"request_id": "", "task_id": "", "task_status": "processing", "outputs": {}}'
    given = HttpResponse(status_code=200, headers=NoHeaders(), body=body)
    assert polled(given) == Generation(generation_id="42", status="PROCESSING", error=ErrorDetail())
