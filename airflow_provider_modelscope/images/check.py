"""Check that a file is a whole image: nothing is cut off, and every pixel can be decoded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import IO, TYPE_CHECKING

from airflow_provider_modelscope.images.blocks import check_gif_blocks, check_jpeg_blocks, check_tags
from airflow_provider_modelscope.images.formats import Budget, format_of, only_image_errors, open_image
from airflow_provider_modelscope.images.parts import format_of_parts, parts_of, read_at
from airflow_provider_modelscope.images.png import check_png

if TYPE_CHECKING:
    from PIL import Image as Pillow

_settings = Lock()


def check_image(file: IO[bytes]) -> tuple[str, int, int]:
    """Return the format, the width and the height of a complete image.

    Only the pixels matter, those of all frames: odd metadata is not an error. Pillow decodes all formats but
    PNG, which takes less time and memory in pieces.

    :raises ImageError: if it is not complete, or exceeds a limit; the file stays open.
    """
    if format_of_parts(file) == "PNG":
        with only_image_errors(file):
            return ("PNG", *check_png(file))
    frames = check_limits(file)
    with own_settings(), open_image(file) as opened:
        found = (format_of(opened), opened.width, opened.height)
        if found[0] == "JPEG":
            _decode_jpegs(file, getattr(opened, "n_frames", 1))
        else:
            decoded = _decode_frames(opened)
            if frames not in (None, decoded):
                raise ValueError(f"only {decoded} of {frames} frames can be decoded")
    return found


def check_limits(file: IO[bytes]) -> int | None:
    """Refuse a file that would take minutes to decode, without decoding it; return the frames of a GIF.

    :raises ImageError: if it exceeds a limit, or ends within one of its blocks.
    """
    with only_image_errors(file):
        match format_of_parts(file):
            case "PNG":
                for _ in parts_of(file, "PNG"):
                    pass
            case "JPEG":
                check_jpeg_blocks(file)
            case None if read_at(file, 0, 4) == b"GIF8":
                return check_gif_blocks(file)
            case None if read_at(file, 0, 2) in (b"II", b"MM"):
                check_tags(file)
    return None


def _decode_jpegs(file: IO[bytes], images: int) -> None:
    """Decode all images of a JPEG, at an eighth of their size: every coefficient is read.

    Programs that remove the further images, or move them, may leave the list of their offsets as it was. So
    where no image starts, none is expected.
    """
    budget = Budget()
    for number in range(images):
        with open_image(file) as opened:  # a new one: Pillow 11 does not expect images of several sizes
            try:
                opened.seek(number)
            except (ValueError, SyntaxError):
                continue
            budget.take(opened.width, opened.height)
            opened.draft("L", (1, 1))
            opened.load()


def _decode_frames(opened: Pillow.Image) -> int:
    """Decode all frames, and return their number."""
    budget = Budget()
    for number in count():
        try:
            opened.seek(number)
        except EOFError:
            break
        budget.take(opened.width, opened.height)
        opened.load()
    return number


@contextmanager
def own_settings() -> Iterator[None]:
    """Decode in one thread at a time, without what this process may have set: the settings are global.

    Warnings may be errors. Pillow's LOAD_TRUNCATED_IMAGES completes an image that is cut off with grey, and
    its MAX_IMAGE_PIXELS may be less than our own limit.
    """
    from PIL import Image as Pillow, ImageFile

    with _settings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = ImageFile.LOAD_TRUNCATED_IMAGES, Pillow.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Pillow.MAX_IMAGE_PIXELS = False, None
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Pillow.MAX_IMAGE_PIXELS = settings
