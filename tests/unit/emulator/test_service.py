"""The emulator follows ModelScope's image API: its rules, its peculiarities, and faults on demand."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection, IncompleteRead
from io import BytesIO
from typing import Any

import pytest
import requests
from PIL import Image, UnidentifiedImageError

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.faults import FAULTS
from airflow_provider_modelscope.emulator.service import POLL_ERRORS, Response, Service
from tests.unit.emulator.api import (
    AUTHORIZED,
    POLL,
    REQUEST,
    SUBMIT,
    TOKEN,
    accepted_id,
    get,
    image_url,
    message,
    parameters,
    poll,
    submit,
)


def call(service: Service, method: str, path: str, headers: dict[str, str], *, now: float) -> Response:
    return service.respond(method, path, {"Host": "api", **headers}, json.dumps(REQUEST).encode(), now=now)


def submit_to(service: Service, now: float, token: str = TOKEN) -> Any:
    headers = {**SUBMIT, "Authorization": f"Bearer {token}"}
    return json.loads(call(service, "POST", "/v1/images/generations", headers, now=now).body)


def poll_of(service: Service, generation_id: str, now: float) -> Any:
    return json.loads(call(service, "GET", f"/v1/tasks/{generation_id}", POLL, now=now).body)


def test_a_submission_becomes_an_image_that_needs_no_token(emulator: Emulator) -> None:
    accepted = submit(emulator)
    assert accepted.status_code == 200
    assert accepted.json().keys() == {"task_status", "task_id", "request_id"}
    assert accepted.json()["task_status"] == "SUCCEED"

    done = poll(emulator, accepted.json()["task_id"]).json()
    assert done["task_status"] == "SUCCEED"
    (url,) = done["output_images"]
    assert re.fullmatch(emulator.base_url + r"/images/[0-9a-f]{32}\.png", url)

    image = requests.get(url, timeout=5)
    assert image.headers["Content-Type"] == "image/png"
    assert Image.open(BytesIO(image.content)).size == (64, 64)
    assert emulator.served == {url.removeprefix(emulator.base_url): image.content}


def test_the_sample_code_of_modelscope_works(emulator: Emulator, tmp_path: Any) -> None:
    common_headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    response = requests.post(
        f"{emulator.base_url}/v1/images/generations",
        headers={**common_headers, "X-ModelScope-Async-Mode": "true"},
        data=json.dumps({"model": "Qwen/Qwen-Image", "prompt": "一只金色的猫"}, ensure_ascii=False).encode(
            "utf-8"
        ),
        timeout=5,
    )
    response.raise_for_status()
    result = requests.get(
        f"{emulator.base_url}/v1/tasks/{response.json()['task_id']}",
        headers={**common_headers, "X-ModelScope-Task-Type": "image_generation"},
        timeout=5,
    )
    result.raise_for_status()
    data = result.json()
    assert data["task_status"] == "SUCCEED"
    image = Image.open(BytesIO(requests.get(data["output_images"][0], timeout=5).content))
    image.save(tmp_path / "result_image.jpg")
    assert image.size == (1024, 1024)


def test_ids_are_decimal_strings_that_increase() -> None:
    service = Service(duration=0)
    ids = [submit_to(service, now)["task_id"] for now in range(3)]
    assert ids == ["4003503", "4003504", "4003505"]


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic abc", f"Bearer Bearer {TOKEN}", TOKEN]
)
def test_without_a_bearer_token_the_status_is_401(emulator: Emulator, authorization: str | None) -> None:
    headers = {**SUBMIT, **POLL}
    headers.pop("Authorization")
    if authorization is not None:
        headers["Authorization"] = authorization
    for response in submit(emulator, headers), poll(emulator, "0", headers):
        assert response.status_code == 401
        assert response.json().keys() == {"errors", "request_id"}
        assert message(response).startswith("Authentication failed, ")
    assert emulator.accepted == 0


def test_only_the_given_tokens_are_valid() -> None:
    bad = {"Authorization": "Bearer ms-other"}
    with Emulator(tokens=[TOKEN]) as emulator:
        assert submit(emulator).status_code == 200
        assert submit(emulator, {**SUBMIT, **bad}).status_code == 401
        assert poll(emulator, "0", {**POLL, **bad}).status_code == 401
        assert get(emulator, "/openapi/v1/users/me", AUTHORIZED).json()["data"]["username"] == "emulator"
        assert get(emulator, "/openapi/v1/users/me", bad).status_code == 401
        assert get(emulator, "/openapi/v1/magicubes/balance", bad).status_code == 401


def test_the_list_of_models_accepts_any_token() -> None:
    with Emulator(tokens=[TOKEN]) as emulator:
        assert get(emulator, "/v1/models", {"Authorization": "Bearer ms-other"}).status_code == 200


def test_without_the_async_header_the_status_is_400(emulator: Emulator) -> None:
    response = submit(emulator, {**SUBMIT, "X-ModelScope-Async-Mode": "false"})
    assert (response.status_code, emulator.accepted) == (400, 0)
    assert "does not support synchronous calls" in message(response)


@pytest.mark.parametrize("model", [None, "", "FLUX.1-Krea-dev", "a/b/c", "/b", "a/", 7, "a b/c"])
def test_a_model_without_owner_and_name_has_no_provider(emulator: Emulator, model: Any) -> None:
    response = submit(emulator, model=model)
    assert response.status_code == 400
    assert re.fullmatch(r"Model id : .* , has no provider supported", message(response))


OUT_OF_RANGE: list[tuple[str, list[Any]]] = [
    ("prompt", ["", "  ", "x" * 2000, 5, None]),
    ("negative_prompt", ["x" * 2000, 5, None]),
    ("size", ["", "64", "63x64", "64x1025", "64X64", "-64x64", "64x64x64", "9999999999x64", 64, None]),
    ("seed", [-1, 2**31, 1.5, "1", True, None]),
    ("steps", [0, 101, 30.0, "30", True, None]),
    ("guidance", [1.4, 20.1, "7", True, None]),
    (
        "loras",
        ["", {}, {"a/b": 0.5}, {"a/b": "1"}, {"a/b": True}, {f"a/{n}": 1 / 7 for n in range(7)}, [], None],
    ),
    ("image_url", ["", [], [""], "ftp://a/b.png", "cat.png", "http://", "http://[", [5], {}, None]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE for value in values]
)
def test_a_parameter_out_of_range_is_named_with_status_400(emulator: Emulator, name: str, value: Any) -> None:
    response = submit(emulator, **{name: value})
    assert response.status_code == 400
    assert message(response).startswith(name)
    assert emulator.accepted == 0


IN_RANGE: list[tuple[str, list[Any]]] = [
    ("prompt", ["x", "x" * 1999, "猫" * 1999, "a\0b", "\N{CAT}"]),
    ("negative_prompt", ["", "x" * 1999]),
    ("seed", [0, 2**31 - 1]),
    ("steps", [1, 100]),
    ("guidance", [1.5, 2, 20]),
    ("loras", ["a/b", {"a/b": 1}, {f"a/{n}": 1 / 6 for n in range(6)}, {"a/b": 0.7, "c/d": 0.3}]),
    ("image_url", ["https://a.example/b.png", ["http://a.example/b", "data:image/png;base64,AA=="]]),
    ("some_new_key", [{"whatever": [1]}, None]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IN_RANGE for value in values])
def test_a_parameter_at_the_edge_of_its_range_is_accepted(emulator: Emulator, name: str, value: Any) -> None:
    url = image_url(emulator, **{name: value})
    assert Image.open(BytesIO(requests.get(url, timeout=5).content)).size == (64, 64)


@pytest.mark.parametrize(
    ("model", "good", "bad"),
    [
        ("black-forest-labs/FLUX.1-Krea-dev", "1024x64", "1025x64"),
        ("MusePublic/flux-high-res", "2048x2048", "4097x2048"),
        ("Qwen/Qwen-Image", "1664x64", "1665x64"),
        ("Tongyi-MAI/Z-Image-Turbo", "2048x512", "2048x511"),
        ("stabilityai/stable-diffusion-3.5", "2048x64", "2049x64"),
        ("someone/a-new-family", "2560x1440", "9000x9000"),
    ],
)
def test_the_range_of_the_size_depends_on_the_model(model: str, good: str, bad: str) -> None:
    assert f"{parameters(model=model, size=good).width}x" in good
    with pytest.raises(ValueError, match=r"^size must be"):
        parameters(model=model, size=bad)


def test_a_turbo_model_takes_a_small_guidance() -> None:
    assert parameters(model="Tongyi-MAI/Z-Image-Turbo", size="512x512", guidance=0).guidance == 0
    with pytest.raises(ValueError, match=r"^guidance must be a number from 1\.5 to 20"):
        parameters(guidance=1)


def test_an_editing_model_needs_an_image_url(emulator: Emulator) -> None:
    response = submit(emulator, model="Qwen/Qwen-Image-Edit")
    assert (response.status_code, message(response)) == (400, "image_url is required")
    assert (
        submit(emulator, model="Qwen/Qwen-Image-Edit", image_url="https://a.example/b.png").status_code == 200
    )


def test_a_full_queue_rejects_and_creates_nothing() -> None:
    with Emulator(duration=60) as emulator:
        assert submit(emulator).status_code == 200
        rejected = submit(emulator)
        assert (rejected.status_code, message(rejected)) == (500, "enqueue failed: user queue is full")
        assert emulator.accepted == 1
        assert [end - begin for begin, end in emulator.spans] == [60]


def test_running_generations_occupy_the_queue_of_their_account() -> None:
    service = Service(duration=10, max_running=2)
    assert all("task_id" in submit_to(service, 0) for _ in range(2))
    assert "error" in submit_to(service, 9.9)
    assert "task_id" in submit_to(service, 9.9, token="ms-other")
    assert "task_id" in submit_to(service, 10)
    assert service.accepted == 4


def test_a_generation_is_pending_then_processing_then_succeeds() -> None:
    service = Service(duration=8)
    generation_id = submit_to(service, 100)["task_id"]
    for now, status in ((100, "PENDING"), (101.9, "PENDING"), (102, "PROCESSING"), (107.9, "PROCESSING")):
        running = {"request_id": "", "task_id": "", "task_status": status, "outputs": {}}
        assert poll_of(service, generation_id, now) == running
    done = poll_of(service, generation_id, 108)
    assert (done["task_status"], done["time_taken"]) == ("SUCCEED", 8000.0)
    assert done["output_images"][0].startswith("http://api/images/")


def test_finish_ends_running_generations_but_no_later_ones() -> None:
    with Emulator(duration=3600) as emulator:
        generation_id = accepted_id(emulator)
        assert poll(emulator, generation_id).json()["task_status"] == "PENDING"
        emulator.finish()
        assert poll(emulator, generation_id).json()["task_status"] == "SUCCEED"
        emulator.finish()
        later = accepted_id(emulator)
        assert poll(emulator, later).json()["task_status"] == "PENDING"
        [(begin, end), (_, later_end)] = emulator.spans
        assert end - begin < 3600
        assert later_end > end


def test_finish_does_not_change_a_failed_or_stalled_generation() -> None:
    with Emulator(duration=3600, faults=["poll:failed", "poll:stall"], max_running=2) as emulator:
        ids = [accepted_id(emulator) for _ in range(2)]
        statuses = [poll(emulator, generation_id).json()["task_status"] for generation_id in ids]
        emulator.finish()
        assert [poll(emulator, generation_id).json()["task_status"] for generation_id in ids] == statuses
        assert statuses == ["FAILED", "PROCESSING"]
        assert submit(emulator).ok


def test_an_image_exists_only_after_its_generation_succeeded() -> None:
    service = Service(duration=8)
    path = poll_of(service, submit_to(service, 0)["task_id"], 8)["output_images"][0].removeprefix(
        "http://api"
    )
    assert call(service, "GET", path, {}, now=7).status == 404
    assert call(service, "GET", path, {}, now=8).status == 200


def test_the_response_contains_the_parameters_that_were_used(emulator: Emulator) -> None:
    used = poll(emulator, accepted_id(emulator, negative_prompt="rain")).json()["input"]
    assert used.pop("seed") in range(2**31)
    assert used == {
        "width": 64,
        "height": 64,
        "guidanceScale": 7.5,
        "numInferenceSteps": 30,
        "sampler": "Euler a",
        "prompt": "A golden cat",
        "negativePrompt": "rain",
    }
    own = poll(emulator, accepted_id(emulator, seed=7, steps=9, guidance=2)).json()["input"]
    assert (own["seed"], own["numInferenceSteps"], own["guidanceScale"]) == (7, 9, 2.0)


def test_the_same_request_or_seed_gives_the_same_image(emulator: Emulator) -> None:
    first, second = accepted_id(emulator), accepted_id(emulator)
    seed = poll(emulator, first).json()["input"]["seed"]
    urls = [poll(emulator, generation_id).json()["output_images"][0] for generation_id in (first, second)]
    urls.append(image_url(emulator, seed=seed))
    assert len(set(urls)) == 3
    assert len({requests.get(url, timeout=5).content for url in urls}) == 1


def test_without_the_task_type_header_nothing_is_found(emulator: Emulator) -> None:
    response = poll(emulator, accepted_id(emulator), AUTHORIZED)
    assert response.status_code == 200
    assert response.json()["task_status"] == "FAILED"
    assert response.json()["errors"]["message"] == "task not found"


def test_generations_of_other_accounts_are_not_found(emulator: Emulator) -> None:
    generation_id = accepted_id(emulator)
    for response in (
        poll(emulator, "0"),
        poll(emulator, generation_id, {**POLL, "Authorization": "Bearer ms-other"}),
    ):
        assert response.json()["task_status"] == "FAILED"
        assert response.json()["errors"]["message"] == "task not found"
    assert poll(emulator, generation_id).json()["task_status"] == "SUCCEED"


def test_the_image_url_has_the_host_that_the_client_used(emulator: Emulator) -> None:
    done = poll(emulator, accepted_id(emulator), {**POLL, "Host": "modelscope-emulator:8765"}).json()
    assert done["output_images"][0].startswith("http://modelscope-emulator:8765/images/")


def test_the_image_host_rejects_a_request_with_a_token(emulator: Emulator) -> None:
    url = image_url(emulator)
    response = requests.get(url, headers=AUTHORIZED, timeout=5)
    assert response.status_code == 400
    assert "accepts no token" in response.text
    assert emulator.served == {}


@pytest.mark.parametrize(
    "path",
    ["/", "/images/abc.png", "/v1/tasks", "/v1/tasks/1/2", "/a%0ab%E7%8C%AB", "/v1/images/generations", "//"],
)
def test_an_unknown_path_is_a_plain_404(emulator: Emulator, path: str) -> None:
    response = get(emulator, path)
    assert response.status_code == 404
    assert response.headers["Content-Type"].startswith("text/plain")
    assert [exchange.status for exchange in emulator.requests] == [404]


SUBMIT_FAULTS = [
    ("queue-full", 500, "enqueue failed: user queue is full"),
    ("image-queue-full", 503, "image queue is full"),
    ("busy", 503, "Server is busy, please try again later"),
    ("busy-200", 200, "Server is busy, please try again later"),
    ("busy-400", 400, "Server is busy, please try again later"),
    ("too-many", 429, "Too many concurrent requests for model black-forest-labs/FLUX.1-Krea-dev"),
    ("too-fast", 429, "达到使用量上限"),
    ("quota", 429, "today's quota for model black-forest-labs/FLUX.1-Krea-dev"),
    ("quota-200", 200, "today's quota for model black-forest-labs/FLUX.1-Krea-dev"),
    ("quota-chinese", 429, "今日额度已用完"),
    ("balance", 402, "balance"),
    ("no-credit", 403, "magicube balance exhausted"),
    ("no-credit-chinese", 429, "魔粒不足"),
    ("retired-model", 429, "insufficient balance (1008)"),
    ("unbound", 401, "Please bind your Alibaba Cloud account before use."),
    ("unverified", 403, "real name verified"),
    ("forbidden", 403, "insufficient token permission"),
    ("unknown-model", 400, "Model id : black-forest-labs/FLUX.1-Krea-dev , has no provider supported"),
    ("model-not-found", 404, "Model not found"),
    ("moderated", 400, "inappropriate content"),
    ("echo", 500, "Failed: A golden cat"),
    ("400", 400, "Bad Request"),
    ("401", 401, "Authentication failed, "),
    ("403", 403, "real name verified"),
    ("408", 408, "Request Timeout"),
    ("429", 429, "Too many requests"),
    ("500", 500, "Internal Server Error"),
    ("503", 503, "Service Unavailable"),
    ("599", 599, "Error 599"),
]


@pytest.mark.parametrize(("what", "status", "text"), SUBMIT_FAULTS)
def test_a_submission_can_be_rejected(emulator: Emulator, what: str, status: int, text: str) -> None:
    emulator.fail(f"submit:{what}")
    response = submit(emulator)
    assert response.status_code == status
    assert text in (response.text if status == 404 else message(response))
    assert emulator.accepted == 0
    assert "task_id" in submit(emulator).json()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("no-credit", "QuotaLimitExceed"),
        ("forbidden", "OperationNotAllowed"),
        ("moderated", "DataInspectionFailed"),
        ("too-fast", "too_many_requests"),
    ],
)
def test_an_error_with_a_textual_code_has_the_hubs_envelope(emulator: Emulator, what: str, code: str) -> None:
    emulator.fail(f"submit:{what}")
    content = submit(emulator).json()
    assert content.keys() == {"success", "code", "message", "request_id"}
    assert (content["success"], content["code"]) == (False, code)


def test_an_error_with_status_200_has_no_id(emulator: Emulator) -> None:
    emulator.fail("submit:quota-200")
    assert submit(emulator).json()["error"].keys() == {"message", "request_id"}


def test_the_id_can_be_in_an_inner_object(emulator: Emulator) -> None:
    emulator.fail("submit:nested-id")
    content = submit(emulator).json()
    assert content.keys() == {"output", "request_id"}
    assert poll(emulator, content["output"]["task_id"]).json()["task_status"] == "SUCCEED"


def test_a_submission_can_return_its_images_at_once() -> None:
    with Emulator(duration=3600, faults=["submit:images"]) as emulator:
        content = submit(emulator).json()
        assert content.keys() == {"images", "request_id"}
        assert requests.get(content["images"][0]["url"], timeout=5).status_code == 200
        assert emulator.accepted == 1


def test_the_end_of_a_response_can_be_missing(emulator: Emulator) -> None:
    emulator.fail("submit:no-end")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        submit(emulator)
    assert emulator.accepted == 1
    assert "task_id" in json.loads(emulator.requests[-1].response_body)


def test_both_error_envelopes_occur(emulator: Emulator) -> None:
    for status, envelope in (
        (400, "errors"),
        (401, "errors"),
        (403, "errors"),
        (402, "error"),
        (429, "error"),
        (500, "error"),
    ):
        emulator.fail(f"submit:{status}")
        content = submit(emulator).json()
        assert content[envelope]["code"] == status
        assert "request_id" in (content if envelope == "errors" else content["error"])


def test_a_404_is_plain_text_for_a_submission_too(emulator: Emulator) -> None:
    emulator.fail("submit:404")
    assert (submit(emulator).text, emulator.accepted) == ("404 page not found", 0)


def test_a_lost_response_leaves_a_generation_but_a_reset_none(emulator: Emulator) -> None:
    first = int(accepted_id(emulator))
    emulator.fail("submit:lost")
    emulator.fail("submit:reset")
    for accepted in (2, 2):
        with pytest.raises(requests.ConnectionError):
            submit(emulator)
        assert emulator.accepted == accepted
    assert [exchange.status for exchange in emulator.requests] == [200, None, None]
    assert int(accepted_id(emulator)) == first + 2


def test_the_response_to_a_submission_can_be_html_or_lack_an_id(emulator: Emulator) -> None:
    emulator.fail("submit:html")
    emulator.fail("submit:no-id")
    page = submit(emulator)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")
    assert page.text.startswith("<!DOCTYPE html>")
    no_id = submit(emulator)
    assert no_id.status_code == 200
    assert no_id.json().keys() == {"task_status", "request_id"}
    assert emulator.accepted == 0


@pytest.mark.parametrize("what", ["401", "429", "500", "504"])
def test_a_poll_can_fail_once_with_a_status(emulator: Emulator, what: str) -> None:
    generation_id = accepted_id(emulator)
    emulator.fail(f"poll:{what}")
    response = poll(emulator, generation_id)
    assert response.status_code == int(what)
    assert message(response)
    assert poll(emulator, generation_id).json()["task_status"] == "SUCCEED"


def test_a_poll_can_get_a_broken_response_once(emulator: Emulator) -> None:
    generation_id = accepted_id(emulator)
    for what in ("reset", "html", "empty", "no-images", "not-found"):
        emulator.fail(f"poll:{what}")
    with pytest.raises(requests.ConnectionError):
        poll(emulator, generation_id)
    assert poll(emulator, generation_id).text.startswith("<!DOCTYPE html>")
    empty = poll(emulator, generation_id)
    assert (empty.status_code, empty.content) == (200, b"")
    assert poll(emulator, generation_id).json().keys() == {"request_id", "task_status"}
    assert poll(emulator, generation_id).json()["errors"]["message"] == "task not found"
    assert poll(emulator, generation_id).json()["task_status"] == "SUCCEED"


POLL_FAILURES = [
    ("failed", 500, "failed"),
    ("rejected", 400, "content"),
    ("moderated", "DataInspectionFailed", "inappropriate content"),
    ("moderated-40301", 40301, "rejected"),
    ("moderated-chinese", 500, "敏感"),
]


@pytest.mark.parametrize(("what", "code", "word"), POLL_FAILURES)
def test_a_generation_can_fail_for_good(emulator: Emulator, what: str, code: int | str, word: str) -> None:
    generation_id = accepted_id(emulator)
    emulator.fail(f"poll:{what}")
    for _ in range(2):
        response = poll(emulator, generation_id)
        assert response.status_code == 200
        assert response.json().keys() == {"task_status", "errors", "request_id"}
        assert response.json()["task_status"] == "FAILED"
        assert response.json()["errors"]["code"] == code
        assert word in response.json()["errors"]["message"]
    assert poll(emulator, accepted_id(emulator)).json()["task_status"] == "SUCCEED"


ENDS = [
    ("canceled", "CANCELED", "cancelled"),
    ("expired", "EXPIRED", "expired"),
    ("filtered", "SUCCEED", "safety"),
]


@pytest.mark.parametrize(("what", "status", "word"), ENDS)
def test_a_generation_can_end_without_images(emulator: Emulator, what: str, status: str, word: str) -> None:
    generation_id = accepted_id(emulator)
    emulator.fail(f"poll:{what}")
    for _ in range(2):
        content = poll(emulator, generation_id).json()
        assert content["task_status"] == status
        assert not content.get("output_images")
        assert word in content["errors"]["message"]


def test_a_generation_can_finish_under_other_words() -> None:
    service = Service(duration=8, faults=["poll:other-words"])
    generation_id = submit_to(service, 0)["task_id"]
    assert poll_of(service, generation_id, 1)["task_status"] == "PENDING"
    done = poll_of(service, generation_id, 8)
    assert done["task_status"] == "COMPLETED"
    assert done["output"]["results"][0]["url"].startswith("http://api/images/")
    assert done["output"]["results"][1] is None


def test_a_generation_can_succeed_in_part(emulator: Emulator) -> None:
    generation_id = accepted_id(emulator)
    emulator.fail("poll:partial")
    content = poll(emulator, generation_id).json()
    assert (content["task_status"], len(content["output_images"])) == ("PARTIAL_SUCCEEDED", 1)


@pytest.mark.parametrize(
    ("what", "status", "text"),
    [
        ("busy", 200, "Server is busy"),
        ("not-found-400", 400, "task not found"),
        ("unlucky", 503, "model Qwen/Qwen-Image is not available"),
        ("forbidden", 403, "Forbidden"),
        ("bad-request", 400, "upstream connect error"),
    ],
)
def test_a_poll_can_report_an_error_once(emulator: Emulator, what: str, status: int, text: str) -> None:
    generation_id = accepted_id(emulator)
    emulator.fail(f"poll:{what}")
    response = poll(emulator, generation_id)
    assert response.status_code == status
    assert message(response).startswith(text)
    assert poll(emulator, generation_id).json()["task_status"] == "SUCCEED"


def test_failed_and_stalled_generations_leave_the_queue_in_time() -> None:
    service = Service(duration=10, faults=["poll:failed", "poll:stall"])
    assert poll_of(service, submit_to(service, 0)["task_id"], 1)["task_status"] == "FAILED"
    stalled = submit_to(service, 1)["task_id"]
    assert poll_of(service, stalled, 2)["task_status"] == "PROCESSING"
    assert "error" in submit_to(service, 10)
    assert "task_id" in submit_to(service, 11)
    assert poll_of(service, stalled, 1e9)["task_status"] == "PROCESSING"


def test_a_failed_or_stalled_generation_uses_up_no_more_faults() -> None:
    service = Service(duration=0, faults=["poll:stall:2"])
    first, second, third = (submit_to(service, 0)["task_id"] for _ in range(3))
    ids = (first, first, second, third)
    statuses = [poll_of(service, generation_id, 0)["task_status"] for generation_id in ids]
    assert statuses == ["PROCESSING", "PROCESSING", "PROCESSING", "SUCCEED"]


@pytest.mark.parametrize("what", ["403", "404", "410", "500"])
def test_an_image_can_fail_once_with_a_status(emulator: Emulator, what: str) -> None:
    url = image_url(emulator)
    emulator.fail(f"image:{what}")
    assert requests.get(url, timeout=5).status_code == int(what)
    assert requests.get(url, timeout=5).status_code == 200


def test_an_image_can_be_truncated(emulator: Emulator) -> None:
    url = image_url(emulator)
    emulator.fail("image:truncated")
    emulator.fail("image:reset")
    host, path = emulator.base_url.removeprefix("http://"), url.removeprefix(emulator.base_url)
    connection = HTTPConnection(host, timeout=5)
    connection.request("GET", path)
    with connection.getresponse() as response, pytest.raises(IncompleteRead) as cut:
        response.read()
    connection.close()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)
    assert emulator.served == {path: cut.value.partial}
    complete = requests.get(url, timeout=5).content
    assert cut.value.partial == complete[: len(complete) // 2]
    assert response.headers["Content-Length"] == str(len(complete))


def test_an_image_can_differ_from_what_its_url_says(emulator: Emulator) -> None:
    url = image_url(emulator)
    for what in ("html", "garbage", "wrong-suffix"):
        emulator.fail(f"image:{what}")
    assert requests.get(url, timeout=5).text.startswith("<!DOCTYPE html>")
    garbage = requests.get(url, timeout=5)
    assert (garbage.status_code, garbage.headers["Content-Type"]) == (200, "image/png")
    with pytest.raises(UnidentifiedImageError):
        Image.open(BytesIO(garbage.content))
    jpeg = requests.get(url, timeout=5)
    assert url.endswith(".png")
    image = Image.open(BytesIO(jpeg.content))
    assert image.format == "JPEG"
    assert b"TC260:AIGC" in image.info["xmp"]
    assert list(emulator.served.values()) == [jpeg.content]


def test_a_failure_can_be_in_an_inner_object(emulator: Emulator) -> None:
    emulator.fail("poll:moderated-nested")
    body = poll(emulator, submit(emulator).json()["task_id"]).json()
    assert body.keys() == {"output", "request_id"}
    assert (body["output"]["task_status"], body["output"]["code"]) == ("FAILED", "DataInspectionFailed")


def test_an_image_can_contain_content_credentials(emulator: Emulator) -> None:
    url = image_url(emulator)
    emulator.fail("image:signed")
    signed, plain = (requests.get(url, timeout=5).content for _ in range(2))
    with Image.open(BytesIO(signed)) as image, Image.open(BytesIO(plain)) as other:
        assert image.tobytes() == other.tobytes()
    assert b"caBX\0\0\0\x16jumb" in signed
    assert b"caBX" not in plain


def test_every_named_fault_is_tested_in_this_file() -> None:
    tested = {where: {what for what in names if not what.isdigit()} for where, names in FAULTS.items()}
    assert tested == {
        "submit": {what for what, _, _ in SUBMIT_FAULTS if not what.isdigit()}
        | {"lost", "reset", "html", "no-id", "nested-id", "images", "no-end"},
        "poll": {what for what, _, _ in (*POLL_FAILURES, *ENDS)}
        | {
            "stall",
            "moderated-nested",
            "other-words",
            "partial",
            "not-found",
            "no-images",
            "empty",
            "reset",
            "html",
        }
        | set(POLL_ERRORS),
        "image": {"truncated", "garbage", "wrong-suffix", "signed", "reset", "html"},
    }


def test_a_rejected_request_uses_up_no_fault() -> None:
    with Emulator(duration=60, faults=["submit:429", "poll:503"]) as emulator:
        assert submit(emulator, steps=0).status_code == 400
        assert submit(emulator, {**SUBMIT, "Authorization": ""}).status_code == 401
        assert submit(emulator).status_code == 429
        generation_id = accepted_id(emulator)
        assert poll(emulator, "0").status_code == 200
        assert poll(emulator, generation_id, AUTHORIZED).status_code == 200
        assert poll(emulator, generation_id).status_code == 503
        emulator.fail("submit:lost")
        assert message(submit(emulator)) == "enqueue failed: user queue is full"
