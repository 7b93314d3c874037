"""``@task.modelscope_image``: a function that returns a prompt becomes a task that generates its image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.decorator import DecoratedOperator

from airflow_provider_modelscope.compat import DYNAMIC
from airflow_provider_modelscope.decorators.factory import (
    call_function,
    make_task,
    takes_parameters_of,
)
from airflow_provider_modelscope.exceptions import ModelScopeError
from airflow_provider_modelscope.operators.image_generation import (
    REQUEST_PARAMETERS,
    ModelScopeImageGenerationOperator,
)
from airflow_provider_modelscope.redaction import preview
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

    The parameters are those of
    :class:`~airflow_provider_modelscope.operators.image_generation.ModelScopeImageGenerationOperator`.
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
        self, *, model: str | None = None, prompt: str | XComArg | None = DYNAMIC, **kwargs: Any
    ) -> None:
        super().__init__(model=model, prompt=prompt, **kwargs)
        self._check_constants(_ModelScopeImageDecoratedOperator)

    def _constant_parameters(self) -> Sequence[str]:
        # The function may return the model, which decides the sizes, and the prompt.
        return [name for name in REQUEST_PARAMETERS if name not in ("model", "prompt")]

    def execute(self, context: Context) -> Any:
        """Call the function, then run as the one-step operator."""
        with self._part(context) as record:
            returned = _parameters_of(call_function(self, context))
            self._returned = returned.keys()
            self._set({"prompt": None, **returned} if self.prompt == DYNAMIC else returned)
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


@takes_parameters_of(ModelScopeImageGenerationOperator, optional=("model", "prompt"))
def modelscope_image_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task that generates the image that a function describes: ``@task.modelscope_image(...)``.

    :param python_callable: The function. It returns a prompt, or a mapping of request parameters, which take
        precedence over those given here.
    :param kwargs: The parameters of
        :class:`~airflow_provider_modelscope.operators.image_generation.ModelScopeImageGenerationOperator`.
    """
    return make_task(_ModelScopeImageDecoratedOperator, python_callable, kwargs)
