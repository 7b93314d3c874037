"""Writes text in several scripts: each character in the first font that has it."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING
from unicodedata import category, east_asian_width, normalize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import ImageDraw, ImageFont

FONTS = (
    # Latin, Greek, Cyrillic and symbols
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    # Chinese, Japanese and Korean
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "msyh.ttc",
    "simsun.ttc",
)
"""Fonts of Linux, macOS and Windows for what Pillow's own font lacks, which is all but English."""

MISSING = "[…]"
"""Stands for characters that no font has."""

LONGEST = 1000  # characters that are written at most
PROBE = 16  # pixels; the size at which glyphs are compared


class Lettering:
    """Pillow's own font and those of the machine.

    :param files: Names of font files, or paths. Those that are not installed are skipped.
    """

    def __init__(self, files: Sequence[str] = FONTS) -> None:
        self._paths = [None, *filter(None, map(_find, files))]
        self._chosen: dict[str, int | None] = {}

    def readable(self, text: str) -> str:
        """Return the text as one line, with :data:`MISSING` for what cannot be written."""
        text = normalize("NFC", " ".join(text[: 2 * LONGEST].split()))[:LONGEST]
        written = "".join(self._written(letter) for letter in text if letter.isprintable())
        return re.sub(r"\0(?:\W*\0)*", MISSING, written)

    def _written(self, letter: str) -> str:
        """Return the character, or what it is without its accent, or NUL if no font has either."""
        if self._choose(letter) is not None:
            return letter
        plain = [part for part in normalize("NFKD", letter) if not category(part).startswith("M")]
        return "\0" if any(self._choose(part) is None for part in plain) else "".join(plain)

    def wrap(self, text: str, size: int, width: float, max_lines: int) -> list[str]:
        """Return the text as lines of a width in pixels. The last one ends in "..." if more follows."""
        text = self.readable(text)
        lines: list[str] = []
        while text and len(lines) < max_lines:
            fits = bisect_right(
                range(1, len(text) + 1), width, key=lambda length: self.width(text[:length], size)
            )
            end = _last_break(text, fits)
            lines.append(text[:end].rstrip())
            text = text[end:].lstrip()
        if text and lines:
            lines[-1] = lines[-1][: max(1, len(lines[-1]) - 3)] + "..."
        return lines

    def width(self, line: str, size: int) -> float:
        """Return the width of a line in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(line, size))

    def write(
        self,
        pen: ImageDraw.ImageDraw,
        place: tuple[float, float],
        line: str,
        size: int,
        fill: tuple[int, ...],
    ) -> None:
        """Write a line from :meth:`wrap`. The place is the start of its baseline."""
        x, y = place
        for font, run in self._runs(line, size):
            pen.text((x, y), run, fill, font, anchor="ls")
            x += font.getlength(run)

    def _runs(self, line: str, size: int) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        for choice, letters in groupby(line, key=self._choose):
            yield _font(self._paths[choice or 0], size), "".join(letters)

    def _choose(self, letter: str) -> int | None:
        """Return the number of the first font that has the character."""
        if letter not in self._chosen:
            # Pillow does not say what a font lacks: it draws the same box for all of it.
            has_it = (number for number, path in enumerate(self._paths) if _drawn(path, letter) != _box(path))
            self._chosen[letter] = next(has_it, None)
        return self._chosen[letter]


def _find(file: str) -> str | None:
    from PIL import ImageFont

    try:
        return str(ImageFont.truetype(file).path)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)  # type: ignore[return-value]


@lru_cache(maxsize=64)
def _box(path: str | None) -> tuple[tuple[int, int], bytes]:
    return _drawn(path, "\U0010ffff")  # never a character


def _drawn(path: str | None, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = _font(path, PROBE).getmask(letter)
    return mask.size, bytes(mask)


def _last_break(text: str, fits: int) -> int:
    """Return where to end a line: at a space, or beside a Chinese character but not before punctuation."""
    if fits >= len(text):
        return len(text)
    for end in range(fits, 0, -1):
        before, after = text[end - 1], text[end]
        is_wide = east_asian_width(before) in "WF" or east_asian_width(after) in "WF"
        if after == " " or (is_wide and category(after) not in ("Pe", "Pf", "Po")):
            return end
    return max(1, fits)
