"""What a status response reports about a generation, in any shape."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationRejectedError,
    InvalidRequestError,
    ModelScopeError,
)
from airflow_provider_modelscope.protocol.body import Body, ErrorDetail
from airflow_provider_modelscope.protocol.generation import Generation, checked_id

URL = "https://muse-ai.oss-cn-hangzhou.aliyuncs.com/img/0f.jpeg"
USED = {"seed": 212259417, "width": 960, "height": 1280, "guidanceScale": 7.5, "prompt": "猫"}

ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "text", [], [1], [None],
    [[[[[URL]]]]], ["ftp://a.example/b.png"], ["/img/0f.jpeg"], {}, {"image": URL}, {"image_url": URL},
    {"message": None}, {"code": "E500"}, {"code": 10**400}, {"code": 1e400}, {"code": []}, {"seed": "x"},
    {"seed": {}}, {"request_id": []},
]  # fmt: skip


def read(body: Any) -> Generation:
    return Generation.from_body(Body(body), generation_id="42")


@pytest.mark.parametrize(
    ("body", "status", "finished", "not_found"),
    [
        ({"request_id": "", "task_id": "", "task_status": "PROCESSING", "outputs": {}}, "PROCESSING", 0, 0),
        ({"task_status": "PENDING"}, "PENDING", 0, 0),
        ({"task_status": "Napping"}, "NAPPING", 0, 0),
        ({"task_status": ""}, "", 0, 0),
        ({"task_status": None}, "", 0, 0),
        ({}, "", 0, 0),
        ({"task_status": 5}, "5", 0, 0),
        ({"task_status": "SUCCEED", "output_images": [URL]}, "SUCCEED", 1, 0),
        ({"task_status": " succeed ", "output_images": [URL, URL]}, "SUCCEED", 1, 0),
        ({"task_status": "SUCCEED", "output_images": ["HTTP://a.example/b"]}, "SUCCEED", 1, 0),
        ({"task_status": "SUCCEED", "output_images": [f" {URL}\n"]}, "SUCCEED", 1, 0),
        ({"task_status": "SUCCEED"}, "SUCCEED", 0, 0),
        ({"task_status": "SUCCEED", "output_images": []}, "SUCCEED", 0, 0),
        *[
            ({"task_status": "SUCCEED", "output_images": [odd]}, "SUCCEED", 0, 0)
            for odd in (
                "https://",
                "https:///a.png",
                "https://[::1/a.png",
                "https://a/\ud800",
                "https://a/\nb",
            )
        ],
        ({"task_status": "\x1b[2J" + "x" * 5000}, "�[2J" + "X" * 96, 0, 0),
        ({"task_status": "PROCESSING", "output_images": [URL]}, "PROCESSING", 0, 0),
        ({"task_status": "PARTIAL_SUCCEEDED", "output_images": [URL]}, "PARTIAL_SUCCEEDED", 0, 0),
        ({"task_status": "UNKNOWN", "output_images": [URL]}, "UNKNOWN", 0, 0),
        ({"task_status": "EXPIRED", "output_images": [URL]}, "SUCCEED", 1, 0),
        ({"task_status": "FAILED", "errors": {"message": "No"}, "output_images": [URL]}, "SUCCEED", 1, 0),
        ({"task_status": None, "output_images": [URL]}, "SUCCEED", 1, 0),
        ({"task_status": " ", "output_images": [URL]}, "SUCCEED", 1, 0),
        ({"task_status": "PROCESSING", "errors": {"message": "slow"}}, "PROCESSING", 0, 0),
        ({"task_status": "UNKNOWN"}, "UNKNOWN", 0, 0),
        ({"task_status": "SUCCEED", "message": "ok"}, "SUCCEED", 0, 0),
        ({"task_status": "SUCCEED", "errors": {"code": 0, "message": "ok"}}, "SUCCEED", 0, 0),
        ({"output": {"task_status": "SUCCEEDED", "results": [{"url": URL}]}}, "SUCCEED", 1, 0),
        ({"data": [{"task_status": "FAILED"}]}, "FAILED", 1, 0),
        ({"images": [{"url": URL}]}, "SUCCEED", 1, 0),
        ({"task_status": "FAILED", "errors": {"code": 500, "message": "boom"}}, "FAILED", 1, 0),
        ({"task_status": "failed"}, "FAILED", 1, 0),
        ({"task_status": "FAILED", "errors": {"message": "Task Not Found"}}, "FAILED", 1, 1),
        (
            {"task_status": "FAILED", "errors": {"message": "task 7 failed: LoRA a/b not found"}},
            "FAILED",
            1,
            0,
        ),
        ({"task_status": "FAILED", "error": {"message": "task not found"}}, "FAILED", 1, 1),
        ({"data": {"task_status": "FAILED", "message": "NotFound: Task 42 not found"}}, "FAILED", 1, 1),
        *[
            ({"task_status": "FAILED", "errors": {"code": code, "message": said}}, "FAILED", 1, 0)
            for code, said in (
                (422, "task not found"),
                (40001, "task not found"),
                (500, "task failed: image_url https://a.example/b.png: 404 Not Found"),
                (500, "task aborted: NSFW content, a safe image was not found"),
                (500, "task lora_weights not found"),
                (500, "invalid task parameters: no prompt"),
                (500, "任务失败：lora 不存在"),
            )
        ],
        ({"task_status": "UNKNOWN", "errors": {"message": "No"}, "output_images": [URL]}, "SUCCEED", 1, 0),
        ({"task_status": "SUCCEED", "errors": {"message": "success"}}, "SUCCEED", 0, 0),
        ({"code": 20000, "message": "success", "data": {"task_status": "SUCCEED"}}, "SUCCEED", 0, 0),
        ({"task_status": "PROCESSING", "errors": {"message": "task not found"}}, "PROCESSING", 0, 0),
    ],
    ids=str,
)
def test_status_tells_whether_a_generation_is_finished(
    body: Any, status: str, finished: bool, not_found: bool
) -> None:
    generation = read(body)
    assert (generation.status, generation.is_finished, generation.is_not_found) == (
        status,
        finished,
        not_found,
    )


def test_a_complete_response_is_read_completely() -> None:
    body = {
        "task_status": "SUCCEED",
        "output_images": [URL],
        "input": USED,
        "time_taken": 5412.9,
        "task_id": "",
    }
    assert read({**body, "request_id": "r-1"}) == Generation(
        generation_id="42",
        status="SUCCEED",
        output_images=(URL,),
        parameters=USED,
        duration_ms=5412.9,
        error=ErrorDetail(request_id="r-1"),
    )
    assert read(body).seed == 212259417


@pytest.mark.parametrize("value", [read({}), ErrorDetail()], ids=lambda value: type(value).__name__)
def test_generation_and_error_detail_are_frozen(value: Any) -> None:
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)


@pytest.mark.parametrize(
    ("used", "seed"),
    [
        ({"seed": 0}, 0),
        ({"seed": "7"}, 7),
        ({"seed": 2**31 - 1}, 2**31 - 1),
        ({"seed": True}, None),
        ({"seed": "x"}, None),
        ({"seed": None}, None),
        ({"seed": [7]}, None),
        ({"seed": float("nan")}, None),
        ({"seed": float("inf")}, None),
        ({}, None),
        ([7], None),
        ("seed", None),
    ],
    ids=str,
)
def test_the_seed_is_the_one_that_the_service_used_or_none(used: Any, seed: int | None) -> None:
    assert read({"task_status": "SUCCEED", "input": used}).seed == seed


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: ascii(odd)[:30])
@pytest.mark.parametrize(
    "name",
    ["task_status", "output_images", "input", "time_taken", "errors", "error", "request_id", "message"],
)
@pytest.mark.parametrize("status", ["SUCCEED", "FAILED", "PROCESSING"])
def test_a_malformed_response_never_breaks_or_counts_as_success(status: str, name: str, odd: Any) -> None:
    generation = read({"task_status": status, name: odd})
    assert generation.is_finished is (generation.status == "FAILED")
    assert generation.output_images == ()
    assert isinstance(generation.parameters, dict)
    assert type(generation.duration_ms) in (int, float, type(None))
    assert type(generation.seed) in (int, type(None))
    error = generation.error
    assert (type(error.message), type(error.code) in (int, type(None))) == (str, True)
    assert type(error.request_id) in (str, type(None))
    if generation.status == "FAILED":
        with pytest.raises(ModelScopeError):
            generation.raise_for_failure(retry_resubmits=True)


@pytest.mark.parametrize(
    ("body", "message", "code", "request_id"),
    [
        ({"errors": {"message": "no", "code": 400}, "request_id": "r"}, "no", 400, "r"),
        ({"errors": {"message": "no", "code": "400", "request_id": "r"}}, "no", 400, "r"),
        ({"error": {"message": "no", "code": 500.0}, "request_id": "r"}, "no", 500, "r"),
        ({"error": {"message": "no", "request_id": "in"}, "request_id": "out"}, "no", None, "in"),
        ({"errors": {}, "error": {"message": "no"}}, "no", None, None),
        ({"errors": "no"}, "no", None, None),
        ({"errors": ["no", 5]}, "['no', 5]", None, None),
        ({"error": 5}, "5", None, None),
        ({"errors": None, "message": "no", "request_id": ""}, "no", None, None),
        ({"errors": {"message": {"zh": "否"}, "code": "Odd"}}, "Odd: {'zh': '否'}", None, None),
        ({"errors": [{"message": "no", "code": 400}, 5]}, "no", 400, None),
        ({"errors": [[[]]]}, "[[[]]]", None, None),
        ({"message": "no", "code": "Throttling"}, "Throttling: no", None, None),
        ({"message": "no", "code": " "}, "no", None, None),
        ({"message": "no"}, "no", None, None),
        ({"code": 400}, "", 400, None),
        ({"request_id": "r"}, "", None, "r"),
        ({"errors": "no", "code": 400}, "no", 400, None),
        ({"errors": {"message": "no", "code": 10**400}}, "no", None, None),
        ({"errors": {"message": "no", "code": "9" * 5000}}, f"{'9' * 100}: no", None, None),
        ({"errors": {"message": "\x1b[31mno\0\n\ud800"}, "request_id": "r\n1"}, "�[31mno� �", None, "r 1"),
        ({"errors": {"message": "no", "code": True}, "request_id": 5}, "no", None, "5"),
        ({"errors": {"message": "no", "code": float("inf")}}, "no", None, None),
        ({"errors": {"message": "no", "code": float("nan")}}, "no", None, None),
        ({}, "", None, None),
    ],
    ids=str,
)
def test_error_details_are_read_from_any_envelope(
    body: Any, message: str, code: int | None, request_id: str | None
) -> None:
    assert Body(body).error == ErrorDetail(message=message, code=code, request_id=request_id)


OTHER = "https://b.example/2.png"
SHAPES: dict[str, Any] = {
    "list": {"output_images": [URL, OTHER]},
    "objects": {"output_images": [{"url": URL}, {"url": OTHER, "seed": 7}]},
    "gaps": {"output_images": [None, URL, "", {}, OTHER, 5]},
    "inner list": {"outputs": {"output_images": [URL, OTHER]}},
    "outputs": {"output_images": None, "outputs": [URL, OTHER]},
    "results": {"output": {"results": [{"url": URL}, {"url": OTHER}]}},
    "data": {"data": [{"url": URL}, {"url": OTHER}]},
    "images": {"output_images": [], "images": [{"url": URL}, {"url": OTHER}]},
    "deep": {"data": {"output": {"images": [URL, OTHER]}}},
    "text": {"output_images": f'["{URL}", "{OTHER}"]'},
    "numbers": {"output_images": {"0": URL, "1": OTHER}},
    "image_url": {"output_images": [{"image_url": URL}, {"type": "image_url", "image_url": {"url": OTHER}}]},
    "image_urls": {"outputs": {"image_urls": [URL, OTHER]}},
    "output_image": {"output_image": [URL, OTHER]},
    "names": {"Data": {"OutputImages": [{"Url": URL}, {"Url": OTHER}]}},
    "request": {"image_url": "https://b.example/source.png", "images": [URL, OTHER]},
    "echo": {"data": {"image_url": "https://b.example/source.png", "output_images": [URL, OTHER]}},
}


@pytest.mark.parametrize(
    "word", ["SUCCEED", "succeeded", "Success", "COMPLETED", "complete", "DONE", "FINISHED"]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_images_are_found_in_every_shape_and_order(shape: Any, word: str) -> None:
    generation = read({"task_status": word, **shape})
    assert (generation.status, generation.is_finished) == ("SUCCEED", True)
    assert generation.output_images == (URL, OTHER)


def test_a_single_url_is_one_image() -> None:
    for value in (URL, {"url": URL}, [[URL]]):
        assert read({"task_status": "SUCCEED", "output_images": value}).output_images == (URL,)


FAULT = {"code": 500, "message": "CUDA oom"}
SOURCE = "https://b.example/source.png"


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"url": SOURCE}},
        {"data": {"images": [SOURCE]}},
        {"data": [{"url": SOURCE}]},
        {"output": {"url": SOURCE}},
        {"input": {"image_url": [SOURCE]}, "images": [SOURCE]},
        {"image_url": SOURCE, "output": {"images": [SOURCE]}},
        {"output_images": [SOURCE], "input": {"image_url": SOURCE}},
    ],
    ids=str,
)
@pytest.mark.parametrize("word", ["FAILED", "EXPIRED"])
def test_a_page_or_a_source_image_is_no_result_of_a_failure(word: str, body: Any) -> None:
    failed = read({"task_status": word, "errors": FAULT, **body})
    assert (failed.status, failed.output_images) == ("FAILED", ())
    assert "CUDA oom" in failed.error.message


@pytest.mark.parametrize(
    "body",
    [
        {"output_images": [URL]},
        {"outputs": {"images": [URL]}},
        {"images": [{"url": URL}], "input": {"image_url": SOURCE}},
        {"output": {"images": [URL]}},
        {"data": {"output_images": [URL]}},
    ],
    ids=str,
)
@pytest.mark.parametrize("word", ["FAILED", "EXPIRED", "UNKNOWN"])
def test_images_of_a_failure_are_paid_for_and_count(word: str, body: Any) -> None:
    generation = read({"task_status": word, "errors": FAULT, **body})
    assert (generation.status, generation.output_images) == ("SUCCEED", (URL,))


def test_at_the_deadline_a_page_in_an_error_is_no_image() -> None:
    assert read({"task_status": "RUNNING", "errors": FAULT, "data": {"url": SOURCE}}).output_images == ()


ENDED: dict[str, tuple[Any, str]] = {
    **{
        word: ({"task_status": word, "errors": {"message": "out of time"}}, f"{word.upper()}: out of time")
        for word in (
            "CANCELED", "Cancelled", "CANCEL", "ABORTED", "expired", "ERROR", "FAILURE", "TIMEOUT", "UNKNOWN",
            "timed_out", "REJECTED", "BLOCKED",
        )
    },
    "no reason": ({"task_status": "CANCELED"}, "CANCELED"),
    "filtered": (
        {"task_status": "SUCCEED", "output_images": [], "errors": {"message": "filtered by safety checker"}},
        "SUCCEED without images: filtered by safety checker",
    ),
    "filtered, no list": (
        {"task_status": "Completed", "error": "Potential NSFW content detected"},
        "COMPLETED without images: Potential NSFW content detected",
    ),
    "filtered, hub": (
        {"task_status": "SUCCEED", "success": False, "code": "DataInspectionFailed", "message": "no"},
        "SUCCEED without images: DataInspectionFailed: no",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), ENDED.values(), ids=ENDED)
def test_an_end_without_images_is_a_failure_with_its_reason(body: Any, reason: str) -> None:
    generation = read(body)
    assert (generation.status, generation.is_finished) == ("FAILED", True)
    with pytest.raises(ModelScopeError) as caught:
        generation.raise_for_failure(retry_resubmits=True)
    assert caught.value.message == f"Generation FAILED: {reason}"


# Each row: the code and the message of a failure, and whether the same request would fail again.
FAILURES: list[tuple[Any, str, bool]] = [
    *[(code, "boom", True) for code in (400, 407, 409, 428, 430, 499, "400", 40301, 40212, "40301")],
    *[(code, "boom", False) for code in (None, 399, 408, 429, 500, 503, 4000, 50000, 403010, "Internal")],
    (500, "task not found", False),
    (404, "task not found", False),
    ("DataInspectionFailed", "Input data may contain inappropriate content.", True),
    (500, "Potential NSFW content detected", True),
    (None, "内容安全检测未通过", True),
    (500, "model is not supported", True),
    (500, "magicube balance exhausted", True),
    (500, "Server is busy, please try again later", False),
    (400, "Server is busy, please try again later", False),
    ("Throttling", "slow down", False),
    (400, "task 7 failed: LoRA a/b not found", True),
    (500, "content moderation service timeout", False),
    (500, "Authentication failed", False),
    (None, "Authentication failed", False),
    (500, "CUDA out of memory", False),
]


ENVELOPES: dict[str, Any] = {
    "errors": lambda code, said: {"errors": {"code": code, "message": said}},
    "error": lambda code, said: {"error": {"code": code, "message": said}},
    "hub": lambda code, said: {"success": False, "code": code, "message": said},
    "output": lambda code, said: {"output": {"task_status": "FAILED", "code": code, "message": said}},
    "data": lambda code, said: {"data": {"task_status": "FAILED", "errors": {"code": code, "message": said}}},
    "names": lambda code, said: {"error_code": code, "error_message": said},
    "detail": lambda code, said: {"errors": {"code": code, "detail": said}},
    "capitals": lambda code, said: {"Code": code, "Message": said},
}


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=ENVELOPES)
@pytest.mark.parametrize(("code", "message", "is_final"), FAILURES, ids=str)
def test_a_failure_is_final_if_the_same_request_would_fail_again(
    code: Any, message: str, is_final: bool, envelope: Any
) -> None:
    body = envelope(code, message)
    status = {} if {"output", "data"} & body.keys() else {"task_status": "FAILED"}
    failed = read({**status, **body, "request_id": "r-1"})
    with pytest.raises(ModelScopeError) as caught:
        failed.raise_for_failure(retry_resubmits=True)
    assert type(caught.value) is (GenerationRejectedError if is_final else GenerationFailedError)
    assert message in caught.value.message
    assert (caught.value.request_id, caught.value.generation_id) == ("r-1", "42")
    with pytest.raises(GenerationRejectedError):
        failed.raise_for_failure(retry_resubmits=False)


def test_a_prompt_that_a_failure_repeats_means_nothing() -> None:
    failed = read(
        {
            "task_status": "FAILED",
            "errors": {"code": 500, "message": "Failed: Sensitive content, NSFW. filtered"},
            "input": {"prompt": "sensitive content, nsfw", "negativePrompt": ". filtered"},
        }
    )
    with pytest.raises(GenerationFailedError):
        failed.raise_for_failure(retry_resubmits=True)


def test_a_code_behind_the_word_for_the_end_counts() -> None:
    for body in (
        {"task_status": "CANCELED", "errors": {"code": "DataInspectionFailed", "message": "no"}},
        {"task_status": "SUCCEED", "success": False, "code": "DataInspectionFailed", "message": "no"},
        {"task_status": "FAILED", "errors": "Error: DataInspectionFailed: no"},
    ):
        with pytest.raises(GenerationRejectedError):
            read(body).raise_for_failure(retry_resubmits=True)


def test_an_invalid_time_taken_is_none() -> None:
    for odd in (10**400, float("nan"), float("inf"), "5", True, [5]):
        assert read({"task_status": "SUCCEED", "time_taken": odd}).duration_ms is None
    assert read({"task_status": "SUCCEED", "time_taken": 5}).duration_ms == 5


@pytest.mark.parametrize("status", ["SUCCEED", "PROCESSING", ""])
def test_a_generation_that_has_not_failed_raises_nothing(status: str) -> None:
    generation = Generation(generation_id="42", status=status, error=ErrorDetail(message="boom", code=400))
    generation.raise_for_failure(retry_resubmits=False)


def test_a_failure_without_a_reason_says_so() -> None:
    with pytest.raises(GenerationFailedError, match=r"^Generation FAILED: no reason given \(generation 42\)"):
        read({"task_status": "FAILED"}).raise_for_failure(retry_resubmits=True)


@pytest.mark.parametrize(
    ("given", "generation_id"),
    [("4003503", "4003503"), (4003503, "4003503"), (" a/b\n", "a/b"), (0, "0"), ("猫", "猫")],
)
def test_a_generation_id_is_opaque_text(given: Any, generation_id: str) -> None:
    assert checked_id(given) == generation_id


@pytest.mark.parametrize(
    "given", [None, "", " ", "None", " None ", True, False, 1.5, ["1"], {}, b"1"], ids=repr
)
def test_an_invalid_id_is_an_error_with_advice(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be the id that a submit task returned") as caught:
        checked_id(given)
    assert f"generation_id = {given!r}" in str(caught.value)


@pytest.mark.parametrize(
    "given", [".", "..", "4\n5", "4\0", "\x1b[2J", "\ud800", "4" * 201, 10**200, 10**5000], ids=range(9)
)
def test_an_id_that_no_url_can_hold_is_invalid(given: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be the id that a submit task returned"):
        checked_id(given)
    assert checked_id("4" * 200) == "4" * 200
