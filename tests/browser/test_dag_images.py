"""Users find an image of any run on the page of its Dag, and run it again with changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from airflow_provider_modelscope.compat import AIRFLOW_VERSION
from tests.browser.conftest import last_run
from tests.browser.people import ADMIN, STRANGER, VIEWER
from tests.browser.test_gallery import tab
from tests.browser.test_layout import OVERFLOW

if TYPE_CHECKING:
    import requests
    from playwright.sync_api import FrameLocator, Locator, Page

    from tests.browser.conftest import DagRun
    from tests.browser.visits import Visits
    from tests.support.real_airflow import RealAirflow

PROMPTS = ["A fox in the snow", "雨后的青瓦白墙"]
DAG = "/dags/browser_history"
PAGE = "/modelscope/browser_history/all-images"


@pytest.fixture(scope="module")
def last(airflow: RealAirflow, url: str) -> DagRun:
    """The last of two runs, which have 66 images each."""
    for prompt in PROMPTS:
        conf = {"prompt": prompt, "size": "512x512", "destination": f"file://{airflow.home}/images/history/"}
        assert airflow.run_dag(url, "browser_history", conf) == "success"
    return last_run(airflow, "browser_history")


def cards(page: Page | FrameLocator) -> Locator:
    return page.locator("li.image")


def test_the_tab_of_a_dag_has_the_images_of_all_runs(last: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    frame = tab(page, DAG)
    expect(cards(frame)).to_have_count(60)
    expect(cards(frame).first.locator(".prompt")).to_have_text(PROMPTS[1])
    expect(cards(frame).first.locator("img")).to_have_js_property("naturalWidth", 400)
    cards(frame).first.locator("time").click()  # the date of the run
    page.wait_for_url(f"**{last.path}/plugin/modelscope-images")
    expect(page.frame_locator("iframe[title='Images']").locator("h2")).to_have_text("copy")


def test_pages_lead_to_older_images_and_back(last: DagRun, visits: Visits) -> None:
    frame = tab(visits.page(ADMIN), DAG)
    for link, count in (("Older", 60), ("Older", 12), ("Newer", 60), ("Newer", 60)):
        seed = cards(frame).first.locator(".facts").first.inner_text()
        frame.get_by_role("link", name=link, exact=True).click()
        expect(cards(frame).first.locator(".facts").first).not_to_have_text(seed)
        expect(cards(frame)).to_have_count(count)
    expect(frame.get_by_role("link", name="Newest")).to_have_count(0)  # this is the newest page


def test_a_search_finds_text_of_any_script(last: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    frame = tab(page, DAG)
    frame.get_by_label("Text in the prompt").fill("青瓦")
    frame.get_by_label("Seed").fill("7")
    frame.get_by_role("button", name="Search").click()
    expect(cards(frame)).to_have_count(1)
    expect(cards(frame)).to_contain_text("seed 7")
    expect(frame.get_by_label("Text in the prompt")).to_have_value("青瓦")
    frame.get_by_label("Text in the prompt").fill("a FOX")
    frame.get_by_label("Seed").fill("")
    frame.get_by_label("Task", exact=True).fill("draw")
    page.keyboard.press("Enter")
    expect(cards(frame).locator(".caption")).to_contain_text(["draw"])
    frame.get_by_label("Model").fill("flux")
    page.keyboard.press("Enter")
    expect(frame.get_by_text("No image matches.")).to_be_visible()
    frame.get_by_role("link", name="Show all").click()
    expect(cards(frame)).to_have_count(60)


def test_the_lightbox_leads_to_the_log(last: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    page.goto(PAGE)
    cards(page).first.locator("a[data-open]").focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    expect(dialog.locator(".position")).to_have_text("1 of 60")
    page.keyboard.press("ArrowRight")
    expect(dialog.locator(".position")).to_have_text("2 of 60")
    expect(dialog.get_by_role("button", name="Copy as conf")).to_be_visible()
    expect(dialog.get_by_role("button", name="Run again with changes")).to_be_hidden()  # not in Airflow's UI
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    dialog.get_by_role("link", name="Log").click()
    page.wait_for_url(f"**{last.path}/tasks/copy")


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 2), reason="Airflow 3.1 does not name its trigger button")
def test_an_image_can_be_run_again_with_changes(
    last: DagRun, visits: Visits, airflow: RealAirflow, url: str
) -> None:
    page = visits.page(ADMIN)
    frame = tab(page, f"{DAG}")
    cards(frame).nth(3).locator("a[data-open]").click()
    frame.get_by_role("button", name="Run again with changes").click()
    prompt = page.locator("#element_prompt")
    expect(prompt).to_have_value(PROMPTS[1])
    expect(page.locator("#element_size")).to_contain_text("512x512")
    prompt.fill("A changed prompt")
    page.get_by_test_id("trigger-dag-submit").click()
    expect(prompt).to_be_hidden()
    [run] = (
        airflow.session(url)
        .get(f"{url}/api/v2/dags/browser_history/dagRuns?order_by=-id&limit=1", timeout=30)
        .json()["dag_runs"]
    )
    assert run["dag_run_id"] != last.run_id
    assert run["conf"] == {
        "prompt": "A changed prompt",
        "size": "512x512",
        "seed": 3,
        "destination": "file:///nowhere/",
    }


@pytest.mark.parametrize("width", [320, 768, 1600])
def test_it_fits_the_window(last: DagRun, visits: Visits, width: int) -> None:
    page = visits.page(ADMIN, viewport=(width, 800))
    page.goto(PAGE)
    expect(cards(page)).to_have_count(60)
    assert page.evaluate(OVERFLOW) == 0
    box = cards(page).first.bounding_box()
    assert box
    assert 240 <= box["width"] <= 400


def test_only_users_who_may_read_the_dag_see_it(images: DagRun, visits: Visits) -> None:
    path = "/modelscope/browser_images/all-images"
    page = visits.page(VIEWER)
    page.goto(path)
    expect(cards(page)).to_have_count(3)
    page = visits.page(STRANGER)
    page.goto(path)
    expect(page.get_by_text("You are not allowed to see these images.")).to_be_visible()
    expect(cards(page)).to_have_count(0)


def test_users_who_are_signed_out_see_nothing(images: DagRun, signed_out: requests.Session, url: str) -> None:
    response = signed_out.get(f"{url}/modelscope/browser_images/all-images", timeout=30)
    assert response.status_code == 401
    assert "Sign in to Airflow" in response.text
