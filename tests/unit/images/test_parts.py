"""The parts of image files, and views of files in which some bytes are replaced."""

from __future__ import annotations

import zlib
from hashlib import file_digest
from io import SEEK_END, BytesIO
from random import Random
from typing import Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.images.parts import (
    MAX_PARTS,
    Replacement,
    format_of_parts,
    has_content_credentials,
    parts_of,
    spliced,
)

MANIFEST = b"\0\0\0\x3djumb\0\0\0\x1ejumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\x03c2pa\0"


def saved(format_: str, **options: Any) -> bytes:
    file = BytesIO()
    Pillow.radial_gradient("L").convert("RGB").save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png_with(*chunks: bytes) -> BytesIO:
    content = saved("PNG")
    return BytesIO(content[:33] + b"".join(chunks) + content[33:])


def jpeg_with(data: bytes, marker: bytes = b"\xeb") -> BytesIO:
    content = saved("JPEG")
    return BytesIO(content[:2] + b"\xff" + marker + (len(data) + 2).to_bytes(2) + data + content[2:])


def webp_with(kind: bytes, data: bytes) -> BytesIO:
    body = saved("WEBP")[8:] + kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
    return BytesIO(b"RIFF" + len(body).to_bytes(4, "little") + body)


class TestSpliced:
    CONTENT = bytes(range(200))
    REPLACEMENTS = (
        Replacement(0, 3, b"a new start"),
        Replacement(3, 3, b"inserted"),
        Replacement(50, 90, b""),
        Replacement(120, 130, b"z" * 40),
        Replacement(200, 200, b"a new end"),
    )
    RESULT = (
        b"a new start"
        + b"inserted"
        + CONTENT[3:50]
        + CONTENT[90:120]
        + b"z" * 40
        + CONTENT[130:]
        + b"a new end"
    )

    def test_it_reads_the_file_with_the_bytes_replaced(self) -> None:
        file = spliced(BytesIO(self.CONTENT), self.REPLACEMENTS)
        assert file.read() == self.RESULT
        assert file.read(1) == b""
        assert file.seek(0, SEEK_END) == len(self.RESULT)

    def test_any_range_can_be_read(self) -> None:
        file, chance = spliced(BytesIO(self.CONTENT), self.REPLACEMENTS), Random(1)  # noqa: S311 - no secret
        for _ in range(500):
            start, size = chance.randrange(len(self.RESULT) + 5), chance.randrange(99)
            file.seek(start)
            assert file.read(size) == self.RESULT[start : start + size]
            assert file.tell() == start + len(self.RESULT[start : start + size])

    def test_it_can_be_hashed_as_a_file(self) -> None:
        file = spliced(BytesIO(self.CONTENT), self.REPLACEMENTS)
        expected = file_digest(BytesIO(self.RESULT), "sha256").digest()
        assert file_digest(file, "sha256").digest() == expected  # type: ignore[arg-type] # it is a binary file

    @pytest.mark.parametrize("places", [[(5, 3)], [(5, 9), (8, 10)], [(190, 201)], [(-1, 2)]], ids=str)
    def test_ranges_that_overlap_or_do_not_exist_are_errors(self, places: list[tuple[int, int]]) -> None:
        with pytest.raises(ValueError, match="No bytes can be replaced"):
            spliced(BytesIO(self.CONTENT), [Replacement(*place, b"") for place in places])


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_the_parts_follow_each_other(format_: str) -> None:
    content = saved(format_, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    parts = list(parts_of(BytesIO(content), format_))
    assert format_of_parts(BytesIO(content)) == format_
    assert [part.end for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert all(part.start < part.data <= part.data + part.size <= part.end for part in parts)
    assert parts[-1].end == len(content) or format_ == "JPEG"
    assert parts[-1].kind in (b"IEND", b"\xda", b"EXIF")


@pytest.mark.parametrize("format_", ["GIF", "BMP", "TIFF"])
def test_other_formats_have_no_parts(format_: str) -> None:
    assert format_of_parts(BytesIO(saved(format_))) is None
    assert not has_content_credentials(BytesIO(saved(format_)))


def test_a_file_of_too_many_parts_is_rejected() -> None:
    file = png_with(chunk(b"emPy", b"") * MAX_PARTS)
    with pytest.raises(ValueError, match="more than 100000 parts"):
        list(parts_of(file, "PNG"))


@pytest.mark.parametrize(
    ("file", "has_it"),
    [
        (png_with(chunk(b"caBX", MANIFEST)), True),
        (jpeg_with(b"JP\0\1\0\0\0\1" + MANIFEST), True),
        (webp_with(b"C2PA", MANIFEST), True),
        (png_with(chunk(b"tEXt", b"about\0c2pa caBX")), False),
        (jpeg_with(b"JP\0\1\0\0\0\1" + MANIFEST.replace(b"c2pa", b"jsnk")), False),
        (jpeg_with(b"JP\0\1\0\0\0\1" + MANIFEST, marker=b"\xea"), False),
        (webp_with(b"ABCD", MANIFEST), False),
        (BytesIO(saved("PNG")[:99]), False),
        (BytesIO(b"RIFF\x04\0\0\0WEBP"), False),
        (BytesIO(b""), False),
    ],
)
def test_content_credentials_are_detected(file: BytesIO, has_it: bool) -> None:
    assert has_content_credentials(file) is has_it
