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
    """Return what an image file and its sidecar contain about how the image was made.

    :raises OSError: if a file cannot be read.
    :raises ImageError: if it is not an image.
    :raises ValueError: if the sidecar is not a JSON object.
    """
    with file.open("rb") as opened, Image.from_file(opened) as image:
        found: dict[str, Any] = {
            "file": f"{image.format}, {image.width}x{image.height}, {image.length} bytes",
            "sha256": image.sha256,
        }
        properties = properties_of(packet_of(image.file) or "")
    if LABEL in properties:
        found["AIGC label"] = properties[LABEL]
    if source_type := properties.get((IPTC, "DigitalSourceType")):
        found["digital source type"] = source_type
    own = {name: text for (namespace, name), text in properties.items() if namespace == NAMESPACE}
    found |= {name: text for name, text in own.items() if name not in found}
    sidecar = file.with_name(f"{file.name}.json")
    if sidecar.is_file():
        document = json.loads(sidecar.read_text())
        if not isinstance(document, dict):
            raise ValueError(f"{sidecar} is not a sidecar: it contains no JSON object")
        is_its_own = document.get("sha256") == found["sha256"]
        found[sidecar.name] = document if is_its_own else "describes another image: the sha256 differs"
    return found


def main(arguments: list[str]) -> int:
    """Print what :func:`read_provenance` finds, and return the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m airflow_provider_modelscope.provenance FILE", file=sys.stderr)
        return 2
    try:
        found = read_provenance(Path(arguments[0].removeprefix("file://")))
    except (OSError, ValueError, ImageError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    for name, value in found.items():
        text = json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict) else value
        print(f"{name}: {text}")
    if len(found) == 2:
        print("No provenance found: neither in the file's metadata nor in a sidecar beside it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
