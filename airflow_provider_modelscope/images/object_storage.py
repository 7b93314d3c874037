"""Where images and records are read from and stored: Airflow's object storage, complete objects only."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    ModelScopeError,
)
from airflow_provider_modelscope.images.formats import CONVERTIBLE, FORMAT_OF_SUFFIX
from airflow_provider_modelscope.redaction import preview, preview_url
from airflow_provider_modelscope.resuming import how_to_store_again

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_modelscope.images.image import Image

# The argument of each filesystem's pipe_file that sets the content type, so that a browser shows the object.
# These stores write atomically: readers never see a partial object.
_CONTENT_TYPE_ARGUMENT = {
    "s3": "ContentType",
    "s3a": "ContentType",
    "gs": "content_type",
    "gcs": "content_type",
    "abfs": "content_settings",
    "abfss": "content_settings",
}
LOCAL = ("file", "local")
# The extra of this package that brings the filesystem of a scheme.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure"}
_PERMANENT_ERRORS = (
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError,
)  # fmt: skip
_PERMANENT_ERRNOS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
# Errors of botocore, google.auth and azure.identity, which may not be installed.
_CREDENTIAL_ERRORS = {
    "ClientAuthenticationError", "DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError",
    "ProfileNotFound",
}  # fmt: skip
# What stores call credentials that they do not accept, and those that only time has made invalid.
_REJECTED_CREDENTIALS = {
    "AuthenticationFailed", "InvalidAccessKeyId", "InvalidToken", "NoAuthenticationInformation",
    "PublicAccessNotPermitted", "SignatureDoesNotMatch",
}  # fmt: skip
_STALE_CREDENTIALS = {"ExpiredToken", "RequestTimeTooSkewed"}
_REREAD_PAUSES = (0.5, 2.0)  # seconds, for a store that shows a new object late

log = logging.getLogger(__name__)


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
    :param filesystem: The filesystem of fsspec, opened once for all objects.
    """

    uri: str
    storage_conn_id: str | None
    format: str | None
    filesystem: Any = field(repr=False)

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
        return cls(uri=uri, storage_conn_id=connection_id, format=_format_of(name), filesystem=path.fs)

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
        path = self._put(uri, _Body(image.file, image.length, image.content_type), generation_id)
        with suppress(ValueError):  # an asset's URI has at most 1500 characters, in Airflow 3.0 of ASCII
            get_hook_lineage_collector().add_output_asset(context=path, uri=uri)
        return uri

    def store_sidecar(self, uri: str, document: bytes, *, generation_id: str) -> str:
        """Store a JSON document beside a stored image, as ``<uri>.json``, and return that URI.

        Raises the same errors as :meth:`store`.
        """
        sidecar_uri = _sidecar_of(uri)
        body = _Body(BytesIO(document), len(document), "application/json")
        self._put(sidecar_uri, body, generation_id)
        return sidecar_uri

    def _put(self, uri: str, body: _Body, generation_id: str) -> ObjectStoragePath:
        from airflow.sdk import ObjectStoragePath

        path = ObjectStoragePath(uri, conn_id=self.storage_conn_id)  # names the object, and opens nothing
        body.file.seek(0)
        try:
            _write(self.filesystem, path, body)
        except Exception as error:  # each store has errors of its own
            failure = _storage_error(uri, error)
            failure.generation_id = generation_id
            raise failure from error
        return path

    def _uri_of(self, generation_id: str, number: int, suffix: str) -> str:
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
    if path.protocol in LOCAL and not stat.S_ISREG(Path(path.path).stat().st_mode):
        # Reading a pipe would never return.
        raise IsADirectoryError(errno.EISDIR, "is a folder or a device, not a file")
    with path.fs.open(path.path, "rb") as file:
        content: bytes = file.read(most + 1)
    return content


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
    path.fs.invalidate_cache()
    content: bytes = path.fs.cat_file(path.path)
    return content


def write_object(path: ObjectStoragePath, content: bytes, content_type: str) -> None:
    """Write a complete object or, after an error, none: what was there before stays.

    :raises Exception: any error of its store.
    """
    _write(path.fs, path, _Body(BytesIO(content), len(content), content_type))


def is_permanent(error: Exception) -> bool:
    """Return whether a store would raise the same error for the same call again."""
    if _code_of(error) in _STALE_CREDENTIALS:
        return False
    if isinstance(error, _PERMANENT_ERRORS) or getattr(error, "errno", None) in _PERMANENT_ERRNOS:
        return True
    return is_missing(error) or is_forbidden(error) or _rejects_credentials(error)


def is_missing(error: Exception) -> bool:
    """Return whether an object, a folder or its bucket does not exist."""
    return isinstance(error, FileNotFoundError) or _status_of(error) == "404"


def is_forbidden(error: Exception) -> bool:
    """Return whether a store accepts the credentials, but does not allow the call."""
    if _code_of(error) in _STALE_CREDENTIALS or _rejects_credentials(error):
        return False
    if isinstance(error, PermissionError) or _status_of(error) == "403":
        return True
    return str(error).startswith("Forbidden: ")  # Google's, which has no number


def is_unsupported(error: Exception) -> bool:
    """Return whether a store does not have the call at all."""
    return (
        isinstance(error, NotImplementedError)
        or getattr(error, "errno", None) == errno.ENOSYS
        or _code_of(error) in ("NotImplemented", "MethodNotAllowed")
        or _status_of(error) in ("405", "501")
    )


def _rejects_credentials(error: Exception) -> bool:
    if _status_of(error) == "401" or _code_of(error) in _REJECTED_CREDENTIALS:
        return True
    if "Server failed to authenticate the request" in str(error):  # Azurite has another code for it
        return True
    return not _CREDENTIAL_ERRORS.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _status_of(error: Exception) -> str:
    """Return the HTTP status of Azure's and Google's errors, which have classes of their own."""
    return str(getattr(error, "status_code", None) or getattr(error, "code", None))


def _code_of(error: Exception) -> str:
    """Return the word of S3 or Azure for an error, such as ``NoSuchBucket``."""
    response = getattr(error.__cause__, "response", None)  # s3fs raises its errors from those of botocore
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code"))
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code))


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

    from airflow_provider_modelscope.compat import AirflowNotFoundException, BaseHook

    if not isinstance(storage_conn_id, str | None):
        raise _invalid(
            storage_conn_id, "must be the id of an Airflow connection", parameter="storage_conn_id"
        )
    try:
        # Decided here: Airflow's versions differ in which of two connections they prefer.
        connection, at, _ = urlsplit(uri).netloc.rpartition("@")
        bare_uri = uri.replace(connection + at, "", 1)
        connection_id = storage_conn_id or connection or None
        path = ObjectStoragePath(bare_uri, conn_id=connection_id)
        _ = path.fs
        # AWS ignores a missing connection; only its default one may be missing.
        if connection_id and connection_id != "aws_default" and path.protocol not in LOCAL:
            BaseHook.get_connection(connection_id)
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
            extra = _EXTRAS.get(urlsplit(uri).scheme)
            install = f"run pip install 'airflow-provider-modelscope[{extra}]' on every worker"
            advice = install if extra else "use s3://, gs://, abfs:// or file://"
        elif connection_id:
            advice = f"correct the connection {connection_id!r}"
        else:
            advice = f"name a connection to it in {connection_parameter}"
        raise _invalid(uri, f"cannot be opened ({error}): {advice}", parameter=parameter) from error
    return path, bare_uri, connection_id


def _write(filesystem: Any, path: ObjectStoragePath, body: _Body) -> None:
    if path.protocol in LOCAL:
        _replace_file(Path(path.path), body)
    else:
        _put_object(filesystem, path, body)


def _replace_file(path: Path, body: _Body) -> None:
    """Write a temporary file beside the final name, then rename it: readers never see a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".image-{secrets.token_hex(8)}")
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
    is_atomic = path.protocol in _CONTENT_TYPE_ARGUMENT
    before = None if is_atomic else _size(filesystem, path)
    try:
        # Not put_file: it takes the content type from the name of the file on disk, and if a filesystem
        # offers only open(), an error while reading leaves a partial object.
        options = _content_type(path.protocol, body.content_type)
        filesystem.pipe_file(path.path, body.file.read(), **options)
        if is_atomic:
            _read_back(filesystem, path, body)
        else:
            _check_size(_size(filesystem, path), body)
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            # In an atomic store any object there is complete, and belongs to another task.
            if not is_atomic and _size(filesystem, path) not in (None, before, body.length):
                filesystem.rm_file(path.path)
        raise


def _read_back(filesystem: Any, path: ObjectStoragePath, body: _Body) -> None:
    """Check that an atomic store holds the complete object, if its size may be read."""
    try:
        size = _size(filesystem, path)
        for pause in _REREAD_PAUSES:
            if size is None:
                time.sleep(pause)
                size = _size(filesystem, path)
    except Exception as error:  # each store has errors of its own
        if not (is_forbidden(error) or is_unsupported(error)):  # s3fs lists if it does not find the object
            raise
        log.warning("Stored %s without a check of its size, which cannot be read: %s", path, error)
        return
    _check_size(size, body)


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


def _content_type(protocol: str, content_type: str) -> dict[str, Any]:
    """Return the argument of a filesystem's ``pipe_file`` that sets the content type."""
    argument = _CONTENT_TYPE_ARGUMENT.get(protocol)
    if argument == "content_settings":
        from azure.storage.blob import ContentSettings

        return {argument: ContentSettings(content_type=content_type)}
    return {argument: content_type} if argument else {}


def _storage_error(uri: str, error: Exception) -> ModelScopeError:
    """Return our error for a store's own: a final one if the store would raise the same again."""
    problem = f"{type(error).__name__}: {error}"
    advice = f"ModelScope keeps the generation: {how_to_store_again()}"
    if is_permanent(error):
        return _invalid(
            uri,
            f"cannot be written ({problem}). Check that its bucket or folder exists, and that the connection "
            f"or the worker's user may write to it. {advice}",
        )
    return ImageStorageError(f"{uri} was not stored ({problem}). {advice}")


def _invalid(uri: Any, problem: str, *, parameter: str = "destination") -> InvalidDestinationError:
    return InvalidDestinationError(f"{parameter} = {preview_url(uri, 300)}: {problem}")
