"""One picture in a file: what it is, and its conversion to another format with its labels kept.

Nothing here knows where a picture comes from or goes to. Its bytes are read where they are needed, so that
many pictures cost memory for no more than one.
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

from airflow_provider_modelscope.exceptions import ImageError, ImageStorageError

if TYPE_CHECKING:
    from PIL import Image as Pillow

MAX_PIXELS = 64 * 1024 * 1024  # sixteen times the service's largest picture; more is a decompression bomb

# Pillow's names of the formats that are taken for pictures: content type, and the suffixes that mean
# them, the one that we give first.
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
CONVERTIBLE = ("PNG", "JPEG", "WEBP")  # what a picture can be turned into with its labels

# Where the labels of AI-generated content and the parameters stand (GB 45438-2025, and common practice).
_XMP = "XML:com.adobe.xmp"  # keyword of the iTXt chunk in a PNG
_LABEL, _PARAMETERS = "AIGC", "parameters"  # keywords of text chunks in a PNG
_EXIF_IFD, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_MAX_EXIF_IN_JPEG = 64_000  # bytes; a little less than it can hold

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture that Pillow could decode whole. Close it, or use it in a ``with``, to have its file closed.

    :param file: The file with the bytes, as they came, and nothing else.
    :param length: How many bytes.
    :param format: Pillow's name of the format, told from the bytes.
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
        """Return the picture that the bytes hold. Raises what :meth:`from_file` does."""
        return cls.from_file(BytesIO(content))

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes]) -> Self:
        """Write bytes into a temporary file, and return the picture that they are.

        The file has no name, so nothing can leave it behind: with the last that has it open, it is gone.

        :raises ImageStorageError: where the temporary folder does not take it.
        :raises ImageError: as :meth:`from_file`; and what the chunks raise.
        """
        with ExitStack() as opened:
            try:
                file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed where no picture comes of it
                opened.callback(_close, file)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
            except OSError as error:
                raise ImageStorageError(
                    f"This machine's temporary folder does not take the picture: {error}. Make room there, "
                    "or let the environment's TMPDIR name another folder"
                ) from error
            image = cls.from_file(file)
            opened.pop_all()
        return image

    @classmethod
    def from_file(cls, file: IO[bytes]) -> Self:
        """Return the picture that a file holds, which from then on belongs to it.

        :raises ImageError: where it does not hold a whole picture of at most 64 Mi pixels; the file is left
            open.
        """
        length = file.seek(0, SEEK_END)
        try:
            # Odd metadata is no fault here. Not in _opened: the filters are the process's, and the gallery
            # opens pictures in several threads.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with _opened(file) as picture:  # which reads checksums, but leaves the picture unusable
                    picture.verify()
                with _opened(file) as picture:
                    picture.load()
        except ImageError:
            raise
        except Exception as error:  # hostile bytes make Pillow raise nearly anything
            file.seek(0)
            raise ImageError(
                f"Not a whole picture ({error}); {length} bytes that start with {file.read(16)!r}"
            ) from error
        format_ = _format_of(picture)
        return cls(file=file, length=length, format=format_, width=picture.width, height=picture.height)

    def close(self) -> None:
        """Close the file; a temporary one is gone then."""
        _close(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def content(self) -> bytes:
        """The bytes, read anew from the file."""
        self.file.seek(0)
        return self.file.read()

    @property
    def content_type(self) -> str:
        """The MIME type, told from the bytes."""
        return _FORMATS[self.format][0]

    @property
    def suffix(self) -> str:
        """The file name's suffix for this format, with its dot."""
        return _FORMATS[self.format][1][0]

    @property
    def sha256(self) -> str:
        """The checksum of the bytes, in hexadecimal."""
        self.file.seek(0)
        return file_digest(self.file, "sha256").hexdigest()  # type: ignore[arg-type] # it is a binary file

    def converted(self, format_: str) -> Self:
        """Return the picture in one of the ``CONVERTIBLE`` formats; itself where it is in that already.

        The labels of AI-generated content and the parameters in its metadata come along. Transparency is
        flattened on white where the format has none. The new picture has a temporary file of its own.

        :raises ImageError: where that format cannot hold the picture or its labels.
        """
        if format_ == self.format:
            return self
        from PIL import Image as Pillow

        output = BytesIO()
        options = {} if format_ == "PNG" else {"quality": 95}
        try:
            self.file.seek(0)
            with Pillow.open(self.file) as picture:
                picture.load()
                painted = _painted(picture, format_)
                painted.save(output, format_, **options, **_metadata(picture, painted, format_))
        except Exception as error:
            raise ImageError(
                f"The {self.format} of {self.width}x{self.height} pixels cannot become {format_}: {error}"
            ) from error
        return type(self).from_chunks([output.getvalue()])


def content_type_of(content: bytes) -> str:
    """Return the MIME type of a picture, told from its first bytes.

    :raises ImageError: where they are not those of a picture.
    """
    try:
        with _opened(BytesIO(content)) as picture:
            return _FORMATS[_format_of(picture)][0]
    except ImageError:
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise ImageError(f"Not a picture ({error})") from error


def thumbnail(content: bytes, side: int) -> bytes:
    """Return a picture, its first if it moves, as a WebP whose sides have at most so many pixels.

    :raises ImageError: where the bytes are not a whole picture, or one of more than 16 Mi pixels.
    """
    output = BytesIO()
    try:
        with _opened(BytesIO(content), most=MAX_PIXELS // 4) as picture:
            picture.draft("RGB", (2 * side, 2 * side))  # a JPEG need not be decoded at its full size
            painted = picture if picture.mode in ("RGB", "RGBA", "L") else _painted(picture, "WEBP")
            # As fast as it can be done well: a page may ask for two hundred.
            painted.thumbnail((side, side), reducing_gap=1.0)
            _painted(painted, "WEBP").save(output, "WEBP", quality=80, method=1)
    except ImageError:
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise ImageError(f"Not a whole picture ({error})") from error
    return output.getvalue()


@contextmanager
def _opened(file: IO[bytes], *, most: int = MAX_PIXELS) -> Iterator[Pillow.Image]:
    """Open a file as one of the formats that are taken for pictures, without decoding it.

    :param most: How many pixels it may have.
    :raises ImageError: where it has more.
    :raises Exception: nearly anything, here and later: hostile bytes make Pillow do so.
    """
    from PIL import Image as Pillow

    Pillow.init()
    formats = tuple(name for name in _FORMATS if name in Pillow.OPEN)  # not every Pillow has them all
    file.seek(0)
    with Pillow.open(file, formats=formats) as picture:
        if picture.width * picture.height > most:
            raise ImageError(f"{picture.width}x{picture.height} pixels are more than {most}")
        yield picture


def _format_of(picture: Pillow.Image) -> str:
    # A JPEG of several pictures (MPO) opens with a plain JPEG.
    return "JPEG" if picture.format == "MPO" else str(picture.format)


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # where there was no room, there is none for what is left to write either
        file.close()


def _painted(picture: Pillow.Image, format_: str) -> Pillow.Image:
    """Return the pixels in a mode that the format can hold."""
    from PIL import Image as Pillow

    if picture.mode == "I;16":  # Pillow would cut the tones above 255 off
        picture = picture.point(lambda tone: tone / 256).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("L" if picture.mode in ("1", "L") and format_ != "WEBP" else "RGB")
    coloured = picture.convert("RGBA")
    if format_ != "JPEG":
        return coloured
    ground = Pillow.new("RGB", picture.size, "white")
    ground.paste(coloured, mask=coloured.getchannel("A"))
    return ground


def _metadata(picture: Pillow.Image, painted: Pillow.Image, format_: str) -> dict[str, Any]:
    """Return the arguments of Pillow's ``save`` that carry the picture's metadata into the other format."""
    texts = {name: _text(text) for name, text in getattr(picture, "text", {}).items() if name != _XMP}
    if isinstance(comment := picture.info.get("comment"), bytes):
        texts["Comment"] = comment.decode(errors="replace")
    profile: bytes = picture.info.get("icc_profile") or b""
    space = b"GRAY" if painted.mode == "L" else b"RGB "  # a profile for other pixels would be wrong
    kept: dict[str, Any] = {"icc_profile": profile if profile[16:20] == space else None}
    xmp: bytes | None = picture.info.get("xmp")
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
        most = _MAX_EXIF_IN_JPEG if format_ == "JPEG" else math.inf
        kept["exif"] = _with_texts(picture.getexif(), texts, most=most)
    elif exif := picture.info.get("exif"):
        kept["exif"] = b"Exif\0\0" + exif.removeprefix(b"Exif\0\0")
    return kept


def _with_texts(exif: Pillow.Exif, texts: dict[str, str], *, most: float) -> bytes:
    """Add text chunks to EXIF: the label, or else the parameters, as comment, the rest as description."""
    details = exif.get_ifd(_EXIF_IFD)
    lines = [exif[_DESCRIPTION].encode("latin-1")] if _DESCRIPTION in exif else []
    room = most - len(exif.tobytes())
    for name in sorted(texts, key=(_LABEL, _PARAMETERS, *texts).index):
        comment, line = _user_comment(texts[name]), f"{name}: {texts[name]}".encode()
        size = max(len(comment), len(line))
        if size > room and name != _LABEL:
            log.warning("The text %r of %d bytes in the picture is too long and is left out", name, size)
            continue
        room -= size
        if name not in (_LABEL, _PARAMETERS) or details.setdefault(_USER_COMMENT, comment) != comment:
            lines.append(line)
    exif[_EXIF_IFD] = details  # what get_ifd returns need not be part of it
    if lines:
        exif[_DESCRIPTION] = b"\n".join(lines)
    return exif.tobytes()


def _text(text: str) -> str:
    """Read a PNG's text as what it is: many programs write UTF-8 where the format says Latin-1."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return str(text)


def _user_comment(text: str) -> bytes:
    """Write EXIF's UserComment: eight bytes name the character set."""
    if text.isascii():
        return b"ASCII\0\0\0" + text.encode()
    return b"UNICODE\0" + text.encode("utf-16-be")
