"""The image: its size, its label as made by AI, and the same bytes for the same request."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from airflow_provider_modelscope.emulator.drawing import caption, draw
from airflow_provider_modelscope.emulator.lettering import MISSING, Lettering
from tests.unit.emulator.api import parameters


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"prompt": "A dog"}, {"steps": 9}, {"image_url": "http://a/1"}, {"loras": "a/b"}]
)
def test_another_request_gives_another_image(other: dict[str, Any]) -> None:
    assert draw(parameters(**other)) != draw(parameters())


@pytest.mark.parametrize("size", ["64x64", "64x2048", "2048x64", "512x768", "2048x2048"])
def test_an_image_has_the_requested_size(size: str) -> None:
    image = Image.open(BytesIO(draw(parameters(model="a/b", size=size, prompt="word " * 300))))
    image.load()
    assert f"{image.width}x{image.height}" == size


def test_an_image_is_labelled_as_made_by_ai_once() -> None:
    drawn_from = parameters(prompt='A cat & a "dog" <3')
    image = Image.open(BytesIO(draw(drawn_from)))
    root = ET.fromstring(image.info["XML:com.adobe.xmp"])  # noqa: S314 - drawn by the emulator
    (label,) = root.iter("{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC")
    assert json.loads(label.text or "") == {
        "Label": "1",
        "ContentProducer": "ModelScope emulator",
        "ProduceID": drawn_from.digest[:32],
    }
    assert image.info["parameters"].startswith('A cat & a "dog" <3\nSteps: 30, ')
    assert f"Seed: {drawn_from.seed}, Size: 64x64, Model: {drawn_from.model}" in image.info["parameters"]


def test_the_label_names_where_the_edited_image_came_from() -> None:
    assert parameters(image_url="https://a.example/b.png?secret=1").edited_from == "a.example"
    assert parameters(image_url=["data:image/png;base64,AA==", "http://b/c"]).edited_from == (
        "inline image/png and 1 more"
    )


def test_the_caption_shows_the_prompt_the_model_and_the_seed() -> None:
    drawn_from = parameters(model="a/b", prompt="A cat", size="512x512", image_url="http://c/d")
    shown = [line for line, _, _ in caption(drawn_from, Lettering(files=()))]
    assert shown == ["A cat", "a/b", f"seed {drawn_from.seed}, 512x512", "edited from c"]


def test_the_caption_explains_what_no_font_can_write() -> None:
    drawn_from = parameters(model="a/b", prompt="A cat, \u4e00\u5ea7", size="512x512")
    first, *_, last = [line for line, _, _ in caption(drawn_from, Lettering(files=()))]
    assert (first, last) == (f"A cat, {MISSING}", f"{MISSING} no font for these characters")
