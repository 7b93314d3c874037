"""The emulator answers every request, keeps running, and accepts valid submissions only."""

from __future__ import annotations

import json
import socket
from typing import Any

import aiohttp
import pytest
import requests
from hypothesis import given, settings, strategies as st
from packaging.version import Version
from requests.structures import CaseInsensitiveDict

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.drawing import draw as draw_image
from airflow_provider_modelscope.emulator.parameters import Parameters
from airflow_provider_modelscope.emulator.service import Service

TOKEN = "ms-0b1c2d3e-test"

texts = st.text(st.characters(exclude_categories=()), max_size=20)
words = st.sampled_from(
    [
        "a/b", "Qwen/Qwen-Image-Edit", "a cat", "", " ", "64x64", "0x64", "99999x99999", "\0", "\ud800",
        "https://a.example/1.png", "http://[", "data:image/png;base64,AA==", "data:", "９x９", "{model}",
        "%s", "\u202e", "x" * 2000,
    ]
)  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, words, st.sampled_from([10**400, 1e308])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=7),
    max_leaves=8,
)
right: dict[str, Any] = {
    "model": "a/b",
    "prompt": "a cat",
    "negative_prompt": "fog",
    "size": "64x64",
    "seed": 7,
    "steps": 9,
    "guidance": 2.5,
    "image_url": "https://a.example/1.png",
    "loras": {"a/b": 0.5, "c/d": 0.5},
}
# A valid body with at most one arbitrary value in it.
asked = st.dictionaries(st.sampled_from([*right, "other", "another"]), values, max_size=1).map(
    lambda wrong: right | wrong
)
bodies = st.one_of(
    st.binary(max_size=50),
    st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b'{"model":' + b"9" * 5000 + b"}"]),
    values.map(lambda value: json.dumps(value).encode()),
    asked.map(lambda value: json.dumps(value).encode()),
    asked.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")),
)
paths = st.one_of(
    texts.map("/".__add__),
    st.sampled_from(
        [
            "/v1/images/generations", "/v1/tasks/1", "/v1/tasks/4003503", "/v1/tasks/", "/images/0.png", "",
            "/v1/models", "/openapi/v1/users/me", "/openapi/v1/magicubes/balance", "/emulator/grant", "*",
            "//", "/../etc",
        ]
    ),
)  # fmt: skip
headers = st.fixed_dictionaries(
    {},
    optional={
        "Authorization": st.sampled_from([f"Bearer {TOKEN}", f"Bearer {TOKEN}", "Bearer ", "Basic eA=="])
        | texts,
        "X-ModelScope-Async-Mode": st.sampled_from(["true", "true", "TRUE", "false"]) | texts,
        "X-ModelScope-Task-Type": st.just("image_generation") | texts,
        "Content-Type": st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain"])
        | texts,
        "Host": st.just("api") | texts,
    },
)
SUBMIT = {
    "Authorization": f"Bearer {TOKEN}",
    "X-ModelScope-Async-Mode": "true",
    "Content-Type": "application/json",
}
methods = st.sampled_from(
    ["GET", "POST", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "CONNECT", "get", "\0"]
)
FAULTS = (
    "submit:429",
    "submit:lost",
    "submit:html",
    "submit:no-id",
    "submit:images",
    "submit:quota-200",
    "poll:filtered",
    "poll:stall",
    "poll:html",
    "poll:empty",
)


def in_range(asked: Any) -> bool:
    """Whether a body is in the documented ranges, by rules that are independent of the emulator's."""
    if not isinstance(asked, dict):
        return False
    number = (int, float)
    return all(
        (
            isinstance(asked.get("model"), str) and asked["model"].count("/") == 1,
            isinstance(asked.get("prompt"), str) and 0 < len(asked["prompt"].strip()) < 2000,
            isinstance(asked.get("negative_prompt", ""), str)
            and len(asked.get("negative_prompt", "")) < 2000,
            isinstance(asked.get("size", ""), str) and asked.get("size", "x").count("x") == 1,
            type(asked.get("seed", 0)) is int and 0 <= asked.get("seed", 0) < 2**31,
            type(asked.get("steps", 1)) is int and 1 <= asked.get("steps", 1) <= 100,
            type(asked.get("guidance", 2)) in number and 1.5 <= asked.get("guidance", 2) <= 20,
            isinstance(asked.get("image_url", ""), str | list),
            isinstance(asked.get("loras", ""), str | dict),
        )
    )


def test_any_request_is_answered_and_only_valid_ones_accepted() -> None:
    accepted = rejected = 0

    @given(st.booleans(), methods, paths, headers, bodies, st.lists(st.sampled_from(FAULTS), max_size=1))
    def try_one(
        is_submission: bool, method: str, path: str, sent: dict[str, str], body: bytes, faults: list[str]
    ) -> None:
        nonlocal accepted, rejected
        service = Service(duration=0, faults=faults)
        if is_submission:  # chance alone rarely makes one
            method, path, sent = "POST", "/v1/images/generations", SUBMIT
        response = service.respond(method, path, CaseInsensitiveDict(sent), body, now=0)
        assert response.cut or response.status in (200, 400, 401, 404) or faults
        assert response.status != 500
        if service.accepted:
            accepted += 1
            assert (method, path) == ("POST", "/v1/images/generations")
            assert sent["Authorization"].startswith("Bearer ")
            assert sent["X-ModelScope-Async-Mode"].lower() == "true"
            assert in_range(json.loads(body))
        elif is_submission:
            rejected += 1
        if response.body and response.content_type == "application/json":
            json.loads(response.body)
        assert b"Traceback" not in response.body
        assert len(response.body) < 5000
        # It keeps running.
        assert service.respond("GET", "/v1/models", CaseInsensitiveDict(), now=1).status == 200

    try_one()
    print(f"{accepted} submissions accepted, {rejected} rejected")
    assert min(accepted, rejected) >= settings().max_examples / 50, "too few to show anything"


def test_every_accepted_submission_can_be_drawn() -> None:
    @settings(max_examples=20)  # each draws two images
    @given(
        st.text(min_size=1, max_size=200), st.text(max_size=50), st.integers(64, 200), st.integers(64, 200)
    )
    def try_one(prompt: str, negative_prompt: str, width: int, height: int) -> None:
        asked = {
            **right,
            "prompt": f"a{prompt}",
            "negative_prompt": negative_prompt,
            "size": f"{width}x{height}",
        }
        parameters = Parameters.from_body(json.dumps(asked).encode())
        for image_format, begins in (("PNG", b"\x89PNG"), ("JPEG", b"\xff\xd8")):
            assert draw_image(parameters, image_format).startswith(begins)

    try_one()


lines = st.one_of(
    st.sampled_from(
        [
            b"GET /v1/models HTTP/1.1", b"POST /v1/images/generations HTTP/1.1", b"GET * HTTP/1.1", b"GET",
            b"CONNECT a:1 HTTP/1.1", b"GET http://[::1/ HTTP/1.1", b"GET //[/ HTTP/1.1", b"\x16\x03\x01\x02",
            b"GET /%zz%ff%00?%=&#x HTTP/1.1", b"HEAD /v1/models HTTP/1.1", b"get / HTTP/1.1",
            b"PRI * HTTP/2.0", b"GET http://a.example:99999/v1/models HTTP/1.1", b"OPTIONS * HTTP/1.1",
            b"GET /\x00 HTTP/1.1", b"GET / HTTP/9.9",
        ]
    ),
    st.binary(max_size=30),
    st.binary(max_size=20).map(lambda path: b"GET /" + path + b" HTTP/1.1"),
)  # fmt: skip
wire_headers = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"Host: x", b"Host: \xff", b"Content-Length: -1", b"Content-Length: 5", b"Content-Length: x",
                b"Content-Length: 99999999999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: x",
                b"Content-Encoding: gzip", b"Expect: 100-continue", b"Expect: x", b"Upgrade: websocket",
                b"Connection: upgrade", b"Authorization: Bearer x", b"X-ModelScope-Async-Mode: true",
                b"Content-Type: application/json", b"Content-Type: multipart/form-data", b"Cookie: \xff=;;",
                b"X" * 9000,
            ]
        ),
        st.binary(max_size=20),
    ),
    max_size=5,
)  # fmt: skip


@pytest.mark.skipif(
    Version(aiohttp.__version__) < Version("3.14.4"),
    reason="the server of an older aiohttp logs tracebacks if the bytes are not HTTP",
)
def test_any_bytes_get_a_response_or_a_closed_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Emulator(duration=0, max_running=10**6) as emulator:
        host, _, port = emulator.base_url.removeprefix("http://").partition(":")

        @given(
            lines, wire_headers, st.sampled_from([b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"\x1f\x8b\xff"])
        )
        def try_one(line: bytes, sent: list[bytes], body: bytes) -> None:
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                try:
                    connection.sendall(b"\r\n".join([line, *sent, b"", body]))
                    connection.shutdown(socket.SHUT_WR)
                    said = b""
                    while got := connection.recv(65536):
                        said += got
                except ConnectionError:
                    return
            assert b"Traceback" not in said
            assert b" 500 " not in said.partition(b"\r\n")[0]

        try_one()
        assert caplog.records
        assert not [record for record in caplog.records if record.exc_info], "a traceback on the terminal"
        assert emulator.accepted == 0
        assert requests.get(f"{emulator.base_url}/v1/models", timeout=5).status_code == 200
