"""Every store receives the image as the service served it, and returns it byte for byte."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.gallery.files import (
    THUMBNAIL_SIDE,
    ImageUnavailableError,
    find_object,
    make_thumbnail,
    read_image,
)
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import Destination, describe_object
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.xcoms import StoredImage
from tests.stores.conftest import attempt, missing_bucket_of, one_step, opened, submitted, transfer
from tests.stores.stores import ALL, REMOTE, Object
from tests.unit.images.conftest import of_size

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from tests.stores.stores import Bucket, Store, Stores

in_every_store = pytest.mark.parametrize("store", ALL, indirect=True, ids=lambda kind: kind.__name__)
in_remote_stores = pytest.mark.parametrize("store", REMOTE, indirect=True, ids=lambda kind: kind.__name__)


def type_in(store: Store, content_type: str) -> str | None:
    return None if store.relay is None else content_type


def png(width: int = 640, height: int = 480) -> bytes:
    file = BytesIO()
    Pillow.effect_noise((width, height), 60).save(file, "PNG")
    return file.getvalue()


@in_every_store
def test_the_transfer_stores_the_bytes_of_the_service(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    generation_id = submitted()
    uris = transfer(generation_id, bucket.uri("cats/"), store.storage_conn_id).execute(attempt())
    [served] = emulator.served.values()
    assert uris == [bucket.uri(f"cats/{generation_id}-1.png")]
    assert bucket.objects == {uris[0]: Object(served, type_in(store, "image/png"))}


@in_every_store
def test_a_converted_image_has_its_new_content_type(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    uris = transfer(submitted(), bucket.uri("cat.jpg"), store.storage_conn_id).execute(attempt())
    [(uri, stored)] = bucket.objects.items()
    assert uris == [uri] == [bucket.uri("cat.jpg")]
    assert stored.content_type == type_in(store, "image/jpeg")
    assert Pillow.open(BytesIO(stored.content)).format == "JPEG"


@in_every_store
def test_the_operator_stores_the_image_and_its_sidecar(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    context = attempt()
    uris = one_step(
        bucket.uri("猫/one more+1%/"), store.storage_conn_id, sidecar=True, embed_metadata=True
    ).execute(context)
    [described] = context["ti"].pushed["images"]
    stored = bucket.objects
    assert uris == [described["uri"]]
    assert stored.keys() == {described["uri"], described["sidecar_uri"]}
    assert described["sidecar_uri"] == f"{described['uri']}.json"
    image, sidecar = stored[described["uri"]], stored[described["sidecar_uri"]]
    assert image.content_type == type_in(store, "image/png")
    assert (sha256(image.content).hexdigest(), len(image.content)) == (
        described["sha256"],
        described["size_bytes"],
    )
    assert described["generation_id"].encode() in image.content
    assert sidecar.content_type == type_in(store, "application/json")
    assert json.loads(sidecar.content)["sha256"] == described["sha256"]


# Google's and Azure's libraries pass such a body to aiohttp; they run in a thread of their own.
@pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")
@in_remote_stores
def test_an_image_sent_in_parts_is_stored_completely(store: Store, bucket: Bucket) -> None:
    """gcsfs does so from 50 MiB on; all stores take the largest image that is accepted by default."""
    image = Image.from_bytes(of_size(Account.max_image_bytes))
    to = Destination.parse(bucket.uri("cats/"), storage_conn_id=store.storage_conn_id)
    uri = to.store(image, generation_id="42", number=1)
    assert bucket.objects == {uri: Object(image.content, "image/png")}


@in_remote_stores
def test_no_uri_contains_the_connection(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    with_connection = bucket.uri("cats/").replace("://", f"://{store.storage_conn_id}@")
    context = attempt()
    one_step(with_connection, None, sidecar=True).execute(context)
    [described] = context["ti"].pushed["images"]
    assert bucket.objects.keys() == {described["uri"], described["sidecar_uri"]}
    assert described["storage_conn_id"] == store.storage_conn_id
    assert b"@" not in bucket.objects[described["sidecar_uri"]].content


def test_all_stores_hold_the_same_bytes(
    emulator: Emulator, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One generation, unchanged and with embedded metadata."""
    generation_id = submitted()
    found: dict[str, tuple[str, str]] = {}
    for kind in ALL:
        try:
            store = opened(stores, kind, monkeypatch)
        except pytest.skip.Exception:
            continue  # its own tests report the reason
        bucket = missing_bucket_of(store)
        bucket.make()
        for name, embed in (("a unchanged", False), ("b with metadata", True)):
            to = bucket.uri(f"{name}.png")
            transfer(generation_id, to, store.storage_conn_id, embed_metadata=embed).execute(attempt())
        unchanged, embedded = (sha256(one.content).hexdigest() for _, one in sorted(bucket.objects.items()))
        found[kind.__name__] = (unchanged, embedded)
    [served] = emulator.served.values()
    assert len(found) >= len(ALL) - 1
    [(unchanged, embedded)] = set(found.values())
    assert unchanged == sha256(served).hexdigest() != embedded


@in_every_store
def test_a_source_image_is_sent_byte_for_byte(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    sources = [png(), png(32, 24)]
    uris = [bucket.put(f"猫 {number}.png", content) for number, content in enumerate(sources)]
    one_step(bucket.uri("edited/"), store.storage_conn_id, image_url=uris).execute(attempt())
    [sent] = [one.json["image_url"] for one in emulator.requests if one.note == "accepted"]
    assert [one.partition(",")[0] for one in sent] == ["data:image/png;base64"] * 2
    assert [base64.b64decode(one.partition(",")[2]) for one in sent] == sources


@in_every_store
def test_the_gallery_shows_only_the_stored_image(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    context = attempt()
    [uri] = transfer(submitted(), bucket.uri("cats/"), store.storage_conn_id).execute(context)
    stored = StoredImage.from_json(context["ti"].pushed["images"][0])
    assert stored is not None
    [served] = emulator.served.values()
    assert read_image(find_object(stored)) == (served, "image/png")
    content, _ = make_thumbnail(find_object(stored))
    thumbnail = Pillow.open(BytesIO(content))
    assert (thumbnail.format, max(thumbnail.size)) == ("WEBP", THUMBNAIL_SIDE)
    for other in (replace(stored, sha256="0" * 64), replace(stored, uri=uri.replace("-1.png", "-2.png"))):
        with pytest.raises(ImageUnavailableError, match="does not contain this image"):
            read_image(find_object(other))


@pytest.mark.parametrize("store", REMOTE[1:3], indirect=True, ids=lambda kind: kind.__name__)
def test_a_bucket_may_be_in_the_host_name(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    assert store.relay is not None
    transfer(submitted(), bucket.uri("cat.png"), store.storage_conn_id).execute(attempt())
    hosts = {
        line.partition(b": ")[2].partition(b".")[0].decode()
        for head in store.relay.heads
        for line in head.lower().splitlines()
        if line.startswith(b"host:")
    }
    assert bucket.name in hosts
    assert not any(bucket.name.encode() in head.splitlines()[0] for head in store.relay.heads)


@pytest.mark.parametrize("store", REMOTE[:3], indirect=True, ids=lambda kind: kind.__name__)
def test_s3_receives_a_checksum_and_no_aws_chunked_body(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    assert store.relay is not None
    assert store.relay.url.startswith("https://")  # only there would a checksum be sent in chunks
    before = len(store.relay.heads)
    transfer(submitted(), bucket.uri("cat.png"), store.storage_conn_id, sidecar=True).execute(attempt())
    puts = [head.lower() for head in store.relay.heads[before:] if head.startswith(b"PUT")]
    assert len(puts) == 2
    assert all(b"\r\nx-amz-checksum-sha256: " in head for head in puts)
    assert not any(word in head for head in puts for word in (b"aws-chunked", b"x-amz-trailer"))


@in_every_store
def test_a_description_changes_only_with_the_object(store: Store, bucket: Bucket) -> None:
    to = Destination.parse(bucket.uri("cat.png"), storage_conn_id=store.storage_conn_id)
    descriptions = []
    for side in (20, 30):
        uri = to.store(Image.from_bytes(png(side, side)), generation_id="42", number=1)
        descriptions.append(describe_object(uri, store.storage_conn_id))
        assert describe_object(uri, store.storage_conn_id) == descriptions[-1]
    assert descriptions[0] != descriptions[1]
    with pytest.raises(FileNotFoundError):
        describe_object(bucket.uri("none.png"), store.storage_conn_id)
