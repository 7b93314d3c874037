"""An image lands in every store as the service served it, and is read from there byte for byte."""

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
    make_thumbnail,
    read_image,
)
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.xcoms import StoredImage
from tests.stores.conftest import a_try, missing_bucket_of, one_step, opened, submitted, transfer
from tests.stores.stores import ALL, REMOTE, Object
from tests.unit.images.test_object_storage import of_size

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator
    from tests.stores.stores import Bucket, Store, Stores

in_every_store = pytest.mark.parametrize("store", ALL, indirect=True, ids=lambda kind: kind.__name__)
in_remote_stores = pytest.mark.parametrize("store", REMOTE, indirect=True, ids=lambda kind: kind.__name__)


def type_in(store: Store, content_type: str) -> str | None:
    return None if store.relay is None else content_type


def picture(width: int = 640, height: int = 480) -> bytes:
    file = BytesIO()
    Pillow.effect_noise((width, height), 60).save(file, "PNG")
    return file.getvalue()


@in_every_store
def test_what_the_transfer_stores_is_what_the_service_served(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    generation_id = submitted()
    uris = transfer(generation_id, bucket.uri("cats/"), store.storage_conn_id).execute(a_try())
    [served] = emulator.served.values()
    assert uris == [bucket.uri(f"cats/{generation_id}-1.png")]
    assert bucket.objects == {uris[0]: Object(served, type_in(store, "image/png"))}


@in_every_store
def test_what_is_converted_has_the_content_type_of_its_new_format(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    uris = transfer(submitted(), bucket.uri("cat.jpg"), store.storage_conn_id).execute(a_try())
    [(uri, stored)] = bucket.objects.items()
    assert uris == [uri] == [bucket.uri("cat.jpg")]
    assert stored.content_type == type_in(store, "image/jpeg")
    assert Pillow.open(BytesIO(stored.content)).format == "JPEG"


@in_every_store
def test_the_one_step_operator_stores_the_image_and_what_is_told_of_it(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    context = a_try()
    uris = one_step(
        bucket.uri("猫/one more+1%/"), store.storage_conn_id, sidecar=True, embed_metadata=True
    ).execute(context)
    [told] = context["ti"].pushed["images"]
    stored = bucket.objects
    assert uris == [told["uri"]]
    assert stored.keys() == {told["uri"], told["sidecar_uri"]}
    assert told["sidecar_uri"] == f"{told['uri']}.json"
    image, sidecar = stored[told["uri"]], stored[told["sidecar_uri"]]
    assert image.content_type == type_in(store, "image/png")
    assert (sha256(image.content).hexdigest(), len(image.content)) == (told["sha256"], told["size_bytes"])
    assert told["generation_id"].encode() in image.content
    assert sidecar.content_type == type_in(store, "application/json")
    assert json.loads(sidecar.content)["sha256"] == told["sha256"]


# Google's and Azure's libraries give aiohttp such a body; they run in a thread of their own.
@pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning")
@in_remote_stores
def test_an_image_that_is_sent_in_parts_is_stored_whole(store: Store, bucket: Bucket) -> None:
    """As gcsfs does from 50 MiB on, and all do up to the largest image that is accepted by default."""
    image = Image.from_bytes(of_size(Account.max_image_bytes))
    to = Destination.parse(bucket.uri("cats/"), storage_conn_id=store.storage_conn_id)
    uri = to.store(image, generation_id="42", number=1)
    assert bucket.objects == {uri: Object(image.content, "image/png")}


@in_remote_stores
def test_no_uri_names_the_connection(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    with_connection = bucket.uri("cats/").replace("://", f"://{store.storage_conn_id}@")
    context = a_try()
    one_step(with_connection, None, sidecar=True).execute(context)
    [told] = context["ti"].pushed["images"]
    assert bucket.objects.keys() == {told["uri"], told["sidecar_uri"]}
    assert told["storage_conn_id"] == store.storage_conn_id
    assert b"@" not in bucket.objects[told["sidecar_uri"]].content


def test_the_same_bytes_stand_in_all_stores(
    emulator: Emulator, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One generation, as it came and with what is told of it in it."""
    generation_id = submitted()
    found: dict[str, tuple[str, str]] = {}
    for kind in ALL:
        try:
            store = opened(stores, kind, monkeypatch)
        except pytest.skip.Exception:
            continue  # its own tests say why
        bucket = missing_bucket_of(store)
        bucket.make()
        for name, embed in (("as it came", False), ("with metadata", True)):
            to = bucket.uri(f"{name}.png")
            transfer(generation_id, to, store.storage_conn_id, embed_metadata=embed).execute(a_try())
        came, embedded = (sha256(one.content).hexdigest() for one in bucket.objects.values())
        found[kind.__name__] = (came, embedded)
    [served] = emulator.served.values()
    assert len(found) >= len(ALL) - 1
    [(came, embedded)] = set(found.values())
    assert came == sha256(served).hexdigest() != embedded


@in_every_store
def test_a_picture_to_edit_reaches_the_service_byte_for_byte(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    pictures = [picture(), picture(32, 24)]
    uris = [bucket.put(f"猫 {number}.png", content) for number, content in enumerate(pictures)]
    one_step(bucket.uri("edited/"), store.storage_conn_id, image_url=uris).execute(a_try())
    [sent] = [one.json["image_url"] for one in emulator.requests if one.note == "accepted"]
    assert [one.partition(",")[0] for one in sent] == ["data:image/png;base64"] * 2
    assert [base64.b64decode(one.partition(",")[2]) for one in sent] == pictures


@in_every_store
def test_the_gallery_shows_what_is_stored_and_nothing_else(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    context = a_try()
    [uri] = transfer(submitted(), bucket.uri("cats/"), store.storage_conn_id).execute(context)
    stored = StoredImage.from_json(context["ti"].pushed["images"][0])
    assert stored is not None
    [served] = emulator.served.values()
    assert read_image(stored) == (served, "image/png")
    thumbnail = Pillow.open(BytesIO(make_thumbnail(stored, now=0)))
    assert (thumbnail.format, max(thumbnail.size)) == ("WEBP", THUMBNAIL_SIDE)
    for other in (replace(stored, sha256="0" * 64), replace(stored, uri=uri.replace("-1.png", "-2.png"))):
        with pytest.raises(ImageUnavailableError, match="does not contain this image"):
            read_image(other)


@pytest.mark.parametrize("store", REMOTE[1:3], indirect=True, ids=lambda kind: kind.__name__)
def test_a_bucket_may_stand_in_the_hosts_name(emulator: Emulator, store: Store, bucket: Bucket) -> None:
    assert store.relay is not None
    transfer(submitted(), bucket.uri("cat.png"), store.storage_conn_id).execute(a_try())
    hosts = {
        line.partition(b": ")[2].partition(b".")[0].decode()
        for head in store.relay.heads
        for line in head.lower().splitlines()
        if line.startswith(b"host:")
    }
    assert bucket.name in hosts
    assert not any(bucket.name.encode() in head.splitlines()[0] for head in store.relay.heads)


@pytest.mark.parametrize("store", REMOTE[2:3], indirect=True, ids=lambda kind: kind.__name__)
def test_oss_is_sent_none_of_the_checksums_that_it_does_not_know(
    emulator: Emulator, store: Store, bucket: Bucket
) -> None:
    assert store.relay is not None
    transfer(submitted(), bucket.uri("cat.png"), store.storage_conn_id, sidecar=True).execute(a_try())
    puts = [head.lower() for head in store.relay.heads if head.startswith(b"PUT /cat.png")]
    assert puts
    assert not any(word in head for head in puts for word in (b"aws-chunked", b"checksum", b"x-amz-trailer"))
