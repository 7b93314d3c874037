"""``@task.modelscope_image_batch``: a function that returns requests becomes a task that generates them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.decorator import DecoratedOperator

from airflow_provider_modelscope.compat import DYNAMIC
from airflow_provider_modelscope.decorators.factory import (
    call_function,
    make_task,
    takes_parameters_of,
)
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator


class _ModelScopeImageBatchDecoratedOperator(DecoratedOperator, ModelScopeImageBatchOperator):
    """Generate the images for the requests that the function returns: a list, or the URI of a file.

    What the function returns is not rendered: a prompt from outside runs no Jinja. Each attempt calls the
    function once. A retry only does the rows that are missing or that the function returned differently.

    The parameters are those of
    :class:`~airflow_provider_modelscope.operators.image_batch.ModelScopeImageBatchOperator`.
    """

    custom_operator_name = "@task.modelscope_image_batch"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ModelScopeImageBatchOperator.template_fields,
    )
    template_fields_renderers = {
        **DecoratedOperator.template_fields_renderers,
        **ModelScopeImageBatchOperator.template_fields_renderers,
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(requests=DYNAMIC, **kwargs)
        self._check_constants(_ModelScopeImageBatchDecoratedOperator)

    def execute(self, context: Context) -> Any:
        """Call the function, then run as the operator."""
        return self._run(context, call_function(self, context))


@takes_parameters_of(ModelScopeImageBatchOperator, without=("requests",))
def modelscope_image_batch_task(
    python_callable: Callable[..., Any] | None = None, **kwargs: Any
) -> TaskDecorator:
    """Make a task that generates the images that a function describes.

    :param python_callable: The function. It returns a list of prompts or of mappings, or the URI of a file.
    :param kwargs: The parameters of
        :class:`~airflow_provider_modelscope.operators.image_batch.ModelScopeImageBatchOperator`.
    """
    return make_task(_ModelScopeImageBatchDecoratedOperator, python_callable, kwargs)
