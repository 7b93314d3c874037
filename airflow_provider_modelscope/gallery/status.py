"""Decides what is said of an image that is not stored: one state, the time since, and a sentence.

Pure functions of values. Each label stands for exactly one state.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_modelscope.redaction import truncated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_modelscope.gallery.run import Run, TaskState
    from airflow_provider_modelscope.xcoms import AttemptError, Submission

STORING_METHOD = "execute_complete"  # in which a task resumes when its generation has finished

TRIGGERER_TIMEOUT = 30.0  # seconds without a heartbeat, after which Airflow calls a triggerer unhealthy


@dataclass(frozen=True, kw_only=True)
class Status:
    """What happens to an image that is not stored.

    The page adds the times, so it is the same text as long as nothing changes.

    :param label: What the chip says.
    :param color: The state of Airflow whose colour the chip has.
    :param sentence: What else is known, or an empty text.
    :param at: A clock time at the end of the label, in epoch seconds.
    :param since: When the state began, in epoch seconds.
    :param usual: How many seconds it usually takes, if that is known.
    :param is_pending: Whether the image may still be stored.
    :param is_idle: Whether nothing was tried, so that nothing failed.
    """

    label: str
    color: str
    sentence: str = ""
    at: float | None = None
    since: float | None = None
    usual: float | None = None
    is_pending: bool = True
    is_idle: bool = False


def status_of(
    task: TaskState | None,
    submission: Submission | None,
    error: AttemptError | None,
    run: Run,
    *,
    usual: Mapping[str, float],
    places: Mapping[int, tuple[int, int]],
    now: float,
) -> Status:
    """Return what happens to the image of a task.

    :param submission: What the task submitted in this attempt.
    :param error: Why the last attempt ended, if it ended with an error of this package.
    :param usual: The usual duration of a generation by model, in seconds.
    :param places: The places in the queues, by trigger.
    :param now: In epoch seconds.
    """
    generation = f"Generation {submission.generation_id}" if submission else ""
    if task is None or run.is_finished:
        return _ended(task, generation, error, run)
    match task.state:
        case "running" if not submission:
            return Status(label="Submitting", color="running", since=task.resumed_at or task.started_at)
        case "running" if task.next_method == STORING_METHOD:
            return Status(label="Storing", color="running", sentence=f"{generation}.", since=task.resumed_at)
        case "running":
            return _generating(submission, usual)
        case "deferred":
            return _deferred(task, submission, run, usual=usual, places=places, now=now)
        case "restarting":
            return Status(label="Restarting", color="restarting", since=task.started_at)
        case "queued":
            is_finished = submission and task.next_method == STORING_METHOD
            sentence = f"{generation} has finished and is stored next." if is_finished else ""
            return Status(
                label="Waiting for a worker", color="queued", sentence=sentence, since=task.queued_at
            )
        case "success" if submission:
            sentence = (
                f"Downstream tasks wait for generation {submission.generation_id} and store its images."
            )
            return Status(
                label="Submitted", color="success", sentence=sentence, since=submission.submitted_at
            )
        case "success" | "failed" | "upstream_failed" | "skipped":
            return _ended(task, generation, error, run)
    if run.is_paused:
        sentence = "Airflow starts no tasks of this Dag until it is unpaused."
        return Status(label="Paused Dag", color="none", sentence=sentence)
    failure = first_sentence(error.message) if error else f"Attempt {task.attempt} failed."
    match task.state:
        case "up_for_retry" if task.retry_at:
            return Status(
                label="Retrying at",
                color="up_for_retry",
                at=task.retry_at,
                sentence=failure,
            )
        case "up_for_retry":
            return Status(
                label="Waiting for the next attempt",
                color="up_for_retry",
                sentence=failure,
                since=task.ended_at,
            )
        case "scheduled":
            return Status(label="Scheduled", color="scheduled", since=task.scheduled_at)
        case None if run.state == "queued":
            return Status(label="Queued run", color="queued", sentence="Airflow has not started this run.")
        case None:
            return Status(label="Not started", color="none")
    return Status(label=task.state.replace("_", " ").capitalize(), color="none")


def _generating(submission: Submission | None, usual: Mapping[str, float]) -> Status:
    if submission is None:
        return Status(label="Generating", color="running")
    return Status(
        label="Generating",
        color="running",
        sentence=f"Generation {submission.generation_id}.",
        since=submission.submitted_at,
        usual=usual.get(submission.model),
    )


def _deferred(
    task: TaskState,
    submission: Submission | None,
    run: Run,
    *,
    usual: Mapping[str, float],
    places: Mapping[int, tuple[int, int]],
    now: float,
) -> Status:
    seen_at = run.triggerer_seen_at
    if seen_at is None or now - seen_at > TRIGGERER_TIMEOUT:
        label = "No triggerer seen" if seen_at is None else "No triggerer seen for"
        sentence = f"Generation {submission.generation_id} is not waited for." if submission else ""
        return Status(label=label, color="failed", since=seen_at, sentence=sentence)
    match task.trigger:
        case "ModelScopeQueueTrigger":
            place = places.get(task.trigger_id or 0)
            position = f", {ordinal(place[0])} of {place[1]}" if place else ""
            return Status(label=f"Queued{position}", color="deferred", since=task.deferred_at)
        case "ModelScopeImageGenerationTrigger":
            return _generating(submission, usual)
        case "ModelScopeExhaustedTrigger":
            return Status(label="Waiting for credit", color="up_for_retry", since=task.deferred_at)
    return Status(label="Deferred", color="deferred", since=task.deferred_at)


def _ended(task: TaskState | None, generation: str, error: AttemptError | None, run: Run) -> Status:
    """Return why a task that does nothing any more has no image."""

    def missing(label: str, color: str, sentence: str, at: float | None = None) -> Status:
        is_idle = color in ("skipped", "none")
        return Status(label=label, color=color, sentence=sentence, at=at, is_pending=False, is_idle=is_idle)

    match task.state if task else None:
        case "failed" if error:
            return missing("Failed", "failed", first_sentence(error.message))
        case "failed" if generation:
            sentence = f"{generation} goes on at ModelScope and occupies the account until it finishes."
            at = task.ended_at if task else None
            return missing("Stopped at" if at else "Stopped", "failed", sentence, at)
        case "failed":
            return missing("Failed", "failed", "Only the log says why.")
        case "upstream_failed":
            return missing("Upstream failed", "upstream_failed", "Not submitted: an upstream task failed.")
        case "skipped":
            return missing("Skipped", "skipped", "Not submitted: the task was skipped.")
        case "success" if generation:
            return missing("Not stored", "failed", f"No task of this run stored the images of {generation}.")
        case "success":
            return missing("No image", "failed", "The task succeeded but reported no image.")
    if generation:
        return Status(
            label="Submitted", color="none", sentence=f"{generation}.", is_pending=not run.is_finished
        )
    return missing("Not started", "none", "The run has ended.")


def first_sentence(text: str) -> str:
    """Return the first sentence of an error's text."""
    return truncated(re.split(r"(?<=[.!?])\s|(?<=[。！？])", text, maxsplit=1)[0], 300)


def places_of(queue: Mapping[int, tuple[str, float]]) -> dict[int, tuple[int, int]]:
    """Return the place of each trigger in the queue of its connection, and the length of that queue.

    :param queue: The connection and the time since which each trigger waits.
    """
    queues: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for trigger_id, (conn_id, queued_at) in queue.items():
        queues[conn_id].append((queued_at, trigger_id))
    return {
        trigger_id: (place, len(waiting))
        for waiting in queues.values()
        for place, (_, trigger_id) in enumerate(sorted(waiting), start=1)
    }


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, ..."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
