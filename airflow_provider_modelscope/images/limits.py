"""How much work one image file may cause: the limits, and the errors that name them."""

from __future__ import annotations

from airflow_provider_modelscope.exceptions import BrokenImageError
from airflow_provider_modelscope.images.formats import MAX_PIXELS, check_size

MAX_FRAMES = 1000
MAX_PIXELS_OF_ALL_FRAMES = 2 * MAX_PIXELS


class Budget:
    """Counts the frames of one file and their pixels."""

    def __init__(self) -> None:
        self._frames = 0
        self._pixels = 0

    def take(self, width: int, height: int, *, frames: int = 1) -> None:
        """Count frames of one size, before they are decoded.

        :raises BrokenImageError: if they exceed a limit.
        """
        check_size(width, height)
        self._frames += frames
        if self._frames > MAX_FRAMES:
            raise too_many("frames", MAX_FRAMES)
        self._pixels += frames * width * height
        if self._pixels > MAX_PIXELS_OF_ALL_FRAMES:
            raise too_many("pixels in all frames together", MAX_PIXELS_OF_ALL_FRAMES)


def too_many(what: str, limit: int) -> BrokenImageError:
    """Return the error of a file that exceeds a limit."""
    return BrokenImageError(f"The image has more than {limit} {what}, so it is not decoded")
