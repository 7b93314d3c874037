"""Check that a store will take images, before a generation is paid for."""

from __future__ import annotations

import logging
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import ImageStorageError, InvalidDestinationError, ModelScopeError
from airflow_provider_modelscope.images.object_storage import (
    LOCAL,
    STORES,
    open_filesystem,
    remove_object,
    write_object,
)
from airflow_provider_modelscope.images.storage_errors import (
    advice_for,
    is_forbidden,
    is_missing,
    is_permanent,
    is_unsupported,
)
from airflow_provider_modelscope.redaction import preview, truncated
from airflow_provider_modelscope.validation import choice_errors, raise_invalid

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_modelscope.images.object_storage import Destination

PREFLIGHT = ("read", "write", "off")

log = logging.getLogger(__name__)

_passed: set[tuple[str, ...]] = set()  # what this process has checked


def check_preflight(mode: str) -> None:
    """Check the parameter ``preflight``.

    :raises InvalidRequestError: if it is none of :data:`PREFLIGHT`.
    """
    raise_invalid(choice_errors(PREFLIGHT, preflight=mode))


def check_store(destination: Destination, mode: str) -> None:
    """Check that a destination's store will take images; once per process, unless it fails.

    A local folder has been checked when the destination was parsed.

    :param mode: ``"read"`` lists at most one object of the bucket, ``"write"`` writes an empty object and
        removes it, ``"off"`` does nothing.
    :raises InvalidDestinationError: if the bucket does not exist, or the credentials are not accepted.
    :raises ImageStorageError: if the store cannot be reached.
    """
    path = destination.beside()
    place = destination.uri if path.protocol in LOCAL else urlsplit(destination.uri).netloc
    checked = (mode, path.protocol, destination.storage_conn_id or "", place)
    if mode == "off" or checked in _passed:
        return
    try:
        if mode == "write":
            _write_and_remove(destination, path)
        elif not _list_one(path):
            log.info("Submitting without a check of %s: none is known for this store", destination.uri)
    except Exception as error:  # each store has errors of its own
        is_public = getattr(path.fs, "anon", False)
        decides_nothing = is_unsupported(error) or (is_forbidden(error) and not is_public)
        if mode == "write" or not decides_nothing:
            raise _failure(destination, place, error) from error
        log.info("Submitting without a check of %s, which cannot be listed: %s", destination.uri, error)
    _passed.add(checked)


def _list_one(path: ObjectStoragePath) -> bool:
    """Ask for one object of a folder, which need not exist. Return whether this store can be asked."""
    if path.protocol not in STORES:
        return path.protocol in LOCAL
    filesystem = open_filesystem(path)
    bucket, key, *_ = filesystem.split_path(path.path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    match path.protocol:
        case "s3" | "s3a":
            filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        case "gs" | "gcs":
            filesystem.call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1)
        case _:
            from fsspec.asyn import sync  # type: ignore[import-untyped]

            client = filesystem.service_client.get_container_client(bucket)
            sync(filesystem.loop, client.get_container_properties)
    return True


def _write_and_remove(destination: Destination, folder: ObjectStoragePath) -> None:
    """Write an empty object beside the images, and remove it."""
    if folder.protocol in LOCAL:
        local = Path(folder.path)
        existing = next(one for one in (local, *local.parents) if one.is_dir())  # missing ones are created
        tempfile.NamedTemporaryFile(dir=existing, prefix=".preflight-").close()
        return
    probe = destination.beside(f".preflight-{secrets.token_hex(8)}")
    write_object(probe, b"", "application/octet-stream")
    try:
        remove_object(probe)
    except Exception as error:  # such as a connection that may not delete
        log.warning("The empty object %s was not removed: %s", probe, error)


def _failure(destination: Destination, place: str, error: Exception) -> ModelScopeError:
    problem = f"({type(error).__name__}: {truncated(str(error), 300)}). Nothing was sent"
    uri = f"destination = {preview(destination.uri, 300)}"
    connection = destination.storage_conn_id
    access = f"the connection {connection!r}" if connection else "the worker without a storage_conn_id"
    if is_missing(error):
        return InvalidDestinationError(
            f"{uri}: {preview(place)} does not exist, or {access} may not see it {problem}: create it, or "
            "correct its name"
        )
    advice = advice_for(error)
    if is_permanent(error):
        return InvalidDestinationError(
            f"{uri}: {access} may not write to it {problem}: "
            f"{advice or 'check its credentials and permissions'}"
        )
    return ImageStorageError(
        f"{uri}: cannot be checked {problem}. {f'{advice}. ' if advice else ''}A retry checks it again; "
        "preflight='off' does not"
    )
