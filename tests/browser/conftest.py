"""One Airflow and one browser for all tests."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import pytest
import requests

from airflow_provider_modelscope.emulator import Emulator
from dev.figures import Bench
from tests.browser.people import ADMIN, FAB, Person, add_users
from tests.browser.visits import Visits, chromium, find_chromium
from tests.support.evidence import report
from tests.support.real_airflow import EXAMPLE_DAGS, Parts, RealAirflow

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIGURES = Bench("gallery", "make test-browser")
DAGS = Path(__file__).parent / "dags"
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial" / "content-pipeline.md"
TIME_LIMIT = "TIME_LIMIT = timedelta(hours=12)"


class DagRun(NamedTuple):
    """A Dag run and its pages in the UI."""

    dag_id: str
    run_id: str

    @property
    def gallery(self) -> str:
        """The path of its gallery, without Airflow's UI around it."""
        return f"/modelscope/{self.dag_id}/images?run_id={quote(self.run_id, safe='')}"

    def image(
        self, route: str = "image", number: int = 1, *, task_id: str = "draw", map_index: int = -1
    ) -> str:
        """Return the path of one of its images, or of a thumbnail with the route ``thumbnail``."""
        instance = f"task_id={task_id}&map_index={map_index}&number={number}"
        return f"{self.gallery.replace('/images?', f'/{route}?')}&{instance}"

    @property
    def path(self) -> str:
        """The path of its page."""
        return f"/dags/{self.dag_id}/runs/{quote(self.run_id, safe='')}"

    def task_path(self, map_index: int, task_id: str = "draw") -> str:
        """Return the path of the page of one of its task instances."""
        return f"{self.path}/tasks/{task_id}/mapped/{map_index}"

    def api(self, rest: str = "") -> str:
        """Return the path of a resource below it in the REST API."""
        return f"/api/v2/dags/{self.dag_id}/dagRuns/{quote(self.run_id, safe='')}{rest}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.exit("Chromium is needed: apt-get install chromium", returncode=1)
    with chromium(program) as browser:
        yield browser


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """The service behind ``modelscope_default``; ``served`` holds its images."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def slow() -> Iterator[Emulator]:
    """The service behind ``modelscope_slow``, whose generations finish on ``finish()``."""
    with Emulator(duration=3600) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def crowded() -> Iterator[Emulator]:
    """The service behind ``modelscope_crowded``, for tests that leave generations behind."""
    with Emulator(duration=3600) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def airflow(
    browser: Browser,
    emulator: Emulator,
    slow: Emulator,
    crowded: Emulator,
    tmp_path_factory: pytest.TempPathFactory,
) -> RealAirflow:
    """Airflow with its users. Requests ``browser`` first, so that a missing browser fails at once."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copytree(DAGS, folder / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    for example in ("example_approval.py", "example_assets.py"):
        shutil.copy(EXAMPLE_DAGS / example, folder / "dags")
    # The same example with a short time limit for the approval.
    approval = (EXAMPLE_DAGS / "example_approval.py").read_text()
    assert TIME_LIMIT in approval
    (folder / "dags" / "late_approval.py").write_text(
        approval.replace(TIME_LIMIT, "TIME_LIMIT = timedelta(seconds=15)").replace(
            "example_approval(", "late_approval("
        )
    )
    [tutorial] = re.findall(r"^```python\n(.*?)^```", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    (folder / "dags" / "content_pipeline.py").write_text(tutorial)
    airflow = RealAirflow(
        folder / "airflow",
        dags=folder / "dags",
        connections={
            f"modelscope_{name}": {
                "conn_type": "modelscope",
                "password": "ms-browser",
                "host": service.base_url,
            }
            for name, service in (("default", emulator), ("slow", slow), ("crowded", crowded))
        },
        login=ADMIN.login,
    )
    airflow.environment |= FAB | {
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",  # instead of 300 s, for killed workers
    }
    airflow.migrate()
    add_users(airflow)
    return airflow


@pytest.fixture(scope="session")
def parts(airflow: RealAirflow) -> Iterator[Parts]:
    """The processes of the running Airflow."""
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # stop all processes on either
        signal.signal(signal_, signal.default_int_handler)
    with airflow.parts() as parts:
        yield parts


@pytest.fixture(scope="session")
def url(parts: Parts) -> str:
    """The base URL of the running Airflow."""
    return parts.url


def last_run(airflow: RealAirflow, dag_id: str) -> DagRun:
    """Return the last run of a Dag."""
    rows = airflow.query("select run_id from dag_run where dag_id = :dag_id order by id", dag_id=dag_id)
    return DagRun(dag_id, rows[-1][0])


@pytest.fixture(scope="session")
def ran(airflow: RealAirflow, url: str) -> Callable[[str], DagRun]:
    """Run a Dag once for all tests, and return its run."""
    runs: dict[str, DagRun] = {}

    def run(dag_id: str) -> DagRun:
        if dag_id not in runs:
            state = airflow.run_dag(url, dag_id, {"destination": f"file://{airflow.home}/images/{dag_id}/"})
            assert state == "success", airflow.task_states(dag_id)
            runs[dag_id] = last_run(airflow, dag_id)
        return runs[dag_id]

    return run


@pytest.fixture(scope="session")
def images(ran: Callable[[str], DagRun]) -> DagRun:
    """The run of the Dag that the viewer may see."""
    return ran("browser_images")


@pytest.fixture(scope="session")
def api_as(airflow: RealAirflow, url: str) -> Iterator[Callable[[Person], requests.Session]]:
    """Open a session of the REST API as a user."""
    with ExitStack() as stack:
        yield lambda person: stack.enter_context(airflow.session(url, person.login))


@pytest.fixture(scope="session")
def all_visits(browser: Browser, url: str) -> Visits:
    return Visits(browser, url)


@pytest.fixture
def visits(all_visits: Visits) -> Iterator[Visits]:
    """Pages of one test. Any error on them fails the test."""
    all_visits.errors.clear()
    yield all_visits
    all_visits.close()
    assert not all_visits.errors


@pytest.fixture
def signed_out() -> Iterator[requests.Session]:
    """Make requests without a login."""
    with requests.Session() as session:
        yield session


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    report(FIGURES, terminalreporter, exitstatus)
