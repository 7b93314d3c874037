"""Each row of the table of errors means its own examples, and no look-alike."""

from __future__ import annotations

import re

import pytest

from airflow_provider_modelscope.protocol.errors import (
    FAILED_STATUS,
    MEANINGS,
    UNAVAILABLE,
    Meaning,
    meaning_of,
)
from airflow_provider_modelscope.redaction import MAX_MESSAGE

# More than the table itself shows, by the problem of the row.
MORE_EXAMPLES = {
    "No credit, or the model is no longer served": [
        "Insufficient Balance（1008）",
    ],
    "The account's credit is used up": [
        "QuotaLimitExceed: magicube balance exhausted", "quota_limit_exceeded: no",
        "QuotaLimitExceed: Server is busy, please try again later", "Arrearage: no", "Out of credit",
        "Magicube  Balance\nExhausted", "Insufficient funds", "Not enough credits", "魔力值不足",
        "魔粒不足，请获取魔粒后重试",        "您的魔粒已用完", "账户余额不足", "账户已欠费",
    ],
    "The daily quota is used up": [
        "insufficient_quota: no", "YOU HAVE EXCEEDED TODAY’S QUOTA", "Today’s quota has run out",
        "该模型的额度已用尽",
        "exceeded your current quota, please check your plan", "Quota exceeded for model X",
        "insufficient_quota", "Throttling.AllocationQuota: no",
    ],
    "The ModelScope account is not ready": [
        "Your account must be real name verified first", "Needs Real-Name check",
    ],
    "ModelScope does not serve this model": [
        "Model does not exist", "Model Qwen/Qwen-Image not found", "ModelNotFound: no",
    ],
    "The queue at ModelScope is full": [
        "image queue is full, please retry later", "failed to enqueue: user queue is full",
        "Enqueue failed, user queue is full", "rpc error: code = ResourceExhausted desc = user queue is full",
        "enqueue failed: the queue of user 123 is full",
    ],
    "ModelScope is busy": [
        "服务器正忙", "Internal Server Error: Server is busy", "Service Unavailable: Server is busy",
        "[busy] Server is busy", "The model is currently overloaded", "系统繁忙，请稍后再试",
        "服务异常：系统繁忙", "Server is busy, please try again later",
    ],
    "ModelScope received too many requests": [
        "rpm exhausted", "AppId:123 达到使用量上限", "Throttling.RateQuota: Requests rate limit exceeded",
        "Too many concurrent requests for model X, please slow down",
        "RateLimitExceed: You have exceeded today's quota", "too_many_requests: no",
        "quota exceeded: 20 requests per minute", "Request was denied due to user flow control.",
    ],
    "ModelScope rejected the token": [
        "Authentication failed, please supply a valid token",
    ],
    "ModelScope rejected the request": [
        "data_inspection_failed: no", "DataInspectionFailed", "提示词违规", "InputParameterError: no",
        "InvalidParameter.Size: no", "Potential NSFW content detected",
        "Input data may contain inappropriate content.", "Unsafe content detected",
        "The image has been filtered", "Rejected by Content  Review",
        "Your prompt was flagged by our moderation system", "moderation_blocked: no",
        "The image was blocked by the safety filters", "content moderation failed",
        "It violates our usage policies", "输入内容包含敏感信息", "图片未通过内容审核",
        "图片未通过安全审核，请修改", "filtered by safety checker",
    ],
}  # fmt: skip
MORE_NOT_EXAMPLES = {
    "The account's credit is used up": [
        "load balance failed: 0 backends available", "GPU memory insufficient, balance of load 0",
    ],
    "The queue at ModelScope is full": [
        "prompt not allowed: a busy street, a queue full of people",
    ],
    "ModelScope rejected the token": [
        "Failed: unauthorized",
    ],
    "ModelScope rejected the request": [
        "content moderation service returned HTTP 500", "content filter error: connection refused",
        "Model UnfilteredAI/NSFW-gen-v2 crashed", "safety checker failed to load: CUDA out of memory",
        "CUDA error: invalid argument", "failed to process prompt 'a cup of filtered coffee'",
        "failed negative_prompt=nsfw, lowres",
    ],
}  # fmt: skip
EXAMPLES = [(said, row) for row in MEANINGS for said in (*row.examples, *MORE_EXAMPLES.get(row.problem, ()))]
NOT_EXAMPLES = [
    (said, row) for row in MEANINGS for said in (*row.not_examples, *MORE_NOT_EXAMPLES.get(row.problem, ()))
]


def has_code(said: str) -> bool:
    return bool(re.fullmatch("[A-Za-z_.]+", said.partition(": ")[0]))


@pytest.mark.parametrize(("said", "row"), EXAMPLES, ids=[said for said, _ in EXAMPLES])
def test_an_example_means_its_row(said: str, row: Meaning) -> None:
    for status in (200, 400, 401, 403, 404, 429, 500, 503, FAILED_STATUS):
        counts = has_code(said) or status in row.words_at
        assert meaning_of(status, said) is (row if counts else UNAVAILABLE), status


@pytest.mark.parametrize(("said", "row"), NOT_EXAMPLES, ids=[said for said, _ in NOT_EXAMPLES])
def test_similar_words_mean_another_row(said: str, row: Meaning) -> None:
    for status in (400, 500, FAILED_STATUS):
        assert status in row.statuses or meaning_of(status, said) is not row, status


def test_every_row_with_words_has_examples() -> None:
    assert all(row.examples for row in MEANINGS if row.codes)
    assert all(row.examples for row in MEANINGS if row.words and row is not UNAVAILABLE)


@pytest.mark.parametrize("said", ["InternalError: no", "InternalError.Algo: no", "Service Unavailable"])
def test_a_fault_of_the_service_is_not_about_the_request(said: str) -> None:
    assert meaning_of(400, said) is UNAVAILABLE


@pytest.mark.parametrize("said", ["InternalError: Server is busy", "Internal error: NSFW"])
def test_words_count_more_than_an_internal_error(said: str) -> None:
    assert meaning_of(400, said) is not UNAVAILABLE


REPEATED = [
    "a: ", "a, ", "a", "task ", "the user ", "task 1", "model ", "moderation ", "content filter ", "审核",
    "'a ", "quota ", "rejected by ", "queue of a ", "模型",
]  # fmt: skip


@pytest.mark.parametrize("part", REPEATED)
def test_a_long_message_is_searched_in_linear_time(part: str) -> None:
    """A regular expression that backtracks would hang here, and in the event loop."""
    for status in (FAILED_STATUS, 500):
        meaning_of(status, (part * MAX_MESSAGE)[:MAX_MESSAGE])
