"""``python -m airflow_provider_modelscope.provenance IMAGE`` prints how an image was made."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import ImageError, InvalidDestinationError
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import LOCAL, read_file, read_object
from airflow_provider_modelscope.images.parts import has_content_credentials
from airflow_provider_modelscope.images.storage_errors import is_forbidden, is_missing
from airflow_provider_modelscope.provenance.record import IPTC, LABEL, NAMESPACE
from airflow_provider_modelscope.provenance.xmp import packet_of, properties_of

MAX_BYTES = 256 * 1024 * 1024  # of an image


def read_provenance(name: str, *, conn_id: str | None = None) -> dict[str, Any]:
    """Return what an image and its sidecar contain about how the image was made.

    :param name: A local path, or the URI of an object, such as ``s3://bucket/name.png``.
    :param conn_id: The Airflow connection to the object storage; by default the one in ``s3://conn_id@bucket/``.
    :raises ImageError: if it is not an image.
    :raises ValueError: if it is too large, or the sidecar is not a JSON object.
    :raises InvalidDestinationError: if the object storage cannot be opened.
    :raises Exception: any error of the object storage.
    """
    with Image.from_file(BytesIO(_read(name, conn_id))) as image:
        found: dict[str, Any] = {
            "file": f"{image.format}, {image.width}x{image.height}, {image.length} bytes",
            "sha256": image.sha256,
        }
        properties = properties_of(packet_of(image.file) or "")
        if has_content_credentials(image.file):
            found["content_credentials"] = "the file contains a C2PA manifest, which is not verified here"
    if LABEL in properties:
        found["AIGC label"] = properties[LABEL]
    if source_type := properties.get((IPTC, "DigitalSourceType")):
        found["digital source type"] = source_type
    own = {name: text for (namespace, name), text in properties.items() if namespace == NAMESPACE}
    found |= {name: text for name, text in own.items() if name not in found}
    sidecar = f"{name}.json"
    try:
        content = _read(sidecar, conn_id)
    except Exception as error:  # each store has errors of its own
        if is_missing(error):
            return found
        if not is_forbidden(error):  # a store may forbid to see that there is none
            raise
        document: Any = f"cannot be read ({error})"
    else:
        document = None
        with suppress(ValueError, RecursionError):
            document = json.loads(content.decode())
        if not isinstance(document, dict):
            raise ValueError(f"{sidecar} is not a sidecar: it contains no JSON object")
        if document.get("sha256") != found["sha256"]:
            document = "describes another image: the sha256 differs"
    return found | {sidecar.rpartition("/")[2]: document}


def _read(name: str, conn_id: str | None) -> bytes:
    scheme, is_uri, path = name.partition("://")
    if not is_uri or scheme.lower() in LOCAL:
        content = read_file(Path(path if is_uri else name), most=MAX_BYTES)
    else:
        parts = urlsplit(name)
        if not parts.netloc or not parts.path.strip("/") or name.endswith("/"):
            raise ValueError("The URI names no object: write it as in s3://bucket/folder/name.png")
        content = read_object(
            name, conn_id, most=MAX_BYTES, parameter="IMAGE", connection_parameter="--conn-id"
        )
    if len(content) > MAX_BYTES:
        raise ValueError(f"The file or object is larger than {MAX_BYTES // 1024**2} MiB")
    return content


def main(arguments: list[str]) -> int:
    """Print what :func:`read_provenance` finds, and return the exit code."""
    parser = ArgumentParser(
        prog="python -m airflow_provider_modelscope.provenance",
        description="Print how an image was made: what the file and the sidecar beside it contain.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a local path, or a URI such as s3://bucket/name.png")
    parser.add_argument("--conn-id", help="the Airflow connection to the object storage of the URI")
    parsed = parser.parse_args(arguments)
    try:
        found = read_provenance(parsed.image, conn_id=parsed.conn_id)
    except Exception as error:  # each store has errors of its own
        print(_problem(parsed.image, error), file=sys.stderr)
        return 1
    for name, value in found.items():
        if isinstance(value, dict):
            text = json.dumps(value, ensure_ascii=False, indent=2)
        else:
            text = value.replace("\n", "\n  ")  # so that no line looks like another fact
        print(_printable(f"{name}: {text}"))
    if len(found) == 2:
        print("No provenance found: neither in the file's metadata nor in a sidecar beside it.")
    return 0


def _printable(text: str) -> str:
    """Return a text without what a terminal would execute or cannot show: it comes from any file."""
    shown = "".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "replace").decode(encoding)


def _problem(name: str, error: Exception) -> str:
    if isinstance(error, InvalidDestinationError):
        return error.message  # it names the URI
    if is_missing(error):
        return f"{name}: there is no such file or object"
    if isinstance(error, ImageError | ValueError):
        return f"{name}: {error}"
    return f"{name}: cannot be read ({type(error).__name__}: {error})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
