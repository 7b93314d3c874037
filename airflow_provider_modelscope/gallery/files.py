"""Reads images from object storage for users who may see them, and makes thumbnails.

An XCom says where an image is stored. A user who may write XComs could name any file of the API server, or
any bucket of its connections. So only bytes with the SHA-256 in the XCom are shown: a user who knows it
already knows the image. Errors do not reveal whether another object exists.
"""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import ImageError, InvalidDestinationError
from airflow_provider_modelscope.images.object_storage import read_object
from airflow_provider_modelscope.images.thumbnail import content_type_of, thumbnail

if TYPE_CHECKING:
    from airflow_provider_modelscope.xcoms import StoredImage

THUMBNAIL_SIDE = 320  # pixels
THUMBNAIL_SECONDS = 60  # how long a thumbnail is shown without checking that its image still exists
MAX_BYTES = 64 * 1024 * 1024  # an image is held in memory while it is served

log = logging.getLogger(__name__)


class ImageUnavailableError(Exception):
    """An image cannot be shown. The text is shown to the user."""


def read_image(image: StoredImage) -> tuple[bytes, str]:
    """Return a stored image and its content type.

    :raises ImageUnavailableError: if it cannot be shown.
    """
    content = _read(image.uri, image.storage_conn_id, image.size_bytes, image.sha256)
    try:
        return content, content_type_of(content)
    except ImageError as error:
        raise ImageUnavailableError(f"{image.uri} is not an image in a supported format.") from error


def make_thumbnail(image: StoredImage, *, now: float) -> bytes:
    """Return a stored image as WebP, with sides of at most :data:`THUMBNAIL_SIDE` pixels.

    :param now: In epoch seconds. A thumbnail is reused for up to :data:`THUMBNAIL_SECONDS`.
    :raises ImageUnavailableError: if it cannot be shown.
    """
    period = int(now // THUMBNAIL_SECONDS)
    return _thumbnail(image.uri, image.storage_conn_id, image.size_bytes, image.sha256, period)


@lru_cache(maxsize=2000)  # about 10 KB each
def _thumbnail(uri: str, storage_conn_id: str | None, size_bytes: int, sha256: str, _period: int) -> bytes:
    content = _read(uri, storage_conn_id, size_bytes, sha256)
    try:
        return thumbnail(content, THUMBNAIL_SIDE)
    except ImageError as error:
        raise ImageUnavailableError(
            f"Cannot make a thumbnail of {uri}: it is damaged, has too many pixels or is not an image."
        ) from error


def _read(uri: str, storage_conn_id: str | None, size_bytes: int, sha256: str) -> bytes:
    if size_bytes > MAX_BYTES:
        raise ImageUnavailableError(
            f"{uri} has {size_bytes} bytes. The gallery shows images of up to {MAX_BYTES // 1024**2} MiB."
        )
    try:
        content = read_object(uri, storage_conn_id, most=size_bytes)
    except InvalidDestinationError as error:
        raise ImageUnavailableError(f"The API server cannot open this image: {error.message}") from error
    except Exception as error:  # each filesystem raises errors of its own
        log.warning("Could not read %s: %r", uri, error)
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ImageUnavailableError(
            f"{uri} does not contain this image. It was moved, deleted or overwritten, or the API server "
            "cannot read it."
        )
    return content
