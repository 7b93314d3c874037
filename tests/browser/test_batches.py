"""Users see the progress of a batch, its images and its failed rows in Airflow's UI."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect

from tests.browser.conftest import FIGURES, last_run
from tests.browser.people import ADMIN
from tests.browser.test_gallery import tab
from tests.browser.visits import bring_whole_page
from tests.support.batches import StateFolder, result

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from airflow_provider_modelscope.emulator import Emulator
    from tests.browser.conftest import DagRun
    from tests.browser.people import Person
    from tests.browser.visits import Visits
    from tests.support.real_airflow import RealAirflow

OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_a_batch_is_followed_without_a_reload(
    airflow: RealAirflow, url: str, slow: Emulator, visits: Visits
) -> None:
    page = visits.page(ADMIN)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen: list[str] = []
    slow.fail("poll:moderated")  # the first row

    def poll() -> None:
        if not airflow.xcoms("browser_batch", "draw", "batch"):
            return
        run = last_run(airflow, "browser_batch")
        if not seen:
            frame = tab(page, f"{run.path}/tasks/draw")
            batch = frame.get_by_role("region", name="Batch of task draw")
            expect(batch).to_contain_text("0 of 3 rows stored, 1 rejected, 2 left")
            expect(batch.get_by_role("list", name="Running rows")).to_contain_text(
                "A product photo of a lamp"
            )
            expect(batch).to_contain_text("Manifest, written at the end")
            page.evaluate("() => { window.stayed = true; }")
            seen.append(run.run_id)
        slow.finish()

    folder = f"file://{airflow.home}/images/batch/"
    state = airflow.run_dag(url, "browser_batch", {"destination": folder}, watch=poll)
    assert (state, len(seen)) == ("success", 1)
    frame = page.frame_locator("iframe[title='Images']")
    batch = frame.get_by_role("region", name="Batch of task draw")
    expect(batch.get_by_role("img", name="2 of 3 rows stored, 1 rejected")).to_be_visible()
    expect(batch.locator("li.image img")).to_have_count(2)
    expect(batch.get_by_role("list", name="Running rows")).to_have_count(0)
    assert page.evaluate("() => window.stayed")
    assert [one.get_attribute("alt") for one in batch.locator("li.image img").all()] == [
        "Image of: A product photo of a vase", "Image of: A product photo of a lamp"
    ]  # fmt: skip
    # The manifest, the full size, and the failed row.
    batch.get_by_role("button", name="Copy URI of the manifest").click()
    expect(batch.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == f"{folder}manifest.jsonl"
    batch.locator("li.image a").first.click()
    expect(frame.locator("dialog img")).to_have_js_property("naturalWidth", 512)
    expect(frame.locator("dialog .details")).to_contain_text(f"{folder}vase.png")
    page.keyboard.press("Escape")
    batch.get_by_role("link", name="Failed rows (1)").click()
    row = batch.locator(".rows li")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("A product photo of a kettle")
    expect(row.locator(".chip")).to_have_text("rejected")


def large_batch(
    run: DagRun, airflow: RealAirflow, images: DagRun, session: requests.Session, url: str
) -> None:
    """Give a task of a run the state of a batch of 10,000 rows, of which every 25th failed."""
    shown = [image for [image] in airflow.xcoms(images.dag_id, "draw", "images")]

    def row(number: int) -> dict[str, Any]:
        if number % 25 == 0:
            return result(number, "rejected")
        image = shown[number % len(shown)]
        parameters = {"prompt": f"Cat number {number}"}
        return result(number, image={**image, "parameters": parameters})

    folder = StateFolder(
        Path(airflow.home, "images", "large"), dag_id=run.dag_id, run_id=run.run_id, task_id="nothing"
    )
    rows = [row(number) for number in range(1, 10_001)]
    folder.write(rows[:-20], latest=rows[-20:], total=10_000, is_finished=True)
    entry = {"key": "batch", "value": folder.xcom(10_000), "map_index": -1}
    response = session.post(f"{url}{run.api('/taskInstances/nothing/xcomEntries')}", json=entry, timeout=30)
    assert response.status_code == 201, response.text


def test_ten_thousand_rows_open_in_a_second(
    images: DagRun,
    airflow: RealAirflow,
    url: str,
    api_as: Callable[[Person], requests.Session],
    visits: Visits,
) -> None:
    # A run of its own: the tests of the gallery need one without images.
    airflow.run_dag(url, "browser_empty", {"destination": f"file://{airflow.home}/images/large/"})
    run = last_run(airflow, "browser_empty")
    large_batch(run, airflow, images, api_as(ADMIN), url)
    page = visits.page(ADMIN)
    page.goto("/modelscope/browser_empty/images?run_id=x")  # warms up the browser
    in_view = """() => [...document.querySelectorAll("li img")].filter(
        (image) => image.getBoundingClientRect().top < innerHeight).every(
        (image) => image.complete && image.naturalWidth > 0)"""
    seconds = []
    for _ in range(3):
        started_at = time.monotonic()
        page.goto(f"{run.gallery}&task_id=nothing&map_index=-1", wait_until="domcontentloaded")
        page.wait_for_function(in_view)
        seconds.append(time.monotonic() - started_at)
    assert FIGURES.at_most("batch of 10,000 rows: seconds until all in view are shown", median(seconds), 1)
    expect(page.get_by_text("9,600 of 10,000 rows stored, 400 rejected")).to_be_visible()
    expect(page.locator("li.image")).to_have_count(100)
    for position in ("101–200", "201–300"):
        page.get_by_role("link", name="Older").click()
        expect(page.get_by_text(f"{position} of 9,600, newest first")).to_be_visible()
    expect(page.locator("li.image img").first).to_have_attribute("alt", "Image of: Cat number 9791")
    page.get_by_role("link", name="Newer").click()
    page.get_by_role("link", name="Failed rows (400)").click()
    expect(page.locator(".rows li")).to_have_count(100)
    page.keyboard.press("Tab")
    page.locator(".rows summary").first.focus()
    page.keyboard.press("Enter")
    advice = page.get_by_text("Change the prompt, then clear the task.").first
    expect(advice).to_be_visible()
    bring_whole_page(page)
    expect(advice).to_be_visible()  # still
    # On the run's page, and on a phone.
    phone = visits.page(ADMIN, viewport=(320, 740), color_scheme="dark")
    phone.goto(run.gallery)
    expect(phone.locator("li.image")).to_have_count(100)
    assert phone.evaluate(OVERFLOW) == 0
    phone.get_by_role("link", name="Failed rows (400)").click()
    expect(phone.locator(".rows li")).to_have_count(100)
    assert phone.evaluate(OVERFLOW) == 0
