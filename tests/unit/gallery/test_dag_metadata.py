"""What is read of all runs of a Dag, from the tables of the installed Airflow."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.gallery import dag_metadata
from airflow_provider_modelscope.gallery.dag_images import Position, Wanted
from airflow_provider_modelscope.gallery.dag_metadata import (
    read_choices,
    read_newer,
    read_params,
    read_xcoms,
)
from tests.unit.gallery.conftest import HAS_LOOPS, entry, needs_gallery

if TYPE_CHECKING:
    from tests.unit.gallery.conftest import Database

pytestmark = needs_gallery


def add(database: Database, run_id: str, *names: str, dag_id: str = "a_dag") -> None:
    """Add a run whose tasks have pushed one image each."""
    if not HAS_LOOPS:
        database.add_run(dag_id, run_id)
    for name in names:
        database.push([entry(f"{run_id} {name}")], dag_id=dag_id, run_id=run_id, task_id=name)


def read(
    wanted: Wanted | None = None, start: Position | None = None, runs: int = 10
) -> tuple[list[str], Position | None]:
    """Return the generations that are read, and where to go on."""
    found = read_xcoms("a_dag", wanted or Wanted(), start or Position(), runs)
    return [xcom.value[0]["generation_id"] for xcom in found.xcoms], found.older


@pytest.fixture
def three_runs(database: Database) -> Database:
    for number in (1, 2, 3):
        add(database, f"run_{number}", "draw", "move")
    add(database, "run_1", "draw", dag_id="other_dag")
    database.push("not an image", "return_value", run_id="run_3")
    return database


ALL = [f"run_{number} {task}" for number in (3, 2, 1) for task in ("move", "draw")]


def test_the_newest_images_of_the_newest_run_come_first(three_runs: Database) -> None:
    assert read() == (ALL, None)


def test_what_is_left_is_read_from_a_position_on(
    three_runs: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in (1, 2, 3, 5):
        monkeypatch.setattr(dag_metadata, "MAX_XCOMS", most)
        for runs in (1, 2, 10):
            seen: list[str] = []
            older: Position | None = Position()
            while older:
                found, older = read(start=older, runs=runs)
                seen += found
            assert seen == ALL


def test_xcoms_of_the_same_time_are_read_once(three_runs: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.models import xcom

    three_runs.update(
        getattr(xcom, "XComModelV2", xcom.XComModel), timestamp=datetime(2026, 11, 29, tzinfo=UTC)
    )
    monkeypatch.setattr(dag_metadata, "MAX_XCOMS", 1)
    seen: list[str] = []
    older: Position | None = Position()
    while older:
        found, older = read(start=older)
        seen += found
    assert sorted(seen) == sorted(ALL)


def test_a_run_and_a_task_can_be_asked_for(three_runs: Database) -> None:
    assert read(Wanted(run="run_2"))[0] == ["run_2 move", "run_2 draw"]
    assert read(Wanted(task="draw"))[0] == ["run_3 draw", "run_2 draw", "run_1 draw"]
    assert read(Wanted(run="run_2", task="draw"))[0] == ["run_2 draw"]


@pytest.mark.parametrize("name", ["\0", "draw\0", "x" * 10_000, "%", "dra_", "'; --", "🦊", "雨"])
def test_an_unknown_run_or_task_has_no_images(three_runs: Database, name: str) -> None:
    assert read(Wanted(run=name)) == ([], None)
    assert read(Wanted(task=name)) == ([], None)


def test_the_database_gets_no_text_with_nul(three_runs: Database) -> None:
    """PostgreSQL rejects it."""
    wanted = (Wanted(task="x"), Wanted(task="x\0"), Wanted(run="\0"))
    assert [read_xcoms("a_dag", one, Position(), 10).runs for one in wanted] == [3, 0, 0]


@pytest.mark.parametrize("text", ["0-0-0-0", "2147483647-9999999999999999-999999-999999999", "1-0-5-5"])
def test_a_forged_position_reads_no_other_dag(three_runs: Database, text: str) -> None:
    position = Position.from_text(text)
    assert position
    assert set(read(start=position)[0]) <= set(ALL)
    assert {image.generation_id for image in read_newer("a_dag", Wanted(), position)} <= set(ALL)
    assert read_newer("no_dag", Wanted(), position) == []


def test_the_images_just_before_a_position_are_known(three_runs: Database) -> None:
    found = read_xcoms("a_dag", Wanted(), Position(), 10).xcoms
    newer = read_newer("a_dag", Wanted(), found[1].position)
    assert [image.generation_id for image in newer] == ["run_3 move"]
    assert read_newer("a_dag", Wanted(task="draw"), found[1].position) == []
    assert read_newer("other_dag", Wanted(), found[1].position) == []


def test_runs_and_tasks_with_images_are_suggested(three_runs: Database) -> None:
    add(three_runs, "run_4")
    runs, tasks = read_choices("a_dag")
    expected = ["run_3", "run_2", "run_1"] if HAS_LOOPS else ["run_4", "run_3", "run_2", "run_1"]
    assert ([run.run_id for run in runs], tasks) == (expected, ["draw", "move"])
    assert read_choices("no_dag") == ([], [])


def test_an_unknown_dag_has_no_params(database: Database) -> None:
    assert read_params("a_dag") == []
