"""The arguments of a task that are already known when its Dag file is parsed."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

_CONSTANT_TYPES = (NoneType, bool, int, float, str, bytes, timedelta)  # but no subclasses of them
_CHANGED_BY_JINJA = re.compile(r"\{[{%#]|\r|\n\Z")  # templates, line endings and the last newline


def constants_of(task: BaseOperator, *names: str) -> dict[str, Any]:
    """Return the arguments whose values are final: the task runs with exactly these.

    Templates, XComArgs and values of unknown types are left out, also those inside lists and mappings. Text
    is left out if the task has no Dag yet, because the Dag can change the syntax of templates.

    :param names: The names of the arguments to return if they are final.
    """
    dag = task.get_dag()
    # Otherwise text may be a template with other delimiters, or be rendered to a value of another type.
    is_usual_jinja = dag is not None and not (
        getattr(task, "render_template_as_native_obj", None)  # Airflow 3.3 and later
        or dag.render_template_as_native_obj
        or dag.jinja_environment_kwargs
    )

    def is_constant(value: Any) -> bool:
        kind = type(value)
        if kind is str:
            return is_usual_jinja and not _CHANGED_BY_JINJA.search(value)
        if kind is dict:
            return all(is_constant(part) for item in value.items() for part in item)
        if kind in (list, tuple, set):
            return all(map(is_constant, value))
        return kind in _CONSTANT_TYPES

    return {name: value for name in names if is_constant(value := getattr(task, name))}


def constant_checks(
    task: BaseOperator, name: str, check: Callable[[Any], object]
) -> list[Callable[[], object]]:
    """Return the check of one argument, or none if it is not a constant."""
    return [partial(check, value) for value in constants_of(task, name).values()]
