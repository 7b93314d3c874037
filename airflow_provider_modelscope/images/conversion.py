"""Encode an image in another format, with the labels and parameters in its metadata."""

from __future__ import annotations

import logging
import math
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, cast

from airflow_provider_modelscope.images.check import own_settings
from airflow_provider_modelscope.images.metadata import metadata_for, readable
from airflow_provider_modelscope.images.parts import has_content_credentials, parts_of

if TYPE_CHECKING:
    from PIL import Image as Pillow

# JPEG without chroma subsampling, which smears coloured text. WebP cannot do without it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}

log = logging.getLogger(__name__)


def convert(file: IO[bytes], format_: str) -> tuple[memoryview, tuple[int, int]]:
    """Return the image of a file in one of the ``CONVERTIBLE`` formats: its bytes, and its width and height.

    Labels of AI-generated content and parameters in the metadata are kept. Transparency becomes white if the
    format has none. What else gets lost is named in a warning.

    :raises Exception: any error, if that format cannot hold the image or its labels.
    """
    from PIL import Image as Pillow

    output = BytesIO()
    if has_content_credentials(file):
        log.warning("The Content Credentials (C2PA) get lost in the conversion to %s", format_)
    with own_settings(), Pillow.open(readable(file)) as source:
        if getattr(source, "is_animated", False):
            log.warning("Converting only the first image to %s: the %s holds several", format_, source.format)
        source.load()
        target = in_mode_for(format_, source)
        target.save(output, format_, **_OPTIONS[format_], **metadata_for(file, source, target, format_))
    _check_end(output, format_)
    return output.getbuffer(), target.size


def _check_end(output: BytesIO, format_: str) -> None:
    """Check that the encoder wrote the file to its end; what it wrote is its own affair."""
    if format_ == "JPEG":
        is_finished = bytes(output.getbuffer()[-2:]) == b"\xff\xd9"
    else:
        *_, last = parts_of(output, format_)
        is_finished = last.end == output.getbuffer().nbytes
    if not is_finished:
        raise ValueError("the encoder did not finish the file")


def in_mode_for(format_: str, source: Pillow.Image) -> Pillow.Image:
    """Return the pixels in a mode that the format can hold: the same object if they are in it already."""
    from PIL import Image as Pillow

    if source.mode in ("I", "F") or source.mode.startswith("I;16"):
        source = _in_8_bits(source)
    if not source.has_transparency_data:
        return _in_mode("L" if source.mode in ("1", "L") and format_ != "WEBP" else "RGB", source)
    coloured = _in_mode("RGBA", source)
    if format_ != "JPEG":
        return coloured
    ground = Pillow.new("RGB", source.size, "white")
    ground.paste(coloured, mask=coloured.getchannel("A"))
    return ground


def _in_mode(mode: str, source: Pillow.Image) -> Pillow.Image:
    return source if source.mode == mode else source.convert(mode)


def _in_8_bits(source: Pillow.Image) -> Pillow.Image:
    """Return grey tones of 16 or 32 bits, or in floating point, as 8 bits; Pillow alone would clip them.

    White is the largest number of the range that they fit in. If they fit in none, it is the brightest tone,
    and black is the darkest.
    """
    tones = source.convert("F")
    black, white = cast("tuple[float, float]", tones.getextrema())  # there is one band
    ranges = {"I": (255, 65_535), "F": (1, 255, 65_535)}.get(source.mode, (65_535,))
    if black >= 0 and (fitting := [most for most in ranges if white <= most]):
        black, white = 0, fitting[0]
    elif not math.isfinite(white - black):
        black, white = 0, 1
    scale = 255 / ((white - black) or 1)
    scaled = tones.point(lambda tone: (tone - black) * scale + 0.5).convert("L")
    if isinstance(clear := source.info.get("transparency"), int):  # the tone that means transparency
        scaled.info["transparency"] = int((clear - black) * scale + 0.5)
    return scaled
