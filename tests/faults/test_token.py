"""After all faults, no log, table, object or temporary file contains the token."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.faults.system import TOKEN

if TYPE_CHECKING:
    from tests.faults.rows import Outcome
    from tests.faults.system import System

COPIES = {
    "plain": f"Authorization: Bearer {TOKEN}",
    "URL-encoded": f"https://example.com/?token={quote(TOKEN, safe='')}&n=1",
    "URL-encoded in lower case": "".join(
        f"%{ord(character):02x}" if character in "/+=" else character for character in TOKEN
    ),
    "JSON with escaped slashes": '"' + TOKEN.replace("/", "\\/") + '"',
    "hexadecimal": f"\\x{TOKEN.encode().hex()}",
    **{
        f"Base64, {before} bytes before it": base64.b64encode(b"x" * before + TOKEN.encode() + b"yz").decode()
        for before in range(3)
    },
    **{
        f"Base64 for URLs, {before} bytes before it": base64.urlsafe_b64encode(
            b"x" * before + TOKEN.encode() + b"yz"
        ).decode()
        for before in range(3)
    },
}


@pytest.mark.kill
def test_the_token_is_not_found_anywhere(system: System, outcomes: dict[str, Outcome]) -> None:
    assert system.leaks + system.search() == []


def test_a_copy_is_found_in_each_form_and_place(system: System) -> None:
    with system.planted("\n".join(COPIES.values())) as places:
        found = system.search()
    assert set(found) == {f"{place}: {form}" for place in places for form in COPIES}
    assert system.search() == []
