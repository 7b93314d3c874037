"""What is said of an image that is not stored: each state has one label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
from airflow_provider_modelscope.gallery.status import Status, ordinal, places_of, rough, status_of
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


DRAW = Instance.make("draw", -1)
STORE = Instance.make("store", -1)


def says(instance: Instance = DRAW, state: str = "storing", **said: Any) -> PushedXCom:
    """Return the XCom of a task that says what it does on its worker."""
    return PushedXCom(instance=instance, key="progress", value={"state": state, "since": 950.0, **said})


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
        TaskState(instance=DRAW, trigger_id=7, **{**TIMES, **task}),
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
        ({"state": "running", "next_method": "execute_complete", "queued_at": 920.0}, "Storing", 920.0),
        ({"state": "running", "next_method": "execute_complete"}, "Generating", 900.0),  # submitted again
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


STORER = {"operator": "ModelScopeImageGenerationOperator"}


@pytest.mark.parametrize("run_state", ["running", "failed"])
@pytest.mark.parametrize(
    ("task", "submission", "label", "is_idle"),
    [
        ({"state": "failed"}, None, "Failed", False),
        ({"state": "failed"}, SUBMISSION, "Failed", False),
        ({"state": "upstream_failed"}, None, "Upstream failed", False),
        ({"state": "skipped"}, None, "Skipped", True),
        ({"state": "skipped"}, SUBMISSION, "Skipped", False),  # after dagrun_timeout, for example
        ({"state": "removed"}, None, "Removed", True),
        ({"state": "removed"}, SUBMISSION, "Removed", False),
        ({"state": "success"}, None, "No image", False),
        ({"state": "success", **STORER}, SUBMISSION, "Not stored", False),  # marked success
    ],
    ids=str,
)
def test_a_task_that_ended_has_no_image(
    run_state: str, task: dict[str, Any], submission: Submission | None, label: str, *, is_idle: bool
) -> None:
    found = status(task, submission, state=run_state)
    assert (found.label, found.is_pending, found.is_idle) == (label, False, is_idle)
    assert ("eneration 42" in found.sentence) is (submission is not None)


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


@pytest.mark.parametrize(
    ("ended_by", "label", "sentence"),
    [
        ("person", "Marked failed at", ""),
        ("heartbeat", "Worker lost at", "Airflow got no heartbeat from its worker."),
        ("", "Failed", "No error is recorded. See the log."),
    ],
)
def test_what_ended_a_task_without_an_error_is_named(ended_by: str, label: str, sentence: str) -> None:
    task: dict[str, Any] = {"state": "failed", "ended_at": 40.0, "ended_by": ended_by}
    at = 40.0 if ended_by else None
    found = status(task)
    assert (found.label, found.at, found.sentence, found.is_pending) == (label, at, sentence, False)
    runs_on = "Generation 42 goes on at ModelScope and occupies the account until it finishes."
    assert status(task, SUBMISSION).sentence == f"{sentence} {runs_on}".strip()
    stored = status(task, SUBMISSION, xcoms=[says(generation_id="42")])
    had_finished = "Generation 42 had finished, and its images were being stored."
    assert stored.sentence == f"{sentence} {had_finished}".strip()
    other = status(task, SUBMISSION, xcoms=[says(generation_id="41")])
    assert other.sentence == f"{sentence} {runs_on}".strip()


def test_an_error_says_more_than_who_ended_the_task() -> None:
    error = AttemptError(type="AnError", message="It is down.")
    found = status({"state": "failed", "ended_by": "person"}, SUBMISSION, error)
    assert (found.label, found.sentence) == ("Failed", "It is down.")


@pytest.mark.parametrize(
    ("task", "label", "since"),
    [
        ({"state": "running"}, "Queued", 950.0),
        ({"state": "running", "next_method": "execute_queued", "queued_at": 940.0}, "Queued", 950.0),
        # It said so before it was deferred, in another attempt, or before it ended.
        ({"state": "running", "next_method": "execute_queued", "queued_at": 960.0}, "Submitting", 960.0),
        (CREDIT, "Waiting for credit", 50.0),
        ({"state": "queued"}, "Waiting for a worker", 20.0),
        ({"state": "up_for_retry"}, "Waiting for the next attempt", 40.0),
        ({"state": "failed"}, "Failed", None),
    ],
    ids=str,
)
def test_a_wait_on_a_worker_is_shown_while_it_lasts(
    task: dict[str, Any], label: str, since: float | None
) -> None:
    found = status(task, xcoms=[says(state="queued")])
    assert (found.label, found.since) == (label, since)


@pytest.mark.parametrize(("submitted_at", "label"), [(960.0, "Generating"), (900.0, "Queued")])
def test_a_task_that_submits_again_waits_again(submitted_at: float, label: str) -> None:
    submission = replace(SUBMISSION, submitted_at=submitted_at)
    again = {"state": "running", "next_method": "execute_complete", "queued_at": 940.0}
    for task in ({"state": "running"}, again):
        found = status(task, submission, xcoms=[says(state="queued")])
        assert found.label == label


@pytest.mark.parametrize(
    ("task", "storer", "said", "label"),
    [
        ({"state": "running"}, DRAW, "42", "Storing"),
        ({"state": "running"}, DRAW, "41", "Generating"),  # an earlier one
        ({"state": "success"}, STORE, "42", "Storing"),
        ({"state": "success"}, STORE, "41", "Submitted"),
        (GENERATION, DRAW, "42", "Generating"),
        ({"state": "queued"}, DRAW, "42", "Waiting for a worker"),
    ],
    ids=str,
)
def test_storing_on_a_worker_is_shown_while_it_lasts(
    task: dict[str, Any], storer: Instance, said: str, label: str
) -> None:
    states = {DRAW: task["state"], STORE: "running"}
    tasks = [TaskState(instance=instance, state=state) for instance, state in states.items()]
    found = status(task, SUBMISSION, xcoms=[says(storer, generation_id=said)], tasks=tasks)
    assert found.label == label
    assert (found.since == 950.0) is (label == "Storing")


def test_a_task_that_has_ended_stores_nothing() -> None:
    tasks = [TaskState(instance=STORE, state="failed")]
    found = status({"state": "success"}, SUBMISSION, xcoms=[says(STORE, generation_id="42")], tasks=tasks)
    assert found.label == "Submitted"


@pytest.mark.parametrize(
    "value",
    [
        None, "queued", [], {"state": "queued"}, {"state": "queued", "since": "now"},
        {"state": "queued", "since": float("nan")}, {"state": "storing", "since": 5.0},
        {"state": "storing", "since": 5.0, "generation_id": 42}, {"state": "done", "since": 5.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_progress_that_cannot_be_read_says_nothing(value: Any) -> None:
    pushed = [PushedXCom(instance=DRAW, key="progress", value=value)]
    tasks = [TaskState(instance=DRAW, state="running")]
    assert status({"state": "running"}, xcoms=pushed, tasks=tasks).label == "Submitting"
    assert status({"state": "running"}, SUBMISSION, xcoms=pushed, tasks=tasks).label == "Generating"


@pytest.mark.parametrize(
    ("usual", "running", "label", "since"),
    [
        ({"a/b": 30.0}, {}, "Queued, 3rd of 12, about 2 min", None),
        ({"a/b": 30.0}, {"a": 3, "b": 1}, "Queued, 3rd of 12, about 30 s", None),
        ({"c/d": 30.0}, {}, "Queued, 3rd of 12", 50.0),
    ],
    ids=str,
)
def test_the_place_says_how_long_the_wait_still_is(
    usual: dict[str, float], running: dict[str, int], label: str, since: float | None
) -> None:
    known: dict[str, Any] = {"queue": {7: ("a", 5.0)}, "running": running}
    found = status({**QUEUE, "model": "a/b"}, usual=usual, places={7: (3, 12)}, **known)
    assert (found.label, found.since) == (label, since)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1, "10 s"), (14, "20 s"), (50, "50 s"), (51, "1 min"), (89, "1 min"), (91, "2 min"),
        (5000, "83 min"), (7000, "2 h"),
    ],
)  # fmt: skip
def test_an_estimate_is_rounded(seconds: float, text: str) -> None:
    assert rough(seconds) == text


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


def test_a_dag_that_is_gone_is_named_rather_than_its_pause() -> None:
    assert status({"state": None}, is_stale=True, is_paused=True).label == "Missing Dag"
    assert status({"state": "scheduled"}, is_stale=True).label == "Scheduled"


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
