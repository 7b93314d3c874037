"""``make screenshots``: takes the screenshots of the gallery and of a test of connections for ``docs/``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from playwright.sync_api import expect

from airflow_provider_modelscope.emulator import Emulator
from tests.browser.visits import Visits, chromium, find_chromium
from tests.support.real_airflow import RealAirflow

if TYPE_CHECKING:
    from playwright.sync_api import FrameLocator, Page

    from tests.browser.visits import ColorScheme

SHOWCASE = Path(__file__).parent / "showcase"
DOCS = Path(__file__).parent.parent / "docs"
AWAIT_IMAGES = """() => Promise.all([...document.images].filter((image) => image.src)
    .filter((image) => image.getBoundingClientRect().top < innerHeight).map((image) => image.decode()))"""
VIEWPORT, PHONE = (1440, 1000), (390, 844)
IMAGES = 6  # stored while the other two of the postcards are in progress


def main() -> int:
    """Run the Dags, and take the screenshots while some of their images are in progress."""
    program = find_chromium()
    if program is None:
        print("Chromium is not installed. Run: apt-get install chromium", file=sys.stderr)
        return 1
    with (
        TemporaryDirectory(prefix="screenshots-") as folder,
        Emulator(duration=2, max_running=IMAGES) as emulator,
        Emulator(duration=3600) as slow,
        Emulator(duration=1, faults=["poll:moderated", "submit:unverified"]) as picky,
        Emulator(duration=4) as steady,
        Emulator(tokens=["valid"]) as guarded,
    ):
        services = {"default": emulator, "slow": slow, "picky": picky, "steady": steady}
        airflow = RealAirflow(
            Path(folder) / "airflow",
            dags=SHOWCASE,
            connections={
                f"modelscope_{name}": {"conn_type": "modelscope", "password": "any", "host": service.base_url}
                for name, service in services.items()
            },
        )
        airflow.environment["AIRFLOW__CORE__TEST_CONNECTION"] = "Enabled"
        airflow.migrate()
        with airflow.standalone() as url, chromium(program) as browser:
            visits = Visits(browser, url)
            conf = {"destination": f"file://{folder}/images/"}

            def run(dag_id: str, take: Callable[[Visits, str], None], when: Callable[[], bool]) -> None:
                taken: list[str] = []

                def poll() -> None:
                    if not taken and when():
                        [[run_id]] = airflow.query("select run_id from dag_run where dag_id = :id", id=dag_id)
                        take(visits, run_id)
                        taken.append(run_id)
                    if taken:
                        slow.finish()

                airflow.run_dag(url, dag_id, conf, limit=300, watch=poll)

            run("signs", _take_failures, lambda: airflow.task_states("signs").count(("draw", "success")) == 1)
            run("products", _take_batch, lambda: len(steady.served) >= 6)
            run(
                "postcards",
                _take_run,
                lambda: airflow.task_states("postcards").count(("draw", "success")) == IMAGES,
            )
            _take_dag(visits)
            _take_connection_test(visits, airflow, guarded)
            visits.close()
    return 0


def _tab(
    visits: Visits, dag_id: str, run_id: str = "", scheme: ColorScheme = "light"
) -> tuple[Page, FrameLocator]:
    page = visits.page(None, viewport=VIEWPORT, color_scheme=scheme)
    page.goto(f"/dags/{dag_id}" + (f"/runs/{quote(run_id, safe='')}" if run_id else ""))
    page.get_by_role("link", name="Images", exact=True).click()
    return page, page.frame_locator("iframe[title='Images']")


def _take_run(visits: Visits, run_id: str) -> None:
    schemes: tuple[ColorScheme, ...] = ("light", "dark")
    for scheme in schemes:
        page, frame = _tab(visits, "postcards", run_id, scheme)
        expect(frame.locator("li.image img")).to_have_count(IMAGES)
        for label in ("Generating", "Queued"):
            expect(frame.locator(".state").filter(has_text=label)).to_have_count(1)
        frame.locator("body").evaluate(AWAIT_IMAGES)
        _screenshot(page, f"images-{scheme}.png")
        frame.locator("li.image a").first.click()
        expect(frame.locator("dialog img")).to_have_js_property("naturalWidth", 1024)
        _screenshot(page, f"image-{scheme}.png")
    phone = visits.page(None, viewport=PHONE)
    phone.goto(f"/modelscope/postcards/images?run_id={quote(run_id, safe='')}")
    expect(phone.locator("li.image img")).to_have_count(IMAGES)
    phone.locator("body").evaluate(AWAIT_IMAGES)
    _screenshot(phone, "images-phone.png")


def _take_failures(visits: Visits, run_id: str) -> None:
    page, frame = _tab(visits, "signs", run_id)
    expect(frame.locator("li.failed")).to_have_count(2)
    frame.locator("body").evaluate(AWAIT_IMAGES)
    _screenshot(page, "failed.png")


def _take_batch(visits: Visits, run_id: str) -> None:
    page, frame = _tab(visits, "products", run_id)
    expect(frame.locator("li.image img").nth(3)).to_be_visible()
    frame.locator("body").evaluate(AWAIT_IMAGES)
    _screenshot(page, "batch.png")


def _take_dag(visits: Visits) -> None:
    page, frame = _tab(visits, "postcards")
    expect(frame.locator("li.image img")).to_have_count(8)
    frame.locator("body").evaluate(AWAIT_IMAGES)
    _screenshot(page, "dag-images.png")


def _take_connection_test(visits: Visits, airflow: RealAirflow, guarded: Emulator) -> None:
    host, _, port = guarded.base_url.rpartition(":")
    tokens = {
        "valid": f"Connected to {guarded.base_url}: the token is valid, ",
        "expired": "Authentication failed",
    }
    for token in tokens:
        fields = {"conn_type": "modelscope", "password": token, "host": host, "port": int(port)}
        airflow.run("connections", "add", f"modelscope_{token}", "--conn-json", json.dumps(fields))
    page = visits.page(None, viewport=VIEWPORT)
    page.goto("/connections?sort=connection_id")
    for token, sentence in tokens.items():
        row = page.get_by_role("row").filter(has_text=f"modelscope_{token}")
        row.get_by_role("button", name="Test Connection").click()
        message = page.locator("[data-scope=toast][data-part=root]").filter(has_text=sentence)
        expect(message).to_have_css("opacity", "1")  # it appears slowly
        page.mouse.move(0, 0)  # hides the tooltip, which can cover the next button
    _screenshot(page, "connection-test.png")


def _screenshot(page: Page, name: str) -> None:
    page.screenshot(path=DOCS / name, animations="disabled")  # jumps to the end of transitions
    print(f"{DOCS.name}/{name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
