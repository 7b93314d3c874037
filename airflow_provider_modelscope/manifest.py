"""The rows of a batch and what became of them. :func:`read` reads the manifest that a batch leaves.

The state of a batch, its manifest and the gallery share these values. Any task or person may have written
the objects, so nothing in them is trusted: ``from_json`` returns None for what is no such value, and optional
facts of a wrong type become None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import IO, Any, Literal, Self, TypeVar

from airflow_provider_modelscope.exceptions import (
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.images.object_storage import list_folder, open_object
from airflow_provider_modelscope.images.storage_errors import is_missing, is_permanent
from airflow_provider_modelscope.json_values import integer, number, printable, text
from airflow_provider_modelscope.redaction import MAX_MESSAGE, one_line, preview_url, truncated
from airflow_provider_modelscope.xcoms import StoredImage

T = TypeVar("T")

STATUSES = ("stored", "rejected", "failed", "skipped")  # of a finished row

_NAME = re.compile(r"manifest(?:-([0-9]{1,6})-of-([0-9]{1,6}))?\.(?:jsonl|parquet)")
_MAX_LINE = 16 * 1024 * 1024  # bytes
_ROW_GROUP = 1000  # rows of a Parquet file that are in memory at once


def read(uri: Any, conn_id: str | None = None) -> Iterator[ManifestRow]:
    """Yield the rows of one or several manifests, as a stream: memory does not grow with them.

    :param uri: The URI of a manifest, or the return value of the task that wrote it. A mapped task returns a
        list of these, which is read as one. A folder, with ``/`` at its end, stands for its manifest or those
        of all its shards.
    :param conn_id: The connection to object storage; by default the one in ``s3://conn_id@bucket/``.
    :raises InvalidRequestError: if there is no such manifest, or it is damaged. A retry cannot help.
    :raises ModelScopeRetryableError: if it cannot be read now.
    """
    for one in _uris(uri):
        for manifest in _manifests_in(one, conn_id) if one.endswith("/") else [one]:
            with _errors_of(manifest):
                file = open_object(manifest, conn_id)
            with file:
                yield from _parquet_rows(file, manifest) if _is_parquet(manifest) else _rows(file, manifest)


def write(rows: Iterable[ManifestRow], file: IO[bytes], format_: Literal["jsonl", "parquet"]) -> None:
    """Write a manifest to a file of this machine. Memory does not grow with the rows.

    :param format_: ``parquet`` needs pyarrow, see :func:`require_pyarrow`.
    """
    if format_ == "parquet":
        _write_parquet(rows, file)
        return
    for row in rows:
        file.write(_readable(row.to_json()).encode() + b"\n")


def require_pyarrow(given: str) -> None:
    """Check that this process can read and write Parquet.

    :param given: The parameter that demands it, with its value, for the error.
    :raises InvalidRequestError: if pyarrow is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InvalidRequestError(
            f"{given}: Parquet needs pyarrow ({error}): run "
            "pip install 'airflow-provider-modelscope[parquet]' on every worker"
        ) from error


@dataclass(frozen=True, kw_only=True)
class RowError:
    """Why a row has no image.

    :param type: The name of the error's class.
    :param request_id: ModelScope's id of the response, for its support.
    """

    type: str
    message: str
    request_id: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Return what is recorded of an error."""
        if isinstance(error, ModelScopeError):
            return cls(type=type(error).__name__, message=error.message, request_id=error.request_id)
        return cls(type=type(error).__name__, message=one_line(str(error), MAX_MESSAGE))

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the error that a value describes, or None if it describes none."""
        match value:
            case {"type": str(type_), "message": str(message)}:
                request_id = text(value.get("request_id"))
                return cls(type=printable(type_), message=printable(message), request_id=request_id)
        return None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished row, as the state of a batch keeps it.

    :param key: The name of the row's object without its suffix. Unique in a batch.
    :param row: The position of the row in the input, from 1.
    :param status: One of :data:`STATUSES`.
    :param fingerprint: Of the request. A row with another one was edited since.
    :param image: None unless the status is ``stored``.
    :param further_images: The other images of the same generation.
    :param asked_model: The model of the row, if a fallback model made the image.
    :param credit: What the generation costs, with all its images.
    :param error: Why there is no image.
    :param data: The row's ``data``: any JSON.
    :param finished_at: In epoch seconds.
    """

    key: str
    row: int
    status: str
    fingerprint: str | None
    image: StoredImage | None = None
    further_images: tuple[StoredImage, ...] = ()
    model: str | None = None
    asked_model: str | None = None
    generation_id: str | None = None
    credit: float | None = None
    error: RowError | None = None
    prompt: str | None = None
    data: Any = None
    finished_at: float | None = None

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """All images of the row."""
        return (self.image, *self.further_images) if self.image else ()

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON."""
        return {
            **vars(self),
            "image": self.image.to_json() if self.image else None,
            "further_images": [image.to_json() for image in self.further_images],
            "error": self.error.to_json() if self.error else None,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the result that a value describes, or None if it describes none. Other fields are ignored.

        A stored row without a usable image is no result.
        """
        match value:
            case {"key": str(key), "row": row, "status": str(status)}:
                image = StoredImage.from_json(value.get("image")) if status == "stored" else None
                if not _is_row(key, row, status) or (status == "stored" and image is None):
                    return None
                further_images = value.get("further_images") if image else None
                return cls(
                    key=printable(key),
                    row=row,
                    status=status,
                    fingerprint=text(value.get("fingerprint")),
                    image=image,
                    further_images=_values(StoredImage.from_json, further_images),
                    model=text(value.get("model")),
                    asked_model=text(value.get("asked_model")),
                    generation_id=text(value.get("generation_id")),
                    credit=number(value.get("credit")),
                    error=RowError.from_json(value.get("error")),
                    prompt=text(value.get("prompt")),
                    data=value.get("data"),
                    finished_at=number(value.get("finished_at")),
                )
        return None


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One row of a manifest. The fields are its columns, in their order.

    :param uri: Of the image. It and the next four are None unless the status is ``stored``.
    :param further_uris: Of the other images of the same generation.
    """

    key: str
    row: int
    status: str
    uri: str | None
    sha256: str | None
    width: int | None
    height: int | None
    seed: int | None
    model: str | None
    asked_model: str | None
    generation_id: str | None
    credit: float | None
    error: RowError | None
    data: Any
    further_uris: tuple[str, ...]

    @classmethod
    def of(cls, result: Result) -> Self:
        """Return the row of a result."""
        image = result.image
        return cls(
            key=result.key,
            row=result.row,
            status=result.status,
            uri=image.uri if image else None,
            sha256=image.sha256 if image else None,
            width=image.width if image else None,
            height=image.height if image else None,
            seed=image.seed if image else None,
            model=result.model,
            asked_model=result.asked_model,
            generation_id=result.generation_id,
            credit=result.credit,
            error=result.error,
            data=result.data,
            further_uris=tuple(image.uri for image in result.further_images),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON, in the order of the columns."""
        error = self.error.to_json() if self.error else None
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "error": error, "further_uris": list(self.further_uris)}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the row that a value describes, or None if it describes none. Other columns are ignored."""
        match value:
            case {"key": str(key), "row": row, "status": str(status)} if _is_row(key, row, status):
                return cls(
                    key=printable(key),
                    row=row,
                    status=status,
                    uri=text(value.get("uri")),
                    sha256=text(value.get("sha256")),
                    width=integer(value.get("width")),
                    height=integer(value.get("height")),
                    seed=integer(value.get("seed")),
                    model=text(value.get("model")),
                    asked_model=text(value.get("asked_model")),
                    generation_id=text(value.get("generation_id")),
                    credit=number(value.get("credit")),
                    error=RowError.from_json(value.get("error")),
                    data=value.get("data"),
                    further_uris=_values(text, value.get("further_uris")),
                )
        return None


@dataclass(frozen=True, kw_only=True)
class RunningRow:
    """A row that is being submitted, or whose generation runs.

    :param key: The name of the row's object without its suffix.
    :param number: The position of the row in the input, from 1.
    :param sent_at: When it was submitted, in epoch seconds; None if its generation is known.
    :param submitted_at: When its generation was created, in epoch seconds.
    :param asked_model: The model of the row, if a fallback model runs.
    :param attempts: How many generations it has had, with this one.
    """

    key: str
    number: int
    prompt: str | None = None
    fingerprint: str | None = None
    sent_at: float | None = None
    generation_id: str | None = None
    submitted_at: float | None = None
    model: str | None = None
    asked_model: str | None = None
    credit: float | None = None
    attempts: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the row that a value describes, or None if it describes none."""
        match value:
            case {"key": str(key), "number": row} if _is_row(key, row, "stored"):
                return cls(
                    key=printable(key),
                    number=row,
                    prompt=text(value.get("prompt")),
                    fingerprint=text(value.get("fingerprint")),
                    sent_at=number(value.get("sent_at")),
                    generation_id=text(value.get("generation_id")),
                    submitted_at=number(value.get("submitted_at")),
                    model=text(value.get("model")),
                    asked_model=text(value.get("asked_model")),
                    credit=number(value.get("credit")),
                    attempts=integer(value.get("attempts")),
                )
        return None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a batch is, as ``running.json`` in its state says.

    :param counts: How many rows have each of :data:`STATUSES`.
    :param per_minute: How many rows finish in a minute now.
    :param stopped_by: What ended the batch before its last row, such as ``credit``.
    :param running: The rows that the account works on.
    :param results: The finished rows that are in no segment yet, oldest first.
    """

    total: int
    counts: Mapping[str, int]
    started_at: float | None = None
    updated_at: float | None = None
    spent: float | None = None
    per_minute: float | None = None
    stopped_by: str | None = None
    is_finished: bool = False
    running: tuple[RunningRow, ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def finished(self) -> int:
        """How many rows are finished."""
        return sum(self.counts.values())

    @classmethod
    def from_json(cls, document: Any) -> Self | None:
        """Return the progress that a document describes, or None if it describes none."""
        match document:
            case {"modelscope_batch": {"total": total, "counts": {} as counts} as value}:
                if integer(total) is None:
                    return None
                running, results = value.get("running"), value.get("results")
                return cls(
                    total=total,
                    counts={status: integer(counts.get(status)) or 0 for status in STATUSES},
                    started_at=number(value.get("started_at")),
                    updated_at=number(value.get("updated_at")),
                    spent=number(value.get("spent")),
                    per_minute=number(value.get("per_minute")),
                    stopped_by=text(value.get("stopped_by")),
                    is_finished=value.get("is_finished") is True,
                    running=_values(RunningRow.from_json, running),
                    results=_values(Result.from_json, results),
                )
        return None


@dataclass(frozen=True, kw_only=True, order=True)
class Segment:
    """An object in the state of a batch that holds finished rows, one in each line. It is never rewritten.

    Later segments win over earlier ones for the same key.

    :param count: How many rows it holds.
    :param without_image: How many of them are not stored.
    :param token: Hexadecimal digits, by which no two writers choose the same name.
    """

    sequence: int
    count: int
    without_image: int
    token: str

    @property
    def name(self) -> str:
        """The name of the object."""
        return f"results-{self.sequence:06}-{self.count}-{self.without_image}-{self.token}.jsonl"

    @classmethod
    def from_name(cls, name: str) -> Self | None:
        """Return the segment with this name, or None if it is the name of another object."""
        found = re.fullmatch(r"results-([0-9]{6,9})-([0-9]{1,6})-([0-9]{1,6})-([0-9a-f]{8})\.jsonl", name)
        if found is None:
            return None
        segment = cls(
            sequence=int(found[1]), count=int(found[2]), without_image=int(found[3]), token=found[4]
        )
        return segment if segment.name == name and 0 < segment.count >= segment.without_image else None


def _is_row(key: str, row: Any, status: str) -> bool:
    return bool(key and integer(row) and status in STATUSES)


def _values(from_json: Callable[[Any], T | None], values: Any) -> tuple[T, ...]:
    """Return what the entries of a list describe, without those that describe nothing."""
    entries = values if isinstance(values, list) else []
    return tuple(value for value in map(from_json, entries) if value is not None)


def _uris(given: Any) -> list[str]:
    """Return the URIs that a user gave, checked before anything is read."""
    is_one = isinstance(given, str | Mapping) or not isinstance(given, Iterable)
    uris = []
    for one in [given] if is_one else given:
        uri = one.get("manifest") if isinstance(one, Mapping) else one
        if not isinstance(uri, str):
            raise _invalid(
                one, "must be the URI of a manifest, or the return value of the task that wrote it"
            )
        if not uri.endswith(("/", ".jsonl", ".parquet")):
            raise _invalid(uri, "must end with .jsonl or .parquet, or with '/' to read a folder")
        if _is_parquet(uri):
            require_pyarrow(_given(uri))
        uris.append(uri)
    return uris


def _manifests_in(folder: str, conn_id: str | None) -> list[str]:
    """Return the URIs of the manifests in a folder, in the order of their shards."""
    with _errors_of(folder):
        found = [match for name in list_folder(folder, conn_id) if (match := _NAME.fullmatch(name))]
    names = sorted((match[0] for match in found), key=lambda name: (len(name), name))
    if not names:
        raise _invalid(folder, "holds no manifest. A batch writes it when it ends")
    shards, totals = {match[1] for match in found}, {match[2] for match in found}
    if len(totals) > 1 or len(shards) < len(names):
        listed = truncated(", ".join(names), 300)
        raise _invalid(folder, f"holds manifests that do not belong together ({listed}): name those to read")
    total = int(totals.pop() or 0)
    if missing := [str(shard) for shard in range(total) if str(shard) not in shards]:
        listed = truncated(", ".join(missing), 300)
        problem = f"holds no manifest of shard {listed} of {total} (the first is 0)"
        raise _invalid(folder, f"{problem}. Wait until every shard has ended, or name those to read")
    if any(map(_is_parquet, names)):
        require_pyarrow(_given(folder))
    return [f"{folder}{name}" for name in names]


def _rows(file: IO[bytes], uri: str) -> Iterator[ManifestRow]:
    for number_, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
        try:
            row = ManifestRow.from_json(json.loads(line))
        except (ValueError, RecursionError):  # no JSON, or lists in lists in lists ...
            row = None
        if row is None:
            raise _damaged(uri, f"line {number_}")
        yield row


def _parquet_rows(file: IO[bytes], uri: str) -> Iterator[ManifestRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number_ = 0
    try:
        for group in ParquetFile(file).iter_batches(batch_size=_ROW_GROUP):
            for columns in group.to_pylist():
                number_ += 1
                try:
                    data = columns.get("data")
                    row = ManifestRow.from_json(
                        columns | {"data": None if data is None else json.loads(data)}
                    )
                except (ValueError, TypeError, RecursionError):  # as above, or no text
                    row = None
                if row is None:
                    raise _damaged(uri, f"row {number_}")
                yield row
    except (ArrowException, OSError) as error:
        raise _damaged(uri, f"what follows row {number_} ({error})") from error


def _write_parquet(rows: Iterable[ManifestRow], file: IO[bytes]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    text_, integer_ = pyarrow.string(), pyarrow.int64()
    types = {
        "row": integer_,
        "width": integer_,
        "height": integer_,
        "seed": integer_,
        "credit": pyarrow.float64(),
        "error": pyarrow.struct([(field.name, text_) for field in fields(RowError)]),
        "further_uris": pyarrow.list_(text_),
    }
    schema = pyarrow.schema([(field.name, types.get(field.name, text_)) for field in fields(ManifestRow)])
    remaining = iter(rows)
    with ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(list(map(_columns, group)), schema=schema))


def _columns(row: ManifestRow) -> dict[str, Any]:
    """Return a row for Parquet, whose columns have one type each: data is the text of its JSON."""
    return row.to_json() | {"data": None if row.data is None else _readable(row.data)}


def _readable(value: Any) -> str:
    """Return JSON as people read it, in any script."""
    return printable(json.dumps(value, ensure_ascii=False))


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


@contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    """Raise our error for a store's own: a final one if the store would raise the same again."""
    try:
        yield
    except InvalidDestinationError as error:
        raise InvalidRequestError(error.message) from error
    except Exception as error:  # each store has errors of its own
        if is_missing(error):
            raise _invalid(
                uri, "there is no such object. A batch writes its manifest when it ends"
            ) from error
        problem = f"cannot be read ({type(error).__name__}: {truncated(str(error), 300)})"
        if isinstance(error, ValueError) or is_permanent(error):
            raise _invalid(uri, f"{problem}. Check the connection and its permissions") from error
        raise ModelScopeRetryableError(f"{_given(uri)}: {problem}") from error


def _damaged(uri: str, where: str) -> InvalidRequestError:
    return _invalid(uri, f"{where} is damaged, or not of a manifest. Clear the batch, which writes it again")


def _invalid(uri: Any, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{_given(uri)}: {problem}")


def _given(uri: Any) -> str:
    return f"uri = {preview_url(uri, 300)}"
