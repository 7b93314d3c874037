"""Texts and values are safe to show: no secrets, one line, limited length."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_modelscope.redaction import one_line, preview, redacted, truncated, without_query

SECRET = "ms-0123456789"


def test_a_secret_is_redacted_unless_it_is_too_short_to_be_one() -> None:
    assert one_line(f"Bearer {SECRET} or {SECRET}", 20, secret=SECRET) == "Bearer *** or ***"
    assert one_line("task not found", 100, secret="not") == "task not found"
    assert one_line("task not found", 100) == "task not found"
    assert redacted(f"a {SECRET}", SECRET) == "a ***"
    assert redacted(f"a {SECRET}", "") == f"a {SECRET}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("PROCESSING", "PROCESSING"),
        ("a\r\nb\tc\u2028d", "a  b c d"),
        ("a\0b\x1b[2Jc\ud800d\u202e", "a\ufffdb\ufffd[2Jc\ufffdd\ufffd"),
        (" \n a \n ", "a"),
        ("猫 😀", "猫 😀"),
        ("x" * 200, "x" * 100),
    ],
    ids=ascii,
)
def test_one_line_is_printable_and_limited(text: str, shown: str) -> None:
    assert one_line(text, 100) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://a.example/b?sign=1 now", "see https://a.example/b?... now"),
        ("HTTP://a.example/?a", "HTTP://a.example/?..."),
        ("https://me:pass@a.example/b", "https://...@a.example/b"),
        ("https://token@a.example", "https://...@a.example"),
        ("redis://:pass@host:1", "redis://...@host:1"),
        ("s3://conn@bucket/key", "s3://conn@bucket/key"),
        ("me@a.example? yes", "me@a.example? yes"),
        ("https:/a?b", "https:/a?b"),
    ],
)
def test_one_line_hides_logins_and_queries_of_urls(text: str, shown: str) -> None:
    assert one_line(text, 100) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/b?c=d#e", "https://a.example/b"),
        ("https://me:secret@a.example:1/b", "https://a.example:1/b"),
        ("https://me:secret@[::1/b?c", "[::1/b"),
    ],
)
def test_a_url_is_shown_without_login_query_and_fragment(url: str, shown: str) -> None:
    assert without_query(url) == shown


def test_a_long_text_is_truncated_to_its_beginning_and_length() -> None:
    assert truncated("x" * 80, 80) == "x" * 80
    assert truncated("x" * 81, 80) == f"{'x' * 60}... (81 characters)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("a", "'a'"), (None, "None"), ("x" * 100, f"'{'x' * 59}... (102 characters)"), (10**5000, "a huge int")],
    ids=["text", "none", "long", "huge"],
)
def test_a_preview_is_short_whatever_the_value(value: Any, shown: str) -> None:
    assert preview(value) == shown
