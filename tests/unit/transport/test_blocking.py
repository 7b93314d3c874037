"""Whatever comes over the wire: a look gives a generation or a typed error, a submission is sent once."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import aiohttp
import pytest
from packaging.version import Version

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    ServiceUnavailableError,
    ServiceUnreachableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.hooks import modelscope
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.protocol.messages import MAX_BODY
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.transport import blocking
from airflow_provider_modelscope.triggers.clients import shared_client
from tests.unit.conftest import TOKEN, connect

REQUEST = GenerationRequest(model="Qwen/Qwen-Image", prompt="a cat")
DONE = json.dumps({"task_status": "SUCCEED", "output_images": ["https://a.example/1.png"]}).encode()

pytestmark = pytest.mark.usefixtures("no_pauses")

Say = Callable[[socket.socket], None]
Act = Callable[..., Generation | ModelScopeError]


class Server:
    """A server that says the same on every connection, once it has read a request, and then closes it."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.heads: list[bytes] = []
        self.ended = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self.ended.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=[connection]))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            try:
                request = b""
                while b"\r\n\r\n" not in request and (got := connection.recv(65536)):
                    request += got
                self.heads.append(request)
                self.say(connection)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                while connection.recv(65536):  # closed with bytes unread, the other side would see a reset
                    pass
            except OSError:
                pass  # the client has gone


@contextmanager
def serving(say: bytes | Say) -> Iterator[Server]:
    server = Server(say if callable(say) else lambda connection: connection.sendall(say))
    try:
        yield server
    finally:
        server.close()


def look_from_a_worker(host: str, request_timeout: float = 30.0) -> Generation | ModelScopeError:
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, f"http://{host}", request_timeout=request_timeout)
        return ModelScopeHook().poll("42")


def look_from_the_triggerer(host: str, request_timeout: float = 30.0) -> Generation | ModelScopeError:
    account = Account(token=TOKEN, base_url=f"http://{host}", request_timeout=request_timeout)

    async def poll() -> Generation | ModelScopeError:
        async with shared_client(account) as client:
            return await client.poll("42", end_time=time.time())

    return asyncio.run(poll())


LOOKS: tuple[Act, ...] = (look_from_a_worker, look_from_the_triggerer)


def submission_error(host: str, request_timeout: float = 30.0) -> ModelScopeError:
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, f"http://{host}", request_timeout=request_timeout)
        with pytest.raises(ModelScopeError) as caught:
            ModelScopeHook().submit_generation(REQUEST)
    return caught.value


def http(body: bytes = b"", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


def length(number: int) -> bytes:
    return b"Content-Length: %d" % number


CHUNKED = b"Transfer-Encoding: chunked"
ZIPPED = gzip.compress(DONE)

GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "no http": b"\0\1\2\xff" * 100,
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "empty lines": b"\r\n" * 1000,
    "half a status line": b"HTTP/1.1 2",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "status in words": http(DONE, length(len(DONE)), status=b"two hundred"),
    "status -1": http(DONE, length(len(DONE)), status=b"-1 No"),
    "status 0": http(DONE, length(len(DONE)), status=b"000 No"),
    "status 999": http(DONE, length(len(DONE)), status=b"999 No"),
    "status 99999": http(DONE, length(len(DONE)), status=b"99999 No"),
    "http 9": http(DONE, length(len(DONE))).replace(b"HTTP/1.1", b"HTTP/9.9"),
    "many headers": http(DONE, *[b"X-A: b"] * 100_000),
    "a long header": http(DONE, b"X-A: " + b"b" * 10_000_000),
    "a long status line": http(DONE, status=b"200 " + b"O" * 10_000_000),
    "no colon": http(DONE, b"oops", length(len(DONE))),
    "a header of bytes": http(b"", b"X-\xff: \0\xfe\x1b[31m", length(0)),
    "two lengths": http(DONE, length(len(DONE)), length(3)),
    "a length in words": http(DONE, b"Content-Length: all"),
    "a length below 0": http(DONE, length(-5)),
    "a huge length": http(DONE, length(10**30)),
    "a length beyond the body": http(DONE, length(len(DONE) + 1)),
    "a length short of the body": http(DONE, length(len(DONE) - 1)),
    "a chunk broken off": http(b"ff\r\n{", CHUNKED),
    "chunks without an end": http(b"1\r\n{\r\n", CHUNKED),
    "a chunk's size in words": http(b"big\r\n{", CHUNKED),
    "a chunk's size below 0": http(b"-1\r\n{", CHUNKED),
    "a huge chunk": http(b"f" * 10_000 + b"\r\n{", CHUNKED),
    "no gzip": http(DONE, b"Content-Encoding: gzip", length(len(DONE))),
    "half a gzip": http(ZIPPED[:-9], b"Content-Encoding: gzip", length(len(ZIPPED) - 9)),
    "no deflate": http(DONE, b"Content-Encoding: deflate", length(len(DONE))),
    "no br": http(DONE, b"Content-Encoding: br", length(len(DONE))),
    "no zstd": http(DONE, b"Content-Encoding: zstd", length(len(DONE))),
    "only promises": http(status=b"100 Continue") * 1000,
    "only hints": http(status=b"103 Early Hints") * 1000,
    "an echo": f"HTTP/1.1 Authorization: Bearer {TOKEN}\r\n\r\n".encode(),
    "an echo in a header": http(b"", b"X\0: " + TOKEN.encode(), length(0)),
    "an echo in a body": http(TOKEN.encode(), length(len(TOKEN))),
    "another protocol asked for": http(status=b"101 Switching Protocols"),
    "no content": http(DONE, status=b"204 No Content"),
    "not modified": http(b"", status=b"304 Not Modified"),
    "a charset that is none": http(b"\xff", b"Content-Type: text/plain; charset=\xff", length(1)),
    "an odd cookie": http(b"x", b"Set-Cookie: \xff=\0; expires=never; max-age=x; domain=[", length(1)),
}  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_an_error_of_ours_and_a_submission_is_not_sent_again(garbage: bytes) -> None:
    with serving(garbage) as server:
        for look in LOOKS:
            seen = look(server.host)
            assert isinstance(seen, Generation | ServiceUnavailableError)
            assert not isinstance(seen, ServiceUnreachableError)
            assert str(seen).isprintable()
            assert TOKEN not in str(seen)
        server.heads.clear()
        error = submission_error(server.host)
        assert type(error) is SubmissionLostError
        assert str(error).isprintable()
        assert TOKEN not in str(error)
        assert len(server.heads) == 1


def test_an_answer_whose_end_is_that_of_the_connection_is_read_whole() -> None:
    for whole in (http(DONE), http(ZIPPED, b"Content-Encoding: gzip")):
        with serving(whole) as server:
            for look in LOOKS:
                seen = look(server.host)
                assert isinstance(seen, Generation)
                assert seen.is_finished


@pytest.mark.parametrize("before", [b"", http(DONE, length(500))[:9], http(b"{", length(500))])
def test_a_reset_connection_is_a_passing_fault(before: bytes) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(before)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with serving(reset) as server:
        for look in LOOKS:
            assert type(look(server.host)) is ServiceUnavailableError
        server.heads.clear()
        assert type(submission_error(server.host)) is SubmissionLostError
        assert len(server.heads) == 1


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
def test_no_redirect_is_followed_wherever_it_points(status: int) -> None:
    with serving(http(DONE, length(len(DONE)))) as elsewhere:
        for location in (
            f"http://{elsewhere.host}/v1/tasks/42".encode(),
            f"http://user:secret@{elsewhere.host}/".encode(),
            f"//{elsewhere.host}/".encode(),
            b"/v1/tasks/43",
            b"",
            b"http://[",
            b"http://" + b"a" * 70 + b".example/",
            b"\xff\xfe",
            b"javascript:alert(1)",
            b"http://a.example/\x1b[31m",
        ):
            answer = http(b"", b"Location: " + location, length(0), status=b"%d Elsewhere" % status)
            with serving(answer) as server:
                for look in LOOKS:
                    seen = look(server.host)
                    assert type(seen) is ServiceUnavailableError
                    assert str(seen).isprintable()
                server.heads.clear()
                assert type(submission_error(server.host)) is SubmissionLostError
                assert len(server.heads) == 1
        assert elsewhere.heads == []


ENDLESS = {
    "plain": (b"HTTP/1.1 200 OK\r\n\r\n[", b"0," * 32768),
    "chunks": (http(b"", CHUNKED), b"10000\r\n" + b"0," * 32768 + b"\r\n"),
    "an error": (http(b"No", status=b"503 No"), b"0," * 32768),
    "a redirect": (http(b"", b"Location: /", status=b"302 Found"), b"0," * 32768),
    "zipped": (http(b"", b"Content-Encoding: gzip"), gzip.compress(b"0," * 2**20)),
}


if Version(aiohttp.__version__) < Version("3.14"):
    del ENDLESS["zipped"]  # older ones unpack without bounds, until the request's time is up


@pytest.mark.parametrize(("head", "part"), ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_an_end_is_read_to_a_limit(head: bytes, part: bytes) -> None:
    sent = []

    def say(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:  # until the client has gone
            connection.sendall(part)
            sent.append(len(part))

    with serving(say) as server:
        for act in (*LOOKS, submission_error):
            sent.clear()
            server.heads.clear()
            error = act(server.host)
            assert isinstance(error, ServiceUnavailableError | SubmissionLostError)
            assert error.code in (200, 302, 503)
            assert sum(sent) < len(server.heads) * 2 * MAX_BODY


DRIPS = {
    "status": b"HTTP/1.1 200 " + b"O" * 200,
    "headers": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 200,
    "body": http(b" " * 100 + DONE),
}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_an_answer_that_drips_does_not_hold_a_wait(drip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "GRACE", 0.0)
    monkeypatch.setattr(modelscope, "TRIES", 1)

    def say(connection: socket.socket) -> None:
        for byte in drip:
            connection.sendall(bytes([byte]))
            if server.ended.wait(0.05):
                return

    with serving(say) as server:
        for act in (*LOOKS, submission_error):
            error = act(server.host, 0.2)
            assert type(error) in (ServiceUnavailableError, SubmissionLostError)


def test_a_host_that_no_name_server_takes_got_nothing() -> None:
    host = "ü" * 60 + ".localhost:1"  # too long as the DNS would write it
    assert isinstance(submission_error(host), ServiceUnreachableError)
    assert isinstance(look_from_a_worker(host), ServiceUnreachableError)
    assert isinstance(look_from_the_triggerer(host), ServiceUnavailableError)


def test_what_a_proxy_passed_on_may_have_been_charged_though_no_answer_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(b"") as proxy:  # urllib3 calls that an error of the proxy
        connect(monkeypatch, "http://api.example", proxy=f"http://{proxy.host}", allow_http=True)
        with pytest.raises(SubmissionLostError):
            ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("says", ["407 Who are you", "502 No"])
def test_a_proxy_that_opens_no_tunnel_passed_nothing_on(says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(f"HTTP/1.1 {says}\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
        connect(monkeypatch, "https://api.example", proxy=f"http://{proxy.host}")
        with pytest.raises(ServiceUnreachableError):
            ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)


def test_a_proxy_that_is_down_and_a_host_that_speaks_no_tls_got_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(monkeypatch, "https://api.example", proxy="http://127.0.0.1:9")
    with pytest.raises(ServiceUnreachableError):
        ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)
    with Emulator() as emulator:
        connect(monkeypatch, emulator.base_url.replace("http", "https"))
        with pytest.raises(ServiceUnreachableError):
            ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)


def test_the_token_goes_through_no_proxy_on_the_way_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Emulator() as emulator, serving(b"") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        host = emulator.base_url.removeprefix("http://")
        generation_id = hook_of(monkeypatch, host).submit_generation(REQUEST)
        assert generation_id == emulator.requests[0].generation_id
        assert isinstance(look_from_the_triggerer(host), Generation)
    assert not proxy.heads


def test_no_cause_of_an_error_holds_the_token() -> None:
    with serving(f"HTTP/1.1 {TOKEN} {TOKEN}\r\n\r\n".encode()) as server:
        for act in (*LOOKS, submission_error):
            error = act(server.host)
            assert isinstance(error, ModelScopeError)
            assert TOKEN not in "".join(traceback.format_exception(error))


def hook_of(monkeypatch: pytest.MonkeyPatch, host: str) -> ModelScopeHook:
    connect(monkeypatch, f"http://{host}")
    return ModelScopeHook()
