"""Asset events: a task's outlets get the images that it stored, for Dags that are scheduled on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_modelscope.xcoms import StoredImage

# The fields of an image in an event. The prompt is not one of them.
EVENT_FIELDS = ("uri", "sha256", "width", "height", "model", "seed", "generation_id")

log = logging.getLogger(__name__)


def emit_asset_events(images: Sequence[StoredImage], context: Context) -> None:
    """Give each asset in the task's outlets the images as extra, and each alias the images as assets.

    The extra of an asset's event is ``{"images": [...]}``, that of an alias's event is one image. An image
    has the fields :data:`EVENT_FIELDS`.
    """
    from airflow.sdk import Asset, AssetAlias
    from airflow.sdk.definitions.asset import AssetRef

    extras: list[dict[str, Any]] = [{name: getattr(image, name) for name in EVENT_FIELDS} for image in images]
    events: Any = context.get("outlet_events")
    for outlet in context.get("outlets") or ():
        if isinstance(outlet, Asset | AssetRef):
            events[outlet].extra["images"] = extras
        elif isinstance(outlet, AssetAlias):
            for extra in extras:
                try:
                    events[outlet].add(Asset(uri=extra["uri"]), extra=extra)
                except ValueError as error:  # an asset's URI has at most 1500 characters, on 3.0 of ASCII
                    log.warning(
                        "Skipping the asset event of %s: it cannot be an asset: %s", extra["uri"], error
                    )


def emit_batch_event(summary: Mapping[str, Any], context: Context) -> None:
    """Give each asset in the task's outlets the summary of a batch as extra, and each alias its manifest."""
    from airflow.sdk import Asset, AssetAlias
    from airflow.sdk.definitions.asset import AssetRef

    events: Any = context.get("outlet_events")
    for outlet in context.get("outlets") or ():
        if isinstance(outlet, Asset | AssetRef):
            events[outlet].extra.update(summary)
        elif isinstance(outlet, AssetAlias):
            events[outlet].add(Asset(uri=summary["manifest"]), extra=dict(summary))
