"""A small S3 server over TLS with the manners of other servers than Amazon's, and with faults of a store."""

from __future__ import annotations

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import ssl
    from email.message import Message

# What a server with each of these manners answers to a PUT of an object.
_REJECTED = {
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "skewed": (403, "RequestTimeTooSkewed", "The difference between the times is too large."),
    "elsewhere": (400, "AuthorizationHeaderMalformed", "The region is wrong; expecting 'eu-west-1'"),
    "moved": (301, "PermanentRedirect", "The bucket must be addressed with the specified endpoint."),
    "invalid": (400, "InvalidArgument", "This storage class is not available."),
}


class Request(NamedTuple):
    """A request that the server received."""

    method: str
    headers: Message

    @property
    def access_key(self) -> str:
        """The access key that it is signed with."""
        return self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]


class MannersServer:
    """The server. Use it as a context manager.

    :param tls: Its certificate.
    """

    manners: set[str]
    """What it does:

    - ``oss`` rejects aws-chunked; ``lock`` requires a checksum.
    - ``b2`` rejects the headers of checksums other than Content-MD5; so does ``r2``, as not implemented.
    - ``expired``, ``skewed``, ``elsewhere``, ``moved`` and ``invalid`` reject each PUT and GET.
    - ``flip`` stores one wrong bit; ``damage`` receives one.
    - ``silent`` does not say the SHA-256; ``own-etag`` has ETags that are no MD5.
    - ``kms`` has the ETag of an encrypted object, and forbids a HEAD for the checksum.
    - ``head-403`` and ``head-503`` reject each HEAD; ``late`` does not know the object at the first.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.manners = set()
        self.objects: dict[str, bytes] = {}
        self.checksums: dict[str, str] = {}
        self.requests: list[Request] = []
        server = self

        class Handler(_Handler):
            manners = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    def puts(self) -> list[Request]:
        """Return the requests that sent an object."""
        return [one for one in self.requests if one.method == "PUT"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    manners: MannersServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _respond(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reject(self, status: int, code: str, message: str) -> None:
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self._respond(status, error.encode(), Content_Type="application/xml")

    def _begin(self) -> tuple[str, set[str]]:
        self.manners.requests.append(Request(self.command, self.headers))
        return unquote(urlsplit(self.path).path), self.manners.manners

    def do_PUT(self) -> None:
        name, manners = self._begin()
        is_chunked = "aws-chunked" in self.headers.get("Content-Encoding", "")
        content = self._chunks() if is_chunked else self.rfile.read(int(self.headers["Content-Length"]))
        sha256, md5 = self.headers.get("x-amz-checksum-sha256"), self.headers.get("Content-MD5")
        for manner in manners & _REJECTED.keys():
            return self._reject(*_REJECTED[manner])
        if "oss" in manners and is_chunked:
            problem = "aws-chunked encoding is not supported with the specified x-amz-content-sha256 value."
            return self._reject(400, "InvalidArgument", problem)
        if any("checksum" in header.lower() for header in self.headers):
            if "b2" in manners:
                return self._reject(400, "InvalidArgument", "Unsupported header 'x-amz-checksum' received")
            if "r2" in manners:
                return self._reject(501, "NotImplemented", "Header 'x-amz-checksum' not implemented")
        elif "lock" in manners and not md5:
            return self._reject(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- is required")
        if "damage" in manners:
            content = _flipped(content)
        if sha256 not in (None, _base64("sha256", content)) or md5 not in (None, _base64("md5", content)):
            return self._reject(400, "BadDigest", "The checksum did not match what we received.")
        if "flip" in manners:
            content = _flipped(content)
        self.manners.objects[name] = content
        return self._respond(200, ETag=f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"')

    def do_HEAD(self) -> None:
        name, manners = self._begin()
        content = self.manners.objects.get(name)
        asks = self.headers.get("x-amz-checksum-mode") == "ENABLED"
        if "head-403" in manners or ("kms" in manners and asks):
            return self._respond(403)
        if "head-503" in manners:
            return self._respond(503)
        if asks and not manners.isdisjoint({"b2", "r2"}):
            return self._respond(400 if "b2" in manners else 501)
        if content is None or "late" in manners:
            manners.discard("late")
            return self._respond(404)
        headers = {"ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'}
        if not manners.isdisjoint({"own-etag", "kms"}):
            headers["ETag"] = f'"{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"'
        if "kms" in manners:
            headers["x-amz-server-side-encryption"] = "aws:kms"
        if asks and manners.isdisjoint({"silent", "own-etag"}):
            headers["x-amz-checksum-sha256"] = _base64("sha256", content)
        headers["Last-Modified"] = "Sat, 28 Nov 2026 00:00:00 GMT"
        return self._respond(200, b"", len(content), **headers)

    def do_GET(self) -> None:
        name, manners = self._begin()
        for manner in manners & _REJECTED.keys():
            return self._reject(*_REJECTED[manner])
        if "list-type" in self.path:
            return self._respond(200, b"<ListBucketResult></ListBucketResult>")
        content = self.manners.objects.get(name)
        if content is None:
            return self._reject(404, "NoSuchKey", "The specified key does not exist.")
        return self._respond(200, content)

    def do_DELETE(self) -> None:
        name, _ = self._begin()
        self.manners.objects.pop(name, None)
        self._respond(204)

    def _chunks(self) -> bytes:
        """Read a body in aws-chunked encoding, which aiohttp sends in HTTP's chunks."""
        body = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while body:
            line, _, body = body.partition(b"\r\n")
            if not (length := int(line.partition(b";")[0], 16)):
                break
            content, body = content + body[:length], body[length + 2 :]
        return content


def _base64(algorithm: str, content: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, content, usedforsecurity=False).digest()).decode()


def _flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]
