"""The example Dags explain themselves in Airflow's UI, and start no run that nobody asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.timetables import trigger
from airflow.timetables.base import TimeRestriction

from tests.support.forms import HAS_FORMS, NO_FORMS
from tests.support.real_airflow import EXAMPLE_DAGS

if TYPE_CHECKING:
    from types import ModuleType

    from airflow.sdk import DAG

FILES = sorted(EXAMPLE_DAGS.glob("*.py"))
PROMPTS = ("prompt", "negative_prompt", "edit", "subject")


def load(file: Path) -> ModuleType:
    if file.stem == "example_approval" and not HAS_FORMS:
        pytest.skip(NO_FORMS)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dags(file: Path) -> Iterator[DAG]:
    factories: list[Callable[[], Any]] = [
        value for name, value in vars(load(file)).items() if name.startswith("example_")
    ]
    assert factories
    for factory in factories:
        yield factory()


def schemas(dag: DAG) -> dict[str, dict[str, Any]]:
    return {name: dag.params.get_param(name).schema for name in dag.params}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_every_example_says_what_it_does(file: Path) -> None:
    for dag in dags(file):
        assert dag.description
        assert len(dag.description) <= 80, "it stands in one line of the UI"
        assert dag.doc_md
        assert "``" not in dag.doc_md, "Markdown, not reStructuredText"
        assert {"modelscope", "example"} <= set(dag.tags)


def test_every_param_has_a_title_and_a_description(file: Path) -> None:
    for dag in dags(file):
        for name, schema in schemas(dag).items():
            assert schema.get("title"), name
            assert dag.params.get_param(name).description, name


def test_every_prompt_has_a_field_of_several_lines(file: Path) -> None:
    for dag in dags(file):
        for name, schema in schemas(dag).items():
            assert (schema.get("format") == "multiline") == (name in PROMPTS), name


def test_the_form_shows_every_choice_by_name() -> None:
    [dag] = dags(EXAMPLE_DAGS / "example_params_form.py")
    for name in ("model", "size"):
        schema = schemas(dag)[name]
        assert set(schema["values_display"]) == set(schema["enum"])
        assert len(schema["enum"]) > 1


@pytest.mark.parametrize("since", [timedelta(seconds=1), timedelta(hours=1), timedelta(hours=23)])
def test_unpausing_an_example_starts_no_run(
    monkeypatch: pytest.MonkeyPatch, file: Path, since: timedelta
) -> None:
    now = datetime(2026, 11, 29, 6, tzinfo=UTC) + since  # a while after a scheduled run was due
    monkeypatch.setattr(trigger, "utcnow", lambda: now)
    for dag in dags(file):
        if dag.schedule is None or isinstance(dag.schedule, list):  # a list of assets
            continue
        restriction = TimeRestriction(cast("Any", dag.start_date), latest=None, catchup=dag.catchup)
        timetable = cast("trigger.CronTriggerTimetable", dag.timetable)
        first = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=restriction)
        assert first
        assert first.run_after > now
