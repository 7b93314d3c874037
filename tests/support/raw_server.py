"""A server that sends raw bytes, whatever the request: for what no HTTP library would send."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl

Reply = bytes | Callable[[socket.socket], None]


class RawServer:
    """A server on loopback. Each connection gets the next reply once it has sent a request.

    The last reply is repeated.

    :param replies: Bytes to send, or a function that is called with the connection.
    :param tls: Context of a TLS server.
    :param reads_request: Whether to read a request first. Otherwise ``heads`` stays empty.
    """

    def __init__(
        self, *replies: Reply, tls: ssl.SSLContext | None = None, reads_request: bool = True
    ) -> None:
        self.replies = list(replies)
        self.heads: list[str] = []  # one for each connection, empty if it sent nothing
        self.closing = threading.Event()
        self._tls = tls
        self._reads_request = reads_request
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self._last = socket.socket()  # its connection ends the server
        self._last.bind(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._last.connect(("127.0.0.1", self.port))
        for thread in self._threads:  # the first is the one that starts the others
            thread.join()
        self._last.close()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            connection, peer = self._socket.accept()
            if peer == self._last.getsockname():
                connection.close()
                return
            reply = self.replies[0] if len(self.replies) == 1 else self.replies.pop(0)
            self._threads.append(threading.Thread(target=self._serve, args=[connection, reply]))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, reply: Reply) -> None:
        connection.settimeout(5)
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                request = b""
                if self._reads_request:
                    request = _request(connection)
                    self.heads.append(request.partition(b"\r\n\r\n")[0].decode("latin-1"))
                if callable(reply):
                    reply(connection)
                elif request:
                    connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                while connection.recv(65536):  # closed with bytes unread, the client would see a reset
                    pass
        except OSError:
            connection.close()  # the client has gone, or has refused the handshake


def _request(connection: socket.socket) -> bytes:
    """Read a request with its body; what the client has sent of it, if it ends early."""
    request = b""
    while part := connection.recv(65536):
        request += part
        head, end, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
        if end and len(body) >= (int(length[1]) if length else 0):
            break
    return request


def http(body: bytes = b"", *headers: bytes | str, status: bytes | str = b"200 OK") -> bytes:
    """Return an HTTP response with exactly these headers."""
    lines = [line.encode() if isinstance(line, str) else line for line in (status, *headers)]
    return b"\r\n".join([b"HTTP/1.1 " + lines[0], *lines[1:], b"", body])


def http_with_length(
    body: bytes, *headers: bytes | str, status: bytes | str = b"200 OK", length: int | None = None
) -> bytes:
    """Return an HTTP response that gives its length, by default the right one, and ends the connection."""
    length = len(body) if length is None else length
    return http(body, f"Content-Length: {length}", "Connection: close", *headers, status=status)
