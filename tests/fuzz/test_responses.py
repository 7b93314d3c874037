"""Any response becomes a value or a typed error that can be shown, logged and stored."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from requests.structures import CaseInsensitiveDict

from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    ModelScopeError,
    ModelScopeFinalError,
    ModelScopeRetryableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.generation import FAILED, SUCCEED, Generation
from airflow_provider_modelscope.protocol.messages import (
    HttpResponse,
    error_from,
    read_status,
    read_submission,
)
from airflow_provider_modelscope.waiting import poll as waiting
from airflow_provider_modelscope.waiting.backoff import MAX_RETRY_AFTER, Cooldown
from airflow_provider_modelscope.waiting.intervals import DurationHistory
from airflow_provider_modelscope.waiting.poll import PollSchedule

TOKEN = "ms-8f3b1c9a-0000-4000-8000-0123456789ab"
ACCOUNT = Account(token=TOKEN)
MODEL = "Qwen/Qwen-Image"
START = 1_700_000_000.0
URL = "https://muse-ai.oss-cn-hangzhou.aliyuncs.com/img/0f.jpeg"

texts = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates included
words = st.sampled_from(
    [
        "SUCCEED", "succeed", "FAILED", " failed\n", "PROCESSING", "PENDING", "4003503", "", " ", "..",
        "task not found", "enqueue failed: user queue is full", "You have exceeded today's quota", MODEL,
        "Please bind your Alibaba Cloud account before use.", "real name verified", "balance", URL, "http://",
        "SUCCEEDED", "COMPLETED", "CANCELED", "expired", "UNKNOWN", "QuotaLimitExceed",
        "DataInspectionFailed", "magicube balance exhausted", "魔粒不足", "额度已用完", "使用量上限",
        "insufficient balance (1008)", "Server is busy, please try again later", "image queue is full",
        "filtered by safety checker", "Too many concurrent requests", "Model not found", "系统繁忙", "敏感",
        "https://[", "ftp://a.example/b", TOKEN, f"Bearer {TOKEN}", f"a\n{TOKEN}\0", f"https://a.example/{TOKEN}",
        "\x1b[31mred\x1b[0m", "x" * 5000, "a: " * 1000, "a, " * 1000, "500", "9" * 5000, "<html>", "\u202e",
    ]
)  # fmt: skip
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 400, 404, 429, 500, 2**63, 10**400, -(10**4000), 5412.9, 1e308]),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, words)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "message",
                    "Code",
                    "code",
                    "request_id",
                    "seed",
                    "url",
                    "task_id",
                    "images",
                    "image_url",
                    "0",
                ]
            )
            | texts,
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
envelopes = st.one_of(
    st.fixed_dictionaries({}, optional={"message": values, "code": values, "request_id": values}),
    st.lists(values, max_size=2),
    values,
)
CONTAINERS = ("outputs", "output", "data", "images", "results", "image_urls", "output_image", "OutputImages")
fields: dict[str, st.SearchStrategy[object]] = {
    "task_status": words | values,
    "task_id": words | values,
    "output_images": st.lists(words | texts, max_size=3) | values,
    "errors": envelopes,
    "error": envelopes,
    "request_id": values,
    "input": st.fixed_dictionaries({}, optional={"seed": values}) | values,
    "time_taken": numbers | values,
    "message": values,
    "code": values,
    "success": st.booleans() | values,
    "id": words | values,
    **{name: st.lists(words, max_size=3) | values for name in CONTAINERS},
    **dict.fromkeys(("Code", "Message", "Success", "detail", "msg", "error_message", "error_code"), values),
}
objects = st.fixed_dictionaries({}, optional=fields)
nearly_valid = st.fixed_dictionaries(
    {
        "task_status": st.sampled_from(["SUCCEED", "succeed", "FAILED", "PROCESSING", ""]),
        "task_id": st.sampled_from(["4003503", 4003503, ""]),
        "output_images": st.just([URL])
        | st.just([])
        | st.lists(st.sampled_from([URL, "", TOKEN]), max_size=2),
    },
    optional={name: fields[name] for name in ("errors", "error", "request_id", "input", "time_taken")},
)


@pytest.fixture(scope="module", autouse=True)
def isolated() -> Iterator[None]:
    """Disable the log of each poll, and keep the durations out of later tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting.log, "disabled", True)
        patch.setattr(waiting, "DURATIONS", DurationHistory())
        yield


def nested(depth: int) -> bytes:
    return b'{"task_status": "FAILED", "errors": ' + b"[" * depth + b"]" * depth + b"}"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON that is nearly valid, in odd encodings, cut anywhere; or no JSON at all."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return draw(
            st.sampled_from(
                [
                    b"", b"<!DOCTYPE html><title>502 Bad Gateway</title>", b"404 page not found", b"5",
                    b"[" * 100_000, b'{"a":' * 100_000, nested(300), nested(900), nested(960), nested(990),
                    b'{"task_status": "FAILED", "task_status": ""}', b'{"task_id": ' + b"9" * 5000 + b"}",
                    b'{"time_taken": Infinity, "task_status": NaN}', b"\xef\xbb\xbf" + b'{"task_id": "7"}',
                    TOKEN.encode(), TOKEN.encode("utf-16"), b" " * 9000 + TOKEN.encode(), b"\xff" * 300,
                ]
            )
        )  # fmt: skip
    value = draw(values if kind == 2 else objects if kind < 7 else nearly_valid)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    encoded = text.encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32"])), "surrogatepass"
    )
    return encoded[: draw(st.integers(0, len(encoded)))] if kind == 3 else encoded


headers = st.fixed_dictionaries(
    {},
    optional={
        "Retry-After": words | texts | st.integers(-5, 10**12).map(str) | st.datetimes().map(str),
        "Date": texts | st.sampled_from(["Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2300"]),
        "Content-Type": st.sampled_from(["application/json", "text/html", "text/html; charset=\xff"]) | texts,
        "X-Request-Id": words | texts,
        "Location": words | texts,
        "modelscope-ratelimit-requests-limit": words | texts,
    },
)
SIGNS_OF_AN_ERROR = {
    *("errors", "error", "success", "code", "message", "msg", "detail", "errormessage", "errorcode"),
    *("output", "data"),  # which may contain the others
}
STATUSES = [200, 200, 201, 204, 206, 302, 400, 401, 402, 403, 404, 408, 429, 500, 502]
statuses = st.integers(-1, 1000)


def check_shown(error: ModelScopeError) -> None:
    text = str(error)
    assert text.isprintable(), ascii(text)
    assert 0 < len(text) < 4500
    assert TOKEN not in text
    stored = json.dumps(error.to_json(), allow_nan=False, ensure_ascii=False)
    assert TOKEN not in stored
    stored.encode()  # UTF-8 cannot encode lone surrogates
    assert all(value.isprintable() for value in error.to_json().values() if isinstance(value, str))
    again = ModelScopeError.from_json(json.loads(stored))
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), text)
    if error.retry_after is not None:
        assert 0 <= error.retry_after < math.inf


def check_generation(generation: Generation) -> None:
    assert generation.status.isprintable()
    assert TOKEN.upper() not in generation.status
    if generation.is_finished and generation.status != FAILED:
        assert generation.status == SUCCEED
        assert generation.output_images
    for url in generation.output_images:
        assert url.lower().startswith(("https://", "http://"))
    assert generation.duration_ms is None or math.isfinite(generation.duration_ms)
    assert generation.seed is None or abs(generation.seed) < 2**63
    for retry_resubmits in (False, True):
        try:
            generation.raise_for_failure(retry_resubmits=retry_resubmits)
        except ModelScopeError as error:
            assert generation.status == FAILED
            check_shown(error)
        else:
            assert generation.status != FAILED


def check_submission(response: HttpResponse) -> str:
    try:
        generation = read_submission(response, account=ACCOUNT)
    except ModelScopeError as error:
        check_shown(error)
        if 200 <= response.status_code < 300:
            names = {name.replace("_", "").lower() for name in response.json or {}}
            assert type(error) is SubmissionLostError or SIGNS_OF_AN_ERROR & names
        else:
            assert error.code == response.status_code
        if 300 <= response.status_code < 400:
            assert type(error) is SubmissionLostError
        return type(error).__name__
    else:
        assert not 300 <= response.status_code < 400
        check_generation(generation)
        assert generation.status in ("", SUCCEED)
        generation_id = generation.generation_id
        assert generation_id == generation_id.strip() != ""
        assert generation_id.isprintable()
        assert len(generation_id) <= 200
        assert TOKEN not in generation_id
        return "accepted"


def poll(response: HttpResponse) -> Generation | ModelScopeError:
    try:
        generation = read_status(response, account=ACCOUNT, generation_id="42")
    except ModelScopeError as error:
        check_shown(error)
        assert error.generation_id == "42"
        assert error.code == response.status_code or 200 <= response.status_code < 300
        return error
    check_generation(generation)
    return generation


def check_wait(polls: Sequence[Generation | ModelScopeError], end_time: float) -> None:
    """Wait as the operators do, with the delay before each poll that the wait returns."""
    wait = PollSchedule("42", submitted_at=START, end_time=end_time, poll_interval=15, model=MODEL)
    now = START
    for polled in polls:
        try:
            outcome = wait.observe(polled, now=now)
        except ModelScopeError as error:
            check_shown(error)
            # Only final errors and the deadline end a wait.
            assert error is polled if isinstance(polled, ModelScopeFinalError) else now >= end_time
            return
        if isinstance(outcome, Generation):
            assert isinstance(polled, Generation)
            # At the deadline, images under any status are taken.
            assert outcome is polled or (now >= end_time and outcome == replace(polled, status=SUCCEED))
            assert outcome.is_finished
            return
        assert 0 < outcome <= max(15, MAX_RETRY_AFTER)
        assert wait.last_status.isprintable()
        now += outcome
        assert now <= end_time


def test_any_response_becomes_a_value_or_a_typed_error() -> None:
    tried = 0
    seen: Counter[str] = Counter()

    @given(bodies(), headers, statuses, st.floats(0, 1e6))
    def try_one(body: bytes, sent: dict[str, str], odd_status: int, seconds: float) -> None:
        nonlocal tried
        polls = []
        for status in [*STATUSES, odd_status]:
            response = HttpResponse(status_code=status, headers=CaseInsensitiveDict(sent), body=body)
            seen[check_submission(response)] += 1
            polled = poll(response)
            polls.append(polled)
            ended = isinstance(polled, Generation) and polled.is_finished
            seen[polled.status if isinstance(polled, Generation) and ended else type(polled).__name__] += 1
            check_shown(error_from(response, account=ACCOUNT))
            assert re.fullmatch(r"[a-z0-9, -]*", response.rate_limits)
            cooldown = Cooldown()
            cooldown.observe(response, now=START)
            assert 0 <= cooldown.seconds(START) <= MAX_RETRY_AFTER
            tried += 1
        retryable = [polled for polled in polls if isinstance(polled, ModelScopeRetryableError)]
        for sequence in (polls, polls[::-1], retryable * 5):
            check_wait(sequence, START + seconds)

    try_one()
    print(f"{tried} responses tried:", *sorted(seen.items()))
    assert tried >= settings().max_examples * len(STATUSES)
    for kind in ("accepted", SUCCEED, FAILED, "Generation", "SubmissionLostError", "ServiceUnavailableError"):
        assert seen[kind] >= tried / 1000, kind


@st.composite
def shapes_of_images(draw: st.DrawFn) -> object:
    """Return the images of a response, in one of the shapes that are read, and ``URL`` among them."""
    gaps: st.SearchStrategy[list[object]] = st.lists(st.sampled_from([None, "", {}, "https://["]), max_size=2)
    url = draw(st.sampled_from([URL, {"url": URL}, [URL], {"image_url": URL}]))
    listed = [*draw(gaps), url, *draw(gaps)]
    found: object = draw(st.sampled_from([URL, f" {URL}\n", listed, json.dumps(listed), {"7": url}]))
    for name in draw(st.lists(st.sampled_from(["output", "data", "results", "images"]), max_size=2)):
        found = {name: found, **draw(st.fixed_dictionaries({}, optional={"seed": values}))}
    return found


@given(
    st.fixed_dictionaries(
        {
            "task_status": st.sampled_from(
                ["SUCCEED", " succeeded", "Success", "COMPLETED", "done", "FINISHED"]
            )
        },
        optional={
            name: fields[name] for name in ("task_id", "errors", "error", "code", "input", "time_taken")
        },
    ),
    st.sampled_from(["output_images", *CONTAINERS]),
    shapes_of_images(),
    st.sampled_from([200, 200, 201, 400, 500, 503]),
)
def test_an_image_in_a_response_is_never_missed(
    body: dict[str, object], name: str, images: object, status: int
) -> None:
    content = json.dumps({**body, name: images}).encode()
    generation = poll(HttpResponse(status_code=status, headers=CaseInsensitiveDict(), body=content))
    assert isinstance(generation, Generation)
    assert generation.is_finished
    assert URL in generation.output_images


@given(
    st.sampled_from(
        [
            {"task_id": "7"}, {"task_id": 7}, {"output": {"task_id": "7"}}, {"data": {"task_id": "7"}},
            {"data": [{"task_id": "7"}]},
        ]
    ),
    st.fixed_dictionaries(
        {},
        optional={name: fields[name] for name in ("task_status", "errors", "error", "code", "id", "images")},
    ),
)  # fmt: skip
def test_an_id_in_a_response_is_never_missed(given_id: dict[str, object], body: dict[str, object]) -> None:
    content = json.dumps({**body, **given_id}).encode()
    response = HttpResponse(status_code=200, headers=CaseInsensitiveDict(), body=content)
    assert read_submission(response, account=ACCOUNT).generation_id == "7"


@given(bodies(), headers, st.sampled_from([408, 429, 500, 502, 503, 504, 200, 302]), st.integers(5, 40))
def test_retryable_errors_never_end_a_wait_before_its_deadline(
    body: bytes, sent: dict[str, str], status: int, times: int
) -> None:
    polled = poll(HttpResponse(status_code=status, headers=CaseInsensitiveDict(sent), body=body))
    if isinstance(polled, ModelScopeFinalError) or (isinstance(polled, Generation) and polled.is_finished):
        return  # not retryable
    wait = PollSchedule("42", submitted_at=START, end_time=START + 1e6, poll_interval=15)
    now = START
    for _ in range(times):
        outcome = wait.observe(polled, now=now)
        assert isinstance(outcome, float)
        now += outcome
    if isinstance(polled, Generation) and polled.output_images:
        assert wait.observe(polled, now=START + 1e6) == replace(polled, status=SUCCEED)
        return
    with pytest.raises(GenerationTimeoutError) as caught:
        wait.observe(polled, now=START + 1e6)
    check_shown(caught.value)


@given(
    st.sampled_from([*ModelScopeFinalError.__subclasses__(), *ModelScopeRetryableError.__subclasses__()]),
    texts | words,
    st.integers(-(2**63), 2**63) | st.none(),
    texts | words | st.none(),
    st.floats(0, 1e9) | st.none(),
)
def test_an_error_with_any_text_survives_serialization(
    kind: type[ModelScopeError], said: str, code: int | None, name: str | None, retry_after: float | None
) -> None:
    error = kind(said, code=code, request_id=name, generation_id=name, retry_after=retry_after)
    again = ModelScopeError.from_json(json.loads(json.dumps(error.to_json())))
    assert (type(again), vars(again), str(again)) == (kind, vars(error), str(error))
    assert str(error).isprintable()
    assert len(str(error)) < 4500
