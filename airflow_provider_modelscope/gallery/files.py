"""Reads images from object storage for users who may see them, and makes thumbnails.

An XCom says where an image is stored. A user who may write XComs could name any file of the API server, or
any bucket of its connections. So only bytes with the SHA-256 in the XCom are shown: a user who knows it
already knows the image. Errors do not reveal whether another object exists.

What was read once is not read again as long as the store describes its object in the same way, by an ETag or
a time of change. The store is asked for each image that a page shows.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import ImageError, InvalidDestinationError
from airflow_provider_modelscope.images.object_storage import describe_object, read_object
from airflow_provider_modelscope.images.thumbnail import content_type_of, thumbnail

if TYPE_CHECKING:
    from airflow_provider_modelscope.xcoms import StoredImage

THUMBNAIL_SIDE = 400  # pixels, as the largest card
MAX_BYTES = 64 * 1024 * 1024  # an image is held in memory while it is served

_verified: OrderedDict[FoundObject, None] = OrderedDict()  # the objects that hold their images
_MAX_VERIFIED = 10_000  # about 1 KB each
_lock = Lock()

log = logging.getLogger(__name__)


class ImageUnavailableError(Exception):
    """An image cannot be shown. The text is shown to the user."""


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """The object that an XCom names, as its store describes it now. Its bytes may be those of any file.

    :param size_bytes: Of the image that it has to hold.
    :param sha256: Of the image that it has to hold.
    :param version: Changes whenever the object does.
    """

    uri: str
    storage_conn_id: str | None
    size_bytes: int
    sha256: str
    version: str


def find_object(image: StoredImage) -> FoundObject:
    """Ask the store what it holds now where an image was stored, without reading it.

    :raises ImageUnavailableError: if it cannot hold the image.
    """
    if image.size_bytes > MAX_BYTES:
        raise ImageUnavailableError(
            f"{image.uri} has {image.size_bytes} bytes. The gallery shows images of up to "
            f"{MAX_BYTES // 1024**2} MiB."
        )
    with _errors_of(image.uri):
        version = describe_object(image.uri, image.storage_conn_id)
    return FoundObject(
        uri=image.uri,
        storage_conn_id=image.storage_conn_id,
        size_bytes=image.size_bytes,
        sha256=image.sha256,
        version=version,
    )


def verify(found: FoundObject) -> None:
    """Check that an object holds its image. It is read only if this process has not read it yet.

    :raises ImageUnavailableError: if it does not.
    """
    if found not in _verified:
        _read(found)


def read_image(found: FoundObject) -> tuple[bytes, str]:
    """Return an image and its content type.

    :raises ImageUnavailableError: if it cannot be shown.
    """
    content = _read(found)
    try:
        return content, content_type_of(content)
    except ImageError as error:
        raise ImageUnavailableError(f"{found.uri} is not an image in a supported format.") from error


@lru_cache(maxsize=2000)  # about 10 KB each
def make_thumbnail(found: FoundObject) -> tuple[bytes, str]:
    """Return an image with sides of at most :data:`THUMBNAIL_SIDE` pixels, and its content type.

    :raises ImageUnavailableError: if it cannot be shown. Errors are not cached.
    """
    content = _read(found)
    try:
        return thumbnail(content, THUMBNAIL_SIDE), "image/webp"
    except ImageError as error:
        raise ImageUnavailableError(
            f"Cannot make a thumbnail of {found.uri}: it is damaged, has too many pixels or is not an image."
        ) from error


def _read(found: FoundObject) -> bytes:
    with _errors_of(found.uri):
        content = read_object(found.uri, found.storage_conn_id, most=found.size_bytes)
    if hashlib.sha256(content).hexdigest() != found.sha256:
        raise _changed(found.uri)
    with _lock:
        _verified[found] = None
        if len(_verified) > _MAX_VERIFIED:
            _verified.popitem(last=False)
    return content


@contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    try:
        yield
    except InvalidDestinationError as error:
        raise ImageUnavailableError(f"The API server cannot open this image: {error.message}") from error
    except Exception as error:  # each filesystem raises errors of its own
        log.warning("Could not read %s: %r", uri, error)
        raise _changed(uri) from error


def _changed(uri: str) -> ImageUnavailableError:
    return ImageUnavailableError(
        f"{uri} does not contain this image. It was moved, deleted or overwritten, or the API server "
        "cannot read it."
    )
