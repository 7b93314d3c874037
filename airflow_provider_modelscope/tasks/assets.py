"""What a task's outlets are told of the images that it stored, so that Dags scheduled on them know it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.xcoms import StoredImage

TOLD = ("uri", "sha256", "width", "height", "model", "seed", "generation_id")

log = logging.getLogger(__name__)


def emit_asset_events(images: Sequence[StoredImage], context: Context) -> None:
    """Give each asset in the task's outlets the images as extra, and each alias the images as assets.

    The extra of an asset's event is ``{"images": [...]}``, that of an alias's event the one image; an image
    is told by :data:`TOLD`.
    """
    from airflow.providers.common.compat.sdk import Asset, AssetAlias
    from airflow.sdk.definitions.asset import AssetRef

    told: list[dict[str, Any]] = [{name: getattr(image, name) for name in TOLD} for image in images]
    events: Any = context.get("outlet_events")
    for outlet in context.get("outlets") or ():
        if isinstance(outlet, Asset | AssetRef):
            events[outlet].extra["images"] = told
        elif isinstance(outlet, AssetAlias):
            for image in told:
                try:
                    events[outlet].add(Asset(uri=image["uri"]), extra=image)
                except ValueError as error:  # an asset's URI has at most 1500 characters, on 3.0 of ASCII
                    log.warning("%s is stored, but cannot be an asset: %s", image["uri"], error)
