"""A finished generation becomes objects in object storage: none before every image of it is here, whole."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    GenerationUnseenError,
    ImageGoneError,
)
from airflow_provider_modelscope.waiting import GenerationWait

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.generation import Generation
    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.image import Image
    from airflow_provider_modelscope.object_storage import Destination

PATIENCE = 90.0  # seconds in which an answer that contradicts an earlier "finished" may right itself

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """What is known of one stored image; an entry of the XCom ``images``."""

    uri: str
    content_type: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int | None
    model: str | None


def finished_generation(hook: ModelScopeHook, generation_id: str) -> Generation:
    """Return a generation that was seen to finish, with a fresh list of its images.

    :raises GenerationUnseenError: where it is not finished after all, or cannot be looked at.
    """
    now = time.time()
    wait = GenerationWait(generation_id, submitted_at=now, end_time=now + PATIENCE, poll_interval=2)
    try:
        generation = hook.look_until(wait, wait.end_time)
    except GenerationTimeoutError as error:  # it was seen to finish: so this is no verdict on it
        raise GenerationUnseenError(error.message, generation_id=generation_id) from None
    if generation is None:
        raise GenerationUnseenError(
            "The generation is not finished: wait for it with the sensor", generation_id=generation_id
        )
    return generation


def _images(generation: Generation, hook: ModelScopeHook, opened: ExitStack) -> list[Image]:
    """Download every image; where a URL works no longer, ask for fresh ones, once."""
    try:
        return [opened.enter_context(hook.download_image(url)) for url in generation.output_images]
    except ImageGoneError as error:
        opened.close()
        log.warning("Asking generation %s for fresh URLs: %s", generation.generation_id, error)
        fresh = finished_generation(hook, generation.generation_id)
        if len(fresh.output_images) != len(generation.output_images):
            raise
    try:
        return [opened.enter_context(hook.download_image(url)) for url in fresh.output_images]
    except ImageGoneError as error:
        error.message += ". It was the second that the service gave: the image is gone"
        error.generation_id = generation.generation_id
        raise


def land(
    generation: Generation,
    destination: Destination,
    *,
    hook: ModelScopeHook,
    context: Context,
    model: str | None,
) -> list[str]:
    """Download every image, then store every image, and return their URIs.

    Pushes the XCom ``images`` with what is known of each, see :class:`StoredImage`.
    """
    with ExitStack() as opened:
        images = _images(generation, hook, opened)
        if destination.format:
            images = [opened.enter_context(image.converted(destination.format)) for image in images]
        stored = [
            StoredImage(
                uri=destination.store(image, generation_id=generation.generation_id, number=number),
                content_type=image.content_type,
                width=image.width,
                height=image.height,
                bytes=image.length,
                sha256=image.sha256,
                seed=generation.seed,
                model=model,
            )
            for number, image in enumerate(images, start=1)
        ]
    for image in stored:
        log.info(
            "Stored generation %s: %s (%dx%d, %d bytes)",
            generation.generation_id, image.uri, image.width, image.height, image.bytes,
        )  # fmt: skip
    described: list[dict[str, Any]] = [asdict(image) for image in stored]
    context["ti"].xcom_push(key="images", value=described)
    return [image.uri for image in stored]
