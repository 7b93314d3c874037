"""The server: what it records, how it stops, and what hostile clients get."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest
import requests

from airflow_provider_modelscope.emulator import Emulator
from tests.unit.emulator.api import POLL, SUBMIT, get, image_url, message, poll, submit


def test_requests_are_recorded_with_their_responses(emulator: Emulator) -> None:
    submit(emulator, prompt="一只猫")
    get(emulator, "/v1/models?page=1")
    first, second = emulator.requests
    assert (first.method, first.path, first.status) == ("POST", "/v1/images/generations", 200)
    assert first.headers["x-modelscope-ASYNC-mode"] == "true"
    assert first.json["prompt"] == "一只猫"
    assert "一只猫".encode() in first.body
    assert (second.method, second.path, second.status, second.json) == ("GET", "/v1/models", 200, None)
    with pytest.raises(AttributeError):
        first.status = 500  # type: ignore[misc]


def test_a_stopped_emulator_leaves_no_thread_and_no_listener() -> None:
    before = set(threading.enumerate())
    with Emulator() as emulator, requests.Session() as session:
        assert session.get(image_url(emulator), timeout=5).ok
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before
    with pytest.raises(requests.ConnectionError):
        get(emulator, "/v1/models")


HOSTILE_BODIES = [
    b"",
    b"not json",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b'{"a":' * 100_000,
    b"[" * 900 + b"]" * 900,
    b'{"model": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"model": "a/b", "prompt": "\xff"}',
    b'{"model": "a/b", "prompt": "\\ud800"}',
    b'{"model": "a/b", "prompt": "x", "other": "\\udfff"}',
    b'{"model": "a/b", "prompt": "x", "guidance": NaN}',
    b'{"model": "a/b", "prompt": "x", "guidance": Infinity}',
    b'{"model": "a/b", "prompt": "x", "guidance": 1e999}',
    b'{"model": "a/b", "prompt": "x", "seed": 1' + b"0" * 400 + b"}",
    b'{"model": "a/b", "prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
    b'{"model": "a/b", "prompt": "x", "loras": {"a/b": 1' + b"0" * 400 + b"}}",
    b'{"model": "a/b", "prompt": {"$gt": ""}}',
    b'{"model": "../../etc/passwd", "prompt": "x"}',
    b'{"model": "a/' + b"b" * 100_000 + b'", "prompt": "x"}',
]


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=range(len(HOSTILE_BODIES)))
def test_a_hostile_body_gets_status_400(emulator: Emulator, body: bytes) -> None:
    response = requests.post(f"{emulator.base_url}/v1/images/generations", body, headers=SUBMIT, timeout=5)
    assert response.status_code == 400
    assert 0 < len(message(response)) < 300
    assert emulator.accepted == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
        {"X-ModelScope-Async-Mode": "\xff"},
    ],
)
def test_hostile_headers_get_status_400(emulator: Emulator, headers: dict[str, str]) -> None:
    response = submit(emulator, {**SUBMIT, **headers})
    assert (response.status_code, emulator.accepted) == (400, 0)
    assert message(response)


@pytest.mark.parametrize(
    "path",
    [
        b"/" + b"a" * 100_000,
        b"/" + b"a" * 5_000,
        b"/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        b"/images/%ff%00",
        b"/v1/\xff",
        b"*",
    ],
    ids=range(6),
)
def test_a_hostile_path_gets_status_400_or_404(emulator: Emulator, path: bytes) -> None:
    host, port = emulator.base_url.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as connection,
        connection.makefile("rb") as response,
    ):
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert response.readline().split()[1] in {b"400", b"404"}
        assert b"Traceback" not in response.read()


def test_the_host_and_the_token_may_be_any_bytes(emulator: Emulator) -> None:
    hostile = {"Authorization": "Bearer \xff", "Host": "\xff"}
    generation_id = submit(emulator, {**SUBMIT, **hostile}).json()["task_id"]
    assert poll(emulator, generation_id, {**POLL, **hostile}).json()["task_status"] == "SUCCEED"


def test_the_emulator_imports_neither_airflow_nor_the_client() -> None:
    code = """if True:
        import sys, airflow_provider_modelscope.emulator
        ours = {name for name in sys.modules if name.startswith("airflow_provider_modelscope.")}
        assert all(name.startswith("airflow_provider_modelscope.emulator") for name in ours), ours
        assert not {"airflow", "PIL", "requests"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
