"""Where the service is and who asks: what an Airflow connection says, read and checked once."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from airflow_provider_modelscope.exceptions import InvalidConnectionError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

DEFAULT_BASE_URL = "https://api-inference.modelscope.cn"
DEFAULT_HUB_URL = "https://modelscope.cn"

# The site behind each API: its accounts, tokens and models.
_HUBS = {DEFAULT_BASE_URL: DEFAULT_HUB_URL, "https://api-inference.modelscope.ai": "https://modelscope.ai"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """One account at one service, and how to reach it.

    :param token: The API token, bare.
    :param base_url: Origin and path before ``/v1``, without a trailing slash.
    :param request_timeout: Seconds that one HTTP request may take, above 0 and at most 600.
    :param verify: Whether to check TLS certificates, or the path of a bundle of authorities to trust.
    :param proxy: URL of the HTTP proxy to use instead of the environment's.
    :param max_image_bytes: Largest output image to accept, in bytes.
    :param image_hosts: Names of hosts that images may come from although their address is not public;
        ``*.example.com`` stands for every host below.
    """

    token: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    request_timeout: float = 30.0
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    max_image_bytes: int = 64 * 1024 * 1024
    image_hosts: tuple[str, ...] = ()

    @classmethod
    def from_connection(cls, connection: Connection) -> Self:
        """Read an Airflow connection of type ``modelscope``.

        Reads ``extra`` as text: ``Connection.extra_dejson`` asks the supervisor to mask its values, which
        must not happen on the triggerer's event loop.

        :raises InvalidConnectionError: saying which field is wrong and what is allowed.
        """
        wrong = partial(_wrong, connection.conn_id)
        try:
            extra = json.loads(connection.extra or "{}")
        except (ValueError, RecursionError):
            extra = None
        if not isinstance(extra, dict):
            raise wrong("extra", "is not a JSON object")
        given = {name: value for name, value in extra.items() if value is not None and str(value).strip()}

        def number(name: str, default: float, most: float) -> float:
            try:
                value = float(given.get(name, default))
            except (TypeError, ValueError, OverflowError):
                value = 0.0
            if given.get(name) is True or not 0 < value <= most:
                raise wrong(name, f"must be a number above 0 and at most {most:g}, not {given[name]!r}")
            return value

        def flag(name: str, default: bool) -> bool | str:
            value = given.get(name, default)
            words = {"true": True, "1": True, "false": False, "0": False}
            return words.get(str(value).strip().lower(), str(value).strip())

        if not isinstance(given.get("verify", True), bool | int | str):
            raise wrong("verify", "must be true, false, or the path of a bundle of authorities")
        allow_http = flag("allow_http", False)
        if not isinstance(allow_http, bool):
            raise wrong("allow_http", f"must be true or false, not {allow_http!r}")
        proxy = given.get("proxy")
        if proxy is not None and not (isinstance(proxy, str) and re.match("https?://[^/]", proxy)):
            raise wrong("proxy", "must be the URL of an HTTP proxy, such as http://proxy.example:3128")
        return cls(
            token=_token(connection, wrong),
            base_url=_base_url(connection, allow_http, wrong),
            request_timeout=number("request_timeout", cls.request_timeout, 600),
            verify=flag("verify", cls.verify is True),
            proxy=proxy,
            max_image_bytes=math.ceil(number("max_image_bytes", cls.max_image_bytes, 2**40)),
            image_hosts=_image_hosts(given.get("image_hosts", []), wrong),
        )

    @property
    def hub_url(self) -> str | None:
        """The site with this service's accounts and tokens, where the service is ModelScope's own."""
        return _HUBS.get(self.base_url)

    @property
    def settings_url(self) -> str:
        """Where a person finds their tokens and binds or verifies the account."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/my/myaccesstoken"

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy to reach a URL through: the connection's own, or else the environment's."""
        parts = urlsplit(url)
        if self.proxy or proxy_bypass(parts.hostname or ""):
            return self.proxy
        environment = getproxies()
        return environment.get(parts.scheme) or environment.get("all")

    def may_fetch(self, url: str) -> bool:
        """Whether an image may come from there: https, or http where the API itself is."""
        try:
            scheme = urlsplit(url).scheme
        except ValueError:  # such as an unclosed [ of an IPv6 address
            return False
        return scheme == "https" or (scheme == "http" and self.base_url.startswith("http:"))

    def takes_images_from(self, host: str) -> bool:
        """Whether the connection names a host (in small letters) that images may come from at any address."""
        return any(fnmatchcase(host.rstrip("."), name) for name in self.image_hosts)


def _wrong(connection_id: str | None, field_name: str, problem: str) -> InvalidConnectionError:
    return InvalidConnectionError(f"Airflow connection {connection_id!r}: {field_name} {problem}.")


def _token(connection: Connection, wrong: Any) -> str:
    """Return the token without what comes along when one is pasted: ``Bearer``, spaces, newlines."""
    token = re.sub(
        r"\s+", "", re.sub(r"^\s*bearer(\s+|$)", "", connection.password or "", flags=re.IGNORECASE)
    )
    if not token:
        raise wrong("password", f"is empty: it holds the API token, from {DEFAULT_HUB_URL}/my/myaccesstoken")
    if not (token.isascii() and token.isprintable()):
        raise wrong("password", "holds characters that no API token has")
    return token


def _image_hosts(given: Any, wrong: Any) -> tuple[str, ...]:
    """Return the names in a list, or in a text with commas."""
    names = given.split(",") if isinstance(given, str) else given
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise wrong("image_hosts", "must be a list of host names, or a text of them with commas between")
    hosts = tuple(name.strip().lower().rstrip(".") for name in names if name.strip())
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) and not _is_address(host):
            raise wrong(
                "image_hosts",
                "must hold names such as images.example or *.images.example, without scheme, port or path, "
                f"not {host.rpartition('@')[2]!r}",
            )
    return hosts


def _base_url(connection: Connection, allow_http: bool, wrong: Any) -> str:
    """Return the base URL that host, schema and port stand for."""
    host = (connection.host or "").strip()
    if not host:
        return DEFAULT_BASE_URL
    if host.count(":") > 1 and "://" not in host and "[" not in host:
        host = f"[{host}]"  # Airflow takes the brackets off an IPv6 address in a connection's URI
    try:
        if "://" not in host:
            usual = "http" if _is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
            host = f"{connection.schema if connection.schema in ('http', 'https') else usual}://{host}"
        parts = urlsplit(host)
        port = parts.port or connection.port
    except ValueError:
        raise wrong("host", f"is not a URL: {host!r}") from None
    scheme, name = parts.scheme.lower(), parts.hostname
    if scheme not in ("http", "https") or not name:
        raise wrong("host", f"must be a URL such as {DEFAULT_BASE_URL}, not {host!r}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise wrong("host", f"must be a bare URL such as {DEFAULT_BASE_URL}, without user, query or fragment")
    if scheme == "http" and not (allow_http or _is_loopback(name)):
        raise wrong(
            "host", f"would send the token in the clear to {name}: use https, or set allow_http in the extra"
        )
    path = re.sub(r"(/v1)?/*$", "", parts.path.rstrip("/"))
    netloc = f"[{name}]" if ":" in name else name
    return urlunsplit((scheme, f"{netloc}:{port}" if port else netloc, path, "", ""))


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
