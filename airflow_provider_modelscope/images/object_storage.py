"""Where images and records are read from and stored: Airflow's object storage, complete objects only."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.images.formats import CONVERTIBLE, FORMAT_OF_SUFFIX
from airflow_provider_modelscope.images.read_back import ReadBackError, check_stored, md5_of
from airflow_provider_modelscope.images.storage_errors import advice_for, is_permanent, rejects_checksum
from airflow_provider_modelscope.redaction import preview, preview_url, truncated
from airflow_provider_modelscope.resuming import how_to_store_again
from airflow_provider_modelscope.validation import INVALID

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_modelscope.images.image import Image

# The schemes of the stores that we know, each with the extra of this package that brings its filesystem. They
# write atomically: readers never see a partial object.
STORES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure"}
LOCAL = ("file", "local")
TEMPORARY = ".image-"  # begins the name of a file that is being written
_PIECE = 1024 * 1024  # bytes that are copied at once
# What each connection said when its filesystem was opened, as a checksum: it contains secrets.
_opened_with: dict[tuple[str, str | None], str] = {}
_attaching = Lock()  # Airflow before 3.2 must not be asked from several threads at once


def check_destination(destination: str) -> None:
    """Check everything about a destination that needs no filesystem and no connection.

    :param destination: As for :meth:`Destination.parse`.
    :raises InvalidDestinationError: if no filesystem and no connection could make it valid.
    """
    _check_uri(destination)
    name = PurePosixPath(destination.rpartition("/")[2])
    if name.name and _format_of(name) not in CONVERTIBLE:  # perhaps meant as a folder, or a bucket
        raise _invalid(
            destination,
            "names an object without the suffix .png, .jpg or .webp: end it with '/' to store into a folder, "
            "which keeps the format of each image, or add one of these suffixes",
        )


def _check_uri(uri: str, *, parameter: str = "destination") -> None:
    def invalid(problem: str) -> InvalidDestinationError:
        return _invalid(uri, problem, parameter=parameter)

    if not isinstance(uri, str) or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
        raise invalid("must be a URI such as 's3://bucket/folder/' or 'file:///folder/name.png'")
    if any(sign in uri for sign in "?#\\") or not uri.isprintable():
        raise invalid("must not contain '?', '#', '\\' or control characters")
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # such as an unclosed [ of an IPv6 address
        raise invalid(f"is not a valid URI: {error}") from error
    host, folders = parts.netloc.rpartition("@")[2], parts.path.split("/")
    if not {".", ".."}.isdisjoint(folders):
        raise invalid("must not contain the folders '.' and '..'")
    if parts.scheme in LOCAL and (host or not parts.path):
        raise invalid("a local path has three slashes: 'file:///folder/'")
    if parts.scheme not in LOCAL and not host:
        raise invalid("contains no bucket: must be a URI such as 's3://bucket/folder/'")
    if not parts.path:
        raise invalid("end it with '/' to store into the bucket, or name an object")


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where the images of one generation are stored: a folder or one object. Made by :meth:`parse`.

    :param uri: Without the connection.
    :param format: Pillow's name of the format to convert images to; None stores them as they are.
    :param stem: The name of an image in a folder, without its suffix; None names it by its generation.
    :param scratch: A folder on the same disk as a local destination, for files that are being written. Its
        owner removes what a killed process has left there. None writes them beside the images.
    """

    uri: str
    storage_conn_id: str | None
    format: str | None
    stem: str | None = None
    scratch: Path | None = None

    @classmethod
    def parse(cls, destination: str, *, storage_conn_id: str | None = None, sidecar: bool = False) -> Self:
        """Check a destination and open its filesystem, before anything is charged.

        :param destination: ``s3://bucket/folder/``, ``file:///folder/name.png`` and so on. It is a folder if
            it ends with ``/``. The suffix of an object selects a format: ``.png``, ``.jpg``, ``.webp``.
        :param storage_conn_id: The connection to open it with; by default the one in
            ``s3://conn_id@bucket/``.
        :param sidecar: Whether a file is to be stored beside each image.
        :raises InvalidDestinationError: with what is wrong and what is allowed.
        """
        check_destination(destination)
        path, uri, connection_id = _open(destination, storage_conn_id)
        name = PurePosixPath(destination.rpartition("/")[2])
        if path.protocol in LOCAL:
            if obstacle := _obstacle(Path(path.path), is_folder=not name.name):
                raise _invalid(destination, obstacle)
            beside = Path(_sidecar_of(path.path))
            if sidecar and name.name and (obstacle := _obstacle(beside, is_folder=False)):
                raise _invalid(destination, f"its sidecar {preview(beside.name)}: {obstacle}")
        return cls(uri=uri, storage_conn_id=connection_id, format=_format_of(name))

    def beside(self, name: str = "") -> ObjectStoragePath:
        """Return the path of an object beside the images; by default that of their folder."""
        from airflow.sdk import ObjectStoragePath

        return ObjectStoragePath(f"{self.uri.rpartition('/')[0]}/{name}", conn_id=self.storage_conn_id)

    def store(self, image: Image, *, generation_id: str, number: int) -> str:
        """Store one image, and return its URI, which contains no connection.

        Afterwards the store holds the complete image or, after an error, what it held before. The same
        generation and number always have the same name.

        :param number: Which of the generation's images it is, from 1.
        :raises InvalidDestinationError: if the store rejects it for good.
        :raises ImageStorageError: if the store is full, cannot be reached, or holds less than it was given.
        """
        from airflow_provider_modelscope.compat import get_hook_lineage_collector

        uri = self._uri_of(generation_id, number, image.suffix)
        body = _Body(image.file, image.length, image.content_type, image.sha256)
        path = self._put(uri, body, generation_id)
        with suppress(ValueError):  # an asset's URI has at most 1500 characters, in Airflow 3.0 of ASCII
            get_hook_lineage_collector().add_output_asset(context=path, uri=uri)
        return uri

    def store_sidecar(self, uri: str, document: bytes, *, generation_id: str) -> str:
        """Store a JSON document beside a stored image, as ``<uri>.json``, and return that URI.

        Raises the same errors as :meth:`store`.
        """
        sidecar_uri = _sidecar_of(uri)
        self._put(sidecar_uri, _Body.of(BytesIO(document), "application/json"), generation_id)
        return sidecar_uri

    def _put(self, uri: str, body: _Body, generation_id: str) -> ObjectStoragePath:
        from airflow.sdk import ObjectStoragePath

        path = ObjectStoragePath(uri, conn_id=self.storage_conn_id)
        try:
            _write(path, body, self.scratch)
        except Exception as error:  # each store has errors of its own
            failure = _storage_error(uri, error)
            failure.generation_id = generation_id
            raise failure from error
        return path

    def _uri_of(self, generation_id: str, number: int, suffix: str) -> str:
        if self.uri.endswith("/") and self.stem is not None:
            return f"{self.uri}{self.stem}{'' if number == 1 else f'~{number}'}{suffix}"
        if self.uri.endswith("/"):
            # The id comes from the service: quoted, it cannot name anything outside the folder.
            return f"{self.uri}{quote(generation_id, safe='')}-{number}{suffix}"
        if number == 1:
            return self.uri
        own_suffix = PurePosixPath(self.uri).suffix
        return f"{self.uri.removesuffix(own_suffix)}-{number}{own_suffix}"


class _Body(NamedTuple):
    """What to store as one object."""

    file: IO[bytes]
    length: int
    content_type: str
    sha256: str

    @classmethod
    def of(cls, file: IO[bytes], content_type: str) -> Self:
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return cls(file, file.seek(0, SEEK_END), content_type, sha256)


def _format_of(name: PurePosixPath) -> str | None:
    return FORMAT_OF_SUFFIX.get(name.suffix.lower())


def _sidecar_of(uri: str) -> str:
    return f"{uri}.json"


def read_object(
    uri: str,
    storage_conn_id: str | None,
    *,
    most: int,
    parameter: str = "uri",
    connection_parameter: str = "storage_conn_id",
) -> bytes:
    """Return an object's bytes: at most ``most`` of them, and one more if it is larger.

    :param parameter: The name of the parameter that contains the URI, for errors.
    :param connection_parameter: The name of the parameter that names the connection, for errors.
    :raises InvalidDestinationError: if its filesystem cannot be opened.
    :raises Exception: any error of its store.
    """
    path, *_ = _open(uri, storage_conn_id, parameter=parameter, connection_parameter=connection_parameter)
    with _opened(path) as file:
        content: bytes = file.read(most + 1)
    return content


def open_object(uri: str, storage_conn_id: str | None, *, parameter: str = "uri") -> IO[bytes]:
    """Return an object as an open file of this machine: a temporary copy, if its store is a remote one.

    Memory does not grow with the object. The parameter and the errors are those of :func:`read_object`.
    """
    _check_uri(uri, parameter=parameter)
    path, *_ = _open(uri, storage_conn_id, parameter=parameter)
    if path.protocol in LOCAL:
        return _open_file(Path(path.path))
    with ExitStack() as on_error, _opened(path) as source:
        copy = on_error.enter_context(TemporaryFile())
        shutil.copyfileobj(source, copy, _PIECE)
        copy.seek(0)
        on_error.pop_all()
    return copy


def list_folder(uri: str, storage_conn_id: str | None) -> list[str]:
    """Return the names of what a folder holds now, in no order; none if there is no such folder.

    Raises the same errors as :func:`read_object`.
    """
    path, *_ = _open(uri, storage_conn_id, parameter="uri")
    path.fs.invalidate_cache()
    try:
        entries = path.fs.ls(path.path, detail=False)
    except FileNotFoundError:
        return []
    return [PurePosixPath(entry).name for entry in entries]


def read_file(path: Path, *, most: int) -> bytes:
    """Return a local file's bytes, as :func:`read_object` does."""
    with _open_file(path) as file:
        return file.read(most + 1)


def _opened(path: ObjectStoragePath) -> Any:
    """Return an object as an open file, as it is now."""
    if path.protocol in LOCAL:
        return _open_file(Path(path.path))
    path.fs.invalidate_cache()
    return path.fs.open(path.path, "rb")


def _open_file(path: Path) -> IO[bytes]:
    if not stat.S_ISREG(path.stat().st_mode):
        # Reading a pipe would never return.
        raise IsADirectoryError(errno.EISDIR, "is a folder or a device, not a file")
    return path.open("rb")


def unreadable(uri: str, error: Exception, *, parameter: str) -> ModelScopeError:
    """Return our error for an object that cannot be read: a final one if the next attempt would fail as well.

    :param error: From :func:`read_object` or :func:`open_object`.
    """
    if isinstance(error, InvalidDestinationError):
        return InvalidRequestError(f"{INVALID}{error.message}")
    reason = getattr(error, "strerror", None) or truncated(str(error), 300)  # without the path again
    if "?" in uri:  # the reason can repeat the path, encoded, and what follows may be a signature
        reason = "its path contains '?'"
    problem = f"{parameter} = {preview_url(uri, 300)}: cannot be read ({type(error).__name__}: {reason})"
    if isinstance(error, ValueError) or is_permanent(error):
        return InvalidRequestError(f"{INVALID}{problem}.")
    return ModelScopeRetryableError(f"{problem}. Nothing was sent")


def describe_object(uri: str, storage_conn_id: str | None) -> str:
    """Return what the store says of an object now: a text that differs if the object was written since.

    The object is not read, and nothing comes from a cache.

    :raises InvalidDestinationError: if its filesystem cannot be opened.
    :raises Exception: any error of its store, such as FileNotFoundError.
    """
    path, *_ = _open(uri, storage_conn_id, parameter="uri")
    path.fs.invalidate_cache()
    description: str = path.fs.ukey(path.path)  # of its size, and its ETag or time
    return description


def open_folder(uri: str, *, parameter: str) -> ObjectStoragePath:
    """Return a folder in object storage with an open filesystem.

    :param uri: ``s3://conn_id@bucket/folder/``, ``file:///folder/`` and so on.
    :param parameter: The name of the parameter or setting, for the error.
    :raises InvalidDestinationError: with what is wrong and what is allowed.
    """
    _check_uri(uri, parameter=parameter)
    if not uri.endswith("/"):
        raise _invalid(uri, "must be a folder: end it with '/'", parameter=parameter)
    path, *_ = _open(uri, None, parameter=parameter, connection_parameter="it, as in 's3://conn_id@bucket/'")
    if path.protocol in LOCAL and (obstacle := _obstacle(Path(path.path), is_folder=True)):
        raise _invalid(uri, obstacle, parameter=parameter)
    return path


def read_latest(path: ObjectStoragePath) -> bytes:
    """Return what an object holds now, never from a cache.

    :raises FileNotFoundError: if there is no object.
    :raises Exception: any other error of its store.
    """
    filesystem = open_filesystem(path)
    filesystem.invalidate_cache()
    content: bytes = filesystem.cat_file(path.path)
    return content


def write_object(path: ObjectStoragePath, content: bytes, content_type: str) -> None:
    """Write a complete object or, after an error, none: what was there before stays.

    :raises Exception: any error of its store.
    """
    write_file(path, BytesIO(content), content_type)


def write_file(
    path: ObjectStoragePath, file: IO[bytes], content_type: str, scratch: Path | None = None
) -> None:
    """Write the content of a file as an object, as :func:`write_object` does.

    :param scratch: As of :class:`Destination`.
    """
    _write(path, _Body.of(file, content_type), scratch)


def remove_object(path: ObjectStoragePath) -> None:
    """Remove an object.

    :raises Exception: any error of its store, such as FileNotFoundError.
    """
    filesystem = open_filesystem(path)
    try:
        filesystem.rm_file(path.path)
    except NotImplementedError:  # in the adlfs of Airflow 3.0; elsewhere rm needs the right to list
        filesystem.rm(path.path)


def open_filesystem(path: ObjectStoragePath) -> Any:
    """Return a path's filesystem, with the credentials that its connection has now."""
    # In Airflow 3.0 and 3.1, a path has no conn_id, and keeps the filesystem that it was opened with.
    connection_id = path.storage_options.get("conn_id") or getattr(path, "conn_id", None)
    return _attached(path.protocol, connection_id).fs


def _obstacle(path: Path, *, is_folder: bool) -> str | None:
    """Return why images cannot be stored at a local path, or None. Nothing is written to find out."""
    for folder in (path, *path.parents):
        try:
            mode = folder.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):  # missing folders are created
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


def _open(
    uri: str,
    storage_conn_id: str | None,
    *,
    parameter: str = "destination",
    connection_parameter: str = "storage_conn_id",
) -> tuple[ObjectStoragePath, str, str | None]:
    """Return a path with an open filesystem, the URI without the connection, and the connection's id.

    :raises InvalidDestinationError: if this Airflow has no such filesystem or connection.
    """
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_modelscope.compat import AirflowNotFoundException

    if not isinstance(storage_conn_id, str | None):
        raise _invalid(
            storage_conn_id, "must be the id of an Airflow connection", parameter="storage_conn_id"
        )
    connection_id = storage_conn_id
    try:
        # Decided here: Airflow's versions differ in which of two connections they prefer.
        connection, at, _ = urlsplit(uri).netloc.rpartition("@")
        bare_uri = uri.replace(connection + at, "", 1)
        connection_id = storage_conn_id or connection or None
        _attached(urlsplit(uri).scheme, connection_id)
        path = ObjectStoragePath(bare_uri, conn_id=connection_id)
        _ = path.fs
    except AirflowNotFoundException as error:
        problem = (
            f"cannot be opened ({error}): define that connection, or name another in {connection_parameter}"
        )
        raise _invalid(uri, problem, parameter=parameter) from error
    except Exception as error:  # each store has errors of its own
        if not (isinstance(error, ValueError | ImportError) or is_permanent(error)):
            raise
        is_unknown = re.match("No filesystem registered|Unsupported filesystem", str(error))
        if is_unknown or isinstance(error, ImportError):
            extra = STORES.get(urlsplit(uri).scheme)
            install = f"run pip install 'airflow-provider-modelscope[{extra}]' on every worker"
            advice = install if extra else "use s3://, gs://, abfs:// or file://"
        elif connection_id:
            advice = f"correct the connection {connection_id!r}"
        else:
            advice = f"name a connection to it in {connection_parameter}"
        raise _invalid(uri, f"cannot be opened ({error}): {advice}", parameter=parameter) from error
    return path, bare_uri, connection_id


def _attached(protocol: str, connection_id: str | None) -> Any:
    """Return Airflow's object store, which opens its filesystem again if its connection has changed.

    :raises AirflowNotFoundException: if there is no such connection.
    """
    from airflow.sdk.io import attach

    from airflow_provider_modelscope.compat import AirflowNotFoundException, BaseHook

    store = attach(protocol=protocol, conn_id=connection_id)
    says = ""
    if connection_id and protocol not in LOCAL:
        try:
            with _attaching:
                connection = BaseHook.get_connection(connection_id)
        except AirflowNotFoundException:
            if connection_id != "aws_default":  # AWS ignores any missing one; only its default may be missing
                raise
        else:
            names = ("conn_type", "host", "schema", "login", "password", "port", "extra")
            fields = repr([getattr(connection, name) for name in names])
            says = hashlib.sha256(fields.encode()).hexdigest()
    if _opened_with.setdefault((protocol, connection_id), says) != says:
        vars(store).pop("fs", None)  # a cached property, which Airflow would keep until its process ends
        _opened_with[protocol, connection_id] = says
    return store


def _write(path: ObjectStoragePath, body: _Body, scratch: Path | None = None) -> None:
    body.file.seek(0)
    if path.protocol in LOCAL:
        file = Path(path.path)
        _replace_file(file, body, scratch or file.parent)
    else:
        _put_object(open_filesystem(path), path, body)


def _replace_file(path: Path, body: _Body, scratch: Path) -> None:
    """Write a temporary file, then rename it: readers never see a partial file."""
    for folder in (path.parent, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            shutil.copyfileobj(body.file, file)
            file.flush()
            os.fsync(file.fileno())
            _check_size(os.fstat(file.fileno()).st_size, body)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise


def _put_object(filesystem: Any, path: ObjectStoragePath, body: _Body) -> None:
    """Put the complete object at once, and check that the store holds it; remove a partial one."""
    if path.protocol in STORES:
        _put_atomically(filesystem, path, body)
        check_stored(filesystem, path, body.file, body.length, body.sha256)
        return
    before = _size(filesystem, path)
    try:
        filesystem.pipe_file(path.path, body.file.read())
        _check_size(_size(filesystem, path), body)
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            if _size(filesystem, path) not in (None, before, body.length):
                filesystem.rm_file(path.path)
        raise


def _put_atomically(filesystem: Any, path: ObjectStoragePath, body: _Body) -> None:
    """Put an object with its content type and, where the store checks one, a checksum."""
    # Not put_file: it takes the content type from the name of the file on disk.
    match path.protocol:
        case "s3" | "s3a":
            try:
                _put_to_s3(filesystem, path, body, ChecksumSHA256=_base64(bytes.fromhex(body.sha256)))
            except Exception as error:  # each server has errors of its own
                if not rejects_checksum(error):
                    raise
                _put_to_s3(filesystem, path, body, ContentMD5=_base64(bytes.fromhex(md5_of(body.file))))
        case "abfs" | "abfss":
            from azure.storage.blob import ContentSettings

            settings = ContentSettings(content_type=body.content_type)
            content = body.file.read()
            filesystem.pipe_file(path.path, content, content_settings=settings, validate_content=True)
        case _:  # gcsfs sends none: the checksum is compared when the object is read back
            filesystem.pipe_file(path.path, body.file.read(), content_type=body.content_type)


def _put_to_s3(filesystem: Any, path: ObjectStoragePath, body: _Body, **checksum: str) -> None:
    """Put an object in one request, read from its file. The store verifies the checksum.

    Without a checksum, botocore sends one of its own in a trailer, which OSS rejects. Methods of s3fs would
    hold the content in memory twice, and send a large one in parts, without a checksum.
    """
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]
    from fsspec.asyn import get_loop, sync  # type: ignore[import-untyped]
    from s3fs.errors import translate_boto_error  # type: ignore[import-untyped]

    bucket, key, *_ = filesystem.split_path(path.path)

    async def put() -> None:
        await filesystem.set_session()
        client = await filesystem.get_s3(bucket)
        options = {**filesystem.s3_additional_kwargs, "ContentType": body.content_type, **checksum}
        await client.put_object(Bucket=bucket, Key=key, Body=body.file, **options)

    body.file.seek(0)
    try:
        sync(get_loop(), put)
    except ClientError as error:
        raise translate_boto_error(error) from error


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _check_size(size: int | None, body: _Body) -> None:
    if size != body.length:
        raise OSError(f"the store holds {size or 0} of {body.length} bytes")


def _size(filesystem: Any, path: ObjectStoragePath) -> int | None:
    """Return how many bytes the store holds now, or None if there is no object."""
    filesystem.invalidate_cache()
    try:
        size: int | None = filesystem.size(path.path)
    except FileNotFoundError:
        return None
    return size


def _storage_error(uri: str, error: Exception) -> ModelScopeError:
    """Return our error for a store's own: a final one if the store would raise the same again."""
    problem = f"{type(error).__name__}: {error}"
    keeps = f"ModelScope keeps the generation: {how_to_store_again()}"
    if isinstance(error, ReadBackError):
        return ImageStorageError(f"{uri} was written, but {error}. {keeps}")
    advice = advice_for(error)
    if is_permanent(error):
        advice = advice or (
            "Check that its bucket or folder exists, and that the connection or the worker's user may write "
            "to it"
        )
        return _invalid(uri, f"cannot be written ({problem}). {advice}. {keeps}")
    return ImageStorageError(f"{uri} was not stored ({problem}). {f'{advice}. ' if advice else ''}{keeps}")


def _invalid(uri: Any, problem: str, *, parameter: str = "destination") -> InvalidDestinationError:
    return InvalidDestinationError(f"{parameter} = {preview_url(uri, 300)}: {problem}")
