"""What is read of a run, from the tables of the installed Airflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_modelscope.gallery.metadata import read_run, read_version, read_xcom
from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
from airflow_provider_modelscope.links import Instance
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.triggers.queue import ModelScopeQueueTrigger
from tests.unit.gallery.conftest import Database, entry, needs_gallery, needs_loops

pytestmark = needs_gallery

IMAGES = [entry()]
DRAW = Instance.make("draw", -1)
ELSEWHERE = [
    {"dag_id": "other_dag"},
    {"run_id": "other_run"},
    {"task_id": "other_task"},
    {"map_index": 0},
]


def test_images_of_one_task_instance_are_read(database: Database) -> None:
    database.push(IMAGES, map_index=3)
    assert read_xcom("a_dag", "a_run", Instance.make("draw", 3), "images") == IMAGES


@pytest.mark.parametrize("elsewhere", ELSEWHERE, ids=str)
def test_images_of_others_are_not_read(database: Database, elsewhere: dict[str, Any]) -> None:
    database.push(IMAGES, **elsewhere)
    assert read_xcom("a_dag", "a_run", DRAW, "images") is None


def test_other_xcoms_of_the_task_are_not_read_as_images(database: Database) -> None:
    database.push(IMAGES, key="return_value")
    assert read_xcom("a_dag", "a_run", DRAW, "images") is None


def test_a_run_has_its_task_states_and_xcoms(database: Database) -> None:
    database.add_run(state="success")
    database.add_task(
        map_index=2,
        state="success",
        operator="AnOperator",
        rendered_map_index="cats",
        try_number=2,
        scheduled_dttm=datetime.fromtimestamp(3, UTC),
        queued_dttm=datetime.fromtimestamp(4, UTC),
        start_date=datetime.fromtimestamp(5, UTC),
        end_date=datetime.fromtimestamp(6, UTC),
        next_method="execute_complete",
    )
    database.add_task("publish")
    database.push(IMAGES, map_index=2)
    database.push({"generation_id": "42"}, "request", map_index=2)
    database.push({"type": "AnError"}, "error", map_index=2)
    database.push({"state": "storing"}, "progress", map_index=2)
    run = read_run("a_dag", "a_run")
    assert run
    assert replace(
        run,
        tasks=sorted(run.tasks, key=lambda task: task.instance),
        xcoms=sorted(run.xcoms, key=lambda xcom: xcom.key),
    ) == Run(
        dag_id="a_dag",
        run_id="a_run",
        state="success",
        xcoms=[
            PushedXCom(instance=Instance.make("draw", 2), key="error", value={"type": "AnError"}),
            PushedXCom(instance=Instance.make("draw", 2), key="images", value=IMAGES),
            PushedXCom(instance=Instance.make("draw", 2), key="progress", value={"state": "storing"}),
            PushedXCom(instance=Instance.make("draw", 2), key="request", value={"generation_id": "42"}),
        ],
        tasks=[
            TaskState(
                instance=Instance.make("draw", 2),
                state="success",
                operator="AnOperator",
                label="cats",
                attempt=2,
                scheduled_at=3.0,
                queued_at=4.0,
                started_at=5.0,
                ended_at=6.0,
                next_method="execute_complete",
            ),
            TaskState(instance=Instance.make("publish", -1), state=None),
        ],
    )


def test_a_run_has_nothing_of_other_runs_and_keys(database: Database) -> None:
    database.add_run()
    database.add_run(run_id="other_run")
    database.add_run("other_dag")
    database.add_task(run_id="other_run")
    database.add_task(dag_id="other_dag")
    database.push(IMAGES, run_id="other_run")
    run = read_run("a_dag", "a_run")
    assert run
    assert (run.xcoms, run.tasks) == ([], [])
    database.push(IMAGES, "return_value")
    run = read_run("a_dag", "a_run")
    assert run
    assert run.xcoms == []


@pytest.mark.parametrize("ids", [("a_dag", "other_run"), ("other_dag", "a_run")])
def test_an_unknown_run_is_none(database: Database, ids: tuple[str, str]) -> None:
    database.add_run()
    assert read_run(*ids) is None


@needs_loops
def test_iterations_of_a_loop_are_kept_apart(database: Database) -> None:
    """A mapped task in a loop has the same index in each iteration; only its region differs."""
    regions = [UUID(int=1), UUID(int=2)]
    for region in regions:
        database.push([entry(str(region))], map_index=0, region_id=region)
    for region in regions:
        instance = Instance.make("draw", 0, region)
        assert read_xcom("a_dag", "a_run", instance, "images") == [entry(str(region))]
    assert read_xcom("a_dag", "a_run", Instance.make("draw", 0), "images") is None
    assert read_xcom("a_dag", "a_run", Instance.make("draw", 0, "another"), "images") is None
    run = read_run("a_dag", "a_run")
    assert run
    instances = [Instance.make("draw", 0, region) for region in regions]
    assert sorted(xcom.instance for xcom in run.xcoms) == instances
    assert sorted(task.instance for task in run.tasks) == instances


@needs_loops
def test_the_only_instance_with_an_index_needs_no_region(database: Database) -> None:
    for index in (0, 1):
        database.push([entry(str(index))], map_index=index, region_id=UUID(int=1))
    assert read_xcom("a_dag", "a_run", Instance.make("draw", 1), "images") == [entry("1")]


def test_a_text_that_is_not_json_is_returned_unchanged(database: Database) -> None:
    from airflow.models import xcom
    from airflow.utils.session import create_session
    from sqlalchemy import update

    database.push(None)
    with create_session() as session:
        session.execute(
            update(getattr(xcom, "XComModelV2", xcom.XComModel)).values(value="s3://xcom/42.json")
        )
    assert read_xcom("a_dag", "a_run", DRAW, "images") == "s3://xcom/42.json"


def queue_trigger(queued_at: float, conn_id: str = "modelscope_default") -> ModelScopeQueueTrigger:
    return ModelScopeQueueTrigger(queued_at=queued_at, modelscope_conn_id=conn_id, end_time=9e9)


def generation_trigger(conn_id: str = "modelscope_default") -> ModelScopeImageGenerationTrigger:
    return ModelScopeImageGenerationTrigger(
        generation_id="42", modelscope_conn_id=conn_id, poll_interval=15, submitted_at=5.0, end_time=9e9
    )


def test_a_queued_task_knows_what_runs_on_each_connection(database: Database) -> None:
    created_at = datetime.fromtimestamp(20, UTC)
    for conn_id in ("a", "a", "b"):
        database.add_trigger(generation_trigger(conn_id), created_at)
    own = database.add_trigger(queue_trigger(10.0), created_at)
    database.add_run()
    database.add_task(state="deferred", trigger_id=own)
    run = read_run("a_dag", "a_run")
    assert run
    assert run.running == {"a": 2, "b": 1}


SUBMITTER: dict[str, Any] = {"operator": "ModelScopeImageGenerationOperator"}


@pytest.mark.parametrize(
    ("state", "is_read"), [("running", True), ("deferred", True), ("failed", False), (None, False)]
)
def test_recent_images_are_read_while_a_task_waits(
    database: Database, state: str | None, is_read: bool
) -> None:
    for run_id, run_state in {"old": "success", "new": "failed", "goes_on": "running"}.items():
        database.add_run(run_id=run_id, state=run_state)
        database.push([entry(run_id)], run_id=run_id)
        database.push([entry(run_id)], "other", run_id=run_id)
    database.add_run("other_dag", "new", state="success")
    database.push([entry("other_dag")], dag_id="other_dag", run_id="new")
    database.add_run()
    database.add_run(run_id="later", state="success")
    database.push([entry("later")], run_id="later")
    database.add_task(state=state, **SUBMITTER)
    run = read_run("a_dag", "a_run")
    assert run
    found = [one["generation_id"] for value in run.recent_images for one in value]
    assert found == (["new", "old"] if is_read else [])


def test_few_recent_images_are_read(database: Database) -> None:
    for run_id in ("first", "second", "third", "fourth"):
        database.add_run(run_id=run_id, state="success")
    database.push("s3://xcom/1.json", run_id="second")
    for index in range(100):
        database.push([entry()] * 30, run_id="third", map_index=index)
    database.push([entry()], run_id="first")
    database.add_run()
    database.add_task(state="running", **SUBMITTER)
    run = read_run("a_dag", "a_run")
    assert run
    assert [len(value) for value in run.recent_images] == [20] * 50


ENDED_AT = datetime.fromtimestamp(1000, UTC)
FAILED = {"new_state": "failed", "method": "PATCH"}


def ended_by(database: Database, error: Any = None) -> str:
    """Return what ended the task ``draw`` 2 in its second attempt."""
    database.add_run(state="failed")
    database.add_task(map_index=2, state="failed", try_number=2, end_date=ENDED_AT)
    if error:
        database.push(error, "error", map_index=2)
    run = read_run("a_dag", "a_run")
    assert run
    return next(task.ended_by for task in run.tasks if task.instance == Instance.make("draw", 2))


@pytest.mark.parametrize(
    ("event", "task_id", "extra"),
    [
        ("patch_task_instance", "draw", {**FAILED, "map_index": "2"}),
        ("patch_task_instance", "draw", FAILED),  # of all mapped task instances
        ("patch_task_instance", "other", {**FAILED, "include_downstream": True}),
        ("patch_task_group_instances", None, {**FAILED, "group_id": "a_group"}),
        ("patch_dag_run", None, {"state": "failed", "method": "PATCH"}),
    ],
)
def test_a_task_that_a_person_marked_failed_is_known(
    database: Database, event: str, task_id: str | None, extra: dict[str, Any]
) -> None:
    database.add_log(event, ENDED_AT - timedelta(seconds=1), task_id=task_id, extra=json.dumps(extra))
    assert ended_by(database) == "person"


@pytest.mark.parametrize(
    "log",
    [
        {"extra": json.dumps({**FAILED, "map_index": "1"})},
        {"extra": json.dumps({**FAILED, "region_id": "another"})},
        {"extra": json.dumps({"new_state": "success"})},
        {"extra": json.dumps({"note": "failed"})},
        {"extra": "failed"},
        {"extra": None},
        {"task_id": "other"},
        {"run_id": "other_run"},
        {"dag_id": "other_dag"},
        {"event": "post_clear_task_instances"},
        {"at": ENDED_AT + timedelta(seconds=1)},  # it had failed before
        {"at": ENDED_AT - timedelta(seconds=31)},  # by a person who may not, before it failed
    ],
    ids=str,
)
def test_other_entries_of_the_audit_log_are_no_mark(database: Database, log: dict[str, Any]) -> None:
    mark = {"event": "patch_task_instance", "at": ENDED_AT, "task_id": "draw", "extra": json.dumps(FAILED)}
    database.add_log(**{**mark, **log})
    assert ended_by(database) == ""


def test_a_mark_ends_only_tasks_that_failed_without_an_error(database: Database) -> None:
    database.add_log("patch_task_instance", ENDED_AT, task_id="draw", extra=json.dumps(FAILED))
    assert ended_by(database, error={"type": "AnError", "message": "It is down."}) == ""


@pytest.mark.parametrize(("attempt", "expected"), [(2, "heartbeat"), (1, "person")])
def test_a_lost_worker_is_known_of_its_attempt(database: Database, attempt: int, expected: str) -> None:
    database.add_log("patch_dag_run", ENDED_AT, extra=json.dumps({"state": "failed"}))
    ids: dict[str, Any] = {"task_id": "draw", "map_index": 2, "try_number": attempt}
    database.add_log("heartbeat timeout", ENDED_AT - timedelta(hours=1), **ids)
    assert ended_by(database) == expected


@needs_loops
def test_a_lost_worker_is_that_of_its_own_iteration(database: Database) -> None:
    database.add_run()
    regions = [UUID(int=1), UUID(int=2)]
    attempts = [
        database.add_task(map_index=0, region_id=region, state="failed", try_number=1, end_date=ENDED_AT)
        for region in regions
    ]
    ids: dict[str, Any] = {"task_id": "draw", "map_index": 0, "try_number": 1}
    database.add_log("heartbeat timeout", ENDED_AT, task_instance_id=attempts[0], **ids)
    run = read_run("a_dag", "a_run")
    assert run
    assert sorted((task.instance.region_id, task.ended_by) for task in run.tasks) == [
        (str(regions[0]), "heartbeat"), (str(regions[1]), ""),
    ]  # fmt: skip


def test_a_deferred_task_has_its_trigger_and_the_queue(database: Database) -> None:
    created_at = datetime.fromtimestamp(20, UTC)
    own = database.add_trigger(queue_trigger(10.0), created_at)
    other = database.add_trigger(queue_trigger(5.0, "other_conn"), created_at)
    database.add_run()
    database.add_task(state="deferred", trigger_id=own)
    database.add_heartbeat(datetime.fromtimestamp(30, UTC))
    database.add_heartbeat(datetime.fromtimestamp(25, UTC))
    database.add_heartbeat(datetime.fromtimestamp(40, UTC), "SchedulerJob")
    run = read_run("a_dag", "a_run")
    assert run
    assert [(task.trigger, task.trigger_id, task.deferred_at) for task in run.tasks] == [
        ("ModelScopeQueueTrigger", own, 20.0)
    ]
    assert run.queue == {own: ("modelscope_default", 10.0), other: ("other_conn", 5.0)}
    assert run.triggerer_seen_at == 30.0


def test_no_places_are_known_in_a_queue_that_cannot_be_read(database: Database) -> None:
    created_at = datetime.fromtimestamp(20, UTC)
    readable, hostile = queue_trigger(10.0), queue_trigger("now")  # type: ignore[arg-type]
    ids = [database.add_trigger(trigger, created_at) for trigger in (readable, hostile)]
    database.add_run()
    database.add_task(state="deferred", trigger_id=ids[0])
    run = read_run("a_dag", "a_run")
    assert run
    assert (run.queue, run.triggerer_seen_at) == ({}, None)


@pytest.mark.parametrize("of_dag", [None, {"is_paused": True}, {"is_stale": True}], ids=str)
def test_a_dag_that_starts_no_tasks_is_known(database: Database, of_dag: dict[str, bool] | None) -> None:
    database.add_run()
    if of_dag:
        database.add_dag(**of_dag)
    run = read_run("a_dag", "a_run")
    assert run
    assert {name for name in ("is_paused", "is_stale") if getattr(run, name)} == set(of_dag or {})


def test_a_retry_without_a_known_dag_has_no_time(database: Database) -> None:
    database.add_run()
    database.add_task(state="up_for_retry", end_date=datetime.fromtimestamp(5, UTC))
    run = read_run("a_dag", "a_run")
    assert run
    assert [task.retry_at for task in run.tasks] == [None]


def test_a_retry_policy_says_when_the_next_attempt_is_due(database: Database) -> None:
    from airflow.models.taskinstance import TaskInstance

    if not hasattr(TaskInstance, "retry_delay_override"):
        pytest.skip("Airflow has retry policies from 3.3 on")
    database.add_run()
    ended: dict[str, Any] = {"state": "up_for_retry", "end_date": datetime.fromtimestamp(5, UTC)}
    database.add_task(retry_delay_override=60.0, **ended)
    run = read_run("a_dag", "a_run")
    assert run
    assert [task.retry_at for task in run.tasks] == [65.0]


@pytest.mark.parametrize(
    ("rendered", "known"),
    [
        ({"prompt": "A cat", "model": "a/b", "other": "x"}, ("A cat", "a/b")),
        ({"prompt": "Truncated. You are likely to see this because", "model": None}, ("", "")),
        ({"prompt": "DYNAMIC (set during execution)", "model": "a/b"}, ("", "a/b")),
        ({"prompt": ["A cat"]}, ("", "")),
        ([], ("", "")),
    ],
    ids=str,
)
def test_a_task_that_has_started_has_its_prompt(
    database: Database, rendered: Any, known: tuple[str, str]
) -> None:
    database.add_run()
    for index, state in enumerate(("running", "success")):
        database.add_task(map_index=index, state=state, operator="ModelScopeImageGenerationOperator")
        database.render(rendered, map_index=index)
    run = read_run("a_dag", "a_run")
    assert run
    found = {task.instance.map_index: (task.prompt, task.model) for task in run.tasks}
    assert found == {0: known, 1: ("", "")}


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def version_text(*, alive_since: float) -> str:
    found = read_version("a_dag", "a_run", alive_since=alive_since)
    assert found
    return found[0]


class TestVersion:
    @pytest.fixture
    def version(self, database: Database) -> Callable[[], str]:
        """The version of a run with one task instance that is deferred, and an image of another."""
        database.add_run()
        trigger = database.add_trigger(queue_trigger(10.0), at(20))
        database.add_task(state="deferred", trigger_id=trigger, try_number=1, start_date=at(10))
        database.push(IMAGES, task_id="other")
        database.add_heartbeat(at(100))
        return lambda: version_text(alive_since=90.0)

    def test_an_unchanged_run_keeps_it(self, database: Database, version: Callable[[], str]) -> None:
        before = version()
        database.add_run(run_id="other_run")
        database.add_task(run_id="other_run", state="running")
        database.push(IMAGES, run_id="other_run")
        database.add_heartbeat(at(120))
        assert before
        assert version() == before

    @pytest.mark.parametrize(
        "changed",
        [
            {"state": "running"},
            {"state": None},
            {"try_number": 2},
            {"trigger_id": 999},
            {"start_date": at(11)},
            {"end_date": at(11)},
            {"queued_dttm": at(11)},
            {"scheduled_dttm": at(11)},
        ],
        ids=str,
    )
    def test_a_change_of_a_task_changes_it(
        self, database: Database, version: Callable[[], str], changed: dict[str, Any]
    ) -> None:
        from airflow.models.taskinstance import TaskInstance

        before = version()
        database.update(TaskInstance, **changed)
        assert version() != before

    @pytest.mark.parametrize(
        "change",
        [
            lambda database: database.push(IMAGES, task_id="new"),
            lambda database: database.push(IMAGES, "error"),
            lambda database: database.push({"state": "queued", "since": 5.0}, "progress"),
            lambda database: database.add_trigger(generation_trigger(), at(30)),
            lambda database: database.add_dag(is_paused=True),
            lambda database: database.add_dag(is_stale=True),
            lambda database: database.add_trigger(queue_trigger(5.0), at(30)),
        ],
    )
    def test_what_else_the_page_shows_changes_it(
        self,
        database: Database,
        version: Callable[[], str],
        change: Callable[[Database], object],
    ) -> None:
        before = version()
        change(database)
        assert version() != before

    def test_the_end_of_the_run_changes_it(self, database: Database, version: Callable[[], str]) -> None:
        from airflow.models.dagrun import DagRun

        before = version()
        database.update(DagRun, state="success")
        assert version() != before

    def test_a_triggerer_that_is_lost_changes_it(
        self, database: Database, version: Callable[[], str]
    ) -> None:
        assert version_text(alive_since=110.0) != version()

    def test_other_generations_change_it_only_for_a_queued_task(
        self, database: Database, version: Callable[[], str]
    ) -> None:
        from airflow.models.taskinstance import TaskInstance

        own = database.add_trigger(generation_trigger(), at(20))
        database.update(TaskInstance, trigger_id=own)
        before = version()
        database.add_trigger(generation_trigger(), at(30))
        database.add_trigger(queue_trigger(5.0), at(30))
        assert version() == before

    @pytest.mark.parametrize(("operator", "is_shown"), [(SUBMITTER["operator"], True), ("Other", False)])
    def test_the_end_of_an_earlier_run_changes_its_durations(
        self, database: Database, operator: str, is_shown: bool
    ) -> None:
        from airflow.models.dagrun import DagRun

        database.add_run(run_id="earlier")
        database.add_run()
        database.add_task(state="running", operator=operator)
        before = version_text(alive_since=0.0)
        database.update(DagRun, "earlier", state="success")
        assert (version_text(alive_since=0.0) != before) is is_shown

    def test_the_batches_come_with_it(self, database: Database, version: Callable[[], str]) -> None:
        before = version()
        location = {"state": "file:///batch/.modelscope/"}
        database.push(location, "batch", task_id="batch")
        found = read_version("a_dag", "a_run", alive_since=90.0)
        assert found
        assert found[0] != before
        assert [(xcom.instance.task_id, xcom.value) for xcom in found[1]] == [("batch", location)]

    def test_an_unknown_run_has_none(self, database: Database) -> None:
        assert read_version("a_dag", "a_run", alive_since=0.0) is None
