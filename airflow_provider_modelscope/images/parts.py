"""The parts of a PNG, JPEG or WebP file, and a view of a file in which some bytes are replaced.

Both read only what they need, so that a large file costs no memory.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from io import SEEK_END, BufferedReader, RawIOBase
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_PARTS = 100_000  # each costs time, even if it is empty; encoders write 8 to 64 KiB of pixels into one

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_XMP_IN_JPEG = 65_502  # bytes; what XMP's specification lets one segment hold
JPEG_APP0, JPEG_APP1, JPEG_APP2, _JPEG_APP11, _JPEG_SCAN = b"\xe0", b"\xe1", b"\xe2", b"\xeb", b"\xda"
# Any number of padding bytes 0xFF and of markers without data, and a marker with its size.
_SEGMENT = re.compile(rb"(?s)(?:\xff+[\x01\xd0-\xd7])*\xff+([\xc0-\xcf\xda-\xfe])(..)")
_BLOCK = 4096  # bytes to find the next segment in


class Part(NamedTuple):
    """A chunk of a PNG or WebP, or a segment of a JPEG.

    :param kind: The type of the chunk, or the second byte of the segment's marker.
    :param start: The offset of its first byte.
    :param data: The offset of its data.
    :param size: How many bytes of data it has.
    :param end: The offset of what follows it.
    """

    kind: bytes
    start: int
    data: int
    size: int
    end: int


def format_of_parts(file: IO[bytes]) -> str | None:
    """Return the format by the first bytes: one whose parts can be listed, or None."""
    start = read_at(file, 0, 12)
    if start.startswith(PNG_SIGNATURE):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if start.startswith(b"RIFF") and start.endswith(b"WEBP") else None


def parts_of(file: IO[bytes], format_: str) -> Iterator[Part]:
    """Yield the parts of a PNG or WebP, or those of a JPEG to the start of its first scan.

    :raises ValueError: if the file is cut off, malformed, or has more than 100,000 parts.
    """
    length = file.seek(0, SEEK_END)
    walk = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[format_]
    for number, part in enumerate(walk(file, length)):
        if number == MAX_PARTS:
            raise ValueError(f"The file has more than {MAX_PARTS} parts")
        yield part


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Return bytes of a file: fewer at its end."""
    file.seek(offset)
    return file.read(size)


def has_content_credentials(file: IO[bytes]) -> bool:
    """Return whether a PNG, JPEG or WebP contains a manifest of Content Credentials (C2PA).

    The manifest signs the bytes of the file: any change invalidates it.
    """
    try:
        format_ = format_of_parts(file)
        return format_ is not None and any(is_manifest(file, part) for part in parts_of(file, format_))
    except ValueError:
        return False


def is_manifest(file: IO[bytes], part: Part) -> bool:
    """Return whether a part is a manifest of Content Credentials."""
    if part.kind == _JPEG_APP11:  # a JUMBF box, and its description box begins with the type
        start = read_at(file, part.data, min(part.size, 64))
        return start.startswith(b"JP") and b"c2pa" in start
    return part.kind in (b"caBX", b"C2PA")


def malformed(what: str) -> ValueError:
    """Return the error of a file whose parts cannot be listed."""
    return ValueError(f"The {what} is cut off or malformed")


def _png(file: IO[bytes], length: int) -> Iterator[Part]:
    at, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        start, header = at, read_at(file, at, 8)
        size, kind = int.from_bytes(header[:4]), header[4:]
        at += 12 + size
        if at > length or (start == len(PNG_SIGNATURE)) != (kind == b"IHDR"):
            raise malformed("PNG")
        yield Part(kind, start, start + 8, size, at)


def _jpeg(file: IO[bytes], length: int) -> Iterator[Part]:
    at, kind = 2, b""
    while kind != _JPEG_SCAN:
        block = read_at(file, at, _BLOCK)
        if (padding := len(block) - len(block.lstrip(b"\xff"))) > _BLOCK // 2:
            at += padding - 1
            continue
        segment = _SEGMENT.match(block)
        size = int.from_bytes(segment[2]) if segment else 0
        if not segment or size < 2:
            raise malformed("JPEG")
        kind, start, data = segment[1], at + segment.start(1) - 1, at + segment.end()
        at = data - 2 + size
        if at > length:
            raise malformed("JPEG")
        yield Part(kind, start, data, size - 2, at)


def _webp(file: IO[bytes], length: int) -> Iterator[Part]:
    at, stop = 12, 8 + int.from_bytes(read_at(file, 4, 4), "little")
    while at < stop <= length:
        start, header = at, read_at(file, at, 8)
        size = int.from_bytes(header[4:], "little")
        at += 8 + size + size % 2
        yield Part(header[:4], start, start + 8, size, at)
    if not 12 < at == stop:
        raise malformed("WebP")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its length and checksum."""
    return b"".join((len(data).to_bytes(4), kind, data, zlib.crc32(kind + data).to_bytes(4)))


class Replacement(NamedTuple):
    """Bytes in place of those from ``start`` to ``end``."""

    start: int
    end: int
    data: bytes


def spliced(file: IO[bytes], replacements: Sequence[Replacement]) -> IO[bytes]:
    """Return a view of a file in which some bytes are replaced. All others are read from the file itself.

    :param replacements: In the order of their offsets.
    """
    return BufferedReader(_Spliced(file, replacements))


class _Spliced(RawIOBase):
    def __init__(self, file: IO[bytes], replacements: Sequence[Replacement]) -> None:
        self._file = file
        self._pieces: list[tuple[int, bytes | int]] = []  # its length; its bytes, or their offset in the file
        self._at, done = 0, 0
        for start, end, data in (*replacements, Replacement(length := file.seek(0, SEEK_END), length, b"")):
            if not done <= start <= end <= length:
                raise ValueError(f"No bytes can be replaced from {start} to {end}")
            self._pieces += [(start - done, done), (len(data), data)]
            done = end
        self._length = sum(size for size, _ in self._pieces)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        into, at = memoryview(buffer), self._at
        for size, piece in self._pieces:
            if at < size:
                count = min(len(into), size - at)
                read = (
                    piece[at : at + count]
                    if isinstance(piece, bytes)
                    else read_at(self._file, piece + at, count)
                )
                into[: len(read)] = read
                self._at += len(read)
                return len(read)
            at -= size
        return 0
