"""An object store in memory that Airflow opens like a provider's, and images of any size."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any, Protocol

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from airflow_provider_modelscope.compat import BaseHook


class Store(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """An object store in memory. It keeps the options of the last ``pipe_file``."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.options: dict[str, Any] = {}
        self.opened_with: list[str | None] = []

    @property
    def objects(self) -> dict[str, bytes]:
        return {path.removeprefix("/"): file.getvalue() for path, file in self.store.items()}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.options = options
        super().pipe_file(path, value, mode)

    s3_additional_kwargs: dict[str, Any] = {}

    async def set_session(self) -> None:
        """Connect, like s3fs."""

    async def get_s3(self, bucket: str) -> Store:
        """Return the client of aiobotocore, like s3fs: this store is its own."""
        return self

    async def put_object(self, **arguments: Any) -> None:
        path = f"{arguments.pop('Bucket')}/{arguments.pop('Key')}"
        self.pipe_file(path, arguments.pop("Body").read(), **arguments)

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Answer a HEAD request, like s3fs."""
        assert method == "head_object"
        path = f"{arguments['Bucket']}/{arguments['Key']}"
        etag = hashlib.md5(self.objects.get(path, b""), usedforsecurity=False).hexdigest()
        return {"ContentLength": self.info(path)["size"], "ETag": f'"{etag}"'}


class AzureError(Exception):
    """As from adlfs: no OSError, but with the status of the response."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class GoogleError(Exception):
    """As from gcsfs, whose ``code`` is a number or a text."""

    def __init__(self, message: str, code: int | str) -> None:
        super().__init__(message)
        self.code = code


class ClientError(Exception):
    """As from botocore."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


def translated(code: str, kind: type[Exception] = PermissionError) -> Exception:
    """Return an error as s3fs raises it for a code of S3."""
    error = kind(f"translated from {code}")
    error.__cause__ = ClientError(code)
    return error


class Register(Protocol):
    def __call__(self, protocol: str, store: Store | None = None) -> Store: ...


@pytest.fixture
def filesystems(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Airflow's registry of filesystems, with no filesystem opened yet."""
    # The registry of providers' filesystems moved after Airflow 3.1.
    module = import_module("airflow.sdk.io.fs" if find_spec("airflow.sdk.io.fs") else "airflow.io")
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    known: dict[str, Any] = module._register_filesystems()
    return known


@pytest.fixture
def register(filesystems: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Register:
    """Register a store as a provider does, with a function that reads the connection."""

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


def of_size(size: int) -> bytes:
    """Return a PNG of exactly this many bytes."""

    def padded(padding: int) -> bytes:
        chunks = PngInfo()
        chunks.add(b"paDd", bytes(padding))
        file = BytesIO()
        Pillow.new("L", (8, 8)).save(file, "PNG", pnginfo=chunks)
        return file.getvalue()

    return padded(size - len(padded(0)))
