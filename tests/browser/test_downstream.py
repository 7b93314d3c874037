"""What follows an image: approval by a person, Dags scheduled on it, and downloads."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from airflow_provider_modelscope.provenance.record import MADE_BY_AI
from tests.browser.conftest import last_run
from tests.browser.people import ADMIN, Person
from tests.browser.test_gallery import looks_like, stored, tab

if TYPE_CHECKING:
    import requests

    from airflow_provider_modelscope.emulator import Emulator
    from tests.browser.conftest import DagRun
    from tests.browser.visits import Visits
    from tests.support.real_airflow import RealAirflow

APPROVAL = "example_approval"
PIPELINE = "content_pipeline"  # of the tutorial


def published(folder: Path) -> list[Path]:
    return sorted((folder / "published").glob("*"))


def has_settled(airflow: RealAirflow, run: DagRun, task_id: str) -> bool:
    """Whether the scheduler has noticed that the worker finished. Resuming the task earlier may fail it.

    No person responds that fast (apache/airflow issues 66374, 67287).
    """
    message = f"state success for task instance TaskInstanceKey(dag_id='{run.dag_id}', task_id='{task_id}'"
    log = (airflow.home / "scheduler.log").read_text().splitlines()
    return any(message in line and run.run_id in line for line in log)


@pytest.mark.parametrize("choice", ["2", "None of them"])
def test_only_the_image_that_a_person_approves_is_published(
    airflow: RealAirflow,
    url: str,
    api_as: Callable[[Person], requests.Session],
    visits: Visits,
    tmp_path: Path,
    choice: str,
) -> None:
    chosen: list[str] = []

    def choose() -> None:
        if chosen or ("choose", "awaiting_input") not in airflow.task_states(APPROVAL):
            return
        run = last_run(airflow, APPROVAL)
        if not has_settled(airflow, run, "choose"):
            return
        page = visits.page(ADMIN)
        page.goto(f"{run.path}/tasks/choose/required_actions")
        shown = page.get_by_role("img", name="Poster")
        expect(shown).to_have_count(3)
        for number, image in enumerate(stored(airflow, APPROVAL)):
            assert looks_like(shown.nth(number), image), number
        detail = run.api("/taskInstances/choose/-1/hitlDetails")
        response = api_as(ADMIN).patch(f"{url}{detail}", json={"chosen_options": [choice]}, timeout=30)
        assert response.status_code == 200, response.text
        chosen.append(choice)

    state = airflow.run_dag(url, APPROVAL, {"destination": f"file://{tmp_path}/"}, watch=choose)
    assert (state, chosen) == ("success", [choice])
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
    # The gallery shows it once, at its new location.
    frame = tab(visits.page(ADMIN), last_run(airflow, APPROVAL).path)
    expect(frame.get_by_role("button", name="3 generated")).to_be_visible()
    shown = frame.locator("li.image").filter(has_text="publish").locator("img")
    assert looks_like(shown, stored(airflow, APPROVAL, "publish")[0])


def test_the_form_of_the_tutorial_publishes_the_images_chosen(
    airflow: RealAirflow, url: str, visits: Visits, tmp_path: Path
) -> None:
    chosen: list[str] = []

    def choose() -> None:
        if chosen or ("choose", "awaiting_input") not in airflow.task_states(PIPELINE):
            return
        run = last_run(airflow, PIPELINE)
        if not has_settled(airflow, run, "choose"):
            return
        page = visits.page(ADMIN)
        page.goto(f"{run.path}/tasks/choose")
        page.get_by_role("link", name="Required Action").click()
        for place, image in zip(("harbour", "garden", "city"), stored(airflow, PIPELINE), strict=True):
            assert looks_like(page.get_by_role("img", name=place), image), place
        page.get_by_label("Remove none of them").click()
        for place in ("harbour", "city"):
            page.get_by_role("combobox").click()
            page.get_by_role("option", name=place).click()
            chosen.append(place)
        page.get_by_role("button", name="Respond").click()
        expect(page.get_by_text("choose response successful")).to_be_visible()

    assert airflow.run_dag(url, PIPELINE, {"folder": f"{tmp_path.as_uri()}/"}, watch=choose) == "success"
    [feed] = tmp_path.glob("*/published/feed.json")
    assert [entry["title"] for entry in json.loads(feed.read_text())] == chosen
    drawn = [image["sha256"] for [image] in airflow.xcoms(PIPELINE, "draw", "images")]
    copies = {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in feed.parent.glob("*.png")}
    assert copies == {"harbour": drawn[0], "city": drawn[2]}


def test_without_an_approval_in_time_nothing_is_published(
    airflow: RealAirflow, url: str, tmp_path: Path
) -> None:
    given = {"destination": f"file://{tmp_path}/"}
    assert airflow.run_dag(url, "late_approval", given, limit=240) == "success"
    assert dict(airflow.task_states("late_approval"))["publish"] == "skipped"
    assert published(tmp_path) == []
    assert len(list((tmp_path / "candidates").iterdir())) == 3


def test_a_decorated_function_becomes_a_deferrable_task(
    airflow: RealAirflow, url: str, slow: Emulator, tmp_path: Path
) -> None:
    seen: list[str] = []

    def finish() -> None:
        if ("imagine", "deferred") in airflow.task_states("browser_taskflow") and not seen:
            seen.extend(request.json["prompt"] for request in slow.requests if request.json)
            slow.finish()

    given = {"destination": f"file://{tmp_path}/"}
    assert airflow.run_dag(url, "browser_taskflow", given, watch=finish) == "success"
    [[image]] = airflow.xcoms("browser_taskflow", "imagine", "images")
    assert image["parameters"]["prompt"] == seen[-1]
    assert seen[-1].startswith("A dream {{ 7 * 7 }} ")
    sent = [request.json["prompt"] for request in slow.requests if request.json]
    assert sent.count(seen[-1]) == 1
    fields = "select cast(rendered_fields as text) from rendered_task_instance_fields where dag_id = :dag_id"
    [[rendered]] = airflow.query(fields, dag_id="browser_taskflow")
    assert "{{ 7 * 7 }}" in rendered


EXTRA = ("uri", "sha256", "width", "height", "model", "seed", "generation_id")


def after(airflow: RealAirflow, url: str, producer: str, consumer: str, folder: Path) -> Any:
    """Run a Dag, and return what the Dag that is scheduled on its images received."""
    with airflow.session(url) as session:
        response = session.patch(f"{url}/api/v2/dags/{consumer}", json={"is_paused": False}, timeout=30)
        response.raise_for_status()
    assert airflow.run_dag(url, producer, {"destination": f"file://{folder}/"}) == "success"
    deadline = time.monotonic() + 120
    while not airflow.task_states(consumer) or airflow.task_states(consumer)[0][1] != "success":
        assert time.monotonic() < deadline, airflow.task_states(consumer)
        time.sleep(0.5)
    [[task_id]] = {tuple(state[:1]) for state in airflow.task_states(consumer)}
    [received] = airflow.xcoms(consumer, task_id)
    return received


def test_a_dag_scheduled_on_an_asset_receives_the_images(
    airflow: RealAirflow, url: str, api_as: Callable[[Person], requests.Session], tmp_path: Path
) -> None:
    received = after(airflow, url, "example_asset_producer", "example_asset_consumer", tmp_path)
    [[image]] = airflow.xcoms("example_asset_producer", "hero", "images")
    assert received == [image["uri"]]
    events = f"{url}/api/v2/assets/events?source_dag_id=example_asset_producer"
    [event] = api_as(ADMIN).get(events, timeout=30).json()["asset_events"]
    assert event["extra"]["images"] == [{name: image[name] for name in EXTRA}]


def test_a_dag_scheduled_on_an_alias_receives_the_objects(
    airflow: RealAirflow, url: str, tmp_path: Path
) -> None:
    received = after(airflow, url, "browser_files", "browser_files_consumer", tmp_path)
    [[image]] = airflow.xcoms("browser_files", "draw", "images")
    assert received == [[image["uri"], {name: image[name] for name in EXTRA}]]


def test_a_downloaded_image_contains_its_provenance(
    airflow: RealAirflow,
    url: str,
    api_as: Callable[[Person], requests.Session],
    emulator: Emulator,
    tmp_path: Path,
) -> None:
    given = {"destination": f"file://{tmp_path}/"}
    assert airflow.run_dag(url, "example_asset_producer", given) == "success"
    run = last_run(airflow, "example_asset_producer")
    downloaded = api_as(ADMIN).get(f"{url}{run.image(task_id='hero')}", timeout=30).content
    [[image]] = airflow.xcoms("example_asset_producer", "hero", "images")
    with Image.open(BytesIO(downloaded)) as opened:
        packet = opened.info["xmp"].decode()
        pixels = opened.tobytes()
    for text in (MADE_BY_AI, "A bakery on a corner, wide shot, morning light", image["generation_id"]):
        assert text in packet
    [label] = {
        label.decode()
        for served in emulator.served.values()
        if Image.open(BytesIO(served)).tobytes() == pixels
        for label in re.findall(rb"<TC260:AIGC>.*?</TC260:AIGC>", served)
    }
    assert label in packet
    sidecar = json.loads((tmp_path / f"{image['generation_id']}-1.png.json").read_text())
    assert (sidecar["dag_id"], sidecar["task_id"]) == ("example_asset_producer", "hero")
    assert sidecar["sha256"] == hashlib.sha256(downloaded).hexdigest()
