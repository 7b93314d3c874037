"""Serves ``service`` over HTTP, and runs it in a thread as ``Emulator``."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from airflow_provider_modelscope.emulator.credit import CREDIT
from airflow_provider_modelscope.emulator.drawing import draw
from airflow_provider_modelscope.emulator.service import Response, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from types import TracebackType

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request body. Image editing sends images in it, as Base64."""

log = logging.getLogger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Reduce aiohttp's traceback for a client that does not speak HTTP to one line."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.msg = (
            "Invalid HTTP request, responded with status %d. Use http://, not https://, in the client"
        )
        record.args = (record.exc_info[1].code,)
        record.exc_info = None
    return True


log.addFilter(_without_traceback)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request that arrived, with its response."""

    arrived_at: float
    """In seconds of ``time.monotonic``."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    status: int | None
    """None if the connection was closed without a response."""
    response_body: bytes
    """As far as it was sent."""
    generation_id: str
    note: str

    @property
    def json(self) -> Any:
        """The body of the request, parsed. None if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def first_id() -> int:
    """Return an id that no earlier emulator used, so that no stored image is overwritten."""
    return time.time_ns() // 1000


@asynccontextmanager
async def serving(
    service: Service, record: Callable[[Exchange], None], host: str, port: int
) -> AsyncIterator[str]:
    """Serve until the block ends; yield the base URL.

    :param record: Called with each exchange, before its response is sent.
    :param port: 0 chooses a free one.
    :raises OSError: if it cannot listen on this host and port.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        body: bytes | None
        try:
            body = await request.read()
        except (web.HTTPRequestEntityTooLarge, web.RequestPayloadError, ConnectionError):
            body = None
        now = time.monotonic()
        response = service.respond(
            request.method, request.path, request.headers, body, query=request.query, now=now
        )
        content = response.body
        if response.drawn_from is not None:
            content = await asyncio.to_thread(draw, response.drawn_from, response.image_format)
        sent = {"midway": content[: len(content) // 2], "before": b""}.get(response.cut, content)
        record(
            Exchange(
                arrived_at=now,
                method=request.method,
                path=request.path,
                headers=request.headers,
                body=body or b"",
                status=None if response.cut == "before" else response.status,
                response_body=sent,
                generation_id=response.generation_id,
                note=response.note,
            )
        )
        return await _send(request, response, content, sent)

    application = web.Application(client_max_size=MAX_BODY)
    application.router.add_route("*", "/{path:(?s:.*)}", handle)
    runner = web.AppRunner(application, access_log=None, logger=log, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
        yield f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
    finally:
        await site.stop()
        for _ in range(5):  # until aiohttp knows the connections that were just accepted
            await asyncio.sleep(0)
        await runner.cleanup()


async def _send(request: web.Request, response: Response, content: bytes, sent: bytes) -> web.StreamResponse:
    headers = {**response.headers, "Content-Type": response.content_type, "Content-Length": str(len(content))}
    if response.cut == "end":
        headers["Content-Length"] += "0"  # more than will be sent
    if not response.cut:
        return web.Response(status=response.status, body=content, headers=headers)
    stream = web.StreamResponse(status=response.status, headers=headers)
    if response.cut != "before":
        await stream.prepare(request)
        await stream.write(sent)
    if request.transport is not None:
        request.transport.close()
    return stream


class Emulator:
    """The emulator in a thread, on a free port of 127.0.0.1. Use it as a context manager.

    :param duration: Seconds that a generation takes, from 0.
    :param max_running: Number of generations that an account (a token) may run at the same time, from 1.
    :param tokens: The valid tokens. Empty: every token is valid.
    :param faults: Faults such as ``submit:429:2``, see ``faults``.
    :param credit: What each account has at the start, from 0.
    :param retired_models: Models that are no longer served.
    :param without: Traits such as ``one-at-a-time`` that the service does not have, see ``traits``.
    """

    base_url: str
    """For example ``http://127.0.0.1:43210``. Set when it has started."""

    requests: list[Exchange]
    """The requests that arrived, in order, with their responses."""

    def __init__(
        self,
        *,
        duration: float = 0.0,
        max_running: int = 1,
        tokens: Iterable[str] = (),
        faults: Iterable[str] = (),
        credit: float = CREDIT,
        retired_models: Iterable[str] = (),
        without: Iterable[str] = (),
    ) -> None:
        self._service = Service(
            duration=duration,
            max_running=max_running,
            tokens=tokens,
            faults=faults,
            credit=credit,
            retired_models=retired_models,
            without=without,
            first_id=first_id(),
        )
        self._started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="modelscope-emulator", daemon=True
        )
        self.requests = []

    @property
    def accepted(self) -> int:
        """How many generations were created, whether or not the client received the response."""
        return self._service.accepted

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of each generation in seconds of ``time.monotonic``, in the order of submission."""
        return self._service.spans

    @property
    def served(self) -> dict[str, bytes]:
        """The bytes last sent with status 200, by the path of the image."""
        return {
            exchange.path: exchange.response_body
            for exchange in self.requests
            if exchange.path.startswith("/images/") and exchange.status == 200
        }

    def fail(self, fault: str) -> None:
        """Inject a fault from now on, for example ``poll:500:3``."""
        self._service.faults.add(fault)

    def finish(self) -> None:
        """Finish all generations that are running.

        So a test can use a long ``duration`` without waiting for it.
        """
        self._run(lambda: self._service.finish(now=time.monotonic()))

    def grant(self, token: str, credit: float) -> None:
        """Add credit to an account, as ModelScope does when a person visits its site.

        :raises ValueError: if the credit is not a number from 0, or the token is not valid.
        """
        self._run(lambda: self._service.grant(token, credit))

    def _run(self, change: Callable[[], None]) -> None:
        async def run() -> None:  # in the thread of the service, which is not thread-safe
            change()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def __enter__(self) -> Emulator:
        self._thread.start()
        self.base_url, self._loop, self._stop = self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        stop = asyncio.Event()
        try:
            async with serving(self._service, self.requests.append, "127.0.0.1", 0) as base_url:
                self._started.set_result((base_url, asyncio.get_running_loop(), stop))
                await stop.wait()
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
