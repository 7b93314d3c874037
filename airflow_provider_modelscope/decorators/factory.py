"""What the task decorators share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory

from airflow_provider_modelscope.compat import context_merge, determine_kwargs

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.bases.decorator import TaskDecorator

Function = TypeVar("Function", bound=Callable[..., Any])


def make_task(
    operator_class: type[DecoratedOperator],
    python_callable: Callable[..., Any] | None,
    arguments: Mapping[str, Any],
) -> TaskDecorator:
    """Make a function a task of an operator.

    :param arguments: Only those that are given: ``default_args`` fill in the others.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=operator_class,
        # Airflow would infer multiple_outputs=True from the "-> dict" of what describes images.
        **{"multiple_outputs": False, **arguments},
    )


def call_function(task: DecoratedOperator, context: Context) -> Any:
    """Call the function of a task. The ``execute`` of its Airflow class fails on Airflow 3.0."""
    context_merge(context, task.op_kwargs)
    kwargs = determine_kwargs(task.python_callable, task.op_args, context)
    return task.python_callable(*task.op_args, **kwargs)


def takes_parameters_of(
    operator: type[BaseOperator], *, optional: Collection[str] = (), without: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Show the parameters of an operator in the signature of a function with ``**kwargs``.

    :param optional: Parameters that the operator requires, but the function does not.
    :param without: Parameters that the function does not take.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        *own, kwargs = signature.parameters.values()
        given = [
            parameter.replace(default=None, annotation=f"{parameter.annotation} | None")
            if parameter.name in optional
            else parameter
            for parameter in inspect.signature(operator).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in without
        ]
        shown = signature.replace(parameters=[*own, *given, kwargs])
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return decorate
