"""Submit a generation; or submit it, wait for it and store its images, in one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import push_links
from airflow_provider_modelscope.metrics import counts_failures
from airflow_provider_modelscope.tasks.deferral import DEFER_AFTER, submit_or_defer, wait_or_defer
from airflow_provider_modelscope.tasks.task import ModelScopeTask, StoringTask
from airflow_provider_modelscope.triggers.events import error_of_event, generation_id_of
from airflow_provider_modelscope.validation import check_all, check_choice, check_seconds
from airflow_provider_modelscope.waiting.backoff import SubmitBackoff
from airflow_provider_modelscope.waiting.poll import POLL_INTERVAL, PollSchedule, end_of_wait

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.tasks.submission_record import SubmissionRecord
    from airflow_provider_modelscope.xcoms import Submission

# The parameters of a request are attributes of the operators under the same names.
REQUEST_PARAMETERS = (
    "model",
    "prompt",
    "negative_prompt",
    "size",
    "seed",
    "steps",
    "guidance",
    "image_url",
    "loras",
    "extra_parameters",
)
ON_LOST_RESPONSE = ("resubmit", "fail")


def _on_success(context: Context) -> None:
    from airflow_provider_modelscope.tasks.submission_record import forget_submission

    forget_submission(context)


class ModelScopeSubmitImageGenerationOperator(ModelScopeTask, BaseOperator):
    """Start a generation and return its ``generation_id``, without waiting for it.

    The parameters are checked before anything is sent; where they are wrong the task fails at once and
    names every mistake. All of them are templated, and numbers may be text.

    The XCom ``request`` keeps what was asked for.

    :param model: A ModelScope model id, such as ``Qwen/Qwen-Image``.
    :param prompt: What to draw, shorter than 2000 characters.
    :param negative_prompt: What not to draw, shorter than 2000 characters.
    :param size: ``WxH`` in pixels. Stable Diffusion: 64x64 to 2048x2048, FLUX: 64x64 to 1024x1024,
        Qwen-Image: 64x64 to 1664x1664, Z-Image: 512x512 to 2048x2048; of other models it is not checked.
    :param seed: 0 to 2147483647.
    :param steps: 1 to 100.
    :param guidance: 1.5 to 20.
    :param image_url: For models that edit: one or a list of http(s) URLs that ModelScope can reach,
        ``data:`` URIs, or object storage paths (``s3://...``, ``file://...``), whose pictures of at most
        10 MiB each are sent along.
    :param loras: A LoRA's id, or a mapping of up to 6 ids to weights that sum to 1.0.
    :param extra_parameters: Further parameters for the API, as they are; it may not override the others.
    :param storage_conn_id: The connection to read object storage with, for ``image_url``.
    :param modelscope_conn_id: The connection to ModelScope.
    :param queue_timeout: Seconds to wait for room while the account already runs as many generations as it
        may, or is too fast.
    :param deferrable: Wait in the triggerer, without a worker. Default: Airflow's ``default_deferrable``.
    :param durable: Keep in Airflow's task state store, from Airflow 3.3 on, what was submitted: a retry takes
        up that generation instead of paying for another.
    :param on_lost_response: What to do where a submission was sent and its answer was lost, so that it may have
        been charged: ``"resubmit"`` lets the task's retries submit again, ``"fail"`` ends the task.
    """

    records_submission = True  # tasks downstream find this task's XCom "request", see ``Submission.find``
    template_fields: Sequence[str] = (*REQUEST_PARAMETERS, "storage_conn_id", "modelscope_conn_id")
    template_fields_renderers = {"loras": "json", "extra_parameters": "json"}

    def __init__(
        self,
        *,
        model: str,
        prompt: str | XComArg,
        negative_prompt: str | None = None,
        size: str | None = None,
        seed: int | str | None = None,
        steps: int | str | None = None,
        guidance: float | str | None = None,
        image_url: str | Sequence[str] | XComArg | None = None,
        loras: str | Mapping[str, float | str] | None = None,
        extra_parameters: Mapping[str, Any] | None = None,
        storage_conn_id: str | None = None,
        modelscope_conn_id: str = ModelScopeHook.default_conn_name,
        queue_timeout: float = 3600,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        durable: bool = True,
        on_lost_response: Literal["resubmit", "fail"] = "resubmit",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.prompt = prompt
        self.negative_prompt = negative_prompt
        self.size = size
        self.seed = seed
        self.steps = steps
        self.guidance = guidance
        self.image_url = image_url
        self.loras = loras
        self.extra_parameters = extra_parameters
        self.storage_conn_id = storage_conn_id
        self.modelscope_conn_id = modelscope_conn_id
        self.queue_timeout = queue_timeout
        self.deferrable = deferrable
        self.durable = durable
        self.on_lost_response = on_lost_response
        callbacks = self.on_success_callback or []
        self.on_success_callback = [*(callbacks if isinstance(callbacks, list) else [callbacks]), _on_success]

    @counts_failures
    def execute(self, context: Context) -> Any:
        """Submit, or take up what an earlier try submitted, and return the ``generation_id``."""
        return self._begin(context)

    def _begin(self, context: Context) -> Any:
        check_all(*self._checks())
        push_links(context, model_url=self.hook.account.model_url(self._request().model))
        since = time.time()
        queue = SubmitBackoff(since=since, end_time=self._end_of(self.queue_timeout, context, since=since))
        return self._start(queue, context, slot_rejected=False)

    def _checks(self) -> list[Callable[[], object]]:
        """Return what finds mistakes before anything is sent, and paid for."""
        return [
            self._request,
            lambda: check_seconds(queue_timeout=self.queue_timeout),
            lambda: check_choice(ON_LOST_RESPONSE, on_lost_response=self.on_lost_response),
            lambda: self.hook.account,
        ]

    def _request(self) -> GenerationRequest:
        from airflow_provider_modelscope.protocol.request import GenerationRequest

        return GenerationRequest(**{name: getattr(self, name) for name in REQUEST_PARAMETERS})

    @counts_failures
    def execute_queued(self, context: Context, event: Any = None) -> Any:
        """Go on after the wait in the triggerer for room in the account's queue."""
        match event:
            case {
                "status": "turn",
                "since": float() | int() as since,
                "end_time": float() | int() as end_time,
            }:
                return self._start(SubmitBackoff(since=since, end_time=end_time), context, slot_rejected=True)
        raise error_of_event(event)

    def _start(self, queue: SubmitBackoff, context: Context, *, slot_rejected: bool) -> Any:
        from airflow_provider_modelscope.images.sources import inline_images
        from airflow_provider_modelscope.tasks.submission_record import fingerprint_of
        from airflow_provider_modelscope.xcoms import Submission

        asked = self._request()
        request = inline_images(asked, storage_conn_id=self.storage_conn_id)
        record = self._record(context)
        fingerprint = fingerprint_of(request, self.hook.account)
        submission = earlier = self._earlier(record, fingerprint)
        if submission is None:
            sending = partial(record.sending, fingerprint)
            if self.deferrable:
                id_ = submit_or_defer(
                    self, request, queue, self.hook, slot_rejected=slot_rejected, sending=sending
                )
            else:
                id_ = self.hook.submit_with_backoff(request, queue, sending=sending)
            self.log.info("ModelScope accepted generation %s by %s: %.80r", id_, asked.model, asked.prompt)
            submission = Submission(generation_id=id_, model=asked.model, submitted_at=time.time())
            record.keep(fingerprint, submission)
        submission = replace(submission, request=asked.summary())
        submission.record(context)
        since = submission.submitted_at if earlier is None else time.time()
        return self._go_on(submission, record, context, since=since)

    def _earlier(self, record: SubmissionRecord, fingerprint: str) -> Submission | None:
        """Return what an earlier try submitted, where that is worth being taken up."""
        from airflow_provider_modelscope.exceptions import (
            ModelScopeError,
            ModelScopeFinalError,
            RequestRejectedError,
        )

        earlier = record.recall(fingerprint)
        if earlier is None:
            return None
        look = self.hook.poll(earlier.generation_id)
        if isinstance(look, RequestRejectedError):  # the service takes its id no longer
            self.log.warning("Generation %s cannot be had: submitting anew. %s", earlier.generation_id, look)
            return None
        if isinstance(look, ModelScopeFinalError):
            raise look
        if not isinstance(look, ModelScopeError) and look.has_failed(age=time.time() - earlier.submitted_at):
            self.log.warning(
                "Generation %s FAILED (%s): submitting anew", earlier.generation_id, look.error.message
            )
            return None
        self.log.info("Taking up generation %s, which an earlier try submitted", earlier.generation_id)
        return earlier

    def _go_on(
        self, submission: Submission, record: SubmissionRecord, context: Context, *, since: float
    ) -> Any:
        record.finish()
        return submission.generation_id

    def _record(self, context: Context) -> SubmissionRecord:
        from airflow_provider_modelscope.tasks.submission_record import SubmissionRecord

        return SubmissionRecord(context, durable=self.durable, on_lost_response=self.on_lost_response)

    def _end_of(self, timeout: float, context: Context, *, since: float) -> float:
        # The task's first start; Airflow 3.0 and 3.1 begin anew where it resumes.
        started_at = context["ti"].start_date.timestamp()
        return end_of_wait(timeout, self.execution_timeout, since=since, started_at=started_at)


class ModelScopeImageGenerationOperator(StoringTask, ModelScopeSubmitImageGenerationOperator):
    """Start a generation, wait for it, store its images, and return the list of their URIs.

    The XCom ``images`` describes each image, see :class:`~airflow_provider_modelscope.tasks.storing.StoredImage`.
    The XCom ``request`` shows the ``generation_id`` while it still runs. Assets in ``outlets`` get the images
    as extra, aliases get them as assets.

    Takes the parameters of :class:`ModelScopeSubmitImageGenerationOperator`, and:

    :param destination: With a ``/`` at its end a folder, in which an image is named
        ``<generation_id>-<n>.<suffix>``; else that very object (from the second image on with ``-<n>``). A
        suffix ``.png``, ``.jpg`` or ``.webp`` converts where the image is of another format.
    :param storage_conn_id: The connection to object storage.
    :param poll_interval: Longest time between looks in seconds; most are closer, but none closer than 1.
    :param timeout: Seconds from submission after which the task fails.
    :param defer_after: Age of the generation in seconds until which a deferrable task looks from its worker:
        a deferral costs some 11 s, in which a fast model has finished. 0 frees the worker at once.
    :param sidecar: Store beside each image ``<name>.json``, which tells how it was made.
    :param embed_metadata: Write that, in short, into PNG, JPEG and WebP images, with the IPTC's marker of
        pictures made by AI. Pixels and the service's own label stay as they are.
    """

    template_fields: Sequence[str] = (*ModelScopeSubmitImageGenerationOperator.template_fields, "destination")

    def __init__(
        self,
        *,
        destination: str,
        poll_interval: float = POLL_INTERVAL,
        timeout: float = 900,
        defer_after: float = DEFER_AFTER,
        sidecar: bool = False,
        embed_metadata: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.destination = destination
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.defer_after = defer_after
        self.sidecar = sidecar
        self.embed_metadata = embed_metadata

    def _checks(self) -> list[Callable[[], object]]:
        return [
            *super()._checks(),
            self._parsed_destination,
            lambda: check_seconds(
                timeout=self.timeout, defer_after=self.defer_after, poll_interval=self.poll_interval
            ),
        ]

    def _go_on(
        self, submission: Submission, record: SubmissionRecord, context: Context, *, since: float
    ) -> list[str]:
        wait = PollSchedule(
            submission.generation_id,
            submitted_at=submission.submitted_at,
            end_time=self._end_of(self.timeout, context, since=since),
            poll_interval=self.poll_interval,
            model=submission.model,
            size=submission.size,
            fast_poll_until_age=DEFER_AFTER,
        )
        defer_after = self.defer_after if self.deferrable else None
        return self._finish(
            lambda: wait_or_defer(self, wait, self.hook, defer_after=defer_after),
            submission,
            record,
            context,
        )

    @counts_failures
    def execute_complete(self, context: Context, event: Any = None) -> list[str]:
        """Go on after the wait in the triggerer."""
        from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
        from airflow_provider_modelscope.xcoms import Submission

        return self._finish(
            lambda: fetch_finished_generation(self.hook, generation_id_of(event)),
            Submission.own(context),
            self._record(context),
            context,
        )

    def _finish(
        self,
        wait: Callable[[], Generation],
        submission: Submission | None,
        record: SubmissionRecord,
        context: Context,
    ) -> list[str]:
        """Store what comes of the wait; the record goes when that is done, or cannot be."""
        from airflow_provider_modelscope.exceptions import (
            GenerationStatusUnknownError,
            GenerationTimeoutError,
            ImageGoneError,
        )

        try:
            generation = wait()
            generation.raise_for_failure(retry_resubmits=True)
            uris = self._store(generation, submission, context)
        except GenerationStatusUnknownError:
            raise
        except GenerationTimeoutError:
            record.miss()
            raise
        except ImageGoneError:
            if not record.miss():
                raise
            return list(self._begin(context))
        record.finish()
        return uris
