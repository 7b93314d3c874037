"""Check that a file is a whole image: nothing is cut off, and every pixel can be decoded."""

from __future__ import annotations

import warnings
from typing import IO

from airflow_provider_modelscope.images.formats import format_of, open_image


def check_image(file: IO[bytes]) -> tuple[str, int, int]:
    """Return the format, the width and the height of a complete image.

    :raises ImageError: if it is not a complete image of at most 64 Mi pixels; the file stays open.
    """
    # Odd metadata is not an error. Not in open_image: warning filters belong to the process, and the gallery
    # opens images in several threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file) as opened:
            opened.verify()  # reads checksums, but leaves the object unusable
        with open_image(file) as opened:
            opened.load()
    return format_of(opened), opened.width, opened.height
