from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest
import requests
from requests_mock import Mocker

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.compat import BaseHook
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    BrokenImageError,
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
    InvalidConnectionError,
    InvalidRequestError,
    ModelScopeFinalError,
    QueueFullError,
    RateLimitedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.request import GenerationRequest
from tests.unit.builders import one_step, rendered, run
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = GenerationRequest(model="Qwen/Qwen-Image", prompt="一只猫 and a “dog”", size="64x64", seed=3)
BASE = "https://api-inference.modelscope.cn"
SUBMIT, STATUS, USER = (
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
    """ModelScope's own URLs, with the responses that a test sets."""
    connect(monkeypatch, "")
    with Mocker() as service:
        yield service


def with_extra(monkeypatch: pytest.MonkeyPatch, emulator: Emulator, extra: dict[str, str]) -> ModelScopeHook:
    """Return the hook of an HTTP connection with an extra, in which other names are headers."""
    connection = {"conn_type": "http", "password": TOKEN, "host": emulator.base_url, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_HEADERS", json.dumps(connection))
    return ModelScopeHook("headers")


ODD_TOKEN = "ms_oauth.abc-def/123+456~7=="  # all characters that tokens may have


@pytest.fixture
def odd_hook(monkeypatch: pytest.MonkeyPatch) -> ModelScopeHook:
    connection = {"conn_type": "modelscope", "password": ODD_TOKEN}
    monkeypatch.setenv("AIRFLOW_CONN_ODD", json.dumps(connection))
    return ModelScopeHook("odd")


class TestSubmission:
    def test_the_request_is_sent_as_it_is(self, emulator: Emulator, hook: ModelScopeHook) -> None:
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
    def test_it_is_retried_if_nothing_was_created(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}:3")
        assert hook.submit_generation(REQUEST)
        assert [exchange.status for exchange in emulator.requests][-1] == 200
        assert (len(emulator.requests), emulator.accepted) == (4, 1)

    @pytest.mark.parametrize(("fault", "error"), [("queue-full", QueueFullError), ("429", RateLimitedError)])
    def test_a_full_queue_is_an_error_after_the_queue_timeout(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str, error: type[Exception]
    ) -> None:
        emulator.fail(f"submit:{fault}:always")
        with pytest.raises(error):
            hook.submit_generation(REQUEST, queue_timeout=0)
        assert len(emulator.requests) == 1

    @pytest.mark.parametrize("fault", ["lost", "reset", "html", "no-id", "500", "502", "503", "504", "408"])
    def test_it_is_not_retried_if_a_generation_may_exist(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(SubmissionLostError, match="may have started and charged a generation"):
            hook.submit_generation(REQUEST)
        assert len(emulator.requests) == 1

    @pytest.mark.parametrize(
        "header", ["Authorization", "X-Api-Key", "apiKey", "clientSecret", "x-authtoken", "Set-Cookie"]
    )
    def test_a_secret_of_the_connection_is_not_sent(
        self, monkeypatch: pytest.MonkeyPatch, emulator: Emulator, header: str
    ) -> None:
        hook = with_extra(monkeypatch, emulator, {header: "Basic c2VjcmV0", "X-Purpose": "photographs"})
        for text in (TOKEN, f"x{TOKEN}x", "c2VjcmV0", "一c2VjcmV0画", "\nc2VjcmV0\t"):
            found: Any
            for name, found in (("prompt", text), ("extra_parameters", {"a": [{text: 1}, {"b": text}]})):
                with pytest.raises(InvalidRequestError, match=f"{name}: must not contain") as raised:
                    hook.submit_generation(replace(REQUEST, **{name: found}))
                assert text not in str(raised.value)
        assert not emulator.requests
        assert hook.submit_generation(replace(REQUEST, prompt="basic photographs, ac2VjcmV0b"))

    @pytest.mark.parametrize("before", ["", ":", "user:", "oauth2:"])
    @pytest.mark.parametrize("after", ["", ":", "@host"])
    @pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode])
    def test_the_token_in_base64_is_a_secret(
        self, before: str, after: str, encode: Any, odd_hook: ModelScopeHook
    ) -> None:
        encoded = encode(f"{before}{ODD_TOKEN}{after}".encode()).decode()
        with pytest.raises(InvalidRequestError, match="prompt: must not contain"):
            odd_hook.refuse_secrets(prompt=f"Basic {encoded}")

    @pytest.mark.parametrize(
        "written", [ODD_TOKEN, quote(ODD_TOKEN), quote(ODD_TOKEN, safe=""), quote(ODD_TOKEN, safe="").lower()]
    )
    def test_the_token_in_a_uri_is_a_secret(self, written: str, odd_hook: ModelScopeHook) -> None:
        odd_hook.refuse_secrets(prompt=written[:-1])
        with pytest.raises(InvalidRequestError, match="prompt: must not contain"):
            odd_hook.refuse_secrets(prompt=f"modelscope://:{written}@api.example")

    def test_a_value_of_any_kind_is_searched(self, odd_hook: ModelScopeHook) -> None:
        endless: list[Any] = [10**5000, b"bytes", None]  # the number is too long for text
        endless.append(endless)
        odd_hook.refuse_secrets(loras=endless)
        endless.append({"a": (ODD_TOKEN,)})
        with pytest.raises(InvalidRequestError, match="loras: must not contain"):
            odd_hook.refuse_secrets(loras=endless)

    def test_secrets_are_known_of_an_invalid_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "ftp://a.example", verify="no such file")
        with pytest.raises(InvalidRequestError, match="prompt: must not contain"):
            ModelScopeHook().refuse_secrets(prompt=TOKEN)

    @pytest.mark.parametrize(
        ("extra", "prompt"),
        [
            ({"proxy": "http://me:sunshine@127.0.0.1:9"}, "A cat in the sunshine"),
            ({"proxy": "http://me:sunshine2026@127.0.0.1:9"}, "sunshine20260 and asunshine2026"),
            ({"X-Author": "Leonardo-da-Vinci"}, "as by Leonardo-da-Vinci"),
            ({"Keyboard": "mechanical-keys"}, "with mechanical-keys"),
        ],
        ids=str,
    )
    def test_ordinary_words_are_no_secrets(
        self, extra: dict[str, str], prompt: str, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
    ) -> None:
        with_extra(monkeypatch, emulator, extra).refuse_secrets(prompt=prompt)

    @pytest.mark.parametrize("password", ["sunshine2026", "sunshine-and-rain", "sun%2Frain%202026"])
    def test_the_password_of_a_proxy_is_a_secret(
        self, password: str, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
    ) -> None:
        hook = with_extra(monkeypatch, emulator, {"proxy": f"http://me:{password}@127.0.0.1:9"})
        for text in (password, f"({unquote(password)})"):
            with pytest.raises(InvalidRequestError, match="prompt: must not contain"):
                hook.refuse_secrets(prompt=text)

    @pytest.mark.parametrize("name", ["destination", "storage_conn_id"])
    def test_a_secret_is_not_stored_by_another_parameter(
        self, name: str, emulator: Emulator, tmp_path: Path, context: Any
    ) -> None:
        value = f"file://{tmp_path}/{TOKEN}/" if name == "destination" else TOKEN
        task = rendered(one_step(tmp_path), **{name: value})
        with pytest.raises(InvalidRequestError, match=f"{name}: must not contain the token") as raised:
            run(task, context)
        assert TOKEN not in str(raised.value)
        assert not emulator.requests

    def test_a_submission_that_times_out_may_have_been_accepted(
        self, hook: ModelScopeHook, emulator: Emulator
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            base_url = f"http://127.0.0.1:{mute.getsockname()[1]}"
            hook.account = Account(token=TOKEN, base_url=base_url, request_timeout=0.05)
            with pytest.raises(SubmissionLostError, match="No response from"):
                hook.submit_generation(REQUEST)

    def test_an_unreachable_service_is_an_error_with_a_hint(
        self, monkeypatch: pytest.MonkeyPatch, hook: ModelScopeHook
    ) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")
        with pytest.raises(
            ServiceUnreachableError, match=r"Cannot reach http://127\.0\.0\.1:9.*modelscope_default"
        ):
            hook.submit_generation(REQUEST)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("quota", "today's quota.*tomorrow"),
            ("balance", "credit is used up.*balance"),
            (
                "unbound",
                "bind your Alibaba Cloud.*Bind or verify it at https://modelscope.cn/my/accountsettings",
            ),
            ("unverified", "real name.*Bind or verify it at https://modelscope.cn/my/accountsettings"),
            ("unknown-model", "has no provider supported"),
            ("401", "Authentication failed.*password"),
            ("422", "Unprocessable"),
        ],
    )
    def test_a_final_error_is_not_retried(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str, message: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(ModelScopeFinalError, match=message) as raised:
            hook.submit_generation(REQUEST)
        assert raised.value.request_id
        assert len(emulator.requests) == 1

    def test_a_redirect_is_not_followed(self, service: Mocker, hook: ModelScopeHook) -> None:
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


class TestStatus:
    def test_an_id_may_be_a_number(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        generation_id: Any = int(hook.submit_generation(REQUEST))
        assert hook.get_generation(generation_id).is_finished

    def test_the_response_becomes_a_generation(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        generation = hook.get_generation(hook.submit_generation(REQUEST))
        assert (generation.status, generation.seed, len(generation.output_images)) == ("SUCCEED", 3, 1)

    @pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "html", "empty"])
    def test_errors_that_may_pass_are_retried(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        generation_id = hook.submit_generation(REQUEST)
        emulator.fail(f"poll:{fault}:2")
        assert hook.get_generation(generation_id).is_finished

    def test_after_three_attempts_the_error_names_the_generation(
        self, emulator: Emulator, hook: ModelScopeHook
    ) -> None:
        generation_id = hook.submit_generation(REQUEST)
        emulator.fail("poll:503:3")
        with pytest.raises(ServiceUnavailableError) as raised:
            hook.get_generation(generation_id)
        assert raised.value.generation_id == generation_id
        assert len(emulator.requests) == 4

    def test_a_rejected_token_is_not_retried(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        emulator.fail("poll:401:always")
        generation_id = hook.submit_generation(REQUEST)
        with pytest.raises(AuthenticationError):
            hook.get_generation(generation_id)
        assert len(emulator.requests) == 2


class TestDownload:
    URL = "https://images.example/a.png"

    def test_it_returns_the_bytes_and_sends_no_token(self, emulator: Emulator, hook: ModelScopeHook) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        with hook.download_image(url) as image:
            assert [image.content] == list(emulator.served.values())
            assert (image.content_type, image.width, image.height) == ("image/png", 64, 64)
        assert "Authorization" not in emulator.requests[-1].headers

    @pytest.mark.parametrize("fault", ["truncated", "reset", "500"])
    def test_an_incomplete_image_is_an_error_after_five_attempts(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        emulator.fail(f"image:{fault}:5")
        with pytest.raises(ImageError):
            hook.download_image(url)
        with hook.download_image(url) as image:
            assert image.width == 64

    @pytest.mark.parametrize("fault", ["garbage", "html"])
    def test_the_same_broken_bytes_end_the_attempts(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        emulator.fail(f"image:{fault}:2")
        with pytest.raises(BrokenImageError, match="same bytes twice"):
            hook.download_image(url)
        hook.download_image(url).close()

    @pytest.mark.parametrize("fault", ["truncated", "reset", "500", "429"])
    def test_a_download_that_fails_is_retried(
        self, emulator: Emulator, hook: ModelScopeHook, fault: str
    ) -> None:
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        emulator.fail(f"image:{fault}:4")
        with hook.download_image(url) as image:
            assert image.width == 64

    @pytest.mark.parametrize("code", [403, 404, 410])
    def test_a_url_that_no_longer_works_is_not_retried(
        self, service: Mocker, hook: ModelScopeHook, code: int
    ) -> None:
        service.get(self.URL, status_code=code)
        with pytest.raises(ImageGoneError):
            hook.download_image(self.URL)
        assert service.call_count == 1

    def test_a_larger_image_than_allowed_is_an_error(
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
        with pytest.raises(ImageError, match=r"^Cannot download https://images\.example/b\.png.*code 500"):
            hook.download_image(self.URL)
        assert all("Authorization" not in sent.headers for sent in service.request_history)

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("http://images.example:81/a.png", "is not https"),
            (URL, "redirects more than 3 times"),
            ("file:///etc/passwd", "is not https"),
        ],
    )
    def test_a_redirect_to_a_disallowed_url_is_an_error(
        self, service: Mocker, hook: ModelScopeHook, location: str, message: str
    ) -> None:
        service.get(self.URL, status_code=302, headers={"Location": location})
        with pytest.raises((ImageError, ImageNotAllowedError), match=message):
            hook.download_image(self.URL)

    def test_only_the_callers_thread_reads_the_connection(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(connection_id: str) -> Any:
            readers.append(threading.current_thread())
            return real(connection_id)

        readers: list[threading.Thread] = []
        real = BaseHook.get_connection
        [url] = ModelScopeHook().get_generation(ModelScopeHook().submit_generation(REQUEST)).output_images
        monkeypatch.setattr(BaseHook, "get_connection", staticmethod(read))
        for image in ModelScopeHook().download_images([url] * 4):
            image.close()
        assert readers == [threading.current_thread()]


class TestPauses:
    @pytest.fixture
    def pauses(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        pauses: list[float] = []
        monkeypatch.setattr(ModelScopeHook, "sleep_before_retry", staticmethod(pauses.append))
        return pauses

    @pytest.fixture(autouse=True)
    def log(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """Log as the standard library does: where a hook of Airflow logs to depends on its version."""
        monkeypatch.setattr(ModelScopeHook, "log", logging.getLogger("hook"))
        caplog.set_level(logging.INFO, "hook")

    def test_each_pause_between_downloads_doubles(
        self, emulator: Emulator, hook: ModelScopeHook, pauses: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("image:500:4")
        [url] = hook.get_generation(hook.submit_generation(REQUEST)).output_images
        hook.download_image(url).close()
        assert pauses == [1.0, 2.0, 4.0, 8.0]
        assert f"Retrying in 8 s: Cannot download {url}" in caplog.text

    def test_a_full_queue_is_retried_after_a_pause(
        self, emulator: Emulator, hook: ModelScopeHook, pauses: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:queue-full")
        hook.submit_generation(REQUEST)
        [pause] = pauses
        assert pause >= 1.0

    def test_many_rejections_are_one_line_for_each_reason(
        self, emulator: Emulator, hook: ModelScopeHook, pauses: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            emulator.fail("submit:queue-full:5")
            emulator.fail("submit:429:2")
        hook.submit_generation(REQUEST)
        assert len(pauses) == 21
        busy, too_fast = caplog.messages
        assert re.fullmatch(
            r"The account is busy, which is normal: ModelScope runs one generation of an account at a time\. "
            r"Submitting again until \S+ \S+ UTC",
            busy,
        )
        assert too_fast.startswith("ModelScope received too many requests")
        assert "code" not in caplog.text
        assert "request id" not in caplog.text

    def test_an_unreachable_service_is_named_once(
        self,
        hook: ModelScopeHook,
        pauses: list[float],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
        with pytest.raises(ServiceUnreachableError):
            hook.submit_generation(REQUEST)
        [line] = caplog.messages
        assert line.endswith(". Submitting again in 1 s")

    def test_a_poll_that_is_repeated_is_no_line(
        self, emulator: Emulator, hook: ModelScopeHook, pauses: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        generation_id = hook.submit_generation(REQUEST)
        emulator.fail("poll:500:2")
        hook.get_generation(generation_id)
        assert len(pauses) == 2
        assert caplog.messages == []


class TestConnection:
    def test_it_tells_a_good_token_from_a_bad_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Emulator(tokens=[TOKEN], credit=7.5) as emulator:
            connect(monkeypatch, emulator.base_url)
            assert ModelScopeHook().test_connection() == (
                True,
                f"Connected to {emulator.base_url}: the token is valid, 7.5 credit available.",
            )
            monkeypatch.setenv(
                "AIRFLOW_CONN_MODELSCOPE_DEFAULT",
                json.dumps({"conn_type": "modelscope", "password": "ms-other", "host": emulator.base_url}),
            )
            works, message = ModelScopeHook().test_connection()
        assert not works
        assert "Authentication failed" in message
        assert "https://modelscope.cn/my/myaccesstoken" in message

    @pytest.mark.parametrize(
        ("status", "user", "works", "message"),
        [
            (200, 200, True, "the token is valid"),
            (404, 200, True, "the token is valid"),
            (200, 401, False, "Check the connection's password"),
            (401, 200, False, "Check the connection's password"),
            (403, 200, False, "what the token may do: https://modelscope.cn/my/myaccesstoken"),
            (403, 200, False, f"The token is valid, but {BASE} refuses inference. "),
            (401, 401, False, "Check the connection's password"),
            (403, 401, False, "what the token may do: https://modelscope.cn/my/myaccesstoken"),
            (400, 200, True, "the token is valid"),
            (500, 200, True, "the token is valid"),
            (200, 500, False, "ModelScope is unavailable"),
        ],
    )
    def test_the_website_decides_if_the_api_does_not_reject_it(
        self, service: Mocker, hook: ModelScopeHook, status: int, user: int, works: bool, message: str
    ) -> None:
        service.get(STATUS + "0", status_code=status, json={"task_status": "FAILED"})
        service.get(USER, status_code=user, json={})
        service.get(TestCredit.BALANCE, status_code=404)
        result = hook.test_connection()
        assert (result[0], message in result[1]) == (works, True), result

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("Please bind your Alibaba Cloud account before use.", "bind your Alibaba Cloud account"),
            ("Your account must be real name verified", "real name verified"),
        ],
    )
    def test_an_account_that_is_not_ready_gets_the_url(
        self, service: Mocker, hook: ModelScopeHook, text: str, hint: str
    ) -> None:
        service.get(STATUS + "0", status_code=401, json={"errors": {"message": text}})
        for user in ({"status_code": 200}, {"status_code": 403}, {"exc": requests.ConnectTimeout}):
            service.get(USER, **user)
            works, message = hook.test_connection()
            assert not works
            assert hint in message
            assert "https://modelscope.cn/my/accountsettings" in message
            valid = f"The token is valid, but {BASE} refuses inference. The ModelScope account is not ready: "
            assert message.startswith(valid) is (user == {"status_code": 200})

    @pytest.mark.parametrize(
        "balance",
        [
            {"status_code": 404},
            {"status_code": 401, "json": {"code": "InvalidAuthentication"}},
            {"json": {"data": None}},
            {"exc": requests.ReadTimeout("slow")},
        ],
        ids=str,
    )
    def test_a_credit_that_cannot_be_read_is_no_failure(
        self, service: Mocker, hook: ModelScopeHook, balance: dict[str, Any]
    ) -> None:
        service.get(STATUS + "0", json={"task_status": "FAILED"})
        service.get(USER, json={})
        service.get(TestCredit.BALANCE, **balance)
        assert hook.test_connection() == (True, f"Connected to {BASE}: the token is valid.")

    def test_a_service_without_a_website_need_not_confirm_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "https://proxy.example")
        with Mocker() as service:
            service.get("https://proxy.example/v1/tasks/0", json={"task_status": "FAILED"})
            service.get("https://proxy.example/openapi/v1/users/me", status_code=404)
            works, message = ModelScopeHook().test_connection()
        assert works
        assert message == "Connected to https://proxy.example: it does not reject the token."

    def test_an_unreachable_host_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")
        works, message = ModelScopeHook().test_connection()
        assert not works
        assert "Cannot reach" in message

    def test_an_invalid_connection_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "http://elsewhere.example")
        works, message = ModelScopeHook().test_connection()
        assert not works
        assert "allow_http" in message
        with pytest.raises(InvalidConnectionError):
            ModelScopeHook().submit_generation(REQUEST)


class TestCredit:
    BALANCE = "https://modelscope.cn/openapi/v1/magicubes/balance"
    PRICE = "https://modelscope.cn/api/v1/inference/list_model_providers"

    def test_it_is_what_the_service_reports(self, service: Mocker, hook: ModelScopeHook) -> None:
        data = {"total_balance": 143, "available_balance": 142.5, "frozen_amount": 0.5}
        service.get(self.BALANCE, json={"success": True, "data": data})
        assert str(hook.get_credit()) == "142.5 available, 0.5 frozen"
        assert service.request_history[-1].headers["Authorization"] == f"Bearer {TOKEN}"

    def test_it_is_asked_once_and_raises(self, service: Mocker, hook: ModelScopeHook) -> None:
        service.get(self.BALANCE, status_code=503, text="<html>busy")
        with pytest.raises(ServiceUnavailableError):
            hook.get_credit()
        service.get(self.BALANCE, exc=requests.ConnectTimeout("slow"))
        with pytest.raises(ServiceUnreachableError, match=r"^Cannot reach https://modelscope\.cn: slow"):
            hook.get_credit()
        assert service.call_count == 2

    def test_after_an_error_it_is_unknown_and_not_asked_again(
        self, service: Mocker, hook: ModelScopeHook
    ) -> None:
        data = {"total_balance": 3, "available_balance": 2, "frozen_amount": 1}
        service.get(self.BALANCE, [{"json": {"data": data}}, {"status_code": 503}])
        assert str(hook.find_credit()) == "2 available, 1 frozen"
        assert (hook.find_credit(), hook.find_credit()) == (None, None)
        assert service.call_count == 2

    def test_a_price_is_asked_once_for_each_model_without_token(
        self, service: Mocker, hook: ModelScopeHook
    ) -> None:
        priced = {"Data": {"Providers": [{"Name": "ModelScope", "EstimatedMagicGrainCost": 0.5}]}}
        service.get(f"{self.PRICE}?ModelId=a/b", json=priced)
        service.get(f"{self.PRICE}?ModelId=a/c", status_code=500)
        assert [hook.get_price(model) for model in ("a/b", "a/c", "a/b", "a/c")] == [0.5, None, 0.5, None]
        assert service.call_count == 2
        assert "Authorization" not in service.request_history[-1].headers

    def test_a_price_that_cannot_be_asked_is_unknown(
        self, service: Mocker, hook: ModelScopeHook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service.get(self.PRICE, exc=requests.ReadTimeout("slow"))
        assert hook.get_price("a/b") is None
        monkeypatch.setenv("https_proxy", "nonsense://proxy")
        assert ModelScopeHook().get_price("a/b") is None
        assert service.call_count == 1

    def test_a_reading_takes_at_most_five_seconds(
        self, service: Mocker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service.get(self.BALANCE, status_code=500)
        for seconds, timeout in ((600, 5), (3, 3)):
            connection = {"conn_type": "modelscope", "password": TOKEN, "extra": {"request_timeout": seconds}}
            monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(connection))
            with pytest.raises(ServiceUnavailableError):
                ModelScopeHook().get_credit()
            assert service.request_history[-1].timeout == timeout


def test_the_hooks_keyword_is_the_name_that_airflow_expects() -> None:
    assert ModelScopeHook(**{ModelScopeHook.conn_name_attr: "other"}).modelscope_conn_id == "other"
    assert ModelScopeHook().modelscope_conn_id == ModelScopeHook.default_conn_name


def test_an_error_of_requests_becomes_one_of_ours(service: Mocker, hook: ModelScopeHook) -> None:
    service.get(STATUS + "42", exc=requests.exceptions.ChunkedEncodingError("cut"))
    with pytest.raises(ServiceUnavailableError, match="cut"):
        hook.get_generation("42")


def test_an_unknown_model_is_named(service: Mocker, hook: ModelScopeHook) -> None:
    body = {
        "errors": {"message": "Model id : Qwen/Qwen-Image , has no provider supported"},
        "request_id": "r-1",
    }
    service.post(SUBMIT, status_code=400, json=body)
    with pytest.raises(UnknownModelError, match=r"Qwen/Qwen-Image.*request id r-1"):
        hook.submit_generation(REQUEST)


@pytest.mark.parametrize(
    ("verify", "used"), [(False, False), ("false", False), (__file__, __file__), (True, os.devnull)]
)
def test_the_connections_verify_wins_over_the_environments(
    service: Mocker, monkeypatch: pytest.MonkeyPatch, verify: Any, used: Any
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.devnull)
    connect(monkeypatch, "", verify=verify)
    service.get(STATUS + "42", json={"task_status": "PENDING"})
    ModelScopeHook().get_generation("42")
    assert service.last_request is not None
    assert service.request_history[-1].verify == used


def test_the_bare_token_is_masked_however_it_was_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    masker: Any = None
    # Where it is from Airflow 3.2 on, in 3.1 and in 3.0; the older homes warn in newer versions.
    for home in ("log", "_shared.secrets_masker", "execution_time.secrets_masker"):
        with suppress(ImportError):
            masker = masker or getattr(import_module(f"airflow.sdk.{home}"), "redact", None)
    monkeypatch.setenv(
        "AIRFLOW_CONN_MODELSCOPE_DEFAULT",
        json.dumps({"conn_type": "modelscope", "password": "Bearer ms-pasted-with-care \n"}),
    )
    assert ModelScopeHook().account.token == "ms-pasted-with-care"
    assert "ms-pasted" not in str(masker("the token is ms-pasted-with-care, is it not"))


def test_every_request_names_the_provider_and_its_version(
    emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    emulator.fail("poll:no-images")  # so that the triggerer polls as well
    run(one_step(tmp_path, deferrable=True, defer_after=0), context)
    assert {request.method for request in emulator.requests} == {"POST", "GET"}
    agents = {request.headers["User-Agent"] for request in emulator.requests}
    assert agents == {f"airflow-provider-modelscope/{__version__}"}
