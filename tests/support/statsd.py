"""The end of Airflow's metrics: a server of StatsD's protocol that keeps what it is told."""

from __future__ import annotations

import socketserver
import threading
from typing import Self


class StatsD:
    """Listens on a free UDP port of this machine, from ``with`` on.

    ``said`` holds each metric with its values, such as ``{"airflow.ti.start": ["1|c"]}``.
    """

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}
        said = self.said

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                for line in self.request[0].decode().splitlines():
                    name, _, value = line.partition(":")
                    said.setdefault(name, []).append(value)

        self._server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What tells an Airflow to send its metrics here."""
        return {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(self._server.server_address[1]),
        }

    def count(self, name: str) -> int:
        """Return what a counter of ours has come to."""
        return sum(int(value.removesuffix("|c")) for value in self.said.get(f"airflow.{name}", []))

    def seconds(self, name: str) -> list[float]:
        """Return what a timer of ours was told."""
        return [float(value.removesuffix("|ms")) / 1000 for value in self.said.get(f"airflow.{name}", [])]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
