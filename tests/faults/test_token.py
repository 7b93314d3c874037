"""After all the faults, the token stands nowhere: in no log, no table, no object, no temporary file."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.faults.stage import TOKEN

if TYPE_CHECKING:
    from tests.faults.stage import Outcome, Stage

COPIES = {
    "plain": f"Authorization: Bearer {TOKEN}",
    "URL-encoded": f"https://example.com/?token={quote(TOKEN, safe='')}&n=1",
    "URL-encoded in lower case": "".join(
        f"%{ord(letter):02x}" if letter in "/+=" else letter for letter in TOKEN
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


def test_the_token_stands_nowhere(stage: Stage, outcomes: dict[str, Outcome]) -> None:
    assert stage.leaks + stage.search() == []


def test_a_copy_would_be_found_in_any_form_and_place(stage: Stage) -> None:
    with stage.planted("\n".join(COPIES.values())) as places:
        found = stage.search()
    assert set(found) == {f"{place}: {form}" for place in places for form in COPIES}
    assert stage.search() == []
