"""``make screenshots``: takes the screenshots of the gallery and of a test of connections for ``docs/``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from playwright.sync_api import expect

from airflow_provider_modelscope.emulator import Emulator
from tests.browser.visits import Visits, chromium, find_chromium
from tests.support.real_airflow import RealAirflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOWCASE = Path(__file__).parent / "showcase"
DOCS = Path(__file__).parent.parent / "docs"
DAG, IMAGES = "postcards", 8
VIEWPORT = (1280, 860)


def main() -> int:
    """Run the Dag, and take the screenshots while its last image is in progress."""
    program = find_chromium()
    if program is None:
        print("Chromium is not installed. Run: apt-get install chromium", file=sys.stderr)
        return 1
    with (
        TemporaryDirectory(prefix="screenshots-") as folder,
        Emulator(duration=2, max_running=IMAGES) as emulator,
        Emulator(duration=3600) as slow,
        Emulator(tokens=["valid"]) as guarded,
    ):
        airflow = RealAirflow(
            Path(folder) / "airflow",
            dags=SHOWCASE,
            connections={
                f"modelscope_{name}": {"conn_type": "modelscope", "password": "any", "host": service.base_url}
                for name, service in (("default", emulator), ("slow", slow))
            },
        )
        airflow.environment["AIRFLOW__CORE__TEST_CONNECTION"] = "Enabled"
        airflow.migrate()
        with airflow.standalone() as url, chromium(program) as browser:
            visits = Visits(browser, url)

            taken: list[str] = []

            def poll() -> None:
                stored = airflow.task_states(DAG).count(("draw", "success"))
                if stored == IMAGES and slow.accepted and not taken:
                    taken.extend(_take(visits, airflow))
                    slow.finish()

            conf = {"destination": f"file://{folder}/images/"}
            airflow.run_dag(url, DAG, conf, limit=300, watch=poll)
            _take_connection_test(visits, airflow, guarded)
            visits.close()
    return 0


def _take(visits: Visits, airflow: RealAirflow) -> Iterator[str]:
    [[run_id]] = airflow.query("select run_id from dag_run")
    for scheme in ("light", "dark"):
        page = visits.page(None, viewport=VIEWPORT, color_scheme=scheme)
        page.goto(f"/dags/{DAG}/runs/{quote(run_id, safe='')}")
        page.get_by_role("link", name="Images", exact=True).click()
        frame = page.frame_locator("iframe[title='Images']")
        expect(frame.locator("li img")).to_have_count(IMAGES)
        page.wait_for_load_state("networkidle")
        yield _screenshot(page, f"images-{scheme}.png")
        frame.locator("li a").first.click()
        expect(frame.locator("dialog img")).to_have_js_property("naturalWidth", 1024)
        yield _screenshot(page, f"image-{scheme}.png")


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


def _screenshot(page: Page, name: str) -> str:
    page.screenshot(path=DOCS / name, animations="disabled")  # jumps to the end of transitions
    print(f"{DOCS.name}/{name}", flush=True)
    return name


if __name__ == "__main__":
    sys.exit(main())
