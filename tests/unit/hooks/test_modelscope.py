from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests_mock import Mocker

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
    InvalidConnectionError,
    ModelScopeFinalError,
    QueueFullError,
    RateLimitedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.request import GenerationRequest
from tests.unit.conftest import TOKEN, connect

REQUEST = GenerationRequest(model="Qwen/Qwen-Image", prompt="一只猫 and a “dog”", size="64x64", seed=3)
BASE = "https://api-inference.modelscope.cn"
SUBMIT, LOOK, USER = (
    f"{BASE}/v1/images/generations",
    f"{BASE}/v1/tasks/",
    "https://modelscope.cn/openapi/v1/users/me",
)


pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture
def hook() -> ModelScopeHook:
    return ModelScopeHook()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mocker]:
    """ModelScope's own addresses, answering what a test says."""
    connect(monkeypatch, "")
    with Mocker() as service:
        yield service


class TestSubmission:
    def test_the_request_goes_out_as_it_was_asked_for(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        generation_id = hook.submit_generation(REQUEST)
        [exchange] = emulator.requests
        assert exchange.json == {
            "model": "Qwen/Qwen-Image",
            "prompt": "一只猫 and a “dog”",
            "size": "64x64",
            "seed": 3,
        }
        assert "一只猫".encode() in exchange.body
        assert exchange.headers["Authorization"] == f"Bearer {TOKEN}"
        assert exchange.headers["Content-Type"] == "application/json"
        assert exchange.headers["X-ModelScope-Async-Mode"] == "true"
        assert exchange.generation_id == generation_id

    @pytest.mark.parametrize("fault", ["queue-full", "429"])
    def test_it_is_sent_again_where_nothing_was_created(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}:3")
        assert hook.submit_generation(REQUEST)
        assert [exchange.status for exchange in emulator.requests][-1] == 200
        assert (len(emulator.requests), emulator.accepted) == (4, 1)

    @pytest.mark.parametrize(("fault", "error"), [("queue-full", QueueFullError), ("429", RateLimitedError)])
    def test_a_full_queue_is_given_up_when_the_time_for_it_is_over(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str, error: type[Exception]
    ) -> None:
        emulator.fail(f"submit:{fault}:always")
        with pytest.raises(error):
            hook.submit_generation(REQUEST, queue_timeout=0)
        assert len(emulator.requests) == 1

    @pytest.mark.parametrize("fault", ["lost", "reset", "html", "no-id", "500", "502", "503", "504", "408"])
    def test_it_is_never_sent_twice_where_a_generation_may_have_been_made(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(SubmissionLostError, match="may have started and charged a generation"):
            hook.submit_generation(REQUEST)
        assert len(emulator.requests) == 1

    def test_a_service_that_does_not_answer_in_time_may_have_got_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            connect(monkeypatch, f"http://127.0.0.1:{mute.getsockname()[1]}", request_timeout=0.05)
            with pytest.raises(SubmissionLostError, match="gave no answer"):
                ModelScopeHook().submit_generation(REQUEST)

    def test_a_service_that_cannot_be_reached_got_nothing(
        self, monkeypatch: pytest.MonkeyPatch, hook: ModelScopeHook
    ) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")
        with pytest.raises(
            ServiceUnreachableError, match=r"127\.0\.0\.1:9 cannot be reached.*modelscope_default"
        ):
            hook.submit_generation(REQUEST)

    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            ("quota", "today's quota.*tomorrow"),
            ("balance", "credit is used up.*balance"),
            (
                "unbound",
                "bind your Alibaba Cloud.*Bind or verify it at https://modelscope.cn/my/myaccesstoken",
            ),
            ("unverified", "real name.*Bind or verify it at https://modelscope.cn/my/myaccesstoken"),
            ("unknown-model", "has no provider supported"),
            ("401", "Authentication failed.*password"),
            ("422", "Unprocessable"),
        ],
    )
    def test_what_cannot_change_by_waiting_ends_the_task_at_once(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str, says: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(ModelScopeFinalError, match=says) as raised:
            hook.submit_generation(REQUEST)
        assert raised.value.request_id
        assert len(emulator.requests) == 1

    def test_a_redirect_is_not_followed_with_the_token(self, service: Mocker, hook: ModelScopeHook) -> None:
        service.post(SUBMIT, status_code=307, headers={"Location": "https://elsewhere.example/"})
        with pytest.raises(SubmissionLostError, match=r"^Redirect from"):
            hook.submit_generation(REQUEST)
        assert [sent.hostname for sent in service.request_history] == ["api-inference.modelscope.cn"]

    def test_a_netrc_does_not_replace_the_token(
        self, emulator: Emulator, hook: ModelScopeHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password else")
        monkeypatch.setenv("NETRC", str(netrc))
        hook.submit_generation(REQUEST)
        assert emulator.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


class TestLooking:
    def test_an_id_may_be_a_number(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        generation_id: Any = int(hook.submit_generation(REQUEST))
        assert hook.get_generation(generation_id).is_finished

    def test_the_answer_becomes_a_generation(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        generation = hook.get_generation(hook.submit_generation(REQUEST))
        assert (generation.status, generation.seed, len(generation.output_images)) == ("SUCCEED", 3, 1)

    @pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "html", "empty"])
    def test_passing_faults_are_tried_again(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        generation_id = hook.submit_generation(REQUEST)
        emulator.fail(f"poll:{fault}:2")
        assert hook.get_generation(generation_id).is_finished

    def test_after_three_tries_the_error_names_the_generation(
        self, emulator: Emulator, hook: ModelScopeHook
    ) -> None:
        generation_id = hook.submit_generation(REQUEST)
        emulator.fail("poll:503:3")
        with pytest.raises(ServiceUnavailableError) as raised:
            hook.get_generation(generation_id)
        assert raised.value.generation_id == generation_id
        assert len(emulator.requests) == 4

    def test_a_refused_token_is_not_tried_again(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        emulator.fail("poll:401:always")
        generation_id = hook.submit_generation(REQUEST)
        with pytest.raises(AuthenticationError):
            hook.get_generation(generation_id)
        assert len(emulator.requests) == 2


class TestDownload:
    URL = "https://images.example/a.png"

    def test_it_returns_the_very_bytes_and_shows_no_token(
        self, emulator: Emulator, hook: ModelScopeHook
    ) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        with hook.download_image(url) as image:
            assert [image.content] == list(emulator.served.values())
            assert (image.content_type, image.width, image.height) == ("image/png", 64, 64)
        assert "Authorization" not in emulator.requests[-1].headers

    @pytest.mark.parametrize("fault", ["truncated", "garbage", "html", "reset", "500"])
    def test_anything_but_a_whole_image_is_an_error(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        emulator.fail(f"image:{fault}:5")
        with pytest.raises(ImageError):
            hook.download_image(url)
        with hook.download_image(url) as image:
            assert image.width == 64

    @pytest.mark.parametrize("fault", ["truncated", "garbage", "html", "reset", "500", "429"])
    def test_what_fails_in_passing_is_tried_again(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        emulator.fail(f"image:{fault}:4")
        with hook.download_image(url) as image:
            assert image.width == 64

    @pytest.mark.parametrize("code", [403, 404, 410])
    def test_a_url_that_works_no_longer_is_said_so_at_once(
        self, service: Mocker, hook: ModelScopeHook, code: int
    ) -> None:
        service.get(self.URL, status_code=code)
        with pytest.raises(ImageGoneError):
            hook.download_image(self.URL)
        assert service.call_count == 1

    def test_an_image_is_no_larger_than_the_connection_allows(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, emulator.base_url, max_image_bytes=100)
        hook = ModelScopeHook()
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        with pytest.raises(ImageNotAllowedError, match="max_image_bytes, 100"):
            hook.download_image(url)

    def test_redirects_are_followed_without_the_token(self, service: Mocker, hook: ModelScopeHook) -> None:
        service.get(self.URL, status_code=302, headers={"Location": "/b.png"})
        service.get("https://images.example/b.png", status_code=500)
        with pytest.raises(ImageError, match=r"cannot be had now.*code 500"):
            hook.download_image(self.URL)
        assert all("Authorization" not in sent.headers for sent in service.request_history)

    @pytest.mark.parametrize(
        ("location", "says"),
        [
            ("http://images.example/a.png", "no https"),
            (URL, "more than 3 redirects"),
            ("file:///etc/passwd", "no https"),
        ],
    )
    def test_a_redirect_leads_nowhere_that_images_may_not_come_from(
        self, service: Mocker, hook: ModelScopeHook, location: str, says: str
    ) -> None:
        service.get(self.URL, status_code=302, headers={"Location": location})
        with pytest.raises((ImageError, ImageNotAllowedError), match=says):
            hook.download_image(self.URL)


class TestConnection:
    def test_a_good_token_is_told_from_a_bad_one_though_models_answers_to_any(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(tokens=[TOKEN]) as emulator:
            connect(monkeypatch, emulator.base_url)
            assert ModelScopeHook().test_connection() == (
                True,
                f"{emulator.base_url} answers, and the token is valid.",
            )
            monkeypatch.setenv(
                "AIRFLOW_CONN_MODELSCOPE_DEFAULT",
                json.dumps({"conn_type": "modelscope", "password": "ms-other", "host": emulator.base_url}),
            )
            works, says = ModelScopeHook().test_connection()
        assert not works
        assert "Authentication failed" in says
        assert "https://modelscope.cn/my/myaccesstoken" in says

    @pytest.mark.parametrize(
        ("look", "user", "works", "says"),
        [
            (200, 200, True, "the token is valid"),
            (404, 200, True, "the token is valid"),
            (200, 401, False, "Check the connection's password"),
            (401, 200, False, "Check the connection's password"),
            (403, 200, False, "Check the connection's password"),
            (400, 200, True, "the token is valid"),
            (500, 200, True, "the token is valid"),
            (200, 500, False, "ModelScope is unavailable"),
        ],
    )
    def test_the_site_is_asked_where_the_api_does_not_tell(
        self, service: Mocker, hook: ModelScopeHook, look: int, user: int, works: bool, says: str
    ) -> None:
        service.get(LOOK + "0", status_code=look, json={"task_status": "FAILED"})
        service.get(USER, status_code=user, json={})
        result = hook.test_connection()
        assert (result[0], says in result[1]) == (works, True), result

    @pytest.mark.parametrize(
        ("message", "says"),
        [
            ("Please bind your Alibaba Cloud account before use.", "bind your Alibaba Cloud account"),
            ("Your account must be real name verified", "real name verified"),
        ],
    )
    def test_an_account_that_is_not_ready_is_told_where_to_go(
        self, service: Mocker, hook: ModelScopeHook, message: str, says: str
    ) -> None:
        service.get(LOOK + "0", status_code=401, json={"errors": {"message": message}})
        works, said = hook.test_connection()
        assert not works
        assert says in said
        assert "https://modelscope.cn/my/myaccesstoken" in said

    def test_a_service_without_the_sites_pages_is_taken_at_its_word(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, "https://proxy.example")
        with Mocker() as service:
            service.get("https://proxy.example/v1/tasks/0", json={"task_status": "FAILED"})
            service.get("https://proxy.example/openapi/v1/users/me", status_code=404)
            works, says = ModelScopeHook().test_connection()
        assert works
        assert says == "https://proxy.example answers and does not refuse the token."

    def test_a_host_that_cannot_be_reached_is_said_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")
        works, says = ModelScopeHook().test_connection()
        assert not works
        assert "cannot be reached" in says

    def test_a_wrong_connection_is_said_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "http://elsewhere.example")
        works, says = ModelScopeHook().test_connection()
        assert not works
        assert "allow_http" in says
        with pytest.raises(InvalidConnectionError):
            ModelScopeHook().submit_generation(REQUEST)


def test_the_hooks_keyword_is_the_name_that_airflow_asks_for() -> None:
    assert ModelScopeHook(**{ModelScopeHook.conn_name_attr: "other"}).modelscope_conn_id == "other"
    assert ModelScopeHook().modelscope_conn_id == ModelScopeHook.default_conn_name


def test_an_error_that_requests_has_no_class_for_is_one_of_ours(
    service: Mocker, hook: ModelScopeHook
) -> None:
    service.get(LOOK + "42", exc=requests.exceptions.ChunkedEncodingError("cut"))
    with pytest.raises(ServiceUnavailableError, match="cut"):
        hook.get_generation("42")


def test_an_unknown_model_is_named(service: Mocker, hook: ModelScopeHook) -> None:
    answer = {
        "errors": {"message": "Model id : Qwen/Qwen-Image , has no provider supported"},
        "request_id": "r-1",
    }
    service.post(SUBMIT, status_code=400, json=answer)
    with pytest.raises(UnknownModelError, match=r"Qwen/Qwen-Image.*request id r-1"):
        hook.submit_generation(REQUEST)


@pytest.mark.parametrize(
    ("verify", "used"), [(False, False), ("false", False), (__file__, __file__), (True, "/env.pem")]
)
def test_the_connections_verify_wins_over_the_environments_bundle(
    service: Mocker, monkeypatch: pytest.MonkeyPatch, verify: Any, used: Any
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/env.pem")
    connect(monkeypatch, "", verify=verify)
    service.get(LOOK + "42", json={"task_status": "PENDING"})
    ModelScopeHook().get_generation("42")
    assert service.last_request is not None
    assert service.last_request.verify == used


def test_the_bare_token_is_masked_however_it_was_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.common.compat.sdk import redact

    monkeypatch.setenv(
        "AIRFLOW_CONN_MODELSCOPE_DEFAULT",
        json.dumps({"conn_type": "modelscope", "password": "Bearer ms-pasted-with-care \n"}),
    )
    assert ModelScopeHook().account.token == "ms-pasted-with-care"
    assert "ms-pasted" not in str(redact("the token is ms-pasted-with-care, is it not"))
