"""Source images of a request: read from object storage and sent inline."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import (
    ImageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.images.image import MAX_PIXELS, Image
from airflow_provider_modelscope.images.object_storage import _REFUSING, _is_refusal, read_object
from airflow_provider_modelscope.redaction import preview, truncated
from airflow_provider_modelscope.validation import INVALID, check_all

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.request import GenerationRequest

MAX_SOURCE_BYTES = 10 * 1024 * 1024  # of a picture to edit


def inline_images(request: GenerationRequest, *, storage_conn_id: str | None = None) -> GenerationRequest:
    """Return the request with its pictures in object storage as ``data:`` URIs, which ModelScope can read.

    :raises InvalidRequestError: where one is not a picture of at most 10 MiB.
    """
    if not request.stored_images:
        return request
    inlined: dict[str, str] = {}

    def inline(url: str) -> None:
        inlined[url] = _data_uri(url, storage_conn_id)

    check_all(*(partial(inline, url) for url in request.stored_images))
    if isinstance(request.image_url, str):
        return replace(request, image_url=inlined[request.image_url])
    return replace(request, image_url=[inlined.get(url, url) for url in request.image_url or ()])


def _data_uri(uri: str, storage_conn_id: str | None) -> str:
    """Read one picture from object storage."""

    def wrong(problem: str) -> InvalidRequestError:
        return InvalidRequestError(f"{INVALID}image_url = {preview(uri, 300)}: {problem}.")

    try:
        content = read_object(uri, storage_conn_id, most=MAX_SOURCE_BYTES, parameter="image_url")
    except InvalidDestinationError as error:
        raise InvalidRequestError(f"{INVALID}{error.message}") from error
    except Exception as error:  # each store has errors of its own
        problem = f"{type(error).__name__}: {truncated(str(error), 300)}"
        if isinstance(error, OSError) and error.errno in _REFUSING:
            problem = str(error.strerror)  # the rest is a long name
        if isinstance(error, ValueError) or _is_refusal(error):
            raise wrong(f"cannot be read ({problem})") from error
        raise ModelScopeRetryableError(f"Nothing was sent. image_url = {uri!r}: {problem}") from error
    if len(content) > MAX_SOURCE_BYTES:
        raise wrong(f"is larger than {MAX_SOURCE_BYTES // 1024**2} MiB")
    try:
        image = Image.from_bytes(content)
    except ImageError as error:  # whose message shows some bytes of what may be any file of this worker
        raise wrong(
            f"holds {len(content)} bytes that are not a whole picture, such as PNG or JPEG, of at most "
            f"{MAX_PIXELS} pixels"
        ) from error
    return f"data:{image.content_type};base64,{base64.b64encode(content).decode()}"
