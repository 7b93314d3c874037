"""A finished generation lands: every image of it or none, described as it was stored."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    InvalidDestinationError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.tasks import storing
from airflow_provider_modelscope.tasks.storing import finished_generation, store_images
from airflow_provider_modelscope.xcoms import StoredImage, Submission
from tests.unit.conftest import connect

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.generation import Generation

Context = Any  # a mapping with a stand-in for the task instance


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that somebody wanted to sleep; nobody does."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def submitted(**parameters: Any) -> str:
    return ModelScopeHook().submit_generation(GenerationRequest(**{**ASKED, **parameters}))


def finished(**parameters: Any) -> Generation:
    return finished_generation(ModelScopeHook(), submitted(**parameters))


def with_several_images(*others: Generation) -> Generation:
    """Return a generation that has several images, as ModelScope's answer could."""
    return replace(others[0], output_images=tuple(url for other in others for url in other.output_images))


ASKED = {"model": "Qwen/Qwen-Image", "prompt": "一只金色的猫", "size": "96x64", "seed": 5}
SUBMISSION = Submission(generation_id="42", model="Qwen/Qwen-Image", submitted_at=5.0, request=ASKED)


def landed(
    generation: Generation,
    destination: str,
    context: Context,
    submission: Submission | None = SUBMISSION,
    **options: bool,
) -> list[str]:
    stored = store_images(
        generation,
        Destination.parse(destination),
        hook=ModelScopeHook(),
        context=context,
        submission=submission,
        **options,
    )
    return [image.uri for image in stored]


def content_of(uri: str) -> bytes:
    return Path(uri.removeprefix("file://")).read_bytes()


class TestLanding:
    def test_an_image_lands_byte_for_byte_and_is_described_exactly(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        uri = f"file://{tmp_path}/cats/{generation.generation_id}-1.png"
        assert landed(generation, f"file://{tmp_path}/cats/", context) == [uri]
        [served] = emulator.served.values()
        assert content_of(uri) == served
        assert context["ti"].pushed == {
            "images": [
                {
                    "uri": uri,
                    "storage_conn_id": None,
                    "content_type": "image/png",
                    "width": 96,
                    "height": 64,
                    "size_bytes": len(served),
                    "sha256": sha256(served).hexdigest(),
                    "seed": 5,
                    "model": "Qwen/Qwen-Image",
                    "generation_id": generation.generation_id,
                    # What was not asked for is what the service used.
                    "parameters": {**ASKED, "steps": 30, "guidance": 7.5},
                    "duration_ms": generation.duration_ms,
                    "sidecar_uri": None,
                }
            ]
        }

    def test_the_description_has_the_promised_fields_and_no_other(self) -> None:
        assert [field.name for field in fields(StoredImage)] == [
            "uri", "storage_conn_id", "content_type", "width", "height", "size_bytes", "sha256", "seed", "model",
            "generation_id", "parameters", "duration_ms", "sidecar_uri",
        ]  # fmt: skip

    def test_what_is_not_known_is_none(self, emulator: Emulator, context: Context, tmp_path: Path) -> None:
        landed(replace(finished(), parameters={}), f"file://{tmp_path}/", context, submission=None)
        [image] = context["ti"].pushed["images"]
        assert (image["seed"], image["model"], image["parameters"]) == (None, None, {})

    def test_several_images_land_in_their_order(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        sizes = ["64x64", "128x64", "64x128"]
        generation = with_several_images(*(finished(size=size) for size in sizes))
        uris = landed(generation, f"file://{tmp_path}/", context)
        assert uris == [f"file://{tmp_path}/{generation.generation_id}-{n}.png" for n in (1, 2, 3)]
        assert [content_of(uri) for uri in uris] == [
            emulator.served[url.removeprefix(emulator.base_url)] for url in generation.output_images
        ]
        images = context["ti"].pushed["images"]
        assert [image["uri"] for image in images] == uris
        assert [f"{image['width']}x{image['height']}" for image in images] == sizes

    def test_from_the_second_image_on_an_objects_name_is_numbered(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = with_several_images(finished(), finished(seed=6))
        uris = landed(generation, f"file://{tmp_path}/cat.png", context)
        assert uris == [f"file://{tmp_path}/cat.png", f"file://{tmp_path}/cat-2.png"]

    def test_the_content_names_the_file_and_not_the_url(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        emulator.fail("image:wrong-suffix")
        assert generation.output_images[0].endswith(".png")
        [uri] = landed(generation, f"file://{tmp_path}/", context)
        assert uri.endswith("-1.jpg")
        assert [content_of(uri)] == list(emulator.served.values())
        assert context["ti"].pushed["images"][0]["content_type"] == "image/jpeg"

    @pytest.mark.parametrize(
        ("suffix", "format_", "content_type"),
        [("jpg", "JPEG", "image/jpeg"), ("jpeg", "JPEG", "image/jpeg"), ("webp", "WEBP", "image/webp")],
    )
    def test_a_converted_image_is_described_as_it_lands_and_keeps_its_label_and_parameters(
        self,
        emulator: Emulator,
        context: Context,
        tmp_path: Path,
        suffix: str,
        format_: str,
        content_type: str,
    ) -> None:
        [uri] = landed(finished(), f"file://{tmp_path}/cat.{suffix}", context)
        assert uri == f"file://{tmp_path}/cat.{suffix}"
        content, [served] = content_of(uri), emulator.served.values()
        [image] = context["ti"].pushed["images"]
        described = (content_type, 96, 64, len(content), sha256(content).hexdigest())
        names = ("content_type", "width", "height", "size_bytes", "sha256")
        assert tuple(image[name] for name in names) == described
        before, after = Pillow.open(BytesIO(served)), Pillow.open(BytesIO(content))
        assert (before.format, after.format) == ("PNG", format_)
        assert b"TC260:AIGC" in after.info["xmp"]
        assert after.info["xmp"] == before.info["xmp"]
        comment = after.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + before.info["parameters"].encode("utf-16-be")

    def test_an_image_in_the_asked_format_lands_as_it_came(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        [uri] = landed(finished(), f"file://{tmp_path}/cat.png", context)
        assert [content_of(uri)] == list(emulator.served.values())

    def test_a_retry_lands_on_the_same_objects(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        uris = [landed(generation, f"file://{tmp_path}/", context) for _ in range(2)]
        assert uris[0] == uris[1]
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("fault", ["404", "500", "truncated", "garbage", "html", "reset"])
    @pytest.mark.parametrize("destination", ["", "cat.jpg"], ids=["folder", "object"])
    def test_where_one_image_cannot_be_had_none_is_stored(
        self, emulator: Emulator, context: Context, tmp_path: Path, fault: str, destination: str
    ) -> None:
        generation = with_several_images(finished(), finished(seed=6))
        first, second = generation.output_images
        with Emulator(faults=[f"image:{fault}:*"]) as broken:
            generation = replace(
                generation, output_images=(first, second.replace(emulator.base_url, broken.base_url))
            )
            with pytest.raises(ImageError):
                landed(generation, f"file://{tmp_path}/{destination}", context)
        assert len(emulator.served) == 1
        assert not list(tmp_path.iterdir())
        assert not context["ti"].pushed

    @pytest.mark.parametrize("status", ["403", "404", "410"])
    def test_where_a_url_works_no_longer_a_fresh_one_is_asked_for(
        self, emulator: Emulator, context: Context, tmp_path: Path, status: str
    ) -> None:
        generation = finished()
        emulator.fail(f"image:{status}")
        [uri] = landed(generation, f"file://{tmp_path}/", context)
        assert [content_of(uri)] == list(emulator.served.values())
        paths = [exchange.path.split("/")[1] for exchange in emulator.requests]
        assert paths == ["v1", "v1", "images", "v1", "images"]

    def test_an_image_that_is_gone_for_good_is_asked_for_twice(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        emulator.fail("image:404:*")
        with pytest.raises(ImageGoneError, match=r"no longer works.*the second.*generation \d+"):
            landed(generation, f"file://{tmp_path}/", context)
        assert sum(exchange.path.startswith("/images/") for exchange in emulator.requests) == 2
        assert not list(tmp_path.iterdir())

    def test_where_one_image_cannot_be_stored_nothing_is_described(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = with_several_images(finished(), finished(seed=6))
        (tmp_path / "cat-2.png").mkdir()
        with pytest.raises(InvalidDestinationError, match="IsADirectoryError"):
            landed(generation, f"file://{tmp_path}/cat.png", context)
        assert not context["ti"].pushed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "PATIENCE", 0.9)  # less than the time between two looks


class TestFinishedGeneration:
    def test_it_comes_with_a_fresh_list_of_its_images(self, emulator: Emulator, pauses: list[float]) -> None:
        generation_id = submitted()
        generation = finished_generation(ModelScopeHook(), generation_id)
        assert (generation.generation_id, generation.status, generation.seed) == (generation_id, "SUCCEED", 5)
        assert len(generation.output_images) == 1
        assert len(emulator.requests) == 2
        assert not pauses

    def test_a_failed_one_is_returned_for_the_caller_to_judge(
        self, emulator: Emulator, pauses: list[float]
    ) -> None:
        generation_id = submitted()
        emulator.fail("poll:failed")
        assert finished_generation(ModelScopeHook(), generation_id).status == "FAILED"
        assert not pauses

    @pytest.mark.parametrize("fault", ["no-images", "not-found", "empty", "500", "429"])
    def test_an_answer_that_contradicts_what_was_seen_is_asked_for_again(
        self, emulator: Emulator, pauses: list[float], fault: str
    ) -> None:
        generation_id = submitted()
        emulator.fail(f"poll:{fault}")
        assert finished_generation(ModelScopeHook(), generation_id).output_images
        assert len(pauses) == 1
        assert pauses[0] <= 2

    @pytest.mark.parametrize("fault", ["stall", "not-found:*", "no-images:*"])
    def test_one_that_is_not_finished_is_left_to_the_sensor(
        self, emulator: Emulator, pauses: list[float], impatient: None, fault: str
    ) -> None:
        generation_id = submitted()
        emulator.fail(f"poll:{fault}")
        with pytest.raises(GenerationTimeoutError, match="wait for it with the sensor") as raised:
            finished_generation(ModelScopeHook(), generation_id)
        assert raised.value.generation_id == generation_id
        assert not pauses

    def test_an_error_that_is_final_is_raised_at_once(
        self, pauses: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(tokens=["another"]) as emulator:
            connect(monkeypatch, emulator.base_url)
            with pytest.raises(AuthenticationError):
                finished_generation(ModelScopeHook(), "4003503")
        assert len(emulator.requests) == 1
        assert not pauses
