"""The emulator, every store and a bucket for each test. Names below localhost are local."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import socket
import ssl
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

FOLDER = Path(tempfile.mkdtemp(prefix="stores-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
CERTIFICATE = FOLDER / "certificate.pem"
os.environ["AWS_CA_BUNDLE"] = str(CERTIFICATE)
# Both are read when aiohttp and gcsfs are imported.
os.environ["SSL_CERT_FILE"] = str(CERTIFICATE)
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it uses gRPC, which the server does not have

REQUEST: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "一只金色的猫", "size": "512x384", "seed": 5}


def _make_certificate() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    hosts = [f"{bucket}{host}.localhost" for host in ("s3", "s3.oss-cn-hangzhou") for bucket in ("", "*.")]
    names = x509.SubjectAlternativeName(
        [x509.IPAddress(ip_address("127.0.0.1")), *(x509.DNSName(host) for host in hosts)]
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    CERTIFICATE.write_bytes(private + certificate.public_bytes(Encoding.PEM))


_make_certificate()

from airflow_provider_modelscope.emulator import Emulator  # noqa: E402 - after the environment is set
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook  # noqa: E402
from airflow_provider_modelscope.operators.image_generation import (  # noqa: E402
    ModelScopeImageGenerationOperator,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest  # noqa: E402
from airflow_provider_modelscope.transfers.image_to_object_storage import (  # noqa: E402
    ModelScopeImageToObjectStorageOperator,
)
from tests.stores.stores import Bucket, Store, Stores  # noqa: E402
from tests.support.servers import MissingError  # noqa: E402
from tests.unit.conftest import TaskInstance, connect  # noqa: E402


@pytest.fixture(scope="session")
def tls() -> ssl.SSLContext:
    """The certificate of every server."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    return tls


@pytest.fixture(scope="session")
def stores(tls: ssl.SSLContext) -> Iterator[Stores]:
    resolve = socket.getaddrinfo

    def local(host: Any, *args: Any, **options: Any) -> Any:
        is_local = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if is_local else host, *args, **options)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(socket, "getaddrinfo", local)  # as RFC 6761 says, but not every resolver does
        yield Stores(FOLDER, tls, stack)


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A service whose generations are finished at once, behind the connection ``modelscope_default``."""
    with Emulator(max_running=10) as emulator:
        connect(monkeypatch, emulator.base_url)
        yield emulator


@pytest.fixture
def store(request: pytest.FixtureRequest, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the test's parameter, behind its connection."""
    return opened(stores, request.param, monkeypatch)


def opened(stores: Stores, kind: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return the store, with its connection in the environment."""
    try:
        store = stores.open(kind)
    except MissingError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
    if store.connection is not None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{store.storage_conn_id}".upper(), json.dumps(store.connection))
    return store


@pytest.fixture
def bucket(store: Store) -> Bucket:
    """An empty bucket."""
    bucket = missing_bucket_of(store)
    bucket.make()
    return bucket


@pytest.fixture
def missing_bucket(store: Store) -> Bucket:
    """A bucket that does not exist yet."""
    return missing_bucket_of(store)


def missing_bucket_of(store: Store) -> Bucket:
    return Bucket(name=f"images-{uuid.uuid4().hex[:12]}", store=store)


class Record:
    """Airflow's task state store in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self._kept[key]) if key in self._kept else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._kept[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self._kept.pop(key, None)


@pytest.fixture
def record() -> Record:
    """The task state that survives from one attempt to the next."""
    return Record()


def attempt(record: Record | None = None) -> Any:
    """Return the context of one attempt of a task."""
    return {"ti": TaskInstance(), "task_state_store": record or Record()}


def submitted(**parameters: Any) -> str:
    """Submit a generation, and return its id."""
    return ModelScopeHook().submit_generation(GenerationRequest(**REQUEST, **parameters))


def one_step(destination: str, storage_conn_id: str | None, **options: Any) -> Any:
    """Return the operator that submits, waits and stores."""
    return ModelScopeImageGenerationOperator(
        task_id="draw", destination=destination, storage_conn_id=storage_conn_id, **REQUEST, **options
    )


def transfer(generation_id: str, destination: str, storage_conn_id: str | None, **options: Any) -> Any:
    """Return the operator that stores the images of a generation."""
    return ModelScopeImageToObjectStorageOperator(
        task_id="store",
        generation_id=generation_id,
        destination=destination,
        storage_conn_id=storage_conn_id,
        **options,
    )


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries of the stores retry at once: they back off for half a minute and more."""
    sleep = asyncio.sleep

    async def no_sleep(delay: float, *args: Any) -> Any:
        return await sleep(0, *args)

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
