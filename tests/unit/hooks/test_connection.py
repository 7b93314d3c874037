"""A connection becomes an account, or an error that names every invalid field."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from airflow.models import Connection as StoredConnection
from airflow.sdk import Connection

from airflow_provider_modelscope.exceptions import InvalidConnectionError
from airflow_provider_modelscope.hooks.connection import CONNECTION_FIELDS, account_from_connection
from airflow_provider_modelscope.protocol.account import DEFAULT_BASE_URL, Account

NAN, INFINITE = float("nan"), float("inf")
TOKEN = "ms-8f3b1c9a-0000-4000-8000-0123456789ab"

FIELDS = {field.name: field for field in CONNECTION_FIELDS}

WRONG: dict[str, list[Any]] = {
    "request_timeout": [0, -1, 601, 1.5, "1.5", "1_0", "soon", True, False, [5], {}, NAN, INFINITE, 10**400],
    "max_image_bytes": [0, -1, 2**40 + 1, "64 MiB", "٥", "9" * 5000, True, [5]],
    "allow_http": ["yes", 2, [], {}],
    "verify": [[], {"a": 1}, 0.5, "/no/such/bundle.pem"],
    "proxy": ["me:secret@proxy", "socks5://me:secret@proxy", "http://", "http:///secret", 5, ["secret"]],
    "allowed_image_hosts": [
        5,
        True,
        {},
        [5],
        ["a.example", None],
        "https://images.example",
        "images.example:443",
        "images.example/a",
        "me:secret@images.example",
        "*",
        "images.*.example",
        "*images.example",
        "images example",
        ["a.example", "b.example;c.example"],
        "[::1]",
        "图片.example",
    ],
}


def connection(**given: Any) -> Connection:
    if isinstance(given.get("extra"), dict):
        given["extra"] = json.dumps(given["extra"])
    return Connection(**{"conn_id": "mine", "conn_type": "modelscope", "password": TOKEN, **given})


def account(**given: Any) -> Account:
    return account_from_connection(connection(**given))


def problem(**given: Any) -> str:
    with pytest.raises(InvalidConnectionError) as caught:
        account(**given)
    text = str(caught.value)
    assert text.startswith("Airflow connection 'mine': ")
    return text.removeprefix("Airflow connection 'mine': ")


def test_a_token_alone_is_enough() -> None:
    assert account() == Account(
        token=TOKEN,
        base_url="https://api-inference.modelscope.cn",
        request_timeout=30.0,
        verify=True,
        proxy=None,
        max_image_bytes=64 * 1024 * 1024,
        allowed_image_hosts=(),
    )


@pytest.mark.parametrize(
    "pasted",
    [
        TOKEN,
        f" {TOKEN} ",
        f"{TOKEN}\n",
        f"\t{TOKEN}\r\n",
        f"{TOKEN[:10]}\n{TOKEN[10:]}",
        f"Bearer {TOKEN}",
        f"bearer\t{TOKEN}",
        f" BEARER  {TOKEN}\n",
        f"Bearer\n{TOKEN}",
        f"{TOKEN}\u00a0",
        f"Bearer: {TOKEN}",
        f"bearer:{TOKEN}",
        f"Token {TOKEN}",
        f"token: {TOKEN}",
        f"Authorization: Bearer {TOKEN}",
        f"authorization:{TOKEN}",
    ],
    ids=ascii,
)
def test_a_pasted_token_is_cleaned(pasted: str) -> None:
    assert account(password=pasted).token == TOKEN


@pytest.mark.parametrize("password", [None, "", " \n", "Bearer", "Bearer ", " bearer\n"], ids=ascii)
def test_a_missing_token_is_an_error_with_the_url_of_tokens(password: str | None) -> None:
    message = problem(password=password)
    assert message.startswith("password is empty")
    assert "https://modelscope.cn/my/myaccesstoken" in message


@pytest.mark.parametrize(
    "password",
    [
        "ms-猫",
        "ms-\x00",
        "\ufeffms-1",
        "ms-\x7f",
        "ms-1\u200b",
        f'"{TOKEN}"',
        f"'{TOKEN}'",
        f"`{TOKEN}`",
        f"“{TOKEN}”",
        f"<{TOKEN}>",
        f"MODELSCOPE_API_TOKEN={TOKEN}",
        f"export TOKEN='{TOKEN}'",
        f"X-Token: {TOKEN}",
        f"{TOKEN},{TOKEN}",
        "${MODELSCOPE_API_TOKEN}",
        "{{ var.value.token }}",
        "<MODELSCOPE_SDK_TOKEN>",
    ],
    ids=ascii,
)
def test_an_invalid_token_is_an_error_that_does_not_show_it(password: str) -> None:
    message = problem(password=password)
    assert message == (
        "password contains characters that no API token has: enter the token alone, such as ms-..., without "
        "quotes and without NAME=."
    )


@pytest.mark.parametrize(
    "password",
    [
        "ms-...",
        "Bearer ms-...",
        "ms-xxxxxxxx-xxxx-XXXX-xxxx-xxxxxxxxxxxx",
        "YOUR_TOKEN",
        "MODELSCOPE_SDK_TOKEN",
        "MODELSCOPE_TOKEN",
        "API_TOKEN",
        "ms-token",
        "ms-",
        "token",
        "insert-token-here",
        "ms-your-token",
        "ms-your-token-here",
        "ms-YOUR_API_KEY",
        "ms-yourtoken",
        "YOURTOKEN",
        "ms-token-goes-here",
        "changeme",
        "change-me",
        "placeholder",
        "ms-placeholder",
        "ms-my-secret-token",
        "ms-00000000-0000-0000-0000-000000000000",
        "Token",
    ],
)
def test_a_placeholder_is_an_error_with_the_url_of_tokens(password: str) -> None:
    message = problem(password=password)
    assert message == (
        "password is a placeholder: replace it with an API token from https://modelscope.cn/my/myaccesstoken."
    )


@pytest.mark.parametrize(
    "token", ["ms_oauth.eyJ0-A_b.c~d/e+f==", "ms-token-1", "tokens", "ms-yours", "any-token", "ms-keyboard"]
)
def test_a_token_may_be_of_any_bearer_scheme(token: str) -> None:
    assert account(password=token).token == token


@pytest.mark.parametrize("token", ["sk-or-v1-0123", "hf_abcdefghijk", "r8_abc", "ghp_abc", "AIzaSyA"])
def test_another_services_token_is_for_a_gateway_only(token: str) -> None:
    assert problem(password=f"Bearer {token}") == (
        "password is another service's token: replace it with an API token from "
        "https://modelscope.cn/my/myaccesstoken."
    )
    assert account(password=token, host="https://gateway.example").token == token


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ({"host": None}, DEFAULT_BASE_URL),
        ({"host": " "}, DEFAULT_BASE_URL),
        ({"host": "api-inference.modelscope.ai"}, "https://api-inference.modelscope.ai"),
        ({"host": " https://api.example "}, "https://api.example"),
        ({"host": "https://api.example/"}, "https://api.example"),
        ({"host": "https://api.example/v1"}, "https://api.example"),
        ({"host": "https://api.example/v1/"}, "https://api.example"),
        ({"host": "https://api.example/v1//"}, "https://api.example"),
        ({"host": "https://api.example//"}, "https://api.example"),
        ({"host": "https://api.example//v1//"}, "https://api.example"),
        ({"host": "https://api.example//prefix//v1"}, "https://api.example/prefix"),
        ({"host": f"{DEFAULT_BASE_URL}//v1//"}, DEFAULT_BASE_URL),
        ({"host": f"{DEFAULT_BASE_URL}.:443/v1"}, DEFAULT_BASE_URL),
        ({"host": "https://api.example/V1/"}, "https://api.example"),
        *(
            ({"host": f"https://api.example/v1/{path}"}, f"https://api.example/v1/{path}")
            for path in ("models/qwen", "chat-gw", "tasks-api", "tasks/5/gw", "images/gw", "chat")
        ),
        ({"host": "https://api.example/v1/models/qwen/v1"}, "https://api.example/v1/models/qwen"),
        ({"host": "notopenai.com"}, "https://notopenai.com"),
        ({"host": "api.example/v1"}, "https://api.example"),
        ({"host": "HTTPS://API.Example/Prefix/v1"}, "https://api.example/Prefix"),
        ({"host": "https://api.example/prefix"}, "https://api.example/prefix"),
        ({"host": "https://api.example/prev1"}, "https://api.example/prev1"),
        ({"host": "https://api.example/v1beta"}, "https://api.example/v1beta"),
        ({"host": "api.example:8443"}, "https://api.example:8443"),
        ({"host": "api.example", "port": 8443}, "https://api.example:8443"),
        ({"host": "https://api.example/v1", "port": 8443}, "https://api.example:8443"),
        ({"host": "https://api.example:8443/v1", "port": 8443}, "https://api.example:8443"),
        # The usual port of the scheme is left out, so that ModelScope's own services are recognized.
        ({"port": 443}, DEFAULT_BASE_URL),
        ({"port": "443"}, DEFAULT_BASE_URL),
        ({"host": "https://api-inference.modelscope.ai", "port": 443}, "https://api-inference.modelscope.ai"),
        ({"host": "https://api-inference.modelscope.ai:443"}, "https://api-inference.modelscope.ai"),
        ({"host": "http://localhost", "port": 80}, "http://localhost"),
        ({"host": "http://localhost", "port": 443}, "http://localhost:443"),
        ({"port": 8443}, f"{DEFAULT_BASE_URL}:8443"),
        ({"host": "http://127.0.0.1:8765", "port": 8765}, "http://127.0.0.1:8765"),
        # What the UI sends if there is no port.
        ({"port": 0}, DEFAULT_BASE_URL),
        ({"host": "http://127.0.0.1:8765", "port": 0}, "http://127.0.0.1:8765"),
        ({"host": "api.example", "schema": "https"}, "https://api.example"),
        ({"host": "api.example", "schema": "sales"}, "https://api.example"),
        ({"host": "https://[2001:DB8::1]:8443/v1"}, "https://[2001:db8::1]:8443"),
        ({"host": "[2001:db8::1]", "port": 8443}, "https://[2001:db8::1]:8443"),
        ({"host": "2001:db8::1"}, "https://[2001:db8::1]"),
        # This machine: http is the default.
        ({"host": "127.0.0.1", "port": 8765}, "http://127.0.0.1:8765"),
        ({"host": "127.8.9.1/v1"}, "http://127.8.9.1"),
        ({"host": "localhost:8765/v1/"}, "http://localhost:8765"),
        ({"host": "localhost/v1"}, "http://localhost"),
        ({"host": "LocalHost"}, "http://localhost"),
        ({"host": "api.localhost"}, "http://api.localhost"),
        ({"host": "[::1]:8765"}, "http://[::1]:8765"),
        ({"host": "::1", "port": 8765}, "http://[::1]:8765"),
        ({"host": "http://127.0.0.1:8765"}, "http://127.0.0.1:8765"),
        ({"host": "http://[::1]:8765/v1"}, "http://[::1]:8765"),
        ({"host": "https://localhost"}, "https://localhost"),
        ({"host": "localhost", "schema": "https"}, "https://localhost"),
        # Another machine: http only if allowed.
        ({"host": "http://api.example", "extra": {"allow_http": True}}, "http://api.example"),
        ({"host": "api.example", "schema": "http", "extra": {"allow_http": True}}, "http://api.example"),
        ({"host": "api.example", "extra": {"allow_http": True}}, "https://api.example"),
    ],
    ids=str,
)
def test_the_base_url_is_made_of_host_schema_and_port(given: dict[str, Any], base_url: str) -> None:
    assert account(**given).base_url == base_url


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"host": "http://api.example"}, "would send the token unencrypted to api.example"),
        ({"host": "HTTP://api.example"}, "set allow_http in the extra"),
        ({"host": "api.example", "schema": "http"}, "unencrypted"),
        ({"host": "http://localhost.example"}, "unencrypted"),
        ({"host": "http://notlocalhost"}, "unencrypted"),
        ({"host": "http://0.0.0.0"}, "unencrypted"),
        ({"host": "http://128.0.0.1"}, "unencrypted"),
        ({"host": "http://[::2]"}, "unencrypted"),
        ({"host": "http://api.example", "extra": {"allow_http": "false"}}, "unencrypted"),
        ({"host": "https://me:secret@api.example"}, "must be a bare URL"),
        ({"host": "me@api.example"}, "must be a bare URL"),
        ({"host": "https://api.example/?a=b"}, "without user, query or fragment"),
        ({"host": "https://api.example#v1"}, "must be a bare URL"),
        ({"host": "ftp://api.example"}, "must be a URL such as https://api-inference.modelscope.cn"),
        ({"host": "https://"}, "must be a URL"),
        ({"host": "https:///v1"}, ", not 'https:///v1'"),
        ({"host": "//api.example"}, "must be a URL"),
        (
            {"host": "https://modelscope.cn/models/Qwen/Qwen-Image"},
            "must be https://api-inference.modelscope.cn or https://api-inference.modelscope.ai, not "
            "ModelScope's website: 'https://modelscope.cn/models/Qwen/Qwen-Image'",
        ),
        ({"host": "https://modelscope.cn."}, "not ModelScope's website"),
        ({"host": "www.modelscope.cn"}, "not ModelScope's website"),
        ({"host": "https://www.modelscope.ai/my/myaccesstoken"}, "not ModelScope's website"),
        (
            {"host": "https://dashscope.aliyuncs.com/api/v1"},
            f"must be a URL such as {DEFAULT_BASE_URL}, not another service, which would get the token: "
            "'https://dashscope.aliyuncs.com/api/v1'",
        ),
        ({"host": "api.openai.com/v1"}, "not another service"),
        ({"host": "huggingface.co"}, "not another service"),
        ({"host": "https://api.openai.com./v1"}, "not another service"),
        ({"host": "dashscope-us.aliyuncs.com"}, "not another service"),
        ({"host": f"{DEFAULT_BASE_URL}./api"}, "without the path '/api'"),
        ({"host": "http://localhost.example."}, "unencrypted"),
        ({"host": "https://."}, "must be a URL"),
        ({"host": f"{DEFAULT_BASE_URL}/api/v1/"}, "without the path '/api'"),
        (
            {"host": f"{DEFAULT_BASE_URL}/models/Qwen/Qwen-Image"},
            "without the path '/models/Qwen/Qwen-Image'",
        ),
        ({"host": "https://api.example//v1//tasks/5"}, "without the endpoint '/v1/tasks/5'"),
        *(
            ({"host": f"https://api.example/gw{path}/"}, f"without the endpoint '{path}'")
            for path in (
                "/v1/images",
                "/V1/Images/Generations",
                "/v1/tasks",
                "/v1/models",
                "/v1/chat/completions",
            )
        ),
        ({"host": f"'{DEFAULT_BASE_URL}'"}, "must be a URL"),
        ({"host": "https://[::1"}, "is not a URL"),
        ({"host": "https://api.example:https"}, "is not a URL"),
        ({"host": "api.example:99999"}, "is not a URL"),
    ],
    ids=str,
)
def test_an_invalid_host_is_an_error_that_hides_logins(given: dict[str, Any], part: str) -> None:
    message = problem(**given)
    assert message.startswith("host ")
    assert part in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": -1}, "port must be an integer from 1 to 65535, not -1."),
        ({"port": 65536}, "port must be an integer from 1 to 65535, not 65536."),
        ({"port": "https"}, "port must be an integer from 1 to 65535, not 'https'."),
        (
            {"port": 65536, "host": "ftp://api.example"},
            "port must be an integer from 1 to 65535, not 65536; "
            f"host must be a URL such as {DEFAULT_BASE_URL}, not 'ftp://api.example'.",
        ),
        (
            {"port": 443, "host": "http://127.0.0.1:8765"},
            "port must be empty or 8765, the port in host, not 443.",
        ),
        ({"host": "api.example:0"}, "host is not a URL: its port must be from 1 to 65535, not 0."),
    ],
    ids=str,
)
def test_an_invalid_port_is_an_error_that_names_its_field(given: dict[str, Any], message: str) -> None:
    assert problem(**given) == message


@pytest.mark.parametrize("port", [None, 0, 8765])
@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "https://api-inference.modelscope.ai",
        "http://127.0.0.1:8765",
        "127.0.0.1",
        "http://[::1]",
        "https://api.example/v1",
    ],
)
def test_the_uri_that_the_button_tests_means_the_same(host: str | None, port: int | None) -> None:
    stored = StoredConnection(conn_id="mine", conn_type="modelscope", password=TOKEN, host=host, port=port)
    stored.login = stored.schema = ""  # as the UI sends them
    tested = StoredConnection(conn_id="mine", uri=stored.get_uri())
    assert account_from_connection(tested) == account(host=host, port=port)


def test_the_mask_of_a_token_is_an_error_with_the_command() -> None:
    message = problem(password="***")
    assert message.startswith("password is '***', Airflow's mask of a token")
    assert message.endswith("Use the command airflow connections test.")


@pytest.mark.parametrize(
    ("extra", "name", "value"),
    [
        ({"request_timeout": 5}, "request_timeout", 5),
        ({"request_timeout": 5.0}, "request_timeout", 5),
        ({"request_timeout": " 5 "}, "request_timeout", 5),
        ({"request_timeout": 1}, "request_timeout", 1),
        ({"request_timeout": 600}, "request_timeout", 600),
        ({"request_timeout": ""}, "request_timeout", 30.0),
        ({"request_timeout": None}, "request_timeout", 30.0),
        ({"max_image_bytes": 1}, "max_image_bytes", 1),
        ({"max_image_bytes": "1024"}, "max_image_bytes", 1024),
        ({"max_image_bytes": 2**40}, "max_image_bytes", 2**40),
        ({"allowed_image_hosts": ["images.example"]}, "allowed_image_hosts", ("images.example",)),
        (
            {"allowed_image_hosts": "A.Example., *.b.example ,"},
            "allowed_image_hosts",
            ("a.example", "*.b.example"),
        ),
        (
            {"allowed_image_hosts": ["minio", "10.0.0.7", "fd00::7"]},
            "allowed_image_hosts",
            ("minio", "10.0.0.7", "fd00::7"),
        ),
        ({"allowed_image_hosts": []}, "allowed_image_hosts", ()),
        ({"allowed_image_hosts": " "}, "allowed_image_hosts", ()),
        ({"verify": True}, "verify", True),
        ({"verify": "true"}, "verify", True),
        ({"verify": 1}, "verify", True),
        ({"verify": None}, "verify", True),
        ({"verify": ""}, "verify", True),
        ({"verify": " "}, "verify", True),
        ({"verify": False}, "verify", False),
        ({"verify": "False"}, "verify", False),
        ({"verify": " 0 "}, "verify", False),
        ({"verify": __file__}, "verify", __file__),
        ({"verify": f" {__file__}\n"}, "verify", __file__),
        ({"proxy": "http://proxy.example:3128"}, "proxy", "http://proxy.example:3128"),
        ({"proxy": " http://proxy.example:3128 "}, "proxy", "http://proxy.example:3128"),
        ({"proxy": "https://me:secret@proxy.example"}, "proxy", "https://me:secret@proxy.example"),
        ({"proxy": ""}, "proxy", None),
        ({"unknown": None}, "proxy", None),
    ],
    ids=str,
)
def test_extras_are_json_types_or_the_text_of_a_uri(extra: dict[str, Any], name: str, value: Any) -> None:
    read = getattr(account(extra=extra), name)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_an_invalid_extra_is_named_with_what_is_allowed(name: str, value: Any) -> None:
    message = problem(extra={name: value})
    assert message.startswith(f"{name} must be {FIELDS[name].allowed}")
    assert "secret" not in message
    assert len(message) < 300


def test_an_invalid_host_is_named_without_its_login() -> None:
    message = problem(extra={"allowed_image_hosts": "a.example, me:secret@b.example:1"})
    assert message.endswith(", not 'b.example:1'.")


@pytest.mark.parametrize("name", ["request_timeout", "max_image_bytes"])
def test_the_checks_accept_the_range_of_the_form(name: str) -> None:
    schema = FIELDS[name].form_input["schema"]
    for limit in (schema["minimum"], schema["maximum"]):
        assert getattr(account(extra={name: limit}), name) == limit
    for beyond in (schema["minimum"] - 1, schema["maximum"] + 1):
        assert f"from {schema['minimum']} to {schema['maximum']}, not {beyond}" in problem(
            extra={name: beyond}
        )


def test_the_fields_and_their_defaults_are_those_of_the_account() -> None:
    of_account = {field.name: field.default for field in fields(Account)}
    of_connection = {name: field.default for name, field in FIELDS.items() if name != "allow_http"}
    assert of_connection == {name: of_account[name] or None for name in of_connection}
    assert set(of_account) - set(of_connection) == {"token", "base_url"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verfy", "unknown extra 'verfy' (did you mean verify?)."),
        ("Verify", "unknown extra 'Verify' (did you mean verify?)."),
        ("token", f"unknown extra 'token' (allowed are {', '.join(FIELDS)})."),
    ],
)
def test_an_unknown_extra_is_named_with_a_suggestion(name: str, message: str) -> None:
    assert problem(extra={name: "secret"}) == message


@pytest.mark.parametrize(
    "extra", ["request_timeout=5", "[]", '"text"', "null", '{"a":' * 100_000], ids=lambda extra: extra[:20]
)
def test_an_extra_must_be_a_json_object(extra: str) -> None:
    assert problem(extra=extra) == "extra must be a JSON object."


@pytest.mark.skipif(not hasattr(Connection, "from_uri"), reason="the task SDK reads URIs since Airflow 3.1")
@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (f"modelscope://:{TOKEN}@", {}),
        (f"modelscope://:Bearer%20{TOKEN}%0A@", {}),
        (f"modelscope://:{TOKEN}@api.example", {"base_url": "https://api.example"}),
        (f"modelscope://:{TOKEN}@https%3A%2F%2Fapi.example%2Fv1", {"base_url": "https://api.example"}),
        (f"modelscope://https://:{TOKEN}@api.example:8443", {"base_url": "https://api.example:8443"}),
        (f"modelscope://:{TOKEN}@127.0.0.1:8765", {"base_url": "http://127.0.0.1:8765"}),
        (f"modelscope://:{TOKEN}@[::1]:8765", {"base_url": "http://[::1]:8765"}),
        (f"modelscope://:{TOKEN}@api.example/http?allow_http=true", {"base_url": "http://api.example"}),
        (
            f"modelscope://:{TOKEN}@/?request_timeout=5&verify=false&max_image_bytes=9&proxy=http%3A%2F%2Fp%3A1",
            {"request_timeout": 5.0, "verify": False, "max_image_bytes": 9, "proxy": "http://p:1"},
        ),
        (f"modelscope://:{TOKEN}@/?__extra__=%7B%22verify%22%3A+false%7D", {"verify": False}),
    ],
)
def test_a_uri_means_the_same_as_its_fields(uri: str, expected: dict[str, Any]) -> None:
    read = account_from_connection(Connection.from_uri(uri, conn_id="mine"))
    assert read == Account(token=TOKEN, **expected)


def test_an_account_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(account(), "base_url", "https://elsewhere.example")  # noqa: B010 - mypy knows that it is frozen


def test_the_repr_of_an_account_shows_no_secret() -> None:
    shown = repr(account(extra={"proxy": "http://me:secret@proxy.example"}))
    assert "base_url" in shown
    assert TOKEN not in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("base_url", "hub_url", "token_url"),
    [
        (DEFAULT_BASE_URL, "https://modelscope.cn", "https://modelscope.cn/my/myaccesstoken"),
        (
            "https://api-inference.modelscope.ai",
            "https://modelscope.ai",
            "https://modelscope.ai/my/myaccesstoken",
        ),
        ("http://127.0.0.1:8765", None, "https://modelscope.cn/my/myaccesstoken"),
    ],
)
def test_each_service_has_its_own_website(base_url: str, hub_url: str | None, token_url: str) -> None:
    made = Account(token=TOKEN, base_url=base_url)
    assert (made.hub_url, made.token_url) == (hub_url, token_url)
