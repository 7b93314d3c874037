"""Source images of a request: read from object storage and sent inline."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import ImageError, InvalidRequestError
from airflow_provider_modelscope.images.formats import MAX_PIXELS
from airflow_provider_modelscope.images.image import Image
from airflow_provider_modelscope.images.object_storage import read_object, unreadable
from airflow_provider_modelscope.redaction import preview_url
from airflow_provider_modelscope.validation import INVALID, check_all

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.request import GenerationRequest

MAX_SOURCE_BYTES = 10 * 1024 * 1024  # of one source image


def inline_images(request: GenerationRequest, *, storage_conn_id: str | None = None) -> GenerationRequest:
    """Return the request with its images in object storage as ``data:`` URIs, which ModelScope can read.

    :param storage_conn_id: The connection to object storage; by default the one in ``s3://conn_id@bucket/``.
    :raises InvalidRequestError: if an object is not an image of at most 10 MiB, or can never be read.
    :raises ModelScopeRetryableError: if an object cannot be read now.
    """
    if not request.stored_images:
        return request
    inlined: dict[str, str] = {}

    def inline(url: str) -> None:
        inlined[url] = _data_uri(url, storage_conn_id)

    check_all(*(partial(inline, url) for url in request.stored_images))
    if isinstance(request.image_url, str):
        return replace(request, image_url=inlined[request.image_url], check_ranges=False)  # done already
    images = [inlined.get(url, url) for url in request.image_url or ()]
    return replace(request, image_url=images, check_ranges=False)


def _data_uri(uri: str, storage_conn_id: str | None) -> str:
    """Read one image from object storage."""

    def invalid(problem: str) -> InvalidRequestError:
        return InvalidRequestError(f"{INVALID}image_url = {preview_url(uri, 300)}: {problem}.")

    try:
        content = read_object(uri, storage_conn_id, most=MAX_SOURCE_BYTES, parameter="image_url")
    except Exception as error:  # each store has errors of its own
        raise unreadable(uri, error, parameter="image_url") from error
    if len(content) > MAX_SOURCE_BYTES:
        raise invalid(f"is larger than {MAX_SOURCE_BYTES // 1024**2} MiB")
    try:
        image = Image.from_bytes(content)
    except ImageError as error:  # its message shows some bytes of what may be any file of this worker
        raise invalid(
            f"holds {len(content)} bytes that are not a complete image of at most {MAX_PIXELS} pixels in a "
            "format such as PNG or JPEG"
        ) from error
    return f"data:{image.content_type};base64,{base64.b64encode(content).decode()}"
