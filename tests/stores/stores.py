"""Every store for images: its connection as in the docs, and direct access to its server."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.stores.recipes import RECIPES, Recipe
from tests.support.proxy import Proxy
from tests.support.servers import azurite, fake_gcs, google_accounts, moto, s3_client

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

# The public account of Azurite, from its documentation.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Object(NamedTuple):
    """An object in a store."""

    content: bytes
    content_type: str | None
    """None if the store is a file system."""


class Backdoor(ABC):
    """Direct access to a store's server with its vendor's own client, without the relay."""

    @abstractmethod
    def make_bucket(self, bucket: str) -> None:
        """Make a bucket or container."""

    @abstractmethod
    def put(self, bucket: str, name: str, content: bytes) -> None:
        """Store an object."""

    @abstractmethod
    def objects(self, bucket: str) -> dict[str, Object]:
        """Return every object in a bucket by name."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A store and its connection.

    :param connection: As in the docs, with the address of the test's server; None for a disk.
    :param relay: A proxy before the server that injects faults; None for a disk.
    :param root: The part of a URI before the bucket.
    """

    name: str
    root: str
    storage_conn_id: str | None
    connection: dict[str, Any] | None
    relay: Proxy | None
    backdoor: Backdoor


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket of one test, which may not exist yet."""

    name: str
    store: Store

    def make(self) -> None:
        """Make it."""
        self.store.backdoor.make_bucket(self.name)

    def put(self, name: str, content: bytes) -> str:
        """Store an object directly, and return its URI."""
        self.store.backdoor.put(self.name, name, content)
        return self.uri(name)

    def uri(self, name: str = "") -> str:
        """Return the URI of an object or a folder."""
        return f"{self.store.root}{self.name}/{name}"

    @property
    def objects(self) -> dict[str, Object]:
        """Its objects by URI."""
        return {self.uri(name): one for name, one in self.store.backdoor.objects(self.name).items()}


class _S3(Backdoor):
    def __init__(self, url: str) -> None:
        self._client = s3_client(url)

    def make_bucket(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=bucket, Key=name, Body=content)

    def objects(self, bucket: str) -> dict[str, Object]:
        names = [one["Key"] for one in self._client.list_objects_v2(Bucket=bucket).get("Contents", [])]
        found = {name: self._client.get_object(Bucket=bucket, Key=name) for name in names}
        return {name: Object(one["Body"].read(), one["ContentType"]) for name, one in found.items()}


class _Azure(Backdoor):
    def __init__(self, url: str) -> None:
        from azure.storage.blob import BlobServiceClient  # not among the packages that make check sees

        self._client = BlobServiceClient(f"{url}/{AZURITE_ACCOUNT}", credential=AZURITE_KEY)

    def make_bucket(self, bucket: str) -> None:
        self._client.create_container(bucket)

    def put(self, bucket: str, name: str, content: bytes) -> None:
        self._client.get_blob_client(bucket, name).upload_blob(content)

    def objects(self, bucket: str) -> dict[str, Object]:
        blobs = {blob.name: blob for blob in self._client.get_container_client(bucket).list_blobs()}
        return {
            name: Object(
                self._client.get_blob_client(bucket, name).download_blob().readall(),
                blob.content_settings.content_type,
            )
            for name, blob in blobs.items()
        }


class _Google(Backdoor):
    def __init__(self, url: str) -> None:
        self._url = url

    def _send(self, method: str, path: str, **request: Any) -> requests.Response:
        response = requests.request(method, self._url + path, timeout=30, **request)
        response.raise_for_status()
        return response

    def make_bucket(self, bucket: str) -> None:
        self._send("POST", "/storage/v1/b?project=test", json={"name": bucket})

    def put(self, bucket: str, name: str, content: bytes) -> None:
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        self._send("POST", path, data=content, headers={"Content-Type": "application/octet-stream"})

    def objects(self, bucket: str) -> dict[str, Object]:
        path = f"/storage/v1/b/{bucket}/o"
        found = self._send("GET", path).json().get("items", [])
        types = {one["name"]: one["contentType"] for one in found}
        return {
            name: Object(self._send("GET", f"{path}/{quote(name, safe='')}?alt=media").content, content_type)
            for name, content_type in types.items()
        }


class _Disk(Backdoor):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make_bucket(self, bucket: str) -> None:
        (self._folder / bucket).mkdir()

    def put(self, bucket: str, name: str, content: bytes) -> None:
        path = self._folder / bucket / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def objects(self, bucket: str) -> dict[str, Object]:
        folder = self._folder / bucket
        return {
            str(path.relative_to(folder)): Object(path.read_bytes(), None)
            for path in folder.rglob("*")
            if path.is_file()
        }


@contextmanager
def s3_by_path(folder: Path, tls: ssl.SSLContext) -> Iterator[Store]:
    """S3, with the bucket in the path, as botocore does if the endpoint is an IP address."""
    with moto() as url, Proxy(url, tls=tls) as relay:
        recipe = RECIPES["MY_S3"]
        fields = recipe.fields
        fields["extra"]["endpoint_url"] = relay.url
        yield _store("s3_by_path", recipe, fields, relay, _S3(url))


@contextmanager
def s3_by_host(folder: Path, tls: ssl.SSLContext) -> Iterator[Store]:
    """S3, with the bucket in the host name."""
    with moto() as url, Proxy(url, tls=tls) as relay:
        recipe = RECIPES["MY_S3"]
        fields = recipe.fields
        fields["extra"]["endpoint_url"] = relay.url.replace("127.0.0.1", "s3.localhost")
        fields["extra"]["config_kwargs"] = {"s3": {"addressing_style": "virtual"}}
        yield _store("s3_by_host", recipe, fields, relay, _S3(url))


@contextmanager
def oss(folder: Path, tls: ssl.SSLContext) -> Iterator[Store]:
    """Alibaba Cloud OSS through its S3-compatible endpoint."""
    with moto() as url, Proxy(url, tls=tls) as relay:
        recipe = RECIPES["MY_OSS"]
        fields = recipe.fields
        real = "https://s3.oss-cn-hangzhou.aliyuncs.com"
        assert fields["extra"]["endpoint_url"] == real
        fields["extra"]["endpoint_url"] = relay.url.replace("127.0.0.1", "s3.oss-cn-hangzhou.localhost")
        yield _store("oss", recipe, fields, relay, _S3(url))


@contextmanager
def gcs(folder: Path, tls: ssl.SSLContext) -> Iterator[Store]:
    """Google Cloud Storage, with a service account's key that gets its access tokens from this machine."""
    with google_accounts() as token_url, fake_gcs() as url, Proxy(url) as relay:
        private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key = {
            "type": "service_account",
            "client_email": "test@my-project.iam.gserviceaccount.com",
            "private_key": private_key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ).decode(),
            "token_uri": token_url,
        }
        (folder / "key.json").write_text(json.dumps(key))
        recipe = RECIPES["MY_GCS"]
        fields = recipe.fields
        fields["extra"] |= {"key_path": str(folder / "key.json"), "gcs.endpoint": relay.url}
        yield _store("gcs", recipe, fields, relay, _Google(url))


@contextmanager
def azure(folder: Path, tls: ssl.SSLContext) -> Iterator[Store]:
    """Azure Blob Storage over TLS: its client uses an account's key with TLS only.

    :raises MissingError: if Azurite is not installed.
    """
    with azurite() as url, Proxy(url, tls=tls) as relay:
        recipe = RECIPES["MY_AZURE"]
        text = recipe.connection.replace("ACCOUNT_NAME", AZURITE_ACCOUNT).replace("ACCOUNT_KEY", AZURITE_KEY)
        fields = json.loads(text)
        fields["extra"]["account_host"] = f"{relay.url.removeprefix('https://')}/{AZURITE_ACCOUNT}"
        yield _store("azure", recipe, fields, relay, _Azure(url))


@contextmanager
def disk(folder: Path, tls: ssl.SSLContext) -> Iterator[Store]:
    """A folder."""
    yield Store(
        name="disk",
        root=f"file://{folder}/",
        storage_conn_id=None,
        connection=None,
        relay=None,
        backdoor=_Disk(folder),
    )


REMOTE = (s3_by_path, s3_by_host, oss, gcs, azure)
ALL = (*REMOTE, disk)


class Stores:
    """Opens each store once, on its first use."""

    def __init__(self, folder: Path, tls: ssl.SSLContext, stack: ExitStack) -> None:
        self._folder = folder
        self._tls = tls
        self._stack = stack
        self._opened: dict[str, Store | Exception] = {}

    def open(self, kind: Callable[..., Any]) -> Store:
        """Return the store.

        :raises Exception: the error of its first opening.
        """
        name = kind.__name__
        if name not in self._opened:
            (folder := self._folder / name).mkdir()
            try:
                self._opened[name] = self._stack.enter_context(kind(folder, self._tls))
            except Exception as error:
                self._opened[name] = error
        opened = self._opened[name]
        if isinstance(opened, Exception):
            raise opened
        return opened


def _store(name: str, recipe: Recipe, fields: dict[str, Any], relay: Proxy, backdoor: Backdoor) -> Store:
    return Store(
        name=name,
        root=f"{recipe.scheme}://",
        storage_conn_id=f"{recipe.conn_id}_{name}",
        connection=fields,
        relay=relay,
        backdoor=backdoor,
    )
