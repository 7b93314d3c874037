"""What the gallery shows of an image: its content type, and a small WebP of it."""

from __future__ import annotations

from io import BytesIO

from airflow_provider_modelscope.images.conversion import in_mode_for
from airflow_provider_modelscope.images.formats import FORMATS, MAX_PIXELS, format_of, open_image


def content_type_of(content: bytes) -> str:
    """Return the MIME type of an image, detected from its first bytes.

    :raises ImageError: if they are not those of an image.
    """
    with open_image(BytesIO(content)) as opened:
        return FORMATS[format_of(opened)][0]


def thumbnail(content: bytes, side: int) -> bytes:
    """Return an image, or the first frame of an animation, as a small WebP.

    :param side: Width and height in pixels, at most.
    :raises ImageError: if the bytes are not a complete image, or one of more than 16 Mi pixels.
    """
    output = BytesIO()
    with open_image(BytesIO(content), max_pixels=MAX_PIXELS // 4) as opened:
        opened.draft("RGB", (2 * side, 2 * side))  # a JPEG need not be decoded at its full size
        small = opened if opened.mode in ("RGB", "RGBA", "L") else in_mode_for("WEBP", opened)
        # The fastest settings with a good result: a page may request two hundred thumbnails.
        small.thumbnail((side, side), reducing_gap=1.0)
        in_mode_for("WEBP", small).save(output, "WEBP", quality=80, method=1)
    return output.getvalue()
