"""Where images are read from and stored: Airflow's object storage, with whole objects only."""

from __future__ import annotations

import errno
import mimetypes
import os
import re
import secrets
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    ModelScopeError,
)
from airflow_provider_modelscope.images.image import CONVERTIBLE, FORMAT_OF_SUFFIX, Image
from airflow_provider_modelscope.redaction import preview

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath


# How each filesystem's pipe_file is told the content type, so that a browser shows the object. These
# stores, unlike others, never show half an object: it is there once it is whole.
_CONTENT_TYPE_ARGUMENT = {
    "s3": "ContentType",
    "s3a": "ContentType",
    "gs": "content_type",
    "gcs": "content_type",
    "abfs": "content_settings",
    "abfss": "content_settings",
}
_LOCAL = ("file", "local")
# What a store refuses for good.
_REFUSALS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_REFUSING = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def check_destination(destination: str) -> None:
    """Check everything about a destination that needs no filesystem and no connection.

    :param destination: As for :meth:`Destination.parse`.
    :raises InvalidDestinationError: if no filesystem and no connection could make it valid.
    """
    if not isinstance(destination, str) or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", destination):
        raise _invalid(destination, "write a URI such as 's3://bucket/folder/' or 'file:///folder/name.png'")
    if any(sign in destination for sign in "?#\\") or not destination.isprintable():
        raise _invalid(destination, "'?', '#', '\\\\' and control characters may not stand in it")
    try:
        parts = urlsplit(destination)
    except ValueError as error:  # such as an unclosed [ of an IPv6 address
        raise _invalid(destination, str(error)) from error
    host = parts.netloc.rpartition("@")[2]
    folders = parts.path.split("/")
    if not {".", ".."}.isdisjoint(folders):
        raise _invalid(destination, "'.' and '..' may not stand in it")
    if parts.scheme in _LOCAL and (host or not parts.path):
        raise _invalid(destination, "a local path has three slashes: 'file:///folder/'")
    if parts.scheme not in _LOCAL and not host:
        raise _invalid(destination, "it names no bucket")
    if not parts.path:
        raise _invalid(destination, "end it with '/' to store into the bucket, or name an object")
    name = PurePosixPath(folders[-1])
    format_ = FORMAT_OF_SUFFIX.get(name.suffix.lower())
    is_picture = format_ or (mimetypes.guess_type(name)[0] or "").startswith("image/")
    if is_picture and format_ not in CONVERTIBLE:
        raise _invalid(
            destination, "images can be had as .png, .jpg or .webp, or unchanged under other suffixes"
        )


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where the images of one generation go: a folder, or one object. Made by :meth:`parse`."""

    uri: str  # without the connection
    storage_conn_id: str | None
    format: str | None

    @classmethod
    def parse(cls, destination: str, *, storage_conn_id: str | None = None, sidecar: bool = False) -> Self:
        """Check a destination, before anything is paid for.

        :param destination: ``s3://bucket/folder/``, ``file:///folder/name.png`` and so on. With a ``/`` at
            its end it is a folder. An object's suffix may ask for a format: ``.png``, ``.jpg``, ``.webp``.
        :param storage_conn_id: The connection to reach it with, else the one in ``s3://conn_id@bucket/``.
        :param sidecar: Whether a file is to stand beside each image.
        :raises InvalidDestinationError: saying what is wrong and what is allowed.
        """
        check_destination(destination)
        parts = urlsplit(destination)
        connection, at, _ = parts.netloc.rpartition("@")
        name = PurePosixPath(parts.path.split("/")[-1])
        path = _open(destination, storage_conn_id)
        if parts.scheme in _LOCAL:
            if obstacle := _obstacle(Path(path.path), is_folder=not name.name):
                raise _invalid(destination, obstacle)
            if sidecar and name.name and (obstacle := _obstacle(Path(_beside(path.path)), is_folder=False)):
                raise _invalid(
                    destination, f"the sidecar beside it, {preview(_beside(name.name))}: {obstacle}"
                )
        return cls(
            uri=destination.replace(connection + at, "", 1),
            storage_conn_id=storage_conn_id or connection or None,
            format=FORMAT_OF_SUFFIX.get(name.suffix.lower()),
        )

    def store(self, image: Image, *, generation_id: str, number: int) -> str:
        """Put one whole image where it belongs and return its URI, which names no connection.

        Either the whole image stands there afterwards, or what stood there before. The same generation
        and number always have the same name.

        :param number: Which of the generation's images it is, from 1.
        :raises InvalidDestinationError: where the store does not let it be written there.
        :raises ImageStorageError: where the store has no room, cannot be reached, or does not hold what it
            was given.
        """
        from airflow.providers.common.compat.sdk import get_hook_lineage_collector

        uri = self._uri_of(generation_id, number, image.suffix)
        path = self._put(uri, image, generation_id=generation_id)
        with suppress(ValueError):  # an asset's URI has at most 1500 characters, in Airflow 3.0 of ASCII
            get_hook_lineage_collector().add_output_asset(context=path, uri=uri)
        return uri

    def store_beside(self, uri: str, document: Document, *, generation_id: str) -> str:
        """Put what is told of a stored image beside it, as ``<uri>.json``, and return that URI.

        Raises what :meth:`store` does.
        """
        self._put(_beside(uri), document, generation_id=generation_id)
        return _beside(uri)

    def _put(self, uri: str, body: Image | Document, *, generation_id: str) -> ObjectStoragePath:
        path = _open(uri, self.storage_conn_id)
        try:
            if path.protocol in _LOCAL:
                _replace_file(Path(path.path), body)
            else:
                _put_object(path, body)
        except ImageStorageError as error:
            error.message = f"{uri}: {error.message}"
            raise
        except Exception as error:  # each store has errors of its own
            failure = _not_stored(uri, error)
            failure.generation_id = generation_id
            raise failure from error
        return path

    def _uri_of(self, generation_id: str, number: int, suffix: str) -> str:
        if self.uri.endswith("/"):
            # The id is the service's word: quoted, it can name nothing outside the folder.
            return f"{self.uri}{quote(generation_id, safe='')}-{number}{suffix}"
        if number == 1:
            return self.uri
        own_suffix = PurePosixPath(self.uri).suffix
        return f"{self.uri.removesuffix(own_suffix)}-{number}{own_suffix}"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A JSON text to store, with what an :class:`Image` has that a store needs."""

    content: bytes
    content_type: str = "application/json"

    @property
    def file(self) -> IO[bytes]:
        """The text, to be read."""
        return BytesIO(self.content)

    @property
    def length(self) -> int:
        """How many bytes."""
        return len(self.content)


def _beside(uri: str) -> str:
    return f"{uri}.json"


def read_object(uri: str, storage_conn_id: str | None, *, most: int, parameter: str = "uri") -> bytes:
    """Return an object's bytes; of one that is larger than ``most`` so many and one more.

    :raises InvalidDestinationError: where it cannot be opened here at all.
    :raises Exception: whatever its store raises.
    """
    path = _open(uri, storage_conn_id, parameter=parameter)
    if path.protocol in _LOCAL and not stat.S_ISREG(Path(path.path).stat().st_mode):
        # A pipe would be waited for, for ever.
        raise IsADirectoryError(errno.EISDIR, "is a folder or a device, not a file")
    with path.fs.open(path.path, "rb") as file:
        content: bytes = file.read(most + 1)
    return content


def _obstacle(path: Path, *, is_folder: bool) -> str | None:
    """Return what keeps images from a local path, as far as that can be told without writing."""
    for folder in (path, *path.parents):
        try:
            mode = folder.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):  # what is missing will be made
            continue
        except OSError as error:
            return f"it cannot be written to ({error.strerror})"
        if folder == path and not is_folder:
            if stat.S_ISREG(mode):
                continue  # it is replaced
            if stat.S_ISDIR(mode):
                return "that is a folder: end it with '/' to store into it"
            return "that is a device: name a file or a folder"
        if not stat.S_ISDIR(mode):
            return f"{preview(str(folder), 300)} is a file: name a folder"
        if not os.access(folder, os.W_OK | os.X_OK):
            return (
                f"this worker may not write to {preview(str(folder), 300)}: allow it, or name another folder"
            )
        return None
    return None


def _open(uri: str, storage_conn_id: str | None, *, parameter: str = "destination") -> ObjectStoragePath:
    """Return the path, after a look whether this Airflow has the filesystem and the connection for it."""
    from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, ObjectStoragePath

    if not isinstance(storage_conn_id, str | None):
        raise _invalid(
            storage_conn_id, "must be the id of an Airflow connection", parameter="storage_conn_id"
        )
    try:
        # Not left to Airflow: its versions differ in which of two connections they prefer.
        connection, at, _ = urlsplit(uri).netloc.rpartition("@")
        bare_uri = uri.replace(connection + at, "", 1)
        connection_id = storage_conn_id or connection or None
        path = ObjectStoragePath(bare_uri, conn_id=connection_id)
        _ = path.fs
        # AWS goes on without a connection that is not there; only its default one need not be.
        if connection_id and connection_id != "aws_default" and path.protocol not in _LOCAL:
            BaseHook.get_connection(connection_id)
    except AirflowNotFoundException as error:
        problem = (
            f"cannot be opened ({error}): storage_conn_id names a connection that is to be defined first"
        )
        raise _invalid(uri, problem, parameter=parameter) from error
    except (ValueError, ImportError, *_REFUSALS) as error:
        is_unknown = re.match("No filesystem registered|Unsupported filesystem", str(error))
        if is_unknown or isinstance(error, ImportError):
            advice = (
                "install the extra of that store (s3, gcs or azure), or use another of s3://, gs://, abfs:// "
                "and file://"
            )
        elif connection_id:
            advice = f"correct the connection {connection_id!r}"
        else:
            advice = "name a connection to it in storage_conn_id"
        raise _invalid(uri, f"cannot be opened ({error}): {advice}", parameter=parameter) from error
    return path


def _replace_file(path: Path, body: Image | Document) -> None:
    """Write beside the final name, then rename: nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".image-{secrets.token_hex(8)}")
    try:
        with beside.open("xb") as file:
            (source := body.file).seek(0)
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
            _see_that_it_holds(os.fstat(file.fileno()).st_size, body)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what should be told
            beside.unlink()
        raise


def _put_object(path: ObjectStoragePath, body: Image | Document) -> None:
    """Put the whole object at once, and see that the store holds it; half of it is removed again."""
    shows_halves = path.protocol not in _CONTENT_TYPE_ARGUMENT
    before = _size(path) if shows_halves else None
    try:
        # Not put_file: it names the content type after the file on disk, and where a filesystem has only
        # open() to offer, a read that fails on the way leaves half an object.
        path.fs.pipe_file(path.path, body.content, **_content_type(path.protocol, body.content_type))
    except BaseException:
        with suppress(Exception):  # what went wrong first is what should be told
            if shows_halves and _size(path) not in (None, before, body.length):
                path.fs.rm_file(path.path)
        raise
    try:
        _see_that_it_holds(_size(path), body)
    except ImageStorageError:
        if shows_halves:  # elsewhere what stands there is whole, and another task's
            with suppress(Exception):
                path.fs.rm_file(path.path)
        raise


def _see_that_it_holds(size: int | None, body: Image | Document) -> None:
    if size != body.length:
        raise ImageStorageError(f"It was given {body.length} bytes and holds {size or 0}: store it again")


def _size(path: ObjectStoragePath) -> int | None:
    """Return how many bytes the store holds there now, None where there is no object."""
    path.fs.invalidate_cache()
    try:
        size: int | None = path.fs.size(path.path)
    except FileNotFoundError:
        return None
    return size


def _content_type(protocol: str, content_type: str) -> dict[str, Any]:
    """Return the argument that tells a filesystem's ``pipe_file`` the content type."""
    argument = _CONTENT_TYPE_ARGUMENT.get(protocol)
    if argument == "content_settings":
        from azure.storage.blob import ContentSettings

        return {argument: ContentSettings(content_type=content_type)}
    return {argument: content_type} if argument else {}


def _not_stored(uri: str, error: Exception) -> ModelScopeError:
    """Return our error for a store's own: final where it would refuse the same again."""
    problem = f"{type(error).__name__}: {error}"
    kept = (
        "The service keeps the generation: clear the task, which takes it up from Airflow 3.3 on, or let the "
        "transfer store it"
    )
    if _is_refusal(error):
        return _invalid(
            uri,
            f"cannot be written ({problem}). See that its bucket or folder is there, and that the connection "
            f"or the worker's user may write to it. {kept}",
        )
    return ImageStorageError(f"{uri} was not stored ({problem}). {kept}")


def _is_refusal(error: Exception) -> bool:
    """Tell whether a store would refuse the same again."""
    if isinstance(error, _REFUSALS) or getattr(error, "errno", 0) in _REFUSING:
        return True
    # Azure's and Google's errors have classes of their own; Google's 403 has not even a number.
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return str(status) in ("401", "403", "404") or str(error).startswith("Forbidden: ")


def _invalid(uri: Any, problem: str, *, parameter: str = "destination") -> InvalidDestinationError:
    return InvalidDestinationError(f"{parameter} = {preview(uri, 300)}: {problem}")
