"""``make screenshots``: the README's pictures of the gallery, light and dark, out of a real Airflow."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from playwright.sync_api import expect

from airflow_provider_modelscope.emulator import Emulator
from tests.browser.visits import Visits, chromium, find_chromium
from tests.real_airflow import RealAirflow

SHOWCASE = Path(__file__).parent / "showcase"
DOCS = Path(__file__).parent.parent.parent / "docs"
DAG, IMAGES = "postcards", 8
VIEWPORT = (1280, 860)


def main() -> int:
    """Run the Dag, and take the pictures while its last image is still to come."""
    program = find_chromium()
    if program is None:
        print("Chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    with (
        TemporaryDirectory(prefix="screenshots-") as folder,
        Emulator(user_queue=IMAGES) as emulator,
        Emulator(seconds=3600) as slow,
    ):
        airflow = RealAirflow(
            Path(folder) / "airflow",
            dags=SHOWCASE,
            connections={
                f"modelscope_{name}": {"conn_type": "modelscope", "password": "any", "host": one.base_url}
                for name, one in (("default", emulator), ("slow", slow))
            },
        )
        airflow.migrate()
        with airflow.standalone() as url, chromium(program) as browser:
            visits = Visits(browser, url)

            def look() -> None:
                states = airflow.task_states(DAG)
                if states.count(("draw", "success")) == IMAGES and airflow.xcoms(DAG, "poster", "request"):
                    _take(visits, airflow)
                    slow.finish()

            given = {"destination": f"file://{folder}/images/"}
            airflow.run_dag(url, DAG, given, limit=300, watch=look)
            visits.close()
    return 0


def _take(visits: Visits, airflow: RealAirflow) -> None:
    [[run_id]] = airflow.query("select run_id from dag_run")
    path = f"/dags/{DAG}/runs/{quote(run_id, safe='')}/plugin/modelscope-images"
    for scheme in ("light", "dark"):
        page = visits.page(None, viewport=VIEWPORT, color_scheme=scheme)
        page.goto(path)
        frame = page.frame_locator("iframe[title='Images']")
        expect(frame.locator("li img")).to_have_count(IMAGES)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=DOCS / f"images-{scheme}.png")
        frame.locator("li a").first.click()
        expect(frame.locator("dialog img")).to_have_js_property("naturalWidth", 1024)
        page.screenshot(path=DOCS / f"image-{scheme}.png")
        print(f"{DOCS.name}/images-{scheme}.png, {DOCS.name}/image-{scheme}.png", flush=True)


if __name__ == "__main__":
    sys.exit(main())
