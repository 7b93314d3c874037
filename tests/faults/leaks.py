"""The search for a secret: in files, in every table of Airflow's database, in stored objects."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlalchemy import inspect, text

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

Place = tuple[str, bytes]  # what it is called, and what stands there


def forms_of(secret: str) -> dict[str, bytes]:
    """Return what a secret looks like, by the name of the form."""
    plain = secret.encode()
    quoted = quote(secret, safe="").encode()
    forms = {
        "plain": plain,
        "URL-encoded": quoted,
        "URL-encoded in lower case": re.sub(rb"%..", lambda code: code[0].lower(), quoted),
        "JSON with escaped slashes": plain.replace(b"/", rb"\/"),
        "hexadecimal": plain.hex().encode(),  # as PostgreSQL shows bytes
    }
    for skipped in range(3):
        # Base64 of a longer text that holds the secret: without the letters that also hold its neighbours.
        encoded = base64.b64encode(bytes(skipped) + plain)
        begin, end = -(-skipped * 8 // 6), (skipped + len(plain)) * 8 // 6
        forms[f"Base64, {skipped} bytes before it"] = encoded[begin:end]
        forms[f"Base64 for URLs, {skipped} bytes before it"] = encoded[begin:end].translate(
            bytes.maketrans(b"+/", b"-_")
        )
    return forms


def find(secret: str, places: Iterable[Place]) -> list[str]:
    """Return where a secret stands, and in which form."""
    forms = forms_of(secret)
    return [
        f"{name}: {form}" for name, content in places for form, looks in forms.items() if looks in content
    ]


def files(folder: Path) -> Iterator[Place]:
    """Every file under a folder, its name included."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # Airflow may remove it meanwhile
            yield str(path), str(path).encode() + b"\0" + path.read_bytes()


def tables(engine: Engine) -> Iterator[Place]:
    """Every column of every table of a database, as text."""
    with engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            columns = [column["name"] for column in inspect(connection).get_columns(table)]
            for column in columns:
                statement = text(f'select cast("{column}" as text) from "{table}"')  # noqa: S608 - its own names
                content = "\0".join(value or "" for (value,) in connection.execute(statement))
                yield f"{table}.{column}", content.encode()
