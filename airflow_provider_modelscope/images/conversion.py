"""Encode an image in another format, with the labels and parameters in its metadata."""

from __future__ import annotations

import logging
import math
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image as Pillow

# The places of the labels of AI-generated content and the parameters (GB 45438-2025, and common practice).
_XMP = "XML:com.adobe.xmp"  # keyword of the iTXt chunk in a PNG
_LABEL, _PARAMETERS = "AIGC", "parameters"  # keywords of text chunks in a PNG
_EXIF_IFD, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_MAX_EXIF_IN_JPEG = 64_000  # bytes; a little less than it can hold

log = logging.getLogger(__name__)


def convert(file: IO[bytes], format_: str) -> bytes:
    """Return the image of a file in one of the ``CONVERTIBLE`` formats.

    Labels of AI-generated content and parameters in the metadata are kept. Transparency becomes white if the
    format has none.

    :raises Exception: any error, if that format cannot hold the image or its labels.
    """
    from PIL import Image as Pillow

    output = BytesIO()
    options = {} if format_ == "PNG" else {"quality": 95}
    file.seek(0)
    with Pillow.open(file) as source:
        source.load()
        target = in_mode_for(format_, source)
        target.save(output, format_, **options, **_metadata(source, target, format_))
    return output.getvalue()


def in_mode_for(format_: str, source: Pillow.Image) -> Pillow.Image:
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
