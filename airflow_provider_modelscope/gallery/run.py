"""What is known of a Dag run, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_modelscope.xcoms import ERROR, PROGRESS, AttemptError, Progress

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
    :param ended_by: What ended a task that failed, as far as Airflow's audit log says it: a person who marked
        it failed, or the scheduler, because its worker sent no heartbeat.
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
    ended_by: Literal["", "person", "heartbeat"] = ""

    @property
    def resumed_at(self) -> float | None:
        """When a task that was deferred was queued again, None if it was not deferred."""
        return self.queued_at if self.next_method else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A Dag run, with its task instances and the XComs of ours.

    :param is_paused: Whether its Dag is paused.
    :param is_stale: Whether the files of Dags no longer contain its Dag.
    :param triggerer_seen_at: When a triggerer last sent a heartbeat, in epoch seconds.
    :param queue: The connection and the time since which each trigger waits for a slot, in all Dags.
    :param running: How many generations triggers wait for, by connection, in all Dags.
    :param recent_images: Values of the XCom ``images`` in the last runs of the Dag before this one.
    """

    dag_id: str
    run_id: str
    state: str
    xcoms: Sequence[PushedXCom]
    tasks: Sequence[TaskState]
    is_paused: bool = False
    is_stale: bool = False
    triggerer_seen_at: float | None = None
    queue: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    recent_images: Sequence[Any] = ()

    @cached_property
    def progress(self) -> Mapping[Instance, Progress]:
        """What the tasks say that they do on their workers. It may be over since."""
        said = {xcom.instance: Progress.from_json(xcom.value) for xcom in self.xcoms if xcom.key == PROGRESS}
        return {instance: progress for instance, progress in said.items() if progress}

    @cached_property
    def errors(self) -> Mapping[Instance, AttemptError]:
        """Why the last attempts of tasks ended, of those that ended with an error of this package."""
        found = {one.instance: AttemptError.from_json(one.value) for one in self.xcoms if one.key == ERROR}
        return {instance: error for instance, error in found.items() if error}

    @cached_property
    def storing(self) -> Mapping[str, float]:
        """The generations whose images a running task stores, and since when."""
        running = {task.instance for task in self.tasks if task.state == "running"}
        return {
            said.generation_id: said.since
            for instance, said in self.progress.items()
            if said.generation_id and instance in running
        }

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
