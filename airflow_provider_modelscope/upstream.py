"""What a submit task upstream recorded of a generation: which model it asked for, and when.

The service's own answer names neither, and a chain hands on nothing but the ``generation_id``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context

XCOM_KEY = "request"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A generation that was accepted.

    :param submitted_at: When, in epoch seconds.
    """

    generation_id: str
    model: str
    submitted_at: float

    @classmethod
    def find(cls, generation_id: str, *, task: BaseOperator, context: Context) -> Self | None:
        """Return what was recorded in this Dag run by a submit task upstream, None where there is none."""
        from airflow_provider_modelscope.operators.image_generation import (
            ModelScopeSubmitImageGenerationOperator,
        )

        for upstream in task.get_flat_relatives(upstream=True):
            # A mapped task is of another class, which names the one that it makes.
            kind = getattr(upstream, "operator_class", type(upstream))
            if not issubclass(kind, ModelScopeSubmitImageGenerationOperator):
                continue
            found = context["ti"].xcom_pull(task_ids=upstream.task_id, key=XCOM_KEY)
            for recorded in [found] if isinstance(found, dict) else found or []:
                if recorded and recorded.get("generation_id") == generation_id:
                    names = ("generation_id", "model", "submitted_at")
                    return cls(**{name: recorded[name] for name in names})
        return None

    def record(self, request: Mapping[str, Any], context: Context) -> None:
        """Push it as XCom, with what was asked for: tasks downstream find it there, and people."""
        value: dict[str, Any] = {**request, **vars(self)}
        try:
            context["ti"].xcom_push(key=XCOM_KEY, value=value)
        except Exception as error:  # whatever its backend raises; the generation is made and paid for
            log.warning("XCom %r of generation %s was not kept: %r", XCOM_KEY, self.generation_id, error)
