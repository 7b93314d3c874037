"""What is known of a Dag run, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_modelscope.links import Instance


@dataclass(frozen=True, kw_only=True)
class PushedXCom:
    """An XCom of a task instance."""

    instance: Instance
    key: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """The state of a task instance. Times are in epoch seconds.

    :param operator: The name of the operator's class.
    :param label: The rendered ``map_index_template`` of a mapped task instance.
    :param prompt: As it is on the worker, or an empty text if that is not known, and so is the model.
    :param attempt: The number of the attempt, from 1; 0 before the first.
    :param next_method: The method in which it resumes after a deferral, or an empty text.
    :param trigger: The name of the class of the trigger that it waits for, or an empty text.
    :param retry_at: When its next attempt is due, if that is known.
    """

    instance: Instance
    state: str | None
    operator: str = ""
    label: str = ""
    prompt: str = ""
    model: str = ""
    attempt: int = 0
    scheduled_at: float | None = None
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    next_method: str = ""
    trigger: str = ""
    trigger_id: int | None = None
    deferred_at: float | None = None
    retry_at: float | None = None

    @property
    def resumed_at(self) -> float | None:
        """When a task that was deferred was queued again, None if it was not deferred."""
        return self.queued_at if self.next_method else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A Dag run, with its task instances and the XComs of ours.

    :param is_paused: Whether its Dag is paused.
    :param triggerer_seen_at: When a triggerer last sent a heartbeat, in epoch seconds.
    :param queue: The connection and the time since which each trigger waits for a slot, in all Dags.
    """

    dag_id: str
    run_id: str
    state: str
    xcoms: Sequence[PushedXCom]
    tasks: Sequence[TaskState]
    is_paused: bool = False
    triggerer_seen_at: float | None = None
    queue: Mapping[int, tuple[str, float]] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended. Clearing a task starts it again."""
        return self.state in ("success", "failed")

    def will_clear(self, task: TaskState | None) -> bool:
        """Whether the XComs of a task are of an attempt before the next one, which deletes them."""
        return (
            task is not None
            and not self.is_finished
            and not task.next_method
            and task.state in (None, "scheduled", "queued", "restarting")
        )
