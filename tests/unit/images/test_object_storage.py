"""Object storage: destinations are checked first, and objects are stored completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.io import attach

from airflow_provider_modelscope import compat
from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    ModelScopeError,
)
from airflow_provider_modelscope.images import object_storage, read_back
from airflow_provider_modelscope.images.formats import CONVERTIBLE, FORMAT_OF_SUFFIX
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import (
    Destination,
    check_destination,
    describe_object,
    list_folder,
    open_object,
    read_latest,
    read_object,
    remove_object,
    write_object,
)
from tests.support.disk import full_disk
from tests.unit.images.conftest import AzureError, GoogleError, Store, encoded

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.images.conftest import Register

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


def image(format_: str = "PNG", side: int = 16) -> Image:
    return Image.from_bytes(encoded(format_, side))


def store(destination: str, stored: Image, generation_id: str = "42", number: int = 1) -> str:
    return Destination.parse(destination).store(stored, generation_id=generation_id, number=number)


class Remembering(Store):
    """A store that remembers what it said of an object until its cache is invalidated."""

    def __init__(self) -> None:
        super().__init__()
        self.remembered: dict[str, Any] = {}

    def info(self, path: str, **options: Any) -> Any:
        if path not in self.remembered:
            self.remembered[path] = super().info(path, **options)
        return self.remembered[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.remembered.clear()


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


INVALID = [
    (None, "None: must be a URI such as"),
    (42, "42: must be a URI such as"),
    (Path("/data/cats/"), "must be a URI such as 's3://bucket/folder/' or 'file:///folder/name.png'"),
    ("", "'': must be a URI"),
    ("None", "must be a URI"),
    ("cat.png", "must be a URI"),
    ("cats/", "must be a URI"),
    ("/data/cats/", "must be a URI"),
    ("./cats/", "must be a URI"),
    ("~/cats/", "must be a URI"),
    ("C:\\cats\\", "must be a URI"),
    ("file:/data/cats/", "must be a URI"),
    ("data:image/png,cats/", "must be a URI"),
    ("://bucket/cats/", "must be a URI"),
    (" s3://bucket/cats/", "must be a URI"),
    ("{{ var.value.folder }}", "must be a URI"),
    ("memory://bucket/../cats/", "must not contain the folders '.' and '..'"),
    ("memory://bucket/cats/..", "must not contain the folders '.' and '..'"),
    ("memory://bucket/cats/.", "must not contain the folders '.' and '..'"),
    ("file:///data/./cats/", "must not contain the folders '.' and '..'"),
    ("file:///../cats/", "must not contain the folders '.' and '..'"),
    ("memory://bucket/cats/?versionId=1", "must not contain '?', '#', '\\' or control characters"),
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
    ("memory:///cats/", "contains no bucket"),
    ("memory://", "contains no bucket"),
    ("memory://my_conn@/cats/", "contains no bucket"),
    ("memory://bucket", "end it with '/' to store into the bucket, or name an object"),
    ("memory://my_conn@bucket", "end it with '/'"),
    ("memory://[bucket/cats/", "is not a valid URI: Invalid IPv6 URL"),
    ("memory://bu\u2100ket/cats/", "invalid characters under NFKC"),
    ("memory://bucket/cat", "names an object without the suffix .png, .jpg or .webp: end it with '/'"),
    ("memory://bucket/images/2026-11-29", "or add one of these suffixes"),
    ("memory://bucket/scheduled__2026-11-29T06:00:00.123456+00:00", "end it with '/' to store into a folder"),
    ("memory://bucket/v1.2", "end it with '/'"),
    ("memory://bucket/FLUX.1-dev", "end it with '/'"),
    ("memory://bucket/.hidden", "end it with '/'"),
    ("memory://bucket/cat.", "end it with '/'"),
    ("file:///data/cats", "end it with '/'"),
    ("memory://bucket/cat.gif", "end it with '/' to store into a folder, which keeps the format of each"),
    ("memory://bucket/cat.GIF", "end it with '/'"),
    ("memory://bucket/cat.svg", "end it with '/'"),
    ("memory://bucket/cat.bin", "end it with '/'"),
    ("memory://bucket/www.example.com", "end it with '/'"),
    ("memory://bucket/team.images", "end it with '/'"),
]


@pytest.mark.parametrize(("destination", "problem"), INVALID)
def test_an_invalid_destination_is_rejected_with_advice(
    destination: Any, problem: str, memory: Store
) -> None:
    messages = set()
    for check in (check_destination, Destination.parse):
        with pytest.raises(InvalidDestinationError) as raised:
            check(destination)
        messages.add(str(raised.value))
    [message] = messages
    shown = re.sub(r"\?.*(?=')", "?...", repr(destination))  # a query may be a signature
    assert message.startswith(f"destination = {shown}: ")
    assert problem in message
    assert not memory.objects
    assert not memory.opened_with


@pytest.mark.parametrize(
    ("destination", "problem"),
    [
        ("unheard-of://bucket/cats/", "cannot be opened"),
        ("https://bucket.example/cats/", "cannot be opened (No filesystem registered for scheme https)"),
        ("ftp://server/cats/", "cannot be opened (No filesystem registered for scheme ftp)"),
    ],
)
def test_a_scheme_without_a_filesystem_is_rejected(destination: str, problem: str) -> None:
    check_destination(destination)  # other machines may have one
    with pytest.raises(InvalidDestinationError) as raised:
        Destination.parse(destination)
    assert str(raised.value).startswith(f"destination = {destination!r}: ")
    assert problem in str(raised.value)


def test_checking_a_destination_imports_nothing_heavy() -> None:
    code = """if True:
    import sys
    from airflow.sdk import BaseOperator
    before = set(sys.modules)
    from airflow_provider_modelscope.images.object_storage import check_destination
    check_destination("s3://bucket/cat.png")
    print(*{module.partition(".")[0] for module in set(sys.modules) - before})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split("\n")[-2].split()) <= {"airflow_provider_modelscope"}


def test_an_object_has_the_suffix_of_a_format_to_convert_to() -> None:
    for suffix, format_ in FORMAT_OF_SUFFIX.items():
        accepted = nullcontext() if format_ in CONVERTIBLE else pytest.raises(InvalidDestinationError)
        with accepted:
            check_destination(f"memory://bucket/cat{suffix}")


@pytest.mark.parametrize(
    ("destination", "format_"),
    [
        ("memory://bucket/", None),
        ("memory://bucket/cats/", None),
        ("memory://bucket/cats.png/", None),
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
def test_only_the_suffix_of_an_object_selects_a_format(
    destination: str, format_: str | None, memory: Store
) -> None:
    check_destination(destination)
    assert Destination.parse(destination).format == format_


def test_an_existing_folder_needs_a_trailing_slash(tmp_path: Path) -> None:
    (tmp_path / "cats.png").mkdir()
    for uri in (f"file://{tmp_path}/cats.png", f"local://{tmp_path}/cats.png"):
        with pytest.raises(InvalidDestinationError, match="that is a folder: end it with '/'"):
            Destination.parse(uri)
        assert Destination.parse(f"{uri}/").uri == f"{uri}/"


def test_parsing_a_destination_writes_nothing(tmp_path: Path, memory: Store) -> None:
    Destination.parse(f"file://{tmp_path}/new/folder/")
    Destination.parse("memory://bucket/folder/cat.png")
    assert not list(tmp_path.iterdir())
    assert not memory.objects


class TestConnections:
    def test_a_store_without_its_provider_names_the_extra(
        self, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for protocol, extra in (("s3", "s3"), ("gs", "gcs"), ("abfs", "azure")):
            monkeypatch.delitem(filesystems, protocol, raising=False)
            with pytest.raises(
                InvalidDestinationError,
                match=rf"'{protocol}://bucket/cats/': cannot be opened \(No filesystem registered for scheme "
                rf"{protocol}\): run pip install 'airflow-provider-modelscope\[{extra}\]' on every worker",
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
    def test_an_unusable_connection_is_named(
        self, error: Exception, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def get_fs(conn_id: str | None) -> None:
            raise error

        monkeypatch.setitem(filesystems, "abfs", get_fs)
        monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "wasb"}')
        uri = "abfs://container/cats/"
        with pytest.raises(InvalidDestinationError) as raised:
            Destination.parse(uri, storage_conn_id="mine")
        assert raised.value.message.endswith(f"cannot be opened ({error}): correct the connection 'mine'")
        with pytest.raises(InvalidDestinationError, match=r"name a connection to it in storage_conn_id$"):
            Destination.parse(uri)

    def test_a_provider_without_its_own_extra_is_reported(
        self, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def get_fs(conn_id: str | None) -> None:
            raise ImportError("requires the s3fs library")

        monkeypatch.setitem(filesystems, "s3", get_fs)
        with pytest.raises(InvalidDestinationError, match=r"requires the s3fs library\): run pip install"):
            Destination.parse("s3://bucket/cats/")

    def test_only_the_default_connection_of_aws_may_be_missing(
        self, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(filesystems, "s3", lambda conn_id: Store())  # AWS ignores a missing connection
        assert Destination.parse("s3://aws_default@bucket/").storage_conn_id == "aws_default"
        with pytest.raises(InvalidDestinationError, match="define that connection"):
            Destination.parse("s3://nowhere@bucket/")

    @pytest.mark.parametrize(
        ("destination", "storage_conn_id"), [("s3://bucket/", "nowhere"), ("s3://nowhere@bucket/", None)]
    )
    def test_an_undefined_connection_is_named(
        self, destination: str, storage_conn_id: str | None, register: Register
    ) -> None:
        register("s3")
        with pytest.raises(
            InvalidDestinationError,
            match=r"nowhere.*: define that connection, or name another in storage_conn_id",
        ):
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
    def test_the_connection_opens_the_store_but_is_in_no_uri(
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
        assert s3.opened_with == [host]
        assert list(s3.objects) == ["bucket/cats/42-1.png"]

    def test_an_odd_uri_is_an_error_of_its_own(self) -> None:
        with pytest.raises(InvalidDestinationError, match="cannot be opened"):
            read_object("s3://[x/cat.png", None, most=10)

    def test_one_opening_serves_all_images_and_sidecars(
        self, register: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "aws", "host": "mine.example"}')
        s3 = register("s3")
        destination = Destination.parse("s3://mine@bucket/cats/", sidecar=True)
        for number in (1, 2, 3):
            uri = destination.store(image(), generation_id="42", number=number)
            destination.store_sidecar(uri, b"{}", generation_id="42")
            read_object(uri, "mine", most=10)
            describe_object(uri, "mine")
        assert len(s3.objects) == 6
        assert s3.opened_with == ["mine.example"]

    def test_a_changed_connection_is_used_at_once(
        self, register: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        s3 = register("s3")
        calls: list[Callable[[], Any]] = [
            lambda: destination.store(image(), generation_id="42", number=1),
            lambda: read_object("s3://bucket/cats/42-1.png", "mine", most=10),
            lambda: describe_object("s3://bucket/cats/42-1.png", "mine"),
            lambda: open_object("s3://bucket/cats/42-1.png", "mine").close(),
            lambda: list_folder("s3://bucket/cats/", "mine"),
            lambda: write_object(record, b"{}", "application/json"),
            lambda: read_latest(record),
            lambda: remove_object(record),
        ]
        monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "aws", "host": "first"}')
        destination = Destination.parse("s3://mine@bucket/cats/")
        record = destination.beside("record.json")
        hosts = [f"host-{number}" for number, _ in enumerate(calls)]
        for host, call in zip(hosts, calls, strict=True):
            monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps({"conn_type": "aws", "host": host}))
            call()
        assert s3.opened_with == ["first", *hosts]

    @pytest.mark.parametrize("conn_id", [None, "mine"])
    def test_an_attached_filesystem_is_kept(
        self, conn_id: str | None, filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With Airflow's ``attach``, a Dag may bring a filesystem that no provider has."""
        monkeypatch.setattr(object_storage, "_opened_with", {})
        monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "generic"}')
        attached = Store()
        attach(protocol="memory", conn_id=conn_id, fs=attached)
        Destination.parse("memory://bucket/", storage_conn_id=conn_id).store(
            image(), generation_id="42", number=1
        )
        assert list(attached.objects) == ["bucket/42-1.png"]

    def test_only_a_connection_is_removed_from_a_uri(self, memory: Store) -> None:
        for destination in ("memory://bucket/me@home/", "memory://bucket/a://b@c/"):
            assert store(destination, image()) == f"{destination}42-1.png"


class TestReading:
    @pytest.mark.parametrize("root", ["file://", "memory://bucket"])
    def test_an_object_is_opened_as_a_local_file(self, root: str, tmp_path: Path, memory: Store) -> None:
        content = os.urandom(3_000_000)
        (tmp_path / "rows.jsonl").write_bytes(content)
        memory.pipe_file(f"bucket{tmp_path}/rows.jsonl", content)
        with open_object(f"{root}{tmp_path}/rows.jsonl", None) as file:
            assert file.read() == content
            assert file.seek(5) == 5
            assert os.fstat(file.fileno()).st_size == len(content)

    def test_a_failed_copy_leaves_no_open_file(self, memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        memory.pipe_file("bucket/rows.jsonl", os.urandom(100_000))
        copy = TemporaryFile()  # noqa: SIM115 # closed by what is tested
        monkeypatch.setattr(object_storage, "TemporaryFile", lambda: copy)
        with full_disk(at=1000), pytest.raises(OSError, match="File too large"):
            open_object("memory://bucket/rows.jsonl", None)
        assert copy.closed

    @pytest.mark.parametrize("scheme", ["file", "memory"])
    def test_a_folder_is_listed_by_name(self, scheme: str, tmp_path: Path, memory: Store) -> None:
        for name in ("1.png", "一只猫.png", "of a user/2.png"):
            memory.pipe_file(f"{tmp_path}/{name}", b"x")
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        assert sorted(list_folder(f"{scheme}://{tmp_path}/", None)) == ["1.png", "of a user", "一只猫.png"]
        assert list_folder(f"{scheme}://{tmp_path}/none/", None) == []

    def test_a_pipe_is_no_object(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for read in (open_object, lambda *which: read_object(*which, most=5)):
            with pytest.raises(IsADirectoryError):
                read(f"file://{tmp_path}/pipe", None)


class TestNames:
    @pytest.mark.parametrize(
        ("format_", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")]
    )
    def test_names_in_a_folder_come_from_generation_and_format(
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
            ("cat.v1.jpg", "cat.v1-2.jpg"),
            ("一只 猫.webp", "一只 猫-2.webp"),
            (".hidden.png", ".hidden-2.png"),
        ],
    )
    def test_names_are_numbered_from_the_second_image_on(self, name: str, second: str, memory: Store) -> None:
        for folder in ("memory://bucket.io/v1.2/", "memory://bucket.io/"):
            uris = [store(folder + name, image(), number=number) for number in (1, 2)]
            assert uris == [folder + name, folder + second]
            assert {uri.removeprefix("memory://") for uri in uris} <= memory.objects.keys()

    def test_further_images_of_a_stem_have_no_name_of_another_key(self, tmp_path: Path) -> None:
        folder = Destination.parse(f"file://{tmp_path}/")
        for stem, number in (("cat", 1), ("cat", 2), ("cat-2", 1), ("cat-2", 2)):
            replace(folder, stem=stem).store(image(), generation_id="42", number=number)
        assert files(tmp_path).keys() == {"cat.png", "cat~2.png", "cat-2.png", "cat-2~2.png"}

    def test_a_retry_overwrites_the_same_object(self, tmp_path: Path) -> None:
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

    def test_an_id_too_long_for_a_name_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidDestinationError, match=r"cannot be written .*too long"):
            store(f"file://{tmp_path}/", image(), "x" * 300)
        assert not files(tmp_path)

    def test_a_local_name_may_be_as_long_as_the_disk_allows(self, tmp_path: Path) -> None:
        name = "猫" * 83 + ".png"  # 253 bytes
        store(f"file://{tmp_path}/{name}", image())
        assert list(files(tmp_path)) == [name]

    @pytest.mark.parametrize(
        "path",
        ["with space/a  b.png", "一只猫/画.png", "100%/%41%2F%2e%2e.png", "a+b&c=d/e;f,g.png", "it's/~.png"],
    )
    def test_a_path_is_used_literally(self, path: str, tmp_path: Path, memory: Store) -> None:
        stored = image()
        assert store(f"file://{tmp_path}/{path}", stored) == f"file://{tmp_path}/{path}"
        assert files(tmp_path) == {path: stored.content}
        assert store(f"memory://bucket/{path}", stored) == f"memory://bucket/{path}"
        assert memory.objects == {f"bucket/{path}": stored.content}


class TestAtomicWrites:
    @pytest.mark.parametrize(
        "before", [{}, {"cat.png": b"the cat of yesterday"}], ids=["new", "there already"]
    )
    def test_a_full_disk_keeps_the_old_file_and_no_other(
        self, before: dict[str, bytes], tmp_path: Path
    ) -> None:
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        large = image(side=64)
        with full_disk(len(large.content) // 2), pytest.raises(ImageStorageError, match="large"):
            store(f"file://{tmp_path}/cat.png", large)
        assert files(tmp_path) == before
        store(f"file://{tmp_path}/cat.png", large)
        assert files(tmp_path) == {"cat.png": large.content}

    def test_a_folder_created_meanwhile_stays(self, tmp_path: Path) -> None:
        destination = Destination.parse(f"file://{tmp_path}/cat.png")
        (tmp_path / "cat.png").mkdir()
        (tmp_path / "cat.png" / "kept").write_bytes(b"kept")
        with pytest.raises(InvalidDestinationError, match="IsADirectoryError"):
            destination.store(image(), generation_id="42", number=1)
        assert files(tmp_path) == {"cat.png/kept": b"kept"}

    def test_a_reader_never_sees_a_partial_file(self, tmp_path: Path) -> None:
        (tmp_path / "cat.png").write_bytes(b"the cat of yesterday")
        with (tmp_path / "cat.png").open("rb") as reader:
            store(f"file://{tmp_path}/cat.png", image())
            assert reader.read() == b"the cat of yesterday"

    def test_a_failed_put_keeps_the_old_object(self, register: Register) -> None:
        class Failing(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
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

    def test_a_store_that_holds_too_few_bytes_is_an_error(self, register: Register) -> None:
        class Forgetful(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                super().pipe_file(path, value[:100], mode)

        register("s3", Forgetful())
        stored = image()
        with pytest.raises(
            ImageStorageError,
            match=rf"^s3://bucket/cat.png was written, but the store holds 100 of {stored.length} bytes",
        ):
            store("s3://bucket/cat.png", stored)

    @pytest.mark.parametrize(
        "fault",
        [
            PermissionError("Forbidden"),
            AzureError("not this call", 403),
            OSError("Forbidden: b/o"),
            OSError(errno.ENOSYS, "no v2"),
        ],
        ids=str,
    )
    def test_a_right_to_write_needs_no_right_to_read(
        self, fault: Exception, register: Register, caplog: pytest.LogCaptureFixture
    ) -> None:
        class WriteOnly(Store):
            def info(self, path: str, **options: Any) -> Any:
                raise fault

        s3, stored = register("s3", WriteOnly()), image()
        assert store("s3://bucket/cat.png", stored) == "s3://bucket/cat.png"
        assert s3.objects == {"bucket/cat.png": stored.content}
        [message] = caplog.messages
        assert message == (
            f"Stored s3://bucket/cat.png without a check, because it cannot be read back: {fault}"
        )

    @pytest.mark.parametrize(("late", "error"), [(2, None), (3, "holds 0 of")])
    def test_an_object_may_be_shown_a_little_late(
        self, late: int, error: str | None, register: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Late(Store):
            misses = late

            def info(self, path: str, **options: Any) -> Any:
                if self.misses:
                    self.misses -= 1
                    raise FileNotFoundError(path)
                return super().info(path, **options)

        monkeypatch.setattr(read_back, "_PAUSES", (0.0, 0.0))
        register("s3", Late())
        with pytest.raises(ImageStorageError, match=error) if error else nullcontext():
            store("s3://bucket/cat.png", image())

    def test_a_file_with_too_few_bytes_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "cat.png").write_bytes(b"the cat of yesterday")
        stored = image()
        stored.file.truncate(100)
        with pytest.raises(ImageStorageError, match=f"holds 100 of {stored.length} bytes"):
            store(f"file://{tmp_path}/cat.png", stored)
        assert files(tmp_path) == {"cat.png": b"the cat of yesterday"}

    def test_an_object_of_another_task_is_not_removed(self, register: Register) -> None:
        class Shared(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                super().pipe_file(path, b"another task's image", mode)

        s3 = register("s3", Shared())
        with pytest.raises(ImageStorageError):
            store("s3://bucket/cat.png", image())
        assert s3.objects == {"bucket/cat.png": b"another task's image"}

    @pytest.mark.parametrize("raises", [True, False])
    @pytest.mark.parametrize("before", [b"", b"the cat of yesterday"], ids=["new", "there already"])
    def test_a_partial_object_is_removed(self, before: bytes, raises: bool, register: Register) -> None:
        class Half(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                super().pipe_file(path, value[:50], mode)
                if raises:
                    raise ConnectionResetError("after half of it")

        memory = register("memory", Half())
        if before:
            memory.open("bucket/cat.png", "wb", data=before)
        with pytest.raises(ImageStorageError, match=r"after half of it|holds 50 of \d+ bytes"):
            store("memory://bucket/cat.png", image())
        assert not memory.objects

    def test_a_put_that_wrote_nothing_keeps_the_old_object(self, register: Register) -> None:
        class Away(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                raise TimeoutError("no response")

        memory = register("memory", Away())
        memory.open("bucket/cat.png", "wb", data=b"the cat of yesterday")
        with pytest.raises(ImageStorageError, match="no response"):
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
    def test_only_permanent_errors_of_a_store_are_final(
        self, protocol: str, fault: Exception, error: type[ModelScopeError], register: Register
    ) -> None:
        class Failing(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                raise fault

        opened = register(protocol, Failing())
        with pytest.raises(error, match=f"{protocol}://bucket/cat.png.*{fault.args[-1]}") as raised:
            store(f"{protocol}://bucket/cat.png", image())
        assert type(raised.value) is error
        assert not opened.objects

    def test_a_read_only_folder_is_a_final_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: Any, **__: Any) -> None:  # root may write anywhere, so no folder's mode would do
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "open", refused)
        with pytest.raises(InvalidDestinationError, match=r"cannot be written .*Read-only file system"):
            store(f"file://{tmp_path}/cat.png", image())
        assert not files(tmp_path)

    def test_the_size_is_read_from_the_store_not_from_a_cache(self, register: Register) -> None:
        s3 = register("s3", Remembering())
        for side in (10, 40):
            assert store("s3://bucket/cat.png", image(side=side)) == "s3://bucket/cat.png"
        assert s3.size("bucket/cat.png") > 1000

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
    def test_the_mode_of_a_file_follows_the_umask(self, umask: int, tmp_path: Path) -> None:
        before = os.umask(umask)
        try:
            store(f"file://{tmp_path}/cat.png", image())
        finally:
            assert os.umask(before) == umask
        assert (tmp_path / "cat.png").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(("format_", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
@pytest.mark.parametrize("protocol", ["s3", "s3a", "gs", "gcs", "memory"])
def test_the_content_type_is_set(protocol: str, format_: str, content_type: str, register: Register) -> None:
    opened = register(protocol)
    stored = image(format_)
    uri = store(f"{protocol}://bucket/cats/", stored)
    assert opened.objects == {uri.removeprefix(f"{protocol}://"): stored.content}
    argument = {"s": "ContentType", "g": "content_type"}.get(protocol[0])
    assert argument is None or opened.options.pop(argument) == content_type


@pytest.mark.parametrize("protocol", ["abfs", "abfss"])
def test_azure_gets_the_content_type_and_checks_the_bytes(
    protocol: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its library comes with the azure extra, which the tests go without.
    library = SimpleNamespace(ContentSettings=lambda content_type: ("settings", content_type))
    monkeypatch.setitem(sys.modules, "azure.storage.blob", library)
    opened = register(protocol)
    store(f"{protocol}://container/cats/", image("JPEG"))
    assert opened.options == {"content_settings": ("settings", "image/jpeg"), "validate_content": True}


def test_a_store_that_removes_only_paths_removes_an_object(register: Register) -> None:
    class OldAzure(Store):
        def rm_file(self, path: str) -> None:
            raise NotImplementedError

        def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
            super().rm_file(path)

    s3 = register("s3", OldAzure())
    destination = Destination.parse("s3://bucket/cats/")
    write_object(destination.beside("one.json"), b"{}", "application/json")
    write_object(destination.beside("two.json"), b"{}", "application/json")
    remove_object(destination.beside("one.json"))
    assert s3.objects.keys() == {"bucket/cats/two.json"}


class TestDescriptions:
    @pytest.mark.parametrize("folder", ["memory://bucket/", "file://{tmp_path}/"])
    def test_a_description_changes_only_with_the_object(
        self, folder: str, tmp_path: Path, memory: Store
    ) -> None:
        uri = folder.format(tmp_path=tmp_path) + "cat.png"
        descriptions = []
        for stored in (image(), image(side=20), image(side=20)):
            store(uri, stored)
            descriptions.append(describe_object(uri, None))
            assert describe_object(uri, None) == descriptions[-1]
        assert len(set(descriptions)) == 3

    @pytest.mark.parametrize("folder", ["memory://bucket/", "file://{tmp_path}/"])
    def test_a_missing_object_has_no_description(self, folder: str, tmp_path: Path, memory: Store) -> None:
        with pytest.raises(FileNotFoundError):
            describe_object(folder.format(tmp_path=tmp_path) + "none.png", None)

    def test_a_description_comes_from_the_store_not_from_a_cache(self, register: Register) -> None:
        s3 = register("s3", Remembering())
        store("s3://bucket/cat.png", image())
        before = describe_object("s3://bucket/cat.png", None)
        s3.open("bucket/cat.png", "wb", data=b"another")
        assert describe_object("s3://bucket/cat.png", None) != before


class TestLineage:
    @pytest.fixture
    def collector(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Airflow's collector when something reads lineage, such as OpenLineage."""
        home = sys.modules[compat.get_hook_lineage_collector.__module__]
        collector = home.HookLineageCollector()
        monkeypatch.setattr(
            "airflow_provider_modelscope.compat.get_hook_lineage_collector", lambda: collector
        )
        return collector

    def test_each_stored_image_is_reported_without_the_connection(
        self,
        collector: Any,
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

    def test_an_image_is_stored_if_its_uri_is_too_long_for_an_asset(
        self, collector: Any, memory: Store
    ) -> None:
        destination = "memory://bucket/" + "folder/" * 300
        assert store(destination, image()) == f"{destination}42-1.png"
        assert len(memory.objects) == 1
        assert not collector.collected_assets.outputs

    def test_an_image_that_was_not_stored_is_not_reported(self, collector: Any, tmp_path: Path) -> None:
        destination = Destination.parse(f"file://{tmp_path}/file/cat.png")
        (tmp_path / "file").touch()
        with pytest.raises(InvalidDestinationError, match="file"):
            destination.store(image(), generation_id="42", number=1)
        assert not collector.collected_assets.outputs
