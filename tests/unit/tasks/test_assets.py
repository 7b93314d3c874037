"""Asset events of a task's outlets contain the images that it stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_modelscope.tasks.assets import EVENT_FIELDS, emit_asset_events
from tests.unit.builders import IMAGE

if TYPE_CHECKING:
    import pytest

    from airflow_provider_modelscope.xcoms import StoredImage

IMAGES = [replace(IMAGE, uri=f"s3://bucket/42-{number}.png") for number in (1, 2)]
EXTRAS = [{name: getattr(image, name) for name in EVENT_FIELDS} for image in IMAGES]


def emitted(*outlets: Any, images: Sequence[StoredImage] = IMAGES) -> Any:
    context: Any = {"outlets": list(outlets), "outlet_events": OutletEventAccessors()}
    emit_asset_events(images, context)
    return context["outlet_events"]


def test_an_asset_gets_every_image_as_extra() -> None:
    asset = Asset("images")
    assert emitted(asset)[asset].extra == {"images": EXTRAS}


def test_an_alias_gets_every_image_as_an_asset() -> None:
    alias = AssetAlias("images")
    events = emitted(alias)[alias].asset_alias_events
    assert [event.dest_asset_key.uri for event in events] == [image.uri for image in IMAGES]
    assert [event.extra for event in events] == EXTRAS


def test_the_prompt_is_not_emitted() -> None:
    assert "A cat" not in str(EXTRAS)


def test_other_outlets_and_none_are_ignored() -> None:
    emitted("neither an asset nor an alias")
    emit_asset_events(IMAGES, {"ti": None})  # type: ignore[typeddict-item]


def test_an_image_that_cannot_be_an_asset_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    images = [replace(IMAGES[0], uri=f"s3://bucket/{'x' * 1600}.png"), IMAGES[1]]
    alias = AssetAlias("images")
    events = emitted(alias, images=images)[alias].asset_alias_events
    assert [event.dest_asset_key.uri for event in events] == [IMAGES[1].uri]
    assert "cannot be an asset" in caplog.text
