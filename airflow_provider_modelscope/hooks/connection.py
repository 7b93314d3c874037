"""An Airflow connection becomes an :class:`Account`: every field is read and checked once."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from airflow_provider_modelscope.exceptions import InvalidConnectionError
from airflow_provider_modelscope.protocol.account import DEFAULT_BASE_URL, DEFAULT_HUB_URL, Account
from airflow_provider_modelscope.redaction import preview
from airflow_provider_modelscope.transport.egress import is_address, is_host_name, is_loopback

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

# Types of connection that may hold a token for ModelScope, ours and those that say no service.
_TYPES = ("modelscope", "http", "https", "generic", "")


def account_from_connection(connection: Connection) -> Account:
    """Read an Airflow connection of type ``modelscope``.

    Reads ``extra`` as text: ``Connection.extra_dejson`` asks the supervisor to mask its values, which
    must not happen on the triggerer's event loop.

    :raises InvalidConnectionError: naming every wrong field, and what is allowed.
    """
    mistakes: list[str] = []

    def read(name: str, check: Callable[[], Any]) -> Any:
        try:
            return check()
        except ValueError as mistake:
            mistakes.append(f"{name} {mistake}")

    read("conn_type", lambda: _check_type(connection))
    if not mistakes:  # else there is nothing else to say of it
        given = read("extra", lambda: _extra(connection)) or {}
        values = {
            name: read(name, partial(_EXTRAS[name], value))
            for name, value in given.items()
            if name in _EXTRAS
        }
        if (connection.conn_type or "modelscope") == "modelscope":  # an HTTP connection's hold headers
            mistakes += [_unknown(name) for name in given if name not in _EXTRAS]
        allow_http = values.pop("allow_http", False)
        values["token"] = read("password", lambda: _token(connection))
        values["base_url"] = read("host", lambda: _base_url(connection, allow_http is True))
    if mistakes:
        raise InvalidConnectionError(f"Airflow connection {connection.conn_id!r}: {'; '.join(mistakes)}.")
    return Account(**values)


# Each check returns what a field of the connection means, and raises ValueError with what is allowed.


def _check_type(connection: Connection) -> None:
    kind = connection.conn_type or ""
    if kind.lower() not in _TYPES:
        raise ValueError(
            f"must be 'modelscope', not {preview(kind)}: another service's secret is not sent to ModelScope"
        )


def _extra(connection: Connection) -> dict[str, Any]:
    """Return the extras that are given, without the empty ones."""
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise ValueError("is not a JSON object")
    return {name: value for name, value in extra.items() if value is not None and str(value).strip()}


def _unknown(name: str) -> str:
    near = get_close_matches(name.lower(), _EXTRAS, n=1)
    hint = f"is {near[0]} meant?" if near else f"known are {', '.join(_EXTRAS)}"
    return f"extra {preview(name)} is not known: {hint}"


def _number(most: float) -> Callable[[Any], float]:
    def checked(given: Any) -> float:
        try:
            value = 0.0 if isinstance(given, bool) else float(given)
        except (TypeError, ValueError, OverflowError):
            value = 0.0
        if not 0 < value <= most:
            raise ValueError(f"must be a number above 0 and at most {most:g}, not {preview(given)}")
        return value

    return checked


def _flag(given: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    try:
        return words[str(given).strip().lower()]
    except KeyError:
        raise ValueError(f"must be true or false, not {preview(given)}") from None


def _verify(given: Any) -> bool | str:
    try:
        return _flag(given)
    except ValueError:
        path = str(given).strip()
    # Where it is missing, neither requests nor aiohttp says which setting is at fault.
    if isinstance(given, str) and os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a long name
        return path
    raise ValueError(
        "must be true, false, or the path of a bundle of authorities, which is there on this machine, "
        f"not {preview(given)}"
    )


def _proxy(given: Any) -> str:
    if isinstance(given, str) and re.match(r"https?://\S+$", given):
        with suppress(ValueError):  # of a port that is none, or an unclosed [ of an IPv6 address
            parts = urlsplit(given)
            if parts.port != 0 and is_host_name(parts.hostname or ""):
                return given
    raise ValueError("must be the URL of an HTTP proxy, such as http://proxy.example:3128")


def _allowed_image_hosts(given: Any) -> tuple[str, ...]:
    """Return the names in a list, or in a text with commas."""
    names = given.split(",") if isinstance(given, str) else given
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("must be a list of host names, or a text of them with commas between")
    hosts = tuple(name.strip().lower().rstrip(".") for name in names if name.strip())
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) and not is_address(host):
            raise ValueError(
                "must hold names such as images.example or *.images.example, without scheme, port or path, "
                f"not {preview(host.rpartition('@')[2])}"
            )
    return hosts


# The fields of the extra: allow_http says what the host may be, the others are fields of the account.
_EXTRAS: Mapping[str, Callable[[Any], Any]] = {
    "request_timeout": _number(600),
    "verify": _verify,
    "proxy": _proxy,
    "max_image_bytes": lambda given: math.ceil(_number(2**40)(given)),
    "allowed_image_hosts": _allowed_image_hosts,
    "allow_http": _flag,
}


def _token(connection: Connection) -> str:
    """Return the token without what comes along when one is pasted: ``Bearer``, spaces, newlines."""
    token = re.sub(
        r"\s+", "", re.sub(r"^\s*bearer(\s+|$)", "", connection.password or "", flags=re.IGNORECASE)
    )
    if not token:
        raise ValueError(f"is empty: it holds the API token, from {DEFAULT_HUB_URL}/my/myaccesstoken")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("holds characters that no API token has")
    return token


def _base_url(connection: Connection, allow_http: bool) -> str:
    """Return the base URL that host, schema and port stand for."""
    host = (connection.host or "").strip()
    if not host:
        return DEFAULT_BASE_URL
    if "@" in host or "?" in host or "#" in host:  # not shown: a user's name may stand beside a password
        raise ValueError(f"must be a bare URL such as {DEFAULT_BASE_URL}, without user, query or fragment")
    if host.count(":") > 1 and "://" not in host and "[" not in host:
        host = f"[{host}]"  # Airflow takes the brackets off an IPv6 address in a connection's URI
    try:
        if "://" not in host:
            usual = "http" if is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
            host = f"{connection.schema if connection.schema in ('http', 'https') else usual}://{host}"
        parts = urlsplit(host)
        port = connection.port or None if parts.port is None else parts.port
    except ValueError:
        raise ValueError(f"is not a URL: {preview(host)}") from None
    scheme, name = parts.scheme.lower(), parts.hostname or ""
    if scheme not in ("http", "https") or not is_host_name(name):
        raise ValueError(f"must be a URL such as {DEFAULT_BASE_URL}, not {preview(host)}")
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"is not a URL: its port must be from 1 to 65535, not {port}")
    if endpoint := re.search(r"/v1/(images|tasks|models|chat)\b.*", parts.path):
        raise ValueError(
            f"must be a URL such as {DEFAULT_BASE_URL}: without {preview(endpoint[0])}, which is added to it"
        )
    if re.search(r"\s", host) or not host.isprintable():
        raise ValueError(f"may not hold spaces or control characters: {preview(host)}")
    if scheme == "http" and not (allow_http or is_loopback(name)):
        raise ValueError(
            f"would send the token in the clear to {name}: use https, or set allow_http in the extra"
        )
    path = re.sub(r"(/v1)?/*$", "", parts.path.rstrip("/"))
    netloc = f"[{name}]" if ":" in name else name
    return urlunsplit((scheme, f"{netloc}:{port}" if port else netloc, path, "", ""))
