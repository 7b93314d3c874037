"""Carry an image's metadata into another format: labels of AI-generated content, parameters, EXIF, profiles.

A label is always kept. Anything else that the other format has no room for is left out, with a warning.
"""

from __future__ import annotations

import logging
import math
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

from airflow_provider_modelscope.images.blocks import check_tags
from airflow_provider_modelscope.images.parts import (
    MAX_XMP_IN_JPEG,
    Part,
    Replacement,
    format_of_parts,
    parts_of,
    png_chunk,
    read_at,
    spliced,
)

if TYPE_CHECKING:
    from PIL import Image as Pillow

# The places of the labels of AI-generated content and the parameters (GB 45438-2025, and common practice).
_XMP = "XML:com.adobe.xmp"  # keyword of the iTXt chunk in a PNG
_LABEL, _PARAMETERS = "AIGC", "parameters"  # keywords of text chunks in a PNG
_EXIF_IFD, _USER_COMMENT, _DESCRIPTION, _ORIENTATION = 0x8769, 0x9286, 0x010E, 0x0112
_GIF_XMP, _GIF_XMP_END = b"!\xff\x0bXMP DataXMP", b"\x01\xff\xfe\xfd"

# What a format can hold, in bytes.
_MAX_EXIF_IN_JPEG = 64_000  # a little less than one segment
_MAX_PROFILE = {"PNG": 1024 * 1024, "JPEG": 255 * 65_519, "WEBP": math.inf}  # Pillow reads no more in a PNG
_MAX_UNPACKED, _MAX_TEXTS = 1024 * 1024, 32 * 1024 * 1024  # Pillow refuses a PNG with more
# In all other chunks behind the pixels, an error makes Pillow refuse the PNG.
_READ_AFTER_PIXELS = (b"IDAT", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"IEND")
_KEPT_IN_PNG = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"tEXt", b"iTXt", b"eXIf")

log = logging.getLogger(__name__)


def readable(file: IO[bytes], *, with_label: bool = True) -> IO[bytes]:
    """Return a view of a PNG without what makes Pillow refuse or misread it; any other file as it is.

    :param with_label: Whether the label of AI-generated content is needed.
    :raises ValueError: if it is, and would be left out.
    """
    from PIL import Image as Pillow

    if format_of_parts(file) != "PNG":
        return file
    view = _as_pillow_expects(file, with_label)
    try:
        with Pillow.open(view):
            return view
    except Exception as error:  # broken metadata makes Pillow raise nearly any exception
        log.warning("Dropping all metadata of the PNG but texts and EXIF, since it cannot be read: %s", error)
        others = [part for part in parts_of(view, "PNG") if part.kind not in _KEPT_IN_PNG]
        return spliced(view, [Replacement(part.start, part.end, b"") for part in others])


def _as_pillow_expects(file: IO[bytes], with_label: bool) -> IO[bytes]:
    replaced, size_of_texts, has_pixels = [], 0, False
    for part in parts_of(file, "PNG"):
        has_pixels = has_pixels or part.kind == b"IDAT"
        if has_pixels and part.kind not in _READ_AFTER_PIXELS:
            replaced.append(Replacement(part.start, part.end, b""))
            continue
        if part.kind == b"tRNS":
            replaced.append(Replacement(part.start, part.end, _transparency(file, part)))
        if part.kind not in (b"iCCP", b"zTXt", b"iTXt", b"tEXt"):
            continue
        name, text, is_whole = _unpacked(part.kind, read_at(file, part.data, part.size))
        if is_whole and size_of_texts + len(text) <= _MAX_TEXTS:
            size_of_texts += len(text)
            continue
        if with_label and part.kind != b"iCCP" and (name == _LABEL or (name == _XMP and _is_label(text))):
            raise ValueError(
                f"its label is in metadata of more than {_MAX_UNPACKED} bytes, or in an unknown compression"
            )
        log.warning(
            "Dropping the %s chunk %r of the PNG: only %d bytes of each, and %d of all, can be read, and no "
            "unknown compression",
            part.kind.decode(), name, _MAX_UNPACKED, _MAX_TEXTS,
        )  # fmt: skip
        replaced.append(Replacement(part.start, part.end, b""))
    return spliced(file, replaced) if replaced else file


def _transparency(file: IO[bytes], part: Part) -> bytes:
    """Return a PNG's tRNS chunk with its tones in the 8 bits that Pillow decodes; empty if it is cut off."""
    depth, colours = read_at(file, 24, 2)
    data = read_at(file, part.data, part.size)
    if len(data) < {0: 2, 2: 6}.get(colours, 0):
        return b""
    tones = [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
    if colours == 0 and depth in (2, 4):
        data = (tones[0] % 2**depth * 255 // (2**depth - 1)).to_bytes(2)
    elif colours == 2 and depth == 16:
        data = b"".join((tone >> 8).to_bytes(2) for tone in tones)
    return png_chunk(b"tRNS", data)


def _unpacked(kind: bytes, data: bytes) -> tuple[str, bytes, bool]:
    """Return the keyword and the content of a PNG's chunk, and whether Pillow would unpack all of it."""
    name, _, content = data.partition(b"\0")
    packed = content[1:]
    if kind == b"iTXt":
        packed = content[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    if kind == b"tEXt" or (kind == b"iTXt" and content[:1] in (b"", b"\0")):
        return name.decode("latin-1"), content, True
    if kind != b"iTXt" and content[:1] != b"\0":
        return name.decode("latin-1"), b"", False
    unpacking, content = zlib.decompressobj(), b""
    with suppress(zlib.error):  # Pillow skips it
        content = unpacking.decompress(packed, _MAX_UNPACKED)
    return name.decode("latin-1"), content, not unpacking.unconsumed_tail


def metadata_for(file: IO[bytes], source: Pillow.Image, target: Pillow.Image, format_: str) -> dict[str, Any]:
    """Return the arguments of Pillow's ``save`` that carry the metadata of one image into another format.

    :param file: The file of the source.
    :param target: The pixels that will be saved.
    :raises ValueError: if the format has no room for the label of AI-generated content.
    """
    texts = {name: _text(text) for name, text in getattr(source, "text", {}).items() if name != _XMP}
    if isinstance(comment := source.info.get("comment"), bytes):
        texts["Comment"] = comment.decode(errors="replace")
    xmp: bytes | None = _xmp_of_gif(file) if source.format == "GIF" else source.info.get("xmp")
    kept: dict[str, Any] = {"icc_profile": _profile(source, target, format_)}
    if format_ == "PNG":
        from PIL.PngImagePlugin import PngInfo

        kept["pnginfo"] = chunks = PngInfo()
        if xmp:
            texts[_XMP] = xmp.decode(errors="replace")
        for name, text in texts.items():
            chunks.add_itxt(name, text)
        texts = {}
    elif format_ == "JPEG":
        kept["comment"] = b""  # it is one of the texts
        if xmp and len(xmp) > MAX_XMP_IN_JPEG:
            _warn_of_dropped(f"the XMP of {len(xmp)} bytes", MAX_XMP_IN_JPEG)
            if label := _label_in(xmp):
                texts.setdefault(_LABEL, label)
            xmp = None
    if xmp and format_ != "PNG":
        kept["xmp"] = xmp
    if exif := _exif(source, texts, math.inf if format_ != "JPEG" else _MAX_EXIF_IN_JPEG):
        kept["exif"] = exif
    return kept


def _profile(source: Pillow.Image, target: Pillow.Image, format_: str) -> bytes | None:
    profile: bytes = source.info.get("icc_profile") or b""
    if profile[16:20] != (b"GRAY" if target.mode == "L" else b"RGB "):  # it would be wrong for these pixels
        return None
    if len(profile) > _MAX_PROFILE[format_]:
        _warn_of_dropped(f"the colour profile of {len(profile)} bytes", _MAX_PROFILE[format_])
        return None
    return profile


def _exif(source: Pillow.Image, texts: dict[str, str], max_bytes: float) -> bytes:
    """Return the EXIF with these texts in it; what is left as it is keeps its encoding."""
    from PIL import Image as Pillow

    raw: bytes = source.info.get("exif") or b""
    if len(raw) <= max_bytes and not texts:
        return raw and b"Exif\0\0" + raw.removeprefix(b"Exif\0\0")
    try:
        check_tags(BytesIO(raw.removeprefix(b"Exif\0\0")))
        if len(raw) > max_bytes:
            _warn_of_dropped(
                f"EXIF of {len(raw)} bytes, but for orientation, description and comment", max_bytes
            )
            exif = _essential(source.getexif(), max_bytes)
        else:
            # A TIFF's describes its pixels.
            exif = Pillow.Exif() if source.format == "TIFF" else source.getexif()
        return _with_texts(exif, texts, max_bytes=max_bytes)
    except Exception as error:  # broken EXIF makes Pillow raise nearly any exception
        if _is_label(raw) and _LABEL not in texts:
            raise ValueError(f"the label in its EXIF cannot be read: {error}") from error
        log.warning("Dropping the EXIF but for its orientation, since it cannot be read: %s", error)
    exif = Pillow.Exif()
    if 1 < (orientation := orientation_of(raw)) <= 8:
        exif[_ORIENTATION] = orientation
    return _with_texts(exif, texts, max_bytes=max_bytes)


def orientation_of(exif: bytes) -> int:
    """Return the orientation from 1 to 8, or another number. Pillow would read all tags of hostile bytes."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}4xL", tiff)
        (tags,) = struct.unpack_from(f"{order}H", tiff, directory)
        entries = tiff[directory + 2 : directory + 2 + 12 * tags]
        # Of each tag: its number, type and count, and a short value with its padding.
        for tag, _, _, value in struct.iter_unpack(f"{order}HHLH2x", entries):
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:  # of broken EXIF
        pass
    return 1


def _essential(exif: Pillow.Exif, max_bytes: float) -> Pillow.Exif:
    """Return the orientation, and as there is room the comment and the description: each may be the label."""
    from PIL import Image as Pillow

    small, room = Pillow.Exif(), max_bytes - 200
    if _ORIENTATION in exif:
        small[_ORIENTATION] = exif[_ORIENTATION]
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    for tag, value in ((_USER_COMMENT, comment), (_DESCRIPTION, exif.get(_DESCRIPTION))):
        encoded = value.encode("latin-1", "replace") if isinstance(value, str) else value
        if not isinstance(encoded, bytes) or (len(encoded) > room and not _is_label(encoded)):
            continue
        room -= len(encoded)
        if tag == _USER_COMMENT:
            small[_EXIF_IFD] = {tag: value}
        else:
            small[tag] = value
    exif = Pillow.Exif()
    exif.load(small.tobytes())  # only then get_ifd works
    return exif


def _with_texts(exif: Pillow.Exif, texts: dict[str, str], *, max_bytes: float) -> bytes:
    """Add text chunks to EXIF: the label, or else the parameters, as comment; the rest as description."""
    if not texts and not exif:
        return b""
    details = exif.get_ifd(_EXIF_IFD)
    lines = [exif[_DESCRIPTION].encode("latin-1")] if _DESCRIPTION in exif else []
    room = max_bytes - len(exif.tobytes())
    for name in sorted(texts, key=(_LABEL, _PARAMETERS, *texts).index):
        comment, line = _user_comment(texts[name]), f"{name}: {texts[name]}".encode()
        size = max(len(comment), len(line))
        if size > room and name != _LABEL:
            _warn_of_dropped(f"the text {name!r} of {size} bytes", max_bytes)
            continue
        room -= size
        if name not in (_LABEL, _PARAMETERS) or details.setdefault(_USER_COMMENT, comment) != comment:
            lines.append(line)
    exif[_EXIF_IFD] = details  # get_ifd may have returned a new one
    if lines:
        exif[_DESCRIPTION] = b"\n".join(lines)
    return exif.tobytes()


def _warn_of_dropped(what: str, most: float) -> None:
    log.warning("Dropping %s: the format of the converted image has room for %d", what, most)


def _xmp_of_gif(file: IO[bytes]) -> bytes | None:
    """Return the XMP packet of a GIF, which Pillow does not read."""
    file.seek(0)
    _, _, rest = file.read().partition(_GIF_XMP)
    packet, end, _ = rest.partition(_GIF_XMP_END)
    return packet if end else None


def _label_in(xmp: bytes) -> str | None:
    """Return the label of AI-generated content in an XMP packet.

    :raises ValueError: if there is one that cannot be read.
    """
    if not _is_label(xmp):
        return None
    try:
        if b"<!DOCTYPE" in xmp:
            raise ValueError("it could declare entities")
        for element in ElementTree.fromstring(xmp).iter():  # noqa: S314 - it declares no entities
            for name, text in {**element.attrib, element.tag: element.text}.items():
                if name.endswith(f"}}{_LABEL}") and text and text.strip():
                    return text
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"the label in its XMP cannot be read: {error}") from error
    return None


def _is_label(data: bytes) -> bool:
    """Return whether there may be a label of AI-generated content in these bytes."""
    data = data.replace(b"\0", b"")  # of UTF-16
    return _LABEL.encode() in data or b"ContentProducer" in data


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
