"""Blocking calls over requests: a complete response within a time limit, or an error."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import cache
from http.client import HTTPResponse
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import (
    ModelScopeError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.redaction import redacted
from airflow_provider_modelscope.transport.egress import new_session, request_options

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter
    from urllib3 import PoolManager
    from urllib3.connectionpool import HTTPConnectionPool

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.messages import HttpRequest, HttpResponse

_ADDRESS = re.compile(r"<\S* object at 0x[0-9a-f]+>: ")  # in errors of an older urllib3, each time another
CHUNK = 64 * 1024  # bytes to read at a time
MIN_SPEED = 100_000  # bytes per second; slower transfers are cut off
GRACE = 1.0  # seconds; the timeouts of requests come first, as their errors say more

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Departure:
    """Whether a request may have been sent, decided once: by its connection, or by who gives up before."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._may_be_sent: bool | None = None

    def connected(self) -> None:
        """Allow sending: the connection is complete, with its TLS handshake and the tunnel of a proxy.

        :raises ConnectionAbortedError: if the caller has given up, so that nothing may be sent any more.
        """
        with self._lock:
            if self._may_be_sent is False:
                raise ConnectionAbortedError("The connection was too late")
            self._may_be_sent = True

    def give_up(self) -> bool:
        """Return whether the request may have been sent. If not, it never will be."""
        with self._lock:
            self._may_be_sent = bool(self._may_be_sent)
            return self._may_be_sent


_departure: ContextVar[_Departure] = ContextVar("departure")  # of the request that this thread sends


def send(call: HttpRequest, account: Account, *, grace: float = GRACE) -> HttpResponse:
    """Send one request over a new connection: a reused one may be dead, which shows only after sending.

    What ends the task meanwhile, such as its ``execution_timeout``, is raised with one of the two errors as
    its cause. So nothing is sent later than an error.

    :param grace: Seconds after the timeout of the request to cut it off.
    :raises ServiceUnreachableError: if nothing was sent.
    :raises ServiceUnavailableError: if the request may have been sent.
    """
    from urllib3.exceptions import HTTPError

    timeout = account.request_timeout + len(call.body or b"") / MIN_SPEED
    exchange = _Exchange(call, account, timeout)
    try:
        return run_within(lambda: timeout + grace, exchange.run)
    except (OSError, HTTPError, ValueError) as error:  # every error of requests is an OSError
        if response := exchange.response_without_end():
            return response
        reason = redacted(str(error), account.token)  # it may repeat the response
    except ModelScopeError:
        raise
    except BaseException as error:
        raise error from exchange.give_up(f"interrupted by {type(error).__name__}")
    # Raised here, without its cause, which holds the headers, token included.
    raise exchange.give_up(reason)


def run_within(limit: Callable[[], float], work: Callable[[], Result]) -> Result:
    """Return the result of work that runs in a thread, or give up on it after some seconds.

    The timeout of requests limits each single read, so a server that sends one byte at a time would hold the
    task forever. Python cannot stop a thread: after a timeout it runs on, at most until the process ends.

    :param limit: Returns how many seconds the work may take. Called again when they are over: progress of
        the work may have extended them.
    :raises TimeoutError: if the work takes longer.
    :raises OSError: if the thread cannot be started.
    """
    result: Future[Result] = Future()
    started = time.monotonic()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    try:
        Thread(target=run, name="modelscope-request", daemon=True).start()
    except RuntimeError as error:  # the machine's limit of threads
        raise OSError(str(error)) from error
    while not result.done():
        seconds = limit()
        remaining = started + seconds - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"timed out after {seconds:g} s")
        wait([result], remaining)
    return result.result()


def run_side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    at_once: int,
    stop: Event,
    discard: Callable[[Result], None],
) -> list[Result]:
    """Return the results of work on each item, in the order of the items, or raise the first error at once.

    After an error, and after an exception that a signal raises here, nothing waits for the other threads: as
    daemons they do not keep the process alive either.

    :param at_once: How many items to work on at the same time, each in a thread.
    :param stop: Set when the first error is raised. Work that sees it may end early, with any error.
    :param discard: Called with each result that is not returned.
    """
    waiting: SimpleQueue[tuple[int, Item]] = SimpleQueue()
    for numbered in enumerate(items):
        waiting.put(numbered)
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
    results: dict[int, Result] = {}
    lock = Lock()

    def run() -> None:
        with suppress(Empty):
            while not stop.is_set():
                number, item = waiting.get_nowait()
                try:
                    result = work(item)
                except BaseException as error:
                    outcomes.put(error)
                    return
                with lock:
                    if stop.is_set():
                        discard(result)
                    else:
                        results[number] = result
                outcomes.put(None)

    try:
        if not _start_threads(run, min(at_once, len(items))):
            run()
        for _ in items:
            if error := outcomes.get():
                raise error
    except BaseException:
        with lock:
            stop.set()
            for result in results.values():
                discard(result)
        raise
    return [results[number] for number in range(len(items))]


def _start_threads(run: Callable[[], None], count: int) -> int:
    """Start threads if there is work for several, and return how many the machine allowed."""
    if count < 2:
        return 0
    for started in range(count):
        # With the context of this thread, so that log lines say which task they belong to.
        thread = Thread(target=copy_context().run, args=[run], name="modelscope-worker", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine's limit of threads
            return started
    return count


class _Exchange:
    """One request and its response, which arrives in another thread."""

    def __init__(self, call: HttpRequest, account: Account, timeout: float) -> None:
        self._call = call
        self._account = account
        self._timeout = timeout
        self._departure = _Departure()
        self._head: tuple[int, Mapping[str, str]] | None = None
        self._body = bytearray()

    def run(self) -> HttpResponse:
        """Send the request and return the response."""
        from airflow_provider_modelscope.protocol.messages import MAX_BODY

        call, adapter = self._call, _observing_adapter_class()()
        _departure.set(self._departure)
        with new_session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, adapter)
            with session.request(
                call.method,
                call.url,
                headers=dict(call.headers),
                data=call.body,
                timeout=self._timeout,
                stream=True,
                **request_options(call.url, self._account),
            ) as response:
                self._head = (response.status_code, response.headers)
                # Not by iter_content, which loses what has come if the rest of a chunk does not. So does
                # urllib3 before 2.2, which has no read1.
                read = getattr(response.raw, "read1", response.raw.read)
                while part := read(CHUNK, decode_content=True):
                    self._body += part
                    if len(self._body) >= MAX_BODY:
                        break
        return self._received(response.status_code, response.headers)

    def response_without_end(self) -> HttpResponse | None:
        """Return the response to a submission if only its end is missing: it may contain an id that is paid.

        An object of JSON is complete even if a length or a proxy says that more should follow.
        """
        with suppress(ValueError, RecursionError):
            is_submission = self._call.method == "POST"
            if self._head and is_submission and isinstance(json.loads(bytes(self._body)), dict):
                return self._received(*self._head)
        return None

    def give_up(self, reason: str) -> ServiceUnreachableError | ServiceUnavailableError:
        """Return whether the request may have been sent, as an error. If not, it never will be."""
        reason = _ADDRESS.sub("", reason)
        base_url = self._account.base_url
        site = base_url if self._call.url.startswith(base_url) else "://".join(urlsplit(self._call.url)[:2])
        if self._departure.give_up():
            return ServiceUnavailableError(f"No response from {site}: {reason}")
        return ServiceUnreachableError(f"Cannot reach {site}: {reason}")

    def _received(self, status_code: int, headers: Mapping[str, str]) -> HttpResponse:
        from airflow_provider_modelscope.protocol.messages import MAX_BODY, HttpResponse

        return HttpResponse(status_code=status_code, headers=headers, body=bytes(self._body[:MAX_BODY]))


class _FinalResponse(HTTPResponse):
    """The final response: of the informational ones before it, :mod:`http.client` skips status 100 only."""

    def begin(self) -> None:
        """Read the status and the headers."""
        super().begin()
        while 101 < self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]  # else nothing is read
            super().begin()


@cache
def _observing_adapter_class() -> type[HTTPAdapter]:
    """Return adapters whose connections report when they are complete, before anything is sent."""
    from requests.adapters import HTTPAdapter

    @cache
    def observed(pool_class: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        class Connection(pool_class.ConnectionCls):  # type: ignore[misc, name-defined]
            response_class = _FinalResponse

            def connect(self) -> None:
                super().connect()
                _departure.get().connected()

        return type(pool_class.__name__, (pool_class,), {"ConnectionCls": Connection})

    def observe(manager: PoolManager) -> PoolManager:
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: observed(pool) for scheme, pool in pools.items()}
        return manager

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            observe(self.poolmanager)

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> PoolManager:
            return observe(super().proxy_manager_for(*args, **kwargs))

    return Adapter
