"""Users see what happens to each image that is not stored, and why."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing, contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import FIGURES, last_run
from tests.browser.people import ADMIN
from tests.support.real_airflow import start_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests
    from playwright.sync_api import Page, Response

    from airflow_provider_modelscope.emulator import Emulator
    from tests.browser.conftest import DagRun
    from tests.browser.visits import Visits
    from tests.support.real_airflow import Parts, RealAirflow

DAG_ID = "browser_states"
# With a usual duration once a run of the Dag before it has images.
GENERATING = r"Generating, \d+ s(?: of about \d+ s)?"
QUEUED = (GENERATING, *(rf"Queued, {place} of 2, (?:about )?\d+ s" for place in ("1st", "2nd")))
DAG_URL = f"/api/v2/dags/{DAG_ID}"

CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const paint = (...colors) => {
        for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
        const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255).map(
            (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const contrast = (element) => {
        const behind = [];
        for (let one = element; one; one = one.parentElement) behind.unshift(one);
        const colors = behind.map((one) => getComputedStyle(one).backgroundColor);
        const [back, front] = [paint(...colors), paint(...colors, getComputedStyle(element).color)];
        return (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    };
    const kinds = "p, span, a, button, summary, h1, h2, dt, dd, strong, label";
    const texts = document.querySelectorAll(`:is(main, header, dialog) :is(${kinds})`);
    return Math.min(...[...texts].filter((one) => one.textContent && one.checkVisibility()).map(contrast));
}"""


@pytest.fixture
def api(airflow: RealAirflow, url: str) -> Iterator[requests.Session]:
    with airflow.session(url) as session:
        yield session


@pytest.fixture
def open_run(
    airflow: RealAirflow, url: str, api: requests.Session, visits: Visits, crowded: Emulator
) -> Iterator[Callable[[str], Page]]:
    """Start a run of a Dag and open its page. The runs are stopped at the end."""
    crowded.finish()
    runs: list[DagRun] = []

    def stop() -> None:
        for run in runs:
            api.patch(f"{url}{run.api()}", json={"state": "failed"}, timeout=30).raise_for_status()
        runs.clear()
        crowded.finish()

    def open_run(dag_id: str) -> Page:
        stop()
        start_run(api, url, dag_id, {"destination": f"file://{airflow.home}/images/states/"})
        runs.append(last_run(airflow, dag_id))
        page = visits.page(ADMIN)
        page.goto(runs[0].gallery)
        return page

    yield open_run
    stop()


@pytest.fixture
def page(open_run: Callable[[str], Page]) -> Page:
    """The page of a new run."""
    return open_run(DAG_ID)


def await_labels(page: Page, *expected: str) -> None:
    """Wait until the page has these labels in any order, each a pattern, without a reload."""
    deadline = time.monotonic() + 90
    while True:
        shown = sorted(page.locator(".state").all_inner_texts())
        if len(shown) == len(expected) and all(map(re.fullmatch, sorted(expected), shown)):
            return
        assert time.monotonic() < deadline, shown
        page.wait_for_timeout(500)


def test_a_queue_and_a_triggerer_that_is_gone_are_shown(page: Page, parts: Parts) -> None:
    await_labels(page, *QUEUED)
    for prompt in ("A snail", "A tortoise", "A sloth"):
        card = page.locator("li.pending").filter(has_text=prompt)
        expect(card).to_contain_text("Qwen-Image")
    parts.kill("triggerer")
    try:
        await_labels(page, *3 * [r"No triggerer seen for \d+ s"])
    finally:
        parts.start("triggerer")
    await_labels(page, *QUEUED)


@pytest.mark.parametrize(
    ("fault", "label"), [("quota", r"Waiting for credit, \d+ s"), ("503", r"Retrying at \d\d:\d\d")]
)
def test_a_wait_for_credit_and_a_retry_are_shown(
    api: requests.Session, url: str, crowded: Emulator, request: Any, fault: str, label: str
) -> None:
    for _ in range(3):
        crowded.fail(f"submit:{fault}")
    page = request.getfixturevalue("page")
    await_labels(page, *3 * [label])
    if fault == "503":
        api.patch(f"{url}{DAG_URL}", json={"is_paused": True}, timeout=30).raise_for_status()
        await_labels(page, *3 * ["Paused Dag"])


def test_a_task_that_is_marked_failed_names_what_goes_on(
    page: Page, airflow: RealAirflow, api: requests.Session, url: str
) -> None:
    await_labels(page, *QUEUED)
    [[index, request]] = airflow.query(
        "select map_index, cast(value as text) from xcom where key = 'request' and run_id = :run_id",
        run_id=last_run(airflow, DAG_ID).run_id,
    )
    task = last_run(airflow, DAG_ID).api(f"/taskInstances/draw/{index}")
    api.patch(f"{url}{task}", json={"new_state": "failed"}, timeout=30).raise_for_status()
    row = page.locator("li.failed")
    expect(row.locator(".state")).to_have_text(re.compile(r"^Marked failed at \d\d:\d\d$"))
    generation_id = json.loads(request)["generation_id"]
    expect(row).to_contain_text(f"Generation {generation_id} goes on at ModelScope and occupies the account")


def test_tasks_of_a_run_that_is_marked_failed_say_so(
    page: Page, airflow: RealAirflow, api: requests.Session, url: str
) -> None:
    await_labels(page, *QUEUED)
    run = last_run(airflow, DAG_ID).api()
    api.patch(f"{url}{run}", json={"state": "failed"}, timeout=30).raise_for_status()
    await_labels(page, *3 * [r"Marked failed at \d\d:\d\d"])


def test_a_wait_and_storing_on_a_worker_are_shown(open_run: Callable[[str], Page], crowded: Emulator) -> None:
    page = open_run("browser_workers")
    await_labels(page, GENERATING, r"Queued, \d+ s")
    crowded.fail("image:503:4")  # 15 s of pauses before the fifth attempt
    crowded.finish()
    await_labels(page, rf"Queued, \d+ s|{GENERATING}", r"Storing, \d+ s")


def test_a_killed_process_and_a_lost_worker_are_told_apart(
    open_run: Callable[[str], Page], airflow: RealAirflow, api: requests.Session, url: str
) -> None:
    page = open_run("browser_workers")
    await_labels(page, GENERATING, r"Queued, \d+ s")
    run = last_run(airflow, "browser_workers")
    [[generating, request]] = airflow.query(
        "select map_index, cast(value as text) from xcom where key = 'request' and run_id = :run_id",
        run_id=run.run_id,
    )
    tasks = api.get(f"{url}{run.api('/taskInstances')}", timeout=30).json()["task_instances"]
    processes = {task["map_index"]: task["pid"] for task in tasks}
    psutil.Process(processes.pop(generating)).kill()
    row = page.locator("li.failed")
    expect(row.locator(".state")).to_have_text("Failed", timeout=60_000)
    generation_id = json.loads(request)["generation_id"]
    expect(row).to_contain_text(
        f"No error is recorded. See the log. Generation {generation_id} goes on at ModelScope"
    )
    [waiting] = map(psutil.Process, processes.values())
    worker = waiting.parent()
    assert worker
    worker.kill()
    waiting.kill()
    lost = page.locator("li.failed").filter(has_text="Airflow got no heartbeat from its worker.")
    expect(lost.locator(".state")).to_have_text(re.compile(r"^Worker lost at \d\d:\d\d$"), timeout=150_000)


def test_the_end_of_the_execution_timeout_is_an_error(
    open_run: Callable[[str], Page], crowded: Emulator
) -> None:
    page = open_run("browser_timeout")
    crowded.fail("image:503:4")  # the image is not stored in time
    row = page.locator("li.failed")
    deadline = time.monotonic() + 90
    while not row.count():
        crowded.finish()
        assert time.monotonic() < deadline, page.locator(".state").all_inner_texts()
        page.wait_for_timeout(500)
    expect(row.locator(".state")).to_have_text("Failed")
    expect(row).to_contain_text("The execution_timeout of the task ended it after 12 s.")


def test_a_later_run_knows_the_usual_duration(open_run: Callable[[str], Page], crowded: Emulator) -> None:
    page = open_run(DAG_ID)
    deadline = time.monotonic() + 120
    while not page.locator("li.image").count():
        crowded.finish()
        assert time.monotonic() < deadline, page.locator(".state").all_inner_texts()
        page.wait_for_timeout(500)
    places = [rf"Queued, {place} of 2, about \d+ s" for place in ("1st", "2nd")]
    await_labels(open_run(DAG_ID), r"Generating, \d+ s of about \d+ s", *places)


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_every_state_can_be_read(visits: Visits, airflow: RealAirflow, color_scheme: Any, page: Page) -> None:
    other = visits.page(ADMIN, color_scheme=color_scheme, viewport=(320, 640))
    other.goto(last_run(airflow, DAG_ID).gallery)
    expect(other.locator(".state")).to_have_count(3)
    rules = "() => [...document.styleSheets[0].cssRules].map((rule) => rule.selectorText || '')"
    colors = re.findall(r"\.state\.(\w+)\b", " ".join(page.evaluate(rules)))
    assert len(colors) > 5
    for color in colors:
        recolor = "(chip, color) => { chip.className = `state ${color}`; }"
        other.locator(".state").first.evaluate(recolor, color)
        assert other.evaluate(CONTRAST) >= 4.5, color
    assert other.evaluate("() => document.documentElement.scrollWidth") <= 320


def test_a_cleared_image_is_marked_and_replaced(
    page: Page, crowded: Emulator, airflow: RealAirflow, api: requests.Session, url: str
) -> None:
    page.evaluate("() => { window.stayed = true; }")
    run = last_run(airflow, DAG_ID)

    def await_images() -> None:
        deadline = time.monotonic() + 120
        while page.locator("li.image:not(:has(.again))").count() < 3:
            crowded.finish()
            assert time.monotonic() < deadline, page.locator(".state").all_inner_texts()
            page.wait_for_timeout(500)

    await_images()
    expect(page.locator("main")).to_have_attribute("data-live", "false")
    api.patch(f"{url}{DAG_URL}", json={"is_paused": True}, timeout=30).raise_for_status()
    cleared = {"dry_run": False, "only_failed": False, "dag_run_id": run.run_id, "task_ids": [["draw", 0]]}
    api.post(f"{url}{DAG_URL}/clearTaskInstances", json=cleared, timeout=30).raise_for_status()
    await_labels(page, "Being generated again")
    expect(page.locator("main")).to_have_attribute("data-live", "true")
    api.patch(f"{url}{DAG_URL}", json={"is_paused": False}, timeout=30).raise_for_status()
    await_labels(page, GENERATING)
    await_images()
    assert page.evaluate("() => window.stayed")


def test_a_hidden_page_asks_nothing_and_an_unchanged_one_gets_nothing(images: DagRun, visits: Visits) -> None:
    page = visits.page(ADMIN)
    page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => window.isHidden })")
    page.clock.install()
    page.goto(images.gallery)
    expect(page.locator("li img")).to_have_count(3)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/images?" in request.url else None)
    page.evaluate("() => { window.isHidden = true; }")
    page.clock.run_for(120_000)
    assert asked == []
    with page.expect_response("**/images?*") as response:
        page.evaluate(
            "() => { window.isHidden = false; document.dispatchEvent(new Event('visibilitychange')); }"
        )
    assert response.value.status == 304
    with page.expect_response("**/images?*") as response:
        page.clock.run_for(20_000)
    assert response.value.status == 304
    assert page.locator("li img").count() == 3


CARDS, ASKED, ROUNDS = 5000, 30, 3


@contextmanager
def many_cards(airflow: RealAirflow, run: DagRun, image: dict[str, Any]) -> Iterator[None]:
    """Add mapped task instances with an image each to a run for a while, as copies of one that it has."""
    numbers = "with recursive numbers(n) as (select 3 union all select n + 1 from numbers where n < :last)"
    replaced = {
        "task_instance": {"id": "lower(hex(randomblob(16)))", "map_index": "n", "state": "'success'"}
        | dict.fromkeys(("trigger_id", "next_method", "next_kwargs"), "null"),
        "xcom": {
            "map_index": "n",
            "key": "'images'",
            "value": "json(json_quote(replace(:image, '{n}', n)))",
        },
    }
    path = airflow.database_url.removeprefix("sqlite:///")
    known = {"last": CARDS - 1, "run_id": run.run_id, "image": json.dumps([image])}
    with closing(sqlite3.connect(path, timeout=60)) as database:
        with database:
            for table, values in replaced.items():
                columns = [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
                copied = ", ".join(values.get(name, f"one.{name}") for name in columns)
                database.execute(
                    f"{numbers} insert into {table} ({', '.join(columns)}) select {copied} from numbers, "  # noqa: S608
                    f"(select * from {table} where run_id = :run_id and map_index >= 0 limit 1) one",
                    known,
                )
        try:
            yield
        finally:
            with database:
                for table in replaced:
                    database.execute(
                        f"delete from {table} where run_id = :run_id and map_index > 2",  # noqa: S608
                        known,
                    )


def test_five_thousand_cards_cost_little_when_nothing_changes(
    page: Page, airflow: RealAirflow, images: DagRun, parts: Parts
) -> None:
    await_labels(page, *QUEUED)
    [[image], *_] = airflow.xcoms(images.dag_id, "draw", "images")
    with many_cards(airflow, last_run(airflow, DAG_ID), image | {"generation_id": "{n}"}):
        page.goto(page.url)
        assert page.locator("li").count() == CARDS
        page.evaluate("() => { window.setTimeout = () => 0; }")  # the test asks instead of the timer
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        received: list[float] = []
        network.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
        sent: list[int] = []
        network.on(
            "Network.requestWillBeSentExtraInfo",
            lambda event: sent.extend(len(f"{one}: {value}\r\n") for one, value in event["headers"].items()),
        )
        statuses: list[int] = []

        def note(response: Response) -> None:
            if "/images?" in response.url:
                statuses.append(response.status)

        page.on("response", note)

        def ask() -> int:
            known = len(statuses)
            while len(statuses) == known:  # it does not ask while it still works on the last response
                page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
                page.wait_for_timeout(10)
            return statuses[-1]

        costs: list[tuple[float, float]] = []
        deadline = time.monotonic() + 90
        while len(costs) < ROUNDS:
            assert time.monotonic() < deadline, statuses
            before = parts.cpu_seconds("api-server")
            received.clear()
            sent.clear()
            if {ask() for _ in range(ASKED)} == {304}:  # else Airflow changed something, say a place
                costs.append((parts.cpu_seconds("api-server") - before, sum(received) + sum(sent)))
    a_minute = 60_000 / (3 * CARDS)
    seconds, size = (median(cost) / ASKED * a_minute for cost in zip(*costs, strict=True))
    assert FIGURES.at_most(f"{CARDS:,} unchanged cards: kB a minute for each viewer", size / 1000, 100)
    assert FIGURES.at_most(f"{CARDS:,} unchanged cards: CPU seconds a minute of the API server", seconds, 0.1)
