"""Decides what is said of an image that is not stored: one state, the time since, and a sentence.

Pure functions of values. Each label stands for exactly one state.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from airflow_provider_modelscope.redaction import truncated
from airflow_provider_modelscope.xcoms import STORING_SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_modelscope.gallery.run import Run, TaskState
    from airflow_provider_modelscope.xcoms import AttemptError, StoredImage, Submission

STORING_METHOD = "execute_complete"  # in which a task resumes when the wait for its generation has ended

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
        case "running" if waiting_since := _waiting_since(task, submission, run):
            sentence = "The task waits on its worker."
            return Status(label="Queued", color="deferred", since=waiting_since, sentence=sentence)
        case "running" if not submission:
            return Status(label="Submitting", color="running", since=task.resumed_at or task.started_at)
        case "running" | "success" if storing_since := _storing_since(task, submission, run):
            return Status(label="Storing", color="running", sentence=f"{generation}.", since=storing_since)
        case "running":
            return _generating(submission, usual)
        case "deferred":
            return _deferred(task, submission, run, usual=usual, places=places, now=now)
        case "restarting":
            return Status(label="Restarting", color="restarting", since=task.started_at)
        case "queued":
            sentence = ""
            if submission and task.next_method == STORING_METHOD:
                sentence = f"The wait for generation {submission.generation_id} has ended."
            return Status(
                label="Waiting for a worker", color="queued", sentence=sentence, since=task.queued_at
            )
        case "success" if submission and task.operator not in STORING_SUBMITTERS:
            sentence = (
                f"Downstream tasks wait for generation {submission.generation_id} and store its images."
            )
            return Status(
                label="Submitted", color="success", sentence=sentence, since=submission.submitted_at
            )
        case "success" | "failed" | "upstream_failed" | "skipped" | "removed":
            return _ended(task, generation, error, run)
    if run.is_stale and task.state != "scheduled":  # which goes on
        sentence = "Airflow starts no tasks of this Dag, because its files no longer contain it."
        return Status(label="Missing Dag", color="none", sentence=sentence)
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


def _waiting_since(task: TaskState, submission: Submission | None, run: Run) -> float | None:
    """Return since when a task waits for the account on its worker, None if it does not."""
    progress = run.progress.get(task.instance)
    # What it said before a deferral or a submission is over.
    begun_at = max(task.resumed_at or 0.0, submission.submitted_at if submission else 0.0)
    is_waiting = progress and progress.state == "queued" and progress.since >= begun_at
    return progress.since if progress and is_waiting else None


def _storing_since(task: TaskState, submission: Submission | None, run: Run) -> float | None:
    """Return since when a task stores the generation, None if none does: this task or one downstream."""
    if submission is None:
        return None
    has_resumed = task.state == "running" and task.next_method == STORING_METHOD and task.resumed_at
    if has_resumed and has_resumed >= submission.submitted_at:  # it may have submitted again since
        return has_resumed
    return run.storing.get(submission.generation_id)


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
            return _queued(task, place, run, usual)
        case "ModelScopeImageGenerationTrigger":
            return _generating(submission, usual)
        case "ModelScopeExhaustedTrigger":
            return Status(label="Waiting for credit", color="up_for_retry", since=task.deferred_at)
    return Status(label="Deferred", color="deferred", since=task.deferred_at)


def _queued(task: TaskState, place: tuple[int, int] | None, run: Run, usual: Mapping[str, float]) -> Status:
    """Return the place in the queue and, instead of the time since, about how long it still takes."""
    if place is None:
        return Status(label="Queued", color="deferred", since=task.deferred_at)
    label = f"Queued, {ordinal(place[0])} of {place[1]}"
    if task.model not in usual:
        return Status(label=label, color="deferred", since=task.deferred_at)
    conn_id, _ = run.queue[task.trigger_id or 0]
    seconds = place[0] * usual[task.model] / max(1, run.running.get(conn_id, 1))
    return Status(label=f"{label}, about {rough(seconds)}", color="deferred")


def _ended(task: TaskState | None, generation: str, error: AttemptError | None, run: Run) -> Status:
    """Return why a task that does nothing any more has no image."""

    def missing(label: str, color: str, sentence: str, at: float | None = None) -> Status:
        is_idle = color in ("skipped", "none") and not generation
        return Status(label=label, color=color, sentence=sentence, at=at, is_pending=False, is_idle=is_idle)

    def and_generation(sentence: str = "") -> str:
        rest = f"{generation} goes on at ModelScope and occupies the account until it finishes."
        said = run.progress.get(task.instance) if task else None
        if said and generation == f"Generation {said.generation_id}":
            rest = f"{generation} had finished, and its images were being stored."
        return " ".join(filter(None, (sentence, rest if generation else "")))

    match task.state if task else None:
        case "failed" if error:
            return missing("Failed", "failed", first_sentence(error.message))
        case "failed" if task and task.ended_by == "person":
            return missing("Marked failed at", "failed", and_generation(), task.ended_at)
        case "failed" if task and task.ended_by == "heartbeat":
            sentence = and_generation("Airflow got no heartbeat from its worker.")
            return missing("Worker lost at", "failed", sentence, task.ended_at)
        case "failed":
            return missing("Failed", "failed", and_generation("No error is recorded. See the log."))
        case "upstream_failed":
            return missing("Upstream failed", "upstream_failed", "Not submitted: an upstream task failed.")
        case "skipped":
            return missing("Skipped", "skipped", and_generation() or "Not submitted: the task was skipped.")
        case "removed":
            return missing("Removed", "none", and_generation("This task is no longer part of the run."))
        case "success" if generation:
            return missing("Not stored", "failed", f"{generation}: no task of this run stored its images.")
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


def usual_durations(images: Iterable[StoredImage]) -> dict[str, float]:
    """Return the usual duration of a generation by model, in seconds: the median of these images."""
    durations: dict[str, list[float]] = defaultdict(list)
    for image in images:
        if image.model and image.duration_ms:
            durations[image.model].append(image.duration_ms / 1000)
    return {model: median(seconds) for model, seconds in durations.items()}


def rough(seconds: float) -> str:
    """Return an estimate as text, no more precise than it is: ``20 s``, ``2 min`` or ``3 h``."""
    if seconds <= 50:
        return f"{10 * max(1, math.ceil(seconds / 10))} s"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{round(minutes / 60)} h"


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
