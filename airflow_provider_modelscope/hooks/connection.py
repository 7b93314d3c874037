"""An Airflow connection: its extras, declared once, and how it becomes an :class:`Account`.

``get_provider_info`` imports this module in every Airflow process, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from airflow_provider_modelscope.protocol.account import DEFAULT_BASE_URL, DEFAULT_HUB_URL, Account
from airflow_provider_modelscope.redaction import preview

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

# Connection types that may hold a ModelScope token: ours, and those that name no service.
_CONN_TYPES = ("modelscope", "http", "https", "generic", "")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)  # without the two, the import takes half as long
class ConnectionField:
    """One extra of the connection. The form, the checks and the docs are made from it.

    :param name: Key in the extra.
    :param label: Label in the form.
    :param description: What the field does, as a sentence.
    :param type: Type in the form. The checks also accept its spelling as text, as in a connection's URI.
    :param allowed: Allowed values, as words that follow "must be".
    :param default: Value that applies if the extra does not contain the field; None if there is none.
    :param minimum: Lowest integer.
    :param maximum: Highest integer.
    :param secret: Hide the value in the form and in errors.
    :param parse: Returns what a value means, or raises :meth:`error`.
    """

    name: str
    label: str
    description: str
    type: Literal["boolean", "integer", "string"]
    allowed: str
    default: Any = None
    minimum: int | None = None
    maximum: int | None = None
    secret: bool = False
    parse: Callable[[ConnectionField, Any], Any]

    @property
    def form_description(self) -> str:
        """The description with the allowed values and the default."""
        default = "" if self.default is None else f" Default: {json.dumps(self.default)}."
        return f"{self.description} Allowed: {self.allowed}.{default}"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the form's input. An empty input is null."""
        limits = {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "format": "password" if self.secret else None,
        }
        return {
            "type": [self.type, "null"],
            **{name: value for name, value in limits.items() if value is not None},
        }

    def error(self, wrong: object) -> ValueError:
        """Return the error of a value that is not allowed."""
        given = "" if self.secret else f", not {preview(wrong)}"
        return ValueError(f"{self.name} must be {self.allowed}{given}")


# The parsers of the fields. Values arrive as JSON types, or as the text of a connection's URI.


def _integer(field: ConnectionField, given: Any) -> int:
    if isinstance(given, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", given):
        given = int(given)
    is_integer = isinstance(given, int | float) and not isinstance(given, bool) and given % 1 == 0
    if is_integer and (field.minimum or 0) <= given <= (field.maximum or math.inf):
        return int(given)
    raise field.error(given)


def _boolean(field: ConnectionField, given: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    try:
        return words[str(given).strip().lower()]
    except KeyError:
        raise field.error(given) from None


def _verify(field: ConnectionField, given: Any) -> bool | str:
    with suppress(ValueError):
        return _boolean(field, given)
    path = str(given).strip()
    # Checked here: if it is missing, neither requests nor aiohttp names the setting at fault.
    if isinstance(given, str) and os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a long name
        return path
    raise field.error(given)


def _proxy(field: ConnectionField, given: Any) -> str:
    from airflow_provider_modelscope.transport.egress import is_host_name

    if isinstance(given, str) and re.match(r"https?://\S+$", given):
        with suppress(ValueError):  # of an invalid port, or of an unclosed [ of an IPv6 address
            parts = urlsplit(given)
            if parts.port != 0 and is_host_name(parts.hostname or ""):
                return given
    raise field.error(given)


def _host_names(field: ConnectionField, given: Any) -> tuple[str, ...]:
    from airflow_provider_modelscope.transport.egress import is_address

    names = given.split(",") if isinstance(given, str) else given
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise field.error(given)
    hosts = tuple(name.strip().lower().rstrip(".") for name in names if name.strip())
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) and not is_address(host):
            raise field.error(host.rpartition("@")[2])  # without a login
    return hosts


def _integer_field(*, minimum: int, maximum: int, **field: Any) -> ConnectionField:
    return ConnectionField(
        type="integer",
        allowed=f"an integer from {minimum} to {maximum}",
        minimum=minimum,
        maximum=maximum,
        parse=_integer,
        **field,
    )


# Every extra. The fields of the account have the same names; allow_http decides what the host may be.
CONNECTION_FIELDS = (
    _integer_field(
        name="request_timeout",
        label="Request timeout",
        description="Timeout of one HTTP request, in seconds.",
        default=int(Account.request_timeout),
        minimum=1,
        maximum=600,
    ),
    ConnectionField(
        name="verify",
        label="Verify TLS",
        description="Verify TLS certificates.",
        type="string",
        allowed="true, false, or the path of an existing CA bundle",
        default=Account.verify,
        parse=_verify,
    ),
    ConnectionField(
        name="proxy",
        label="Proxy",
        description="HTTP proxy to use instead of the environment's.",
        type="string",
        allowed="the URL of an HTTP proxy, such as http://proxy.example:3128",
        secret=True,
        parse=_proxy,
    ),
    _integer_field(
        name="max_image_bytes",
        label="Maximum image size",
        description="Largest image to download, in bytes.",
        default=Account.max_image_bytes,
        minimum=1,
        maximum=2**40,
    ),
    ConnectionField(
        name="allowed_image_hosts",
        label="Allowed image hosts",
        description="Hosts to download images from even if their address is not public.",
        type="string",
        allowed=(
            "host names such as images.example or *.images.example, without scheme, port or path, "
            "in a list or separated by commas"
        ),
        parse=_host_names,
    ),
    ConnectionField(
        name="allow_http",
        label="Allow http",
        description="Send the token unencrypted to another machine. Not needed for 127.0.0.1.",
        type="boolean",
        allowed="true or false",
        default=False,
        parse=_boolean,
    ),
)

# The form's standard fields.
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "port", "schema"],
    "relabeling": {"password": "API token", "host": "Base URL"},
    "placeholders": {"host": DEFAULT_BASE_URL, "password": "ms-..."},
}


def account_from_connection(connection: Connection) -> Account:
    """Read an Airflow connection of type ``modelscope``.

    Reads ``extra`` as text: ``Connection.extra_dejson`` asks the supervisor to mask its values, which
    must not happen on the triggerer's event loop.

    :raises InvalidConnectionError: naming every invalid field, and what is allowed.
    """
    errors: list[str] = []

    def checked(check: Callable[..., Any], *given: Any) -> Any:
        try:
            return check(*given)
        except ValueError as error:
            errors.append(str(error))
            return None

    checked(_check_conn_type, connection)
    if not errors:  # the fields of another service's connection mean something else
        extra = checked(_extra, connection) or {}
        fields = {field.name: field for field in CONNECTION_FIELDS}
        values = {
            name: checked(fields[name].parse, fields[name], given)
            for name, given in extra.items()
            if name in fields
        }
        if (connection.conn_type or "modelscope") == "modelscope":  # an HTTP connection's extras are headers
            errors += [_unknown(name) for name in extra if name not in fields]
        allow_http = values.pop("allow_http", False)
        values["token"] = checked(_token, connection)
        values["base_url"] = checked(_base_url, connection, allow_http is True)
    if errors:
        from airflow_provider_modelscope.exceptions import InvalidConnectionError

        raise InvalidConnectionError(f"Airflow connection {connection.conn_id!r}: {'; '.join(errors)}.")
    return Account(**values)


# Each check returns what a part of the connection means, and raises ValueError with what is allowed.


def _check_conn_type(connection: Connection) -> None:
    conn_type = connection.conn_type or ""
    if conn_type.lower() not in _CONN_TYPES:
        raise ValueError(
            f"conn_type must be 'modelscope', not {preview(conn_type)}: "
            "another service's secret is not sent to ModelScope"
        )


def _extra(connection: Connection) -> dict[str, Any]:
    """Return the extras that are not empty."""
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise ValueError("extra must be a JSON object")
    return {name: value for name, value in extra.items() if value is not None and str(value).strip()}


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    known = [field.name for field in CONNECTION_FIELDS]
    near = get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}"
    return f"unknown extra {preview(name)} ({hint})"


def _token(connection: Connection) -> str:
    """Return the token without what was pasted with it: ``Bearer``, spaces, newlines."""
    token = re.sub(
        r"\s+", "", re.sub(r"^\s*bearer(\s+|$)", "", connection.password or "", flags=re.IGNORECASE)
    )
    if not token:
        raise ValueError(f"password is empty: set it to an API token from {DEFAULT_HUB_URL}/my/myaccesstoken")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("password contains characters that no API token has")
    return token


def _base_url(connection: Connection, allow_http: bool) -> str:
    """Return the base URL that host, schema and port mean."""
    from airflow_provider_modelscope.transport.egress import is_host_name, is_loopback

    host = (connection.host or "").strip()
    if not host:
        return DEFAULT_BASE_URL
    if "@" in host or "?" in host or "#" in host:  # not shown: it may contain a password
        raise ValueError(
            f"host must be a bare URL such as {DEFAULT_BASE_URL}, without user, query or fragment"
        )
    if host.count(":") > 1 and "://" not in host and "[" not in host:
        host = f"[{host}]"  # Airflow removes the brackets of an IPv6 address in a connection's URI
    try:
        if "://" not in host:
            usual = "http" if is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
            host = f"{connection.schema if connection.schema in ('http', 'https') else usual}://{host}"
        parts = urlsplit(host)
        port = connection.port or None if parts.port is None else parts.port
    except ValueError:
        raise ValueError(f"host is not a URL: {preview(host)}") from None
    scheme, name = parts.scheme.lower(), parts.hostname or ""
    if scheme not in ("http", "https") or not is_host_name(name):
        raise ValueError(f"host must be a URL such as {DEFAULT_BASE_URL}, not {preview(host)}")
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"host is not a URL: its port must be from 1 to 65535, not {port}")
    if endpoint := re.search(r"/v1/(images|tasks|models|chat)\b.*", parts.path):
        raise ValueError(
            f"host must be a URL such as {DEFAULT_BASE_URL}, without the endpoint {preview(endpoint[0])}"
        )
    if re.search(r"\s", host) or not host.isprintable():
        raise ValueError(f"host must not contain spaces or control characters: {preview(host)}")
    if scheme == "http" and not (allow_http or is_loopback(name)):
        raise ValueError(
            f"host would send the token unencrypted to {name}: use https, or set allow_http in the extra"
        )
    path = re.sub(r"(/v1)?/*$", "", parts.path.rstrip("/"))
    netloc = f"[{name}]" if ":" in name else name
    return urlunsplit((scheme, f"{netloc}:{port}" if port else netloc, path, "", ""))
