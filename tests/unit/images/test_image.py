"""Images: detected from their bytes only, and converted without losing their labels."""

from __future__ import annotations

import json
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from random import Random
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from airflow_provider_modelscope.exceptions import BrokenImageError, ImageError, ModelScopeRetryableError
from airflow_provider_modelscope.images.formats import CONVERTIBLE, FORMAT_OF_SUFFIX, MAX_PIXELS
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.thumbnail import thumbnail

EXIF_IFD, USER_COMMENT, DESCRIPTION, ORIENTATION = 0x8769, 0x9286, 0x010E, 0x0112
CONVERSIONS = [(source, target) for source in CONVERTIBLE for target in CONVERTIBLE if source != target]
FROM_PNG = [target for source, target in CONVERSIONS if source == "PNG"]
CLEAR = (0, 0, 0, 0)
RED = (200, 30, 40, 255)
GREY = (200, 200, 200, 255)
BLACK = (0, 0, 0, 255)
WHITE = (255, 255, 255, 255)

# What a service writes: the label's seven fields as JSON.
LABELS = {
    "ascii": json.dumps({"Label": "1", "ContentProducer": "Example Ltd", "ProduceID": "a1-b2-c3"}),
    "Chinese": json.dumps(
        {"Label": "1", "ContentProducer": "某某公司", "ProduceID": "号"}, ensure_ascii=False
    ),
}


def written(drawing: Pillow.Image, format_: str, **options: Any) -> bytes:
    file = BytesIO()
    drawing.save(file, format_, **({"lossless": True} if format_ == "WEBP" else {}), **options)
    return file.getvalue()


def plain(format_: str = "PNG", **options: Any) -> bytes:
    return written(Pillow.new("RGB", (16, 16), RED[:3]), format_, **options)


def converted(content: bytes, format_: str) -> bytes:
    with Image.from_bytes(content).converted(format_) as image:
        assert image.format == format_
        return image.content


def xmp(label: str) -> bytes:
    escaped = label.replace("&", "&amp;").replace("<", "&lt;")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"><TC260:AIGC>{escaped}</TC260:AIGC>'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def with_xmp(format_: str, packet: bytes) -> bytes:
    if format_ != "PNG":
        return plain(format_, xmp=packet)
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet.decode())
    return plain(pnginfo=chunks)


def comment_of(text: str) -> bytes:
    """Return EXIF's UserComment as its standard writes it."""
    return b"ASCII\0\0\0" + text.encode() if text.isascii() else b"UNICODE\0" + text.encode("utf-16-be")


def with_comment(format_: str, comment: bytes, **options: Any) -> bytes:
    exif = Pillow.Exif()
    exif[EXIF_IFD] = {USER_COMMENT: comment}
    return plain(format_, exif=exif.tobytes(), **options)


def with_texts(texts: dict[str, str], *, raw: bool = False, exif: Pillow.Exif | None = None) -> bytes:
    """Return a PNG with text chunks: as Pillow writes them, or as tEXt that holds UTF-8."""
    chunks = PngInfo()
    for name, text in texts.items():
        if raw:
            chunks.add(b"tEXt", name.encode() + b"\0" + text.encode())
        else:
            chunks.add_text(name, text)
    return plain(pnginfo=chunks, exif=exif.tobytes() if exif else b"")


def xmp_in(content: bytes) -> bytes:
    with Pillow.open(BytesIO(content)) as drawing:
        return bytes(drawing.info.get("xmp", b""))


def exif_in(content: bytes) -> Pillow.Exif:
    with Pillow.open(BytesIO(content)) as drawing:
        return drawing.getexif()


def comment_in(content: bytes) -> bytes:
    return bytes(exif_in(content).get_ifd(EXIF_IFD).get(USER_COMMENT, b""))


def description_in(content: bytes) -> str:
    return str(exif_in(content).get(DESCRIPTION, "")).encode("latin-1").decode()


def occurrences(text: str, content: bytes) -> int:
    return content.count(text.encode()) + content.count(text.encode("utf-16-be"))


def pixel(content: bytes, x: int, y: int = 0) -> tuple[int, ...]:
    with Pillow.open(BytesIO(content)) as drawing:
        value = drawing.convert("RGBA").getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def is_near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 6 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("format_", "content_type", "suffix"),
    [
        ("PNG", "image/png", ".png"),
        ("JPEG", "image/jpeg", ".jpg"),
        ("WEBP", "image/webp", ".webp"),
        ("GIF", "image/gif", ".gif"),
        ("BMP", "image/bmp", ".bmp"),
        ("TIFF", "image/tiff", ".tiff"),
        pytest.param(
            "AVIF",
            "image/avif",
            ".avif",
            marks=pytest.mark.skipif(
                ".avif" not in Pillow.registered_extensions(), reason="Pillow reads AVIF since 11.3"
            ),
        ),
    ],
)
class TestFormats:
    def test_the_format_is_detected_and_the_bytes_are_kept(
        self, format_: str, content_type: str, suffix: str
    ) -> None:
        content = written(Pillow.new("RGB", (40, 30), "teal"), format_)
        image = Image.from_bytes(content)
        assert (image.format, image.width, image.height) == (format_, 40, 30)
        assert (image.content, image.length) == (content, len(content))
        assert image.content_type == content_type
        assert FORMAT_OF_SUFFIX[image.suffix] == FORMAT_OF_SUFFIX[suffix] == format_
        assert image.sha256 == sha256(content).hexdigest()
        assert "file" not in repr(image)

    @pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
    def test_a_truncated_image_is_rejected(
        self, format_: str, content_type: str, suffix: str, part: float
    ) -> None:
        content = written(Pillow.radial_gradient("L").convert("RGB"), format_)
        with pytest.raises(ImageError):
            Image.from_bytes(content[: int(len(content) * part)])

    def test_corrupt_bytes_raise_only_image_errors(
        self, format_: str, content_type: str, suffix: str
    ) -> None:
        chance = Random(45438)  # noqa: S311 - the same bytes are broken in each run
        content = written(Pillow.radial_gradient("L").resize((24, 24)).convert("RGB"), format_)
        broken = 0
        for _ in range(150):
            bytes_ = bytearray(content)
            for _ in range(3):
                bytes_[chance.randrange(len(bytes_))] = chance.randrange(256)
            try:
                Image.from_bytes(bytes(bytes_))
            except ImageError:
                broken += 1
        assert broken

    @pytest.mark.parametrize("target", CONVERTIBLE)
    def test_any_image_can_be_converted_to_three_formats(
        self, format_: str, content_type: str, suffix: str, target: str
    ) -> None:
        content = written(Pillow.new("RGB", (40, 30), RED[:3]), format_)
        with Image.from_bytes(content).converted(target) as image:
            assert (image.format, image.width, image.height) == (target, 40, 30)
            assert is_near(pixel(image.content, 20, 15), RED)


@pytest.mark.parametrize(
    ("content", "evidence"),
    [
        pytest.param(b"", r"0 bytes that start with b''", id="nothing"),
        pytest.param(
            b"<!DOCTYPE html><html></html>", r"28 bytes that start with b'<!DOCTYPE html><", id="HTML"
        ),
        pytest.param(b'{"errors": {}}', r"14 bytes", id="JSON"),
        pytest.param(b"x" * 100, r"100 bytes that start with b'x{16}'$", id="letters"),
        pytest.param(bytes(100), r"100 bytes that start with b'\\x00", id="zeros"),
        pytest.param(b"\x89PNG\r\n\x1a\n", r"8 bytes that start with b'\\x89PNG", id="only PNG's signature"),
        pytest.param(b"\xff\xd8\xff\xe0", r"4 bytes that start with b'\\xff\\xd8", id="only JPEG's"),
        pytest.param(b"GIF89a", r"6 bytes", id="only GIF's"),
        pytest.param(b"RIFF\x04\0\0\0WEBP", r"12 bytes that start with b'RIFF", id="only WebP's"),
        pytest.param(plain()[:-30], r"that start with b'\\x89PNG", id="a PNG without its end"),
        pytest.param(
            plain().replace(b"IDAT", b"IDAT\0", 1), r"that start with b'\\x89PNG", id="a PNG with a byte more"
        ),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"b'%!PS-Adobe-3.0 E", id="PostScript"
        ),
        pytest.param(b"P6 1 1 255 abc", r"14 bytes", id="a format that is not accepted"),
        pytest.param(b"<svg/>", r"b'<svg/>'", id="SVG"),
    ],
)
def test_the_error_shows_the_first_bytes(content: bytes, evidence: str) -> None:
    with pytest.raises(ImageError, match=f"Not a complete image .*{evidence}") as raised:
        Image.from_bytes(content)
    assert isinstance(raised.value, ModelScopeRetryableError)
    assert "'AVIF'" not in str(raised.value)  # a name, if this Pillow does not know the format


def test_the_sha256_is_that_of_the_bytes_of_a_copy() -> None:
    content, other = plain(), plain("GIF")
    with Image.from_chunks([content]) as image:
        copy = replace(image, file=BytesIO(other), length=len(other))
    assert copy.sha256 == sha256(other).hexdigest()


def test_the_error_of_complete_bytes_has_their_sha256() -> None:
    content = plain()[:-9]
    with pytest.raises(BrokenImageError) as raised:
        Image.from_chunks([content[:9], content[9:]])
    assert raised.value.sha256 == sha256(content).hexdigest()


def test_a_wrong_checksum_is_an_error() -> None:
    content = bytearray(plain())
    content[content.index(b"IEND") - 5] ^= 1  # the last byte of the pixels' checksum
    with pytest.raises(ImageError, match="Not a complete image"):
        Image.from_bytes(bytes(content))


def test_the_first_image_of_a_process_may_be_a_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    content = plain("WEBP")
    # As in a fresh process: before Pillow.init(), Pillow loads only a few formats.
    monkeypatch.setattr(Pillow, "_initialized", 1)
    monkeypatch.delitem(Pillow.OPEN, "WEBP")
    monkeypatch.delitem(sys.modules, "PIL.WebPImagePlugin")
    assert Image.from_bytes(content).format == "WEBP"


def claimed(format_: str, width: int, height: int) -> bytes:
    """Return a small image whose header claims a large size."""
    content = bytearray(plain(format_) if format_ != "WEBP" else converted(plain(), "WEBP"))
    match format_:
        case "PNG":
            content[16:24] = struct.pack(">II", width, height)
            content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        case "JPEG":
            place = content.index(b"\xff\xc0") + 5
            content[place : place + 4] = struct.pack(">HH", height, width)
        case "GIF":
            content[6:10] = struct.pack("<HH", width, height)
        case "BMP":
            content[18:26] = struct.pack("<ii", width, height)
        case _:
            content[26:30] = struct.pack("<HH", width, height)
    return bytes(content)


@pytest.mark.parametrize(
    ("format_", "width", "height"),
    [
        ("PNG", 8192, 8193),
        ("PNG", 60_000, 60_000),
        ("PNG", 2**31 - 1, 1),
        ("JPEG", 65_000, 65_000),
        ("JPEG", 10_000, 9_000),
        ("GIF", 65_535, 65_535),
        ("BMP", 2**30, 2**30),
        ("WEBP", 16_383, 16_383),
    ],
)
def test_a_decompression_bomb_is_rejected_before_decoding(format_: str, width: int, height: int) -> None:
    with pytest.raises(
        ImageError, match=f"The image has {width}x{height} pixels, more than|exceeds limit of"
    ):
        Image.from_bytes(claimed(format_, width, height))


def test_the_largest_image_has_64_mebipixels() -> None:
    assert MAX_PIXELS == 64 * 1024**2
    content = written(Pillow.new("1", (8192, 8192)), "PNG")
    assert Image.from_bytes(content).width == 8192


def test_a_jpeg_of_several_images_is_a_jpeg() -> None:
    content = plain("MPO", save_all=True, append_images=[Pillow.new("RGB", (16, 16))])
    image = Image.from_bytes(content)
    assert (image.format, image.content_type, image.suffix) == ("JPEG", "image/jpeg", ".jpg")
    assert image.converted("JPEG").content == content


@pytest.mark.parametrize("format_", CONVERTIBLE)
def test_an_image_in_the_target_format_is_not_converted(format_: str) -> None:
    image = Image.from_bytes(with_xmp(format_, xmp(LABELS["ascii"])))
    assert image.converted(format_) is image


def two_halves(mode: str, left: Any, right: Any) -> Pillow.Image:
    drawing = Pillow.new(mode, (32, 16), left)
    drawing.paste(right, (16, 0, 32, 16))
    return drawing


def palette(transparency: int | bytes | None = None) -> Pillow.Image:
    drawing = two_halves("P", 0, 1)
    drawing.putpalette([0, 0, 0, *RED[:3]])
    if transparency is not None:
        drawing.info["transparency"] = transparency
    return drawing


def keyed(mode: str, left: Any, right: Any) -> Pillow.Image:
    """Return a drawing in which one colour means transparency."""
    drawing = two_halves(mode, left, right)
    drawing.info["transparency"] = left
    return drawing


DRAWINGS = {
    "1": ("PNG", two_halves("1", 0, 1), BLACK, WHITE),
    "L": ("PNG", two_halves("L", 0, 200), BLACK, GREY),
    "L, one tone clear": ("PNG", keyed("L", 0, 200), CLEAR, GREY),
    "LA": ("PNG", two_halves("LA", (0, 0), (200, 255)), CLEAR, GREY),
    "P": ("PNG", palette(), BLACK, RED),
    "P, one colour clear": ("PNG", palette(0), CLEAR, RED),
    "P, each with its alpha": ("PNG", palette(bytes([0, 255])), CLEAR, RED),
    "RGB": ("PNG", two_halves("RGB", (0, 0, 0), RED[:3]), BLACK, RED),
    "RGB, one colour clear": ("PNG", keyed("RGB", (0, 0, 0), RED[:3]), CLEAR, RED),
    "RGBA": ("PNG", two_halves("RGBA", CLEAR, RED), CLEAR, RED),
    "I;16": ("PNG", two_halves("I;16", 0, 200 * 257), BLACK, GREY),
    "L in JPEG": ("JPEG", two_halves("L", 0, 200), BLACK, GREY),
    "RGB in JPEG": ("JPEG", two_halves("RGB", (0, 0, 0), RED[:3]), BLACK, RED),
    "CMYK in JPEG": ("JPEG", two_halves("CMYK", (0, 0, 0, 255), (55, 225, 215, 0)), BLACK, RED),
    "RGB in WebP": ("WEBP", two_halves("RGB", (0, 0, 0), RED[:3]), BLACK, RED),
    "RGBA in WebP": ("WEBP", two_halves("RGBA", CLEAR, RED), CLEAR, RED),
}


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, target) for name, (source, *_) in DRAWINGS.items() for target in CONVERTIBLE if target != source],
)
def test_every_pixel_mode_keeps_its_colours(name: str, target: str) -> None:
    source, drawing, left, right = DRAWINGS[name]
    content = converted(written(drawing, source), target)
    seen = pixel(content, 2, 8)
    if left == CLEAR and target != "JPEG":
        assert seen[3] == 0
    else:
        assert is_near(seen, WHITE if left == CLEAR else left)
    assert is_near(pixel(content, 29, 8), right)


def test_16_bit_tones_are_scaled_to_8_bits() -> None:
    drawing = Pillow.new("I;16", (256, 8))
    for x in range(256):
        drawing.paste(x * 257, (x, 0, x + 1, 8))
    content = converted(written(drawing, "PNG"), "JPEG")
    assert all(abs(pixel(content, x, 4)[0] - x) <= 3 for x in range(0, 256, 15))


@pytest.mark.parametrize("target", FROM_PNG)
def test_half_transparency_is_kept_or_mixed_with_white(target: str) -> None:
    content = converted(written(Pillow.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG"), target)
    assert is_near(pixel(content, 8, 8), (127, 127, 127, 255) if target == "JPEG" else (0, 0, 0, 128))


@pytest.mark.parametrize(
    ("name", "target", "space", "is_kept"),
    [
        ("RGB", "JPEG", b"RGB ", True),
        ("RGB", "WEBP", b"RGB ", True),
        ("RGBA", "JPEG", b"RGB ", True),
        ("RGBA", "WEBP", b"RGB ", True),
        ("P", "JPEG", b"RGB ", True),
        ("P", "WEBP", b"RGB ", True),
        ("L", "JPEG", b"GRAY", True),
        ("L", "WEBP", b"GRAY", False),
        ("LA", "JPEG", b"GRAY", False),
        ("RGB in JPEG", "PNG", b"RGB ", True),
        ("RGB in JPEG", "WEBP", b"RGB ", True),
        ("L in JPEG", "PNG", b"GRAY", True),
        ("CMYK in JPEG", "PNG", b"CMYK", False),
        ("CMYK in JPEG", "WEBP", b"CMYK", False),
        ("RGB in WebP", "PNG", b"RGB ", True),
        ("RGBA in WebP", "JPEG", b"RGB ", True),
        ("RGBA in WebP", "PNG", b"RGB ", True),
    ],
)
def test_a_colour_profile_is_kept_if_it_fits_the_pixels(
    name: str, target: str, space: bytes, is_kept: bool
) -> None:
    source, drawing, *_ = DRAWINGS[name]
    profile = bytes(16) + space + bytes(range(108))
    content = converted(written(drawing, source, icc_profile=profile), target)
    with Pillow.open(BytesIO(content)) as result:
        assert result.info.get("icc_profile") == (profile if is_kept else None)


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
class TestLabels:
    @pytest.mark.parametrize(("source", "target"), CONVERSIONS)
    def test_the_label_in_xmp_is_copied_once_byte_for_byte(
        self, source: str, target: str, label: str
    ) -> None:
        packet = xmp(label)
        content = converted(with_xmp(source, packet), target)
        assert xmp_in(content) == packet
        assert content.count(packet) == content.count(b"TC260:AIGC>{") == 1
        assert not exif_in(content)

    @pytest.mark.parametrize(("source", "target"), CONVERSIONS)
    def test_the_label_in_exif_is_copied_once_byte_for_byte(
        self, source: str, target: str, label: str
    ) -> None:
        comment = comment_of(label)
        content = converted(with_comment(source, comment), target)
        assert comment_in(content) == comment
        assert content.count(comment) == occurrences("ProduceID", content) == 1

    @pytest.mark.parametrize("target", FROM_PNG)
    @pytest.mark.parametrize("raw", [False, True], ids=["as PNG has it", "UTF-8"])
    def test_the_label_in_a_text_chunk_becomes_the_exif_comment(
        self, target: str, label: str, raw: bool
    ) -> None:
        content = converted(with_texts({"AIGC": label}, raw=raw), target)
        assert comment_in(content) == comment_of(label)
        assert occurrences("ProduceID", content) == 1

    @pytest.mark.parametrize("target", FROM_PNG)
    def test_the_label_takes_the_comment_before_the_parameters(self, target: str, label: str) -> None:
        content = converted(with_texts({"parameters": "一只猫\nSteps: 30", "AIGC": label}), target)
        assert comment_in(content) == comment_of(label)
        assert description_in(content) == "parameters: 一只猫\nSteps: 30"
        assert occurrences("ProduceID", content) == 1

    @pytest.mark.parametrize("target", FROM_PNG)
    def test_a_label_that_a_png_contains_twice_is_written_once(self, target: str, label: str) -> None:
        exif = Pillow.Exif()
        exif[EXIF_IFD] = {USER_COMMENT: comment_of(label)}
        content = converted(with_texts({"AIGC": label}, exif=exif), target)
        assert comment_in(content) == comment_of(label)
        assert occurrences("ProduceID", content) == 1

    @pytest.mark.parametrize("target", FROM_PNG)
    def test_existing_exif_does_not_displace_the_label(self, target: str, label: str) -> None:
        exif = Pillow.Exif()
        exif[EXIF_IFD] = {USER_COMMENT: b"ASCII\0\0\0a comment"}
        exif[DESCRIPTION] = "海边".encode()
        content = converted(with_texts({"AIGC": label}, exif=exif), target)
        assert comment_in(content) == b"ASCII\0\0\0a comment"
        assert description_in(content) == f"海边\nAIGC: {label}"

    def test_the_label_survives_repeated_conversion(self, label: str) -> None:
        content = with_texts({"AIGC": label})
        for target in ("JPEG", "WEBP", "PNG", "WEBP", "JPEG", "PNG"):
            content = converted(content, target)
        assert comment_in(content) == comment_of(label)
        assert occurrences("ProduceID", content) == 1

    def test_a_label_that_does_not_fit_is_an_error(self, label: str) -> None:
        long_label = label.replace("}", f', "ReservedCode1": "{"0" * 70_000}"}}')
        for content in (with_texts({"AIGC": long_label}), with_xmp("PNG", xmp(long_label))):
            with pytest.raises(ImageError, match=r"PNG of 16x16 pixels cannot become JPEG: .*too long"):
                Image.from_bytes(content).converted("JPEG")
        assert comment_in(converted(with_texts({"AIGC": long_label}), "WEBP")) == comment_of(long_label)
        assert xmp_in(converted(with_xmp("PNG", xmp(long_label)), "WEBP")) == xmp(long_label)


def test_no_label_is_invented() -> None:
    for source, target in CONVERSIONS:
        content = converted(plain(source), target)
        assert not xmp_in(content)
        assert not exif_in(content)
        assert b"AIGC" not in content


PARAMETERS = {
    "English": "a cat\nNegative prompt: dog\nSteps: 30, Sampler: Euler a, CFG scale: 7.5, Seed: 42",
    "Chinese": "一只金色的猫，水墨画\nNegative prompt: 模糊\nSteps: 30, Seed: 42",
    "accents and emoji": "café à la crème 🐈",
    "long": "a cat, " * 280 + "\nNegative prompt: " + "dog, " * 390,
    "long and Chinese": "一" * 1999 + "\nNegative prompt: " + "狗" * 1999,
}


@pytest.mark.parametrize("target", FROM_PNG)
@pytest.mark.parametrize("raw", [False, True], ids=["as PNG has it", "UTF-8"])
@pytest.mark.parametrize("text", PARAMETERS.values(), ids=PARAMETERS)
def test_the_parameters_of_a_png_become_the_exif_comment(target: str, raw: bool, text: str) -> None:
    content = converted(with_texts({"parameters": text}, raw=raw), target)
    assert comment_in(content) == comment_of(text)
    assert not description_in(content)


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
@pytest.mark.parametrize("text", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_in_exif_stay_in_exif(source: str, target: str, text: str) -> None:
    content = converted(with_comment(source, comment_of(text)), target)
    assert comment_in(content) == comment_of(text)


@pytest.mark.parametrize("target", FROM_PNG)
def test_other_texts_of_a_png_become_the_description(target: str) -> None:
    content = converted(with_texts({"Software": "Example 1.0", "parameters": "a cat", "Title": "猫"}), target)
    assert comment_in(content) == comment_of("a cat")
    assert description_in(content) == "Software: Example 1.0\nTitle: 猫"


def test_too_long_text_is_dropped_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = {"workflow": "节点" * 20_000, "parameters": "一只猫" * 100, "AIGC": LABELS["Chinese"]}
    content = converted(with_texts(texts), "JPEG")
    assert comment_in(content) == comment_of(LABELS["Chinese"])
    assert description_in(content) == "parameters: " + "一只猫" * 100
    assert "Dropping the text 'workflow' of 120010 bytes" in caplog.text


def test_text_that_does_not_fit_beside_the_exif_is_dropped() -> None:
    exif = Pillow.Exif()
    exif[DESCRIPTION] = "x" * 40_000
    content = converted(with_texts({"parameters": "y" * 30_000, "AIGC": LABELS["ascii"]}, exif=exif), "JPEG")
    assert comment_in(content) == comment_of(LABELS["ascii"])
    assert description_in(content) == "x" * 40_000


def test_texts_together_stay_below_the_limit_of_a_jpeg() -> None:
    texts = {f"part{number}": "x" * 20_000 for number in range(9)} | {"AIGC": LABELS["ascii"]}
    content = converted(with_texts(texts), "JPEG")
    assert comment_in(content) == comment_of(LABELS["ascii"])
    assert description_in(content).count("part") == 3


def test_a_webp_holds_complete_long_texts() -> None:
    content = converted(with_texts({"parameters": "一只猫" * 30_000, "workflow": "{}" * 90_000}), "WEBP")
    assert comment_in(content) == comment_of("一只猫" * 30_000)
    assert description_in(content) == "workflow: " + "{}" * 90_000


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_other_exif_is_copied_with_its_encoding(source: str, target: str) -> None:
    exif = Pillow.Exif()
    exif[ORIENTATION] = 6
    exif[DESCRIPTION] = "海边的猫".encode()
    content = converted(plain(source, exif=exif.tobytes()), target)
    assert exif_in(content)[ORIENTATION] == 6
    assert description_in(content) == "海边的猫"


@pytest.mark.parametrize("target", ["PNG", "WEBP"])
def test_the_comment_of_a_jpeg_is_copied(target: str) -> None:
    content = converted(plain("JPEG", comment="一只猫".encode()), target)
    with Pillow.open(BytesIO(content)) as drawing:
        found = drawing.info["Comment"] if target == "PNG" else description_in(content)
    assert found == ("一只猫" if target == "PNG" else "Comment: 一只猫")


@pytest.mark.parametrize("target", ["PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0neither II nor MM",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x0e\0\x02",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ],
)
def test_broken_exif_does_not_prevent_conversion(target: str, exif: bytes) -> None:
    content = plain("JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of corrupt EXIF; Airflow would only log it
        assert is_near(pixel(converted(content, target), 8, 8), RED)


def test_an_image_that_a_format_cannot_hold_is_an_error() -> None:
    image = Image.from_bytes(written(Pillow.new("L", (16_384, 1)), "PNG"))
    with pytest.raises(ImageError, match=r"The PNG of 16384x1 pixels cannot become WEBP: .*16383"):
        image.converted("WEBP")


def test_thumbnails_do_not_change_the_warning_filters() -> None:
    content, before = plain(), list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(thumbnail, [content] * 200, [8] * 200))
    assert warnings.filters == before
