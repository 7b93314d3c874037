"""Conversions: what the other format cannot hold is left out with a warning, and tones stay."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image as Pillow, features
from PIL.PngImagePlugin import PngInfo

from airflow_provider_modelscope.exceptions import ImageError
from airflow_provider_modelscope.images.conversion import _check_end, convert, in_mode_for
from airflow_provider_modelscope.images.formats import CONVERTIBLE
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.parts import PNG_SIGNATURE
from airflow_provider_modelscope.images.thumbnail import thumbnail

EXIF_IFD, USER_COMMENT, DESCRIPTION, ORIENTATION, MAKER_NOTE = 0x8769, 0x9286, 0x010E, 0x0112, 0x927C
LABEL = '{"Label": "1", "ContentProducer": "某某公司", "ProduceID": "a1"}'
COMMENT = b"UNICODE\0" + LABEL.encode("utf-16-be")
PROFILE_OF_2_MB = bytes(16) + b"RGB " + bytes(2_000_000)


def saved(drawing: Pillow.Image, format_: str, **options: Any) -> bytes:
    file = BytesIO()
    drawing.save(file, format_, **options)
    return file.getvalue()


def plain(format_: str = "PNG", **options: Any) -> bytes:
    return saved(Pillow.new("RGB", (16, 16), (200, 30, 40)), format_, **options)


def converted(content: bytes, format_: str) -> bytes:
    with Image.from_bytes(content).converted(format_) as image:
        assert (image.format, image.length) == (format_, len(image.content))
        with Pillow.open(image.file) as opened:
            opened.load()
            assert (opened.format, opened.size) == (format_, (image.width, image.height))
        return image.content


def xmp(label: str, padding: int = 0) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/" xmlns:o="urn:o">{label}'
        f"<o:history>{'x' * padding}</o:history></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def info_of(content: bytes) -> dict[str | tuple[int, int], Any]:
    with Pillow.open(BytesIO(content)) as drawing:
        return drawing.info


def exif_of(content: bytes) -> Pillow.Exif:
    with Pillow.open(BytesIO(content)) as drawing:
        return drawing.getexif()


def comment_of(content: bytes) -> bytes:
    return bytes(exif_of(content).get_ifd(EXIF_IFD).get(USER_COMMENT, b""))


def exif(**details: Any) -> bytes:
    tags = Pillow.Exif()
    tags[ORIENTATION] = 6
    tags[DESCRIPTION] = details.pop("description", "a cat")
    tags[EXIF_IFD] = {MAKER_NOTE: details.pop("note", b""), USER_COMMENT: details.pop("comment", b"")}
    return tags.tobytes()


def tiff(*tags: tuple[int, int, bytes]) -> bytes:
    """Return EXIF of tags, each with its number, its type and a value of at most four bytes."""
    entries = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


TURNED = (ORIENTATION, 3, b"\6")
ODD_EXIF = {
    "neither II nor MM": b"neither II nor MM",
    "cut off": b"II*\0",
    "tags that overlap": tiff(TURNED, *((tag, 7, b"\x08") for tag in range(1, 3000))).replace(
        b"\7\0\1\0\0\0", b"\7\0\0\x80\0\0"
    ),
    "a number as description": tiff((DESCRIPTION, 3, b"\1"), TURNED),
    "a fraction as description": tiff((DESCRIPTION, 11, b"\0\0\x80\x3f"), TURNED),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png_with(*chunks: bytes) -> BytesIO:
    content = plain()
    return BytesIO(content[:33] + b"".join(chunks) + content[33:])


@pytest.mark.parametrize("source", ["PNG", "WEBP"])
def test_coloured_lines_of_one_pixel_stay_sharp_in_a_jpeg(source: str) -> None:
    drawing = Pillow.new("RGB", (32, 32), "blue")
    for x in range(0, 32, 2):
        drawing.paste("red", (x, 0, x + 1, 32))
    options = {"lossless": True} if source == "WEBP" else {}
    content = converted(saved(drawing, source, **options), "JPEG")
    with Pillow.open(BytesIO(content)) as jpeg:
        for x in range(32):
            red, _, blue = jpeg.getpixel((x, 9))  # type: ignore[misc] # it has three bands
            assert (red > 200 and blue < 60) if x % 2 == 0 else (red < 60 and blue > 200)


class TestWhatDoesNotFit:
    @pytest.mark.parametrize("source", ["PNG", "WEBP"])
    def test_exif_too_large_for_a_jpeg_is_reduced(
        self, source: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = converted(plain(source, exif=exif(note=b"n" * 70_000, comment=COMMENT)), "JPEG")
        assert comment_of(content) == COMMENT
        assert (exif_of(content)[ORIENTATION], exif_of(content)[DESCRIPTION]) == (6, "a cat")
        assert "nnn" not in str(content)
        assert "Dropping EXIF of 70" in caplog.text

    def test_a_long_comment_is_dropped_unless_it_is_the_label(self) -> None:
        content = converted(plain(exif=exif(comment=b"ASCII\0\0\0" + b"c" * 70_000)), "JPEG")
        assert not comment_of(content)
        assert exif_of(content)[DESCRIPTION] == "a cat"
        long_label = b"ASCII\0\0\0" + b'{"ContentProducer": "' + b"c" * 70_000 + b'"}'
        with pytest.raises(ImageError, match=r"cannot become JPEG: .*too long"):
            converted(plain(exif=exif(comment=long_label)), "JPEG")

    def test_a_long_description_does_not_displace_the_label(self) -> None:
        content = converted(plain(exif=exif(description="d" * 66_000, comment=COMMENT)), "JPEG")
        assert comment_of(content) == COMMENT
        assert DESCRIPTION not in exif_of(content)

    def test_texts_are_added_to_reduced_exif(self) -> None:
        chunks = PngInfo()
        chunks.add_itxt("AIGC", LABEL)
        chunks.add_itxt("parameters", "a cat, Steps: 30")
        content = converted(plain(exif=exif(note=b"n" * 70_000), pnginfo=chunks), "JPEG")
        assert comment_of(content) == COMMENT
        assert exif_of(content)[DESCRIPTION] == "a cat\nparameters: a cat, Steps: 30"

    def test_broken_exif_too_large_for_a_jpeg_is_dropped(self) -> None:
        content = converted(plain("WEBP", exif=b"Exif\0\0neither II nor MM" + bytes(70_000)), "JPEG")
        assert not exif_of(content)
        with pytest.raises(ImageError, match="label in its EXIF cannot be read"):
            converted(plain("WEBP", exif=b"Exif\0\0ContentProducer" + bytes(70_000)), "JPEG")

    @pytest.mark.parametrize("target", ["JPEG", "WEBP"])
    @pytest.mark.parametrize("tags", ODD_EXIF.values(), ids=ODD_EXIF)
    def test_texts_of_a_png_need_no_readable_exif(
        self, tags: bytes, target: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        chunks = PngInfo()
        chunks.add_itxt("AIGC", LABEL)
        content = converted(plain(exif=tags, pnginfo=chunks), target)
        assert comment_of(content) == COMMENT
        assert exif_of(content).get(ORIENTATION) == (6 if b"\x12\x01" in tags else None)
        assert "Dropping the EXIF but for its orientation" in caplog.text

    @pytest.mark.parametrize("source", ["PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize(
        "label", [f"<TC260:AIGC>{LABEL}</TC260:AIGC>", ""], ids=["with a label", "without"]
    )
    def test_the_label_of_xmp_too_large_for_a_jpeg_is_kept(
        self, source: str, label: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        packet = xmp(label, 100_000)
        chunks = PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", packet.decode())
        options: dict[str, Any] = {"PNG": {"pnginfo": chunks}, "TIFF": {"tiffinfo": {700: packet}}}
        given = plain(source, **options.get(source, {"xmp": packet}))
        content = converted(given, "JPEG")
        assert "xmp" not in info_of(content)
        assert comment_of(content) == (COMMENT if label else b"")
        assert f"Dropping the XMP of {len(packet)} bytes" in caplog.text
        if source != "WEBP":
            assert info_of(converted(given, "WEBP"))["xmp"] == packet

    def test_a_label_as_an_attribute_is_read(self) -> None:
        packet = xmp("", 100_000).replace(b" xmlns:o=", b" TC260:AIGC='ContentProducer' xmlns:o=")
        assert comment_of(converted(plain("WEBP", xmp=packet), "JPEG")) == b"ASCII\0\0\0ContentProducer"

    @pytest.mark.parametrize("damage", [b"<!DOCTYPE a>", b"</", b"<AIGC>"], ids=repr)
    def test_a_label_that_cannot_be_read_is_not_dropped(self, damage: bytes) -> None:
        packet = damage + xmp("<TC260:AIGC></TC260:AIGC>", 100_000)
        with pytest.raises(ImageError, match="cannot become JPEG: the label in its XMP cannot be read"):
            converted(plain("WEBP", xmp=packet), "JPEG")

    @pytest.mark.parametrize(("target", "is_kept"), [("PNG", False), ("WEBP", True)])
    def test_a_huge_profile_is_dropped_where_it_does_not_fit(
        self, target: str, is_kept: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = converted(plain("JPEG", icc_profile=PROFILE_OF_2_MB), target)
        assert info_of(content).get("icc_profile") == (PROFILE_OF_2_MB if is_kept else None)
        assert ("Dropping the colour profile of 2000020 bytes" in caplog.text) is not is_kept

    def test_a_profile_of_17_mb_does_not_fit_in_a_jpeg(self, caplog: pytest.LogCaptureFixture) -> None:
        content = converted(plain("WEBP", icc_profile=bytes(16) + b"RGB " + bytes(17_000_000)), "JPEG")
        assert "icc_profile" not in info_of(content)
        assert "Dropping the colour profile" in caplog.text

    def test_a_comment_too_long_for_a_jpeg_is_dropped(self) -> None:
        gif = saved(Pillow.new("L", (16, 16)), "GIF", comment=b"c" * 70_000)
        assert b"ccc" not in converted(gif, "JPEG")
        assert b"c" * 70_000 in converted(gif, "WEBP")

    def test_metadata_that_fits_gives_no_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        packet = xmp(f"<TC260:AIGC>{LABEL}</TC260:AIGC>")
        given = plain("WEBP", exif=exif(note=b"n" * 60_000), xmp=packet, icc_profile=PROFILE_OF_2_MB)
        content = converted(given, "JPEG")
        assert info_of(content)["xmp"] == packet
        assert b"n" * 60_000 in content
        assert not caplog.records


class TestMetadataThatPillowRefuses:
    """Pillow cannot open these PNG files, for a reason that has nothing to do with their pixels."""

    TEXT = zlib.compress(b"t" * 2_000_000)

    @pytest.mark.parametrize(
        ("kind", "data"),
        [
            (b"zTXt", b"Comment\0\0" + TEXT),
            (b"iTXt", b"Comment\0\1\0\0\0" + TEXT),
            (b"iCCP", b"Comment\0\0" + TEXT),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + TEXT),
        ],
    )
    def test_it_is_left_out_with_a_warning(
        self, kind: bytes, data: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        content, size = convert(png_with(chunk(b"tEXt", b"Title\0a cat"), chunk(kind, data)), "WEBP")
        assert size == (16, 16)
        assert exif_of(bytes(content))[DESCRIPTION] == "Title: a cat"
        name = data.split(b"\0")[0].decode()
        assert f"Dropping the {kind.decode()} chunk '{name}' of the PNG" in caplog.text

    @pytest.mark.parametrize(
        "part",
        [
            chunk(b"zTXt", b"Comment\0\1x"),
            chunk(b"iCCP", b"name\0\1x"),
            chunk(b"gAMA", b"x"),
            chunk(b"pHYs", b"x"),
        ],
        ids=repr,
    )
    def test_broken_metadata_is_left_out_with_a_warning(
        self, part: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = chunk(b"iTXt", b"AIGC\0\0\0\0\0" + LABEL.encode())
        content, _ = convert(png_with(part, text), "JPEG")
        assert comment_of(bytes(content)) == COMMENT
        assert re.search("Dropping (all metadata|the (zTXt|iCCP) chunk .*) of the PNG", caplog.text)

    @pytest.mark.parametrize("kind", [b"acTL", b"cHRM", b"fcTL", b"fdAT", b"gAMA", b"iCCP", b"pHYs", b"zTXt"])
    def test_metadata_behind_the_pixels_may_be_broken(self, kind: bytes) -> None:
        end = chunk(b"IEND", b"")
        text = chunk(b"zTXt", b"AIGC\0\0" + zlib.compress(LABEL.encode()))
        content = plain().removesuffix(end) + chunk(kind, b"a\0\1") + text + end
        assert comment_of(converted(content, "JPEG")) == COMMENT
        assert thumbnail(content, 8)

    def test_many_texts_are_limited_together(self, caplog: pytest.LogCaptureFixture) -> None:
        text = zlib.compress(b"t" * 1_000_000)
        content, _ = convert(png_with(*(chunk(b"zTXt", b"%d\0\0" % n + text) for n in range(100))), "WEBP")
        assert exif_of(bytes(content))[DESCRIPTION].startswith("0: tttt")
        assert sum("Dropping" in record.message for record in caplog.records) == 67

    @pytest.mark.parametrize(
        "data",
        [
            b"AIGC\0\1\0\0\0" + TEXT,
            b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp("<TC260:AIGC/>") + bytes(2_000_000)),
        ],
        ids=["text", "XMP"],
    )
    def test_a_label_is_not_left_out(self, data: bytes) -> None:
        file = png_with(chunk(b"iTXt", data))
        with pytest.raises(ValueError, match="its label is in metadata of more than 1048576 bytes"):
            convert(file, "WEBP")
        assert thumbnail(file.getvalue(), 8)  # which has no label

    @pytest.mark.parametrize(
        "part",
        [
            chunk(b"iTXt", b"Title\0\0\0\0\0" + b"t" * 2_000_000),
            chunk(b"zTXt", b"Title\0\0" + zlib.compress(b"t" * 1_048_576)),
        ],
        ids=["not compressed", "at the limit"],
    )
    def test_what_pillow_reads_is_kept(self, part: bytes, caplog: pytest.LogCaptureFixture) -> None:
        content, _ = convert(png_with(part), "WEBP")
        assert len(exif_of(bytes(content))[DESCRIPTION]) > 1_000_000
        assert not caplog.records


@pytest.mark.parametrize("target", CONVERTIBLE)
def test_the_label_in_the_xmp_of_a_gif_is_kept(target: str) -> None:
    packet = xmp(f"<TC260:AIGC>{LABEL}</TC260:AIGC>")
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    gif = saved(Pillow.new("L", (16, 16)), "GIF")
    assert gif.endswith(b";")
    content = converted(gif[:-1] + b"!\xff\x0bXMP DataXMP" + packet + trailer + b";", target)
    assert info_of(content)["xmp"] == packet
    assert "xmp" not in info_of(converted(gif, target))


def tones(mode: str, values: list[float]) -> Pillow.Image:
    drawing = Pillow.new(mode, (len(values) * 4, 4))
    for number, value in enumerate(values):
        drawing.paste(value, (number * 4, 0, number * 4 + 4, 4))
    return drawing


def big_endian(values: list[int]) -> bytes:
    """Return a TIFF of 16 bits whose bytes are in the order that Pillow calls I;16B."""
    rows = b"".join(value.to_bytes(2) * 4 for value in values) * 4
    return saved(Pillow.frombytes("I;16B", (len(values) * 4, 4), rows), "TIFF")


@pytest.mark.parametrize("target", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(big_endian([0, 100 * 257, 65_535]), id="16 bits, big-endian"),
        pytest.param(saved(tones("I;16", [0, 100 * 257, 65_535]), "TIFF"), id="16 bits"),
        pytest.param(saved(tones("I", [0, 100 * 257, 65_535]), "TIFF"), id="32 bits, tones of 16"),
        pytest.param(saved(tones("I", [0, 100, 255]), "TIFF"), id="32 bits, tones of 8"),
        pytest.param(saved(tones("I", [-255 * 2**22, -55 * 2**22, 255 * 2**22]), "TIFF"), id="signed"),
        pytest.param(saved(tones("F", [0, 100 / 255, 1]), "TIFF"), id="fractions"),
        pytest.param(saved(tones("F", [0, 100, 255]), "TIFF"), id="floats of 8 bits"),
        pytest.param(saved(tones("F", [0, 100 * 257, 65_535]), "TIFF"), id="floats of 16 bits"),
        pytest.param(saved(tones("F", [-1, -1 + 200 / 255, 1]), "TIFF"), id="floats around zero"),
    ],
)  # fmt: skip
def test_deep_tones_are_scaled(content: bytes, target: str) -> None:
    with Pillow.open(BytesIO(converted(content, target))) as opened:
        grey = opened.convert("L")
        seen = [grey.getpixel((x, 1)) for x in (1, 6, 10)]
    assert seen == pytest.approx([0, 100, 255], abs=3)


@pytest.mark.parametrize("tone", [float("nan"), float("inf"), 0.0, 7.5, -3.0], ids=str)
def test_odd_floats_do_not_prevent_a_conversion(tone: float) -> None:
    assert converted(saved(tones("F", [tone]), "TIFF"), "PNG")


def test_a_transparent_tone_of_16_bits_stays_transparent() -> None:
    drawing = Pillow.frombytes("I;16", (8, 4), b"\x00\x9c" * 16 + b"\x00\x40" * 16)
    drawing.info["transparency"] = 0x9C00
    with Pillow.open(BytesIO(converted(saved(drawing, "PNG"), "WEBP"))) as opened:
        assert [opened.getpixel((2, y))[3] for y in (0, 3)] == [0, 255]  # type: ignore[index] # it has bands


@pytest.mark.parametrize(
    ("depth", "colours", "row", "tones"),
    [
        (2, 0, b"\x6c", b"\0\1"),
        (4, 0, b"\x58\xf0", b"\0\5"),
        (16, 2, b"\x12\x34\x56\x78\x9a\xbc" + bytes(18), b"\x12\x34\x56\x78\x9a\xbc"),
    ],
    ids=["grey of 2 bits", "grey of 4 bits", "RGB of 16 bits"],
)
@pytest.mark.parametrize("is_thumbnail", [False, True], ids=["conversion", "thumbnail"])
def test_the_transparent_tone_of_a_png_of_any_depth_stays_so(
    depth: int, colours: int, row: bytes, tones: bytes, is_thumbnail: bool
) -> None:
    content = b"".join(
        (
            PNG_SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, colours, 0, 0, 0)),
            chunk(b"tRNS", tones),
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        )
    )
    small = thumbnail(content, 64) if is_thumbnail else converted(content, "WEBP")
    with Pillow.open(BytesIO(small)) as drawing:
        assert list(drawing.getchannel("A").tobytes()) == [0, 255, 255, 255]


@pytest.mark.parametrize("target", ["JPEG", "WEBP"])
def test_transparency_that_is_cut_off_is_ignored(target: str) -> None:
    converted(png_with(chunk(b"tRNS", b"\0")).getvalue(), target)


def test_pixels_that_fit_are_not_copied() -> None:
    for mode, format_ in (("RGB", "JPEG"), ("L", "PNG"), ("RGBA", "WEBP")):
        drawing = Pillow.new(mode, (4, 4))
        assert in_mode_for(format_, drawing) is drawing


@pytest.mark.parametrize("format_", ["PNG", "GIF", "WEBP", "TIFF", "MPO", "AVIF"])
@pytest.mark.parametrize("count", [1, 2])
def test_only_the_first_image_is_converted_with_a_warning(
    format_: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    if format_ == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow reads AVIF since 11.3")
    frames = [Pillow.new("RGB", (16, 16), colour) for colour in ("red", "blue")[:count]]
    content = saved(frames[0], format_, save_all=True, append_images=frames[1:])
    result, _ = convert(BytesIO(content), "JPEG" if format_ == "PNG" else "PNG")
    with Pillow.open(BytesIO(result)) as opened:
        red, _, blue = opened.convert("RGB").getpixel((8, 8))  # type: ignore[misc] # it has three bands
    assert red > 240 > 20 > blue
    assert ("only the first image" in caplog.text) is (count == 2)


@pytest.mark.parametrize("target", ["JPEG", "WEBP"])
def test_the_loss_of_content_credentials_gives_a_warning(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, _ = convert(png_with(chunk(b"caBX", b"a manifest")), target)
    assert "Content Credentials (C2PA) get lost in the conversion" in caplog.text
    assert b"a manifest" not in bytes(content)


@pytest.mark.parametrize("format_", CONVERTIBLE)
def test_an_unfinished_file_of_an_encoder_is_an_error(format_: str) -> None:
    content = plain(format_)
    _check_end(BytesIO(content), format_)
    for length in (len(content) - 1, len(content) // 2):
        with pytest.raises(ValueError, match=r"cut off|did not finish"):
            _check_end(BytesIO(content[:length]), format_)
