"""What the task that submitted recorded of a generation: what it asked for, and when.

The service's own answer names neither the model nor that time, and a chain hands on nothing but the
``generation_id``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context

XCOM_KEY = "request"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A generation that was accepted.

    :param submitted_at: When, in epoch seconds.
    :param request: What was asked for, as :meth:`GenerationRequest.summary` shows it; empty where only the
        rest is known.
    """

    generation_id: str
    model: str
    submitted_at: float
    request: Mapping[str, Any] = field(default_factory=dict)

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
                    return cls._from_json(**recorded)
        return None

    @classmethod
    def own(cls, context: Context) -> Self | None:
        """Return what this very task instance recorded, None where it did not."""
        ti = context["ti"]
        recorded = ti.xcom_pull(task_ids=ti.task_id, key=XCOM_KEY, map_indexes=ti.map_index)
        return cls._from_json(**recorded) if recorded else None

    @classmethod
    def _from_json(cls, *, generation_id: str, submitted_at: float, **request: Any) -> Self:
        return cls(
            generation_id=generation_id,
            model=request["model"],
            submitted_at=submitted_at,
            request=request,
        )

    def record(self, context: Context) -> None:
        """Push it as XCom: tasks downstream find it there, and people."""
        value = {**self.request, "generation_id": self.generation_id, "submitted_at": self.submitted_at}
        try:
            context["ti"].xcom_push(key=XCOM_KEY, value=value)
        except Exception as error:  # whatever its backend raises; the generation is made and paid for
            log.warning("XCom %r of generation %s was not kept: %r", XCOM_KEY, self.generation_id, error)
