"""Users see the images of a run in Airflow's UI."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import expect

from tests.browser.conftest import FIGURES, last_run
from tests.browser.people import ADMIN, STRANGER, VIEWER, Person
from tests.browser.visits import ask_for_updates, bring_whole_page

if TYPE_CHECKING:
    import requests
    from playwright.sync_api import FrameLocator, Locator, Page

    from airflow_provider_modelscope.emulator import Emulator
    from tests.browser.conftest import DagRun
    from tests.browser.visits import ColorScheme, Visits
    from tests.support.real_airflow import RealAirflow

PROMPTS = ["A lighthouse above the clouds", "A cat on an armchair", "雨后的青瓦白墙,水墨画"]


def tab(page: Page, path: str) -> FrameLocator:
    """Open a page of Airflow's UI and its tab "Images"."""
    page.goto(path)
    page.get_by_role("link", name="Images", exact=True).click()
    return page.frame_locator("iframe[title='Images']")


def looks_like(shown: Locator, image: Image.Image) -> bool:
    """Whether an element shows the pixels of an image, apart from scaling."""
    expect(shown).to_have_js_property("complete", value=True)
    shown.scroll_into_view_if_needed()
    painted = Image.open(BytesIO(shown.screenshot())).convert("RGB")
    scale = min(painted.width / image.width, painted.height / image.height)  # it may have margins
    expected = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    left, top = (painted.width - expected.width) // 2, (painted.height - expected.height) // 2
    painted = painted.crop((left, top, left + expected.width, top + expected.height))
    difference = max(ImageStat.Stat(ImageChops.difference(painted, expected)).mean)
    flat = max(ImageStat.Stat(painted).stddev)
    return difference < 12 < flat


def stored(airflow: RealAirflow, dag_id: str, task_id: str = "draw") -> list[Image.Image]:
    """Return the stored images of a task, by map index."""
    images = [one for pushed in airflow.xcoms(dag_id, task_id, "images") for one in pushed]
    return [Image.open(BytesIO(Path(image["uri"].removeprefix("file://")).read_bytes())) for image in images]


class TestTab:
    @pytest.mark.parametrize("color_scheme", ["light", "dark"])
    def test_on_a_run_it_shows_the_images_of_all_tasks(
        self, images: DagRun, visits: Visits, airflow: RealAirflow, color_scheme: ColorScheme
    ) -> None:
        page = visits.page(VIEWER, color_scheme=color_scheme)
        frame = tab(page, images.path)
        expect(frame.get_by_role("button", name="3 generated")).to_be_visible()
        thumbnails = frame.locator("li img")
        expect(thumbnails).to_have_count(3)
        for number, image in enumerate(stored(airflow, images.dag_id)):
            assert looks_like(thumbnails.nth(number), image), number
        assert [one.get_attribute("alt") for one in thumbnails.all()] == [
            f"Image of: {prompt}" for prompt in PROMPTS
        ]
        background = "element => getComputedStyle(element).backgroundColor"
        assert frame.locator("body").evaluate(background) == page.locator("html").evaluate(background)

    def test_on_a_task_instance_it_shows_its_images(
        self, images: DagRun, visits: Visits, airflow: RealAirflow
    ) -> None:
        frame = tab(visits.page(VIEWER), images.task_path(1))
        expect(frame.locator("li")).to_have_count(1)
        assert looks_like(frame.locator("li img"), stored(airflow, images.dag_id)[1])

    def test_a_run_without_images_says_so(self, ran: Callable[[str], DagRun], visits: Visits) -> None:
        run = ran("browser_empty")
        frame = tab(visits.page(ADMIN), run.path)
        expect(frame.get_by_text("This run has no images.")).to_be_visible()

    def test_a_task_that_is_not_mapped_has_it_too(self, ran: Callable[[str], DagRun], visits: Visits) -> None:
        frame = tab(visits.page(ADMIN), f"{ran('browser_empty').path}/tasks/nothing")
        expect(frame.get_by_text("This task has no images.")).to_be_visible()

    def test_it_fits_on_a_phone(self, images: DagRun, visits: Visits) -> None:
        page = visits.page(VIEWER, viewport=(360, 740))
        page.goto(images.gallery)
        expect(page.locator("li img")).to_have_count(3)
        overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
        page.locator("li a").first.click()
        expect(page.locator("dialog")).to_be_visible()
        assert page.evaluate(overflow) == 0
        box = page.locator("dialog").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


class TestFullSize:
    def test_a_click_opens_the_image_and_its_details(
        self, images: DagRun, visits: Visits, airflow: RealAirflow
    ) -> None:
        frame = tab(visits.page(VIEWER), images.path)
        frame.locator("li a").first.click()
        full_size = frame.locator("dialog img")
        expect(full_size).to_have_js_property("naturalWidth", 512)
        assert looks_like(full_size, stored(airflow, images.dag_id)[0])
        details = frame.locator("dialog .details")
        [[image], *_] = airflow.xcoms(images.dag_id, "draw", "images")
        for text in (PROMPTS[0], "Qwen/Qwen-Image", "512 × 512", str(image["seed"]), "30", "7.5"):
            expect(details).to_contain_text(text)
        for text in (image["uri"], image["generation_id"], image["sha256"], "0.0 s"):
            expect(details).to_contain_text(text)

    def test_it_works_with_the_keyboard(self, images: DagRun, visits: Visits) -> None:
        page = visits.page(VIEWER)
        page.goto(images.gallery)
        for _ in ("the Dag", "the run", "all images", "3 generated", "the first image"):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        dialog = page.locator("dialog")
        expect(dialog.locator("img")).to_have_attribute("alt", f"Image of: {PROMPTS[0]}")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(dialog.locator("img")).to_have_attribute("alt", f"Image of: {PROMPTS[2]}")
        expect(dialog.get_by_text("3 of 3")).to_be_visible()
        expect(dialog.get_by_role("button", name="Next")).to_be_hidden()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.locator("li a:focus img")).to_have_attribute("alt", f"Image of: {PROMPTS[1]}")

    def test_the_uri_and_the_request_can_be_copied(
        self, images: DagRun, visits: Visits, airflow: RealAirflow
    ) -> None:
        page = visits.page(VIEWER)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        frame = tab(page, images.path)
        frame.locator("li a").nth(2).click()

        def copied(button: str) -> str:
            frame.get_by_role("button", name=button).click()
            expect(frame.get_by_role("button", name="Copied")).to_be_visible()
            expect(frame.get_by_role("button", name=button)).to_be_visible()  # again
            return str(page.evaluate("() => navigator.clipboard.readText()"))

        [_, _, [image]] = airflow.xcoms(images.dag_id, "draw", "images")
        assert copied("Copy URI") == image["uri"]
        arguments: dict[str, Any] = eval(f"dict({copied('Copy as operator arguments')})")  # noqa: S307
        assert arguments == image["parameters"]


class TestWithoutImage:
    def test_a_pending_card_becomes_the_image_without_a_reload(
        self, airflow: RealAirflow, url: str, slow: Emulator, visits: Visits
    ) -> None:
        page = visits.page(ADMIN)
        seen: list[str] = []

        def poll() -> None:
            if seen or not airflow.xcoms("browser_waiting", "draw", "request"):
                return
            run = last_run(airflow, "browser_waiting")
            frame = tab(page, run.path)
            card = frame.locator("li")
            expect(card).to_have_class("pending")
            expect(card.locator(".state")).to_contain_text("Generating")
            expect(card).to_contain_text("An image that takes its time")
            page.evaluate("() => { window.stayed = true; }")
            for name in ("Images", "Model on ModelScope"):  # shown while the task waits
                links = airflow.session(url).get(
                    f"{url}{run.api('/taskInstances/draw/links?map_index=0')}", timeout=30
                )
                assert links.json()["extra_links"][name]
            seen.append(run.run_id)
            slow.finish()

        folder = f"file://{airflow.home}/images/waiting/"
        state = airflow.run_dag(url, "browser_waiting", {"destination": folder}, watch=poll)
        assert (state, len(seen)) == ("success", 1)
        frame = page.frame_locator("iframe[title='Images']")
        expect(frame.locator("li")).to_have_class("image")
        assert looks_like(frame.locator("li img"), stored(airflow, "browser_waiting")[0])
        assert page.evaluate("() => window.stayed")
        # The links are still shown afterwards, and work.
        run = last_run(airflow, "browser_waiting")
        page.goto(f"{run.task_path(0)}/details")
        expect(page.get_by_role("link", name="Model on ModelScope")).to_be_visible()
        page.locator("a[href^='modelscope/']").click()
        assert looks_like(page.locator("li img"), stored(airflow, "browser_waiting")[0])
        for link, path in ((run.run_id, run.path), ("draw [0]", f"{run.task_path(0)}/details")):
            page.get_by_role("link", name=link).click()
            page.wait_for_url(f"**{path}")
            page.go_back()
        page.get_by_role("link", name="Log").click()
        page.wait_for_url(f"**{run.task_path(0)}")

    def test_a_failed_generation_is_reported(
        self, airflow: RealAirflow, url: str, slow: Emulator, visits: Visits
    ) -> None:
        slow.fail("poll:rejected")
        folder = f"file://{airflow.home}/images/failing/"
        assert airflow.run_dag(url, "browser_failing", {"destination": folder}) == "failed"
        run = last_run(airflow, "browser_failing")
        page = visits.page(ADMIN)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        frame = tab(page, run.path)
        expect(frame.get_by_role("button", name="1 failed")).to_be_visible()
        row = frame.locator("li.failed")
        expect(row.locator(".place")).to_contain_text("Failed")
        expect(row.locator(".place")).to_contain_text("draw [0]")
        link = row.get_by_role("link", name="GenerationRejectedError")
        assert str(link.get_attribute("href")).endswith("/reference/errors.html#generationrejectederror")
        row.get_by_role("button", name="Copy error of draw [0]").click()
        expect(row.get_by_role("button", name="Copied")).to_be_visible()
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied.startswith("draw [0]: GenerationRejectedError: ")
        row.get_by_role("link", name="Log").press("Enter")  # Airflow's frame may not open other pages
        page.wait_for_url(f"**{run.task_path(0)}")
        frame = tab(page, run.path)
        frame.locator("li.failed").get_by_role("link", name="Task").click()
        page.wait_for_url(f"**{run.task_path(0)}/details")

    def test_a_deleted_image_is_reported_on_its_card(
        self, ran: Callable[[str], DagRun], airflow: RealAirflow, visits: Visits
    ) -> None:
        run = ran("browser_other")
        [[image]] = airflow.xcoms("browser_other", "draw", "images")
        file = Path(image["uri"].removeprefix("file://"))
        content = file.read_bytes()
        file.unlink()
        try:
            frame = tab(visits.page(STRANGER), run.path)
            expect(frame.locator("li a.broken")).to_contain_text("does not contain this image")
        finally:
            file.write_bytes(content)


class TestUpdate:
    @pytest.fixture
    def page(self, images: DagRun, visits: Visits) -> Page:
        page = visits.page(VIEWER)
        page.goto(images.gallery)
        expect(page.locator("li img")).to_have_count(3)
        return page

    def test_a_label_that_comes_after_its_image_is_shown(self, page: Page) -> None:
        bring_whole_page(page, lambda text: text.replace("[1]", "an armchair"))
        expect(page.locator("li .caption").nth(1)).to_contain_text("an armchair")

    def test_an_unchanged_card_stays(self, page: Page) -> None:
        page.locator("li").evaluate_all("cards => cards.forEach((card) => { card.stayed = true; })")
        bring_whole_page(page, lambda text: text.replace("[1]", "an armchair"))
        expect(page.locator("li .caption").nth(1)).to_contain_text("an armchair")
        stayed = page.locator("li").evaluate_all("cards => cards.map((card) => Boolean(card.stayed))")
        assert stayed == [True, False, True]

    def test_an_open_image_is_replaced_by_the_one_that_was_generated_again(self, page: Page) -> None:
        page.locator("li a").nth(1).click()
        before = page.locator("dialog img").get_attribute("src")
        version = str(before)[-8:]
        bring_whole_page(page, lambda text: text.replace(version, "00000000"))
        expect(page.locator("dialog img")).to_have_attribute("src", f"{str(before)[:-8]}00000000")
        expect(page.locator("dialog .position")).to_have_text("2 of 3")

    def test_the_arrows_lead_nowhere_from_an_image_that_is_gone(self, page: Page) -> None:
        page.locator("li a").nth(1).click()
        alt = page.locator("dialog img").get_attribute("alt")
        bring_whole_page(page, lambda text: re.sub(r'(?s)<li data-key="draw  1 1".*?</li>', "", text))
        expect(page.locator("dialog .position")).to_have_text("")
        for key in ("ArrowLeft", "ArrowRight"):
            page.keyboard.press(key)
        expect(page.locator("dialog img")).to_have_attribute("alt", str(alt))
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_be_hidden()

    def test_a_page_that_cannot_be_updated_says_why(self, page: Page) -> None:
        problem = page.locator("#problem")
        cookies: Any = page.context.cookies()
        page.context.clear_cookies()
        ask_for_updates(page)
        expect(problem).to_contain_text("Sign in to Airflow to see these images.")
        expect(problem.get_by_role("link", name="Sign in")).to_be_visible()
        expect(page.locator("li img")).to_have_count(3)
        page.context.add_cookies(cookies)
        ask_for_updates(page)
        expect(problem).to_have_text("")
        bring_whole_page(page, lambda _: "<html><form>Log in</form></html>")
        expect(problem).to_have_text("This page cannot be updated now.")
        ask_for_updates(page)
        expect(problem).to_have_text("")

    def test_the_filter_follows_the_address(self, page: Page) -> None:
        button = page.get_by_role("button", name="3 generated")
        page.evaluate("() => { location.hash = 'image'; }")
        expect(button).to_have_attribute("aria-pressed", "true")
        page.go_back()
        expect(button).to_have_attribute("aria-pressed", "false")


class TestAccess:
    @pytest.mark.parametrize("route", ["images", "image", "thumbnail"])
    @pytest.mark.parametrize(
        ("person", "status"), [(VIEWER, 200), (ADMIN, 200), (STRANGER, 403), (None, 401)], ids=str
    )
    def test_every_route_checks_it(
        self,
        images: DagRun,
        url: str,
        api_as: Callable[[Person], requests.Session],
        signed_out: requests.Session,
        route: str,
        person: Person | None,
        status: int,
    ) -> None:
        path = images.gallery if route == "images" else images.image(route, map_index=0)
        response = (api_as(person) if person else signed_out).get(f"{url}{path}", timeout=30)
        assert response.status_code == status
        if status != 200:
            assert PROMPTS[0] not in response.text
            assert len(response.content) < 40_000  # styles and scripts

    def test_a_user_without_access_sees_why(self, images: DagRun, visits: Visits) -> None:
        page = visits.page(STRANGER)
        page.goto(images.gallery)
        expect(page.get_by_text("You are not allowed to see these images.")).to_be_visible()
        assert page.locator("img:visible").count() == 0

    def test_a_signed_out_user_signs_in_and_returns(self, images: DagRun, visits: Visits) -> None:
        from tests.browser.visits import log_in

        page = visits.page(None)
        page.goto(images.gallery)
        page.get_by_role("link", name="Sign in").click()
        log_in(page, VIEWER)
        expect(page.locator("li img")).to_have_count(3)

    def test_a_user_with_an_old_login_is_asked_to_sign_in(
        self, images: DagRun, url: str, signed_out: requests.Session
    ) -> None:
        cookies = {"_token": "an.old.token"}
        response = signed_out.get(f"{url}{images.gallery}", cookies=cookies, timeout=30)
        assert response.status_code in (401, 403)
        assert "Sign in to Airflow" in response.text
        assert "auth/login?next=" in response.text

    @pytest.mark.parametrize(
        "dag_id", ["~", "", "unknown", "browser%5Fimages", "browser_other%2F..%2Fbrowser_images"]
    )
    def test_no_other_spelling_of_a_dag_id_bypasses_it(
        self, images: DagRun, url: str, api_as: Callable[[Person], requests.Session], dag_id: str
    ) -> None:
        for route in ("images", "image", "thumbnail"):
            path = images.gallery if route == "images" else images.image(route, map_index=0)
            response = api_as(STRANGER).get(
                url + path.replace("browser_images", dag_id) + "&dag_id=browser_other", timeout=30
            )
            assert response.status_code in (403, 404), route


class TestHostile:
    def test_html_in_a_prompt_is_shown_as_text(self, ran: Callable[[str], DagRun], visits: Visits) -> None:
        run = ran("browser_hostile")
        page = visits.page(ADMIN)
        frame = tab(page, run.path)
        expect(frame.locator("li img")).to_have_count(2)
        for number in range(2):
            frame.locator("li a").nth(number).click()
            expect(frame.locator("dialog .details")).to_contain_text("hacked")
            frame.get_by_role("button", name="Close").click()
        expect(frame.locator("li b, dialog b, li script, img[src='x']")).to_have_count(0)
        assert page.evaluate("() => window.hacked") is None
        assert frame.locator("body").evaluate("() => window.hacked") is None

    @pytest.mark.parametrize(
        "entry",
        [
            {"uri": "file:///etc/passwd", "sha256": "00" * 32, "size_bytes": 1000},
            {"uri": "http://169.254.169.254/latest/meta-data/", "sha256": "00" * 32, "size_bytes": 1000},
            {"uri": "file:///dev/zero", "sha256": "00" * 32, "size_bytes": 1000},
            {"uri": "s3://unknown/a.png", "sha256": "00" * 32, "size_bytes": 10, "storage_conn_id": "other"},
            "a text",
            {"uri": 5},
        ],
        ids=str,
    )
    def test_a_forged_xcom_reads_no_file_of_the_server(
        self,
        ran: Callable[[str], DagRun],
        url: str,
        api_as: Callable[[Person], requests.Session],
        entry: Any,
    ) -> None:
        run, session = ran("browser_empty"), api_as(ADMIN)
        path = run.api("/taskInstances/nothing/xcomEntries")
        session.delete(f"{url}{path}/images?map_index=-1", timeout=30)
        pushed = session.post(f"{url}{path}", json={"key": "images", "value": [entry]}, timeout=30)
        assert pushed.status_code == 201, pushed.text
        try:
            for route in ("image", "thumbnail"):
                response = session.get(f"{url}{run.image(route, task_id='nothing')}", timeout=30)
                assert response.status_code == 404
                assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
                assert "root:" not in response.text
            assert session.get(f"{url}{run.gallery}", timeout=30).status_code == 200
        finally:
            session.delete(f"{url}{path}/images?map_index=-1", timeout=30)

    @pytest.mark.parametrize(
        "odd",
        [
            "&number=0",
            "&number=9",
            "&number=-1",
            "&number=x",
            f"&number={'9' * 50}",
            f"&map_index={'9' * 30}",
            "&task_id=draw%00",
            "&task_id=",
            "&run_id=%ff%fe",
            "&run_id=a&run_id=b",
            "&uri=file:///etc/passwd",
        ],
    )
    def test_an_odd_query_gets_a_plain_error(
        self, images: DagRun, url: str, api_as: Callable[[Person], requests.Session], odd: str
    ) -> None:
        name = odd.removeprefix("&").partition("=")[0]
        path, _, query = images.image(map_index=0).partition("?")
        others = "&".join(part for part in query.split("&") if not part.startswith(f"{name}="))
        response = api_as(VIEWER).get(f"{url}{path}?{others}{odd}", timeout=30)
        if name == "uri":  # it is ignored
            assert response.headers["Content-Type"] == "image/png"
        else:
            assert response.status_code == 404
            assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


class TestServing:
    def test_an_image_is_served_byte_for_byte(
        self,
        images: DagRun,
        url: str,
        api_as: Callable[[Person], requests.Session],
        emulator: Emulator,
    ) -> None:
        response = api_as(VIEWER).get(f"{url}{images.image(map_index=0)}", timeout=30)
        assert response.content in emulator.served.values()
        assert response.headers["Content-Type"] == "image/png"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "private" in response.headers["Cache-Control"]

    @pytest.mark.parametrize("route", ["image", "thumbnail"])
    def test_an_unchanged_image_is_not_sent_again(
        self, images: DagRun, url: str, api_as: Callable[[Person], requests.Session], route: str
    ) -> None:
        path = f"{url}{images.image(route, map_index=0)}"
        first = api_as(VIEWER).get(path, timeout=30)
        again = api_as(VIEWER).get(path, headers={"If-None-Match": first.headers["ETag"]}, timeout=30)
        assert (again.status_code, again.content) == (304, b"")
        stranger = api_as(STRANGER).get(path, headers={"If-None-Match": first.headers["ETag"]}, timeout=30)
        assert stranger.status_code == 403

    def test_a_page_runs_only_its_own_scripts(
        self, images: DagRun, url: str, api_as: Callable[[Person], requests.Session]
    ) -> None:
        policy = api_as(VIEWER).get(f"{url}{images.gallery}", timeout=30).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'self'" in policy

    def test_an_unknown_run_is_reported(
        self, images: DagRun, url: str, api_as: Callable[[Person], requests.Session]
    ) -> None:
        response = api_as(VIEWER).get(f"{url}/modelscope/browser_images/images?run_id=x", timeout=30)
        assert response.status_code == 404
        assert "has no run" in response.text

    def test_a_runs_id_may_come_unencoded_as_from_airflow_3_1(
        self, images: DagRun, url: str, api_as: Callable[[Person], requests.Session]
    ) -> None:
        assert "+" in images.run_id
        path = f"/modelscope/browser_images/images?run_id={images.run_id}&map_index={{MAP_INDEX}}"
        assert PROMPTS[0] in api_as(VIEWER).get(f"{url}{path}", timeout=30).text


def test_two_hundred_images_open_in_a_second(ran: Callable[[str], DagRun], visits: Visits) -> None:
    page = visits.page(ADMIN)
    run = ran("browser_many")
    page.goto("/modelscope/browser_empty/images?run_id=x")  # warms up the browser
    in_view = """() => [...document.querySelectorAll("li img")].filter(
        (image) => image.getBoundingClientRect().top < innerHeight).every(
        (image) => image.complete && image.naturalWidth > 0)"""
    seconds = []
    for _ in range(3):
        started_at = time.monotonic()
        page.goto(run.gallery, wait_until="domcontentloaded")
        page.wait_for_function(in_view)
        seconds.append(time.monotonic() - started_at)
    assert page.locator("li img").count() == 200
    assert FIGURES.at_most("200 images: seconds until all in view are shown", median(seconds), 1)
