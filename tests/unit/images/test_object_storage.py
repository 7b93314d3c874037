"""Object storage: destinations are checked first, images are stored whole, pictures to edit are inlined."""

from __future__ import annotations

import base64
import errno
import json
import os
import resource
import sys
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from airflow.providers.common.compat.sdk import BaseHook, HookLineageCollector
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.images.sources import MAX_SOURCE_BYTES, inline_images
from airflow_provider_modelscope.protocol.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

TEN_MIB = 10 * 1024 * 1024
HOSTILE_IDS = [
    "../../escaped",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..",
    ".",
    "%2e%2e%2fescaped",
    "?versionId=1",
    "#fragment",
    "conn@bucket",
    "s3://bucket/key",
    "a b\n\0c",
    "一只猫",
    "x" * 240,
]


class Store(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """An object store in memory; what it is told beside the bytes is kept in ``told``."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.told: dict[str, Any] = {}
        self.opened_with: list[str | None] = []

    @property
    def objects(self) -> dict[str, bytes]:
        return {path.removeprefix("/"): file.getvalue() for path, file in self.store.items()}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
        self.told = told
        super().pipe_file(path, value, mode)


class AzureError(Exception):
    """As adlfs lets them through: no OSError, but with the answer's status."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class GoogleError(Exception):
    """As gcsfs has them, whose ``code`` is a number or a text."""

    def __init__(self, message: str, code: int | str) -> None:
        super().__init__(message)
        self.code = code


class Register(Protocol):
    def __call__(self, protocol: str, store: Store | None = None) -> Store: ...


@pytest.fixture
def filesystems(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Airflow knows of filesystems, and no stores that it opened before."""
    # Where providers' filesystems are registered moved after Airflow 3.1.
    module = import_module("airflow.sdk.io.fs" if find_spec("airflow.sdk.io.fs") else "airflow.io")
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    known: dict[str, Any] = module._register_filesystems()
    return known


@pytest.fixture
def register(filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Register:
    """Make a store known as a provider does, whose function asks Airflow for the connection."""

    def registered(protocol: str, store: Store | None = None) -> Store:
        opened = store or Store()

        def get_fs(conn_id: str | None) -> Store:
            host = None if conn_id is None else BaseHook.get_connection(conn_id).host
            opened.opened_with.append(host)
            return opened

        monkeypatch.setitem(filesystems, protocol, get_fs)
        return opened

    return registered


@pytest.fixture
def memory(register: Register) -> Store:
    return register("memory")


def encoded(format_: str = "PNG", side: int = 16, **options: Any) -> bytes:
    file = BytesIO()
    Pillow.effect_noise((side, side), 60).save(file, format_, **options)
    return file.getvalue()


def image(format_: str = "PNG", side: int = 16) -> Image:
    return Image.from_bytes(encoded(format_, side))


def of_size(size: int) -> bytes:
    """Return a PNG of exactly so many bytes."""

    def padded(padding: int) -> bytes:
        chunks = PngInfo()
        chunks.add(b"paDd", bytes(padding))
        file = BytesIO()
        Pillow.new("L", (8, 8)).save(file, "PNG", pnginfo=chunks)
        return file.getvalue()

    return padded(size - len(padded(0)))


def store(destination: str, stored: Image, generation_id: str = "42", number: int = 1) -> str:
    return Destination.parse(destination).store(stored, generation_id=generation_id, number=number)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("destination", "problem"),
    [
        (None, "None: write a URI such as"),
        (42, "42: write a URI such as"),
        (Path("/data/cats/"), "write a URI such as 's3://bucket/folder/' or 'file:///folder/name.png'"),
        ("", "'': write a URI"),
        ("None", "write a URI"),
        ("cat.png", "write a URI"),
        ("cats/", "write a URI"),
        ("/data/cats/", "write a URI"),
        ("./cats/", "write a URI"),
        ("~/cats/", "write a URI"),
        ("C:\\cats\\", "write a URI"),
        ("file:/data/cats/", "write a URI"),
        ("data:image/png,cats/", "write a URI"),
        ("://bucket/cats/", "write a URI"),
        (" s3://bucket/cats/", "write a URI"),
        ("{{ var.value.folder }}", "write a URI"),
        ("memory://bucket/../cats/", "'.' and '..' may not stand in it"),
        ("memory://bucket/cats/..", "'.' and '..' may not stand in it"),
        ("memory://bucket/cats/.", "'.' and '..' may not stand in it"),
        ("file:///data/./cats/", "'.' and '..' may not stand in it"),
        ("file:///../cats/", "'.' and '..' may not stand in it"),
        ("memory://bucket/cats/?versionId=1", "'?', '#', '\\\\' and control characters may not stand in it"),
        ("memory://bucket/cats?/", "'?', '#'"),
        ("memory://bucket/cat#1.png", "'?', '#'"),
        ("memory://bucket\\cats/", "'?', '#'"),
        ("memory://bucket/cats\\", "'?', '#'"),
        ("memory://bucket/cats\0/", "control characters"),
        ("memory://bucket/cats/\n", "control characters"),
        ("memory://bucket/\tcats/", "control characters"),
        ("memory://bucket/cats\u200b/", "control characters"),
        ("memory://bucket/cats\u2028/", "control characters"),
        ("file://server/cats/", "a local path has three slashes: 'file:///folder/'"),
        ("file://cats/", "a local path has three slashes"),
        ("file://localhost/data/cats/", "a local path has three slashes"),
        ("file://", "a local path has three slashes"),
        ("local://cats/", "a local path has three slashes"),
        ("memory:///cats/", "it names no bucket"),
        ("memory://", "it names no bucket"),
        ("memory://my_conn@/cats/", "it names no bucket"),
        ("memory://bucket", "end it with '/' to store into the bucket, or name an object"),
        ("memory://my_conn@bucket", "end it with '/'"),
        ("memory://[bucket/cats/", "Invalid IPv6 URL"),
        ("memory://bu\u2100ket/cats/", "invalid characters under NFKC"),
        ("memory://bucket/cat.gif", "images can be had as .png, .jpg or .webp, or unchanged under other"),
        ("memory://bucket/cat.GIF", "images can be had as"),
        ("memory://bucket/cat.tif", "images can be had as"),
        ("memory://bucket/cat.tiff", "images can be had as"),
        ("memory://bucket/cat.bmp", "images can be had as"),
        ("memory://bucket/cat.avif", "images can be had as"),
        ("memory://bucket/cat.svg", "images can be had as"),
        ("unheard-of://bucket/cats/", "cannot be opened"),
        ("https://bucket.example/cats/", "cannot be opened (No filesystem registered for scheme https)"),
        ("ftp://server/cats/", "cannot be opened (No filesystem registered for scheme ftp)"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_and_the_error_says_what_can(
    destination: Any, problem: str, memory: Store
) -> None:
    with pytest.raises(InvalidDestinationError) as raised:
        Destination.parse(destination)
    assert str(raised.value).startswith(f"destination = {destination!r}: ")
    assert problem in str(raised.value)
    assert not memory.objects


@pytest.mark.parametrize(
    ("destination", "format_"),
    [
        ("memory://bucket/", None),
        ("memory://bucket/cats/", None),
        ("memory://bucket/cats.png/", None),
        ("memory://bucket/cat", None),
        ("memory://bucket/cat.bin", None),
        ("memory://bucket/cat.latest", None),
        ("memory://bucket/cat.png", "PNG"),
        ("memory://bucket/cat.jpg", "JPEG"),
        ("memory://bucket/cat.jpeg", "JPEG"),
        ("memory://bucket/cat.webp", "WEBP"),
        ("memory://bucket/CAT.PNG", "PNG"),
        ("memory://bucket/cat.webp.jpg", "JPEG"),
        ("memory://bucket/..cat/...jpg", "JPEG"),
        ("memory://bucket/一只 猫/%41 100%.png", "PNG"),
        ("file:///data/cat.png", "PNG"),
        ("local:///data/cats/", None),
        ("file:///", None),
    ],
)
def test_only_an_objects_suffix_asks_for_a_format(
    destination: str, format_: str | None, memory: Store
) -> None:
    assert Destination.parse(destination).format == format_


def test_a_folder_that_is_there_needs_its_slash(tmp_path: Path) -> None:
    (tmp_path / "cats.png").mkdir()
    for uri in (f"file://{tmp_path}", f"file://{tmp_path}/cats.png", f"local://{tmp_path}"):
        with pytest.raises(InvalidDestinationError, match="that is a folder: end it with '/'"):
            Destination.parse(uri)
        assert Destination.parse(f"{uri}/").uri == f"{uri}/"


def test_a_destination_is_checked_without_writing(tmp_path: Path, memory: Store) -> None:
    Destination.parse(f"file://{tmp_path}/new/folder/")
    Destination.parse("memory://bucket/folder/cat.png")
    assert not list(tmp_path.iterdir())
    assert not memory.objects


class TestConnections:
    def test_a_store_whose_provider_is_not_installed_names_the_extra(
        self, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for protocol in ("s3", "gs", "abfs"):
            monkeypatch.delitem(filesystems, protocol, raising=False)
            with pytest.raises(
                InvalidDestinationError,
                match=rf"'{protocol}://bucket/cats/': cannot be opened \(No filesystem registered for scheme "
                rf"{protocol}\): install the extra of that store \(s3, gcs or azure\)",
            ):
                Destination.parse(f"{protocol}://bucket/cats/")

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("Must provide either a connection_string or account_name with credentials!!"),
            FileNotFoundError(2, "No such file or directory", "/secrets/key.json"),
            PermissionError(13, "Permission denied", "/secrets/key.json"),
        ],
    )
    def test_a_store_that_cannot_use_its_connection_asks_for_another_one(
        self, error: Exception, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def get_fs(conn_id: str | None) -> None:
            raise error

        monkeypatch.setitem(filesystems, "abfs", get_fs)
        uri = "abfs://container/cats/"
        with pytest.raises(InvalidDestinationError) as raised:
            Destination.parse(uri, storage_conn_id="mine")
        assert raised.value.message.endswith(f"cannot be opened ({error}): correct the connection 'mine'")
        with pytest.raises(InvalidDestinationError, match=r"name a connection to it in storage_conn_id$"):
            Destination.parse(uri)

    def test_a_provider_without_its_own_extra_says_so(
        self, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def get_fs(conn_id: str | None) -> None:
            raise ImportError("requires the s3fs library")

        monkeypatch.setitem(filesystems, "s3", get_fs)
        with pytest.raises(InvalidDestinationError, match=r"requires the s3fs library\): install the extra"):
            Destination.parse("s3://bucket/cats/")

    @pytest.mark.parametrize(
        ("destination", "storage_conn_id"), [("s3://bucket/", "nowhere"), ("s3://nowhere@bucket/", None)]
    )
    def test_a_connection_that_is_not_defined_is_named(
        self, destination: str, storage_conn_id: str | None, register: Register
    ) -> None:
        register("s3")
        with pytest.raises(InvalidDestinationError, match=r"nowhere.* storage_conn_id names a connection"):
            Destination.parse(destination, storage_conn_id=storage_conn_id)

    @pytest.mark.parametrize(
        ("destination", "storage_conn_id", "host"),
        [
            ("s3://bucket/cats/", "mine", "mine.example"),
            ("s3://mine@bucket/cats/", None, "mine.example"),
            ("s3://mine@bucket/cats/", "", "mine.example"),
            ("s3://other@bucket/cats/", "mine", "mine.example"),
        ],
    )
    def test_the_connection_opens_the_store_and_stands_in_no_uri(
        self,
        destination: str,
        storage_conn_id: str | None,
        host: str,
        register: Register,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("mine", "other"):
            connection = {"conn_type": "aws", "host": f"{name}.example", "password": "secret"}
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
        s3 = register("s3")
        uri = Destination.parse(destination, storage_conn_id=storage_conn_id).store(
            image(), generation_id="42", number=1
        )
        assert uri == "s3://bucket/cats/42-1.png"
        assert set(s3.opened_with) == {host}
        assert list(s3.objects) == ["bucket/cats/42-1.png"]

    def test_only_a_connection_is_cut_off_a_uri(self, memory: Store) -> None:
        for destination in ("memory://bucket/me@home/", "memory://bucket/a://b@c/"):
            assert store(destination, image()) == f"{destination}42-1.png"


class TestNames:
    @pytest.mark.parametrize(
        ("format_", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")]
    )
    def test_in_a_folder_images_are_named_after_the_generation_and_their_content(
        self, format_: str, suffix: str, tmp_path: Path
    ) -> None:
        images = [image(format_, side) for side in (10, 20, 30)]
        destination = Destination.parse(f"file://{tmp_path}/cats/")
        uris = [
            destination.store(one, generation_id="4003503", number=number)
            for number, one in enumerate(images, start=1)
        ]
        assert uris == [f"file://{tmp_path}/cats/4003503-{number}.{suffix}" for number in (1, 2, 3)]
        assert files(tmp_path / "cats") == {
            f"4003503-{number}.{suffix}": one.content for number, one in enumerate(images, start=1)
        }

    @pytest.mark.parametrize(
        ("name", "second"),
        [
            ("cat.png", "cat-2.png"),
            ("cat", "cat-2"),
            ("cat.v1.jpg", "cat.v1-2.jpg"),
            ("一只 猫.webp", "一只 猫-2.webp"),
            (".hidden", ".hidden-2"),
        ],
    )
    def test_an_object_keeps_its_name_and_the_second_image_is_numbered(
        self, name: str, second: str, memory: Store
    ) -> None:
        for folder in ("memory://bucket.io/v1.2/", "memory://bucket.io/"):
            uris = [store(folder + name, image(), number=number) for number in (1, 2)]
            assert uris == [folder + name, folder + second]
            assert {uri.removeprefix("memory://") for uri in uris} <= memory.objects.keys()

    def test_a_retry_writes_the_same_object_again(self, tmp_path: Path) -> None:
        first, second = image(side=10), image(side=40)
        assert store(f"file://{tmp_path}/", first) == store(f"file://{tmp_path}/", second)
        assert files(tmp_path) == {"42-1.png": second.content}

    def test_hostile_ids_name_nothing_outside_the_folder(self, tmp_path: Path, memory: Store) -> None:
        (tmp_path / "cats").mkdir()
        for destination in (f"file://{tmp_path}/cats/", "memory://bucket/cats/"):
            uris = {store(destination, image(), generation_id) for generation_id in HOSTILE_IDS}
            assert len(uris) == len(HOSTILE_IDS)
            assert all(uri.startswith(destination) for uri in uris)
        names = {uri.rpartition("/")[2] for uri in uris}
        assert files(tmp_path).keys() == {f"cats/{name}" for name in names}
        assert memory.objects.keys() == {f"bucket/cats/{name}" for name in names}

    def test_an_id_that_is_too_long_for_a_name_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidDestinationError, match=r"cannot be written .*too long"):
            store(f"file://{tmp_path}/", image(), "x" * 300)
        assert not files(tmp_path)

    def test_a_local_name_may_be_as_long_as_the_filesystem_lets_it(self, tmp_path: Path) -> None:
        name = "猫" * 83 + ".png"  # 253 bytes
        store(f"file://{tmp_path}/{name}", image())
        assert list(files(tmp_path)) == [name]

    @pytest.mark.parametrize(
        "path",
        ["with space/a  b.png", "一只猫/画.png", "100%/%41%2F%2e%2e.png", "a+b&c=d/e;f,g.png", "it's/~.png"],
    )
    def test_a_path_is_taken_letter_for_letter(self, path: str, tmp_path: Path, memory: Store) -> None:
        stored = image()
        assert store(f"file://{tmp_path}/{path}", stored) == f"file://{tmp_path}/{path}"
        assert files(tmp_path) == {path: stored.content}
        assert store(f"memory://bucket/{path}", stored) == f"memory://bucket/{path}"
        assert memory.objects == {f"bucket/{path}": stored.content}


class TestWholeOrNot:
    @contextmanager
    def full_disk(self, at: int) -> Iterator[None]:
        """Let no file grow beyond so many bytes."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @pytest.mark.parametrize(
        "before", [{}, {"cat.png": b"the cat of yesterday"}], ids=["new", "there already"]
    )
    def test_a_disk_that_fills_up_leaves_what_stood_there_and_nothing_else(
        self, before: dict[str, bytes], tmp_path: Path
    ) -> None:
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        large = image(side=64)
        with self.full_disk(len(large.content) // 2), pytest.raises(ImageStorageError, match="large"):
            store(f"file://{tmp_path}/cat.png", large)
        assert files(tmp_path) == before
        store(f"file://{tmp_path}/cat.png", large)
        assert files(tmp_path) == {"cat.png": large.content}

    def test_a_folder_that_came_into_the_way_stays_and_no_file_is_left(self, tmp_path: Path) -> None:
        destination = Destination.parse(f"file://{tmp_path}/cat.png")
        (tmp_path / "cat.png").mkdir()
        (tmp_path / "cat.png" / "kept").write_bytes(b"kept")
        with pytest.raises(InvalidDestinationError, match="IsADirectoryError"):
            destination.store(image(), generation_id="42", number=1)
        assert files(tmp_path) == {"cat.png/kept": b"kept"}

    def test_nobody_who_reads_meanwhile_sees_another_than_the_old_or_the_new_file(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "cat.png").write_bytes(b"the cat of yesterday")
        with (tmp_path / "cat.png").open("rb") as reader:
            store(f"file://{tmp_path}/cat.png", image())
            assert reader.read() == b"the cat of yesterday"

    def test_a_put_that_fails_leaves_what_stood_there(self, register: Register) -> None:
        class Failing(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
                if b"the cat" not in value:
                    raise ConnectionResetError("after half of it")
                super().pipe_file(path, value, mode)

        s3 = register("s3", Failing())
        s3.pipe_file("bucket/cat.png", b"the cat of yesterday")
        with pytest.raises(
            ImageStorageError,
            match=r"^s3://bucket/cat.png was not stored .ConnectionResetError: after half",
        ):
            store("s3://bucket/cat.png", image())
        assert s3.objects == {"bucket/cat.png": b"the cat of yesterday"}

    def test_a_store_that_holds_less_than_it_was_given_is_an_error(self, register: Register) -> None:
        class Forgetful(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
                super().pipe_file(path, value[:100], mode)

        register("s3", Forgetful())
        stored = image()
        with pytest.raises(
            ImageStorageError,
            match=f"^s3://bucket/cat.png: It was given {stored.length} bytes and holds 100: store it again",
        ):
            store("s3://bucket/cat.png", stored)

    def test_what_another_task_stored_there_meanwhile_is_not_removed(self, register: Register) -> None:
        class Shared(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
                super().pipe_file(path, b"another task's image", mode)

        s3 = register("s3", Shared())
        with pytest.raises(ImageStorageError):
            store("s3://bucket/cat.png", image())
        assert s3.objects == {"bucket/cat.png": b"another task's image"}

    @pytest.mark.parametrize("before", [b"", b"the cat of yesterday"], ids=["new", "there already"])
    def test_half_an_object_is_removed_where_a_store_shows_it(
        self, before: bytes, register: Register
    ) -> None:
        class Half(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
                super().pipe_file(path, value[:50], mode)
                raise ConnectionResetError("after half of it")

        memory = register("memory", Half())
        if before:
            memory.open("bucket/cat.png", "wb", data=before)
        with pytest.raises(ImageStorageError, match="after half of it"):
            store("memory://bucket/cat.png", image())
        assert not memory.objects

    def test_what_stood_there_stays_where_a_store_failed_before_it_wrote(self, register: Register) -> None:
        class Away(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
                raise TimeoutError("no answer")

        memory = register("memory", Away())
        memory.open("bucket/cat.png", "wb", data=b"the cat of yesterday")
        with pytest.raises(ImageStorageError, match="no answer"):
            store("memory://bucket/cat.png", image())
        assert memory.objects == {"bucket/cat.png": b"the cat of yesterday"}

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (FileNotFoundError("The specified bucket does not exist"), InvalidDestinationError),
            (PermissionError("Access Denied"), InvalidDestinationError),
            (OSError(errno.EROFS, "Read-only file system"), InvalidDestinationError),
            (AzureError("no such container", 404), InvalidDestinationError),
            (AzureError("not this account", 403), InvalidDestinationError),
            (AzureError("busy", 503), ImageStorageError),
            (OSError("Forbidden: https://storage.googleapis.com/upload"), InvalidDestinationError),
            (GoogleError("no such account", 401), InvalidDestinationError),
            (GoogleError("no such account", "401"), InvalidDestinationError),
            (GoogleError("busy", 503), ImageStorageError),
            (OSError(errno.ENOSPC, "No space left on device"), ImageStorageError),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), ImageStorageError),
            (ConnectionResetError("reset by peer"), ImageStorageError),
            (RuntimeError("something of its own"), ImageStorageError),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("protocol", ["s3", "memory"])
    def test_a_store_that_refuses_for_good_ends_the_task_and_another_is_tried_again(
        self, protocol: str, fault: Exception, error: type[ModelScopeError], register: Register
    ) -> None:
        class Failing(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **told: Any) -> None:
                raise fault

        opened = register(protocol, Failing())
        with pytest.raises(error, match=f"{protocol}://bucket/cat.png.*{fault.args[-1]}") as raised:
            store(f"{protocol}://bucket/cat.png", image())
        assert type(raised.value) is error
        assert not opened.objects

    def test_a_folder_that_takes_no_file_ends_the_task(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: Any, **__: Any) -> None:  # root may write anywhere, so no folder's mode would do
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "open", refused)
        with pytest.raises(InvalidDestinationError, match=r"cannot be written .*Read-only file system"):
            store(f"file://{tmp_path}/cat.png", image())
        assert not files(tmp_path)

    def test_the_size_is_read_from_the_store_and_not_from_what_is_remembered_of_it(
        self, register: Register
    ) -> None:
        class Remembering(Store):
            def __init__(self) -> None:
                super().__init__()
                self.remembered: dict[str, Any] = {}

            def info(self, path: str, **options: Any) -> Any:
                if path not in self.remembered:
                    self.remembered[path] = super().info(path, **options)
                return self.remembered[path]

            def invalidate_cache(self, path: str | None = None) -> None:
                self.remembered.clear()

        s3 = register("s3", Remembering())
        for side in (10, 40):
            assert store("s3://bucket/cat.png", image(side=side)) == "s3://bucket/cat.png"
        assert s3.size("bucket/cat.png") > 1000

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
    def test_a_files_mode_follows_the_umask(self, umask: int, tmp_path: Path) -> None:
        before = os.umask(umask)
        try:
            store(f"file://{tmp_path}/cat.png", image())
        finally:
            assert os.umask(before) == umask
        assert (tmp_path / "cat.png").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    ("protocol", "argument"),
    [
        ("s3", "ContentType"),
        ("s3a", "ContentType"),
        ("gs", "content_type"),
        ("gcs", "content_type"),
        ("memory", None),
    ],
)
@pytest.mark.parametrize(("format_", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_a_store_that_shows_objects_is_told_their_content_type(
    protocol: str, argument: str | None, format_: str, content_type: str, register: Register
) -> None:
    opened = register(protocol)
    stored = image(format_)
    uri = store(f"{protocol}://bucket/cats/", stored)
    assert opened.objects == {uri.removeprefix(f"{protocol}://"): stored.content}
    assert opened.told == ({argument: content_type} if argument else {})


@pytest.mark.parametrize("protocol", ["abfs", "abfss"])
def test_azure_is_told_the_content_type_in_an_object_of_its_own(
    protocol: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its library comes with the azure extra, which the tests go without.
    library = SimpleNamespace(ContentSettings=lambda content_type: ("settings", content_type))
    monkeypatch.setitem(sys.modules, "azure.storage.blob", library)
    opened = register(protocol)
    store(f"{protocol}://container/cats/", image("JPEG"))
    assert opened.told == {"content_settings": ("settings", "image/jpeg")}


class TestLineage:
    @pytest.fixture
    def collector(self, monkeypatch: pytest.MonkeyPatch) -> HookLineageCollector:
        """What Airflow gives where something reads lineage, such as OpenLineage."""
        collector = HookLineageCollector()  # type: ignore[no-untyped-call]
        monkeypatch.setattr(
            "airflow.providers.common.compat.sdk.get_hook_lineage_collector", lambda: collector
        )
        return collector

    def test_each_stored_image_is_reported_without_the_connection(
        self,
        collector: HookLineageCollector,
        register: Register,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "aws"}')
        register("s3")
        expected = [
            store(destination, image(), number=number)
            for destination in (f"file://{tmp_path}/", "s3://mine@bucket/cats/")
            for number in (1, 2)
        ]
        assert [output.asset.uri for output in collector.collected_assets.outputs] == expected
        assert not collector.collected_assets.inputs

    def test_a_uri_that_is_too_long_for_an_asset_is_stored_all_the_same(
        self, collector: HookLineageCollector, memory: Store
    ) -> None:
        destination = "memory://bucket/" + "folder/" * 300
        assert store(destination, image()) == f"{destination}42-1.png"
        assert len(memory.objects) == 1
        assert not collector.collected_assets.outputs

    def test_what_was_not_stored_is_not_reported(
        self, collector: HookLineageCollector, tmp_path: Path
    ) -> None:
        destination = Destination.parse(f"file://{tmp_path}/file/cat.png")
        (tmp_path / "file").touch()
        with pytest.raises(InvalidDestinationError, match="file"):
            destination.store(image(), generation_id="42", number=1)
        assert not collector.collected_assets.outputs


def edit(image_url: str | list[str]) -> GenerationRequest:
    """Return a request with no parameter at its default."""
    return GenerationRequest(
        model="Qwen/Qwen-Image-Edit",
        prompt="一只猫",
        negative_prompt="模糊",
        size="64x64",
        seed=5,
        steps=30,
        guidance=7.5,
        image_url=image_url,
        loras={"a/b": 1.0},
        extra_parameters={"sampler": "Euler a"},
    )


def inlined(image_url: str, storage_conn_id: str | None = None) -> str:
    url = inline_images(edit(image_url), storage_conn_id=storage_conn_id).image_url
    assert isinstance(url, str)
    return url


def data_uri(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


class TestInlining:
    @pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat", "一只 猫%41.txt"])
    @pytest.mark.parametrize(
        ("format_", "mime"),
        [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
    )
    def test_a_stored_picture_becomes_its_bytes_and_the_type_that_they_have(
        self, name: str, format_: str, mime: str, tmp_path: Path, memory: Store
    ) -> None:
        content = encoded(format_)
        (tmp_path / name).write_bytes(content)
        memory.pipe_file(f"bucket/{name}", content)
        for uri in (f"file://{tmp_path}/{name}", f"local://{tmp_path}/{name}", f"memory://bucket/{name}"):
            assert inlined(uri) == data_uri(content, mime)

    def test_a_list_keeps_its_order_and_what_the_service_can_reach(
        self, tmp_path: Path, memory: Store
    ) -> None:
        one, two = encoded(side=10), encoded("JPEG", side=20)
        (tmp_path / "1.png").write_bytes(one)
        memory.pipe_file("bucket/2.jpg", two)
        urls = [
            "https://example.com/0.png",
            f"file://{tmp_path}/1.png",
            "HTTP://example.com/0.png",
            "memory://bucket/2.jpg",
            "data:image/png;base64,AAAA",
            f"file://{tmp_path}/1.png",
        ]
        assert inline_images(edit(urls)).image_url == [
            "https://example.com/0.png",
            data_uri(one),
            "HTTP://example.com/0.png",
            data_uri(two, "image/jpeg"),
            "data:image/png;base64,AAAA",
            data_uri(one),
        ]

    def test_a_list_of_one_stays_a_list(self, memory: Store) -> None:
        memory.pipe_file("bucket/1.png", encoded())
        memory.pipe_file("bucket/2.png", encoded())
        request = inline_images(edit(["memory://bucket/1.png"]))
        assert isinstance(request.image_url, list)
        assert len(request.image_url) == 1

    def test_the_other_parameters_stay_and_the_request_can_be_sent(self, memory: Store) -> None:
        content = encoded()
        memory.pipe_file("bucket/1.png", content)
        before = edit("memory://bucket/1.png")
        after = inline_images(before)
        changed = {f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)}
        assert changed == {"image_url"}
        assert after.to_json()["image_url"] == data_uri(content)
        assert before.image_url == "memory://bucket/1.png"

    @pytest.mark.parametrize(
        "image_url",
        [
            "https://example.com/a.png?x=1#y",
            "http://example.com/a.png",
            "data:image/png;base64,AAAA",
            ["https://example.com/a.png", "data:image/png;base64,AAAA"],
        ],
    )
    def test_what_the_service_can_read_itself_is_left_alone(self, image_url: str | list[str]) -> None:
        request = edit(image_url)
        assert inline_images(request, storage_conn_id="nowhere") is request

    def test_a_request_without_a_picture_is_left_alone(self) -> None:
        request = GenerationRequest(model="a/b", prompt="a cat")
        assert inline_images(request) is request

    @pytest.mark.parametrize(
        ("uri", "storage_conn_id"),
        [
            ("s3://bucket/cat.png", "mine"),
            ("s3://mine@bucket/cat.png", None),
            ("s3://other@bucket/cat.png", "mine"),
        ],
    )
    def test_the_connection_opens_the_store(
        self, uri: str, storage_conn_id: str | None, register: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("mine", "other"):
            connection = f'{{"conn_type": "aws", "host": "{name}.example"}}'
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)
        s3, content = register("s3"), encoded("WEBP")
        s3.pipe_file("bucket/cat.png", content)
        assert inlined(uri, storage_conn_id) == data_uri(content, "image/webp")
        assert set(s3.opened_with) == {"mine.example"}

    def test_ten_mebibytes_are_taken_and_one_byte_more_is_not(self, tmp_path: Path) -> None:
        assert MAX_SOURCE_BYTES == TEN_MIB
        path = tmp_path / "cat.png"
        path.write_bytes(of_size(TEN_MIB))
        assert inlined(f"file://{path}") == data_uri(path.read_bytes())
        path.write_bytes(of_size(TEN_MIB + 1))
        with pytest.raises(InvalidRequestError, match="is larger than 10 MiB"):
            inlined(f"file://{path}")

    @pytest.mark.parametrize(
        ("path", "problem"),
        [
            ("page.png", "holds 15 bytes that are not a whole picture, such as PNG"),
            ("empty.png", "holds 0 bytes that are not a whole picture"),
            ("half.png", "holds 200 bytes that are not a whole picture"),
            ("missing.png", "cannot be read .FileNotFoundError: "),
            ("no/such/folder.png", "cannot be read .FileNotFoundError: "),
            ("folder", "is a folder or a device|FileNotFoundError: "),
            ("folder/", "is a folder or a device|FileNotFoundError: "),
        ],
    )
    @pytest.mark.parametrize("protocol", ["file", "memory"])
    def test_what_cannot_be_a_picture_ends_the_task_and_says_which_and_why(
        self, path: str, problem: str, protocol: str, tmp_path: Path, memory: Store
    ) -> None:
        stored = {
            "page.png": b"<!DOCTYPE html>",
            "empty.png": b"",
            "half.png": encoded()[:200],
            "folder/x": b"",
        }
        for name, content in stored.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
            memory.pipe_file(f"bucket/{name}", content)
        uri = f"file://{tmp_path}/{path}" if protocol == "file" else f"memory://bucket/{path}"
        with pytest.raises(InvalidRequestError, match=problem) as raised:
            inlined(uri)
        assert str(raised.value).startswith(f"Invalid parameters, nothing was sent: image_url = {uri!r}: ")

    def test_a_path_through_a_file_ends_the_task_too(self, tmp_path: Path) -> None:
        (tmp_path / "page.png").touch()
        with pytest.raises(InvalidRequestError, match=r"cannot be read \(NotADirectoryError: "):
            inlined(f"file://{tmp_path}/page.png/inside.png")

    @pytest.mark.parametrize(
        ("uri", "storage_conn_id", "problem"),
        [
            ("unheard-of://bucket/cat.png", None, "cannot be opened"),
            ("ftp://server/cat.png", None, "No filesystem registered for scheme ftp"),
            ("memory://bucket/cat.png", "nowhere", "nowhere.*storage_conn_id names a connection"),
        ],
    )
    def test_a_store_that_cannot_be_opened_ends_the_task(
        self, uri: str, storage_conn_id: str | None, problem: str, memory: Store
    ) -> None:
        with pytest.raises(InvalidRequestError, match=f"nothing was sent: image_url = '{uri}': .*{problem}"):
            inlined(uri, storage_conn_id)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (PermissionError("Access Denied"), InvalidRequestError),
            (OSError("Forbidden: https://storage.googleapis.com/download"), InvalidRequestError),
            (AzureError("not this account", 403), InvalidRequestError),
            (AzureError("busy", 503), ModelScopeRetryableError),
            (GoogleError("busy", 503), ModelScopeRetryableError),
            (ConnectionResetError("reset by peer"), ModelScopeRetryableError),
            (TimeoutError("timed out"), ModelScopeRetryableError),
            (OSError(5, "Input/output error"), ModelScopeRetryableError),
        ],
    )
    def test_a_fault_that_may_pass_is_left_to_retries(
        self, fault: Exception, error: type[Exception], register: Register
    ) -> None:
        class Failing(Store):
            def _open(self, *_: Any, **__: Any) -> Any:
                raise fault

        register("s3", Failing())
        with pytest.raises(
            error, match=rf"othing was sent[.:] image_url = 's3://bucket/cat.png': .*{fault.args[-1]}"
        ):
            inlined("s3://bucket/cat.png")
