"""Images out of object storage, for those who may see them, and small ones of them.

An XCom says where an image lies, and a person may be able to write XComs who may not read every file of this
server or every bucket of its connections. So an image is only shown where its bytes are those that the XCom
tells the checksum of: who knows that was told of the image. Whether there is another file is not told.
"""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import ImageError, InvalidDestinationError
from airflow_provider_modelscope.images.image import content_type_of, thumbnail
from airflow_provider_modelscope.images.object_storage import read_object

if TYPE_CHECKING:
    from airflow_provider_modelscope.gallery.cards import StoredPicture

SIDE = 320  # pixels of a small image, at most
MAX_BYTES = 64 * 1024 * 1024  # of an image, which is held in memory while it is served
FRESH = 60  # seconds for which a small image is shown without a look whether its object still stands

log = logging.getLogger(__name__)


class NotShownError(Exception):
    """An image cannot be shown; the text is a sentence for the person who asked."""


def whole(picture: StoredPicture) -> tuple[bytes, str]:
    """Return a stored image and its content type, which is one of a picture.

    :raises NotShownError: where it cannot be shown.
    """
    content = _read(picture)
    try:
        return content, content_type_of(content)
    except ImageError as error:
        raise NotShownError(f"{picture.uri} is no picture that is shown here.") from error


def small(picture: StoredPicture, *, now: float) -> bytes:
    """Return a stored image with sides of at most :data:`SIDE` pixels, as WebP.

    :param now: In epoch seconds; one that is made serves for :data:`FRESH` seconds at most.
    :raises NotShownError: where it cannot be shown.
    """
    return _small(picture, int(now // FRESH))


@lru_cache(maxsize=2000)  # some 10 KB each
def _small(picture: StoredPicture, _minute: int) -> bytes:
    try:
        return thumbnail(_read(picture), SIDE)
    except ImageError as error:
        raise NotShownError(f"{picture.uri} is no picture that can be shown small.") from error


def _read(picture: StoredPicture) -> bytes:
    if not 0 < picture.length <= MAX_BYTES:
        raise NotShownError(f"{picture.uri} has more than {MAX_BYTES // 1024**2} MiB: too many to show.")
    try:
        content = read_object(picture.uri, picture.storage_conn_id, most=picture.length)
    except InvalidDestinationError as error:
        raise NotShownError(f"This API server cannot open it: {error.message}.") from error
    except Exception as error:  # each store has errors of its own
        log.warning("%s cannot be read: %r", picture.uri, error)
        content = b""
    if hashlib.sha256(content).hexdigest() != picture.sha256:
        raise NotShownError(
            f"{picture.uri} does not hold this image: it was moved, deleted or overwritten, or lies where "
            "this API server cannot read."
        )
    return content
