"""Where a connection may go: sessions that add nothing, proxies, TLS trust, and allowed image addresses."""

from __future__ import annotations

import os
import re
import socket
import ssl
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from http.cookiejar import DefaultCookiePolicy
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.exceptions import ImageNotAllowedError, InvalidConnectionError
from airflow_provider_modelscope.redaction import without_query

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

    from airflow_provider_modelscope.protocol.account import Account

USER_AGENT = f"airflow-provider-modelscope/{__version__}"
NO_SOCKS_IN_TRIGGERER = "a triggerer supports no SOCKS"
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")  # the first that is set counts
HTTP_RULE = "Plain http is allowed only if the connection's host uses it too"

_NAT64 = IPv6Network("64:ff9b::/96")  # the last 32 bits of such an address are an IPv4 address


def new_session() -> requests.Session:
    """Return a session that follows no redirect and sends neither cookies nor a login from a .netrc.

    So the token is sent to the origin of the API only.
    """
    session = _session_class()()
    session.headers["User-Agent"] = USER_AGENT
    session.auth = lambda prepared: prepared  # without an auth of its own, requests reads the .netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


@cache  # a class per session would be garbage that costs more than the session
def _session_class() -> type[requests.Session]:
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """Return no target, so that requests neither follows a redirect nor reads its body."""

    return Session


def request_options(url: str, account: Account) -> dict[str, Any]:
    """Return the arguments of requests that decide the proxy and the trusted certificates.

    Pass them with each request: the environment's settings would override those of a session.
    """
    proxy = proxy_for(url, account, no_socks=_no_socks()) or ""
    bundle, source = _ca_bundle(account)
    if bundle and not os.path.exists(bundle):  # noqa: PTH110 - as requests decides
        raise _unreadable_bundle(bundle, source, "it does not exist")
    return {"proxies": {"http": proxy, "https": proxy}, "verify": bundle or False}


@cache
def _no_socks() -> str:
    return "" if find_spec("socks") else "SOCKS needs the package PySocks, which is not installed"


def proxy_for(url: str, account: Account, *, no_socks: str) -> str | None:
    """Return the proxy to reach a URL through: the connection's own, or else the environment's.

    URLs of this machine have none: through a proxy, the token would leave the machine unencrypted.

    :param no_socks: Why a SOCKS proxy cannot be used; empty if it can.
    :raises InvalidConnectionError: if the environment's proxy cannot be used.
    """
    from requests.utils import get_environ_proxies

    host = urlsplit(url).hostname or ""
    if is_loopback(host):
        return None
    if account.proxy:
        return account.proxy
    proxies = get_environ_proxies(url)
    kind = next((kind for kind in (urlsplit(url).scheme, "all") if proxies.get(kind)), None)
    if kind is None:
        return None
    proxy = proxies[kind] if re.match("[A-Za-z0-9+.-]+://", proxies[kind]) else f"http://{proxies[kind]}"
    reason = no_socks if proxy.startswith("socks") else ""
    if not reason and is_proxy(proxy, "https?|socks4a?|socks5h?"):
        return proxy
    variable = f"{kind}_proxy" if f"{kind}_proxy" in os.environ else f"{kind}_proxy".upper()
    scheme, _, rest = proxy.partition("://")
    login, _, shown = rest.rpartition("@")  # a password may contain any character, if it is not encoded
    problem = f"{without_query(f'{scheme}://{shown}')}: {reason or 'not the URL of a proxy'}"
    encode = ". Percent-encode / ? # in its password" if re.search("[/?#]", login) else ""
    raise InvalidConnectionError(
        f"Cannot use the proxy of {variable}, {problem}{encode}. Set {variable}, or proxy in the "
        f"connection's extra, to the URL of an HTTP proxy such as http://proxy.example:3128, or add {host} "
        "to NO_PROXY"
    )


def is_proxy(url: str, schemes: str = "https?") -> bool:
    """Whether a URL names a proxy, with a scheme that the regular expression ``schemes`` allows."""
    with suppress(ValueError):  # of an invalid port, or of an unclosed [ of an IPv6 address
        parts = urlsplit(url)
        is_allowed = re.fullmatch(schemes, parts.scheme) and not re.search(r"\s", url)
        is_allowed = is_allowed and "@" not in parts.path + parts.query + parts.fragment  # a cut login
        return bool(is_allowed) and parts.port != 0 and is_host_name(parts.hostname or "")
    return False


def tls_trust(account: Account) -> ssl.SSLContext | bool:
    """Return which TLS certificates to trust, as aiohttp's ``ssl`` argument: the same as on workers.

    :raises InvalidConnectionError: if the CA bundle cannot be read.
    """
    from urllib3.util.ssl_ import create_urllib3_context

    bundle, source = _ca_bundle(account)
    if not bundle:
        return False
    context = create_urllib3_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    try:
        if os.path.isdir(bundle):  # noqa: PTH112 - as requests decides
            context.load_verify_locations(capath=bundle)
        else:
            context.load_verify_locations(cafile=bundle)
    except OSError as error:
        raise _unreadable_bundle(bundle, source, error) from error
    return context


def _ca_bundle(account: Account) -> tuple[str, str]:
    """Return the file or folder of CA certificates to trust, and what names it; empty to verify nothing."""
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    if not isinstance(account.verify, bool):
        return account.verify, "the connection's verify"
    if not account.verify:
        return "", ""
    variable = next(filter(os.environ.get, CA_VARIABLES), None)
    return (os.environ[variable], variable) if variable else (DEFAULT_CA_BUNDLE_PATH, "requests")


def _unreadable_bundle(bundle: str, source: str, reason: object) -> InvalidConnectionError:
    return InvalidConnectionError(
        f"Cannot read the CA bundle of {source}, {bundle!r}: {reason}. Workers and triggerers need it"
    )


def checked_urls(url: str, account: Account) -> list[str]:
    """Return the URLs to try for an image's URL, in this order, in the spelling that will be sent.

    An http URL is tried as https first, on the same host, unless it names a port other than 80: a server
    speaks one of the two there, and may keep a TLS client waiting. Plain http is only tried if the API itself
    is reached over it.

    :raises ImageNotAllowedError: if its scheme, its user or an address in it is not allowed.
    """
    import requests

    shown = without_query(url)
    not_https = ImageNotAllowedError(f"Image URL not allowed: {shown} is not https. {HTTP_RULE}")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # such as an unclosed [ of an IPv6 address
        raise not_https from None
    if scheme not in ("https", "http"):
        raise not_https
    try:
        prepared = requests.PreparedRequest()
        prepared.prepare_url(url, None)
        url = prepared.url or ""
    except (requests.RequestException, ValueError):
        raise ImageNotAllowedError(f"Image URL not valid: {shown}") from None
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ImageNotAllowedError(
            f"Image URL not allowed: {shown} contains a user or password. Images are downloaded without any"
        )
    host = parts.hostname or ""
    if address := literal_address(host):
        check_address(address, host, account)
    allowed = []
    if parts.scheme == "http" and parts.port in (None, 80):
        allowed.append(parts._replace(scheme="https", netloc=parts.netloc.removesuffix(":80")).geturl())
    if parts.scheme == "https" or account.base_url.startswith("http:"):
        allowed.append(url)
    if not allowed:
        raise not_https
    return allowed


def checking_adapter(account: Account) -> HTTPAdapter:
    """Return an adapter that checks the address of each connection before it sends anything.

    Resolving the name beforehand would prove nothing: the next DNS response may differ. Behind a proxy, only
    an address in the URL itself is checked, by :func:`checked_urls`: the proxy makes the connection to the
    image's host, so its own rules must check the rest.
    """
    return _checking_adapter_class(account)()


@lru_cache(maxsize=8)
def _checking_adapter_class(account: Account) -> type[HTTPAdapter]:
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def check(connected: socket.socket, host: str) -> socket.socket:
        try:
            check_address(ip_address(connected.getpeername()[0]), host, account)
        except BaseException:
            connected.close()
            raise
        return connected

    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return check(super()._new_conn(), self.host)

    class TLSConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return check(super()._new_conn(), self.host)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": TLSPool}

    return Adapter


def check_address(address: IPv4Address | IPv6Address, host: str, account: Account) -> None:
    """Check that images may be downloaded from a host at an address.

    :raises ImageNotAllowedError: if the address is not public, the API is not at the same kind of address,
        and the connection does not allow the host.
    """
    kind = non_public_kind(address)
    if kind and kind not in _kinds_of_api(account) and not is_allowed_host(host, account):
        raise ImageNotAllowedError(
            f"Image host not allowed: {host} has the address {address} ({kind}, not public). Allowed are "
            "public addresses, and addresses of the same kind as the API's. If you trust this host, add it "
            f"to allowed_image_hosts in the connection's extra: {host}"
        )


def is_allowed_host(host: str, account: Account) -> bool:
    """Whether the connection allows images from a host (in lower case) at any address."""
    return any(fnmatchcase(host.rstrip("."), name) for name in account.allowed_image_hosts)


def _kinds_of_api(account: Account) -> set[str]:
    host = urlsplit(account.base_url).hostname or ""
    if address := literal_address(host):
        return {non_public_kind(address)}
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # only the proxy can resolve it
        return set()
    return {non_public_kind(ip_address(str(entry[4][0]))) for entry in found}


def literal_address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host spells, in any way: ``127.1``, ``2130706433``, ``0x7f.1``."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    with suppress(ValueError):
        return ip_address(host)
    with suppress(OSError, ValueError):
        return IPv4Address(socket.inet_aton(host))
    return None


def non_public_kind(address: IPv4Address | IPv6Address) -> str:
    """Return why an address is not public, as one word; nothing if it is public."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) % 2**32)
        if inner:
            return non_public_kind(inner)
    kinds = {
        "unspecified": address.is_unspecified,
        "loopback": address.is_loopback,
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "private": address.is_private or getattr(address, "is_site_local", False),
        "reserved": address.is_reserved or not address.is_global,
    }
    return next((kind for kind, applies in kinds.items() if applies), "")


def is_address(host: str) -> bool:
    """Whether a host is an IPv4 or IPv6 address in its usual spelling."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_host_name(host: str) -> bool:
    """Whether a URL's host is a valid DNS name or an IPv6 address."""
    return ":" in host or bool(re.fullmatch(r"(?=.{1,253}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?", host))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
