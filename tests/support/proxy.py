"""A TCP proxy before a service that injects network faults. It parses only the HTTP that this needs."""

from __future__ import annotations

import asyncio
import os
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
BODY_BYTES = 1000  # of an upload that get through before it is cut
ERRORS = {
    "403": b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    "503": b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}

PLAIN_504 = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"

Fault = Literal["", "403", "503", "cut", "hang", "hang-get", "lose-response", "plain-504"]


class Proxy:
    """A proxy to one service. Use it as a context manager.

    :param url: URL of the service.
    :param tls: Certificate for TLS with the clients. The proxy speaks plain HTTP with the service.
    :param has_tunnel: Whether clients use it as an HTTP proxy: they send CONNECT before they speak TLS.
    """

    url: str
    """URL of the proxy."""

    fault: Fault = ""
    """The fault of requests that begin from now on. ``403``, ``503``: they are rejected with this status.
    ``cut``: the connection closes within the body of an upload (PUT, POST). ``hang``: the upload hangs there.
    ``hang-get``: a GET hangs. ``lose-response``: a POST gets through, its response does not. ``plain-504``:
    the same, and the proxy writes its own response into the stream, without TLS."""

    caught = 0
    """How many requests had a fault."""

    heads: list[bytes]
    """The first line and the headers of each request."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, has_tunnel: bool = False) -> None:
        service = urlsplit(url)
        self._tls = tls
        self._has_tunnel = has_tunnel
        self.heads = []
        self._service = service.hostname, service.port
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def down(self) -> None:
        """Refuse connections, and close the existing ones."""
        self._run(self._close())

    def up(self) -> None:
        """Accept connections again, at the same port."""
        self._run(self._listen())

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.up()
        scheme = "https" if self._tls and not self._has_tunnel else "http"
        self.url = f"{scheme}://127.0.0.1:{self._port}"
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
        tls = None if self._has_tunnel else self._tls
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=tls)
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
        """Forward bytes both ways until one side closes, or a fault closes the connection."""
        if self._has_tunnel and self._tls:
            await client.readuntil(HEAD_END)
            to_client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await to_client.start_tls(self._tls)
        service, to_service = await asyncio.open_connection(*self._service)
        loses_response = False

        async def forward_requests() -> None:
            nonlocal loses_response
            left = CHUNK * CHUNK
            while data := await client.read(CHUNK):
                head, end, _ = data.partition(HEAD_END)
                if end and head.partition(b"\r\n")[0].endswith(b"HTTP/1.1"):
                    self.heads.append(head)
                # Clients do not pipeline: a request starts at the start of what is read.
                match self.fault, data.partition(b" ")[0]:
                    case ("403" | "503") as status, (b"PUT" | b"POST" | b"HEAD" | b"GET") as method:
                        self.caught += 1
                        to_client.write(_error_response(status, with_body=method != b"HEAD"))
                        await to_client.drain()
                        return await _discard(client)
                    case "cut" | "hang", b"PUT" | b"POST":
                        left = data.index(HEAD_END) + len(HEAD_END) + BODY_BYTES
                    case "hang-get", b"GET":
                        self.caught += 1
                        return await _discard(client)
                    case "lose-response" | "plain-504", b"POST":
                        self.caught += 1
                        loses_response = True
                to_service.write(data[:left])
                await to_service.drain()
                left -= len(data)
                if left <= 0:
                    self.caught += 1
                    if self.fault == "hang":
                        await _discard(client)
                    return None

        async def forward_responses() -> None:
            while data := await service.read(CHUNK):
                if not loses_response:
                    to_client.write(data)
                    await to_client.drain()
                elif self.fault == "plain-504":
                    os.write(to_client.get_extra_info("socket").fileno(), PLAIN_504)
                    return

        directions = [asyncio.create_task(forward_requests()), asyncio.create_task(forward_responses())]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            if directions[1].done():  # the last response is still in the buffer
                to_client.close()
                await to_client.wait_closed()
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            to_client.transport.abort()
            to_service.transport.abort()


def _error_response(status: str, *, with_body: bool) -> bytes:
    body = ERRORS[status]
    head = f"HTTP/1.1 {status} Error\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + with_body * body


async def _discard(client: asyncio.StreamReader) -> None:
    """Read until the client closes the connection."""
    while await client.read(CHUNK):
        pass
