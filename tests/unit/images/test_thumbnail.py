"""Thumbnails look like their images: the right way up, in the same colours, sharp and transparent."""

from __future__ import annotations

import math
import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from PIL import Image as Pillow, ImageChops, ImageCms, ImageDraw, ImageStat, features

from airflow_provider_modelscope.exceptions import ImageError
from airflow_provider_modelscope.images.thumbnail import content_type_of, thumbnail
from tests.unit.images.test_check import chunk, scans, with_chunks

SIDE = 64
RED, BLUE = (255, 0, 0), (0, 0, 255)
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Red and blue change places in a display with this profile.
SWAPPED = SRGB.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def written(image: Pillow.Image, format_: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def small(content: bytes, side: int = SIDE) -> Pillow.Image:
    opened = Pillow.open(BytesIO(thumbnail(content, side)))
    assert opened.format == "WEBP"
    assert max(opened.size) <= side
    return opened


def is_near(one: Any, other: Any, by: int = 24) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


def red_inks() -> bytes:
    """Return a profile by which ink is red, and all four inks together are black."""
    red, black = bytes([136, 208, 195]), bytes([0, 128, 128])  # in Lab
    ramp = bytes(range(256))
    table = struct.pack(">4s4x4B9L", b"mft1", 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += 4 * ramp + 15 * red + black + 3 * ramp
    header = struct.pack(">4xL4s4s4s12x4s", 0x02100000, b"prtr", b"CMYK", b"Lab ", b"acsp").ljust(64, b"\0")
    header += struct.pack(">3L", 0xF6D6, 0x10000, 0xD32D).ljust(60, b"\0")
    rest = header + struct.pack(">L4sLL", 1, b"A2B0", 144, len(table)) + table
    return struct.pack(">L", len(rest) + 4) + rest


class TestOrientation:
    EDGES = ["top", "top", "bottom", "bottom", "left", "right", "right", "left"]

    def red_edge(self, image: Pillow.Image) -> str:
        width, height = image.size
        middle = {
            "top": (width // 2, 3),
            "bottom": (width // 2, height - 4),
            "left": (3, height // 2),
            "right": (width - 4, height // 2),
        }
        colours = image.convert("RGB")
        [edge] = [name for name, place in middle.items() if is_near(colours.getpixel(place), RED)]
        return edge

    def wide(self) -> Pillow.Image:
        """A blue image with a red edge at its top, of which the left end is white."""
        image = Pillow.new("RGB", (128, 96), BLUE)
        image.paste(RED, (0, 0, 128, 24))
        image.paste("white", (0, 0, 24, 24))
        return image

    @pytest.mark.parametrize("format_", FORMATS)
    def test_a_thumbnail_is_turned_as_exif_demands(self, format_: str) -> None:
        for orientation, edge in enumerate(self.EDGES, start=1):
            exif = Pillow.Exif()
            exif[0x0112] = orientation
            turned = small(written(self.wide(), format_, exif=exif))
            assert self.red_edge(turned) == edge
            assert (turned.height > turned.width) is (orientation >= 5)
            corners = [(3, 3), (turned.width - 4, 3), (turned.width - 4, turned.height - 4)]
            corners += [(3, turned.height - 4)]
            is_white = [is_near(turned.convert("RGB").getpixel(place), (255,) * 3, 60) for place in corners]
            assert is_white.index(True) == [0, 1, 2, 3, 0, 1, 2, 3][orientation - 1], orientation

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_exif_has_either_byte_order(self, order: str) -> None:
        name = b"II" if order == "<" else b"MM"
        exif = name + struct.pack(f"{order}HLHHHLHH", 42, 8, 1, 0x0112, 3, 1, 6, 0)
        assert self.red_edge(small(written(self.wide(), "PNG", exif=exif))) == "right"

    @pytest.mark.parametrize(
        "exif",
        [
            b"II",
            b"neither II nor MM",
            b"II*\0\xff\xff\xff\xff",
            b"MM\0*\0\0\0\x08\xff\xff\x01\x12",
            b"MM\0*" + struct.pack(">LHHHLHH", 8, 1, 0x0112, 3, 1, 9, 0),
            b"MM\0*" + struct.pack(">LHHHLHH", 8, 1, 0x0112, 3, 1, 0, 0),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("format_", ["PNG", "WEBP"])
    def test_broken_exif_is_ignored(self, format_: str, exif: bytes) -> None:
        assert self.red_edge(small(written(self.wide(), format_, exif=exif))) == "top"


class TestColours:
    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
    @pytest.mark.parametrize(("profile", "colour"), [(SRGB, RED), (SWAPPED, BLUE)], ids=["sRGB", "other"])
    def test_they_are_those_of_the_profile(
        self, format_: str, profile: bytes, colour: tuple[int, int, int]
    ) -> None:
        content = written(Pillow.new("RGB", (99, 99), RED), format_, icc_profile=profile)
        assert is_near(small(content).getpixel((9, 9)), colour)

    def test_a_palette_has_a_profile_too(self) -> None:
        content = written(Pillow.new("RGB", (99, 99), RED).convert("P"), "PNG", icc_profile=SWAPPED)
        assert is_near(small(content).getpixel((9, 9)), BLUE)

    @pytest.mark.parametrize(
        "profile",
        [b"x", SWAPPED[:200], bytes(500), SWAPPED + b"mpet", SWAPPED + bytes(4 * 1024 * 1024)],
        ids=["short", "cut", "zeros", "of many elements", "huge"],
    )
    def test_an_unusable_profile_is_ignored(self, profile: bytes) -> None:
        content = written(Pillow.new("RGB", (99, 99), RED), "WEBP", icc_profile=profile)
        assert is_near(small(content).getpixel((9, 9)), RED)

    def test_inks_have_the_colours_of_their_profile(self) -> None:
        content = written(Pillow.new("CMYK", (99, 99), (255, 0, 0, 0)), "TIFF", icc_profile=red_inks())
        assert is_near(small(content).getpixel((9, 9)), RED)

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_a_profile_for_other_pixels_is_ignored(self, mode: str) -> None:
        image = Pillow.new("RGB", (99, 99), (90,) * 3).convert(mode)
        content = written(image, "TIFF", icc_profile=SWAPPED)
        assert is_near(small(content).getpixel((9, 9)), (90,) * 3)


@pytest.mark.parametrize("profile", [None, SWAPPED], ids=["no profile", "a profile"])
@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "RGB"])
def test_transparent_images_stay_transparent(mode: str, profile: bytes | None) -> None:
    image = Pillow.new("RGBA", (100, 100), (200, 200, 200, 255))
    image.paste((0, 0, 0, 0), (0, 0, 50, 100))
    options = {"transparency": (0, 0, 0)} if mode == "RGB" else {}
    result = small(written(image.convert(mode), "PNG", icc_profile=profile, **options))
    assert result.mode == "RGBA"
    alpha = result.getchannel("A")
    assert (alpha.getpixel((5, 30)), alpha.getpixel((58, 30))) == (0, 255)
    assert is_near(result.getpixel((58, 30)), (200, 200, 200, 255))


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_fine_lines_stay_sharp(format_: str) -> None:
    """The size is 3.2 times that of the thumbnail: a cheap reduction by 2 or 3 alone would blur it."""
    image = Pillow.new("RGB", (1024, 1024), "white")
    draw = ImageDraw.Draw(image)
    for at in range(0, 1024, 16):
        draw.rectangle((at, 0, at + 7, 1024), fill=(at % 256, 0, 90))
    fair = image.resize((320, 320), Pillow.Resampling.LANCZOS)
    options = {} if format_ == "PNG" else {"quality": 90}
    found = small(written(image, format_, **options), 320)
    [error] = ImageStat.Stat(ImageChops.difference(found.convert("L"), fair.convert("L"))).rms
    assert 20 * math.log10(255 / error) > 30


class TestHugeImages:
    def test_a_jpeg_is_decoded_at_a_smaller_size(self) -> None:
        content = written(Pillow.new("L", (4200, 4200), 90), "JPEG")
        assert is_near(small(content).getpixel((9, 9)), (90,) * 3)

    @pytest.mark.parametrize(
        ("format_", "options"), [("JPEG", {"progressive": True}), ("PNG", {})], ids=["progressive", "PNG"]
    )
    def test_what_needs_much_memory_is_refused(self, format_: str, options: dict[str, bool]) -> None:
        content = written(Pillow.new("L", (4200, 4200)), format_, **options)
        with pytest.raises(ImageError, match="4200x4200 pixels, more than 16777216"):
            thumbnail(content, SIDE)

    def test_a_progressive_jpeg_of_one_scan_is_refused(self) -> None:
        content = written(Pillow.new("L", (4200, 4200)), "JPEG", progressive=True)
        second_scan = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)
        with pytest.raises(ImageError, match="more than 16777216"):
            thumbnail(content[:second_scan] + b"\xff\xd9", SIDE)

    def test_a_truncated_jpeg_is_refused(self) -> None:
        content = written(Pillow.effect_noise((4200, 4200), 9), "JPEG")
        with pytest.raises(ImageError, match="truncated"):
            thumbnail(content[: len(content) // 2], SIDE)


@pytest.mark.parametrize(
    ("content", "limit"),
    [(scans(4096, 5001), "more than 500 scans"), (with_chunks(chunk(b"emPy") * 100_000), "100000 parts")],
    ids=["scans", "chunks"],
)
def test_what_would_take_minutes_is_not_decoded(content: bytes, limit: str) -> None:
    with pytest.raises(ImageError, match=limit):
        thumbnail(content, SIDE)


def test_a_png_with_a_long_text_is_shown() -> None:
    content = with_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(2**21))))
    with pytest.raises(ValueError, match="too large"):
        Pillow.open(BytesIO(content))
    assert content_type_of(content) == "image/png"
    assert small(content).size
