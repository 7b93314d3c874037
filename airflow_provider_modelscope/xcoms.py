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

# The XComs that our tasks push, beside what they return: what was asked for, and what was stored.
REQUEST, IMAGES = "request", "images"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """What is known of one stored image; an entry of the XCom ``images``.

    :param storage_conn_id: The connection that it was stored through.
    :param parameters: What was asked for, and in its place what was really used where the service says so.
    :param duration_ms: How long the generation took, where the service says so.
    :param sidecar_uri: The URI of the file beside it that tells how it was made, where one was asked for.
    """

    uri: str
    storage_conn_id: str | None
    content_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    seed: int | None
    model: str | None
    generation_id: str
    parameters: dict[str, Any]
    duration_ms: float | None
    sidecar_uri: str | None = None


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

    @property
    def size(self) -> str | None:
        """The size of the request, None if it has none."""
        size = self.request.get("size")
        return size if isinstance(size, str) else None

    @classmethod
    def find(cls, generation_id: str, *, task: BaseOperator, context: Context) -> Self | None:
        """Return what was recorded in this Dag run by a submit task upstream, None where there is none."""
        for upstream in task.get_flat_relatives(upstream=True):
            # A mapped task is of another class, which names the one that it makes.
            kind = getattr(upstream, "operator_class", type(upstream))
            if not getattr(kind, "records_submission", False):
                continue
            found = context["ti"].xcom_pull(task_ids=upstream.task_id, key=REQUEST)
            for recorded in [found] if isinstance(found, dict) else found or []:
                submission = cls._from_json(recorded)
                if submission and submission.generation_id == generation_id:
                    return submission
        return None

    @classmethod
    def own(cls, context: Context) -> Self | None:
        """Return what this very task instance recorded, None where that cannot be had."""
        return cls._from_json(own_xcom(context, REQUEST))

    @classmethod
    def _from_json(cls, recorded: Any) -> Self | None:
        match recorded:
            case {
                "generation_id": str(generation_id),
                "model": str(model),
                "submitted_at": float() | int() as submitted_at,
            }:
                own = ("generation_id", "submitted_at")
                return cls(
                    generation_id=generation_id,
                    model=model,
                    submitted_at=submitted_at,
                    request={name: value for name, value in recorded.items() if name not in own},
                )
        return None

    def record(self, context: Context) -> None:
        """Push it as XCom: tasks downstream find it there, and people."""
        value = {**self.request, "generation_id": self.generation_id, "submitted_at": self.submitted_at}
        try:
            context["ti"].xcom_push(key=REQUEST, value=value)
        except Exception as error:  # whatever its backend raises; the generation is made and paid for
            log.warning("XCom %r of generation %s was not kept: %r", REQUEST, self.generation_id, error)


def own_xcom(context: Context, key: str) -> Any:
    """Return what this very task instance pushed in this try, None where that cannot be had."""
    ti = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    try:
        return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=map_index)
    except Exception as error:  # whatever its backend raises; a generation may be made and paid for
        log.warning("XCom %r of this task cannot be read: %r", key, error)
        return None
