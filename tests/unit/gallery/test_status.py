"""What is said of an image that is not stored: each state has one label."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_modelscope.gallery.run import Run, TaskState
from airflow_provider_modelscope.gallery.status import Status, ordinal, places_of, status_of
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.redaction import truncated
from airflow_provider_modelscope.triggers.credit import ModelScopeExhaustedTrigger
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger
from airflow_provider_modelscope.xcoms import AttemptError, Submission

NOW = 1000.0
SUBMISSION = Submission(generation_id="42", model="a/b", submitted_at=900.0)
TIMES: dict[str, Any] = {
    "scheduled_at": 10.0, "queued_at": 20.0, "started_at": 30.0, "ended_at": 40.0, "deferred_at": 50.0,
}  # fmt: skip
QUEUE, GENERATION, CREDIT = (
    {"state": "deferred", "trigger": trigger.__name__}
    for trigger in (ModelScopeQueueTrigger, ModelScopeImageGenerationTrigger, ModelScopeExhaustedTrigger)
)


def status(
    task: dict[str, Any],
    submission: Submission | None = None,
    error: AttemptError | None = None,
    *,
    usual: dict[str, float] | None = None,
    places: dict[int, tuple[int, int]] | None = None,
    **of_run: Any,
) -> Status:
    known = {"state": "running", "triggerer_seen_at": NOW - 5, "xcoms": [], "tasks": [], **of_run}
    return status_of(
        TaskState(instance=Instance.make("draw", -1), trigger_id=7, **{**TIMES, **task}),
        submission,
        error,
        Run(dag_id="a_dag", run_id="a_run", **known),
        usual=usual or {},
        places=places or {},
        now=NOW,
    )


@pytest.mark.parametrize(
    ("task", "label", "since"),
    [
        ({"state": None}, "Not started", None),
        ({"state": "scheduled"}, "Scheduled", 10.0),
        ({"state": "queued"}, "Waiting for a worker", 20.0),
        ({"state": "running"}, "Submitting", 30.0),
        ({"state": "running", "next_method": "execute_queued"}, "Submitting", 20.0),
        ({"state": "restarting"}, "Restarting", 30.0),
        (QUEUE, "Queued", 50.0),
        (CREDIT, "Waiting for credit", 50.0),
        ({"state": "deferred", "trigger": "Other"}, "Deferred", 50.0),
        ({"state": "up_for_retry"}, "Waiting for the next attempt", 40.0),
        ({"state": "up_for_reschedule"}, "Up for reschedule", None),
        ({"state": "a state of later versions"}, "A state of later versions", None),
    ],
    ids=str,
)
def test_a_task_that_has_submitted_nothing_has_one_label(
    task: dict[str, Any], label: str, since: float | None
) -> None:
    found = status(task)
    assert (found.label, found.since, found.is_pending) == (label, since, True)


@pytest.mark.parametrize(
    ("task", "label", "since"),
    [
        ({"state": "running"}, "Generating", 900.0),
        ({"state": "running", "next_method": "execute_queued"}, "Generating", 900.0),
        (GENERATION, "Generating", 900.0),
        ({"state": "running", "next_method": "execute_complete"}, "Storing", 20.0),
        ({"state": "queued", "next_method": "execute_complete"}, "Waiting for a worker", 20.0),
        ({"state": "success"}, "Submitted", 900.0),
    ],
    ids=str,
)
def test_a_task_that_has_submitted_has_one_label(
    task: dict[str, Any], label: str, since: float | None
) -> None:
    found = status(task, SUBMISSION)
    assert (found.label, found.since, found.is_pending) == (label, since, True)
    assert "eneration 42" in found.sentence


@pytest.mark.parametrize(
    ("state", "submission", "label"),
    [
        ("failed", None, "Failed"),
        ("failed", SUBMISSION, "Stopped at"),
        ("upstream_failed", None, "Upstream failed"),
        ("skipped", None, "Skipped"),
        ("success", None, "No image"),
    ],
)
def test_a_task_that_ended_has_no_image(state: str, submission: Submission | None, label: str) -> None:
    found = status({"state": state}, submission)
    assert (found.label, found.is_pending) == (label, False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("The service is down. Wait.", "The service is down."),
        ("size = 5.5: too small", "size = 5.5: too small"),
        ("内容违规。请修改", "内容违规。"),
        ("a" * 500, truncated("a" * 500, 300)),
    ],
)
@pytest.mark.parametrize("submission", [None, SUBMISSION])
@pytest.mark.parametrize(
    ("state", "label"), [("failed", "Failed"), ("up_for_retry", "Waiting for the next attempt")]
)
def test_an_error_is_told_by_its_first_sentence(
    state: str, label: str, submission: Submission | None, text: str, sentence: str
) -> None:
    found = status({"state": state}, submission, AttemptError(type="AnError", message=text))
    assert (found.label, found.sentence) == (label, sentence)


def test_a_task_that_was_stopped_leaves_its_generation_running() -> None:
    found = status({"state": "failed", "ended_at": 40.0}, SUBMISSION)
    assert (found.label, found.at) == ("Stopped at", 40.0)
    assert "Generation 42 goes on at ModelScope and occupies the account" in found.sentence


@pytest.mark.parametrize(("submission", "label"), [(None, "Not started"), (SUBMISSION, "Submitted")])
def test_nothing_is_pending_in_a_run_that_ended(submission: Submission | None, label: str) -> None:
    found = status({"state": None}, submission, state="failed")
    assert (found.label, found.is_pending) == (label, False)
    assert status({"state": "success"}, SUBMISSION, state="success").label == "Not stored"


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ({"state": None}, "Paused Dag"),
        ({"state": "scheduled"}, "Paused Dag"),
        ({"state": "up_for_retry", "retry_at": 2000.0}, "Paused Dag"),
        ({"state": "queued"}, "Waiting for a worker"),  # what was queued before goes on
        (QUEUE, "Queued"),
    ],
    ids=str,
)
def test_a_paused_dag_is_named_if_it_is_the_reason(task: dict[str, Any], label: str) -> None:
    assert status(task, is_paused=True).label == label


def test_a_run_that_waits_for_others_is_named() -> None:
    assert status({"state": None}, state="queued").label == "Queued run"


def test_a_retry_has_the_time_of_the_next_attempt() -> None:
    found = status({"state": "up_for_retry", "retry_at": 2000.0, "attempt": 2})
    assert (found.label, found.at, found.sentence) == ("Retrying at", 2000.0, "Attempt 2 failed.")


@pytest.mark.parametrize("task", [QUEUE, GENERATION, CREDIT], ids=str)
@pytest.mark.parametrize(
    ("seen_at", "label"), [(NOW - 40, "No triggerer seen for"), (None, "No triggerer seen")]
)
def test_a_triggerer_that_is_not_seen_is_named(
    task: dict[str, Any], seen_at: float | None, label: str
) -> None:
    found = status(task, triggerer_seen_at=seen_at)
    assert (found.label, found.since) == (label, seen_at)


def test_the_place_in_the_queue_is_named() -> None:
    assert status(QUEUE, places={7: (3, 12)}).label == "Queued, 3rd of 12"


@pytest.mark.parametrize(("usual", "seconds"), [({"a/b": 30.0}, 30.0), ({"c/d": 30.0}, None)])
def test_the_usual_duration_is_that_of_the_model(usual: dict[str, float], seconds: float | None) -> None:
    assert status(GENERATION, SUBMISSION, usual=usual).usual == seconds


def test_each_connection_has_a_queue_of_its_own() -> None:
    queue = {1: ("a", 5.0), 2: ("a", 4.0), 3: ("b", 1.0), 4: ("a", 5.0)}
    assert places_of(queue) == {2: (1, 3), 1: (2, 3), 4: (3, 3), 3: (1, 1)}


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")],
)
def test_places_are_ordinal_numbers(number: int, text: str) -> None:
    assert ordinal(number) == text
