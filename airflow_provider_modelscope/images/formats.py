"""What we accept as an image: its format, detected from the bytes, and how much work one file may cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from typing import IO, TYPE_CHECKING

from airflow_provider_modelscope.exceptions import BrokenImageError, ImageError

if TYPE_CHECKING:
    from PIL import Image as Pillow

MAX_PIXELS = 64 * 1024 * 1024  # sixteen times the service's largest image; more is a decompression bomb
MAX_FRAMES = 1000
MAX_PIXELS_OF_ALL_FRAMES = 2 * MAX_PIXELS

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

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
# How other files start, which a service or a proxy may send instead of an image.
_OTHER_FORMATS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\x1aE\xdf\xa3", "a video (WebM)"),
    (b"%PDF-", "PDF"),
    (b"<", "HTML, XML or SVG"),
    (b"{", "JSON"),
    (b"[", "JSON"),
)


@contextmanager
def open_image(file: IO[bytes]) -> Iterator[Pillow.Image]:
    """Open a file as one of the accepted formats, without decoding it.

    :raises ImageError: if it has more pixels than we accept, or if anything fails here or in the block that
        uses it: hostile bytes make Pillow raise nearly any exception.
    """
    from PIL import Image as Pillow, UnidentifiedImageError

    Pillow.init()
    formats = tuple(name for name in FORMATS if name in Pillow.OPEN)  # not every Pillow has them all
    file.seek(0)
    with only_image_errors(file):
        try:
            image = Pillow.open(file, formats=formats)
        except UnidentifiedImageError:
            file.seek(0)
            raise ValueError(_other_format(file.read(64))) from None
        with image as opened:
            check_size(opened.width, opened.height)
            yield opened


def check_size(width: int, height: int) -> None:
    """Raise a ``BrokenImageError`` if an image has more pixels than we accept."""
    if width * height > MAX_PIXELS:
        raise BrokenImageError(f"The image has {width}x{height} pixels, more than {MAX_PIXELS}")


class Budget:
    """Counts the frames of one file and their pixels."""

    def __init__(self) -> None:
        self._frames = 0
        self._pixels = 0

    def take(self, width: int, height: int, *, frames: int = 1) -> None:
        """Count frames of one size, before they are decoded.

        :raises BrokenImageError: if they exceed a limit.
        """
        check_size(width, height)
        self._frames += frames
        if self._frames > MAX_FRAMES:
            raise too_many("frames", MAX_FRAMES)
        self._pixels += frames * width * height
        if self._pixels > MAX_PIXELS_OF_ALL_FRAMES:
            raise too_many("pixels in all frames together", MAX_PIXELS_OF_ALL_FRAMES)


def too_many(what: str, limit: int) -> BrokenImageError:
    """Return the error of a file that exceeds a limit."""
    return BrokenImageError(f"The image has more than {limit} {what}, so it is not decoded")


@contextmanager
def only_image_errors(file: IO[bytes]) -> Iterator[None]:
    """Turn any other error of the block into one that shows how the file starts.

    :raises BrokenImageError: if the block raises anything but an ``ImageError``.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        length = file.seek(0, SEEK_END)
        file.seek(0)
        raise BrokenImageError(
            f"Not a complete image ({error}); {length} bytes that start with {file.read(16)!r}"
        ) from error


def read_exactly(file: IO[bytes], length: int) -> bytes:
    """Return the next bytes of a file.

    :raises ValueError: if it ends before.
    """
    data = file.read(length)
    if len(data) < length:
        raise ValueError("it is cut off")
    return data


def _other_format(start: bytes) -> str:
    """Return why a file that starts with these bytes is no image that we accept."""
    if not start:
        return "the file is empty"
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return "an AVIF that this Pillow cannot open"
    if start[4:8] == b"ftyp":
        name: str | None = "HEIC or HEIF" if start[8:12] in _HEIF_BRANDS else "a video (MP4)"
    else:
        text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
        name = next((name for sign, name in _OTHER_FORMATS if text.startswith(sign)), None)
    return f"{name} is not accepted" if name else "in no known format, or cut off at its start"


def format_of(opened: Pillow.Image) -> str:
    """Return the format of an open image; a JPEG of several images (MPO) starts with a plain JPEG."""
    return "JPEG" if opened.format == "MPO" else str(opened.format)
