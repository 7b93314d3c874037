"""A StatsD server that keeps Airflow's metrics."""

from __future__ import annotations

import socketserver
import threading
from typing import Self


class StatsD:
    """Listens on a free UDP port of this machine. Use it as a context manager.

    ``metrics`` holds the values of each metric, such as ``{"airflow.ti.start": ["1|c"]}``.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[str]] = {}
        metrics = self.metrics

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                for line in self.request[0].decode().splitlines():
                    name, _, value = line.partition(":")
                    metrics.setdefault(name, []).append(value)

        self._server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """The settings with which Airflow sends its metrics here."""
        return {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(self._server.server_address[1]),
        }

    def count(self, name: str) -> int:
        """Return the sum of a counter of this provider."""
        return sum(int(value.removesuffix("|c")) for value in self.metrics.get(f"airflow.{name}", []))

    def seconds(self, name: str) -> list[float]:
        """Return the values of a timer of this provider, in seconds."""
        return [float(value.removesuffix("|ms")) / 1000 for value in self.metrics.get(f"airflow.{name}", [])]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
