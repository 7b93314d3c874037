"""A finished generation becomes objects in object storage: none before every image of it is here, whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    GenerationTimeoutError,
    GenerationUnseenError,
    ImageGoneError,
    ModelScopeError,
)
from airflow_provider_modelscope.metrics import count_stored
from airflow_provider_modelscope.object_storage import Document
from airflow_provider_modelscope.outlets import tell_outlets
from airflow_provider_modelscope.provenance import Provenance
from airflow_provider_modelscope.upstream import IMAGES
from airflow_provider_modelscope.waiting.poll import GenerationWait

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_modelscope.generation import Generation
    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.image import Image
    from airflow_provider_modelscope.object_storage import Destination
    from airflow_provider_modelscope.upstream import Submission

PATIENCE = 90.0  # seconds in which an answer that contradicts an earlier "finished" may right itself

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """What is known of one stored image; an entry of the XCom ``images``.

    :param storage_conn_id: The connection that it was stored through.
    :param parameters: What was asked for, and in its place what was really used where the service says so.
    :param milliseconds: How long the generation took, where the service says so.
    :param sidecar: The URI of the file beside it that tells how it was made, where one was asked for.
    """

    uri: str
    storage_conn_id: str | None
    content_type: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int | None
    model: str | None
    generation_id: str
    parameters: dict[str, Any]
    milliseconds: float | None
    sidecar: str | None = None


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
    log.info(
        "Downloading the images of generation %s: %d", generation.generation_id, len(generation.output_images)
    )
    try:
        return [opened.enter_context(hook.download_image(url)) for url in generation.output_images]
    except ImageGoneError as error:
        opened.close()
        log.warning("Asking generation %s for fresh URLs: %s", generation.generation_id, error.message)
        fresh = finished_generation(hook, generation.generation_id)
        if len(fresh.output_images) != len(generation.output_images):
            raise
    try:
        return [opened.enter_context(hook.download_image(url)) for url in fresh.output_images]
    except ImageGoneError as error:
        error.message += ". It was the second that the service gave: the image is gone"
        raise


@contextmanager
def _about(generation: Generation) -> Iterator[None]:
    """Let every error say which generation it is about."""
    try:
        yield
    except ModelScopeError as error:
        error.generation_id = generation.generation_id
        raise


def land(
    generation: Generation,
    destination: Destination,
    *,
    hook: ModelScopeHook,
    context: Context,
    submission: Submission | None,
    sidecar: bool = False,
    embed_metadata: bool = False,
) -> list[StoredImage]:
    """Download every image, then store every image, and return what is known of each.

    Pushes that as the XCom ``images``, and tells the task's outlets of it.

    :param submission: What was recorded when it was submitted, where that is known.
    :param sidecar: Store beside each image a JSON file that tells how it was made.
    :param embed_metadata: Write that, in short, into the image.
    """
    provenance = Provenance(generation=generation, submission=submission)
    stored: list[StoredImage] = []
    with _about(generation), ExitStack() as opened:
        images = _images(generation, hook, opened)
        if destination.format:
            images = [opened.enter_context(image.converted(destination.format)) for image in images]
        for number, downloaded in enumerate(images, start=1):
            image = provenance.embedded_in(downloaded) if embed_metadata else downloaded
            uri = destination.store(image, generation_id=generation.generation_id, number=number)
            one = StoredImage(
                uri=uri,
                storage_conn_id=destination.storage_conn_id,
                content_type=image.content_type,
                width=image.width,
                height=image.height,
                bytes=image.length,
                sha256=image.sha256,
                seed=generation.seed,
                model=submission.model if submission else None,
                generation_id=generation.generation_id,
                parameters=provenance.parameters,
                milliseconds=generation.milliseconds,
            )
            if sidecar:
                document = Document(content=provenance.document(one, context))
                beside = destination.store_beside(uri, document, generation_id=generation.generation_id)
                one = replace(one, sidecar=beside)
            stored.append(one)
    for one in stored:
        log.info(
            "Stored generation %s: %s (%dx%d, %d bytes)",
            generation.generation_id, one.uri, one.width, one.height, one.bytes,
        )  # fmt: skip
    count_stored(stored, submission, modelscope_conn_id=hook.modelscope_conn_id)
    context["ti"].xcom_push(key=IMAGES, value=[asdict(one) for one in stored])
    tell_outlets(stored, context)
    return stored
