"""Make text and values safe to show: no secrets, one line, limited length."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MAX_MESSAGE = 4000  # characters
MAX_NAME = 100  # characters of an id or a word
MIN_SECRET = 8  # characters; shorter text is part of ordinary words and keeps nothing secret

# URLs of proxies, images and stores can contain credentials: a login, or a signature in the query.
_LOGIN = re.compile(
    r"(?<=//)[^\s/@?#:'\"<>]*:[^\s/@?#'\"<>]*@"  # user and password; s3://conn_id@ names a connection
    r"|(?<=https://)[^\s/@?#'\"<>]+@|(?<=http://)[^\s/@?#'\"<>]+@",
    re.IGNORECASE,
)
_URL = re.compile(r"https?://[^\s'\"<>]+", re.IGNORECASE)  # whole: to search for "?" is quadratic


def redacted(text: str, secret: str) -> str:
    """Replace every occurrence of a secret."""
    return text.replace(secret, "***") if len(secret) >= MIN_SECRET else text


def without_login(text: str) -> str:
    """Remove users and passwords from the URLs in a text."""
    return _LOGIN.sub("...@", text)


def one_line(text: str, most: int, *, secret: str = "") -> str:
    """Return text as one line that every log and database can store, without logins and queries of URLs.

    :param most: Maximum number of characters.
    :param secret: Text to replace, such as a token that a service may echo.
    """
    text = redacted(text, secret)[: 2 * most]
    if "//" in text:  # else it contains no URL
        text = _URL.sub(lambda url: without_secrets(url[0]), without_login(text))
    text = text[:most]
    if not text.isprintable():
        # Terminals execute escape sequences; PostgreSQL rejects NUL, and UTF-8 rejects lone surrogates.
        odd = {letter for letter in text if not letter.isprintable()}
        text = text.translate({ord(letter): " " if letter.isspace() else "\ufffd" for letter in odd})
    return text.strip()


def without_secrets(url: str) -> str:
    """Return a URL without login, and with its query cut off, which may be a signature."""
    address, mark, query = without_login(url).partition("?")
    return f"{address}?..." if query else address + mark


def without_query(url: str) -> str:
    """Return a URL without login, query and fragment: a signed query gives access to the image."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return url.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def preview(value: Any, most: int = 80) -> str:
    """Return a value as an error message shows it, in about ``most`` characters."""
    try:
        return truncated(repr(value), most)
    except Exception:  # an integer of thousands of digits, a deeply nested list ...
        return f"a huge {type(value).__name__}"


def preview_url(value: Any, most: int = 80) -> str:
    """Return a URL, or what was given as one or a list, as :func:`preview` does: without login and query."""

    def cut(one: Any) -> Any:
        return without_secrets(one) if isinstance(one, str) else one

    return preview(type(value)(map(cut, value)) if type(value) in (list, tuple) else cut(value), most)


def truncated(text: str, most: int) -> str:
    """Cut a long text and append its length: a ``data:`` URI can hold megabytes."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"
