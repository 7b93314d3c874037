"""Count the blocks of a JPEG, GIF or TIFF before Pillow reads it, and refuse a file that takes minutes.

Pillow reads blocks one by one in Python, and libjpeg goes over the whole image once more for each scan.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from io import BytesIO
from itertools import islice
from typing import IO

from airflow_provider_modelscope.images.formats import MAX_FRAMES, Budget, read_exactly, too_many

MAX_SCANS = 500  # of a JPEG; a progressive one has ten
MAX_SEGMENTS = 2_000  # of a JPEG; they hold 64 KiB each
MAX_EXIF = 4 << 20  # bytes in all segments of a JPEG, which Pillow joins in quadratic time; one holds 64 KiB
MAX_FILLER = 1 << 20  # bytes between the segments of a JPEG
MAX_BLOCKS = 1_000_000  # of a GIF; they hold 255 bytes each
MAX_TAGS = 32 << 20  # bytes in all tags of a TIFF; Pillow before 13 copies each, even if they are the same
_PIECE = 1 << 16
# Neither a zero, which follows 0xFF in compressed pixels, nor filler, nor a restart within a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START, _END, _SCAN, _APP1 = b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xe1"
_ALONE = (_START, _END, b"\xff\x01")  # markers without a length
_IMAGE = re.compile(rb"\xff\xd8\xff")
# The types of tags by the bytes of a value, and the tags that point to more tags.
_TYPES = {1: (1, 2, 6, 7), 2: (3, 8), 4: (4, 9, 11, 13), 8: (5, 10, 12, 16, 17, 18)}
_SIZES = {kind: size for size, kinds in _TYPES.items() for kind in kinds}
_DIRECTORIES = (0x8769, 0x8825, 0xA005)


def check_jpeg_blocks(file: IO[bytes]) -> None:
    """Count the segments and scans of a JPEG, and of the images behind its end.

    :raises BrokenImageError: if they exceed a limit.
    """
    segments = scans = filler = 0
    exif = BytesIO()  # that of all segments
    position, expected = 0, _IMAGE
    is_in_scan = False
    while (found := _find(expected, file, position)) is not None:
        start, marker = found
        if expected is _MARKER and not is_in_scan:
            filler += start - position
            if filler > MAX_FILLER:
                raise too_many("bytes between its segments", MAX_FILLER)
        position = start + 2
        expected = _IMAGE if marker == _END else _MARKER
        is_in_scan = marker == _SCAN
        segments += 1
        if segments > MAX_SEGMENTS:
            raise too_many("segments", MAX_SEGMENTS)
        if marker[:2] in _ALONE:
            continue
        scans += is_in_scan
        if scans > MAX_SCANS:
            raise too_many("scans", MAX_SCANS)
        file.seek(position)
        length = int.from_bytes(file.read(2))
        if marker == _APP1 and file.read(6) == b"Exif\0\0":
            exif.write(file.read(max(0, length - 8)))
            if exif.tell() > MAX_EXIF:
                raise too_many("bytes of EXIF", MAX_EXIF)
        position += max(2, length)
    check_tags(exif)


def _find(pattern: re.Pattern[bytes], file: IO[bytes], position: int) -> tuple[int, bytes] | None:
    """Return where in a file a pattern is next, and its bytes."""
    while True:
        file.seek(position)
        data = file.read(_PIECE)
        if found := pattern.search(data):
            return position + found.start(), found.group()
        if len(data) < _PIECE:
            return None
        position += _PIECE - 2  # a match may lie across two pieces


def check_gif_blocks(file: IO[bytes]) -> int:
    """Return the number of frames of a GIF that ends with its trailer.

    :raises BrokenImageError: if it exceeds a limit.
    :raises ValueError: if it does not end.
    """
    file.seek(6)
    width, height, flags = struct.unpack("<HHB2x", read_exactly(file, 7))
    _skip_palette(file, flags)
    frames = 0
    is_in_data = False
    for _ in range(MAX_BLOCKS):
        if is_in_data:
            length = read_exactly(file, 1)[0]
            file.seek(length, 1)
            is_in_data = length > 0
            continue
        kind = read_exactly(file, 1)
        if kind == b";":
            Budget().take(width, height, frames=frames)  # Pillow draws each frame on the whole image
            return frames
        if kind == b",":
            x, y, columns, rows, flags = struct.unpack("<HHHHB", read_exactly(file, 9))
            width, height = max(width, x + columns), max(height, y + rows)
            _skip_palette(file, flags)
            frames += 1
        if kind in (b",", b"!"):
            file.seek(1, 1)  # the size of the first code, or the kind of the extension
            is_in_data = True
    raise too_many("blocks", MAX_BLOCKS)


def _skip_palette(file: IO[bytes], flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), 1)


def check_tags(file: IO[bytes]) -> None:
    """Count the bytes of the tags in a TIFF, or in EXIF, which has the same structure.

    :raises BrokenImageError: if they exceed a limit.
    """
    file.seek(0)
    header = file.read(16)
    order, is_big = ("<" if header.startswith(b"II") else ">"), b"+" in header[2:4]
    entry = struct.Struct(order + ("HHQQ" if is_big else "HHLL"))
    count, pointer = struct.Struct(order + ("Q" if is_big else "H")), struct.Struct(order + entry.format[-1])
    size = 0
    with suppress(struct.error):  # Pillow decides what can be read of a broken one
        directories = [*pointer.unpack_from(header, 8 if is_big else 4)]
        for directory in islice(directories, MAX_FRAMES):  # which it grows
            file.seek(directory)
            entries = file.read(min(*count.unpack(file.read(count.size)), 65_535) * entry.size)
            size += len(entries)
            for tag, kind, values, value in entry.iter_unpack(entries):
                size += _SIZES.get(kind, 0) * values
                if tag in _DIRECTORIES:
                    directories.append(value)
            if size > MAX_TAGS:
                raise too_many("bytes in its tags", MAX_TAGS)
            directories += filter(None, pointer.unpack(file.read(pointer.size)))
