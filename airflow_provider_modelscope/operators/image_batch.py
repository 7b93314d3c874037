"""Generate many images in one task: a file or a list of requests in, images and a manifest out."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from airflow.sdk import BaseOperator

from airflow_provider_modelscope.compat import AirflowSkipException, conf
from airflow_provider_modelscope.exceptions import (
    BatchFailedError,
    BatchRejectedError,
    GenerationTimeoutError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeRetryableError,
    QuotaExhaustedError,
    RequestRejectedError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import push_links
from airflow_provider_modelscope.metrics import count_failure
from airflow_provider_modelscope.operators.image_generation import (
    EXHAUSTED_TIMEOUT,
    ON_EXHAUSTED,
    ON_LOST_RESPONSE,
    REQUEST_PARAMETERS,
)
from airflow_provider_modelscope.redaction import preview, preview_url
from airflow_provider_modelscope.tasks.deferral import (
    POLL_INTERVAL,
    can_defer,
    defer_until_credit,
    defer_until_finished,
    defer_until_slot_free,
    resumes,
)
from airflow_provider_modelscope.tasks.task import StoringTask
from airflow_provider_modelscope.validation import (
    check_all,
    checked_limit,
    choice_errors,
    raise_invalid,
    seconds_errors,
)

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, XComArg

    from airflow_provider_modelscope.batch.rows import Row, Shard
    from airflow_provider_modelscope.batch.run import BatchRun, Policy, UntilFinished, UntilSlotFree
    from airflow_provider_modelscope.batch.working_set import WorkingSet
    from airflow_provider_modelscope.images.object_storage import Destination

DEFER_AFTER = 60.0  # seconds; a deferral leaves the account idle for some seconds
MANIFEST_FORMATS = ("jsonl", "parquet")
# What all rows have in common unless they say something else. A prompt belongs to a row.
DEFAULTS = tuple(name for name in REQUEST_PARAMETERS if name != "prompt")
QUOTED_PARAMETERS = (*DEFAULTS, "fallback_models", "storage_conn_id", "max_credit", "destination", "shard")
MAX_ITEM_ATTEMPTS, MAX_CONCURRENCY, MAX_REQUESTS = 10, 100, 1_000_000


class ModelScopeImageBatchOperator(StoringTask, BaseOperator):
    """Generate an image for each of many requests, and return where their manifest is.

    All requests are validated before the first is submitted. If any are invalid, the task fails at once, and
    the error lists the first of them. Then one worker keeps the account busy. A row that is rejected or fails
    does not stop the others.

    Each step is recorded beside the images, in ``<destination>.modelscope/``. A retry or *Clear* resumes the
    generations that were running, and only does the rows that are missing or have changed.

    The task returns a mapping. ``manifest`` is the URI for :func:`airflow_provider_modelscope.manifest.read`.
    ``counts`` has the number of rows that are ``stored``, ``rejected``, ``failed`` and ``skipped``.
    ``credit`` is what was spent, and ``stopped_by`` what ended the batch early. If the task fails, the XCom
    ``summary`` has the same. Assets in ``outlets`` get it as extra.

    :param requests: The requests: a list of prompts or of mappings, or the URI of a ``.jsonl``, ``.csv`` or
        ``.parquet`` object. A mapping or a line has parameters of a request. Its ``key`` is the name of its
        image, by default the number of the row. The manifest passes its ``data`` on.
    :param destination: The folder of the images and the manifest, with ``/`` at its end, which no other batch
        and no other run has. An image is named ``<key>.<suffix>``.
    :param model: A ModelScope model id, such as ``Qwen/Qwen-Image``. This and the next parameters, up to
        ``extra_parameters``, apply to the requests that have none of their own.
    :param negative_prompt: What the image should not show, at most 1999 characters.
    :param size: Width and height in pixels, ``WxH``.
    :param seed: 0 to 2147483647. Without it, the seed is random.
    :param steps: 1 to 100.
    :param guidance: 1.5 to 20.
    :param image_url: For models that edit images: one or a list of http(s) URLs that ModelScope can reach,
        ``data:`` URIs, or object storage paths.
    :param loras: The id of a LoRA, or a mapping of 1 to 6 ids to weights that sum to 1.0.
    :param extra_parameters: Further parameters to send unchanged.
    :param fallback_models: Other models to ask, in this order, if the service no longer serves the model of a
        row or its quota is used up.
    :param check_ranges: Whether ``size`` and ``guidance`` must be in the documented ranges. Some models want
        other values.
    :param storage_conn_id: The connection to the object storage of ``requests``, ``destination`` and
        ``image_url``.
    :param modelscope_conn_id: The connection to ModelScope.
    :param max_requests: How many requests are allowed, 1 to 1000000. More are an error.
    :param on_empty: What to do if there is no request: ``"fail"`` or ``"skip"`` the task.
    :param shard: The part of the requests that this task does. In a mapped task with three connections it is
        ``"{{ ti.map_index }}/3"``. Each part has its own manifest.
    :param concurrency: How many generations to run at once, 1 to 100. ``"auto"`` raises it until the service
        refuses.
    :param max_failures: How many rows may be rejected or fail without failing the task: a number, or a share
        such as ``"5%"``.
    :param item_attempts: How many generations to submit for a row at most in one attempt of the task, 1 to
        10. A new one replaces one that FAILED, or whose image is broken or gone.
    :param max_credit: The most credit that all attempts of the task may spend.
    :param on_exhausted: What to do when the credit of the account, the day's quota or ``max_credit`` is used
        up. ``"fail"`` fails the task. ``"stop"`` ends it as a success and skips the other rows. ``"wait"``
        waits in the triggerer for credit, and needs ``deferrable``. At ``max_credit`` it fails as well.
    :param exhausted_timeout: Seconds to wait for credit; at least 1. Then the task submits a last time.
    :param on_lost_response: What to do when a submission got no response, so that it may have been charged.
        ``"resubmit"`` submits the row again. ``"fail"`` lets the row fail.
    :param queue_timeout: Seconds after which the task fails if the account accepts nothing, although the task
        runs nothing; at least 1.
    :param timeout: Seconds from its submission after which a generation is given up; at least 1.
    :param poll_interval: Longest time between two polls of a generation, in seconds.
    :param deferrable: Leave the worker while a generation takes long. Default: Airflow's
        ``default_deferrable``.
    :param defer_after: How long each generation must still run, in seconds, before a deferrable task leaves
        its worker.
    :param sidecar: Store a JSON file beside each image, such as ``<key>.png.json``, which says how the image
        was made.
    :param embed_metadata: Write the same, in short, into PNG, JPEG and WebP images.
    :param manifest_format: ``"jsonl"`` or ``"parquet"``.
    :param redraw: After *Clear*, generate the images of all rows again, also of those that are stored.
    :param dry_run: Only validate and count, and return the price: nothing is sent or stored.
    """

    template_fields: Sequence[str] = ("requests", *QUOTED_PARAMETERS, "modelscope_conn_id")
    template_fields_renderers = {"requests": "json", "loras": "json", "extra_parameters": "json"}
    _returns_mapping = True
    _exhausted_end: float | None = None  # when to give up waiting for credit, since the task waits for it
    _manifest: str | None = None
    _scratch: Path | None = None

    def __init__(
        self,
        *,
        requests: str | Sequence[str | Mapping[str, Any]] | XComArg,
        destination: str,
        model: str | None = None,
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
        max_requests: int = 10_000,
        on_empty: Literal["fail", "skip"] = "fail",
        shard: str | None = None,
        concurrency: int | Literal["auto"] = 1,
        max_failures: int | str = 0,
        item_attempts: int = 2,
        max_credit: float | str | None = None,
        on_exhausted: Literal["fail", "wait", "stop"] = "fail",
        exhausted_timeout: float = EXHAUSTED_TIMEOUT,
        on_lost_response: Literal["resubmit", "fail"] = "resubmit",
        queue_timeout: float = 3600,
        timeout: float = 900,
        poll_interval: float = POLL_INTERVAL,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float = DEFER_AFTER,
        sidecar: bool = False,
        embed_metadata: bool = False,
        manifest_format: Literal["jsonl", "parquet"] = "jsonl",
        redraw: bool = False,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.requests = requests
        self.destination = destination
        self.model = model
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
        self.max_requests = max_requests
        self.on_empty = on_empty
        self.shard = shard
        self.concurrency = concurrency
        self.max_failures = max_failures
        self.item_attempts = item_attempts
        self.max_credit = max_credit
        self.on_exhausted = on_exhausted
        self.exhausted_timeout = exhausted_timeout
        self.on_lost_response = on_lost_response
        self.queue_timeout = queue_timeout
        self.timeout = timeout
        self.poll_interval = poll_interval
        self.deferrable = deferrable
        self.defer_after = defer_after
        self.sidecar = sidecar
        self.embed_metadata = embed_metadata
        self.manifest_format = manifest_format
        self.redraw = redraw
        self.is_dry_run = dry_run  # Airflow has a method of that name
        self._check_constants(ModelScopeImageBatchOperator)

    def _constant_checks(self) -> list[Callable[[], object]]:
        from airflow_provider_modelscope.batch.rows import parse_shard
        from airflow_provider_modelscope.protocol.fallbacks import read_fallbacks
        from airflow_provider_modelscope.protocol.request import check_parameters
        from airflow_provider_modelscope.tasks.parse_time import constant_checks, constants_of

        constants = constants_of(self, *DEFAULTS)
        errors = check_parameters(
            {name: value for name, value in constants.items() if value is not None},
            check_ranges=self.check_ranges,
        )
        check_fallbacks = partial(read_fallbacks, size=constants.get("size"), check_ranges=self.check_ranges)
        return [
            lambda: raise_invalid(errors),
            *constant_checks(self, "fallback_models", check_fallbacks),
            lambda: raise_invalid(self._option_errors()),
            *constant_checks(self, "max_credit", checked_limit),
            *constant_checks(self, "shard", lambda shard: parse_shard(shard) if shard else None),
            *constant_checks(self, "destination", self._check_folder),
            self._check_kept_by_retries,
        ]

    def _option_errors(self) -> Iterator[str]:
        """Yield the errors of the parameters that are not templated."""
        yield from seconds_errors(
            least=1,
            timeout=self.timeout,
            queue_timeout=self.queue_timeout,
            exhausted_timeout=self.exhausted_timeout,
        )
        yield from seconds_errors(poll_interval=self.poll_interval, defer_after=self.defer_after)
        yield from choice_errors(ON_LOST_RESPONSE, on_lost_response=self.on_lost_response)
        yield from choice_errors((*ON_EXHAUSTED, "stop"), on_exhausted=self.on_exhausted)
        yield from choice_errors(("fail", "skip"), on_empty=self.on_empty)
        yield from choice_errors(MANIFEST_FORMATS, manifest_format=self.manifest_format)
        yield from _count_errors(MAX_ITEM_ATTEMPTS, item_attempts=self.item_attempts)
        yield from _count_errors(MAX_REQUESTS, max_requests=self.max_requests)
        if self.concurrency != "auto":
            for error in _count_errors(MAX_CONCURRENCY, concurrency=self.concurrency):
                yield f'{error}, or "auto"'
        if _failures_allowed(self.max_failures, of=1) is None:
            yield f"max_failures = {preview(self.max_failures)}: must be an integer from 0, or such as '5%'"
        if self.on_exhausted == "wait" and not self.deferrable:
            yield "on_exhausted = 'wait': needs deferrable=True, because the wait is in the triggerer"

    def _check_folder(self, destination: str) -> None:
        from airflow_provider_modelscope.images.object_storage import check_destination

        if isinstance(destination, str) and not destination.endswith("/"):
            raise InvalidDestinationError(
                f"destination = {preview(destination)}: must be a folder, in which each image is named by "
                "its key: end it with '/'"
            )
        check_destination(destination)

    def _check_kept_by_retries(self) -> None:
        """Check that a retry finds what is paid for."""
        destination = self.destination
        if isinstance(destination, str) and re.search(r"\{[{%].*\btry_number\b", destination):
            raise InvalidDestinationError(
                f"destination = {preview(destination)}: must be the same in all attempts, else a retry pays "
                "for everything again: leave try_number out"
            )

    def _check_not_replaced(self, requests: Any) -> None:
        """Check that the manifest is not written to the file of requests."""
        if isinstance(requests, str) and _place_of(requests) == _place_of(self._manifest or ""):
            raise_invalid(
                [
                    f"requests = {preview_url(requests, 300)}: the manifest would replace this file: give it "
                    "another name, or choose another destination"
                ]
            )

    def _check_source_kept(self, row: Row) -> None:
        """Check that an image to edit is not replaced by its own result."""
        given = row.request.image_url or ()
        for url in [given] if isinstance(given, str) else given:
            if _place_of(url.rpartition(".")[0]) == _place_of(f"{self.destination}{row.key}"):
                raise InvalidRequestError(
                    f"row {row.number} ({row.key}): image_url = {preview_url(url, 300)}: the new image would "
                    "replace this one: give the row another key, or choose another destination"
                )

    @property
    def _content(self) -> object:
        return self.requests

    def execute(self, context: Context) -> dict[str, Any]:
        """Generate the images, or resume what an earlier attempt began, and return the summary."""
        return self._run(context, self.requests)

    @resumes
    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Resume after waiting in the triggerer for a generation."""
        from airflow_provider_modelscope.triggers.events import GenerationFinished

        return self._resume(context, event, GenerationFinished)

    @resumes
    def execute_queued(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Resume after waiting in the triggerer for a free slot."""
        from airflow_provider_modelscope.triggers.events import SlotFree

        return self._resume(context, event, SlotFree)

    @resumes
    def execute_with_credit(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Resume after waiting in the triggerer for credit."""
        from airflow_provider_modelscope.triggers.events import CreditAvailable

        return self._resume(context, event, CreditAvailable)

    def _resume(self, context: Context, event: Any, expected: type[Any]) -> dict[str, Any]:
        from airflow_provider_modelscope.triggers.events import DeferredTask, read_event

        self._exhausted_end = DeferredTask.from_event(event).parameters.get("exhausted_end")
        queued_at, failure = None, None
        try:
            queued_at = getattr(read_event(event, expected), "queued_at", None)
        except (GenerationTimeoutError, RequestRejectedError) as error:  # of one row: the others go on
            self.log.warning("%s", error)
        except ModelScopeError as error:
            failure = error
        return self._run(context, is_resumed=True, queued_at=queued_at, failure=failure)

    def _run(self, context: Context, requests: Any = None, **resumed: Any) -> dict[str, Any]:
        with count_failure(self):
            return self._run_counted(context, requests, **resumed)

    def _run_counted(
        self,
        context: Context,
        requests: Any,
        *,
        is_resumed: bool = False,
        queued_at: float | None = None,
        failure: ModelScopeError | None = None,
    ) -> dict[str, Any]:
        """Run one part of the task.

        :param requests: The requests, as the user gave them: anything.
        :param is_resumed: Whether the task resumes with the requests that it has planned instead.
        :param queued_at: Since when the task waits for a free slot, if it resumes from it.
        :param failure: The error that ended the wait in the triggerer.
        """
        from airflow_provider_modelscope.batch.run import BatchRun
        from airflow_provider_modelscope.batch.state import BatchState
        from airflow_provider_modelscope.batch.working_set import WorkingSet
        from airflow_provider_modelscope.compat import AirflowTaskTimeout
        from airflow_provider_modelscope.images.preflight import check_store
        from airflow_provider_modelscope.xcoms import BATCH

        policy, destination, shard = self._check(context)
        ti = context["ti"]
        push_links(self, context)
        state = BatchState(destination, ti, shard)
        self._scratch = state.scratch
        destination = replace(destination, scratch=state.scratch)
        manifest = destination.beside(self._manifest_name(shard))
        self._manifest = f"{destination.uri}{manifest.name}"
        self._check_not_replaced(requests)
        with WorkingSet() as rows:
            value, results = state.load()
            if is_resumed:
                state.read_plan(rows)
            else:
                rows.add(self._rows(requests, shard, policy.fallbacks))
            batch = BatchRun(rows, state, policy, hook=self.hook, destination=destination, ti=ti)
            if not is_resumed:
                state.check_folder()
            if self.is_dry_run:
                batch.load({}, results)
                return self._estimate(rows)
            if not is_resumed:
                check_store(destination, "read")
                state.write_plan(rows)
            ti.xcom_push(
                key=BATCH,
                value={
                    "state": state.uri,
                    "storage_conn_id": destination.storage_conn_id,
                    "manifest": self._manifest,
                    "total": len(rows),
                },
            )
            self._log_credit("before")
            batch.load(value, results, queued_at=queued_at)
            if not is_resumed:
                batch.begin()
            try:
                if failure:
                    raise failure
                pause = batch.work()
                if batch.has_submitted:
                    self._exhausted_end = None  # there was credit
                if pause:
                    self._defer(pause, context)
                self._wait_for_credit(batch, rows, policy, context)
            except (Exception, AirflowTaskTimeout) as error:  # ours, or of this machine, such as a full disk
                self._conclude(batch, rows, manifest, context, error)
                raise
            return self._conclude(batch, rows, manifest, context, None)

    def _check(self, context: Context) -> tuple[Policy, Destination, Shard | None]:
        """Check all parameters but the requests.

        :raises ModelScopeFinalError: with every error.
        """
        from airflow_provider_modelscope.batch.rows import parse_shard
        from airflow_provider_modelscope.batch.run import Policy
        from airflow_provider_modelscope.manifest import require_pyarrow
        from airflow_provider_modelscope.protocol.fallbacks import read_fallbacks

        check_connection = self._refuse_secrets(*QUOTED_PARAMETERS)
        destination, shard, fallbacks, limit, *_ = check_all(
            self._parse_folder,
            lambda: parse_shard(self.shard) if self.shard else None,
            lambda: read_fallbacks(self.fallback_models, size=self.size, check_ranges=self.check_ranges),
            lambda: checked_limit(self.max_credit),
            lambda: raise_invalid(self._option_errors()),
            lambda: (
                require_pyarrow("manifest_format = 'parquet'") if self.manifest_format == "parquet" else None
            ),
            lambda: self._check_own_folder(context),
            check_connection,
        )
        may_defer = self.deferrable and can_defer(self, context, self.hook)
        policy = Policy(
            fallbacks=fallbacks,
            concurrency=None if self.concurrency == "auto" else self.concurrency,
            item_attempts=self.item_attempts,
            max_credit=limit,
            on_exhausted=self.on_exhausted,
            on_lost_response=self.on_lost_response,
            queue_timeout=self.queue_timeout,
            timeout=self.timeout,
            poll_interval=self.poll_interval,
            defer_after=self.defer_after if may_defer else None,
            redraw=self.redraw,
            sidecar=self.sidecar,
            embed_metadata=self.embed_metadata,
        )
        return policy, destination, shard

    def _parse_folder(self) -> Destination:
        self._check_folder(self.destination)
        return self._parse_destination()

    def _check_own_folder(self, context: Context) -> None:
        """Check that mapped tasks do not all store the same rows in the same folder."""
        if context["ti"].map_index in (None, -1):
            return
        if self._is_same_for_all(context) and (not self.shard or self._is_same_for_all(context, "shard")):
            raise InvalidDestinationError(
                f"destination = {preview(self.destination)}: each mapped task would store the same images "
                "there. Share the requests with shard='{{ ti.map_index }}/3', where 3 is the number of "
                "mapped tasks, or give each task a folder of its own"
            )

    def _rows(
        self, requests: Any, shard: Shard | None, fallbacks: list[dict[str, Any]]
    ) -> Iterator[tuple[Row, str]]:
        """Yield the rows of this task with their fingerprints."""
        from airflow_provider_modelscope.tasks.deferral import digest_of

        row = None
        for row in self._all_rows(requests, fallbacks):
            self._check_source_kept(row)
            if shard is None or shard.contains(row):
                given = {name: value for name, value in vars(row.request).items() if value is not None}
                yield row, digest_of(given)
        if row is None:
            self._raise_empty()

    def _all_rows(self, requests: Any, fallbacks: list[dict[str, Any]]) -> Iterator[Row]:
        """Yield the rows of all shards. None contains a secret, and no error quotes one."""
        from airflow_provider_modelscope.batch.rows import read_rows

        self.hook.refuse_secrets(requests=requests)
        rows = read_rows(
            requests,
            defaults={name: getattr(self, name) for name in DEFAULTS},
            fallbacks=fallbacks,
            check_ranges=self.check_ranges,
            storage_conn_id=self.storage_conn_id,
            max_requests=self.max_requests,
            check=lambda entry: self.hook.refuse_secrets(**{entry.place: entry.value}),
        )
        try:
            yield from rows
        except InvalidRequestError as error:  # it may quote the name of a column
            self.hook.refuse_secrets(requests=error.message)
            raise

    def _raise_empty(self) -> NoReturn:
        problem = "there are no requests"
        if self.on_empty == "skip":
            raise AirflowSkipException(f"Skipped: {problem}")
        raise InvalidRequestError(f"requests: {problem}. With on_empty='skip' this skips the task")

    def _manifest_name(self, shard: Shard | None) -> str:
        part = f"-{shard.index}-of-{shard.count}" if shard else ""
        return f"manifest{part}.{self.manifest_format}"

    def _estimate(self, rows: WorkingSet) -> dict[str, Any]:
        """Return what the rows without an image would cost."""
        by_model = rows.models()
        prices = {model: self.hook.get_price(model) for model in by_model}
        unknown = sorted(model for model, price in prices.items() if price is None)
        cost = None if unknown else sum(count * (prices[model] or 0.0) for model, count in by_model.items())
        credit = self.hook.find_credit()
        available = credit.available if credit else None
        days = -(-cost // available) if cost is not None and available else None
        count = sum(by_model.values())
        self.log.info(
            "Dry run, nothing was sent: %d of %d rows would be generated, for %s credit; %s is available%s",
            count,
            len(rows),
            "an unknown amount of" if cost is None else f"{cost:.10g}",
            "an unknown amount" if available is None else f"{available:.10g}",
            f", so that they need the credit of {days:.0f} days like today" if days and days > 1 else "",
        )
        return {
            "rows": len(rows),
            "to_generate": count,
            "by_model": by_model,
            "credit": cost,
            "credit_available": available,
            "days": None if days is None else int(days),
            "models_without_price": unknown,
        }

    def _defer(self, pause: UntilFinished | UntilSlotFree, context: Context) -> NoReturn:
        from airflow_provider_modelscope.batch.run import UntilFinished

        if isinstance(pause, UntilFinished):
            defer_until_finished(self, pause.schedule, self.hook, resume_with=self._deferred(context))
        defer_until_slot_free(
            self,
            self.hook,
            reason="The account accepts no further generation now",
            queued_at=pause.queued_at,
            end_time=pause.queued_at + self.queue_timeout,
            resume_with=self._deferred(context),
        )

    def _wait_for_credit(self, batch: BatchRun, rows: WorkingSet, policy: Policy, context: Context) -> None:
        """Defer until there is credit, or raise what ended the batch, unless that is a success."""
        if batch.stopped is None or self.on_exhausted == "stop":
            return
        _, error = batch.stopped
        if self.on_exhausted == "fail" or not isinstance(error, QuotaExhaustedError):
            raise error
        if policy.defer_after is None:
            error.message += ". This task cannot wait for credit in the triggerer; the log says why"
            raise error
        if self._exhausted_end is None:
            self._exhausted_end = time.time() + self.exhausted_timeout
        defer_until_credit(
            self,
            error,
            self.hook,
            models=[*rows.models(), *(fallback["model"] for fallback in policy.fallbacks)],
            end_time=self._exhausted_end,
            resume_with=self._deferred(context),
        )

    def _deferred(self, context: Context) -> Any:
        from airflow_provider_modelscope.triggers.events import DeferredTask

        parameters = {} if self._exhausted_end is None else {"exhausted_end": self._exhausted_end}
        return DeferredTask(attempt=context["ti"].try_number, parameters=parameters)

    def _conclude(
        self,
        batch: BatchRun,
        rows: WorkingSet,
        manifest: Any,
        context: Context,
        error: BaseException | None,
    ) -> dict[str, Any]:
        """Write the manifest, and return the summary or raise an error for too many failures.

        :param error: What fails the task. The caller raises it, so that nothing may be raised here.
        """
        from airflow_provider_modelscope.tasks.assets import emit_batch_event

        counts = batch.counts
        summary = {
            "manifest": self._manifest,
            "counts": counts,
            "credit": batch.spent,
            "stopped_by": batch.stopped[0] if batch.stopped else None,
        }
        failure = error or self._failure(rows, counts)
        try:
            self._write_manifest(rows, manifest)
        except Exception as problem:  # of any store
            self.log.warning("The manifest was not written: %r", problem)
            summary["manifest"] = None
            failure = failure or ModelScopeRetryableError(
                f"The manifest {self._manifest} was not written ({problem!r}). The images are stored, so a "
                "retry only writes the manifest"
            )
        batch.finish(has_succeeded=failure is None)
        self._log_credit("after")
        if failure is None:
            emit_batch_event(summary, context)
            return summary
        context["ti"].xcom_push(key="summary", value=summary)
        if error is None:
            raise failure
        return summary

    def _failure(self, rows: WorkingSet, counts: Mapping[str, int]) -> ModelScopeError | None:
        """Return the error of too many rows without an image, or None."""
        count, total = counts["rejected"] + counts["failed"], sum(counts.values())
        allowed = _failures_allowed(self.max_failures, of=total) or 0
        if count <= allowed:
            return None
        first, can_retry = rows.first_failure()
        advice = (
            "A retry does only these"
            if can_retry
            else "Correct them, then clear the task: it does only these"
        )
        kind = BatchFailedError if can_retry else BatchRejectedError
        return kind(
            f"{count} of {total} rows have no image: {counts['rejected']} rejected, {counts['failed']} "
            f"failed. max_failures = {self.max_failures!r} allows {allowed}. {advice}. The first is {first}"
        )

    def _write_manifest(self, rows: WorkingSet, path: Any) -> None:
        from airflow_provider_modelscope.images.object_storage import write_file
        from airflow_provider_modelscope.manifest import ManifestRow, Result, write

        def finished() -> Iterator[ManifestRow]:
            for row, result in rows.results():
                known = Result.from_json(result) or Result(
                    key=row.key, row=row.number, status="skipped", fingerprint=None, model=row.request.model
                )
                yield ManifestRow.of(replace(known, key=row.key, row=row.number, data=row.data))

        with tempfile.TemporaryFile() as file:
            write(finished(), file, self.manifest_format)
            write_file(path, file, "application/octet-stream", self._scratch)

    def _log_credit(self, when: str) -> None:
        if credit := self.hook.find_credit():
            self.log.info("Credit %s the batch: %s", when, credit)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the lineage for OpenLineage: the model and the file of requests, and the manifest."""
        from airflow_provider_modelscope.tasks.lineage import lineage_of_batch

        return lineage_of_batch(self.requests, self.model, self._manifest)


def _place_of(uri: str) -> tuple[str, str, str]:
    """Return what two URIs of the same object have in common: not the connection."""
    with suppress(ValueError):  # of what is no URI
        parts = urlsplit(uri.strip())
        return parts.scheme, parts.netloc.rpartition("@")[2], re.sub("/+", "/", parts.path)
    return "", "", uri


def _count_errors(most: int, **given: Any) -> Iterator[str]:
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            yield f"{name} = {preview(value)}: must be an integer from 1 to {most}"


def _failures_allowed(given: Any, *, of: int) -> int | None:
    """Return how many rows of so many may fail, or None if the parameter is invalid."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given if given >= 0 else None
    found = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]+)?)\s*%\s*", given) if isinstance(given, str) else None
    if found is None or float(found[1]) > 100:
        return None
    return int(of * float(found[1]) / 100)
