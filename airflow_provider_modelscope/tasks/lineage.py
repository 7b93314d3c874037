"""OpenLineage of stored images: inputs are the model and the source images, outputs are the objects.

Airflow calls this only if the OpenLineage provider is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset

    from airflow_provider_modelscope.xcoms import StoredImage

MODELS = "modelscope"  # the namespace of models, whose names are their ids


def lineage_of(stored: Sequence[StoredImage]) -> OperatorLineage[Any, Any]:
    """Return the lineage of a generation's images, with names by OpenLineage's naming rules."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset

    models = [Dataset(namespace=MODELS, name=name) for name in _unique(image.model for image in stored)]
    sources = [_dataset(url) for url in _unique(url for image in stored for url in _sources(image))]
    return OperatorLineage(inputs=[*models, *sources], outputs=[_dataset(image.uri) for image in stored])


def lineage_of_batch(requests: Any, model: str | None, manifest: str | None) -> OperatorLineage[Any, Any]:
    """Return the lineage of a batch, whose manifest names its images."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset

    models = [Dataset(namespace=MODELS, name=model)] if model else []
    files = [_dataset(requests)] if isinstance(requests, str) and "://" in requests[:10] else []
    return OperatorLineage(inputs=[*models, *files], outputs=[_dataset(manifest)] if manifest else [])


def _sources(image: StoredImage) -> Sequence[str]:
    urls = image.parameters.get("image_url") or ()
    return [url for url in ([urls] if isinstance(urls, str) else urls) if not url.lower().startswith("data:")]


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


def _dataset(uri: str) -> Dataset:
    from openlineage.client.event_v2 import Dataset

    parts = urlsplit(uri)
    scheme = {"local": "file", "s3a": "s3", "gcs": "gs"}.get(parts.scheme, parts.scheme)
    if scheme == "file":
        return Dataset(namespace="file", name=parts.path)
    # The connection's id before the bucket is a notation of Airflow.
    return Dataset(namespace=f"{scheme}://{parts.netloc.rpartition('@')[2]}", name=parts.path.lstrip("/"))
