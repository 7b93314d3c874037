"""What the task decorators share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory

if TYPE_CHECKING:
    from airflow.sdk.bases.decorator import TaskDecorator

DYNAMIC = "DYNAMIC (set during execution)"  # what Airflow shows of a field that a function sets

Decorator = TypeVar("Decorator", bound=Callable[..., Any])


def task_decorator(operator_class: type[DecoratedOperator]) -> Callable[[Decorator], Decorator]:
    """Make a task decorator with the signature of a function.

    Only the arguments that are given reach the operator, so that ``default_args`` fill in the others.
    """

    def with_signature(signature: Decorator) -> Decorator:
        @wraps(signature)
        def decorator(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
            return task_decorator_factory(
                python_callable=python_callable,
                decorated_operator_class=operator_class,
                # Airflow would infer multiple_outputs=True from the "-> dict" of what describes images.
                **{"multiple_outputs": False, **kwargs},
            )

        return cast("Decorator", decorator)

    return with_signature
