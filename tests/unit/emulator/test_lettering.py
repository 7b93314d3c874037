"""The caption of an image: scripts side by side, line breaks, and what no font has."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont

from airflow_provider_modelscope.emulator.lettering import FONTS, LONGEST, MISSING, Lettering

MIXED = "A postcard of 一座雨中的古城\uff0c2026"
WITHOUT_FONTS = Lettering(files=())


def written(lettering: Lettering, line: str) -> Image.Image:
    image = Image.new("L", (600, 40))
    lettering.write(ImageDraw.Draw(image), (5, 30), line, 20, (255,))
    return image


@pytest.fixture(scope="module")
def installed() -> Lettering:
    lettering = Lettering()
    if MISSING in lettering.readable(MIXED):
        pytest.skip(f"needs a font with Chinese, one of {', '.join(FONTS)}")
    return lettering


def test_chinese_and_latin_stand_in_one_line(installed: Lettering) -> None:
    assert installed.readable(MIXED) == MIXED
    assert installed.wrap(MIXED, 20, 600, 1) == [MIXED]
    # The Latin letters are those of Pillow's own font, wherever the Chinese comes from.
    own = Image.new("L", (600, 40))
    pen, latin = ImageDraw.Draw(own), "A postcard of "
    pen.text((5, 30), latin, 255, ImageFont.load_default(20), anchor="ls")
    end = 5 + round(installed.width(latin, 20))
    mixed = written(installed, MIXED)
    assert ImageChops.difference(own.crop((0, 0, end, 40)), mixed.crop((0, 0, end, 40))).getbbox() is None
    assert written(installed, "一座").tobytes() != written(installed, "座一").tobytes()  # boxes are all alike


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A cat, 30% off!", "A cat, 30% off!"),
        (MIXED, f"A postcard of {MISSING},2026"),
        ("一座, 古城", MISSING),
        ("café naïve ÅÉ", "cafe naive AE"),
        ("I ❤\ufe0f 😀 it", f"I {MISSING} it"),
        ("a\x00b\u202ec\ud800d\n\n e\u0301", "abcd e"),
        ("", ""),
        ("\u0301", ""),
        ("\U0010ffff\ue000", ""),
    ],
)
def test_what_no_font_has_is_marked_and_never_a_box(text: str, shown: str) -> None:
    assert WITHOUT_FONTS.readable(text) == shown
    box = ImageFont.load_default(20).getmask("\U0010ffff")
    for letter in WITHOUT_FONTS.readable(text):
        assert bytes(ImageFont.load_default(20).getmask(letter)) != bytes(box)


def test_a_file_that_is_not_installed_is_skipped() -> None:
    assert Lettering(files=["no-such-font.ttf"]).readable("Aж") == f"A{MISSING}"


def test_chinese_breaks_anywhere_but_before_punctuation(installed: Lettering) -> None:
    text = "一座雨中的古城,青瓦白墙,水墨画。" * 3
    lines = installed.wrap(text, 20, 160, 20)
    assert "".join(lines) == text
    assert all(line[0] not in ",。" for line in lines)
    assert all(0 < installed.width(line, 20) <= 160 for line in lines)


@pytest.mark.parametrize("width", [0, 1, 30, 200])
def test_every_width_ends_with_the_whole_text(width: int) -> None:
    text = "word and anotherwordthatislong " * 3
    lines = WITHOUT_FONTS.wrap(text, 20, width, 1000)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_text_that_does_not_fit_ends_in_dots() -> None:
    lines = WITHOUT_FONTS.wrap("word " * 4 * LONGEST, 20, 200, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("...")
    assert WITHOUT_FONTS.wrap("word", 20, 200, 0) == []
