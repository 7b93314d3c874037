"""One image in a file: its format and size, and its conversion to another format with its labels kept.

This module does not know where an image comes from or goes to. Bytes are read from the file when they are
needed, so that many images cost the memory of one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import file_digest
from io import SEEK_END, BytesIO
from typing import IO, Self

from airflow_provider_modelscope.exceptions import BrokenImageError, ImageError, ImageStorageError
from airflow_provider_modelscope.images.check import check_image
from airflow_provider_modelscope.images.formats import FORMATS
from airflow_provider_modelscope.images.parts import Replacement, spliced


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that was checked completely. Close it, or use it in a ``with``, to close its file.

    :param file: The file that holds the original bytes, and nothing else.
    :param length: In bytes.
    :param format: Pillow's name of the format, detected from the bytes.
    :param width: In pixels.
    :param height: In pixels.
    """

    file: IO[bytes] = field(repr=False)
    length: int
    format: str
    width: int
    height: int

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the image in these bytes. Raises the same errors as :meth:`from_file`."""
        return cls.from_file(BytesIO(content))

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes]) -> Self:
        """Write bytes to a temporary file, and return the image in it.

        The file has no name, so it cannot be left behind: it disappears when it is closed.

        :raises ImageStorageError: if the temporary folder cannot hold it.
        :raises ImageError: as :meth:`from_file`; a ``BrokenImageError`` has the sha256 of the bytes. Errors
            of the chunks are passed on.
        """
        file = _temporary_file(chunks)
        with ExitStack() as opened:
            opened.callback(_close, file)
            try:
                image = cls.from_file(file)
            except BrokenImageError as error:
                error.sha256 = _sha256_of(file)
                raise
            opened.pop_all()
        return image

    @classmethod
    def from_file(cls, file: IO[bytes]) -> Self:
        """Return the image in a file. The image owns the file from then on.

        :raises ImageError: if it is not complete, or exceeds a limit; the file stays open.
        """
        length = file.seek(0, SEEK_END)
        format_, width, height = check_image(file)
        return cls(file=file, length=length, format=format_, width=width, height=height)

    def close(self) -> None:
        """Close the file, which deletes a temporary one."""
        _close(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def content(self) -> bytes:
        """The bytes, read from the file each time."""
        self.file.seek(0)
        return self.file.read()

    @property
    def content_type(self) -> str:
        """The MIME type, detected from the bytes."""
        return FORMATS[self.format][0]

    @property
    def suffix(self) -> str:
        """The file suffix of this format, with its dot."""
        return FORMATS[self.format][1][0]

    @cached_property  # no field, which dataclasses.replace would copy to an image with other bytes
    def sha256(self) -> str:
        """The checksum of the bytes in hexadecimal; computed once, and only if needed."""
        return _sha256_of(self.file)

    def spliced(self, replacements: Sequence[Replacement]) -> Self:
        """Return the image with some bytes of its metadata replaced. Nothing is decoded again.

        Its file is a view of this image's file: close this image last.
        """
        file = spliced(self.file, replacements)
        return replace(self, file=file, length=file.seek(0, SEEK_END))

    def converted(self, format_: str) -> Self:
        """Return the image in one of the ``CONVERTIBLE`` formats: itself if it has that format already.

        Labels of AI-generated content and parameters in the metadata are kept. Transparency becomes white
        if the format has none. The new image has a temporary file of its own. It is not decoded again.

        :raises ImageError: if that format cannot hold the image or its labels.
        :raises ImageStorageError: if the temporary folder cannot hold it.
        """
        if format_ == self.format:
            return self
        from airflow_provider_modelscope.images.conversion import convert

        try:
            content, (width, height) = convert(self.file, format_)
        except Exception as error:
            raise ImageError(
                f"The {self.format} of {self.width}x{self.height} pixels cannot become {format_}: {error}"
            ) from error
        file = _temporary_file([content])
        return type(self)(file=file, length=len(content), format=format_, width=width, height=height)


def _temporary_file(chunks: Iterable[bytes | memoryview]) -> IO[bytes]:
    """Write bytes to a new temporary file, and return it.

    :raises ImageStorageError: if the temporary folder cannot hold it. Errors of the chunks are passed on.
    """
    with ExitStack() as opened:
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
            opened.callback(_close, file)
            for chunk in chunks:
                file.write(chunk)
            file.flush()
        except OSError as error:
            raise ImageStorageError(
                f"The image cannot be written to this machine's temporary folder: {error}. Free space "
                "there, or set the environment variable TMPDIR to another folder"
            ) from error
        opened.pop_all()
    return file


def _sha256_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # it is a binary file


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk the rest of the buffer cannot be written either
        file.close()
