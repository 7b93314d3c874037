"""What may be shown of a text or a value: without secrets, on one line, not too long."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MAX_MESSAGE = 4000  # characters
MAX_NAME = 100  # characters of an id or a word
MIN_SECRET = 8  # characters: what is shorter keeps nothing secret, and stands in ordinary words

# What opens a door, in URLs of proxies, pictures and stores: a login, and a signature in a query.
_LOGIN = re.compile(
    r"(?<=//)[^\s/@?#:'\"<>]*:[^\s/@?#'\"<>]*@"  # a user with a password; s3://conn_id@ names a connection
    r"|(?<=https://)[^\s/@?#'\"<>]+@|(?<=http://)[^\s/@?#'\"<>]+@",
    re.IGNORECASE,
)
_QUERY = re.compile(r"(https?://[^\s?'\"<>]+)\?[^\s'\"<>]+", re.IGNORECASE)


def redacted(text: str, secret: str) -> str:
    """Return text without a secret that it repeats."""
    return text.replace(secret, "***") if len(secret) >= MIN_SECRET else text


def without_login(text: str) -> str:
    """Return text without the users and passwords of URLs in it."""
    return _LOGIN.sub("...@", text)


def one_line(text: str, most: int, *, secret: str = "") -> str:
    """Return text as one line that every log and database can hold, without logins and queries of URLs.

    :param most: How many characters to keep, at most.
    :param secret: What not to show of it: the token, which a service may echo.
    """
    text = _QUERY.sub(r"\1?...", without_login(redacted(text, secret)[: 2 * most]))[:most]
    # Escape sequences would speak to a terminal, PostgreSQL takes no NUL, UTF-8 no half of a surrogate pair.
    odd = set() if text.isprintable() else {letter for letter in set(text) if not letter.isprintable()}
    return text.translate({ord(letter): " " if letter.isspace() else "\ufffd" for letter in odd}).strip()


def without_query(url: str) -> str:
    """Return the URL as it may be shown: who holds a signed query, or a password, has the image."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return url.partition("?")[0].rpartition("@")[2]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def preview(value: Any, most: int = 80) -> str:
    """Return a wrong value as an error shows it, in so many characters or a few more."""
    try:
        return truncated(repr(value), most)
    except Exception:  # an integer of thousands of digits, a list in a list in a list ...
        return f"a huge {type(value).__name__}"


def truncated(text: str, most: int) -> str:
    """Cut what is long: a ``data:`` URI may hold megabytes."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"
