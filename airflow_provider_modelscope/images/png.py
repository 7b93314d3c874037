"""Check that a PNG is complete, in one pass over its file. The pixels are never in memory together."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from airflow_provider_modelscope.images.formats import Budget, read_exactly, too_many
from airflow_provider_modelscope.images.parts import MAX_PARTS, PNG_SIGNATURE

_PIECE = 1 << 16  # bytes that are read or decompressed at once
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # in a pixel of each colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits in a sample
_PALETTE = 3
_FILTERS = b"\0\1\2\3\4"
# The passes of an interlaced image (Adam7): the first column and row, and the steps to the next ones.
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip


def check_png(file: IO[bytes]) -> tuple[int, int]:
    """Return the width and the height of a PNG whose pixels are complete, in all frames of an animation.

    The checksum of each chunk must be right. What is in text, colour profiles and other metadata does not
    matter, and is not decompressed.

    :raises BrokenImageError: if it exceeds a limit.
    :raises ValueError: if it is not complete.
    :raises zlib.error: if pixels cannot be decompressed.
    """
    chunks = _chunks(file)
    header = _header(next(chunks))
    budget = Budget()
    budget.take(header.width, header.height)
    pixels: _Pixels | None = None  # of the latest frame
    has_palette = ended = False
    announced = frames = sequence = 0  # of an animation
    for chunk in chunks:
        ended = ended or (pixels is not None and chunk.kind != b"IDAT")
        if announced and chunk.kind in (b"fcTL", b"fdAT"):
            if chunk.number() != sequence:
                raise ValueError("the parts of its animation are not in sequence")
            sequence += 1
        match chunk.kind:
            case b"IHDR":
                raise ValueError("it has two headers")
            case b"PLTE":
                has_palette = True
            case b"IDAT":
                if ended:
                    raise ValueError("its IDAT chunks are not consecutive")
                if header.colours == _PALETTE and not has_palette:
                    raise ValueError("it has no palette")
                pixels = pixels or _Pixels(header, header.width, header.height)
                pixels.add(chunk)
            case b"acTL" if pixels is None:
                announced = chunk.number()
            case b"fcTL" if announced:
                frames += 1
                if pixels is not None:  # if not, the next IDAT is this frame
                    pixels.end()
                    pixels = _frame(chunk, header, budget)
            case b"fdAT" if announced:
                if pixels is None:
                    raise ValueError("its animation starts before its pixels")
                pixels.add(chunk)
    if pixels is None:
        raise ValueError("it has no pixels")
    pixels.end()
    if frames != announced:
        raise ValueError(f"it has {frames} of {announced} frames")
    return header.width, header.height


class _Chunk:
    """One chunk, read in pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left, self.kind = struct.unpack(">I4s", read_exactly(file, 8))
        self._checksum = zlib.crc32(self.kind)

    def pieces(self) -> Iterator[bytes]:
        """Yield the data that was not read yet."""
        while self._left:
            yield self.read(min(self._left, _PIECE))

    def read(self, length: int) -> bytes:
        if length > self._left:
            raise ValueError(f"its {self.kind!r} chunk is too short")
        data = read_exactly(self._file, length)
        self._left -= length
        self._checksum = zlib.crc32(data, self._checksum)
        return data

    def number(self) -> int:
        return int.from_bytes(self.read(4))

    def end(self) -> None:
        """Read the rest, and compare the checksum."""
        for _ in self.pieces():
            pass
        if int.from_bytes(read_exactly(self._file, 4)) != self._checksum:
            raise ValueError(f"wrong checksum of a {self.kind!r} chunk")


def _chunks(file: IO[bytes]) -> Iterator[_Chunk]:
    file.seek(len(PNG_SIGNATURE))
    for _ in range(MAX_PARTS):
        chunk = _Chunk(file)
        yield chunk
        chunk.end()
        if chunk.kind == b"IEND":
            return
    raise too_many("chunks", MAX_PARTS)


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    colours: int
    compression: int
    filters: int
    interlace: int


def _header(chunk: _Chunk) -> _Header:
    if chunk.kind != b"IHDR":
        raise ValueError("it has no header")
    header = _Header._make(struct.unpack(">IIBBBBB", chunk.read(13)))
    if (
        not (0 < header.width < 1 << 31 and 0 < header.height < 1 << 31)
        or header.depth not in _DEPTHS.get(header.colours, ())
        or header.compression
        or header.filters
        or header.interlace > 1
    ):
        raise ValueError(f"invalid header: {header}")
    return header


def _frame(control: _Chunk, header: _Header, budget: Budget) -> _Pixels:
    """Return what the pixels of a frame must be, by the chunk before them."""
    width, height, x, y = struct.unpack(">IIII", control.read(16))
    if not (width and height) or x + width > header.width or y + height > header.height:
        raise ValueError("a frame of its animation is empty or outside of the image")
    budget.take(width, height)
    return _Pixels(header, width, height)


class _Pixels:
    """The compressed rows of one frame: counted, and forgotten."""

    def __init__(self, header: _Header, width: int, height: int) -> None:
        self._zlib = zlib.decompressobj()
        bits = _SAMPLES[header.colours] * header.depth
        passes = _ADAM7 if header.interlace else ((0, 0, 1, 1),)
        sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
        # The bytes of a row with its filter, and those of a pass.
        rows = [((columns * bits + 7) // 8 + 1, rows) for columns, rows in sizes if columns > 0 and rows > 0]
        self._passes = [(row, row * count) for row, count in reversed(rows)]

    def add(self, chunk: _Chunk) -> None:
        for data in chunk.pieces():
            while data and not self._zlib.eof:
                self._count(self._zlib.decompress(data, _PIECE))
                data = self._zlib.unconsumed_tail

    def end(self) -> None:
        while rows := self._zlib.decompress(b"", _PIECE):
            self._count(rows)
        if self._passes:
            raise ValueError(f"{sum(left for _, left in self._passes)} bytes of its pixels are missing")
        if not self._zlib.eof:
            raise ValueError("the checksum of its pixels is missing")

    def _count(self, data: bytes) -> None:
        while data:
            if not self._passes:
                raise ValueError("it has more pixels than its header says")
            row, left = self._passes.pop()
            part, data = data[:left], data[left:]
            if part[left % row :: row].translate(None, _FILTERS):
                raise ValueError("a row of its pixels has an unknown filter")
            if left := left - len(part):
                self._passes.append((row, left))
