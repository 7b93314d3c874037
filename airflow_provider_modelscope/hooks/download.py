"""One output image: from where the service put it into a temporary file, over requests.

Here stands where images may come from. Nothing here tries again, and nothing is stored.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from airflow_provider_modelscope.exceptions import (
    ImageError,
    ImageGoneError,
    ImageRefusedError,
)
from airflow_provider_modelscope.hooks.transport import CHUNK, SLOWEST, new_session, proxies_for

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.image import Image

MAX_REDIRECTS = 3

_NAT64 = IPv6Network("64:ff9b::/96")  # its last 32 bits are the IPv4 address that it stands for


def download(url: str, account: Account) -> Image:
    """Return an output image, whole and decodable, in a temporary file that goes when it is closed.

    :raises ImageGoneError: where the URL works no longer.
    :raises ImageRefusedError: where the image is too large, or where images may not come from.
    :raises ImageNotStoredError: where the temporary folder has no room for it.
    :raises ImageError: where it cannot be had whole.
    """
    from airflow_provider_modelscope.image import Image

    with new_session() as session, _follow(session, url, account) as response:
        try:
            return Image.from_chunks(_chunks(response, account))
        except (ImageError, ImageRefusedError) as error:
            answer = (
                f"{response.status_code}, content type {response.headers.get('Content-Type', '')[:100]!r}"
            )
            error.message = f"{without_query(url)} (answer {answer}): {error.message}"
            raise


def without_query(url: str) -> str:
    """Return the URL as it may be shown: who holds a signed query, or a password, has the image."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return url.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _follow(session: requests.Session, url: str, account: Account) -> requests.Response:
    """Return the open answer behind at most three redirects, each to where images may come from."""
    given = url
    for _ in range(MAX_REDIRECTS + 1):
        url = _checked(url, account)
        for scheme in ("https://", "http://"):
            session.mount(scheme, _checking_adapter(url, account))
        response = _get(session, url, account)
        if response.ok and not response.is_redirect:
            return response
        response.close()
        if not response.is_redirect:
            gone = response.status_code in (403, 404, 410)
            kind = ImageGoneError if gone else ImageError
            problem = "works no longer" if gone else "cannot be had now"
            raise kind(f"The image's URL {problem}: {without_query(url)}", code=response.status_code)
        try:
            url = urljoin(url, response.headers["Location"])
        except ValueError:  # such as an unclosed [ of an IPv6 address
            raise ImageRefusedError(f"{without_query(url)} redirects to what is no URL") from None
    raise ImageRefusedError(
        f"{without_query(given)} is behind more than {MAX_REDIRECTS} redirects: no more are followed"
    )


def _get(session: requests.Session, url: str, account: Account) -> requests.Response:
    """Return the open answer of one host."""
    from urllib3.exceptions import HTTPError

    try:
        return session.get(
            url,
            headers={"Accept-Encoding": "identity"},
            timeout=account.request_timeout,
            verify=account.verify,  # set on the session, the environment's bundle would win
            allow_redirects=False,
            stream=True,
            proxies=proxies_for(url, account),
        )
    except (OSError, HTTPError, ValueError) as error:  # all that requests raises is an OSError
        reason = _reason(error)
    # Raised here, without its cause, which holds the URL whole.
    raise ImageError(f"{without_query(url)} cannot be downloaded: {reason}")


def _chunks(response: requests.Response, account: Account) -> Iterator[bytes]:
    """Yield what comes, as long as it is not too much, and see that it is all that was promised."""
    import requests

    most = account.max_image_bytes
    end = time.monotonic() + most / SLOWEST + account.request_timeout
    promised = response.headers.get("Content-Length", "")
    expected = int(promised) if re.fullmatch("[0-9]{1,18}", promised) else None
    if expected is not None and expected > most:
        raise ImageRefusedError(
            f"Its {expected} bytes are more than the connection's max_image_bytes, {most}"
        )
    size = 0
    try:
        for chunk in response.iter_content(CHUNK):
            size += len(chunk)
            if size > most:
                raise ImageRefusedError(f"It is larger than the connection's max_image_bytes, {most}")
            if time.monotonic() > end:
                raise ImageError(f"It came too slowly: {size} bytes are here when all should be")
            yield chunk
    except requests.RequestException as error:
        raise ImageError(f"It broke off: {_reason(error)}") from None
    # Counted as they came over the wire: a server may compress though it was asked not to.
    if expected is not None and response.raw.tell() != expected:
        raise ImageError(f"It broke off: {response.raw.tell()} of {expected} bytes came")


def _reason(error: Exception) -> str:
    """Return what requests says without the URL's query, which may be a signature."""
    return re.sub(r"\?\S+", "?...", str(error))


def _checked(url: str, account: Account) -> str:
    """Return the URL in the spelling that will be sent, if images may come from there.

    :raises ImageRefusedError: where its scheme, its user or an address in it says that they may not.
    """
    import requests

    shown = without_query(url)
    if not account.may_fetch(url):
        raise ImageRefusedError(
            f"{shown} is no https address: images are fetched from no other, or over http where the "
            "connection's own host is reached over http"
        )
    try:
        url = requests.Request("GET", url).prepare().url or ""
    except (requests.RequestException, ValueError):
        raise ImageRefusedError(f"{shown} is no URL of an image") from None
    if "@" in urlsplit(url).netloc:
        raise ImageRefusedError(f"{shown} comes with a user or password: images are fetched without any")
    if address := _literal(urlsplit(url).hostname or ""):
        _check(address, url, account)
    return url


def _checking_adapter(url: str, account: Account) -> HTTPAdapter:
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

    :raises ImageRefusedError: where it is not public, the API is not at such an address too, and the
        connection does not name the host.
    """
    kind = _kind(address)
    host = urlsplit(url).hostname or ""
    if kind and kind not in _kinds_of_api(account) and not account.takes_images_from(host):
        raise ImageRefusedError(
            f"{without_query(url)} is at {address}, which is {kind}: images may come from public addresses, "
            "and from others only where the API is at such a one too. If this host is to be trusted, name it "
            f"in image_hosts in the connection's extra: {host}"
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
