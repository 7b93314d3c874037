"""A person decides what is published; a Dag that waits for images starts with what it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import last_run
from tests.browser.people import ADMIN, Person
from tests.browser.test_gallery import looks_like, stored, tab

if TYPE_CHECKING:
    import requests

    from tests.browser.visits import Visits
    from tests.real_airflow import RealAirflow

APPROVAL = "example_approval"


def published(folder: Path) -> list[Path]:
    return sorted((folder / "published").glob("*"))


@pytest.mark.parametrize("choice", ["2", "None of them"])
def test_a_person_sees_the_candidates_and_only_the_approved_one_is_moved(
    airflow: RealAirflow,
    url: str,
    api_as: Callable[[Person], requests.Session],
    visits: Visits,
    tmp_path: Path,
    choice: str,
) -> None:
    answered: list[str] = []

    def answer() -> None:
        if answered or ("choose", "awaiting_input") not in airflow.task_states(APPROVAL):
            return
        run = last_run(airflow, APPROVAL)
        page = visits.page(ADMIN)
        page.goto(f"{run.path}/tasks/choose/required_actions")
        shown = page.get_by_role("img", name="Poster")
        expect(shown).to_have_count(3)
        for number, picture in enumerate(stored(airflow, APPROVAL)):
            assert looks_like(shown.nth(number), picture), number
        detail = run.api("/taskInstances/choose/-1/hitlDetails")
        told = api_as(ADMIN).patch(f"{url}{detail}", json={"chosen_options": [choice]}, timeout=30)
        assert told.status_code == 200, told.text
        answered.append(choice)

    state = airflow.run_dag(url, APPROVAL, {"destination": f"file://{tmp_path}/"}, watch=answer)
    assert (state, answered) == ("success", [choice])
    candidates = sorted((tmp_path / "candidates").iterdir())
    states = dict(airflow.task_states(APPROVAL))
    if choice == "None of them":
        assert (published(tmp_path), len(candidates), states["publish"]) == ([], 3, "skipped")
        return
    [moved] = published(tmp_path)
    drawn = airflow.xcoms(APPROVAL, "draw", "images")
    assert moved.name == Path(drawn[1][0]["uri"]).name
    assert [file.name for file in candidates] == sorted(
        Path(drawn[number][0]["uri"]).name for number in (0, 2)
    )
    # The gallery shows it where it is now, and that it is no longer where it was.
    frame = tab(visits.page(ADMIN), last_run(airflow, APPROVAL).path)
    assert looks_like(
        frame.get_by_label("Images of task publish").locator("img"), stored(airflow, APPROVAL, "publish")[0]
    )
    expect(frame.get_by_label("Images of task draw").locator("a.broken")).to_contain_text("moved or deleted")


def test_who_does_not_answer_in_time_has_approved_none(
    airflow: RealAirflow, url: str, tmp_path: Path
) -> None:
    given = {"destination": f"file://{tmp_path}/"}
    assert airflow.run_dag(url, "late_approval", given, limit=240) == "success"
    assert dict(airflow.task_states("late_approval"))["publish"] == "skipped"
    assert published(tmp_path) == []
    assert len(list((tmp_path / "candidates").iterdir())) == 3


def test_a_dag_scheduled_on_the_asset_starts_with_what_it_needs(
    airflow: RealAirflow, url: str, api_as: Callable[[Person], requests.Session], tmp_path: Path
) -> None:
    session = api_as(ADMIN)
    consumer = f"{url}/api/v2/dags/example_asset_consumer"
    session.patch(consumer, json={"is_paused": False}, timeout=30).raise_for_status()
    given = {"destination": f"file://{tmp_path}/"}
    assert airflow.run_dag(url, "example_asset_producer", given) == "success"
    [[image]] = airflow.xcoms("example_asset_producer", "hero", "images")
    deadline = time.monotonic() + 120
    while ("publish", "success") not in airflow.task_states("example_asset_consumer"):
        assert time.monotonic() < deadline, airflow.task_states("example_asset_consumer")
        time.sleep(0.5)
    assert airflow.xcoms("example_asset_consumer", "publish") == [[image["uri"]]]
    events = session.get(f"{url}/api/v2/assets/events?source_dag_id=example_asset_producer", timeout=30)
    [event] = events.json()["asset_events"]
    names = ("uri", "sha256", "width", "height", "model", "seed", "generation_id")
    assert event["extra"]["images"] == [{name: image[name] for name in names}]
    assert image["parameters"]["prompt"] == "A bakery on a corner, wide shot, morning light"
    assert Path(f"{image['uri'].removeprefix('file://')}.json").is_file()
