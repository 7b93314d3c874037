"""An Airflow connection: its extras, declared once, and how it becomes an :class:`Account`.

``get_provider_info`` imports this module in every Airflow process, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from airflow_provider_modelscope.protocol.account import BASE_URLS, DEFAULT_BASE_URL, DEFAULT_HUB_URL, Account
from airflow_provider_modelscope.redaction import MIN_SECRET, preview

if TYPE_CHECKING:
    from airflow.sdk import Connection

# Connection types that may hold a ModelScope token: ours, and those that name no service.
_CONN_TYPES = ("modelscope", "http", "https", "generic")

_MASK = "***"  # what Airflow shows in place of a secret
_BEARER = r"[A-Za-z0-9._~+/-]+=*"  # what may follow "Bearer", by RFC 6750
_PASTED = r"(?i)^\s*(authorization\s*:)?\s*((bearer|token(?!\s*$))\s*(:|\s|$))?|\s"
# Text of documentation: ms-..., zeros, or words of an instruction only.
_PLACEHOLDER = (
    r"(?i).*\.\.\..*|(ms-)?[0x][0x-]*|(your|insert)[-_].*|((ms|modelscope|your|my|the|this|insert|enter|paste|put|add"
    r"|use|replace|change|me|with|real|actual|sdk|api|access|secret|token|key|value|goes|here|placeholder|example"
    r"|sample|dummy|todo|none|null|x)[-_.]*)+"
)
# Of Hugging Face, OpenAI and DashScope, Replicate, GitHub, Groq, Google.
_OTHER_SERVICES_START = r"hf_|sk-|r8_|gh[a-z]_|gsk_|AIza"
# Words in the name of a header with a secret value. X-Author and Keyboard are none.
_SENSITIVE_HEADER = (
    "(?i)(^|[-_])(auth|authorization|authentication|(api|access|auth|private|secret)?[-_]?key"
    "|[a-z]*(token|secret|password|passwd|cookie))([-_]|$)"
)
# At the end of a path only: a gateway may have a path of its own that contains one.
_ENDPOINT = r"(?i)/v1/(images(/generations)?|tasks(/[^/]*)?|models|chat/completions)$"
_USUAL_PORTS = {"http": 80, "https": 443}
# Hosts that are not the API's: ModelScope's website, and other services with all their subdomains.
_WEBSITES = ("modelscope.cn", "modelscope.ai")
_OTHER_SERVICES = (
    "dashscope.aliyuncs.com",
    "dashscope-intl.aliyuncs.com",
    "dashscope-us.aliyuncs.com",
    "huggingface.co",
    "openai.com",
    "openrouter.ai",
    "replicate.com",
    "siliconflow.cn",
    "siliconflow.com",
)


class ConnectionField(NamedTuple):
    """One extra of the connection. The form, the checks and the docs are made from it.

    :param name: Key in the extra.
    :param description: What the field does, as a sentence.
    :param allowed: Allowed values, as words that follow "must be".
    :param parse: Returns what a value means, or raises ValueError with the invalid part of it. Values have
        JSON types, or are text, as in a connection's URI.
    :param default: Value that applies if the extra does not contain the field; None if there is none.
    :param type: JSON type of the form's input.
    :param limits: More keywords of its JSON schema.
    """

    name: str
    description: str
    allowed: str
    parse: Callable[[Any], Any]
    default: Any = None
    type: str = "string"
    limits: Mapping[str, Any] = {}

    @property
    def form_input(self) -> dict[str, Any]:
        """The input in the form, as an entry of the provider info's ``conn-fields``."""
        default = "" if self.default is None else f" Default: {json.dumps(self.default)}."
        return {
            "label": self.name.replace("_", " ").capitalize(),
            "description": f"{self.description} Allowed: {self.allowed}.{default}",
            "schema": {"type": [self.type, "null"], **self.limits},
        }

    @property
    def is_secret(self) -> bool:
        """Whether to hide the value, in the form and in errors."""
        return self.limits.get("format") == "password"

    def checked(self, given: Any) -> Any:
        """Return what a value means.

        :raises ValueError: with the value, unless it is secret, and what is allowed.
        """
        try:
            return self.parse(given)
        except ValueError as error:
            value = "" if self.is_secret else f", not {preview(error.args[0])}"
            raise ValueError(f"{self.name} must be {self.allowed}{value}") from None


def _boolean(given: Any) -> bool:
    value = {"true": True, "1": True, "false": False, "0": False}.get(str(given).strip().lower())
    if value is None:
        raise ValueError(given)
    return value


def _verify(given: Any) -> bool | str:
    with suppress(ValueError):
        return _boolean(given)
    path = str(given).strip()
    # Checked here: if it is missing, neither requests nor aiohttp names the setting at fault.
    if isinstance(given, str) and os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a long name
        return path
    raise ValueError(given)


def _proxy(given: Any) -> str:
    from airflow_provider_modelscope.transport.egress import is_proxy

    if isinstance(given, str) and is_proxy(given.strip()):
        return given.strip()
    raise ValueError(given)


def _host_names(given: Any) -> tuple[str, ...]:
    from airflow_provider_modelscope.transport.egress import is_address

    names = given.split(",") if isinstance(given, str) else given
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(given)
    hosts = tuple(name.strip().lower().rstrip(".") for name in names if name.strip())
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", host) and not is_address(host):
            raise ValueError(host.rpartition("@")[2])  # without a login
    return hosts


def _integer_field(name: str, description: str, *, maximum: int, default: int) -> ConnectionField:
    def parse(given: Any) -> int:
        number = int(given) if isinstance(given, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", given) else given
        is_integer = isinstance(number, int | float) and not isinstance(number, bool) and number % 1 == 0
        if not (is_integer and 1 <= number <= maximum):
            raise ValueError(given)
        return int(number)

    return ConnectionField(
        name=name,
        description=description,
        allowed=f"an integer from 1 to {maximum}",
        parse=parse,
        default=default,
        type="integer",
        limits={"minimum": 1, "maximum": maximum},
    )


# Every extra. The fields of the account have the same names; allow_http decides what the host may be.
CONNECTION_FIELDS = (
    _integer_field(
        "request_timeout",
        "Timeout of one HTTP request, in seconds.",
        maximum=600,
        default=int(Account.request_timeout),
    ),
    ConnectionField(
        name="verify",
        description="Verify TLS certificates.",
        allowed="true, false, or the path of an existing CA bundle",
        parse=_verify,
        default=Account.verify,
    ),
    ConnectionField(
        name="proxy",
        description="HTTP proxy to use instead of the environment's.",
        allowed="the URL of an HTTP proxy, such as http://proxy.example:3128",
        parse=_proxy,
        limits={"format": "password"},
    ),
    _integer_field(
        "max_image_bytes",
        "Largest image to download, in bytes.",
        maximum=2**40,
        default=Account.max_image_bytes,
    ),
    ConnectionField(
        name="allowed_image_hosts",
        description="Hosts to download images from even if their address is not public.",
        allowed=(
            "host names such as images.example or *.images.example, without scheme, port or path, "
            "in a list or separated by commas"
        ),
        parse=_host_names,
    ),
    ConnectionField(
        name="allow_http",
        description="Send the token unencrypted to another machine. Not needed for 127.0.0.1.",
        allowed="true or false",
        parse=_boolean,
        default=False,
        type="boolean",
    ),
)

# A standard field, not an extra: the port of the base URL.
PORT = _integer_field(
    "port",
    "Port of the base URL, if host contains none.",
    maximum=2**16 - 1,
    default=443,
)

# The form's standard fields. The port is shown because the Test button of Airflow 3.3.1 and 3.3.2 needs one,
# and a form cannot fill it in.
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "schema"],
    "relabeling": {"password": "API token", "host": "Base URL"},
    "placeholders": {
        "host": DEFAULT_BASE_URL,
        "password": "ms-...",
        "port": f"Enter {PORT.default} to use the Test button",
    },
}


def account_from_connection(connection: Connection) -> Account:
    """Read an Airflow connection of type ``modelscope``.

    Reads ``extra`` as text: ``Connection.extra_dejson`` asks the supervisor to mask its values, which
    must not happen on the triggerer's event loop.

    :raises InvalidConnectionError: naming every invalid field, and what is allowed.
    """
    from airflow_provider_modelscope.exceptions import InvalidConnectionError
    from airflow_provider_modelscope.validation import unknown_names

    conn_type = connection.conn_type or "modelscope"
    if conn_type.lower() not in _CONN_TYPES:  # the fields of another service's connection mean something else
        raise InvalidConnectionError(
            f"Airflow connection {connection.conn_id!r}: conn_type must be 'modelscope', not "
            f"{preview(conn_type)}: another service's secret is not sent to ModelScope."
        )
    errors: list[str] = []

    def checked(check: Callable[..., Any], *given: Any) -> Any:
        try:
            return check(*given)
        except ValueError as error:
            errors.append(str(error))
            return None

    extra = checked(_extra, connection) or {}
    fields = {field.name: field for field in CONNECTION_FIELDS}
    values = {name: checked(fields[name].checked, given) for name, given in extra.items() if name in fields}
    if conn_type == "modelscope":  # the extras of an HTTP connection are headers
        errors += unknown_names(extra, list(fields), kind="extra")
    allow_http = values.pop("allow_http", False)
    values["token"] = checked(_token, connection)
    # The Test button sends 0 if there is no port.
    port = checked(PORT.checked, connection.port) if connection.port else None
    values["base_url"] = checked(_base_url, connection, port, allow_http is True)
    if values["base_url"] in BASE_URLS and re.match(
        _OTHER_SERVICES_START, values["token"] or ""
    ):  # a gateway has its own
        errors.append(
            "password is another service's token: replace it with an API token from "
            f"{DEFAULT_HUB_URL}/my/myaccesstoken"
        )
    if errors:
        raise InvalidConnectionError(f"Airflow connection {connection.conn_id!r}: {'; '.join(errors)}.")
    return Account(**values)


def secrets_of(connection: Connection) -> list[re.Pattern[str]]:
    """Return patterns of what no parameter may contain: the token, the proxy's password and secret headers.

    They need no valid connection: what is wrong with it is reported with the other errors, which show values.
    The token is found inside words too, percent-encoded as in a connection's URI, and in base64 as in a
    login. The others may be words of any prompt: each must stand alone, and counts only if it is long or
    contains more than letters.
    """
    try:
        extra = _extra(connection)
    except ValueError:
        extra = {}
    known = [field.name for field in CONNECTION_FIELDS]
    headers = [
        word
        for name, value in extra.items()
        if name not in known and re.search(_SENSITIVE_HEADER, re.sub("(?<=[a-z])(?=[A-Z])", "-", name))
        for word in str(value).split()
    ]
    login = str(extra.get("proxy", "")).partition("://")[2].rpartition("@")[0]
    password = login.partition(":")[2]
    tokens = {_bare_token(connection), (connection.password or "").strip()}
    others = [
        one
        for one in (password, unquote(password), *headers)
        if len(one) >= 12 or (len(one) >= MIN_SECRET and re.search("[^A-Za-z-]", one))
    ]
    patterns = [pattern for one in tokens if len(one) >= MIN_SECRET for pattern in _spellings(one)]
    # The lookbehind stands behind the text, so that a search for the text's beginning stays fast.
    patterns += [f"{one}(?<![A-Za-z0-9]{one})(?![A-Za-z0-9])" for one in map(re.escape, others)]
    return [re.compile(pattern) for pattern in patterns]  # not as one, which is slower


def _spellings(token: str) -> Iterator[str]:
    """Yield patterns of a token: as it is or percent-encoded, and in base64 of any text that contains it."""
    yield "".join(
        letter if letter.isalnum() else f"(?:{re.escape(letter)}|(?i:{re.escape(quote(letter, safe=''))}))"
        for letter in token
    )
    content = token.encode()
    for before in range(3):  # bytes before it, which shift its letters in base64
        encoded = b64encode(b"\0" * before + content).decode()
        own = encoded[math.ceil(before * 8 / 6) : (before + len(content)) * 8 // 6]
        yield own.replace("+", "[+-]").replace("/", "[/_]")


# Each check returns what a part of the connection means, and raises ValueError with what is allowed.


def _extra(connection: Connection) -> dict[str, Any]:
    """Return the extras that are not empty."""
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise ValueError("extra must be a JSON object")
    return {name: value for name, value in extra.items() if value is not None and str(value).strip()}


def _bare_token(connection: Connection) -> str:
    """Return the token without what was pasted with it: a header's name, a scheme, spaces, newlines."""
    return re.sub(_PASTED, "", connection.password or "")


def _token(connection: Connection) -> str:
    """Return the bare token.

    :raises ValueError: if it cannot be ModelScope's.
    """
    token = _bare_token(connection)
    if token == _MASK:
        raise ValueError(
            f"password is {_MASK!r}, Airflow's mask of a token: the Test button of this Airflow sends the "
            "mask. Use the command airflow connections test"
        )
    if not token:
        raise ValueError(f"password is empty: set it to an API token from {DEFAULT_HUB_URL}/my/myaccesstoken")
    if not re.fullmatch(_BEARER, token):
        raise ValueError(
            "password contains characters that no API token has: enter the token alone, such as ms-..., "
            "without quotes and without NAME="
        )
    if re.fullmatch(_PLACEHOLDER, token):
        raise ValueError(
            f"password is a placeholder: replace it with an API token from {DEFAULT_HUB_URL}/my/myaccesstoken"
        )
    return token


def _base_url(connection: Connection, port: int | None, allow_http: bool) -> str:
    """Return the base URL that host, schema and port mean, without the usual port of its scheme."""
    from airflow_provider_modelscope.transport.egress import is_host_name, is_loopback

    host = (connection.host or "").strip() or DEFAULT_BASE_URL
    if "@" in host or "?" in host or "#" in host:  # not shown: it may contain a password
        raise ValueError(
            f"host must be a bare URL such as {DEFAULT_BASE_URL}, without user, query or fragment"
        )
    if re.match(r"(?i)https?(?!://)(:?/|:\D)", host):
        raise ValueError(
            f"host must be a URL such as {DEFAULT_BASE_URL}, with '://' after its scheme, not {preview(host)}"
        )
    if host.count(":") > 1 and "://" not in host and "[" not in host:
        host = f"[{host}]"  # Airflow removes the brackets of an IPv6 address in a connection's URI
    try:
        if "://" not in host:
            usual = "http" if is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
            host = f"{connection.schema if connection.schema in ('http', 'https') else usual}://{host}"
        parts = urlsplit(host)
        own_port = parts.port
    except ValueError:
        raise ValueError(f"host is not a URL: {preview(host)}") from None
    scheme, name = parts.scheme.lower(), (parts.hostname or "").removesuffix(".")
    if scheme not in ("http", "https") or not is_host_name(name):
        raise ValueError(f"host must be a URL such as {DEFAULT_BASE_URL}, not {preview(host)}")
    if own_port == 0:
        raise ValueError("host is not a URL: its port must be from 1 to 65535, not 0")
    if port and own_port and port != own_port:
        raise ValueError(f"port must be empty or {own_port}, the port in host, not {port}")
    if name.removeprefix("www.") in _WEBSITES:
        raise ValueError(f"host must be {' or '.join(BASE_URLS)}, not ModelScope's website: {preview(host)}")
    if f".{name}".endswith(tuple(f".{service}" for service in _OTHER_SERVICES)):
        raise ValueError(
            f"host must be a URL such as {DEFAULT_BASE_URL}, not another service, which would get the token: "
            f"{preview(host)}"
        )
    path = re.sub("/+", "/", parts.path).rstrip("/")
    if endpoint := re.search(_ENDPOINT, path):
        raise ValueError(
            f"host must be a URL such as {DEFAULT_BASE_URL}, without the endpoint {preview(endpoint[0])}"
        )
    path = re.sub("/v1$", "", path, flags=re.IGNORECASE)
    if path and name in (urlsplit(url).hostname for url in BASE_URLS):
        raise ValueError(f"host must be a URL such as {DEFAULT_BASE_URL}, without the path {preview(path)}")
    if " " in host or not host.isprintable():
        raise ValueError(f"host must not contain spaces or control characters: {preview(host)}")
    if scheme == "http" and not (allow_http or is_loopback(name)):
        raise ValueError(
            f"host would send the token unencrypted to {name}: use https, or set allow_http in the extra"
        )
    netloc = f"[{name}]" if ":" in name else name
    port = own_port or port
    if port and port != _USUAL_PORTS[scheme]:
        netloc += f":{port}"
    return urlunsplit((scheme, netloc, path, "", ""))
