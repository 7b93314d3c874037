"""Any bytes from the wire become a generation or a typed error, and a submission is sent once."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import ssl
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from queue import SimpleQueue
from typing import TYPE_CHECKING

import aiohttp
import pytest
from airflow.sdk import Connection
from packaging.version import Version

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    ServiceUnavailableError,
    ServiceUnreachableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.protocol.messages import MAX_BODY, status_request, submission_request
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.transport.blocking import run_side_by_side, run_within, send
from airflow_provider_modelscope.triggers.clients import shared_client
from tests.support.raw_server import RawServer, http
from tests.support.tls import HOST, server_context, write_certificate
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = GenerationRequest(model="Qwen/Qwen-Image", prompt="a cat")
DONE = json.dumps({"task_status": "SUCCEED", "output_images": ["https://a.example/1.png"]}).encode()

pytestmark = pytest.mark.usefixtures("no_pauses")

Call = Callable[[str], Generation | ModelScopeError]


def hook_of(account: Account) -> ModelScopeHook:
    hook = ModelScopeHook()
    hook._connection = Connection(
        conn_id="modelscope_default", conn_type="modelscope", password=account.token
    )
    hook.account = account
    return hook


def account_at(host: str, **given: object) -> Account:
    return Account(token=TOKEN, base_url=f"http://{host}", **given)  # type: ignore[arg-type]


def poll_from_a_worker(host: str) -> Generation | ModelScopeError:
    return hook_of(account_at(host)).poll("42")


def poll_from_the_triggerer(host: str, request_timeout: float = 30.0) -> Generation | ModelScopeError:
    async def poll() -> Generation | ModelScopeError:
        async with shared_client(account_at(host, request_timeout=request_timeout)) as client:
            polled = await client.poll("42", end_time=time.time())
            assert polled is not None
            return polled

    return asyncio.run(poll())


POLLS: tuple[Call, ...] = (poll_from_a_worker, poll_from_the_triggerer)


def submit(host: str) -> str | ModelScopeError:
    try:
        return hook_of(account_at(host)).submit_generation(REQUEST)
    except ModelScopeError as error:
        return error


def submission_error(host: str) -> ModelScopeError:
    error = submit(host)
    assert isinstance(error, ModelScopeError)
    return error


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
def test_garbage_is_a_typed_error_and_never_sent_twice(garbage: bytes) -> None:
    with RawServer(garbage) as server:
        for poll in POLLS:
            result = poll(server.host)
            assert isinstance(result, Generation | ServiceUnavailableError)
            assert not isinstance(result, ServiceUnreachableError)
            assert str(result).isprintable()
            assert TOKEN not in str(result)
        server.heads.clear()
        submitted = submit(server.host)
        assert isinstance(submitted, str | SubmissionLostError)  # an id: the images are legible
        assert str(submitted).isprintable()
        assert TOKEN not in str(submitted)
        assert len(server.heads) == 1


def test_a_body_without_length_ends_with_the_connection() -> None:
    for complete in (http(DONE), http(ZIPPED, b"Content-Encoding: gzip")):
        with RawServer(complete) as server:
            for poll in POLLS:
                result = poll(server.host)
                assert isinstance(result, Generation)
                assert result.is_finished


@pytest.mark.parametrize("before", [b"", http(DONE, length(500))[:9], http(b"{", length(500))])
def test_a_connection_reset_is_retryable(before: bytes) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(before)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with RawServer(reset) as server:
        for poll in POLLS:
            assert type(poll(server.host)) is ServiceUnavailableError
        server.heads.clear()
        assert type(submission_error(server.host)) is SubmissionLostError
        assert len(server.heads) == 1


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    with RawServer(http(DONE, length(len(DONE)))) as elsewhere:
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
            redirect = http(b"", b"Location: " + location, length(0), status=b"%d Elsewhere" % status)
            with RawServer(redirect) as server:
                for poll in POLLS:
                    result = poll(server.host)
                    assert type(result) is ServiceUnavailableError
                    assert str(result).isprintable()
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
    del ENDLESS["zipped"]  # older ones unpack without a limit, until the request times out


@pytest.mark.parametrize(("head", "part"), ENDLESS.values(), ids=ENDLESS)
def test_an_endless_response_is_read_to_a_limit(head: bytes, part: bytes) -> None:
    sent = []

    def reply(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:  # until the client has gone
            connection.sendall(part)
            sent.append(len(part))

    with RawServer(reply) as server:
        for call in (*POLLS, submission_error):
            sent.clear()
            server.heads.clear()
            error = call(server.host)
            assert isinstance(error, ServiceUnavailableError | SubmissionLostError)
            assert error.code in (200, 302, 503)
            assert sum(sent) < len(server.heads) * 2 * MAX_BODY


DRIPS = {
    "status": b"HTTP/1.1 200 " + b"O" * 200,
    "headers": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 200,
    "body": http(b" " * 100 + DONE),
}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_a_response_that_drips_is_cut_off(drip: bytes) -> None:
    def reply(connection: socket.socket) -> None:
        for byte in drip:
            connection.sendall(bytes([byte]))
            if server.closing.wait(0.05):
                return

    with RawServer(reply) as server:
        account = account_at(server.host, request_timeout=0.2)
        for call in (status_request(account, "42"), submission_request(account, REQUEST)):
            with pytest.raises(ServiceUnavailableError, match="timed out") as caught:
                send(call, account, grace=0.0)
            assert type(caught.value) is ServiceUnavailableError
        assert type(poll_from_the_triggerer(server.host, 0.2)) is ServiceUnavailableError


def test_a_limit_that_has_grown_extends_the_wait() -> None:
    began = time.monotonic()
    is_asked, was_asked_twice = threading.Event(), threading.Event()

    def limit() -> float:
        if is_asked.is_set():
            was_asked_twice.set()
            return 60.0
        is_asked.set()
        return time.monotonic() - began + 0.1  # over a little later, however slow this machine is

    assert run_within(limit, lambda: was_asked_twice.wait(5))


class TestSideBySide:
    @pytest.fixture
    def end(self) -> Iterator[threading.Event]:
        """Set when the test has ended."""
        event = threading.Event()
        yield event
        event.set()

    @pytest.mark.parametrize("at_once", [1, 2, 4])
    def test_results_have_the_order_of_their_items(self, at_once: int) -> None:
        def work(item: int) -> str:
            if at_once > 1 and item == 0:
                assert second.wait(5)
            if item == 1:
                second.set()
            return str(item)

        second, stop = threading.Event(), threading.Event()
        results = run_side_by_side(work, range(9), at_once=at_once, stop=stop, discard=lambda result: None)
        assert results == [str(item) for item in range(9)]
        assert not stop.is_set()

    def test_an_error_discards_the_results_before_it(self) -> None:
        stop = threading.Event()
        discarded: list[int] = []
        with pytest.raises(ZeroDivisionError):
            run_side_by_side(
                lambda item: 1 // item, [3, 1, 0, 2], at_once=1, stop=stop, discard=discarded.append
            )
        assert stop.is_set()
        assert discarded == [0, 1]

    def test_an_error_does_not_wait_for_other_threads(self, end: threading.Event) -> None:
        def work(item: int) -> int:
            begun.append(item)
            if item == 1:
                raise KeyError(item)
            end.wait(5)
            return item

        begun: list[int] = []
        discarded: SimpleQueue[int] = SimpleQueue()
        with pytest.raises(KeyError):
            run_side_by_side(work, range(9), at_once=2, stop=threading.Event(), discard=discarded.put)
        assert not end.is_set()
        end.set()
        assert discarded.get(timeout=5) == 0
        assert begun in ([0, 1], [1, 0])

    def test_an_exception_of_a_signal_ends_it_at_once(self, end: threading.Event) -> None:
        def handle(*_: object) -> None:
            raise TimeoutError("as Airflow's execution_timeout does")

        def work(item: int) -> None:
            if item == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            end.wait(5)

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            with pytest.raises(TimeoutError, match="as Airflow's"):
                run_side_by_side(
                    work, range(2), at_once=2, stop=threading.Event(), discard=lambda result: None
                )
            assert not end.is_set()
        finally:
            signal.signal(signal.SIGUSR1, before)

    @pytest.mark.parametrize("allowed", [0, 1])
    def test_a_machine_without_threads_does_one_after_another(
        self, allowed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, started = threading.Thread.start, list[threading.Thread]()

        def start(thread: threading.Thread) -> None:
            if len(started) == allowed:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        stop = threading.Event()
        assert run_side_by_side(str, range(3), at_once=3, stop=stop, discard=print) == ["0", "1", "2"]

    def test_threads_are_daemons_with_the_context_of_their_caller(self) -> None:
        def work(item: int) -> tuple[str, bool]:
            return variable.get(), threading.current_thread().daemon

        variable = ContextVar("variable", default="another task")
        variable.set("this task")
        results = run_side_by_side(work, range(2), at_once=2, stop=threading.Event(), discard=print)
        assert results == [("this task", True)] * 2


def test_nothing_was_sent_to_a_host_name_that_is_too_long() -> None:
    host = "ü" * 60 + ".localhost:1"  # too long once it is encoded for the DNS
    assert isinstance(submission_error(host), ServiceUnreachableError)
    assert isinstance(poll_from_a_worker(host), ServiceUnreachableError)
    assert isinstance(poll_from_the_triggerer(host), ServiceUnavailableError)


def test_a_call_that_a_proxy_took_may_have_been_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(b"") as proxy:  # urllib3 calls a missing response an error of the proxy
        connect(monkeypatch, "http://api.example", proxy=f"http://{proxy.host}", allow_http=True)
        with pytest.raises(SubmissionLostError):
            ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("status", ["407 Who are you", "502 No"])
def test_nothing_was_sent_through_a_proxy_without_a_tunnel(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(http(b"", length(0), status=status)) as proxy:
        connect(monkeypatch, "https://api.example", proxy=f"http://{proxy.host}")
        with pytest.raises(ServiceUnreachableError):
            ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)


def test_nothing_was_sent_through_a_proxy_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "https://api.example", proxy="http://127.0.0.1:9")
    with pytest.raises(ServiceUnreachableError):
        ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)


def test_nothing_was_sent_to_a_host_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator() as emulator:
        connect(monkeypatch, emulator.base_url.replace("http", "https"))
        with pytest.raises(ServiceUnreachableError):
            ModelScopeHook().submit_generation(REQUEST, queue_timeout=0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


# What a client may get in place of an encrypted response, after it sent its request.
BREAKS = {
    "504 of a proxy": http(b"", length(0), status="504 Gateway Timeout"),
    "record": b"\x17\x03\x03\x00\x20" + bytes(32),
    "handshake alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "protocol alert": b"\x15\x03\x03\x00\x02\x02\x46",
    "another version": b"\x80\x2e\x01\x03\x01" + bytes(50),
    "nothing": b"",
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("in_tunnel", [False, True], ids=["direct", "tunnel"])
@pytest.mark.parametrize("bare", BREAKS.values(), ids=BREAKS)
def test_a_broken_tls_stream_may_have_been_charged(
    certificate: Path, bare: bytes, in_tunnel: bool, version: ssl.TLSVersion
) -> None:
    posts = []

    def break_stream(connection: socket.socket) -> None:
        if in_tunnel:
            connection.sendall(http(status="200 Connection established"))
        stream = server_context(certificate, version).wrap_socket(connection, server_side=True)
        posts.append(stream.recv(65536).split(b" ")[0])
        with socket.socket(fileno=stream.detach()) as plain:
            plain.sendall(bare)
            plain.shutdown(socket.SHUT_WR)
            plain.settimeout(0.5)
            while plain.recv(65536):  # until the client has gone
                pass

    with RawServer(break_stream, reads_request=in_tunnel) as server:
        hook = hook_of(
            Account(
                token=TOKEN,
                base_url=f"https://{HOST}" if in_tunnel else f"https://{server.host}",
                proxy=f"http://{server.host}" if in_tunnel else None,
                verify=str(certificate),
            )
        )
        with pytest.raises(SubmissionLostError, match="may have started and charged"):
            hook.submit_generation(REQUEST)
    assert posts == [b"POST"]


def test_nothing_was_sent_if_the_tls_handshake_does_not_end() -> None:
    hello = []

    def read_hello(connection: socket.socket) -> None:
        hello.append(connection.recv(65536)[:1])
        server.closing.wait(5)

    with RawServer(read_hello, reads_request=False) as server:
        hook = hook_of(Account(token=TOKEN, base_url=f"https://{server.host}", request_timeout=0.1))
        with pytest.raises(ServiceUnreachableError, match="timed out"):
            hook.submit_generation(REQUEST, queue_timeout=0)
    assert set(hello) == {b"\x16"}  # a TLS handshake, and no request


def test_a_connection_that_comes_too_late_sends_nothing(certificate: Path) -> None:
    given_up = threading.Event()
    received = []

    def reply(connection: socket.socket) -> None:
        for byte in http(status="200 Connection established"):
            given_up.wait(0.05)
            connection.sendall(bytes([byte]))
        with server_context(certificate).wrap_socket(connection, server_side=True) as stream:
            received.append(stream.recv(65536))

    with RawServer(reply) as proxy:
        account = Account(
            token=TOKEN,
            base_url=f"https://{HOST}",
            proxy=f"http://{proxy.host}",
            verify=str(certificate),
        )
        with pytest.raises(ServiceUnreachableError, match="timed out"):
            send(submission_request(account, REQUEST), account, grace=0.1 - account.request_timeout)
        given_up.set()
    assert received == [b""]


class TaskTimeout(BaseException):
    """As Airflow's, no :class:`Exception`."""


class TestInterruption:
    """What ends a task is raised in its main thread: its ``execution_timeout``, or a signal."""

    @pytest.fixture(autouse=True)
    def interruptible(self) -> Iterator[None]:
        def interrupt(*_: object) -> None:
            raise TaskTimeout("the task took too long")

        previous = signal.signal(signal.SIGUSR1, interrupt)
        yield
        signal.signal(signal.SIGUSR1, previous)

    @staticmethod
    def interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)

    def test_nothing_is_sent_after_one_while_connecting(self, certificate: Path) -> None:
        interrupted, ended = threading.Event(), threading.Event()
        received = []

        def reply(connection: socket.socket) -> None:
            self.interrupt()
            interrupted.wait(60)
            # The client may reset the connection, instead of ending it.
            with (
                suppress(OSError),
                server_context(certificate).wrap_socket(connection, server_side=True) as stream,
            ):
                received.append(stream.recv(65536))
            ended.set()

        with RawServer(reply, reads_request=False) as server:
            account = Account(token=TOKEN, base_url=f"https://{server.host}", verify=str(certificate))
            with pytest.raises(TaskTimeout) as raised:
                send(submission_request(account, REQUEST), account)
            interrupted.set()
            assert ended.wait(60)
        assert isinstance(raised.value.__cause__, ServiceUnreachableError)
        assert not b"".join(received)

    def test_one_after_sending_may_have_been_charged(self) -> None:
        def reply(connection: socket.socket) -> None:
            self.interrupt()
            server.closing.wait(5)

        with RawServer(reply) as server:
            account = account_at(server.host)
            with pytest.raises(TaskTimeout) as raised:
                send(submission_request(account, REQUEST), account)
        assert type(raised.value.__cause__) is ServiceUnavailableError


ACCEPTED = json.dumps({"task_id": "4003503"}).encode()


WITHOUT_END: dict[str, bytes] = {
    "a length beyond the body": http(ACCEPTED, length(len(ACCEPTED) + 4)),
    "a chunk without an end": http(b"%x\r\n%s" % (len(ACCEPTED), ACCEPTED), CHUNKED),
    "chunks without an end": http(b"%x\r\n%s\r\n" % (len(ACCEPTED), ACCEPTED), CHUNKED),
    "a chunk's size beyond the body": http(b"ff\r\n" + ACCEPTED, CHUNKED),
    "a chunk's size in words": http(b"%x\r\n%s\r\nbig\r\n" % (len(ACCEPTED), ACCEPTED), CHUNKED),
    "half a gzip": http(
        gzip.compress(ACCEPTED)[:-4], b"Content-Encoding: gzip", length(len(gzip.compress(ACCEPTED)))
    ),
}


class TestSubmissionResponseWithoutItsEnd:
    @pytest.mark.parametrize("response", WITHOUT_END.values(), ids=WITHOUT_END)
    def test_a_complete_id_in_it_counts(self, response: bytes) -> None:
        with RawServer(response) as server:
            assert submit(server.host) == "4003503"
        assert len(server.heads) == 1

    def test_a_complete_id_counts_if_the_rest_never_comes(self) -> None:
        def reply(connection: socket.socket) -> None:
            connection.sendall(http(ACCEPTED, length(len(ACCEPTED) + 4)))
            server.closing.wait(5)

        with RawServer(reply) as server:
            account = account_at(server.host, request_timeout=0.3)
            for grace in (0.0, 1.0):  # the request is cut off, or its last read
                response = send(submission_request(account, REQUEST), account, grace=grace)
                assert response.body == ACCEPTED

    @pytest.mark.parametrize("cut", [1, 2, 10])
    def test_half_a_response_may_have_been_charged(self, cut: int) -> None:
        with RawServer(http(ACCEPTED[:-cut], length(len(ACCEPTED)))) as server:
            assert type(submission_error(server.host)) is SubmissionLostError

    def test_a_poll_without_its_end_is_retried(self) -> None:
        with RawServer(http(DONE, length(len(DONE) + 4))) as server:
            assert type(poll_from_a_worker(server.host)) is ServiceUnavailableError


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_informational_responses_are_skipped(status: str) -> None:
    informational = http(b"", "Link: <https://a.example/>", status=status) * 2
    for call, response in ((submit, ACCEPTED), *((poll, DONE) for poll in POLLS)):
        with RawServer(informational + http(response, length(len(response)))) as server:
            result = call(server.host)
        assert result == "4003503" or isinstance(result, Generation)


def test_nothing_was_sent_to_an_untrusted_certificate(certificate: Path) -> None:
    with RawServer(b"", tls=server_context(certificate)) as server:
        account = Account(token=TOKEN, base_url=f"https://{server.host}")
        with pytest.raises(ServiceUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            send(submission_request(account, REQUEST), account)
    assert not server.heads


def test_no_proxy_is_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Emulator() as emulator, RawServer(b"") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        host = emulator.base_url.removeprefix("http://")
        generation_id = hook_of(account_at(host)).submit_generation(REQUEST)
        assert generation_id == emulator.requests[0].generation_id
        assert isinstance(poll_from_the_triggerer(host), Generation)
    assert not proxy.heads


def test_no_cause_of_an_error_contains_the_token() -> None:
    with RawServer(f"HTTP/1.1 {TOKEN} {TOKEN}\r\n\r\n".encode()) as server:
        for call in (*POLLS, submission_error):
            error = call(server.host)
            assert isinstance(error, ModelScopeError)
            assert TOKEN not in "".join(traceback.format_exception(error))
