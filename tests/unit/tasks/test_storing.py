"""A finished generation is stored: all of its images or none, each with a description."""

from __future__ import annotations

import logging
import time
from dataclasses import fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from requests_mock import Mocker

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
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.tasks.storing import fetch_finished_generation, store_images
from airflow_provider_modelscope.xcoms import StoredImage, Submission
from tests.unit.conftest import connect

Context = Any  # a mapping with a stand-in for the task instance


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each call of sleep, which returns at once."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def submitted(**parameters: Any) -> str:
    return ModelScopeHook().submit_generation(GenerationRequest(**{**REQUEST, **parameters}))


def finished(**parameters: Any) -> Generation:
    return fetch_finished_generation(ModelScopeHook(), submitted(**parameters))


def with_several_images(*others: Generation) -> Generation:
    """Return a generation with several images, as ModelScope's response could have."""
    return replace(others[0], output_images=tuple(url for other in others for url in other.output_images))


REQUEST = {"model": "Qwen/Qwen-Image", "prompt": "一只金色的猫", "size": "96x64", "seed": 5}
SUBMISSION = Submission(
    generation_id="42", model="Qwen/Qwen-Image", submitted_at=5.0, request=REQUEST, credit=0.5
)


def stored(
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


class TestStoreImages:
    def test_an_image_is_stored_unchanged_and_described(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        uri = f"file://{tmp_path}/cats/{generation.generation_id}-1.png"
        assert stored(generation, f"file://{tmp_path}/cats/", context) == [uri]
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
                    "asked_model": None,
                    "generation_id": generation.generation_id,
                    # The rest was chosen by the service.
                    "parameters": {**REQUEST, "steps": 30, "guidance": 7.5},
                    "duration_ms": generation.duration_ms,
                    "sidecar_uri": None,
                    "credit": 0.5,
                }
            ]
        }

    def test_the_description_has_exactly_the_documented_fields(self) -> None:
        assert [field.name for field in fields(StoredImage)] == [
            "uri", "storage_conn_id", "content_type", "width", "height", "size_bytes", "sha256", "seed",
            "model", "asked_model", "generation_id", "parameters", "duration_ms", "sidecar_uri", "credit",
        ]  # fmt: skip

    def test_unknown_facts_are_none(self, emulator: Emulator, context: Context, tmp_path: Path) -> None:
        stored(replace(finished(), parameters={}), f"file://{tmp_path}/", context, submission=None)
        [image] = context["ti"].pushed["images"]
        assert (image["seed"], image["model"], image["parameters"]) == (None, None, {})
        assert image["credit"] is None

    def test_several_images_are_stored_in_order(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        sizes = ["64x64", "128x64", "64x128"]
        generation = with_several_images(*(finished(size=size) for size in sizes))
        uris = stored(generation, f"file://{tmp_path}/", context)
        assert uris == [f"file://{tmp_path}/{generation.generation_id}-{n}.png" for n in (1, 2, 3)]
        assert [content_of(uri) for uri in uris] == [
            emulator.served[url.removeprefix(emulator.base_url)] for url in generation.output_images
        ]
        images = context["ti"].pushed["images"]
        assert [image["uri"] for image in images] == uris
        assert [f"{image['width']}x{image['height']}" for image in images] == sizes

    def test_names_are_numbered_from_the_second_image_on(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = with_several_images(finished(), finished(seed=6))
        uris = stored(generation, f"file://{tmp_path}/cat.png", context)
        assert uris == [f"file://{tmp_path}/cat.png", f"file://{tmp_path}/cat-2.png"]

    def test_the_suffix_comes_from_the_content_not_from_the_url(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        emulator.fail("image:wrong-suffix")
        assert generation.output_images[0].endswith(".png")
        [uri] = stored(generation, f"file://{tmp_path}/", context)
        assert uri.endswith("-1.jpg")
        assert [content_of(uri)] == list(emulator.served.values())
        assert context["ti"].pushed["images"][0]["content_type"] == "image/jpeg"

    @pytest.mark.parametrize(
        ("suffix", "format_", "content_type"),
        [("jpg", "JPEG", "image/jpeg"), ("jpeg", "JPEG", "image/jpeg"), ("webp", "WEBP", "image/webp")],
    )
    def test_a_converted_image_is_described_and_keeps_its_label(
        self,
        emulator: Emulator,
        context: Context,
        tmp_path: Path,
        suffix: str,
        format_: str,
        content_type: str,
    ) -> None:
        [uri] = stored(finished(), f"file://{tmp_path}/cat.{suffix}", context)
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

    def test_an_image_in_the_requested_format_is_unchanged(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        [uri] = stored(finished(), f"file://{tmp_path}/cat.png", context)
        assert [content_of(uri)] == list(emulator.served.values())

    def test_a_retry_overwrites_the_same_objects(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        uris = [stored(generation, f"file://{tmp_path}/", context) for _ in range(2)]
        assert uris[0] == uris[1]
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("fault", ["404", "500", "truncated", "garbage", "html", "reset"])
    @pytest.mark.parametrize("destination", ["", "cat.jpg"], ids=["folder", "object"])
    def test_a_failed_download_leaves_no_image_stored(
        self, emulator: Emulator, context: Context, tmp_path: Path, fault: str, destination: str
    ) -> None:
        generation = with_several_images(finished(), finished(seed=6))
        first, second = generation.output_images
        with Emulator(faults=[f"image:{fault}:*"]) as broken:
            generation = replace(
                generation, output_images=(first, second.replace(emulator.base_url, broken.base_url))
            )
            with pytest.raises(ImageError):
                stored(generation, f"file://{tmp_path}/{destination}", context)
        assert not list(tmp_path.iterdir())
        assert not context["ti"].pushed

    @pytest.mark.parametrize("status", ["403", "404", "410"])
    def test_a_fresh_url_is_requested_for_an_expired_one(
        self, emulator: Emulator, context: Context, tmp_path: Path, status: str
    ) -> None:
        generation = finished()
        emulator.fail(f"image:{status}")
        [uri] = stored(generation, f"file://{tmp_path}/", context)
        assert [content_of(uri)] == list(emulator.served.values())
        paths = [exchange.path.split("/")[1] for exchange in emulator.requests]
        assert paths == ["v1", "v1", "images", "v1", "images"]

    def test_fresh_urls_are_requested_once_for_several_expired_ones(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, "")
        files = []
        for side in (8, 16, 24, 32, 40):
            file = BytesIO()
            Pillow.new("L", (side, side)).save(file, "PNG")
            files.append(file.getvalue())
        old, fresh = (
            tuple(f"https://images.example/{age}/{number}.png" for number in range(5))
            for age in ("old", "fresh")
        )
        with Mocker() as service:
            status = {"task_status": "SUCCEED", "output_images": fresh}
            polled = service.get("https://api-inference.modelscope.cn/v1/tasks/42", json=status)
            for number, content in enumerate(files):
                service.get(old[number], content=content, status_code=403 if number else 200)
                service.get(fresh[number], content=content)
            generation = Generation(generation_id="42", status="SUCCEED", output_images=old)
            uris = stored(generation, f"file://{tmp_path}/", context)
        assert polled.call_count == 1
        assert [content_of(uri) for uri in uris] == files

    def test_a_missing_image_is_downloaded_twice_at_most(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = finished()
        emulator.fail("image:404:*")
        with pytest.raises(ImageGoneError, match=r"the second one from the service.*generation \d+"):
            stored(generation, f"file://{tmp_path}/", context)
        assert sum(exchange.path.startswith("/images/") for exchange in emulator.requests) == 2
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("age", "duration_ms", "error"),
        [
            (300, None, ImageError),
            (1200, None, ImageGoneError),
            (300, 290_000, ImageError),
            (300, 10_000, ImageGoneError),
        ],
    )
    def test_a_forbidden_image_is_blocked_while_it_may_be_new(
        self,
        emulator: Emulator,
        context: Context,
        pauses: list[float],
        tmp_path: Path,
        age: int,
        duration_ms: float | None,
        error: type[ImageError],
    ) -> None:
        emulator.fail("image:403:*")
        generation = replace(finished(), duration_ms=duration_ms)
        submission = replace(SUBMISSION, submitted_at=time.time() - age)
        with pytest.raises(ImageError) as raised:
            stored(generation, f"file://{tmp_path}/", context, submission)
        assert type(raised.value) is error

    def test_a_storage_error_leaves_no_description(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation = with_several_images(finished(), finished(seed=6))
        (tmp_path / "cat-2.png").mkdir()
        with pytest.raises(InvalidDestinationError, match="IsADirectoryError"):
            stored(generation, f"file://{tmp_path}/cat.png", context)
        assert not context["ti"].pushed


class TestFetchFinishedGeneration:
    def test_it_has_fresh_urls_of_its_images(self, emulator: Emulator, pauses: list[float]) -> None:
        generation_id = submitted()
        generation = fetch_finished_generation(ModelScopeHook(), generation_id)
        assert (generation.generation_id, generation.status, generation.seed) == (generation_id, "SUCCEED", 5)
        assert len(generation.output_images) == 1
        assert len(emulator.requests) == 2
        assert not pauses

    def test_the_end_is_not_logged_again(
        self, emulator: Emulator, pauses: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        generation_id = submitted()
        caplog.set_level(logging.INFO)
        fetch_finished_generation(ModelScopeHook(), generation_id)
        assert "SUCCEED" not in caplog.text

    def test_a_failed_generation_is_returned(self, emulator: Emulator, pauses: list[float]) -> None:
        generation_id = submitted()
        emulator.fail("poll:failed")
        assert fetch_finished_generation(ModelScopeHook(), generation_id).status == "FAILED"
        assert not pauses

    @pytest.mark.parametrize("fault", ["no-images", "not-found", "empty", "500", "429"])
    def test_a_contradicting_response_is_polled_again(
        self, emulator: Emulator, pauses: list[float], fault: str
    ) -> None:
        generation_id = submitted()
        emulator.fail(f"poll:{fault}")
        assert fetch_finished_generation(ModelScopeHook(), generation_id).output_images
        assert len(pauses) == 1
        assert pauses[0] <= 2

    def test_images_are_taken_whatever_the_status(self, emulator: Emulator, pauses: list[float]) -> None:
        generation_id = submitted()
        emulator.fail("poll:partial")
        generation = fetch_finished_generation(ModelScopeHook(), generation_id, recheck_seconds=0.9)
        assert generation.is_finished
        assert not pauses

    @pytest.mark.parametrize("fault", ["stall", "not-found:*", "no-images:*"])
    def test_an_unfinished_generation_is_left_to_the_sensor(
        self, emulator: Emulator, pauses: list[float], fault: str
    ) -> None:
        generation_id = submitted()
        emulator.fail(f"poll:{fault}")
        with pytest.raises(GenerationTimeoutError, match="wait for it with the sensor") as raised:
            # Less than the time between two polls.
            fetch_finished_generation(ModelScopeHook(), generation_id, recheck_seconds=0.9)
        assert raised.value.generation_id == generation_id
        assert not pauses

    def test_a_final_error_is_raised_at_once(
        self, pauses: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(tokens=["another"]) as emulator:
            connect(monkeypatch, emulator.base_url)
            with pytest.raises(AuthenticationError):
                fetch_finished_generation(ModelScopeHook(), "4003503")
        assert len(emulator.requests) == 1
        assert not pauses
