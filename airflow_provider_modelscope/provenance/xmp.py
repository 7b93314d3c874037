"""Metadata inside an image file: insert an XMP packet, or add to it, and change no other byte.

Pillow would encode the pixels again and drop parts that it does not know, so this module walks the parts of
the file itself. It takes a file that was checked, and returns what to replace in it; what the properties say
is decided elsewhere.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from airflow_provider_modelscope.images.parts import (
    JPEG_APP0,
    JPEG_APP1,
    JPEG_APP2,
    MAX_XMP_IN_JPEG,
    Part,
    Replacement,
    format_of_parts,
    is_manifest,
    malformed,
    parts_of,
    png_chunk,
    read_at,
    spliced,
)

MAX_PACKET = 1024 * 1024  # bytes; a compressed one could unpack to any size

_RDF, _XML = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://www.w3.org/XML/1998/namespace"
_MAX_NAMESPACE = 255  # characters; every name that is read repeats it, so a long one would fill the memory
_START = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">\n'
)
_END = '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
_EMPTY_TAG = re.compile(rb"""<[^"'/>]*(?:(?:"[^"]*"|'[^']*')[^"'/>]*)*/>""")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FORBIDDEN = re.compile(r"[^\t\n\r -\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")  # by XML 1.0, even escaped

_PNG_KEYWORD = b"XML:com.adobe.xmp\0"
_JPEG_NAME = b"http://ns.adobe.com/xap/1.0/\0"
_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10  # flags of VP8X
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_MAX_RIFF = 2**32 - 64  # bytes; a little less than its size field can hold


class CannotEmbedError(ValueError):
    """The file cannot hold the properties; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Property:
    """One simple text property.

    :param namespace: The URI of its schema.
    :param prefix: The usual prefix of the namespace, and of no other namespace.
    :param name: As in the schema: ASCII letters, digits, ``_``, ``.`` and ``-``.
    :param text: Any text; characters that XML cannot hold are written as U+FFFD.
    """

    namespace: str
    prefix: str
    name: str
    text: str


def packet_of(file: IO[bytes]) -> str | None:
    """Return the XMP packet of a PNG, JPEG or WebP; None if there is no such image or no readable packet."""
    try:
        packet = _carrier_of(file).packet
        return None if packet is None else packet.decode()
    except ValueError:  # CannotEmbedError is one, and UnicodeDecodeError
        return None


def properties_of(packet: str) -> dict[tuple[str, str], str]:
    """Return the texts of the packet's simple properties and lists by namespace and name, without structures.

    Empty for a packet that :func:`with_properties` could not add to.
    """
    try:
        _Outline(packet.encode())
    except ValueError:
        return {}
    found: dict[tuple[str, str], str] = {}
    for rdf in ElementTree.fromstring(packet).iter(f"{{{_RDF}}}RDF"):  # noqa: S314 - it declares no entities
        for description in rdf.iterfind(f"{{{_RDF}}}Description"):
            texts = [*description.items(), *((element.tag, _text_of(element)) for element in description)]
            for tag, text in texts:
                namespace, _, name = tag.removeprefix("{").rpartition("}")
                if text is not None and namespace not in ("", _RDF, _XML):
                    found.setdefault((namespace, name), text)
    return found


def with_properties(
    file: IO[bytes], properties: Sequence[Property], *, own_namespace: str
) -> list[Replacement]:
    """Return what to replace in an image, so that these properties are in its packet. Nothing else changes.

    A property that is in the packet already is kept and not added again: two different labels are an error.

    :param file: An image that was checked: its pixels are not decoded here.
    :param own_namespace: The namespace of properties that only this package writes: they replace those that
        it wrote earlier.
    :raises CannotEmbedError: if the file is not a PNG, JPEG or WebP, or any change would invalidate its
        Content Credentials, or its packet cannot be added to, or there is no room, or a name would break the
        packet.
    """
    if unfit := [each.name for each in properties if not _NAME.fullmatch(each.name)]:
        raise CannotEmbedError(f"The property name {unfit[0]!r} is not valid in XMP")
    carrier = _carrier_of(file)
    if any(is_manifest(file, part) for part in carrier.parts):
        raise CannotEmbedError("The file contains Content Credentials (C2PA), which any change invalidates")
    if carrier.packet is None:
        packet = f"{_START}{_block('', properties)}{_END}".encode()
    else:
        outline = _Outline(carrier.packet, own_namespace)
        properties = [each for each in properties if f"{each.namespace}}}{each.name}" not in outline.names]
        packet = outline.with_block(_block(outline.about or "", properties).encode())
    if not properties:
        return []
    if len(packet) > carrier.max_bytes:
        raise CannotEmbedError(
            f"The XMP packet has {len(packet)} bytes, more than the limit of {carrier.max_bytes}"
        )
    replacements = carrier.put(packet)
    _check(file, carrier, replacements)
    return replacements


def _check(file: IO[bytes], carrier: _Carrier, replacements: list[Replacement]) -> None:
    """Check that the result has one part in place of the old packet, and otherwise the parts of the file.

    What follows that part needs no check: these are bytes of the file, from the start of a part on.
    """
    *header, (start, end, data) = replacements
    place = start + sum(len(new) - (last - first) for first, last, new in header)
    borders = {2, *(border for part in carrier.parts for border in (part.start, part.end))}  # 2: of a JPEG
    before: list[Part] = []
    for part in parts_of(spliced(file, replacements), carrier.format):
        if part.start >= place:
            is_one_part = (part.start, part.end) == (place, place + len(data))
            expected = [each for each in carrier.parts if each.end <= start]
            if is_one_part and _kinds(before) == _kinds(expected) and {start, end} <= borders:
                return
            break
        before.append(part)
    raise CannotEmbedError("The file with the XMP packet would not consist of the same parts")


def _kinds(parts: list[Part]) -> list[tuple[bytes, int]]:
    return [(part.kind, part.size) for part in parts if part.kind != b"VP8X"]  # it announces the packet


def _block(about: str, properties: Sequence[Property]) -> str:
    # It declares every prefix, RDF's too: so it fits into any packet, and differs from others' blocks.
    namespaces = {"rdf": _RDF} | {each.prefix: each.namespace for each in properties}
    declared = "".join(f" xmlns:{prefix}={quoteattr(uri)}" for prefix, uri in namespaces.items())
    elements = "".join(
        f"<{each.prefix}:{each.name}>{_escaped(each.text)}</{each.prefix}:{each.name}>\n"
        for each in properties
    )
    return f"<rdf:Description rdf:about={quoteattr(about)}{declared}>\n{elements}</rdf:Description>"


def _escaped(text: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", text), {"\r": "&#13;"})  # an unescaped one would be read as \n


def _text_of(element: ElementTree.Element) -> str | None:
    """Return the text of a property written as an element; None for a structure."""
    if not element.attrib.keys() <= {f"{{{_XML}}}lang", f"{{{_RDF}}}resource"}:
        return None
    if not len(element):
        return element.get(f"{{{_RDF}}}resource", element.text or "")
    lists = [f"{{{_RDF}}}{name}" for name in ("Alt", "Bag", "Seq")]
    if len(element) > 1 or element[0].tag not in lists or any(len(item) for item in element[0]):
        return None
    return ", ".join(item.text or "" for item in element[0])


class _Outline:
    """The contents of a packet with their offsets, and our own earlier blocks apart from the rest.

    Uses expat directly, since it reports offsets. Its names are ``namespace}name``.

    :raises CannotEmbedError: if the packet cannot be added to.
    """

    def __init__(self, packet: bytes, own_namespace: str = "") -> None:
        self.names: set[str] = set()  # of elements and attributes outside our own blocks
        self.about: str | None = None  # the rdf:about of the first description
        self._packet = packet
        self._own: set[str | None] = {_RDF, own_namespace}
        self._end = 0  # the offset of the last closing tag of rdf:RDF
        self._blocks: list[tuple[int, int]] = []
        self._block: tuple[int, int] | None = None  # the open one: its offset and its depth
        self._open: list[str] = []
        self._declared: set[str | None] = set()
        self._parser = expat.ParserCreate("UTF-8", "}")
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartNamespaceDeclHandler = self._declare
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._finish
        if b"\0" in packet:
            raise _unfit("it is not UTF-8")  # it may be UTF-16, which expat would detect and accept
        try:
            self._parser.Parse(packet, True)
        except expat.ExpatError as error:
            raise _unfit(str(error)) from error
        if not self._end:
            raise _unfit("it has no rdf:RDF with a closing tag")

    def with_block(self, block: bytes) -> bytes:
        """Return the packet with this block in place of our own earlier ones."""
        pieces, at = [], 0
        for start, end in self._blocks:
            pieces.append(self._packet[at:start])
            at = end
        return b"".join((*pieces, self._packet[at : self._end], block, self._packet[self._end :]))

    def _refuse(self, *_: object) -> None:
        raise _unfit("it has a DOCTYPE")

    def _declare(self, _: str | None, namespace: str | None) -> None:
        if namespace and len(namespace) > _MAX_NAMESPACE:
            raise _unfit(f"it has a namespace of {len(namespace)} characters")
        self._declared.add(namespace)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        at = self._parser.CurrentByteIndex
        # Detected here: for the end of a tag that closes itself, expat reports the offset of what follows.
        is_empty = _EMPTY_TAG.match(self._packet, at)
        if tag == f"{_RDF}}}Description":
            if self.about is None:
                self.about = attributes.get(f"{_RDF}}}about", attributes.get("about", ""))
            # As _block writes it. Other programs declare RDF's prefix further out: a description in which one
            # of them collected our properties and a label is not ours to remove.
            is_ours = self._own <= self._declared and self._open[-1:] == [f"{_RDF}}}RDF"] and not is_empty
            if is_ours and not self._block:
                self._block = at, len(self._open)
        if not self._block:
            self.names.update((tag, *attributes))
        self._declared.clear()
        self._open.append("" if is_empty else tag)

    def _finish(self, _: str) -> None:
        at, tag = self._parser.CurrentByteIndex, self._open.pop()
        if tag == f"{_RDF}}}RDF":
            self._end = at
        if self._block and self._block[1] == len(self._open):
            self._blocks.append((self._block[0], self._packet.index(b">", at) + 1))
            self._block = None


def _unfit(reason: str) -> CannotEmbedError:
    return CannotEmbedError(f"The XMP packet in the file cannot be added to: {reason}")


@dataclass(frozen=True, kw_only=True)
class _Carrier:
    """An image file as the carrier of a packet.

    :param put: Returns what to replace in the file for another packet; the packet's part is the last.
    :param max_bytes: Of a packet.
    """

    format: str
    parts: list[Part]
    packet: bytes | None
    put: Callable[[bytes], list[Replacement]]
    max_bytes: int = MAX_PACKET


def _carrier_of(file: IO[bytes]) -> _Carrier:
    format_ = format_of_parts(file)
    if format_ is None:
        raise CannotEmbedError(
            f"Only PNG, JPEG and WebP can hold metadata; this file starts with {read_at(file, 0, 12)!r}"
        )
    try:
        return {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[format_](file, list(parts_of(file, format_)))
    except ValueError as error:
        raise CannotEmbedError(str(error)) from error


def _packet(file: IO[bytes], offset: int, size: int) -> bytes:
    if size > MAX_PACKET:
        raise CannotEmbedError(f"The XMP packet in the file has more than {MAX_PACKET} bytes")
    return read_at(file, offset, size)


def _start_of(file: IO[bytes], part: Part, size: int) -> bytes:
    return read_at(file, part.data, min(part.size, size))


def _png(file: IO[bytes], parts: list[Part]) -> _Carrier:
    pixels = next((part.start for part in parts if part.kind == b"IDAT"), None)
    if pixels is None:
        raise malformed("PNG")
    texts = (part for part in parts if part.kind == b"iTXt")
    name = len(_PNG_KEYWORD)
    found = next((part for part in texts if _start_of(file, part, name) == _PNG_KEYWORD), None)
    # A new chunk goes before the pixels: some programs stop reading there.
    start, end = (found.start, found.end) if found else (pixels, pixels)

    def put(packet: bytes) -> list[Replacement]:
        # Not compressed, without a language.
        return [Replacement(start, end, png_chunk(b"iTXt", _PNG_KEYWORD + b"\0\0\0\0" + packet))]

    packet = _png_text(_packet(file, found.data + name, found.size - name)) if found else None
    return _Carrier(format="PNG", parts=parts, packet=packet, put=put)


def _png_text(data: bytes) -> bytes:
    """Return the text of an iTXt chunk, given what follows the keyword."""
    flags, fields = data[:2], data[2:].split(b"\0", 2)  # language, translated keyword, text
    if len(fields) == 3 and flags == b"\0\0":
        return fields[2]
    if len(fields) == 3 and flags == b"\1\0":
        unpacking = zlib.decompressobj()
        with suppress(zlib.error):
            text = unpacking.decompress(fields[2], MAX_PACKET)
            if unpacking.eof:
                return text
    raise CannotEmbedError(f"The PNG's XMP packet is malformed or longer than {MAX_PACKET} bytes")


def _jpeg(file: IO[bytes], parts: list[Part]) -> _Carrier:
    # A new segment goes after the leading ones of JFIF and EXIF, which must be first, and before an MPF: its
    # offsets of further images are relative to its own position.
    insertion, is_leading, mpf, found = 2, True, 0, None
    for part in parts:
        name = _start_of(file, part, len(_JPEG_NAME))
        is_exif = part.kind == JPEG_APP1 and name.startswith(b"Exif\0")
        if is_leading := is_leading and (part.kind == JPEG_APP0 or is_exif):
            insertion = part.end
        elif part.kind == JPEG_APP2 and name.startswith(b"MPF\0"):
            mpf = mpf or part.start
        elif not found and part.kind == JPEG_APP1 and name == _JPEG_NAME:
            found = part
    start, end = (found.start, found.end) if found else (insertion, insertion)

    def put(packet: bytes) -> list[Replacement]:
        if 0 < mpf < start:
            raise CannotEmbedError("Longer XMP would move the JPEG's further images away from their offsets")
        size = (2 + len(_JPEG_NAME) + len(packet)).to_bytes(2)
        return [Replacement(start, end, b"".join((b"\xff\xe1", size, _JPEG_NAME, packet)))]

    at = len(_JPEG_NAME)
    packet = _packet(file, found.data + at, found.size - at) if found else None
    return _Carrier(format="JPEG", parts=parts, packet=packet, put=put, max_bytes=MAX_XMP_IN_JPEG)


def _webp(file: IO[bytes], parts: list[Part]) -> _Carrier:
    found = next((part for part in parts if part.kind == b"XMP "), None)
    stop = parts[-1].end
    header, after = _webp_header(file, parts)
    start, end = (found.start, found.end) if found else (stop, stop)

    def put(packet: bytes) -> list[Replacement]:
        chunk = b"XMP " + len(packet).to_bytes(4, "little") + packet + b"\0" * (len(packet) % 2)
        size = stop - 8 + len(header) - (after - 12) + len(chunk) - (end - start)
        return [
            Replacement(4, 8, size.to_bytes(4, "little")),
            Replacement(12, after, header),
            Replacement(start, end, chunk),
        ]

    packet = _packet(file, found.data, found.size) if found else None
    max_bytes = min(MAX_PACKET, _MAX_RIFF - stop)
    return _Carrier(format="WEBP", parts=parts, packet=packet, put=put, max_bytes=max_bytes)


def _webp_header(file: IO[bytes], parts: list[Part]) -> tuple[bytes, int]:
    """Return the start of the VP8X chunk that announces XMP, and the offset of what follows it."""
    kind, *_, size, _ = parts[0]
    start = read_at(file, 12, 18)
    data = start[8:]
    if kind == b"VP8X" and size >= 10:
        return start[:8] + bytes([data[0] | _WEBP_XMP]), 21
    if any(part.kind in _WEBP_PIXELS for part in parts[1:]):  # a new VP8X would give them a meaning
        raise malformed("WebP")
    sides, flags = [0], _WEBP_XMP
    if kind == b"VP8 " and size >= 10 and data[3:6] == b"\x9d\x01\x2a":
        sides = [int.from_bytes(side, "little") & 0x3FFF for side in (data[6:8], data[8:])]
    elif kind == b"VP8L" and size >= 5 and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        sides = [1 + (bits >> shift & 0x3FFF) for shift in (0, 14)]
        flags |= _WEBP_ALPHA * (bits >> 28 & 1)
    if 0 in sides:
        raise malformed("WebP")
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in sides)
    return b"VP8X\x0a\0\0\0" + bytes([flags, 0, 0, 0]) + canvas, 12
