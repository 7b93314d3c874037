"""Searches for a secret in files, in the tables of Airflow's database, and in stored objects."""

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

Place = tuple[str, bytes]  # name and content


def forms_of(secret: str) -> dict[str, bytes]:
    """Return the forms of a secret by name."""
    plain = secret.encode()
    quoted = quote(secret, safe="").encode()
    forms = {
        "plain": plain,
        "URL-encoded": quoted,
        "URL-encoded in lower case": re.sub(rb"%..", lambda code: code[0].lower(), quoted),
        "JSON with escaped slashes": plain.replace(b"/", rb"\/"),
        "hexadecimal": plain.hex().encode(),  # the text form of bytes in PostgreSQL
    }
    for skipped in range(3):
        # Base64 of a longer text that contains the secret, without the characters that encode its neighbours.
        encoded = base64.b64encode(bytes(skipped) + plain)
        begin, end = -(-skipped * 8 // 6), (skipped + len(plain)) * 8 // 6
        forms[f"Base64, {skipped} bytes before it"] = encoded[begin:end]
        forms[f"Base64 for URLs, {skipped} bytes before it"] = encoded[begin:end].translate(
            bytes.maketrans(b"+/", b"-_")
        )
    return forms


def find(secret: str, places: Iterable[Place]) -> list[str]:
    """Return the places that contain a secret, each with the form."""
    forms = forms_of(secret)
    return [
        f"{name}: {form}" for name, content in places for form, encoded in forms.items() if encoded in content
    ]


def files(folder: Path) -> Iterator[Place]:
    """Yield every file in a folder and its subfolders. The content includes the name."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # Airflow may have removed it
            yield str(path), str(path).encode() + b"\0" + path.read_bytes()


def tables(engine: Engine) -> Iterator[Place]:
    """Yield every column of every table of a database, as text."""
    with engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            columns = [column["name"] for column in inspect(connection).get_columns(table)]
            for column in columns:
                statement = text(f'select cast("{column}" as text) from "{table}"')  # noqa: S608 - names from the database
                content = "\0".join(value or "" for (value,) in connection.execute(statement))
                yield f"{table}.{column}", content.encode()
