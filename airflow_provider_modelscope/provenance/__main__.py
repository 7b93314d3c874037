"""``python -m airflow_provider_modelscope.provenance FILE`` prints how an image was made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from airflow_provider_modelscope.exceptions import ImageError
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.provenance.record import IPTC, LABEL, NAMESPACE
from airflow_provider_modelscope.provenance.xmp import packet_of, properties_of


def read_provenance(file: Path) -> dict[str, Any]:
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
    """Print what :func:`read_provenance` finds."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m airflow_provider_modelscope.provenance FILE", file=sys.stderr)
        return 2
    try:
        told = read_provenance(Path(arguments[0].removeprefix("file://")))
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
