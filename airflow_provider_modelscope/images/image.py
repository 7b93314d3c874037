"""One image in a file: its format and size, and its conversion to another format with its labels kept.

This module does not know where an image comes from or goes to. Bytes are read from the file when they are
needed, so that many images cost the memory of one.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import file_digest
from io import SEEK_END, BytesIO
from typing import IO, TYPE_CHECKING, Any, Self

from airflow_provider_modelscope.exceptions import BrokenImageError, ImageError, ImageStorageError

if TYPE_CHECKING:
    from PIL import Image as Pillow

MAX_PIXELS = 64 * 1024 * 1024  # sixteen times the service's largest image; more is a decompression bomb

# The accepted formats by Pillow's name: content type and file suffixes, the one that we write first.
_FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "PNG": ("image/png", (".png",)),
    "JPEG": ("image/jpeg", (".jpg", ".jpeg", ".jpe", ".jfif")),
    "WEBP": ("image/webp", (".webp",)),
    "GIF": ("image/gif", (".gif",)),
    "BMP": ("image/bmp", (".bmp",)),
    "TIFF": ("image/tiff", (".tif", ".tiff")),
    "AVIF": ("image/avif", (".avif",)),
}
FORMAT_OF_SUFFIX = {suffix: name for name, (_, suffixes) in _FORMATS.items() for suffix in suffixes}
CONVERTIBLE = ("PNG", "JPEG", "WEBP")  # the formats that hold the labels of an image

# The places of the labels of AI-generated content and the parameters (GB 45438-2025, and common practice).
_XMP = "XML:com.adobe.xmp"  # keyword of the iTXt chunk in a PNG
_LABEL, _PARAMETERS = "AIGC", "parameters"  # keywords of text chunks in a PNG
_EXIF_IFD, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_MAX_EXIF_IN_JPEG = 64_000  # bytes; a little less than it can hold

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that Pillow has decoded completely. Close it, or use it in a ``with``, to close its file.

    :param file: The file that holds the original bytes, and nothing else.
    :param length: In bytes.
    :param format: Pillow's name of the format, detected from the bytes.
    :param width: In pixels.
    :param height: In pixels.
    """

    file: IO[bytes] = field(repr=False)
    length: int
    format: str
    width: int
    height: int

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the image in these bytes. Raises the same errors as :meth:`from_file`."""
        return cls.from_file(BytesIO(content))

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes]) -> Self:
        """Write bytes to a temporary file, and return the image in it.

        The file has no name, so it cannot be left behind: it disappears when it is closed.

        :raises ImageStorageError: if the temporary folder cannot hold it.
        :raises ImageError: as :meth:`from_file`. Errors of the chunks are passed on.
        """
        with ExitStack() as opened:
            try:
                file = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
                opened.callback(_close, file)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
            except OSError as error:
                raise ImageStorageError(
                    f"The image cannot be written to this machine's temporary folder: {error}. Free space "
                    "there, or set the environment variable TMPDIR to another folder"
                ) from error
            image = cls.from_file(file)
            opened.pop_all()
        return image

    @classmethod
    def from_file(cls, file: IO[bytes]) -> Self:
        """Return the image in a file. The image owns the file from then on.

        :raises ImageError: if it is not a complete image of at most 64 Mi pixels; the file stays open.
        """
        length = file.seek(0, SEEK_END)
        # Odd metadata is not an error. Not in _open: warning filters belong to the process, and the gallery
        # opens images in several threads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(file) as opened:
                opened.verify()  # reads checksums, but leaves the object unusable
            with _open(file) as opened:
                opened.load()
        format_ = _format_of(opened)
        return cls(file=file, length=length, format=format_, width=opened.width, height=opened.height)

    def close(self) -> None:
        """Close the file, which deletes a temporary one."""
        _close(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def content(self) -> bytes:
        """The bytes, read from the file each time."""
        self.file.seek(0)
        return self.file.read()

    @property
    def content_type(self) -> str:
        """The MIME type, detected from the bytes."""
        return _FORMATS[self.format][0]

    @property
    def suffix(self) -> str:
        """The file suffix of this format, with its dot."""
        return _FORMATS[self.format][1][0]

    @property
    def sha256(self) -> str:
        """The checksum of the bytes in hexadecimal."""
        self.file.seek(0)
        return file_digest(self.file, "sha256").hexdigest()  # type: ignore[arg-type] # it is a binary file

    def converted(self, format_: str) -> Self:
        """Return the image in one of the ``CONVERTIBLE`` formats: itself if it has that format already.

        Labels of AI-generated content and parameters in the metadata are kept. Transparency becomes white
        if the format has none. The new image has a temporary file of its own.

        :raises ImageError: if that format cannot hold the image or its labels.
        """
        if format_ == self.format:
            return self
        from PIL import Image as Pillow

        output = BytesIO()
        options = {} if format_ == "PNG" else {"quality": 95}
        try:
            self.file.seek(0)
            with Pillow.open(self.file) as source:
                source.load()
                target = _in_mode_for(format_, source)
                target.save(output, format_, **options, **_metadata(source, target, format_))
        except Exception as error:
            raise ImageError(
                f"The {self.format} of {self.width}x{self.height} pixels cannot become {format_}: {error}"
            ) from error
        return type(self).from_chunks([output.getvalue()])


def content_type_of(content: bytes) -> str:
    """Return the MIME type of an image, detected from its first bytes.

    :raises ImageError: if they are not those of an image.
    """
    with _open(BytesIO(content)) as opened:
        return _FORMATS[_format_of(opened)][0]


def thumbnail(content: bytes, side: int) -> bytes:
    """Return an image, or the first frame of an animation, as a small WebP.

    :param side: Width and height in pixels, at most.
    :raises ImageError: if the bytes are not a complete image, or one of more than 16 Mi pixels.
    """
    output = BytesIO()
    with _open(BytesIO(content), max_pixels=MAX_PIXELS // 4) as opened:
        opened.draft("RGB", (2 * side, 2 * side))  # a JPEG need not be decoded at its full size
        small = opened if opened.mode in ("RGB", "RGBA", "L") else _in_mode_for("WEBP", opened)
        # The fastest settings with a good result: a page may request two hundred thumbnails.
        small.thumbnail((side, side), reducing_gap=1.0)
        _in_mode_for("WEBP", small).save(output, "WEBP", quality=80, method=1)
    return output.getvalue()


@contextmanager
def _open(file: IO[bytes], *, max_pixels: int = MAX_PIXELS) -> Iterator[Pillow.Image]:
    """Open a file as one of the accepted formats, without decoding it.

    :raises ImageError: if it has more pixels, or if anything fails here or in the block that uses it:
        hostile bytes make Pillow raise nearly any exception.
    """
    from PIL import Image as Pillow

    Pillow.init()
    formats = tuple(name for name in _FORMATS if name in Pillow.OPEN)  # not every Pillow has them all
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


def _format_of(opened: Pillow.Image) -> str:
    # A JPEG of several images (MPO) starts with a plain JPEG.
    return "JPEG" if opened.format == "MPO" else str(opened.format)


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk the rest of the buffer cannot be written either
        file.close()


def _in_mode_for(format_: str, source: Pillow.Image) -> Pillow.Image:
    """Return the pixels in a mode that the format can hold."""
    from PIL import Image as Pillow

    if source.mode == "I;16":  # Pillow would clip the tones above 255
        source = source.point(lambda tone: tone / 256).convert("L")
    if not source.has_transparency_data:
        return source.convert("L" if source.mode in ("1", "L") and format_ != "WEBP" else "RGB")
    coloured = source.convert("RGBA")
    if format_ != "JPEG":
        return coloured
    ground = Pillow.new("RGB", source.size, "white")
    ground.paste(coloured, mask=coloured.getchannel("A"))
    return ground


def _metadata(source: Pillow.Image, target: Pillow.Image, format_: str) -> dict[str, Any]:
    """Return the arguments of Pillow's ``save`` that carry the metadata into the other format."""
    texts = {name: _text(text) for name, text in getattr(source, "text", {}).items() if name != _XMP}
    if isinstance(comment := source.info.get("comment"), bytes):
        texts["Comment"] = comment.decode(errors="replace")
    profile: bytes = source.info.get("icc_profile") or b""
    space = b"GRAY" if target.mode == "L" else b"RGB "  # a profile for other pixels would be wrong
    kept: dict[str, Any] = {"icc_profile": profile if profile[16:20] == space else None}
    xmp: bytes | None = source.info.get("xmp")
    if format_ == "PNG":
        from PIL.PngImagePlugin import PngInfo

        kept["pnginfo"] = chunks = PngInfo()
        if xmp:
            texts[_XMP] = xmp.decode(errors="replace")
        for name, text in texts.items():
            chunks.add_itxt(name, text)
    elif xmp:
        kept["xmp"] = xmp
    if texts and format_ != "PNG":
        max_bytes = _MAX_EXIF_IN_JPEG if format_ == "JPEG" else math.inf
        kept["exif"] = _with_texts(source.getexif(), texts, max_bytes=max_bytes)
    elif exif := source.info.get("exif"):
        kept["exif"] = b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")
    return kept


def _with_texts(exif: Pillow.Exif, texts: dict[str, str], *, max_bytes: float) -> bytes:
    """Add text chunks to EXIF: the label, or else the parameters, as comment; the rest as description."""
    details = exif.get_ifd(_EXIF_IFD)
    lines = [exif[_DESCRIPTION].encode("latin-1")] if _DESCRIPTION in exif else []
    room = max_bytes - len(exif.tobytes())
    for name in sorted(texts, key=(_LABEL, _PARAMETERS, *texts).index):
        comment, line = _user_comment(texts[name]), f"{name}: {texts[name]}".encode()
        size = max(len(comment), len(line))
        if size > room and name != _LABEL:
            log.warning("Dropping the text %r of %d bytes: EXIF in a JPEG has no room for it", name, size)
            continue
        room -= size
        if name not in (_LABEL, _PARAMETERS) or details.setdefault(_USER_COMMENT, comment) != comment:
            lines.append(line)
    exif[_EXIF_IFD] = details  # get_ifd may have returned a new one
    if lines:
        exif[_DESCRIPTION] = b"\n".join(lines)
    return exif.tobytes()


def _text(text: str) -> str:
    """Decode a PNG's text: many programs write UTF-8, although the format says Latin-1."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return str(text)


def _user_comment(text: str) -> bytes:
    """Encode EXIF's UserComment: its first eight bytes name the character set."""
    if text.isascii():
        return b"ASCII\0\0\0" + text.encode()
    return b"UNICODE\0" + text.encode("utf-16-be")
