"""The check of an image: what is stored, what is refused and why, and what it may cost."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image as Pillow, ImageFile

from airflow_provider_modelscope.exceptions import BrokenImageError, ImageError
from airflow_provider_modelscope.images.check import check_image
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.parts import PNG_SIGNATURE

MB = 1_000_000
NEEDS_AVIF = pytest.mark.skipif(
    ".avif" not in Pillow.registered_extensions(), reason="not every Pillow has AVIF"
)
CHANCE = Random(45438)  # noqa: S311 - the same bytes in each run
NOISE = CHANCE.randbytes(10 * MB)
DRAWING = Pillow.radial_gradient("L").resize((96, 64)).convert("RGB")
FRAMES = [DRAWING, DRAWING.transpose(Pillow.Transpose.ROTATE_180), DRAWING.point(lambda tone: 255 - tone)]
CLEAR = DRAWING.copy()
CLEAR.putalpha(Pillow.linear_gradient("L").resize(DRAWING.size))


def written(format_: str, drawing: Pillow.Image = DRAWING, **options: Any) -> bytes:
    file = BytesIO()
    drawing.copy().save(file, format_, **options)  # Pillow leaves settings of the encoder in what it saves
    return file.getvalue()


def animated(format_: str, frames: list[Pillow.Image] = FRAMES, **options: Any) -> bytes:
    rest = [frame.copy() for frame in frames[1:]]
    return written(format_, frames[0], save_all=True, append_images=rest, **options)


def pages(count: int) -> bytes:
    """Return a TIFF of empty pixels in this number of pages."""
    content, page = b"II*\0\x08\0\0\0", b""
    for number in range(1, count + 1):
        tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 0), (278, 1), (279, 1)]
        page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
        next_page = 8 + number * (len(page) + 4) if number < count else 0
        content += page + struct.pack("<I", next_page)
    return content


def overlapping_tags(length: int) -> bytes:
    """Return EXIF, or a TIFF without pixels, of 4,000 tags that all hold its last bytes."""
    tags = [struct.pack("<HHLL", tag, 7, length - 50_000, 50_000) for tag in range(1, 4001)]
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", 4000) + b"".join(tags)).ljust(length, b"\0")


def batched(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, colours: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace))


def png(*chunks: bytes) -> bytes:
    return PNG_SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def rows(count: int, length: int) -> bytes:
    """Return compressed rows of a PNG."""
    return zlib.compress((b"\0" + bytes(length)) * count, 9)


def with_chunks(*chunks: bytes, content: bytes | None = None, before: bytes = b"IDAT") -> bytes:
    content = content or written("PNG")
    at = content.index(before) - 4
    return content[:at] + b"".join(chunks) + content[at:]


def compressed_zeros(length: int) -> bytes:
    """Return what zlib makes of zeros, without the time that it takes."""
    compressor = zlib.compressobj(9, wbits=-15)
    piece = compressor.compress(bytes(MB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    rest = compressor.compress(bytes(length % MB)) + compressor.flush()
    return b"\x78\xda" + piece * (length // MB) + rest + struct.pack(">HH", length % 65_521, 1)


def frame(sequence: int, width: int = 16, height: int = 16, x: int = 0) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, width, height, x, 0, 1, 10, 0, 0))


def animation(*chunks: bytes, count: int = 2) -> bytes:
    """Return an APNG: its first frame, and what follows."""
    start = header(16, 16), chunk(b"acTL", struct.pack(">II", count, 0)), frame(0)
    return png(*start, chunk(b"IDAT", rows(16, 48)), *chunks)


def frame_data(sequence: int, data: bytes) -> bytes:
    return chunk(b"fdAT", struct.pack(">I", sequence) + data)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segments(*segments: bytes) -> bytes:
    content = written("JPEG")
    return content[:2] + b"".join(segments) + content[2:]


def scans(side: int, count: int) -> bytes:
    """Return a grey progressive JPEG whose scans, after the first, hold no coefficient."""
    blocks = (side // 8) ** 2
    one_code = bytes([1, *[0] * 15])
    start = (
        segment(0xDB, b"\0" + b"\1" * 64)
        + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
        + segment(0xC4, b"\0" + one_code + b"\0")
        + segment(0xC4, b"\x10" + one_code + b"\xe0")
        + segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    )  # fmt: skip
    runs = "0" * 15 * -(-blocks // 16384)  # of 16,384 blocks each
    runs += "1" * (-len(runs) % 8)
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + int(runs, 2).to_bytes(len(runs) // 8)
    return b"\xff\xd8" + start + scan * (count - 1) + b"\xff\xd9"


def profile(length: int) -> bytes:
    return bytes(16) + b"RGB " + NOISE[: length - 20]


def zeroed(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + bytes(length) + content[start + length :]


def two_gif_frames_cut_between() -> bytes:
    content = animated("GIF")
    return content[: content.index(b"\0!\xf9", content.index(b"\0,") + 2) + 1]


def without_second_image() -> bytes:
    """Return a JPEG that still says where its second image was."""
    content = animated("MPO", FRAMES[:2])
    return content[: content.index(b"\xff\xd9\xff\xd8") + 2]


def adam7(width: int, height: int) -> bytes:
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    data = b""
    for x, y, dx, dy in passes:
        columns, lines = len(range(x, width, dx)), len(range(y, height, dy))
        data += (b"\1" + bytes(3 * columns)) * lines if columns else b""
    return data


LONG_TEXT = b"workflow\0" + NOISE[: 3 * MB].replace(b"\0", b" ")
SCAN_MARKERS = segment(0xE5, b"\xff\xda" * 30_000)

# Each file, and the reason for which it is refused; it is stored if there is none.
CORPUS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "PNG of RGB": (lambda: written("PNG"), None),
    "PNG of RGBA": (lambda: written("PNG", CLEAR), None),
    "PNG of grey and alpha": (lambda: written("PNG", CLEAR.convert("LA")), None),
    "PNG of 1 bit": (lambda: written("PNG", DRAWING.convert("1")), None),
    "PNG with a palette": (lambda: written("PNG", DRAWING.quantize(13)), None),
    "PNG with transparency": (lambda: written("PNG", DRAWING.quantize(200), transparency=3), None),
    "PNG of 16 bits": (lambda: written("PNG", Pillow.new("I;16", (50, 50), 999)), None),
    "PNG of RGBA with 16 bits": (lambda: png(header(5, 4, 16, 6), chunk(b"IDAT", rows(4, 40))), None),
    "PNG that is interlaced": (
        lambda: png(header(13, 9, interlace=1), chunk(b"IDAT", zlib.compress(adam7(13, 9)))), None,
    ),
    "PNG of one interlaced pixel": (
        lambda: png(header(1, 1, interlace=1), chunk(b"IDAT", zlib.compress(adam7(1, 1)))), None,
    ),
    "PNG with pixels in many chunks": (
        lambda: png(header(9, 9), *(chunk(b"IDAT", bytes([byte])) for byte in rows(9, 27)), chunk(b"IDAT")),
        None,
    ),
    "PNG with more after its pixels": (
        lambda: png(header(9, 9), chunk(b"IDAT", rows(9, 27) + b"more"), chunk(b"IDAT", b"more")), None,
    ),
    "PNG with 3 MB of text": (lambda: with_chunks(chunk(b"tEXt", LONG_TEXT)), None),
    "PNG with 2 MB of compressed text": (
        lambda: with_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(NOISE[: 2 * MB].hex().encode()))), None,
    ),
    "PNG with a profile of 1.5 MB": (
        lambda: with_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(profile(MB * 3 // 2)))), None,
    ),
    "PNG with a broken profile": (lambda: with_chunks(chunk(b"iCCP", b"a\0\0" + NOISE[:99])), None),
    "PNG with broken EXIF": (lambda: with_chunks(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), None),
    "PNG with broken text": (lambda: with_chunks(chunk(b"iTXt", b"\0\1\2")), None),
    "PNG with text behind its pixels": (lambda: with_chunks(chunk(b"tEXt", b"a\0b"), before=b"IEND"), None),
    "PNG with Content Credentials": (lambda: with_chunks(chunk(b"caBX", NOISE[:5000])), None),
    "PNG with a ZIP behind it": (lambda: written("PNG") + b"PK\3\4" + NOISE[:MB], None),
    "PNG that is animated": (lambda: animated("PNG"), None),
    "PNG with another first image": (lambda: animated("PNG", default_image=True), None),
    "PNG with a part of an animation": (lambda: with_chunks(frame_data(7, b"?"), before=b"IEND"), None),
    "PNG that is cut": (lambda: written("PNG")[:-500], "cut off"),
    "PNG that is cut in its text": (lambda: with_chunks(chunk(b"tEXt", LONG_TEXT))[:MB], "cut off"),
    "PNG without its end": (lambda: written("PNG")[:-12], "cut off"),
    "PNG with damaged text": (
        lambda: with_chunks(chunk(b"tEXt", b"a\0b")[:-1] + b"?"), r"wrong checksum of a b'tEXt' chunk",
    ),
    "PNG with a wrong sum of its pixels": (
        lambda: png(header(9, 9), chunk(b"IDAT", rows(9, 27)[:-1] + b"?")), "incorrect data check",
    ),
    "PNG without the sum of its pixels": (
        lambda: png(header(9, 9), chunk(b"IDAT", rows(9, 27)[:-4])), "checksum of its pixels is missing",
    ),
    "PNG with a row too few": (
        lambda: png(header(9, 9), chunk(b"IDAT", rows(8, 27))), "28 bytes of its pixels are missing",
    ),
    "PNG with a row too many": (
        lambda: png(header(9, 9), chunk(b"IDAT", rows(10, 27))), "more pixels than its header says",
    ),
    "PNG with an unknown filter": (
        lambda: png(header(9, 2), chunk(b"IDAT", zlib.compress(bytes(28) + b"\5" + bytes(27)))), "filter",
    ),
    "PNG that lacks its last pass": (
        lambda: png(header(8, 8, interlace=1), chunk(b"IDAT", zlib.compress(adam7(8, 8)[:-100]))),
        "100 bytes of its pixels are missing",
    ),
    "PNG with pixels in two places": (
        lambda: png(
            header(9, 9), chunk(b"IDAT", rows(9, 27)[:9]), chunk(b"tEXt"), chunk(b"IDAT", rows(9, 27)[9:])
        ), "not consecutive",
    ),
    "PNG without a palette": (lambda: png(header(9, 9, 8, 3), chunk(b"IDAT", rows(9, 9))), "no palette"),
    "PNG without pixels": (lambda: png(header(9, 9)), "no pixels"),
    "PNG with two headers": (
        lambda: png(header(9, 9), header(9999, 9999), chunk(b"IDAT", rows(9, 27))), "two headers",
    ),
    "PNG without a header": (lambda: png(chunk(b"IDAT", rows(9, 27))), "no header"),
    "PNG with an impossible header": (
        lambda: png(header(9, 9, 3, 2), chunk(b"IDAT", rows(9, 27))), "invalid header: .*depth=3",
    ),
    "PNG without columns": (lambda: png(header(0, 9), chunk(b"IDAT", rows(9, 0))), "invalid header"),
    "PNG that is animated and cut": (lambda: animated("PNG")[: len(animated("PNG")) * 2 // 3], "cut off"),
    "PNG whose last frame is short": (
        lambda: animation(frame(1), frame_data(2, rows(15, 48))), "49 bytes of its pixels are missing",
    ),
    "PNG whose second frame is short": (
        lambda: animation(
            frame(1), frame_data(2, rows(15, 48)), frame(3), frame_data(4, rows(16, 48)), count=3
        ), "49 bytes of its pixels are missing",
    ),
    "PNG whose last frame is missing": (lambda: animation(), "1 of 2 frames"),
    "PNG whose last frame is empty": (lambda: animation(frame(1)), "bytes of its pixels are missing"),
    "PNG with frames out of sequence": (
        lambda: animation(frame(2), frame_data(1, rows(16, 48))), "not in sequence",
    ),
    "PNG with a frame outside of it": (
        lambda: animation(frame(1, x=1), frame_data(2, rows(16, 48))), "outside of the image",
    ),
    "JPEG of RGB": (lambda: written("JPEG"), None),
    "JPEG of grey": (lambda: written("JPEG", DRAWING.convert("L")), None),
    "JPEG of CMYK": (lambda: written("JPEG", DRAWING.convert("CMYK")), None),
    "JPEG that is progressive": (lambda: written("JPEG", progressive=True), None),
    "JPEG with restarts": (lambda: written("JPEG", restart_marker_blocks=1), None),
    "JPEG of one pixel": (lambda: written("JPEG", Pillow.new("RGB", (1, 1))), None),
    "JPEG with 500 scans": (lambda: scans(64, 500), None),
    "JPEG with an 8 MB profile": (lambda: written("JPEG", icc_profile=profile(8 * MB)), None),
    "JPEG with broken EXIF": (lambda: with_segments(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")), None),
    "JPEG with scan markers in metadata": (lambda: with_segments(SCAN_MARKERS), None),
    "JPEG with 500 KB of filler": (lambda: with_segments(b"\xff" * 500_000), None),
    "JPEG with a video behind it": (lambda: written("JPEG") + b"\0\0\0\x18ftypmp42" + NOISE, None),
    "JPEG with scan markers behind it": (
        lambda: written("JPEG") + bytes(2 * MB) + b"\xff\xda\0\2" * 999, None,
    ),
    "JPEG of several images": (lambda: animated("MPO"), None),
    "JPEG of images of several sizes": (
        lambda: animated("MPO", [DRAWING, DRAWING.resize((9, 9)), DRAWING.resize((200, 200))]), None,
    ),
    "JPEG whose second image was removed": (without_second_image, None),
    "JPEG whose second image was moved": (lambda: without_second_image() + bytes(9999), None),
    "JPEG that is cut": (lambda: written("JPEG")[:-200], "truncated"),
    "JPEG without its end": (lambda: written("JPEG")[:-2], "truncated"),
    "JPEG whose second image is cut": (lambda: animated("MPO", FRAMES[:2])[:-200], "truncated"),
    "WebP": (lambda: written("WEBP"), None),
    "WebP that is lossless": (lambda: written("WEBP", CLEAR, lossless=True), None),
    "WebP with XMP": (lambda: written("WEBP", xmp=NOISE[:MB]), None),
    "WebP that is animated": (lambda: animated("WEBP"), None),
    "WebP that is cut": (lambda: written("WEBP")[:-200], "WEBP"),
    "WebP that is animated and cut": (lambda: animated("WEBP")[: len(animated("WEBP")) * 2 // 3], "WEBP"),
    "GIF": (lambda: written("GIF"), None),
    "GIF with transparency": (lambda: written("GIF", CLEAR), None),
    "GIF that is animated": (lambda: animated("GIF"), None),
    "GIF with a comment": (lambda: written("GIF", comment=b"a cat" * 999), None),
    "GIF that is cut": (lambda: written("GIF")[:-200], "cut off"),
    "GIF without its end": (lambda: written("GIF")[:-1], "cut off"),
    "GIF that is animated and cut": (lambda: animated("GIF")[: len(animated("GIF")) * 2 // 3], "cut off"),
    "GIF that is cut between frames": (two_gif_frames_cut_between, "cut off"),
    "GIF whose last frame is broken": (
        lambda: zeroed(animated("GIF"), len(animated("GIF")) - 300, 250), "GIF",
    ),
    "BMP": (lambda: written("BMP"), None),
    "BMP that is cut": (lambda: written("BMP")[:-200], "truncated"),
    "TIFF": (lambda: written("TIFF"), None),
    "TIFF that is compressed": (lambda: written("TIFF", compression="tiff_lzw"), None),
    "TIFF of several pages": (lambda: animated("TIFF"), None),
    "TIFF that is cut": (lambda: written("TIFF")[:-200], "truncated"),
    "TIFF whose last page is cut": (lambda: animated("TIFF")[:-200], "truncated"),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(99), "HEIC or HEIF is not accepted"),
    "JPEG XL": (lambda: b"\xff\x0a" + bytes(99), "JPEG XL is not accepted"),
    "JPEG XL in a container": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not accepted"),
    "JPEG 2000": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 is not accepted"),
    "MP4": (lambda: b"\0\0\0\x18ftypisom" + bytes(99), r"a video \(MP4\) is not accepted"),
    "WebM": (lambda: b"\x1aE\xdf\xa3" + bytes(99), r"a video \(WebM\) is not accepted"),
    "HTML": (lambda: b"\r\n<!DOCTYPE html><html>", "HTML, XML or SVG is not accepted"),
    "XML": (lambda: b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "HTML, XML or SVG is not accepted"),
    "SVG": (lambda: b"<svg/>", "HTML, XML or SVG is not accepted"),
    "JSON": (lambda: b'{"errors": {}}', "JSON is not accepted"),
    "PDF": (lambda: b"%PDF-1.7", "PDF is not accepted"),
    "nothing": (lambda: b"", "the file is empty"),
    "letters": (lambda: b"x" * 99, "in no known format"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), CORPUS.values(), ids=CORPUS)
def test_each_file_is_stored_or_refused_with_its_reason(
    content: Callable[[], bytes], reason: str | None
) -> None:
    file = BytesIO(content())
    if reason is None:
        format_, width, height = check_image(file)
        assert file.getvalue().startswith(FIRST_BYTES[format_])
        assert width > 0 < height
    else:
        with pytest.raises(BrokenImageError, match=f"Not a complete image .*{reason}"):
            check_image(file)
    assert not file.closed


FIRST_BYTES = {
    "PNG": PNG_SIGNATURE, "JPEG": b"\xff\xd8", "WEBP": b"RIFF", "GIF": b"GIF8", "BMP": b"BM",
    "TIFF": b"II*\0",
}  # fmt: skip


@NEEDS_AVIF
@pytest.mark.parametrize("content", [written, animated], ids=["one frame", "animated"])
def test_an_avif_is_checked_whole(content: Callable[[str], bytes]) -> None:
    avif = content("AVIF")
    assert check_image(BytesIO(avif)) == ("AVIF", *DRAWING.size)
    with pytest.raises(BrokenImageError, match="AVIF"):
        check_image(BytesIO(avif[:-200]))


def test_the_size_of_each_format_is_that_of_its_first_image() -> None:
    for format_ in FIRST_BYTES:
        assert check_image(BytesIO(written(format_))) == (format_, *DRAWING.size)
    assert (
        check_image(BytesIO(animated("MPO", [DRAWING, CLEAR.resize((9, 9)).convert("RGB")])))[1:]
        == DRAWING.size
    )


# Files that are small or cheap to make, and expensive to decode: megabytes that their check may take.
HOSTILE: dict[str, tuple[Callable[[], bytes], int, str | None]] = {
    "PNG of 60 MB": (
        lambda: png(header(1000, 20_000), chunk(b"IDAT", zlib.compress((b"\0" + NOISE[:3000]) * 20_000, 0))),
        8, None,
    ),
    "PNG of 8192x8192 with 16 bits": (
        lambda: png(header(8192, 8192, 16, 6), chunk(b"IDAT", compressed_zeros(8192 * 65_537))), 8, None,
    ),
    "PNG of one column": (
        lambda: png(header(1, 1 << 26, 8, 0), chunk(b"IDAT", compressed_zeros(1 << 27))), 8, None,
    ),
    "PNG with 300 MB of zeros as text": (
        lambda: with_chunks(chunk(b"iTXt", b"a\0\1\0\0\0" + compressed_zeros(300 * MB))), 8, None,
    ),
    "PNG with 300 MB of zeros as profile": (
        lambda: with_chunks(chunk(b"iCCP", b"a\0\0" + compressed_zeros(300 * MB))), 8, None,
    ),
    "PNG with 300 MB behind its rows": (
        lambda: png(header(9, 9), chunk(b"IDAT", compressed_zeros(300 * MB))), 8, "more pixels than its",
    ),
    "PNG of 30000x30000": (
        lambda: png(header(30_000, 30_000), chunk(b"IDAT", compressed_zeros(MB))), 8,
        "30000x30000 pixels, more than 67108864",
    ),
    "PNG of 2,000,000 chunks": (
        lambda: with_chunks(chunk(b"teSt") * 2_000_000), 8, "more than 100000 chunks",
    ),
    "PNG of 1,001 frames": (
        lambda: animation(
            *(frame(2 * n - 1) + frame_data(2 * n, rows(16, 48)) for n in range(1, 1001)), count=1001
        ), 8, "more than 1000 frames",
    ),
    "PNG of frames of 192 Mi pixels": (
        lambda: png(
            header(8192, 8192, 1, 0), chunk(b"acTL", struct.pack(">II", 3, 0)),
            frame(0, 8192, 8192), chunk(b"IDAT", black := compressed_zeros(8192 * 1025)),
            frame(1, 8192, 8192), frame_data(2, black), frame(3, 8192, 8192), frame_data(4, black),
        ), 8, "more than 134217728 pixels in all frames",
    ),
    "JPEG of 5,001 scans": (lambda: scans(4096, 5001), 8, "more than 500 scans"),
    "JPEG of 500 scans": (lambda: scans(4096, 500), 200, None),
    "JPEG of 8192x8192": (lambda: written("JPEG", Pillow.new("L", (8192, 8192))), 8, None),
    "JPEG of two images with 501 scans": (
        lambda: scans(64, 251) + scans(64, 250), 8, "more than 500 scans",
    ),
    "JPEG with 2 MB of filler": (
        lambda: with_segments(b"\xff" * 2 * MB), 8, "more than 1048576 bytes between its segments",
    ),
    "JPEG with 2,000,000 segments": (
        lambda: with_segments(segment(0xE5, b"") * 2_000_000), 8, "more than 2000 segments",
    ),
    "JPEG with 20,000,000 markers without a length": (
        lambda: with_segments(b"\xff\x01" * 20 * MB), 8, "more than 2000 segments",
    ),
    "JPEG with 10,000,000 empty images behind it": (
        lambda: written("JPEG") + b"\xff\xd8\xff\xd9" * 10 * MB, 8, "more than 2000 segments",
    ),
    "JPEG with 60 MB behind its pixels": (
        lambda: written("JPEG")[:-2] + b"\xff\0" * 30 * MB + b"\xff\xd9", 200, None,
    ),
    "GIF of 20,000,000 blocks": (
        lambda: written("GIF")[:-1] + b"!\xfe" + b"\1x" * 20 * MB + b"\0;", 8, "more than 1000000 blocks",
    ),
    "GIF of 1,001 frames": (
        lambda: written("GIF")[:-1] + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * 1000 + b";", 8,
        "more than 1000 frames",
    ),
    "GIF of frames of 192 Mi pixels": (
        lambda: b"GIF89a\0\x20\0\x20\0\0\0" + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * 3 + b";", 8,
        "more than 134217728 pixels in all frames",
    ),
    "GIF that grows to 65535x65535": (
        lambda: b"GIF89a\1\0\1\0\0\0\0,\xfe\xff\xfe\xff\1\0\1\0\0\2\2\x44\1\0;", 8, "65535x65535 pixels",
    ),
    "JPEG with 8 GB of tags in its EXIF": (
        lambda: with_segments(
            *(segment(0xE1, b"Exif\0\0" + part) for part in batched(overlapping_tags(2 * MB), 60_000))
        ), 8, "more than 33554432 bytes in its tags",
    ),
    "JPEG with 60 MB of EXIF": (
        lambda: with_segments(*[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 900), 8,
        "more than 4194304 bytes of EXIF",
    ),
    "TIFF with 8 GB of tags": (
        lambda: overlapping_tags(2 * MB), 8, "more than 33554432 bytes in its tags",
    ),
    "TIFF whose directory follows itself": (
        lambda: b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHLL", 1, 13, 1, 8) * 65_535 + b"\x08\0\0\0",
        8, "more than 33554432 bytes in its tags",
    ),
    "TIFF of 1,001 pages": (lambda: pages(1001), 200, "more than 1000 frames"),
}  # fmt: skip
SECONDS = 3  # of CPU

# Checks each file in a process of its own, which ends if it exceeds a limit of the operating system.
CHECK = f"""
import json, os, resource, sys
from io import BytesIO
from pathlib import Path
from airflow_provider_modelscope.exceptions import ImageError
from airflow_provider_modelscope.images.check import check_image
from PIL import Image as Pillow

Pillow.init()
for path, megabytes in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork() == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
        resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes) * {MB}, resource.RLIM_INFINITY))
        with open(path, "rb") as file:
            try:
                print(json.dumps([path, check_image(file), None]), flush=True)
            except ImageError as error:
                print(json.dumps([path, None, str(error)]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str | None]]:
    """Check the hostile files in other processes, and return their sizes and errors."""
    folder = tmp_path_factory.mktemp("hostile")
    arguments = []
    for number, (content, megabytes, _reason) in enumerate(HOSTILE.values()):
        path = folder / str(number)
        path.write_bytes(content())
        arguments += [str(path), str(megabytes)]
    run = subprocess.run(
        [sys.executable, "-c", CHECK, *arguments], capture_output=True, text=True, check=True
    )
    names = list(HOSTILE)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {names[int(Path(path).name)]: (found, error) for path, found, error in lines}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_little(name: str, outcomes: dict[str, tuple[Any, str | None]]) -> None:
    *_, reason = HOSTILE[name]
    assert name in outcomes, f"{name} took more than {SECONDS} s"
    found, error = outcomes[name]
    if reason is None:
        assert found is not None, error
    else:
        assert reason in str(error)


@pytest.mark.parametrize("length", range(65_528, 65_538))
def test_a_scan_is_counted_wherever_a_read_ends(length: int) -> None:
    content = b"\xff\xd8\xff\xe0\0\2" + bytes(length) + segment(0xDA, b"") * 501
    with pytest.raises(BrokenImageError, match="more than 500 scans"):
        check_image(BytesIO(content))


def test_a_png_is_checked_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = animated("PNG")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert check_image(BytesIO(content)) == ("PNG", *DRAWING.size)


def decoded(content: bytes) -> None:
    with Pillow.open(BytesIO(content)) as opened:
        opened.verify()
    with Pillow.open(BytesIO(content)) as opened:
        opened.load()


def damaged(content: bytes, chance: Random) -> bytes:
    if chance.random() < 0.4:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 3))):
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def with_right_checksums(content: bytes) -> bytes:
    """Return a PNG as if it had been damaged before its chunks were written."""
    result, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4])
        if at + 12 + length > len(content):
            break
        result += chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + length])
        at += 12 + length
    return result + content[at:]


@pytest.mark.parametrize("repaired", [False, True], ids=["wrong checksums", "right checksums"])
def test_what_a_full_decode_refuses_is_refused(repaired: bool) -> None:
    chance = Random(17)  # noqa: S311 - the same bytes are damaged in each run
    sources = [written("PNG", DRAWING.resize((48, 32))), written("PNG", DRAWING.quantize(16)), png(
        header(13, 9, interlace=1), chunk(b"IDAT", zlib.compress(adam7(13, 9)))
    )]  # fmt: skip
    refused = 0
    for number in range(3000):
        content = damaged(sources[number % 3], chance)
        if repaired:
            content = with_right_checksums(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decoded(content)
                continue
            except Exception:  # Pillow raises nearly any
                refused += 1
        with pytest.raises(ImageError):
            check_image(BytesIO(content))
    assert refused > 2000


@contextmanager
def lenient_pillow() -> Iterator[None]:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("name", [name for name, (_, reason) in CORPUS.items() if reason])
def test_the_setting_load_truncated_images_has_no_effect(name: str) -> None:
    content, _reason = CORPUS[name]
    with lenient_pillow(), pytest.raises(BrokenImageError):
        check_image(BytesIO(content()))


@pytest.mark.parametrize("name", ["PNG of RGB", "JPEG of RGB", "WebP", "GIF"])
def test_the_setting_max_image_pixels_has_no_effect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    content, _reason = CORPUS[name]
    with Image.from_bytes(content()) as image:
        image.converted("PNG" if image.format != "PNG" else "JPEG").close()
    assert Pillow.MAX_IMAGE_PIXELS == 100


def test_checks_in_threads_leave_the_settings_as_they_were() -> None:
    half, before = written("JPEG")[:-200], list(warnings.filters)

    def is_refused(_number: int) -> bool:
        with pytest.raises(BrokenImageError):
            check_image(BytesIO(half))
        return True

    with lenient_pillow(), ThreadPoolExecutor(4) as threads:
        assert all(threads.map(is_refused, range(200)))
    assert warnings.filters == before


def test_a_warning_about_metadata_is_no_error() -> None:
    content = with_segments(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x0e\0\x02"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_image(BytesIO(content)) == ("JPEG", *DRAWING.size)
