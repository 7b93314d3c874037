"""Checks that a store holds the bytes that were just written to it, by their number and its own checksum."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from airflow_provider_modelscope.images.storage_errors import (
    is_forbidden,
    is_missing,
    is_unsupported,
    rejects_checksum,
)

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_PAUSES = (0.5, 2.0)  # seconds, for a store that shows a new object late

log = logging.getLogger(__name__)


class ReadBackError(Exception):
    """An object was written, but the store does not hold it, or does not say. The text continues "but"."""


class _Held(NamedTuple):
    """What a store says of an object; None where it says nothing.

    :param sha256: In hexadecimal, like ``md5``.
    """

    size: int
    sha256: str | None = None
    md5: str | None = None


def check_stored(filesystem: Any, path: ObjectStoragePath, file: IO[bytes], length: int, sha256: str) -> None:
    """Check that an atomic store holds the bytes of a file, if it may be asked.

    :raises ReadBackError: if it holds others, or cannot be asked now.
    """
    try:
        held = _held(filesystem, path)
        for pause in _PAUSES:
            if held is None:
                time.sleep(pause)
                held = _held(filesystem, path)
    except Exception as error:  # each store has errors of its own
        if not (is_forbidden(error) or is_unsupported(error)):
            raise ReadBackError(f"cannot be read back ({type(error).__name__}: {error})") from error
        log.warning("Stored %s without a check, because it cannot be read back: %s", path, error)
        return
    size = held.size if held else 0
    if size != length:
        raise ReadBackError(f"the store holds {size} of {length} bytes")
    if held and (difference := _difference(held, file, sha256)):
        with suppress(Exception):  # the difference is the error to report
            # The bytes decide: some servers have an ETag in the form of an MD5 that is none.
            if hashlib.sha256(filesystem.cat_file(path.path)).hexdigest() == sha256:
                return
        raise ReadBackError(difference)


def md5_of(file: IO[bytes]) -> str:
    """Return the MD5 of a file in hexadecimal, by which stores without SHA-256 verify what they receive."""
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))  # type: ignore[arg-type]
    return digest.hexdigest()


def _difference(held: _Held, file: IO[bytes], sha256: str) -> str | None:
    if held.sha256:
        name, actual, expected = "SHA-256", held.sha256, sha256
    elif held.md5:
        name, actual, expected = "MD5", held.md5, md5_of(file)
    else:
        return None
    if actual == expected:
        return None
    return f"the store holds other bytes than it was given: their {name} is {actual} instead of {expected}"


def _held(filesystem: Any, path: ObjectStoragePath) -> _Held | None:
    """Return what a store says of an object now, or None if there is none."""
    filesystem.invalidate_cache()
    try:
        if path.protocol in ("s3", "s3a"):
            return _held_by_s3(_head(filesystem, path))
        info = filesystem.info(path.path)
    except Exception as error:  # each store has errors of its own
        if is_missing(error):
            return None
        raise
    md5 = info.get("md5Hash")  # Google's
    if settings := info.get("content_settings"):  # Azure's; it computes none of an object in parts
        md5 = settings.get("content_md5")
    return _Held(info["size"], md5=_hexadecimal(md5))


def _head(filesystem: Any, path: ObjectStoragePath) -> dict[str, Any]:
    bucket, key, *_ = filesystem.split_path(path.path)
    try:
        with_checksum: dict[str, Any] = filesystem.call_s3(
            "head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED"
        )
    except Exception as error:  # each server has errors of its own
        # The checksum of an encrypted object needs the right to decrypt it. Servers may not know the header.
        if not (is_forbidden(error) or rejects_checksum(error)):
            raise
        without: dict[str, Any] = filesystem.call_s3("head_object", Bucket=bucket, Key=key)
        return without
    return with_checksum


def _held_by_s3(head: dict[str, Any]) -> _Held:
    sha256 = head.get("ChecksumSHA256")
    etag = str(head.get("ETag")).strip('"').lower()
    # With a key of KMS or of the client, an ETag is no MD5; nor is it one for an object in parts.
    is_encrypted = "kms" in str(head.get("ServerSideEncryption")) or "SSECustomerAlgorithm" in head
    is_md5 = re.fullmatch("[0-9a-f]{32}", etag) and not is_encrypted
    return _Held(head["ContentLength"], _hexadecimal(sha256), etag if is_md5 else None)


def _hexadecimal(digest: str | bytes | None) -> str | None:
    """Return a checksum in hexadecimal, or None if it is not one: such as that of parts, ``<digest>-<n>``."""
    try:
        raw = base64.b64decode(digest, validate=True) if isinstance(digest, str) else bytes(digest or b"")
    except ValueError:
        return None
    return raw.hex() or None
