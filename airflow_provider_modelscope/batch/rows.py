"""The rows of a batch: its requests, read from a list or a file and validated before anything is sent."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn
from zlib import crc32

from airflow_provider_modelscope.batch.files import (
    FORMATS,
    NAMES,
    Entry,
    parse_json,
    read_file,
)
from airflow_provider_modelscope.exceptions import InvalidRequestError
from airflow_provider_modelscope.protocol.request import GenerationRequest, read_parameters
from airflow_provider_modelscope.redaction import preview, preview_url, truncated
from airflow_provider_modelscope.validation import INVALID, raise_invalid, unknown_names

MAX_KEY = 200  # bytes: a file's name has at most 255, of which suffixes need some
MAX_DATA = 64 * 1024  # bytes of JSON
MAX_LEVELS = 100  # of lists and mappings in one another: json fails at some hundreds
MAX_ERRORS, MAX_ERROR_TEXT = 20, 3600  # of the errors that a message shows: their number, and characters
_FORMS = (
    "must be a list of prompts or of mappings, or the URI of a file, such as 's3://bucket/prompts.jsonl', "
    ".csv or .parquet"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One request of a batch, validated.

    :param number: Its position in the input, from 1.
    :param key: The name of its image, without suffix. No two rows have the same key.
    :param request: The parameters of the operator, with those of the row on top.
    :param data: JSON that is passed through to the manifest.
    """

    number: int
    key: str
    request: GenerationRequest
    data: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One of several parts of a batch, which share its rows among several accounts.

    :param index: Which part it is, from 0.
    :param count: How many parts there are.
    """

    index: int
    count: int

    def contains(self, row: Row) -> bool:
        """Return whether a row belongs to this part. A row with a key of its own stays in it if it moves."""
        has_key = row.key != f"{row.number:06}"
        return (crc32(row.key.encode()) if has_key else row.number - 1) % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(given: Any) -> Shard:
    """Return the shard that text such as ``0/3`` names: the first of three.

    :raises InvalidRequestError: if it names none.
    """
    matched = re.fullmatch(r"\s*([0-9]{1,4})/([0-9]{1,4})\s*", given) if isinstance(given, str) else None
    index, count = map(int, matched.groups()) if matched else (0, 0)
    if index >= count:
        raise_invalid(
            [
                f"shard = {preview(given)}: must be text such as '0/3', '1/3' or '2/3', as "
                "'{{ ti.map_index }}/3' gives it in a mapped task: shards count from 0"
            ]
        )
    return Shard(index=index, count=count)


def read_rows(
    requests: Any,
    *,
    defaults: Mapping[str, Any],
    fallbacks: Sequence[Mapping[str, Any]] = (),
    check_ranges: bool = True,
    storage_conn_id: str | None = None,
    max_requests: int = 10_000,
    check: Callable[[Entry], object] = lambda entry: None,
) -> Iterator[Row]:
    """Yield the rows of a batch in their order. The memory that this needs grows only by their keys.

    Errors come after the last row, all in one: use no row before the end is reached. Empty input, such as an
    empty list or a file with a header alone, yields nothing.

    :param requests: A list of prompts or of mappings with parameters of the request, ``key`` and ``data``; or
        its JSON text, as a template renders it; or the URI of a ``.jsonl``, ``.csv`` or ``.parquet`` file.
        None and empty text in a row are as if they were not there.
    :param defaults: The parameters of a request that a row may leave out, as a Dag gives them.
    :param fallbacks: What ``read_fallbacks`` returned: these models must allow the size of each row.
    :param check_ranges: As for :class:`~airflow_provider_modelscope.protocol.request.GenerationRequest`.
    :param storage_conn_id: The connection to open the file with; by default the one in its URI.
    :param max_requests: How many rows are allowed.
    :param check: Called with each row before anything of it is quoted; may raise an error.
    :raises InvalidRequestError: with the first errors and their places, and how many more there are.
    :raises ModelScopeRetryableError: if the file cannot be read now.
    """
    errors = _Errors()
    reader = _RowReader(defaults, fallbacks=fallbacks, check_ranges=check_ranges, errors=errors)
    for number, entry in enumerate(_entries(requests, storage_conn_id), start=1):
        if number > max_requests:
            problem = f"there are more than {max_requests} requests: split them, or raise max_requests"
            errors.add(entry.place, problem)
            break
        check(entry)
        if row := reader.read(number, entry):
            yield row
    errors.raise_any(f"requests = {preview_url(requests, 300)}: " if _is_uri(requests) else "")


def _is_uri(requests: Any) -> bool:
    return isinstance(requests, str) and re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*://", requests) is not None


def _entries(requests: Any, storage_conn_id: str | None) -> Iterator[Entry]:
    def invalid(problem: str) -> NoReturn:
        raise InvalidRequestError(f"{INVALID}requests = {preview(requests)}: {problem}.")

    if _is_uri(requests):
        yield from read_file(requests.strip(), storage_conn_id)
        return
    if isinstance(requests, str) and requests.lstrip().startswith("["):
        try:
            requests = parse_json(requests)
        except ValueError as error:
            invalid(
                f"is not JSON, although it starts with '[' ({error}): in a template, end it with '| tojson'"
            )
    if isinstance(requests, Mapping) or (isinstance(requests, str) and requests.lstrip().startswith("{")):
        invalid(f"{_FORMS}; put a single mapping into a list")
    if isinstance(requests, str) and requests.strip().endswith(FORMATS):
        invalid(f"{_FORMS}; begin the path of a local file with 'file://'")
    if isinstance(requests, str) and requests.strip() not in ("", "None", "null"):
        invalid(f"{_FORMS}; put a single prompt into a list")
    if not isinstance(requests, Sequence) or isinstance(requests, str | bytes | bytearray):
        invalid(_FORMS)
    for index, value in enumerate(requests):
        yield Entry(f"requests[{index}]", value)


class _Errors:
    """The errors of all rows: the first ones with their text, the others as a number."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._size = self._more = 0

    def add(self, place: str, problem: str) -> None:
        error = truncated(f"{place}: {problem}" if place else problem, 1000)
        if len(self._shown) < MAX_ERRORS and self._size + len(error) <= MAX_ERROR_TEXT and not self._more:
            self._shown.append(error)
            self._size += len(error) + 2
        else:
            self._more += 1

    def raise_any(self, prefix: str) -> None:
        if self._shown or self._more:
            more = f"; and {self._more} more" if self._more else ""
            raise InvalidRequestError(f"{INVALID}{prefix}{'; '.join(self._shown)}{more}.")


class _RowReader:
    """Validates one row after the other."""

    def __init__(
        self,
        defaults: Mapping[str, Any],
        *,
        fallbacks: Sequence[Mapping[str, Any]],
        check_ranges: bool,
        errors: _Errors,
    ) -> None:
        self._defaults = _given(defaults)
        self._fallbacks = fallbacks
        self._check_ranges = check_ranges
        self._errors = errors
        self._of_defaults: set[str] = set()  # the errors of the operator's own parameters
        self._places: dict[str, str] = {}  # of the keys

    def read(self, number: int, entry: Entry) -> Row | None:
        """Return a row, or None after adding its errors."""
        own, problems = _parameters_of(entry)
        if own is not None:
            key = self._key(own.pop("key", None), number, entry.place, problems)
            data = _checked_data(own.pop("data", None), problems)
            request = self._request(own, problems)
            if request and "size" in own:
                problems += self._fallback_problems(request)
            if request and not problems:
                return Row(number=number, key=key, request=request, data=data)
        for problem in problems:
            self._errors.add(entry.place, problem)
        return None

    def _request(self, own: dict[str, Any], problems: list[str]) -> GenerationRequest | None:
        given = self._defaults | own
        if "prompt" in given and "model" in given:
            with suppress(InvalidRequestError):
                return GenerationRequest(**given, check_ranges=self._check_ranges)
        if "prompt" not in given and not problems:  # else an unknown name may be meant for it
            problems.append("prompt is missing")
        if "model" not in given:
            problems.append("model is missing: the operator has none, so each row needs one")
        for problem in read_parameters(given, check_ranges=self._check_ranges)[1]:
            name = problem.partition(" = ")[0]
            if name in own:
                problems.append(problem)
            elif name == "size" and "model" in own:
                problems.append(f"{problem}. It is the operator's: give this row a size of its own")
            elif problem not in self._of_defaults:
                self._of_defaults.add(problem)
                self._errors.add("", problem)
        return None

    def _fallback_problems(self, request: GenerationRequest) -> Iterator[str]:
        """Yield an error for each fallback model that does not allow the size of a row."""
        for fallback in self._fallbacks:
            if "size" not in fallback:
                asked = {"model": fallback["model"], "size": request.size}
                for problem in read_parameters(asked, check_ranges=self._check_ranges)[1]:
                    yield f"{problem}. {fallback['model']} is a fallback: give it a size in fallback_models"

    def _key(self, given: Any, number: int, place: str, problems: list[str]) -> str:
        """Return the key of a row, after checking that no row before has it."""
        if given is None:
            key, of = f"{number:06}", "the number of this row"
        else:
            key, of = str(given) if _is_integer(given) else given, "key"
            if rule := _key_rule(key):
                problems.append(f"key = {preview(given)}: {rule}")
                return ""
        # Some file systems do not distinguish case, or the two ways to write a letter with an accent.
        same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).lower())
        if (first := self._places.setdefault(same, place)) != place:
            problems.append(
                f"{of} = {preview(key)}: {first} has the same key, or one that differs only in case or in "
                "its Unicode form; each key names an image"
            )
        return key


def _parameters_of(entry: Entry) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the parameters that an entry gives, or None if it is no request, and its errors."""
    value = entry.value
    if entry.problem:
        return None, [entry.problem]
    if isinstance(value, str):
        if _is_json_of_mapping(value):
            return None, ["is the JSON text of a mapping: give the mapping itself"]
        if _is_uri(value) and value.strip().endswith(FORMATS):
            return None, ["is the URI of a file: give it as requests itself, not in a list or file"]
        return {"prompt": value}, []
    if not isinstance(value, Mapping):
        return None, [f"must be a prompt or a mapping, not {type(value).__name__}"]
    if _is_deeper(value, MAX_LEVELS):
        return None, [f"is nested deeper than {MAX_LEVELS} levels"]
    own = {name: one for name, one in _given(value).items() if name in NAMES}
    return own, list(unknown_names(value, NAMES, kind="parameter"))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are neither None nor empty text."""
    return {
        name: value
        for name, value in values.items()
        if not (value is None or (isinstance(value, str) and not value))
    }


def _is_json_of_mapping(prompt: str) -> bool:
    """Whether a text is a mapping with a prompt, not a prompt that is written as JSON."""
    if not prompt.lstrip().startswith("{"):
        return False
    try:
        value = parse_json(prompt)
    except ValueError:
        return False
    return isinstance(value, dict) and "prompt" in value


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, Mapping | list | tuple):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _key_rule(key: Any) -> str | None:
    """Return the rule that a key breaks."""
    if not isinstance(key, str):
        return "must be text or an integer"
    if not key.isprintable() or key != key.strip():
        return "must be printable, without spaces around it"
    if any(sign in key for sign in ("/", "\\", "?", "#", "::")):  # fsspec cuts a path at ::
        return "must not contain '/', '\\', '?', '#' or '::': it is the name of an object without its folder"
    if key.startswith("."):
        return "must not begin with '.'"
    if re.search("~[0-9]+$", key):
        return "must not end with '~' and a number, as the names of further images of a generation do"
    if len(key.encode()) > MAX_KEY:
        return f"must have at most {MAX_KEY} bytes in UTF-8, not {len(key.encode())}"
    return None


def _checked_data(data: Any, problems: list[str]) -> Any:
    """Return a copy of JSON data."""
    if data is None:
        return None
    try:
        text = json.dumps(data, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except UnicodeEncodeError:
        problems.append("data must be valid Unicode, without lone surrogates")
    except (TypeError, ValueError) as error:
        problems.append(f"data must be JSON ({truncated(str(error), 200)})")
    else:
        if size > MAX_DATA:
            problems.append(f"data must have at most {MAX_DATA // 1024} KiB of JSON, not {size} bytes")
        elif "\\u0000" in text and re.search(r"(?<!\\)(\\\\)*\\u0000", text):
            problems.append("data must not contain NUL characters: Airflow's database cannot store them")
        else:
            return json.loads(text)
    return None
