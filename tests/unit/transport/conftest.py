"""The network that the transport's tests see: no proxies from the environment, and a DNS of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

PUBLIC = "8.8.8.8"  # address of every name that a test does not resolve; nothing connects to it
Resolve = Callable[..., None]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Set the addresses that a name resolves to, one after the other; the last is repeated.

    ``ports`` are the ports to connect to instead: a test cannot listen on 443.
    """
    other_ports: dict[tuple[str, int], int] = {}
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            ip_address(host)
        except ValueError:
            addresses = known.get(host, [PUBLIC])
            port = other_ports.get((host, port), port)
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def resolve(host: str, *addresses: str, ports: Mapping[int, int] | None = None) -> None:
        known[host] = list(addresses)
        other_ports.update({(host, port): other for port, other in (ports or {}).items()})

    return resolve
