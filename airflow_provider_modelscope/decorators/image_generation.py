"""``@task.modelscope_image``: a function that returns a prompt becomes a task that draws it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_modelscope.exceptions import InvalidRequestError, ModelScopeRetryableError
from airflow_provider_modelscope.metrics import counting_failures
from airflow_provider_modelscope.mistakes import shown
from airflow_provider_modelscope.operators.image_generation import (
    REQUEST_PARAMETERS,
    ModelScopeImageGenerationOperator,
)
from airflow_provider_modelscope.upstream import own_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator

    from airflow_provider_modelscope.waiting.poll import QueueWait

XCOM_KEY = "modelscope_parameters"
NOT_YET = "DYNAMIC (set during execution)"  # what Airflow shows where a function gives what a field has

log = logging.getLogger(__name__)


class _ModelScopeImageDecoratedOperator(DecoratedOperator, ModelScopeImageGenerationOperator):
    """Ask for what the function returns: a prompt, or a mapping of the request's parameters.

    What it returns is sent as it is: nothing in it is rendered, so a prompt from outside runs no Jinja. It
    takes precedence over what the decorator was given. A retry calls the function again; one that then
    returns something else asks for something else, which is paid for anew.

    The other parameters are those of
    :class:`~airflow_provider_modelscope.operators.image_generation.ModelScopeImageGenerationOperator`.

    :param python_callable: The function.
    :param op_args: Its positional arguments.
    :param op_kwargs: Its keyword arguments.
    """

    custom_operator_name = "@task.modelscope_image"
    overwrite_rtif_after_execution = True  # so that the task's page shows what the function returned
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ModelScopeImageGenerationOperator.template_fields,
    )
    template_fields_renderers = {
        **DecoratedOperator.template_fields_renderers,
        **ModelScopeImageGenerationOperator.template_fields_renderers,
    }

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            **{"model": None, "prompt": NOT_YET, **kwargs},
        )

    @counting_failures
    def execute(self, context: Context) -> Any:
        """Call the function, and do with what it returns what the one-step operator does."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        returned = _parameters_of(self.python_callable(*self.op_args, **kwargs))
        self._take({"prompt": None, **returned} if self.prompt == NOT_YET else returned)
        return self._begin(context)  # not by DecoratedOperator's execute, which fails on Airflow 3.0

    def execute_queued(self, context: Context, event: Any = None) -> Any:
        """Go on after the wait in the triggerer for room, with what the function had returned."""
        if not self._take_kept(context):
            raise ModelScopeRetryableError(
                f"Nothing was sent: what the function had returned is gone with XCom {XCOM_KEY!r}"
            )
        return super().execute_queued(context, event)

    def execute_complete(self, context: Context, event: Any = None) -> list[str]:
        """Go on after the wait in the triggerer."""
        self._take_kept(context)  # needed only where the images are gone and it is submitted again
        return super().execute_complete(context, event)

    def _start(self, queue: QueueWait, context: Context, *, had_turn: bool) -> Any:
        if self.deferrable and not had_turn:  # another process may go on, without what is set here
            self._keep(context)
        return super()._start(queue, context, had_turn=had_turn)

    def _take(self, parameters: Mapping[str, Any]) -> None:
        for name, value in parameters.items():
            setattr(self, name, value)

    def _keep(self, context: Context) -> None:
        """Keep what the function returned for the process that goes on, or see that there is no other.

        An XCom is plain text in the database: it may hold no signed URL, and no picture of megabytes.
        """
        request = self._request()
        if request.summary() == {name: value for name, value in vars(request).items() if value is not None}:
            context["ti"].xcom_push(key=XCOM_KEY, value=request.summary())
        else:
            log.info("What the function returned may not be kept, so this task waits on its worker")
            self.deferrable = False

    def _take_kept(self, context: Context) -> bool:
        kept = own_xcom(context, XCOM_KEY)
        if not isinstance(kept, Mapping):
            return False
        self._take(kept)
        return True


def modelscope_image_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make of a function a task that draws what it returns: ``@task.modelscope_image(...)``.

    :param python_callable: The function: it returns a prompt, or a mapping of the request's parameters.
    :param kwargs: The other parameters of
        :class:`~airflow_provider_modelscope.operators.image_generation.ModelScopeImageGenerationOperator`.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        # The task returns URIs; Airflow would infer from a function's "-> dict" that it returns that.
        multiple_outputs=False,
        decorated_operator_class=_ModelScopeImageDecoratedOperator,
        **kwargs,
    )


def _parameters_of(returned: Any) -> Mapping[str, Any]:
    """Return the request's parameters that a function returned.

    :raises InvalidRequestError: where it returned something else.
    """
    if isinstance(returned, str):
        return {"prompt": returned}
    names = ", ".join(REQUEST_PARAMETERS)
    if not isinstance(returned, Mapping):
        raise InvalidRequestError(
            f"Nothing was sent. The function returned {shown(returned)}: it must return a prompt, or a "
            f"mapping with some of {names}."
        )
    if unknown := [name for name in returned if name not in REQUEST_PARAMETERS]:
        raise InvalidRequestError(
            f"Nothing was sent. The function returned {shown(unknown[0])} as a parameter: it may return "
            f"{names}."
        )
    return returned
