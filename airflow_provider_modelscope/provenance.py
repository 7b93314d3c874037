"""How an image was made: told whole in a file beside it, and in short inside it.

``python -m airflow_provider_modelscope.provenance FILE`` prints what a picture and the file beside it tell.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.exceptions import ImageError
from airflow_provider_modelscope.image import Image
from airflow_provider_modelscope.request import presentable
from airflow_provider_modelscope.xmp import (
    CannotEmbedError,
    Property,
    packet_of,
    properties_of,
    with_properties,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.generation import Generation
    from airflow_provider_modelscope.landing import StoredImage
    from airflow_provider_modelscope.upstream import Submission

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
        return {**asked, **self.generation.used_parameters()}

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
            "parameters_used": presentable(self.generation.parameters),
            "submitted_at": _iso(asked.submitted_at) if asked else None,
            "stored_at": _iso(datetime.now(UTC).timestamp()),
            "milliseconds": self.generation.milliseconds,
            "dag_id": ti.dag_id,
            "run_id": ti.run_id,
            "task_id": ti.task_id,
            "map_index": ti.map_index,
            "provider": f"airflow-provider-modelscope {__version__}",
        }
        # The service may have answered with halves of surrogate pairs, which UTF-8 cannot write.
        return json.dumps(told, ensure_ascii=False, indent=2).encode(errors="replace")


_OF_THE_IMAGE = ("uri", "sha256", "bytes", "content_type", "width", "height", "seed", "model")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def told_by(file: Path) -> dict[str, Any]:
    """Return what a picture's file and the one beside it tell of how it was made.

    :raises OSError: where it cannot be read.
    :raises ImageError: where it is no picture.
    """
    with file.open("rb") as opened, Image.from_file(opened) as image:
        told: dict[str, Any] = {
            "file": f"{image.format}, {image.width}x{image.height}, {image.length} bytes",
            "sha256": image.sha256,
        }
        properties = properties_of(packet_of(image.content) or "")
    if LABEL in properties:
        told["AIGC label"] = properties[LABEL]
    if kind := properties.get((IPTC, "DigitalSourceType")):
        told["digital source type"] = kind
    own = {name: text for (namespace, name), text in properties.items() if namespace == NAMESPACE}
    told |= {name: text for name, text in own.items() if name not in told}
    beside = file.with_name(f"{file.name}.json")
    if beside.is_file():
        document = json.loads(beside.read_text())
        if not isinstance(document, dict):
            raise ValueError(f"{beside} tells of no picture")
        is_its = document.get("sha256") == told["sha256"]
        told[beside.name] = document if is_its else "tells of another picture: the sha256 differs"
    return told


def main(arguments: list[str]) -> int:
    """Print what :func:`told_by` finds."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m airflow_provider_modelscope.provenance FILE", file=sys.stderr)
        return 2
    try:
        told = told_by(Path(arguments[0].removeprefix("file://")))
    except (OSError, ValueError, ImageError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    for name, value in told.items():
        print(
            f"{name}: {json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict) else value}"
        )
    if len(told) == 2:
        print("It does not tell how it was made: neither does a file beside it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
