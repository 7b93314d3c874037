"""Submit a generation; or submit it, wait for it and store its images, in one task."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from airflow.sdk import BaseOperator

from airflow_provider_modelscope.compat import conf
from airflow_provider_modelscope.exceptions import (
    InvalidConnectionError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeRetryableError,
    QuotaExhaustedError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import push_links
from airflow_provider_modelscope.metrics import count_failure, count_spent, time_queue
from airflow_provider_modelscope.tasks.deferral import (
    DEFER_AFTER,
    POLL_INTERVAL,
    can_defer,
    defer_until_credit,
    deferred_task,
    digest_of,
    resumes,
    submit_or_defer,
    wait_or_defer,
)
from airflow_provider_modelscope.tasks.task import ModelScopeTask, StoringTask
from airflow_provider_modelscope.validation import (
    check_all,
    checked_limit,
    choice_errors,
    raise_invalid,
    seconds_errors,
)
from airflow_provider_modelscope.waiting.backoff import RETRY_DELAY, SubmitBackoff

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.tasks.submission_record import Earlier, SubmissionRecord
    from airflow_provider_modelscope.triggers.events import DeferredTask
    from airflow_provider_modelscope.xcoms import Submission

# The parameters of a request. The operators have attributes of the same names.
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
# The template fields whose values errors and logs may quote.
QUOTED_PARAMETERS = (*REQUEST_PARAMETERS, "fallback_models", "storage_conn_id", "max_credit")
ON_LOST_RESPONSE = ("resubmit", "fail")
ON_EXHAUSTED = ("fail", "wait")
EXHAUSTED_TIMEOUT = 24 * 3600.0  # seconds; credit is granted once a day at most


def _on_success(context: Context) -> None:
    from airflow_provider_modelscope.tasks.submission_record import forget_submission

    forget_submission(context)


class ModelScopeSubmitImageGenerationOperator(ModelScopeTask, BaseOperator):
    """Submit a generation and return its ``generation_id``, without waiting for it.

    All parameters are validated before anything is sent. If any are invalid, the task fails at once, and one
    error lists them all. An invalid constant is an import error of the Dag file. Templates work in the
    parameters of the request, and numbers may be text.

    The XCom ``request`` contains the request and its ``generation_id``.

    :param model: A ModelScope model id, such as ``Qwen/Qwen-Image``.
    :param prompt: Description of the image, 1 to 1999 characters.
    :param negative_prompt: What the image should not show, at most 1999 characters.
    :param size: Width and height in pixels, ``WxH``. Stable Diffusion: 64x64 to 2048x2048, FLUX: 64x64 to
        1024x1024, Qwen-Image: 64x64 to 1664x1664, Z-Image: 512x512 to 2048x2048. The range of other models is
        not checked.
    :param seed: 0 to 2147483647. Without it, the seed is random.
    :param steps: 1 to 100.
    :param guidance: 1.5 to 20.
    :param image_url: For models that edit images: one or a list of http(s) URLs that ModelScope can reach,
        ``data:`` URIs, or object storage paths (``s3://...``, ``file://...``). An image in object storage may
        have at most 10 MiB, and is sent inline.
    :param loras: The id of a LoRA, or a mapping of 1 to 6 ids to weights that sum to 1.0.
    :param extra_parameters: Further parameters to send unchanged. It must not contain any other parameter of
        the request.
    :param fallback_models: Other models to ask, in this order, if the service no longer serves ``model`` or
        its quota is used up. Each is a model id, or a mapping with ``model`` and what else differs from the
        request.
    :param check_ranges: Whether ``size`` and ``guidance`` must be in the documented ranges. Some models want
        other values.
    :param storage_conn_id: The connection to the object storage of ``image_url``.
    :param modelscope_conn_id: The connection to ModelScope.
    :param queue_timeout: Seconds to wait while the account runs its maximum of generations, requests come too
        fast or the service is busy; at least 1. Then the task submits a last time.
    :param deferrable: Wait in the triggerer, without a worker. Default: Airflow's ``default_deferrable``.
    :param durable: Record the submission, so that a retry resumes the generation instead of paying for a
        second one. Before Airflow 3.3 this needs the setting ``[modelscope] submission_records``.
    :param on_lost_response: What to do when a submission got no response, so that it may have been charged.
        ``"resubmit"`` lets the retries of the task submit again. ``"fail"`` fails the task, without a retry.
    :param max_credit: The most credit that all attempts of the task may spend. A submission that could exceed
        it is not sent. It needs the record that ``durable`` keeps.
    :param on_exhausted: What to do when the credit of the account or the day's quota is used up. ``"fail"``
        fails the task. ``"wait"`` waits in the triggerer until there is some, and needs ``deferrable``.
        Waiting uses no retries.
    :param exhausted_timeout: Seconds to wait for credit; at least 1. Then the task submits a last time.
    """

    records_submission = True  # tasks downstream read its XCom "request", see ``Submission.find``
    template_fields: Sequence[str] = (*QUOTED_PARAMETERS, "modelscope_conn_id")
    template_fields_renderers = {"loras": "json", "extra_parameters": "json", "fallback_models": "json"}
    _digests: Mapping[str, str] = {}  # of the parameters that the task deferred with and could not store
    _exhausted_end: float | None = None  # when to give up waiting for credit, since the task waits for it
    _may_defer = False  # whether a deferrable task can wait in the triggerer, as far as it is known

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
        fallback_models: Sequence[str | Mapping[str, Any]] | None = None,
        check_ranges: bool = True,
        storage_conn_id: str | None = None,
        modelscope_conn_id: str = ModelScopeHook.default_conn_name,
        queue_timeout: float = 3600,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        durable: bool = True,
        on_lost_response: Literal["resubmit", "fail"] = "resubmit",
        max_credit: float | str | None = None,
        on_exhausted: Literal["fail", "wait"] = "fail",
        exhausted_timeout: float = EXHAUSTED_TIMEOUT,
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
        self.fallback_models = fallback_models
        self.check_ranges = check_ranges
        self.storage_conn_id = storage_conn_id
        self.modelscope_conn_id = modelscope_conn_id
        self.queue_timeout = queue_timeout
        self.deferrable = deferrable
        self.durable = durable
        self.on_lost_response = on_lost_response
        self.max_credit = max_credit
        self.on_exhausted = on_exhausted
        self.exhausted_timeout = exhausted_timeout
        if durable:
            own = self.on_success_callback or []
            self.on_success_callback = [*(own if isinstance(own, list) else [own]), _on_success]
        self._check_constants(ModelScopeSubmitImageGenerationOperator)

    def _constant_checks(self) -> list[Callable[[], object]]:
        from airflow_provider_modelscope.protocol.fallbacks import read_fallbacks
        from airflow_provider_modelscope.protocol.request import check_parameters
        from airflow_provider_modelscope.tasks.parse_time import constant_checks, constants_of

        names = self._constant_parameters()
        constants = constants_of(self, *names)
        errors = check_parameters(constants, check_ranges=self.check_ranges)
        size = constants.get("size") if "model" in names else None  # else a function may return another one
        check_fallbacks = partial(read_fallbacks, size=size, check_ranges=self.check_ranges)
        return [
            lambda: raise_invalid(errors),
            *constant_checks(self, "fallback_models", check_fallbacks),
            lambda: raise_invalid(self._option_errors()),
            *constant_checks(self, "max_credit", checked_limit),
        ]

    def _constant_parameters(self) -> Sequence[str]:
        """Return the parameters of the request that nothing changes after ``__init__`` except templates."""
        return REQUEST_PARAMETERS

    def _option_errors(self) -> Iterator[str]:
        """Yield the errors of the parameters that are not templated."""
        waits = {"queue_timeout": self.queue_timeout, "exhausted_timeout": self.exhausted_timeout}
        yield from seconds_errors(least=1, **waits)
        yield from choice_errors(ON_LOST_RESPONSE, on_lost_response=self.on_lost_response)
        yield from choice_errors(ON_EXHAUSTED, on_exhausted=self.on_exhausted)
        if self.on_exhausted == "wait" and not self.deferrable:
            yield "on_exhausted = 'wait': needs deferrable=True, because the wait is in the triggerer"

    def _request(self) -> GenerationRequest:
        """Return the request, and parse the fallback models.

        :raises InvalidRequestError: with every invalid parameter.
        :raises ModelScopeRetryableError: if the task deferred with another one, which cannot be restored.
        """
        from airflow_provider_modelscope.protocol.fallbacks import read_fallbacks
        from airflow_provider_modelscope.protocol.request import GenerationRequest

        given = {name: getattr(self, name) for name in REQUEST_PARAMETERS}
        request: GenerationRequest
        request, self.fallback_models = check_all(
            lambda: GenerationRequest(**given, check_ranges=self.check_ranges),
            lambda: read_fallbacks(self.fallback_models, size=self.size, check_ranges=self.check_ranges),
        )
        if changed := [
            name
            for name, digest in self._digests.items()
            if digest_of(getattr(request, name, getattr(self, name))) != digest
        ]:
            raise ModelScopeRetryableError(
                f"{', '.join(changed)} was set in execute() and is lost since the task deferred, or its "
                "template gives another value each time. Nothing was sent: a deferral keeps no signed URL "
                "and no image data. Set it in pre_execute(), which runs before each part of the task, or use "
                "a value that stays the same"
            )
        return request

    @contextmanager
    def _part(self, context: Context, event: Any = None) -> Iterator[SubmissionRecord]:
        """Enter a part of the task, which runs in one process, and return the record of its submissions.

        :param event: The event that it resumes with.
        """
        from airflow_provider_modelscope.tasks.submission_record import SubmissionRecord
        from airflow_provider_modelscope.triggers.events import DeferredTask

        if event is not None:
            deferred = DeferredTask.from_event(event)
            self._set(deferred.parameters)
            self._digests = deferred.digests
        record = SubmissionRecord(context, durable=self.durable, on_lost_response=self.on_lost_response)
        with count_failure(self):
            try:
                yield record
            except (InvalidRequestError, InvalidDestinationError, InvalidConnectionError) as error:
                record.name_open_generations(error)
                raise
            finally:
                record.save_again()

    def _set(self, parameters: Mapping[str, Any]) -> None:
        for name, value in parameters.items():
            setattr(self, name, value)

    def execute(self, context: Context) -> Any:
        """Submit, or resume what an earlier attempt submitted, and return the ``generation_id``."""
        with self._part(context) as record:
            return self._run(context, record)

    @resumes
    def execute_queued(self, context: Context, event: Any = None) -> Any:
        """Resume after waiting in the triggerer for a free slot."""
        from airflow_provider_modelscope.triggers.events import SlotFree, read_event
        from airflow_provider_modelscope.waiting.progress import rounded

        with self._part(context, event) as record:
            slot = read_event(event, SlotFree)
            waited = rounded(slot.granted_at - slot.queued_at)
            if slot.granted_at < slot.end_time:
                self.log.info("First in the queue after %s. Submitting", waited)
            else:
                self.log.info("No slot became free within %s. Submitting a last time", waited)
            queue = SubmitBackoff(
                queued_at=slot.queued_at,
                end_time=slot.end_time,
                start_seconds=max(0.0, time.time() - slot.granted_at),
            )
            return self._run(context, record, queue)

    @resumes
    def execute_with_credit(self, context: Context, event: Any = None) -> Any:
        """Resume after waiting in the triggerer for credit."""
        from airflow_provider_modelscope.triggers.events import CreditAvailable, read_event

        with self._part(context, event) as record:
            read_event(event, CreditAvailable)
            return self._run(context, record)

    def _run(self, context: Context, record: SubmissionRecord, queue: SubmitBackoff | None = None) -> Any:
        """Run one part of the task: validate, submit, then do the rest.

        :param queue: The wait for a free slot, if the task resumes from it.
        """
        check_connection = self._refuse_secrets(*QUOTED_PARAMETERS)
        request, *_ = check_all(
            self._request,
            lambda: raise_invalid(self._option_errors()),
            lambda: checked_limit(self.max_credit),
            check_connection,
            record.check,
        )
        submission = self._submit(request, context, record, queue)
        record.finish(submission.generation_id)
        self._raise_if_lost(
            submission.generation_id,
            "There is no generation to wait for",
            "Use ModelScopeImageGenerationOperator, which stores such images",
        )
        return submission.generation_id

    def _raise_if_lost(self, generation_id: str, problem: str, advice: str) -> None:
        """Raise an error if no other process can fetch the images of a generation.

        They were in the response to its submission. Their URLs may be signed, so they are recorded nowhere.
        """
        from airflow_provider_modelscope.exceptions import ImageUnavailableError
        from airflow_provider_modelscope.redaction import without_query

        if generation := self.hook.finished_at_once(generation_id):
            urls = ", ".join(map(without_query, generation.output_images))
            raise ImageUnavailableError(
                f"{problem}. The response to the submission contained the images and no id, so no retry can "
                f"fetch them: {urls}. {advice}",
                generation_id=generation_id,
            )

    def _submit(
        self,
        request: GenerationRequest,
        context: Context,
        record: SubmissionRecord,
        queue: SubmitBackoff | None,
        check_store: Callable[[], None] = lambda: None,
    ) -> Submission:
        """Submit a generation, or resume that of an earlier attempt; a deferrable task may defer.

        :param check_store: Called before a new generation is submitted.
        """
        from airflow_provider_modelscope.images.sources import inline_images
        from airflow_provider_modelscope.protocol.fallbacks import requests_by_model
        from airflow_provider_modelscope.tasks.fallbacks import submit_to_first
        from airflow_provider_modelscope.tasks.submission_record import fingerprint_of

        # Again, as JSON in parameters is parsed.
        self.hook.refuse_secrets(**vars(request), fallback_models=self.fallback_models)
        self._may_defer = self.deferrable and self._can_defer(request, context)
        if queue is None:
            push_links(self, context)
            now = time.time()
            queue = SubmitBackoff(
                queued_at=now, end_time=self._end_time(self.queue_timeout, context, since=now)
            )
        complete = inline_images(request, storage_conn_id=self.storage_conn_id)
        fallbacks: Any = self.fallback_models  # parsed with the request
        candidates = {
            fingerprint_of(one, self.hook.account): one
            for one in requests_by_model(complete, fallbacks).values()
        }
        resumable = (one for one in record.recall(*candidates) if self._is_resumable(one, record))
        submission = next((one.submission for one in resumable), None)
        is_new = submission is None
        if submission is None:
            check_store()
            resume_with = self._deferred(request, context) if self._may_defer else None
            try:
                submission = submit_to_first(
                    candidates.values(),
                    lambda one: self._submit_new(one, context, record, queue, resume_with),
                    modelscope_conn_id=self.modelscope_conn_id,
                    waits_for_credit=self.on_exhausted == "wait",
                )
            except QuotaExhaustedError as error:
                models = [one.model for one in candidates.values()]
                self._defer_until_credit(error, models, request, context)
        accepted = requests_by_model(request, fallbacks).get(submission.model, request)
        submission = replace(
            submission,
            asked_model=None if accepted.model == request.model else request.model,
            request=accepted.summary(),
        )
        submission.record(context)
        if is_new:
            self._log_credit("after")
        return submission

    def _submit_new(
        self,
        request: GenerationRequest,
        context: Context,
        record: SubmissionRecord,
        queue: SubmitBackoff,
        resume_with: DeferredTask | None,
    ) -> Submission:
        """Submit a generation and record it, or defer until a slot is free. A task that deferred asks again.

        :param request: The request, with its images inlined.
        :param resume_with: What a deferrable task resumes with.
        """
        from airflow_provider_modelscope.tasks.cost import price_under_limit
        from airflow_provider_modelscope.tasks.submission_record import fingerprint_of
        from airflow_provider_modelscope.waiting.progress import rounded
        from airflow_provider_modelscope.xcoms import Progress, Submission

        limit = checked_limit(self.max_credit)
        price = price_under_limit(self.hook, request.model, limit)
        fingerprint = fingerprint_of(request, self.hook.account)
        if queue.start_seconds is None:  # a slot that is free now should not wait for a log line
            cost = "an unknown amount" if price is None else f"{price:g}"
            self._log_credit("before", f"; this generation costs {cost}")
        sending = partial(record.sending, fingerprint, credit=price, max_credit=limit)
        calls: dict[str, Any] = {"sending": sending, "on_wait": partial(Progress.record, context, "queued")}
        if resume_with:
            id_ = submit_or_defer(self, request, queue, self.hook, resume_with=resume_with, **calls)
        else:
            id_ = self.hook.submit_with_backoff(request, queue, **calls)
        submission = Submission(
            generation_id=id_, model=request.model, submitted_at=time.time(), credit=price
        )
        waited = submission.submitted_at - queue.queued_at
        after = f" after {rounded(waited)} in the queue" if queue.attempts else ""
        self.log.info("Submitted generation %s to %s%s: %.80r", id_, request.model, after, request.prompt)
        record.save(fingerprint, submission)
        count_spent(price, modelscope_conn_id=self.modelscope_conn_id, model=request.model)
        time_queue(waited, modelscope_conn_id=self.modelscope_conn_id, model=request.model)
        return submission

    def _log_credit(self, when: str, addition: str = "") -> None:
        if (credit := self.hook.find_credit()) or addition:
            self.log.info("Credit %s the submission: %s%s", when, credit or "unknown", addition)

    def _defer_until_credit(
        self,
        error: QuotaExhaustedError,
        models: Sequence[str],
        request: GenerationRequest,
        context: Context,
    ) -> NoReturn:
        """Defer until a submission that was refused may succeed, or raise its error."""
        if self.on_exhausted == "fail":
            raise error
        if not self._may_defer:
            error.message += ". This task cannot wait for credit in the triggerer; the log says why"
            raise error
        if self._exhausted_end is None:
            self._exhausted_end = self._end_time(self.exhausted_timeout, context, since=time.time())
        defer_until_credit(
            self,
            error,
            self.hook,
            models=models,
            end_time=self._exhausted_end,
            resume_with=self._deferred(request, context),
        )

    def _can_defer(self, request: GenerationRequest, context: Context) -> bool:
        """Return whether a deferrable task can wait in the triggerer."""
        return can_defer(self, context, self.hook)

    def _is_resumable(self, earlier: Earlier, record: SubmissionRecord) -> bool:
        """Return whether a generation may still give an image; if not, log why."""
        from airflow_provider_modelscope.exceptions import (
            ModelScopeFinalError,
            RequestRejectedError,
            ServiceUnavailableError,
        )

        id_, age = earlier.submission.generation_id, time.time() - earlier.submission.submitted_at
        polled = self.hook.poll(id_)
        if not isinstance(polled, ModelScopeError) and polled.is_not_found and polled.has_failed(age=age):
            self.hook.sleep_before_retry(RETRY_DELAY)
            polled = self.hook.poll(id_)  # one odd answer is no reason to pay again
        if isinstance(polled, ServiceUnavailableError | RequestRejectedError):
            is_unusable = polled.code is not None and (earlier.was_cleared or earlier.is_given_up)
        elif isinstance(polled, ModelScopeFinalError):
            raise polled
        elif isinstance(polled, ModelScopeError):
            is_unusable = False
        elif polled.has_failed(age=age):
            self.log.warning("Submitting again: generation %s FAILED: %s", id_, polled.error.message)
            if polled.is_refunded:
                record.refund(id_)
            return False
        else:
            is_unusable = earlier.is_given_up and not polled.is_finished
        if is_unusable:
            record.warn_of_new_generation(id_)
            return False
        self.log.info("Resuming generation %s, submitted by an earlier attempt", id_)
        return True

    def _deferred(self, request: GenerationRequest, context: Context) -> DeferredTask:
        """Return the task as it is to resume: with the values that its parameters have now."""
        own = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        given = inspect.signature(own).parameters.values()
        names = [parameter.name for parameter in given if parameter.kind is parameter.KEYWORD_ONLY]
        return deferred_task(self, request, context, [*names, "_exhausted_end"])

    def _end_time(self, timeout: float, context: Context, *, since: float) -> float:
        from airflow_provider_modelscope.waiting.poll import end_of_wait

        # The start of the task. Airflow 3.0 and 3.1 reset it when the task resumes.
        started_at = context["ti"].start_date.timestamp()
        return end_of_wait(timeout, self.execution_timeout, since=since, started_at=started_at)


class ModelScopeImageGenerationOperator(StoringTask, ModelScopeSubmitImageGenerationOperator):
    """Submit a generation, wait for it, store its images, and return the list of their URIs.

    All parameters are validated before anything is sent. If any are invalid, the task fails at once, and one
    error lists them all. An invalid constant is an import error of the Dag file. Templates work in the
    parameters of the request and in ``destination``, and numbers may be text.

    The XCom ``images`` describes each image, see :class:`~airflow_provider_modelscope.xcoms.StoredImage`. The
    XCom ``request`` contains the request and its ``generation_id``, as soon as the service has accepted it.
    Assets in ``outlets`` get the images as extra, asset aliases get them as assets.

    :param model: A ModelScope model id, such as ``Qwen/Qwen-Image``.
    :param prompt: Description of the image, 1 to 1999 characters.
    :param destination: Where to store the images. If it ends with ``/``, it is a folder, in which an image is
        named ``<generation_id>-<n>.<suffix>``. Otherwise it is one object, and further images get ``-<n>``
        before the suffix. The suffixes ``.png``, ``.jpg`` and ``.webp`` convert images of other formats.
    :param negative_prompt: What the image should not show, at most 1999 characters.
    :param size: Width and height in pixels, ``WxH``. Stable Diffusion: 64x64 to 2048x2048, FLUX: 64x64 to
        1024x1024, Qwen-Image: 64x64 to 1664x1664, Z-Image: 512x512 to 2048x2048. The range of other models is
        not checked.
    :param seed: 0 to 2147483647. Without it, the seed is random.
    :param steps: 1 to 100.
    :param guidance: 1.5 to 20.
    :param image_url: For models that edit images: one or a list of http(s) URLs that ModelScope can reach,
        ``data:`` URIs, or object storage paths (``s3://...``, ``file://...``). An image in object storage may
        have at most 10 MiB, and is sent inline.
    :param loras: The id of a LoRA, or a mapping of 1 to 6 ids to weights that sum to 1.0.
    :param extra_parameters: Further parameters to send unchanged. It must not contain any other parameter of
        the request.
    :param fallback_models: Other models to ask, in this order, if the service no longer serves ``model`` or
        its quota is used up. Each is a model id, or a mapping with ``model`` and what else differs from the
        request.
    :param check_ranges: Whether ``size`` and ``guidance`` must be in the documented ranges. Some models want
        other values.
    :param storage_conn_id: The connection to the object storage of ``destination`` and ``image_url``.
    :param modelscope_conn_id: The connection to ModelScope.
    :param queue_timeout: Seconds to wait while the account runs its maximum of generations, requests come too
        fast or the service is busy; at least 1. Then the task submits a last time.
    :param poll_interval: Longest time between two polls, in seconds. Most polls are closer together, but
        never closer than 1 s.
    :param timeout: Seconds from the submission after which the task fails; at least 1. A retry that resumes
        the generation gets as many again.
    :param deferrable: Wait in the triggerer, without a worker. Default: Airflow's ``default_deferrable``.
    :param defer_after: How old a generation may become, in seconds, before a deferrable task leaves its
        worker. A fast model has finished by then, and a deferral takes about 11 s. 0 polls once, then frees
        the worker.
    :param preflight: How to check that ``destination`` can be written, before a generation is paid for.
        ``"read"`` lists one object of the bucket. ``"write"`` writes an empty object and removes it.
        ``"off"`` skips the check.
    :param sidecar: Store a JSON file beside each image, such as ``hero.png.json``, which says how the image
        was made.
    :param embed_metadata: Write the same, in short, into PNG, JPEG and WebP images, with the IPTC's mark for
        AI-generated images. Pixels and the service's own label stay unchanged.
    :param durable: Record the submission, so that a retry resumes the generation instead of paying for a
        second one. Before Airflow 3.3 this needs the setting ``[modelscope] submission_records``.
    :param on_lost_response: What to do when a submission got no response, so that it may have been charged.
        ``"resubmit"`` lets the retries of the task submit again. ``"fail"`` fails the task, without a retry.
    :param max_credit: The most credit that all attempts of the task may spend. A submission that could exceed
        it is not sent. It needs the record that ``durable`` keeps.
    :param on_exhausted: What to do when the credit of the account or the day's quota is used up. ``"fail"``
        fails the task. ``"wait"`` waits in the triggerer until there is some, and needs ``deferrable``.
        Waiting uses no retries.
    :param exhausted_timeout: Seconds to wait for credit; at least 1. Then the task submits a last time.
    """

    template_fields: Sequence[str] = (
        *ModelScopeSubmitImageGenerationOperator.template_fields,
        "destination",
        "preflight",
    )

    def __init__(
        self,
        *,
        model: str,
        prompt: str | XComArg,
        destination: str,
        negative_prompt: str | None = None,
        size: str | None = None,
        seed: int | str | None = None,
        steps: int | str | None = None,
        guidance: float | str | None = None,
        image_url: str | Sequence[str] | XComArg | None = None,
        loras: str | Mapping[str, float | str] | None = None,
        extra_parameters: Mapping[str, Any] | None = None,
        fallback_models: Sequence[str | Mapping[str, Any]] | None = None,
        check_ranges: bool = True,
        storage_conn_id: str | None = None,
        modelscope_conn_id: str = ModelScopeHook.default_conn_name,
        queue_timeout: float = 3600,
        poll_interval: float = POLL_INTERVAL,
        timeout: float = 900,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float = DEFER_AFTER,
        preflight: str = "read",
        sidecar: bool = False,
        embed_metadata: bool = False,
        durable: bool = True,
        on_lost_response: Literal["resubmit", "fail"] = "resubmit",
        max_credit: float | str | None = None,
        on_exhausted: Literal["fail", "wait"] = "fail",
        exhausted_timeout: float = EXHAUSTED_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model=model,
            prompt=prompt,
            negative_prompt=negative_prompt,
            size=size,
            seed=seed,
            steps=steps,
            guidance=guidance,
            image_url=image_url,
            loras=loras,
            extra_parameters=extra_parameters,
            fallback_models=fallback_models,
            check_ranges=check_ranges,
            storage_conn_id=storage_conn_id,
            modelscope_conn_id=modelscope_conn_id,
            queue_timeout=queue_timeout,
            deferrable=deferrable,
            durable=durable,
            on_lost_response=on_lost_response,
            max_credit=max_credit,
            on_exhausted=on_exhausted,
            exhausted_timeout=exhausted_timeout,
            **kwargs,
        )
        self.destination = destination
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.defer_after = defer_after
        self.preflight = preflight
        self.sidecar = sidecar
        self.embed_metadata = embed_metadata
        self._check_constants(ModelScopeImageGenerationOperator)

    def _constant_checks(self) -> list[Callable[[], object]]:
        from airflow_provider_modelscope.images.object_storage import check_destination
        from airflow_provider_modelscope.images.preflight import check_preflight
        from airflow_provider_modelscope.tasks.parse_time import constant_checks

        return [
            *super()._constant_checks(),
            *constant_checks(self, "destination", check_destination),
            *constant_checks(self, "preflight", check_preflight),
        ]

    def _option_errors(self) -> Iterator[str]:
        yield from super()._option_errors()
        yield from seconds_errors(least=1, timeout=self.timeout)
        yield from seconds_errors(poll_interval=self.poll_interval, defer_after=self.defer_after)

    @property
    def _content(self) -> object:
        return {name: getattr(self, name) for name in REQUEST_PARAMETERS}

    def _run(
        self, context: Context, record: SubmissionRecord, queue: SubmitBackoff | None = None
    ) -> list[str]:
        from airflow_provider_modelscope.images.preflight import check_preflight, check_store
        from airflow_provider_modelscope.waiting.poll import PollSchedule

        check_connection = self._refuse_secrets(*QUOTED_PARAMETERS, "destination", "preflight")
        request, destination, *_ = check_all(
            self._request,
            self._parse_destination,
            lambda: self._check_own_destination(context),
            lambda: check_preflight(self.preflight),
            lambda: raise_invalid(self._option_errors()),
            lambda: checked_limit(self.max_credit),
            check_connection,
            record.check,
        )
        submission = self._submit(
            request, context, record, queue, lambda: check_store(destination, self.preflight)
        )
        wait = PollSchedule(
            submission.generation_id,
            submitted_at=submission.submitted_at,
            end_time=self._end_time(self.timeout, context, since=time.time()),
            poll_interval=self.poll_interval,
            model=submission.model,
            size=submission.size,
            fast_poll_until_age=DEFER_AFTER,
        )
        defer_after = self.defer_after if self._may_defer else None
        resume_with = self._deferred(request, context)
        return self._finish(
            lambda: wait_or_defer(self, wait, self.hook, defer_after=defer_after, resume_with=resume_with),
            context,
            record,
            submission=submission,
            destination=destination,
        )

    @resumes
    def execute_complete(self, context: Context, event: Any = None) -> list[str]:
        """Resume after waiting in the triggerer for the generation."""
        from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
        from airflow_provider_modelscope.triggers.events import GenerationFinished, read_event
        from airflow_provider_modelscope.xcoms import Submission

        with self._part(context, event) as record:
            return self._finish(
                lambda: fetch_finished_generation(
                    self.hook, read_event(event, GenerationFinished).generation_id
                ),
                context,
                record,
                submission=Submission.own(context),
            )

    def _finish(
        self,
        wait: Callable[[], Generation],
        context: Context,
        record: SubmissionRecord,
        *,
        submission: Submission | None,
        destination: Destination | None = None,
    ) -> list[str]:
        """Store the generation that ``wait`` returns, and update the record of the submission."""
        from airflow_provider_modelscope.exceptions import (
            GenerationTimeoutError,
            ImageError,
            RequestRejectedError,
        )

        try:
            generation = wait()
            generation.raise_for_failure(retry_resubmits=True)
            uris = self._store(generation, destination or self._parse_destination(), submission, context)
        except (GenerationTimeoutError, ImageError, RequestRejectedError) as error:
            if error.generation_id and self.hook.finished_at_once(error.generation_id):
                record.finish(error.generation_id)
                self.log.warning("%s", error)  # its advice is for a generation that the service keeps
                self._raise_if_lost(
                    error.generation_id,
                    f"The images were not stored ({type(error).__name__}, see the log)",
                    "Clear the task to pay for a new generation",
                )
            if not record.note_failure(error):
                raise
            return self._run(context, record)
        record.finish(generation.generation_id)
        return uris
