"""The HTTP shell around the service, and ``Emulator``, which runs it in a thread. No rule lives here."""

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

from airflow_provider_modelscope.emulator.drawing import draw
from airflow_provider_modelscope.emulator.service import Answer, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from types import TracebackType

MAX_BODY = 32 * 1024 * 1024
"""Bytes of a request body; image editing sends whole images as base64."""

log = logging.getLogger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Make one line of what aiohttp logs where a client does not speak HTTP: the fault is not in here."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.msg = "What came is no HTTP request, and was answered with %d. Is the client's URL https?"
        record.args = (record.exc_info[1].code,)
        record.exc_info = None
    return True


log.addFilter(_without_traceback)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request that reached the emulator, and what became of it."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    status: int | None
    """The HTTP status answered; None when the connection was closed without an answer."""
    answer: bytes
    """The body answered, as far as it was sent."""
    generation_id: str
    note: str

    @property
    def json(self) -> Any:
        """The body of the request as parsed JSON, or None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def first_id() -> int:
    """Return an id that no earlier emulator gave: what is stored under an id must not be overwritten."""
    return time.time_ns() // 1000


@asynccontextmanager
async def serving(
    service: Service, record: Callable[[Exchange], None], host: str, port: int
) -> AsyncIterator[str]:
    """Serve until the block ends; yield the base URL.

    :param record: called with each exchange, before its answer is sent.
    :param port: 0 picks a free one.
    :raises OSError: when the host and port cannot be listened on.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        body: bytes | None
        try:
            body = await request.read()
        except (web.HTTPRequestEntityTooLarge, web.RequestPayloadError, ConnectionError):
            body = None
        answer = service.answer(request.method, request.path, request.headers, body, now=time.monotonic())
        content = answer.body
        if answer.picture is not None:
            content = await asyncio.to_thread(draw, answer.picture, answer.image_format)
        sent = {"": content, "midway": content[: len(content) // 2], "before": b""}[answer.cut]
        record(
            Exchange(
                method=request.method,
                path=request.path,
                headers=request.headers,
                body=body or b"",
                status=None if answer.cut == "before" else answer.status,
                answer=sent,
                generation_id=answer.generation_id,
                note=answer.note,
            )
        )
        return await _send(request, answer, content, sent)

    application = web.Application(client_max_size=MAX_BODY)
    application.router.add_route("*", "/{path:(?s:.*)}", handle)
    runner = web.AppRunner(application, access_log=None, logger=log, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _send(request: web.Request, answer: Answer, content: bytes, sent: bytes) -> web.StreamResponse:
    headers = {**answer.headers, "Content-Type": answer.content_type, "Content-Length": str(len(content))}
    if not answer.cut:
        return web.Response(status=answer.status, body=content, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    if answer.cut == "midway":
        await response.prepare(request)
        await response.write(sent)
    if request.transport is not None:
        request.transport.close()
    return response


class Emulator:
    """The emulator in a background thread, on a free loopback port; use it as a context manager.

    :param duration: Seconds that each generation takes, from 0.
    :param max_running: how many generations an account (a token) may have running, from 1.
    :param tokens: the valid tokens; none means that any token is valid.
    :param faults: switches such as ``submit:429:2``; see ``faults``.
    """

    base_url: str
    """E.g. ``http://127.0.0.1:43210``, once started."""

    requests: list[Exchange]
    """What reached the emulator, in order."""

    def __init__(
        self,
        *,
        duration: float = 0.0,
        max_running: int = 1,
        tokens: Iterable[str] = (),
        faults: Iterable[str] = (),
    ) -> None:
        self._service = Service(
            duration=duration, max_running=max_running, tokens=tokens, faults=faults, first_id=first_id()
        )
        self._started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="modelscope-emulator", daemon=True
        )
        self.requests = []

    @property
    def accepted(self) -> int:
        """How many submissions made a generation, whether or not the client was told."""
        return self._service.accepted

    @property
    def spans(self) -> list[tuple[float, float]]:
        """From when to when each generation runs, in the order of submission, in seconds of one clock."""
        return self._service.spans

    @property
    def served(self) -> dict[str, bytes]:
        """The bytes last sent with status 200 for each image path."""
        return {
            exchange.path: exchange.answer
            for exchange in self.requests
            if exchange.path.startswith("/images/") and exchange.status == 200
        }

    def fail(self, switch: str) -> None:
        """Turn a fault on from now, e.g. ``poll:500:3``."""
        self._service.faults.add(switch)

    def finish(self) -> None:
        """Let what runs now be finished, however many ``duration`` it was to take.

        So a test can give a generation hours, and end it when what it tests has happened.
        """
        finished = Future[None]()

        def finish() -> None:  # in the thread that answers: nothing is answered meanwhile
            self._service.finish(now=time.monotonic())
            finished.set_result(None)

        self._loop.call_soon_threadsafe(finish)
        finished.result()

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
