"""The page uses the window, from a phone to a wide screen, and works with the keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import last_run
from tests.browser.people import ADMIN
from tests.browser.test_gallery import tab
from tests.browser.test_states import CONTRAST

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import DagRun
    from tests.browser.visits import ColorScheme, Visits
    from tests.support.real_airflow import RealAirflow

PROMPTS = ["A poster of the sea", "A poster of a lake", "A stamp with a snail", "A stamp with a sloth"]
WIDTHS = (320, 390, 768, 1024, 1280, 1600)
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOCUSED = (
    "() => document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"
)


@pytest.fixture(scope="module")
def mixed(airflow: RealAirflow, url: str) -> DagRun:
    """A run with two posters, two stamps and a failed poster."""
    folder = f"file://{airflow.home}/images/mixed/"
    assert airflow.run_dag(url, "browser_mixed", {"destination": folder}) == "failed"
    return last_run(airflow, "browser_mixed")


def boxes(page: Page, selector: str) -> list[dict[str, Any]]:
    """Return where elements are."""
    found = [one.bounding_box() for one in page.locator(selector).all()]
    return [dict(box) for box in found if box]


@pytest.mark.parametrize("width", WIDTHS)
def test_cards_have_240_to_400_pixels(mixed: DagRun, visits: Visits, width: int) -> None:
    page = visits.page(ADMIN, viewport=(width, 800))
    page.goto(mixed.gallery)
    cards = boxes(page, ".cards > li")
    assert len(cards) == 4
    assert all(240 <= card["width"] <= 400 for card in cards)
    assert len({card["height"] for card in cards}) <= 2  # tasks with one image, and the two stamps
    assert page.evaluate(OVERFLOW) == 0
    if width >= 1024:
        assert cards[0]["y"] == cards[1]["y"]  # two tasks share a row


def test_tasks_with_one_image_flow_and_others_have_sections(mixed: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    page.goto(mixed.gallery)
    expect(page).to_have_title(f"Images · browser_mixed · {mixed.run_id}")
    assert page.locator("h2").all_inner_texts() == ["Without an image", "draw"]
    captions = page.locator(".cards .caption").all_inner_texts()
    assert sorted(captions[:2]) == ["poster_1 Qwen-Image", "poster_2 Qwen-Image"]
    assert captions[2:] == ["[0] Qwen-Image", "[1] Qwen-Image"]
    assert page.locator(".cards .facts").first.inner_text().startswith("768 × 512 · seed ")


def test_filters_show_only_what_was_asked_for(mixed: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    page.goto(mixed.gallery)
    shown = page.locator("li:is(.image, .failed):visible")
    expect(shown).to_have_count(5)
    expect(page.get_by_role("button", name="0 in progress")).to_be_disabled()
    failed = page.get_by_role("button", name="1 failed")
    failed.click()
    expect(failed).to_have_attribute("aria-pressed", "true")
    expect(shown).to_have_count(1)
    expect(page.get_by_role("heading", name="draw")).to_be_hidden()
    page.reload()
    expect(shown).to_have_count(1)
    page.get_by_role("button", name="4 generated").click()
    expect(shown).to_have_count(4)
    page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")  # asks for an update
    page.wait_for_timeout(500)
    expect(shown).to_have_count(4)
    page.get_by_role("button", name="4 generated").click()
    expect(shown).to_have_count(5)
    assert "#" not in page.url
    page.goto(f"{mixed.gallery}#%22%5D%3Cb%3E")  # no filter
    expect(shown).to_have_count(5)


@pytest.mark.parametrize(("width", "height"), [(320, 640), (740, 360), (1600, 1000)])
def test_the_lightbox_fills_the_window(mixed: DagRun, visits: Visits, width: int, height: int) -> None:
    page = visits.page(ADMIN, viewport=(width, height))
    page.goto(mixed.gallery)
    page.locator("li.image a").first.click()
    expect(page.locator("dialog img")).to_have_js_property("naturalWidth", 768)
    [dialog] = boxes(page, "dialog")
    assert (dialog["width"], dialog["height"]) == (width, height)
    [image], [close] = boxes(page, "dialog img"), boxes(page, "[data-close]")
    assert image["width"] >= (width if width < 640 else 0.55 * width)
    assert image["height"] >= 0.35 * height
    assert close["x"] + close["width"] > width - 20
    assert close["y"] < 20
    assert close["width"] >= 40
    [arrow] = boxes(page, "[data-step='1']")
    assert image["x"] <= arrow["x"] <= image["x"] + image["width"]
    assert abs(arrow["y"] + arrow["height"] / 2 - image["y"] - image["height"] / 2) < 20
    expect(page.get_by_text("1 of 4")).to_be_visible()
    expect(page.get_by_role("link", name="Download")).to_be_in_viewport()
    assert page.evaluate(OVERFLOW) == 0


def test_the_lightbox_works_with_the_keyboard_alone(mixed: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    page.goto(mixed.gallery)
    page.locator("li.image a").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 of 4")).to_be_visible()
    reached = []
    for _ in range(8):
        reached.append(page.evaluate(FOCUSED))
        page.keyboard.press("Tab")
    assert reached[:7] == [
        "Close", "Next", "Download", "Copy URI", "Copy as operator arguments", "Log", "Technical details",
    ]  # fmt: skip
    sha256 = page.locator("dialog").get_by_text("SHA-256")
    expect(sha256).to_be_hidden()
    page.locator("dialog summary").focus()
    page.keyboard.press("Enter")
    expect(sha256).to_be_visible()
    page.get_by_role("button", name="Next").focus()
    for position in ("2 of 4", "3 of 4", "4 of 4"):
        page.keyboard.press("Enter")
        expect(page.get_by_text(position)).to_be_visible()
    assert page.evaluate(FOCUSED) == "Close"  # there is no next one
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    expect(page.locator("li a:focus img")).to_have_attribute("alt", f"Image of: {PROMPTS[2]}")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["images", "all-images"])
def test_every_text_can_be_read(mixed: DagRun, visits: Visits, color_scheme: ColorScheme, name: str) -> None:
    page = visits.page(ADMIN, color_scheme=color_scheme)
    page.goto(mixed.gallery.replace("/images?", f"/{name}?"))
    assert page.evaluate(CONTRAST) >= 4.5
    page.locator("li.image a").first.click()
    page.locator("dialog summary").click()
    assert page.evaluate(CONTRAST) >= 4.5


@pytest.mark.parametrize("framed", [True, False], ids=["in Airflow", "alone"])
def test_an_image_is_downloaded_under_its_name(
    mixed: DagRun, visits: Visits, airflow: RealAirflow, framed: bool
) -> None:
    page = visits.page(ADMIN)
    if framed:
        frame: Any = tab(page, mixed.path)
    else:
        page.goto(mixed.gallery)
        frame = page
    frame.locator("li.image a").first.click()
    with page.expect_download() as download:
        frame.get_by_role("link", name="Download").click()
    posters = [airflow.xcoms("browser_mixed", f"poster_{number}", "images")[0] for number in (1, 2)]
    files = {Path(image["uri"]).name: image["uri"].removeprefix("file://") for [image] in posters}
    stored = Path(files[download.value.suggested_filename])
    assert Path(download.value.path()).read_bytes() == stored.read_bytes()


def test_the_log_is_one_click_away(mixed: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    frame = tab(page, mixed.path)
    frame.locator("li.image a").nth(2).click()
    frame.get_by_role("link", name="Log", exact=True).click()
    page.wait_for_url(f"**{mixed.task_path(0)}")
