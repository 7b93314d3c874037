"""How an image was made: all facts in a sidecar file, the most important ones in the image's metadata."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.protocol.request import redacted_json
from airflow_provider_modelscope.provenance.xmp import (
    CannotEmbedError,
    Property,
    with_properties,
)

if TYPE_CHECKING:
    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.xcoms import StoredImage, Submission

NAMESPACE = "urn:airflow-provider-modelscope:image"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
LABEL = ("http://www.tc260.org.cn/ns/AIGC/1.0/", "AIGC")  # the service's own, after GB 45438-2025

_IMAGE_FIELDS = (
    "uri", "sha256", "size_bytes", "content_type", "width", "height", "seed", "model", "asked_model",
)  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the images of one generation were made.

    :param submission: What was recorded when the generation was submitted, if known.
    """

    generation: Generation
    submission: Submission | None

    @property
    def parameters(self) -> dict[str, Any]:
        """The requested parameters, replaced by the ones that the service reports as used."""
        requested = self.submission.request if self.submission else {}
        return {**requested, **self.generation.effective_parameters()}

    def embedded_in(self, image: Image) -> Image:
        """Return the image with the provenance in its metadata, and the IPTC's marker of images made by AI.

        Pixels and labels do not change. An image that cannot hold the metadata, or that contains Content
        Credentials, is returned unchanged, with a warning: it has been paid for. Its file is a view of the
        image's file: close the image last. The URLs of other images are left out: the file may be published.
        """
        facts = {"generation_id": self.generation.generation_id, **self.parameters}
        for private in ("image_url", "extra_parameters"):
            facts.pop(private, None)
        properties = [
            Property(namespace=IPTC, prefix="Iptc4xmpExt", name="DigitalSourceType", text=MADE_BY_AI),
            *(
                Property(namespace=NAMESPACE, prefix="modelscope", name=name, text=_as_text(value))
                for name, value in facts.items()
            ),
        ]
        try:
            return image.spliced(with_properties(image.file, properties, own_namespace=NAMESPACE))
        except CannotEmbedError as error:
            log.warning(
                "Storing the %s of generation %s without embedded metadata: %s",
                image.format, self.generation.generation_id, error,
            )  # fmt: skip
            return image

    def document(
        self,
        stored: StoredImage,
        *,
        content_credentials: bool,
        stored_at: float,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int | None,
    ) -> bytes:
        """Return the JSON text of the sidecar of a stored image.

        :param content_credentials: Whether the stored image contains them.
        :param stored_at: When, in epoch seconds. The other parameters identify the task that stored it.
        """
        submission = self.submission
        facts = {
            **{name: getattr(stored, name) for name in _IMAGE_FIELDS},
            "content_credentials": content_credentials,
            "generation_id": self.generation.generation_id,
            "request_id": self.generation.request_id,
            "request": submission.request if submission else None,
            "parameters_used": redacted_json(self.generation.parameters),
            "submitted_at": _iso(submission.submitted_at) if submission else None,
            "stored_at": _iso(stored_at),
            "duration_ms": self.generation.duration_ms,
            "credit": submission.credit if submission else None,
            "dag_id": dag_id,
            "run_id": run_id,
            "task_id": task_id,
            "map_index": map_index,
            "provider": f"airflow-provider-modelscope {__version__}",
        }
        # The service may send halves of surrogate pairs, which UTF-8 cannot encode.
        return json.dumps(facts, ensure_ascii=False, indent=2).encode(errors="replace")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
