"""A TCP relay before a service, with what can go wrong on the wire. It knows as much HTTP as it needs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine
    from concurrent.futures import Future
    from types import TracebackType

CHUNK = 64 * 1024
HEAD_END = b"\r\n\r\n"
BODY_BYTES = 1000  # of an upload that get through before it breaks off
REFUSALS = {
    "403": b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    "503": b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}

Fault = Literal["", "403", "503", "cut", "hang", "deaf", "mute"]


class Proxy:
    """Relays to one service; use it as a context manager.

    :param url: The service's.
    :param tls: Speak TLS with the clients, with this certificate; the service is spoken to without.
    """

    url: str
    """Where to reach the service through it."""

    fault: Fault = ""
    """What goes wrong with requests that begin from now on. ``403``, ``503``: they are refused so. ``cut``:
    an upload (PUT, POST) breaks off within its body. ``hang``: it stops there. ``deaf``: a GET hangs.
    ``mute``: a POST gets through, and its answer does not."""

    caught = 0
    """How many requests that happened to."""

    heads: list[bytes]
    """The first line and the headers of each request."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        service = urlsplit(url)
        self._tls = tls
        self.heads = []
        self._service = service.hostname, service.port
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def down(self) -> None:
        """Refuse connections, and drop those that there are."""
        self._run(self._close())

    def up(self) -> None:
        """Take connections again, at the same port."""
        self._run(self._listen())

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.up()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        done.result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._relay(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Carry bytes both ways until one side ends, or a fault does it."""
        service, to_service = await asyncio.open_connection(*self._service)
        is_mute = False

        async def carry_requests() -> None:
            nonlocal is_mute
            left = CHUNK * CHUNK
            while data := await client.read(CHUNK):
                head, end, _ = data.partition(HEAD_END)
                if end and head.partition(b"\r\n")[0].endswith(b"HTTP/1.1"):
                    self.heads.append(head)
                # A client awaits an answer before it asks again, so what is read may begin a request.
                match self.fault, data.partition(b" ")[0]:
                    case ("403" | "503") as status, (b"PUT" | b"POST" | b"HEAD" | b"GET") as method:
                        self.caught += 1
                        to_client.write(_refusal(status, with_body=method != b"HEAD"))
                        await to_client.drain()
                        return await _ignore(client)
                    case "cut" | "hang", b"PUT" | b"POST":
                        left = data.index(HEAD_END) + len(HEAD_END) + BODY_BYTES
                    case "deaf", b"GET":
                        self.caught += 1
                        return await _ignore(client)
                    case "mute", b"POST":
                        self.caught += 1
                        is_mute = True
                to_service.write(data[:left])
                await to_service.drain()
                left -= len(data)
                if left <= 0:
                    self.caught += 1
                    if self.fault == "hang":
                        await _ignore(client)
                    return None

        async def carry_answers() -> None:
            while data := await service.read(CHUNK):
                if not is_mute:
                    to_client.write(data)
                    await to_client.drain()

        ways = [asyncio.create_task(carry_requests()), asyncio.create_task(carry_answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if ways[1].done():  # what the service said at last is still to be sent
                to_client.close()
                await to_client.wait_closed()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_client.transport.abort()
            to_service.transport.abort()


def _refusal(status: str, *, with_body: bool) -> bytes:
    body = REFUSALS[status]
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + with_body * body


async def _ignore(client: asyncio.StreamReader) -> None:
    """Read until the client goes away."""
    while await client.read(CHUNK):
        pass
