"""Where a connection may go: proxies, TLS trust, and the addresses that images may come from."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import ImageNotAllowedError
from airflow_provider_modelscope.redaction import without_query

if TYPE_CHECKING:
    from requests.adapters import HTTPAdapter

    from airflow_provider_modelscope.protocol.account import Account

_NAT64 = IPv6Network("64:ff9b::/96")  # its last 32 bits are the IPv4 address that it stands for


def proxy_for(url: str, account: Account) -> str | None:
    """Return the proxy to reach a URL through: the connection's own, or else the environment's.

    There is none on the way to this machine: the token would leave it, over http in the clear.
    """
    from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

    if is_loopback(urlsplit(url).hostname or ""):
        return None
    proxy = account.proxy or select_proxy(url, get_environ_proxies(url))
    return str(prepend_scheme_if_needed(proxy, "http")) if proxy else None  # type: ignore[no-untyped-call]


def proxies_for(url: str, account: Account) -> dict[str, str]:
    """Return the proxy for a URL, to be given with a request: a session's yields to the environment's."""
    proxy = proxy_for(url, account) or ""
    return {"http": proxy, "https": proxy}


def checked_url(url: str, account: Account) -> str:
    """Return the URL in the spelling that will be sent, if images may come from there.

    :raises ImageNotAllowedError: where its scheme, its user or an address in it says that they may not.
    """
    import requests

    shown = without_query(url)
    if not account.may_fetch(url):
        raise ImageNotAllowedError(
            f"{shown} is no https address: images are fetched from no other, or over http where the "
            "connection's own host is reached over http"
        )
    try:
        url = requests.Request("GET", url).prepare().url or ""
    except (requests.RequestException, ValueError):
        raise ImageNotAllowedError(f"{shown} is no URL of an image") from None
    if "@" in urlsplit(url).netloc:
        raise ImageNotAllowedError(f"{shown} comes with a user or password: images are fetched without any")
    if address := _literal(urlsplit(url).hostname or ""):
        _check(address, url, account)
    return url


def checking_adapter(url: str, account: Account) -> HTTPAdapter:
    """Return what connects to the URL's host, and looks whom it has reached before it sends anything.

    A look into the DNS beforehand would prove nothing: its next answer may be another. Through a proxy it
    is the proxy that connects, wherever the name leads it, and its own address says nothing of the image's:
    there only an address that stands in the URL is checked, and the proxy's rules must do the rest.
    """
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def check(connected: socket.socket) -> socket.socket:
        try:
            _check(ip_address(connected.getpeername()[0]), url, account)
        except BaseException:
            connected.close()
            raise
        return connected

    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return check(super()._new_conn())

    class TLSConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return check(super()._new_conn())

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": TLSPool}

    return Adapter()


def _check(address: IPv4Address | IPv6Address, url: str, account: Account) -> None:
    """See that images may come from an address.

    :raises ImageNotAllowedError: where it is not public, the API is not at such an address too, and the
        connection does not name the host.
    """
    kind = _kind(address)
    host = urlsplit(url).hostname or ""
    if kind and kind not in _kinds_of_api(account) and not account.allows_images_from(host):
        raise ImageNotAllowedError(
            f"{without_query(url)} is at {address}, which is {kind}: images may come from public addresses, "
            "and from others only where the API is at such a one too. If this host is to be trusted, name it "
            f"in allowed_image_hosts in the connection's extra: {host}"
        )


def _kinds_of_api(account: Account) -> set[str]:
    host = urlsplit(account.base_url).hostname or ""
    if address := _literal(host):
        return {_kind(address)}
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # only the proxy knows it
        return set()
    return {_kind(ip_address(str(entry[4][0]))) for entry in found}


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host spells, in whatever way: ``127.1``, ``2130706433``, ``0x7f.1``."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    with suppress(ValueError):
        return ip_address(host)
    with suppress(OSError, ValueError):
        return IPv4Address(socket.inet_aton(host))
    return None


def _kind(address: IPv4Address | IPv6Address) -> str:
    """Return in a word why an address is not public, nothing where it is."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) % 2**32)
        if inner:
            return _kind(inner)
    kinds = {
        "unspecified": address.is_unspecified,
        "loopback": address.is_loopback,
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "private": address.is_private or getattr(address, "is_site_local", False),
        "reserved": address.is_reserved or not address.is_global,
    }
    return next((kind for kind, is_so in kinds.items() if is_so), "")


def is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def is_host_name(name: str) -> bool:
    """Whether a URL's host may be one: a name of DNS, or an IPv6 address."""
    return ":" in name or bool(re.fullmatch(r"(?=.{1,253}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?", name))


def is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
