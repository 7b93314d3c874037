"""``@task.modelscope_image``: a function that returns a prompt becomes a task that generates its image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.bases.decorator import DecoratedOperator

from airflow_provider_modelscope.compat import conf, context_merge, determine_kwargs
from airflow_provider_modelscope.decorators.factory import DYNAMIC, task_decorator
from airflow_provider_modelscope.exceptions import ModelScopeError
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_generation import (
    EXHAUSTED_TIMEOUT,
    REQUEST_PARAMETERS,
    ModelScopeImageGenerationOperator,
)
from airflow_provider_modelscope.redaction import preview
from airflow_provider_modelscope.tasks.deferral import DEFER_AFTER, POLL_INTERVAL
from airflow_provider_modelscope.validation import raise_invalid

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg
    from airflow.sdk.bases.decorator import TaskDecorator

    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.tasks.submission_record import SubmissionRecord

log = logging.getLogger(__name__)


class _ModelScopeImageDecoratedOperator(DecoratedOperator, ModelScopeImageGenerationOperator):
    """Generate the image that the function describes: by a prompt, or a mapping of request parameters.

    What the function returns takes precedence over the arguments of the decorator, and is not rendered: a
    prompt from outside runs no Jinja. Each attempt calls the function once. If it returns something else than
    before, a retry submits a new generation, which is charged.

    The other parameters are those of
    :class:`~airflow_provider_modelscope.operators.image_generation.ModelScopeImageGenerationOperator`.

    :param python_callable: The function.
    :param op_args: Its positional arguments.
    :param op_kwargs: Its keyword arguments.
    """

    custom_operator_name = "@task.modelscope_image"
    overwrite_rtif_after_execution = True  # the page of the task shows what the function returned
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ModelScopeImageGenerationOperator.template_fields,
    )
    template_fields_renderers = {
        **DecoratedOperator.template_fields_renderers,
        **ModelScopeImageGenerationOperator.template_fields_renderers,
    }
    _returned: Set[str] = frozenset()  # the names of the parameters that the function returned

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        model: str | None = None,
        prompt: str | XComArg | None = DYNAMIC,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            model=model,
            prompt=prompt,
            **kwargs,
        )
        self._check_constants(_ModelScopeImageDecoratedOperator)

    def _constant_parameters(self) -> Sequence[str]:
        # The function may return the model, which decides the sizes, and the prompt.
        return [name for name in REQUEST_PARAMETERS if name not in ("model", "prompt")]

    def execute(self, context: Context) -> Any:
        """Call the function, then run as the one-step operator."""
        with self._part(context) as record:
            context_merge(context, self.op_kwargs)
            kwargs = determine_kwargs(self.python_callable, self.op_args, context)
            returned = _parameters_of(self.python_callable(*self.op_args, **kwargs))
            self._returned = returned.keys()
            self._set({"prompt": None, **returned} if self.prompt == DYNAMIC else returned)
            # Not by the execute of DecoratedOperator, which fails on Airflow 3.0.
            return self._run(context, record)

    @contextmanager
    def _part(self, context: Context, event: Any = None) -> Iterator[SubmissionRecord]:
        try:
            with super()._part(context, event) as record:
                yield record
        finally:
            self._hide_secrets()

    def _can_defer(self, request: GenerationRequest, context: Context) -> bool:
        if self._returned.isdisjoint(self._deferred(request, context).digests):
            return super()._can_defer(request, context)
        log.info("Not deferring: the function returned a signed URL or image data, which is not stored")
        return False

    def _hide_secrets(self) -> None:
        """Leave only what may be shown in the template fields: Airflow stores them after each part."""
        try:
            public = self._request().summary()
        except ModelScopeError:
            public = {name: getattr(self, name) for name in REQUEST_PARAMETERS}
            del public["image_url"], public["extra_parameters"]
        self._set(dict.fromkeys(REQUEST_PARAMETERS) | public)


def _parameters_of(returned: Any) -> dict[str, Any]:
    """Return the request parameters that a function returned.

    :raises InvalidRequestError: if it returned anything else.
    """
    parameters = {"prompt": returned} if isinstance(returned, str) else returned
    names = ", ".join(REQUEST_PARAMETERS)
    if not isinstance(parameters, Mapping):
        raise_invalid([f"function result = {preview(returned)}: must be a prompt, or a mapping of {names}"])
    raise_invalid(
        f"function result contains {preview(name)}: must only contain {names}"
        for name in parameters
        if name not in REQUEST_PARAMETERS
    )
    return dict(parameters)


@task_decorator(_ModelScopeImageDecoratedOperator)
def modelscope_image_task(
    python_callable: Callable[..., Any] | None = None,
    *,
    destination: str,
    model: str | None = None,
    prompt: str | XComArg | None = None,
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
) -> TaskDecorator:
    """Make a task that generates the image that a function describes: ``@task.modelscope_image(...)``.

    :param python_callable: The function. It returns a prompt, or a mapping of request parameters, which take
        precedence over those given here.
    :param destination: Where to store the images, as for
        :class:`~airflow_provider_modelscope.operators.image_generation.ModelScopeImageGenerationOperator`, as
        are all other parameters.
    """
    raise NotImplementedError  # the signature only
