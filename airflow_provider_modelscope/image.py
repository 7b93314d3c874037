"""One picture as bytes: what it is, and its conversion to another format with its labels kept.

Nothing here knows where a picture comes from or goes to.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_modelscope.exceptions import ImageError

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

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture that Pillow could decode whole.

    :param content: The bytes, as they came.
    :param format: Pillow's name of the format, told from the bytes.
    :param width: In pixels.
    :param height: In pixels.
    """

    content: bytes = field(repr=False)
    format: str
    width: int
    height: int

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the picture that the bytes hold.

        :raises ImageError: where they do not hold a whole picture of at most 64 Mi pixels.
        """
        from PIL import Image as Pillow

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # the cap below is ours
                for is_second_look in (False, True):  # verify() reads checksums, but leaves the file unusable
                    with Pillow.open(BytesIO(content), formats=tuple(_FORMATS)) as picture:
                        if picture.width * picture.height > MAX_PIXELS:
                            raise ImageError(
                                f"{picture.width}x{picture.height} pixels are more than {MAX_PIXELS}"
                            )
                        if is_second_look:
                            picture.load()
                        else:
                            picture.verify()
        except ImageError:
            raise
        except Exception as error:  # hostile bytes make Pillow raise nearly anything
            raise ImageError(
                f"Not a whole picture ({error}); {len(content)} bytes that start with {content[:16]!r}"
            ) from error
        # A JPEG of several pictures (MPO) opens with a plain JPEG.
        name = "JPEG" if picture.format == "MPO" else str(picture.format)
        return cls(content=content, format=name, width=picture.width, height=picture.height)

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
        return sha256(self.content).hexdigest()

    def converted(self, format_: str) -> Self:
        """Return the picture in one of the ``CONVERTIBLE`` formats; itself where it is in that already.

        The labels of AI-generated content and the parameters in its metadata come along. Transparency is
        flattened on white where the format has none.
        """
        if format_ == self.format:
            return self
        from PIL import Image as Pillow

        with Pillow.open(BytesIO(self.content)) as picture:
            picture.load()
            output = BytesIO()
            options = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}.get(format_, {})
            _painted(picture, format_).save(output, format_, **options, **_metadata(picture, format_))
        return type(self).from_bytes(output.getvalue())


def _painted(picture: Pillow.Image, format_: str) -> Pillow.Image:
    """Return the pixels in a mode that the format can hold."""
    from PIL import Image as Pillow

    if format_ == "JPEG" and picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        ground = Pillow.new("RGB", picture.size, "white")
        ground.paste(coloured, mask=coloured.getchannel("A"))
        return ground
    modes = ("L", "RGB") if format_ == "JPEG" else ("L", "LA", "RGB", "RGBA")
    if picture.mode in modes:
        return picture.copy()
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _metadata(picture: Pillow.Image, format_: str) -> dict[str, Any]:
    """Return the arguments of Pillow's ``save`` that carry the picture's metadata into the other format."""
    texts = {name: str(text) for name, text in getattr(picture, "text", {}).items()}
    xmp = texts.pop(_XMP, None) or picture.info.get("xmp")
    exif = picture.getexif()
    kept: dict[str, Any] = {}
    if picture.mode in ("L", "LA", "RGB", "RGBA"):  # another mode is converted, and its profile with it
        kept["icc_profile"] = picture.info.get("icc_profile")
    if format_ == "PNG":
        from PIL.PngImagePlugin import PngInfo

        kept["pnginfo"] = chunks = PngInfo()
        if xmp:
            chunks.add_itxt(_XMP, xmp.decode(errors="replace") if isinstance(xmp, bytes) else xmp)
        if comment := picture.info.get("comment"):
            chunks.add_itxt("Comment", comment.decode(errors="replace"))
    else:
        if xmp:
            kept["xmp"] = xmp if isinstance(xmp, bytes) else xmp.encode()
        _write_texts(exif, texts)
    if exif:
        kept["exif"] = exif.tobytes()
    return {name: value for name, value in kept.items() if value is not None}


def _write_texts(exif: Pillow.Exif, texts: dict[str, str]) -> None:
    """Put a PNG's text chunks into EXIF: the label or the parameters as comment, the rest as description."""
    details = exif.get_ifd(_EXIF_IFD)
    for name in (_LABEL, _PARAMETERS):
        if name in texts and _USER_COMMENT not in details:
            details[_USER_COMMENT] = _user_comment(texts.pop(name))
    rest = "\n".join(f"{name}: {text}" for name, text in texts.items()).encode()
    if len(rest) > 32_000:  # an EXIF block in a JPEG holds 64 KiB
        log.warning(
            "Text of %d bytes in the picture does not fit into the new format and is left out", len(rest)
        )
    elif rest and _DESCRIPTION not in exif:
        exif[_DESCRIPTION] = rest


def _user_comment(text: str) -> bytes:
    """Write EXIF's UserComment: eight bytes name the character set."""
    if text.isascii():
        return b"ASCII\0\0\0" + text.encode()
    return b"UNICODE\0" + text.encode("utf-16-be")
