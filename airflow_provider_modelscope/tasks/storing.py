"""Store a finished generation: every image is downloaded before the first one is stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    ModelScopeError,
)
from airflow_provider_modelscope.images.parts import has_content_credentials
from airflow_provider_modelscope.metrics import count_stored
from airflow_provider_modelscope.provenance.record import Provenance
from airflow_provider_modelscope.tasks.assets import emit_asset_events
from airflow_provider_modelscope.waiting.poll import PollSchedule
from airflow_provider_modelscope.xcoms import IMAGES, StoredImage

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.xcoms import Submission

NEW_SECONDS = 60.0  # after its generation the URL of an image cannot have expired yet
LONGEST_SECONDS = 900.0  # how long a generation may have taken if the service does not say it
RECHECK_SECONDS = 90.0  # for how long to poll again when the service contradicts an earlier "finished"

log = logging.getLogger(__name__)


def fetch_finished_generation(
    hook: ModelScopeHook, generation_id: str, *, recheck_seconds: float = RECHECK_SECONDS
) -> Generation:
    """Return a generation that was reported as finished, with fresh URLs of its images.

    :param recheck_seconds: For how long to poll again if the service does not report it as finished.
    :raises GenerationStatusUnknownError: if it is not finished after all, or cannot be polled.
    """
    now = time.time()
    wait = PollSchedule(
        generation_id,
        submitted_at=now,
        end_time=now + recheck_seconds,
        poll_interval=2,
        log_level=logging.DEBUG,  # who waited for it has logged its end
    )
    try:
        generation = hook.poll_until(wait, wait.end_time)
    except GenerationTimeoutError as error:  # it did finish, so this timeout says nothing about it
        raise GenerationStatusUnknownError(error.message, generation_id=generation_id) from None
    if generation is None:
        last = hook.poll(generation_id)
        if not isinstance(last, ModelScopeError) and last.output_images:
            return last.with_images_as_success()
        raise GenerationStatusUnknownError(
            "The generation is not finished: wait for it with the sensor", generation_id=generation_id
        )
    return generation


def store_images(
    generation: Generation,
    destination: Destination,
    *,
    hook: ModelScopeHook,
    context: Context,
    submission: Submission | None,
    sidecar: bool = False,
    embed_metadata: bool = False,
) -> list[StoredImage]:
    """Download every image, then store every image, and return a description of each.

    Pushes the descriptions as the XCom ``images``, and emits them as events of the task's outlets.

    :param submission: What was recorded when the generation was submitted, if known.
    :param sidecar: Store a JSON file with the provenance beside each image.
    :param embed_metadata: Write a short form of the provenance into each image.
    """
    ti = context["ti"]
    stored = land_images(
        generation,
        destination,
        hook=hook,
        ti=ti,
        submission=submission,
        sidecar=sidecar,
        embed_metadata=embed_metadata,
    )
    ti.xcom_push(key=IMAGES, value=[one.to_json() for one in stored])
    emit_asset_events(stored, context)
    return stored


def land_images(
    generation: Generation,
    destination: Destination,
    *,
    hook: ModelScopeHook,
    ti: Any,
    submission: Submission | None,
    sidecar: bool,
    embed_metadata: bool,
    log_level: int = logging.INFO,
) -> list[StoredImage]:
    """Download and store every image, as :func:`store_images` does, but without an XCom and asset events."""
    provenance = Provenance(generation=generation, submission=submission)
    stored: list[StoredImage] = []
    with _generation_in_errors(generation), ExitStack() as opened:
        count = len(generation.output_images)
        log.log(
            log_level,
            "Downloading %d %s of generation %s",
            count, "image" if count == 1 else "images", generation.generation_id,
        )  # fmt: skip
        images = [opened.enter_context(image) for image in _download(generation, hook, submission)]
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
                size_bytes=image.length,
                sha256=image.sha256,
                seed=generation.seed,
                model=submission.model if submission else None,
                asked_model=submission.asked_model if submission else None,
                generation_id=generation.generation_id,
                parameters=provenance.parameters,
                duration_ms=generation.duration_ms,
                credit=submission.credit if submission else None,
            )
            if sidecar:
                document = provenance.document(
                    one,
                    content_credentials=has_content_credentials(image.file),
                    stored_at=time.time(),
                    dag_id=ti.dag_id,
                    run_id=ti.run_id,
                    task_id=ti.task_id,
                    map_index=ti.map_index,
                )
                sidecar_uri = destination.store_sidecar(uri, document, generation_id=generation.generation_id)
                one = replace(one, sidecar_uri=sidecar_uri)
            stored.append(one)
    for one in stored:
        log.log(
            log_level,
            "Stored generation %s: %s (%dx%d, %d bytes)",
            generation.generation_id, one.uri, one.width, one.height, one.size_bytes,
        )  # fmt: skip
    count_stored(stored, submission, modelscope_conn_id=hook.modelscope_conn_id)
    return stored


def _download(generation: Generation, hook: ModelScopeHook, submission: Submission | None) -> list[Image]:
    """Download every image; if a URL has expired, request fresh ones, once."""
    try:
        return hook.download_images(generation.output_images)
    except ImageGoneError as error:
        log.warning("Requesting fresh URLs of generation %s: %s", generation.generation_id, error.message)
        fresh = fetch_finished_generation(hook, generation.generation_id)
        if len(fresh.output_images) != len(generation.output_images):
            raise
    try:
        return hook.download_images(fresh.output_images)
    except ImageGoneError as error:
        taken = LONGEST_SECONDS if generation.duration_ms is None else generation.duration_ms / 1000
        if error.code == 403 and submission and time.time() - submission.submitted_at - taken < NEW_SECONDS:
            raise ImageError(
                f"Blocked, not expired: {error.message}. The image may be less than a minute old: check "
                "the egress rules, the proxy and the firewall between this worker and the image's host",
                code=403,
            ) from None
        error.message += ". This URL was already the second one from the service: the image is gone"
        raise


@contextmanager
def _generation_in_errors(generation: Generation) -> Iterator[None]:
    """Add the generation's id to every error."""
    try:
        yield
    except ModelScopeError as error:
        error.generation_id = generation.generation_id
        raise
