"""Files of requests: JSONL, CSV and Parquet, from object storage, one request at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn

from airflow_provider_modelscope.images.object_storage import open_object, unreadable
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.redaction import preview, preview_url, truncated
from airflow_provider_modelscope.validation import raise_invalid, unknown_names

# What a request may contain: the names of a mapping, or of the columns of a file.
NAMES = (*(field.name for field in fields(GenerationRequest)), "key", "data")
MAX_LINE = 20 * 1024**2  # bytes: a data: URI of an image may have 14 million
PARQUET_BATCH = 16  # rows that are in memory at once
JSON_OF_PARQUET = ("loras", "extra_parameters")  # a struct has each name in each row, most of them NULL

_SAVE_AS_UTF8 = "save the file as UTF-8"
_OTHER_FORMATS = {
    b"\x1f\x8b": "is compressed with gzip: decompress it",
    b"PAR1": "is a Parquet file: end its name with .parquet",
    b"PK\x03\x04": "is a workbook or a zip file: save it as CSV in UTF-8",
    b"\xff\xfe": f"is UTF-16: {_SAVE_AS_UTF8}",
    b"\xfe\xff": f"is UTF-16: {_SAVE_AS_UTF8}",
}

# What to do about an error of the csv module, by how its text starts.
_CSV_ADVICE = {
    "field larger": "close its quotes, or use JSONL for values as long as this",
    "new-line": "end lines with LF or CR LF",
    "": "check its quotes",
}


class Entry(NamedTuple):
    """One request as the input contains it.

    :param place: Where it is, for errors, such as ``line 17``; empty for the input as a whole.
    :param value: A prompt, or a mapping of names to values.
    :param problem: What is wrong, if there is no value.
    """

    place: str
    value: Any = None
    problem: str | None = None


class _UnreadableError(Exception):
    """The rest of a file cannot be read."""

    def __init__(self, place: str, problem: str) -> None:
        self.place, self.problem = place, problem


def read_file(uri: str, storage_conn_id: str | None) -> Iterator[Entry]:
    """Yield the requests of a file, and an entry with a problem in place of each that cannot be read.

    It ends at the first problem that leaves the rest of the file unknown.

    :param uri: ``s3://bucket/folder/name.jsonl``, or with the suffix ``.csv`` or ``.parquet``.
    :raises InvalidRequestError: if there is no such file, or it can never be read.
    :raises ModelScopeRetryableError: if it cannot be read now.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in _READERS:
        raise_invalid([f"requests = {preview_url(uri, 300)}: must end with {' or '.join(FORMATS)}"])
    try:
        file = open_object(uri, storage_conn_id, parameter="requests")
    except Exception as error:  # each store has errors of its own
        raise unreadable(uri, error, parameter="requests") from error
    with file:
        try:
            yield from _READERS[suffix](file)
        except _UnreadableError as error:
            yield Entry(error.place, problem=error.problem)
        except OSError as error:
            raise unreadable(uri, error, parameter="requests") from error


def parse_json(text: str) -> Any:
    """Return a JSON value.

    :raises ValueError: if it is none, if it contains NaN, or an object has a name twice.
    """
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg.removesuffix(' at')} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it contains {preview(twice)} twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, with their ends."""
    start = file.read(4)
    file.seek(0)
    for magic, problem in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise _UnreadableError("", problem)
    number = offset = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        place = f"line {number}"
        if len(line) > MAX_LINE:
            raise _UnreadableError(place, f"is longer than {MAX_LINE // 1024**2} MiB")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            at = offset + error.start + 1
            raise _UnreadableError(place, f"is not UTF-8 at byte {at} of the file: {_SAVE_AS_UTF8}") from None
        if "\0" in text:
            raise _UnreadableError(place, f"contains a NUL byte, as UTF-16 does: {_SAVE_AS_UTF8}")
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def _read_jsonl(file: IO[bytes]) -> Iterator[Entry]:
    is_first = True
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            raise _UnreadableError(f"line {number}", "is an array: write one object or string per line")
        is_first = False
        try:
            yield Entry(f"line {number}", parse_json(line))
        except ValueError as error:
            yield Entry(f"line {number}", problem=f"is not JSON: {truncated(str(error), 200)}")


def _read_csv(file: IO[bytes]) -> Iterator[Entry]:
    reader = csv.reader(_lines(file), strict=True)
    names: Sequence[str] = ()
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            advice = next(advice for start, advice in _CSV_ADVICE.items() if str(error).startswith(start))
            raise _UnreadableError(place, f"is not CSV ({error}): {advice}") from None
        if not any(cells):  # a blank line
            continue
        if not names:
            names = _checked_names(cells, place)
        elif len(cells) != len(names):
            advice = "quote a cell with a comma in it"
            problem = f"must have {len(names)} cells, as the header, not {len(cells)}: {advice}"
            yield Entry(place, problem=problem)
        else:
            yield _table_entry(place, dict(zip(names, cells, strict=True)))


def _table_entry(place: str, row: dict[str, Any]) -> Entry:
    """Return the entry for a row of a table, in which data that is no text stands as JSON."""
    data = row.get("data")
    if isinstance(data, str) and data.lstrip()[:1] in ("{", "["):
        try:
            row["data"] = parse_json(data)
        except ValueError as error:
            problem = f"data is not JSON, although it starts with {data.lstrip()[0]!r}: {error}"
            return Entry(place, problem=truncated(problem, 300))
    return Entry(place, row)


def _read_parquet(file: IO[bytes]) -> Iterator[Entry]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        install = "run pip install 'airflow-provider-modelscope[parquet]' on every worker"
        raise _UnreadableError("", f"Parquet needs pyarrow: {install}") from None
    number = 0
    try:
        # Without these two, all columns of a row group are in memory at once.
        table = parquet.ParquetFile(file, buffer_size=1024**2, pre_buffer=False)
        names = _checked_names(table.schema_arrow.names, "")
        for batch in table.iter_batches(batch_size=PARQUET_BATCH, use_threads=False):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield _table_entry(f"row {number}", _parquet_row(zip(names, values, strict=True)))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        problem = f"cannot be read as Parquet ({truncated(str(error), 200)})"
        raise _UnreadableError(f"after row {number}" if number else "", problem) from None


def _parquet_row(cells: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(cells)
    for name in JSON_OF_PARQUET:
        value = row.get(name)
        if isinstance(value, list):  # a map
            with suppress(TypeError, ValueError):
                value = dict(value)
        if isinstance(value, dict):
            row[name] = {key: one for key, one in value.items() if one is not None}
    return row


def _checked_names(given: Sequence[str], place: str) -> Sequence[str]:
    """Return the names of columns."""
    names = [name.strip() for name in given]
    problems = [
        f"column {number} has no name: name or delete it"
        for number, name in enumerate(names, start=1)
        if not name
    ]
    problems += [
        f"column {preview(name)} occurs twice" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    problems += unknown_names(filter(None, names), NAMES, kind="column")
    if len(names) == 1 and (other := next((sign for sign in ";\t|" if sign in names[0]), None)):
        problems = [f"its columns are separated by {other!r}: save the file with commas"]
    elif "prompt" not in names:
        problems.append("no column is named prompt: the header must name the columns")
    if problems:
        raise _UnreadableError(place, "; ".join(problems[:10]))
    return names


_READERS: Mapping[str, Callable[[IO[bytes]], Iterator[Entry]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
FORMATS = tuple(_READERS)
