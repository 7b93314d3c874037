"""What the gallery shows of an image: its content type, and a small WebP of it."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import BrokenImageError
from airflow_provider_modelscope.images.check import check_limits
from airflow_provider_modelscope.images.conversion import in_mode_for
from airflow_provider_modelscope.images.formats import (
    FORMATS,
    MAX_PIXELS,
    format_of,
    only_image_errors,
    open_image,
)
from airflow_provider_modelscope.images.metadata import orientation_of, readable
from airflow_provider_modelscope.images.parts import format_of_parts

if TYPE_CHECKING:
    from PIL import Image as Pillow

_MAX_DECODED = MAX_PIXELS // 4  # pixels in memory: the API server makes several thumbnails at once
_MAX_PROFILE = 4 * 1024 * 1024  # bytes; profiles of presses have two megabytes


def content_type_of(content: bytes) -> str:
    """Return the MIME type of an image, detected from its first bytes.

    :raises ImageError: if they are not those of an image.
    """
    file = BytesIO(content)
    if format_ := format_of_parts(file):
        return FORMATS[format_][0]
    with open_image(file) as opened:
        return FORMATS[format_of(opened)][0]


def thumbnail(content: bytes, side: int) -> bytes:
    """Return an image, or the first frame of an animation, as a small WebP in sRGB that needs no turning.

    :param side: Width and height in pixels, at most.
    :raises ImageError: if the bytes are not a complete image, or one of more than 16 Mi pixels that cannot
        be decoded at a smaller size.
    """
    file, output = BytesIO(content), BytesIO()
    check_limits(file)
    with only_image_errors(file), open_image(readable(file, with_label=False)) as opened:
        if opened.width * opened.height > _MAX_DECODED:
            _shrink(opened, content, side)
        is_opaque = not opened.has_transparency_data
        can_be_resized = opened.mode in ("RGB", "L", "CMYK") if is_opaque else opened.mode == "RGBA"
        small = opened if can_be_resized else in_mode_for("WEBP", opened)
        # The fastest settings with a good result: a page may request two hundred thumbnails.
        small.thumbnail((side, side), reducing_gap=1.5)
        small = in_mode_for("WEBP", _in_srgb(small, opened.info.get("icc_profile") or b""))
        _turned(small, opened.info.get("exif") or b"").save(output, "WEBP", quality=80, method=1)
    return output.getvalue()


def _shrink(opened: Pillow.Image, content: bytes, side: int) -> None:
    """Let a JPEG be decoded at a smaller size.

    Not one of several scans: its decoder keeps all of its coefficients in memory, at any size.
    """
    full_size = f"{opened.width}x{opened.height}"
    if not opened.info.get("progressive") and content.count(b"\xff\xda") == 1:
        opened.draft(None, (2 * side, 2 * side))
    if opened.width * opened.height > _MAX_DECODED:
        raise BrokenImageError(f"The image has {full_size} pixels, more than {_MAX_DECODED}")


def _in_srgb(small: Pillow.Image, profile: bytes) -> Pillow.Image:
    """Convert the colours of an image to sRGB. A profile that is broken or for another mode is ignored."""
    # Each pixel passes all elements of an mpet tag, and few bytes can list thousands of them.
    if not profile or len(profile) > _MAX_PROFILE or b"mpet" in profile:
        return small
    try:
        from PIL import ImageCms  # Pillow may have been built without it

        source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        mode = "RGBA" if small.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(small, source, srgb, outputMode=mode)
    except Exception:  # of any type, as for hostile bytes everywhere
        return small
    return converted or small


def _turned(small: Pillow.Image, exif: bytes) -> Pillow.Image:
    """Turn and mirror an image as its EXIF demands."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation_of(exif))
    return small if turn is None else small.transpose(turn)
