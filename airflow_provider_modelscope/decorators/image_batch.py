"""``@task.modelscope_image_batch``: a function that returns requests becomes a task that generates them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.bases.decorator import DecoratedOperator

from airflow_provider_modelscope.compat import conf, context_merge, determine_kwargs
from airflow_provider_modelscope.decorators.factory import DYNAMIC, task_decorator
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_batch import DEFER_AFTER, ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import EXHAUSTED_TIMEOUT
from airflow_provider_modelscope.tasks.deferral import POLL_INTERVAL

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg
    from airflow.sdk.bases.decorator import TaskDecorator


class _ModelScopeImageBatchDecoratedOperator(DecoratedOperator, ModelScopeImageBatchOperator):
    """Generate the images for the requests that the function returns: a list, or the URI of a file.

    What the function returns is not rendered: a prompt from outside runs no Jinja. Each attempt calls the
    function once. A retry only does the rows that are missing or that the function returned differently.

    The other parameters are those of
    :class:`~airflow_provider_modelscope.operators.image_batch.ModelScopeImageBatchOperator`.

    :param python_callable: The function.
    :param op_args: Its positional arguments.
    :param op_kwargs: Its keyword arguments.
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
            requests=DYNAMIC,
            **kwargs,
        )
        self._check_constants(_ModelScopeImageBatchDecoratedOperator)

    def execute(self, context: Context) -> Any:
        """Call the function, then run as the operator."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        # Not by the execute of DecoratedOperator, which fails on Airflow 3.0.
        return self._run(context, self.python_callable(*self.op_args, **kwargs))


@task_decorator(_ModelScopeImageBatchDecoratedOperator)
def modelscope_image_batch_task(
    python_callable: Callable[..., Any] | None = None,
    *,
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
) -> TaskDecorator:
    """Make a task that generates the images that a function describes.

    :param python_callable: The function. It returns a list of prompts or of mappings, or the URI of a file.
    :param destination: The folder of the images, as for
        :class:`~airflow_provider_modelscope.operators.image_batch.ModelScopeImageBatchOperator`, as are all
        other parameters.
    """
    raise NotImplementedError  # the signature only
