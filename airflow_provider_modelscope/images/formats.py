"""The image formats that we accept, detected from the bytes: opened by Pillow, not decoded yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from typing import IO, TYPE_CHECKING

from airflow_provider_modelscope.exceptions import BrokenImageError, ImageError

if TYPE_CHECKING:
    from PIL import Image as Pillow

MAX_PIXELS = 64 * 1024 * 1024  # sixteen times the service's largest image; more is a decompression bomb

# The accepted formats by Pillow's name: content type and file suffixes, the one that we write first.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "PNG": ("image/png", (".png",)),
    "JPEG": ("image/jpeg", (".jpg", ".jpeg", ".jpe", ".jfif")),
    "WEBP": ("image/webp", (".webp",)),
    "GIF": ("image/gif", (".gif",)),
    "BMP": ("image/bmp", (".bmp",)),
    "TIFF": ("image/tiff", (".tif", ".tiff")),
    "AVIF": ("image/avif", (".avif",)),
}
FORMAT_OF_SUFFIX = {suffix: name for name, (_, suffixes) in FORMATS.items() for suffix in suffixes}
CONVERTIBLE = ("PNG", "JPEG", "WEBP")  # the formats that hold the labels of an image


@contextmanager
def open_image(file: IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Iterator[Pillow.Image]:
    """Open a file as one of the accepted formats, without decoding it.

    :raises ImageError: if it has more pixels, or if anything fails here or in the block that uses it:
        hostile bytes make Pillow raise nearly any exception.
    """
    from PIL import Image as Pillow

    Pillow.init()
    formats = tuple(name for name in FORMATS if name in Pillow.OPEN)  # not every Pillow has them all
    length = file.seek(0, SEEK_END)
    file.seek(0)
    try:
        with Pillow.open(file, formats=formats) as opened:
            if opened.width * opened.height > max_pixels:
                raise BrokenImageError(
                    f"The image has {opened.width}x{opened.height} pixels, more than {max_pixels}"
                )
            yield opened
    except ImageError:
        raise
    except Exception as error:
        file.seek(0)
        raise BrokenImageError(
            f"Not a complete image ({error}); {length} bytes that start with {file.read(16)!r}"
        ) from error


def format_of(opened: Pillow.Image) -> str:
    """Return the format of an open image; a JPEG of several images (MPO) starts with a plain JPEG."""
    return "JPEG" if opened.format == "MPO" else str(opened.format)
