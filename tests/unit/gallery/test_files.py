"""Which bytes are served as an image, and as its thumbnail."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.gallery.files import (
    MAX_BYTES,
    THUMBNAIL_SIDE,
    ImageUnavailableError,
    find_object,
    make_thumbnail,
    read_image,
    verify,
)
from airflow_provider_modelscope.xcoms import StoredImage
from tests.unit.gallery.conftest import Bucket, encoded, entry_of

if TYPE_CHECKING:
    from pathlib import Path

HAS_CHANGED = "does not contain this image"


def stored(file: Path, content: bytes, **facts: Any) -> StoredImage:
    file.write_bytes(content)
    return replace(parsed(entry_of(f"file://{file}", content)), **facts)


def parsed(entry: dict[str, Any]) -> StoredImage:
    image = StoredImage.from_json(entry)
    assert image
    return image


def read(image: StoredImage) -> tuple[bytes, str]:
    return read_image(find_object(image))


def thumbnail(image: StoredImage) -> bytes:
    content, content_type = make_thumbnail(find_object(image))
    assert content_type == "image/webp"
    return content


def check(image: StoredImage) -> None:
    verify(find_object(image))


READERS = (read, thumbnail, check)


def test_an_image_is_read_with_its_real_content_type(tmp_path: Path) -> None:
    content = encoded("JPEG")
    assert read(stored(tmp_path / "a.png", content)) == (content, "image/jpeg")


@pytest.mark.parametrize("reader", READERS)
def test_an_overwritten_image_is_not_shown(tmp_path: Path, reader: Any) -> None:
    image = stored(tmp_path / "a.png", encoded())
    (tmp_path / "a.png").write_bytes(encoded(size=(9, 9)))
    with pytest.raises(ImageUnavailableError, match=HAS_CHANGED):
        reader(image)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_with_another_checksum_is_not_shown(tmp_path: Path, reader: Any) -> None:
    image = stored(tmp_path / "a.png", encoded(), sha256="00" * 32)
    with pytest.raises(ImageUnavailableError, match=HAS_CHANGED):
        reader(image)


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_was_shown_is_gone_when_it_is_deleted(tmp_path: Path, reader: Any) -> None:
    image = stored(tmp_path / "a.png", encoded())
    reader(image)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageUnavailableError, match="moved, deleted or overwritten"):
        reader(image)


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_was_shown_is_gone_when_it_is_overwritten(tmp_path: Path, reader: Any) -> None:
    image = stored(tmp_path / "a.png", encoded())
    reader(image)
    (tmp_path / "b.png").write_bytes(bytes(image.size_bytes))
    (tmp_path / "b.png").replace(tmp_path / "a.png")
    with pytest.raises(ImageUnavailableError, match=HAS_CHANGED):
        reader(image)
    (tmp_path / "a.png").write_bytes(encoded())
    reader(image)


@pytest.mark.parametrize("content", [b"root:x:0:0", b"<svg onload='alert(1)'/>", b"<html>"], ids=repr)
def test_other_files_are_not_shown(tmp_path: Path, content: bytes) -> None:
    image = stored(tmp_path / "a.png", content)
    with pytest.raises(ImageUnavailableError, match="not an image in a supported format"):
        read(image)
    with pytest.raises(ImageUnavailableError, match="not an image"):
        thumbnail(image)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    image = stored(tmp_path / "a.png", encoded())
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageUnavailableError, match=HAS_CHANGED):
        read(image)


def test_one_byte_more_than_expected_is_read_at_most(bucket: Bucket) -> None:
    image = parsed(bucket.put_image(encoded()))
    bucket.pipe_file("/bucket/a.png", encoded() + b"\0" * 2**20)
    with pytest.raises(ImageUnavailableError, match=HAS_CHANGED):
        read(image)
    assert 0 < bucket.bytes_read <= image.size_bytes + 1


def test_a_huge_image_is_not_read(bucket: Bucket) -> None:
    image = parsed(bucket.put_image(encoded(), size_bytes=MAX_BYTES + 1))
    with pytest.raises(ImageUnavailableError, match="up to 64 MiB"):
        read(image)
    assert bucket.reads == 0


@pytest.mark.parametrize("uri", ["http://169.254.169.254/latest", "nonsense", "", "s3://", "ftp://a/b"])
def test_an_address_outside_object_storage_is_not_read(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ImageUnavailableError, match=f"cannot open|{HAS_CHANGED}"):
        read(stored(tmp_path / "a.png", encoded(), uri=uri))


def test_an_unknown_connection_is_named(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="the extra s3")
    facts = {"uri": "s3://bucket/a.png", "storage_conn_id": "unknown_id"}
    with pytest.raises(ImageUnavailableError, match="unknown_id"):
        read(stored(tmp_path / "a.png", encoded(), **facts))


class TestThumbnail:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"])
    def test_it_is_a_small_webp(self, tmp_path: Path, mode: str) -> None:
        format_ = "TIFF" if mode == "CMYK" else "PNG"
        content = thumbnail(stored(tmp_path / "a.png", encoded(format_, mode=mode)))
        with Pillow.open(BytesIO(content)) as opened:
            assert (opened.format, opened.size) == ("WEBP", (THUMBNAIL_SIDE, 250))

    def test_a_truncated_image_has_none(self, tmp_path: Path) -> None:
        with pytest.raises(ImageUnavailableError, match="Cannot make a thumbnail"):
            thumbnail(stored(tmp_path / "a.png", encoded("JPEG", (2000, 2000))[:-9000]))

    def test_an_image_with_too_many_pixels_has_none(self, tmp_path: Path) -> None:
        with pytest.raises(ImageUnavailableError, match="too many pixels"):
            thumbnail(stored(tmp_path / "a.png", encoded(size=(5000, 5000), mode="1")))

    def test_it_is_made_once_from_an_unchanged_object(self, bucket: Bucket) -> None:
        image = parsed(bucket.put_image(encoded()))
        assert thumbnail(image) is thumbnail(image)
        assert bucket.reads == 1
        bucket.put_image(encoded())
        assert thumbnail(image)
        assert bucket.reads == 2

    def test_it_is_not_shown_for_another_checksum(self, bucket: Bucket) -> None:
        image = parsed(bucket.put_image(encoded()))
        assert thumbnail(image)
        with pytest.raises(ImageUnavailableError, match=HAS_CHANGED):
            thumbnail(replace(image, sha256="00" * 32))


def test_an_unchanged_object_is_verified_without_reading_it_again(bucket: Bucket) -> None:
    images = [parsed(bucket.put_image(encoded(), name=name)) for name in ("a.png", "b.png", "c.png")]
    for image, reader in zip(images, READERS, strict=True):
        reader(image)
        check(image)
        check(image)
    assert bucket.reads == len(images)


def test_few_verified_objects_are_remembered(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_modelscope.gallery.files._MAX_VERIFIED", 1)
    monkeypatch.setattr("airflow_provider_modelscope.gallery.files._verified", OrderedDict())
    images = [parsed(bucket.put_image(encoded(), name=name)) for name in ("a.png", "b.png")]
    for image in (*images, *images):
        check(image)
        check(image)
    assert bucket.reads == 4
