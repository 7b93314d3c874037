"""How an image was made: told whole in a file beside it, and in short inside it.

``python -m airflow_provider_modelscope.provenance FILE`` prints what a picture and the file beside it tell.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.exceptions import ImageError
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.protocol.request import redacted_json
from airflow_provider_modelscope.provenance.xmp import (
    CannotEmbedError,
    Property,
    with_properties,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.xcoms import StoredImage, Submission

NAMESPACE = "urn:airflow-provider-modelscope:image"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
LABEL = ("http://www.tc260.org.cn/ns/AIGC/1.0/", "AIGC")  # the service's own, after GB 45438-2025

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the images of one generation were made.

    :param submission: What was recorded when it was submitted, where that is known.
    """

    generation: Generation
    submission: Submission | None

    @property
    def parameters(self) -> dict[str, Any]:
        """What was asked for, and in its place what was really used where the service says so."""
        asked = self.submission.request if self.submission else {}
        return {**asked, **self.generation.effective_parameters()}

    def embedded_in(self, image: Image) -> Image:
        """Return the picture with all that in its metadata, and the IPTC's marker of pictures made by AI.

        No pixel and no label changes. A picture that cannot take it is returned as it is, with a warning:
        it is paid for. Where other pictures lie stays out of it, since it may be published.
        """
        told = {"generation_id": self.generation.generation_id, **self.parameters}
        for private in ("image_url", "extra_parameters"):
            told.pop(private, None)
        properties = [
            Property(namespace=IPTC, prefix="Iptc4xmpExt", name="DigitalSourceType", text=MADE_BY_AI),
            *(
                Property(namespace=NAMESPACE, prefix="modelscope", name=name, text=_as_text(value))
                for name, value in told.items()
            ),
        ]
        try:
            return Image.from_bytes(with_properties(image.content, properties, own_namespace=NAMESPACE))
        except (CannotEmbedError, ImageError) as error:
            log.warning(
                "Generation %s: the %s is stored without metadata of how it was made: %s",
                self.generation.generation_id, image.format, error,
            )  # fmt: skip
            return image

    def document(self, stored: StoredImage, context: Context) -> bytes:
        """Return the JSON text to stand beside a stored image."""
        ti = context["ti"]
        asked = self.submission
        told = {
            **{name: getattr(stored, name) for name in _OF_THE_IMAGE},
            "generation_id": self.generation.generation_id,
            "request_id": self.generation.request_id,
            "request": asked.request if asked else None,
            "parameters_used": redacted_json(self.generation.parameters),
            "submitted_at": _iso(asked.submitted_at) if asked else None,
            "stored_at": _iso(datetime.now(UTC).timestamp()),
            "duration_ms": self.generation.duration_ms,
            "dag_id": ti.dag_id,
            "run_id": ti.run_id,
            "task_id": ti.task_id,
            "map_index": ti.map_index,
            "provider": f"airflow-provider-modelscope {__version__}",
        }
        # The service may have answered with halves of surrogate pairs, which UTF-8 cannot write.
        return json.dumps(told, ensure_ascii=False, indent=2).encode(errors="replace")


_OF_THE_IMAGE = ("uri", "sha256", "size_bytes", "content_type", "width", "height", "seed", "model")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
