"""One Airflow for all, in which two Dags have run, and a browser to look at it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import pytest

from airflow_provider_modelscope.emulator import Emulator
from tests.browser.people import ADMIN, FAB, Person, invite
from tests.browser.visits import Visits, chromium, find_chromium
from tests.real_airflow import RealAirflow

if TYPE_CHECKING:
    import requests
    from playwright.sync_api import Browser

DAGS = Path(__file__).parent / "dags"


class DagRun(NamedTuple):
    """A Dag run, and where the UI shows it."""

    dag_id: str
    run_id: str

    @property
    def path(self) -> str:
        """The path of its page."""
        return f"/dags/{self.dag_id}/runs/{quote(self.run_id, safe='')}"

    def task_path(self, map_index: int, task_id: str = "draw") -> str:
        """Return the path of the page of one of its task instances."""
        return f"{self.path}/tasks/{task_id}/mapped/{map_index}"

    def api(self, rest: str = "") -> str:
        """Return its path in the REST API, and the rest."""
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
    """The service that drew the images; ``served`` holds them."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def airflow(browser: Browser, emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> RealAirflow:
    """Airflow with its users; ``browser`` comes first, so that nothing is made where there is none."""
    connection = {"conn_type": "modelscope", "password": "ms-browser", "host": emulator.base_url}
    airflow = RealAirflow(
        tmp_path_factory.mktemp("browser") / "airflow",
        dags=DAGS,
        connections={"modelscope_default": connection},
        login=ADMIN.login,
    )
    airflow.environment |= FAB
    airflow.migrate()
    invite(airflow)
    return airflow


@pytest.fixture(scope="session")
def url(airflow: RealAirflow) -> Iterator[str]:
    """Where it runs."""
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # whichever comes, what was started is ended
        signal.signal(signal_, signal.default_int_handler)
    with airflow.parts() as parts:
        yield parts.url


@pytest.fixture(scope="session")
def ran(airflow: RealAirflow, url: str) -> Callable[[str], DagRun]:
    """Run a Dag, once for all tests."""
    runs: dict[str, DagRun] = {}

    def run(dag_id: str) -> DagRun:
        if dag_id not in runs:
            state = airflow.run_dag(url, dag_id, {"destination": f"file://{airflow.home}/images/{dag_id}/"})
            assert state == "success", airflow.task_states(dag_id)
            [[run_id]] = airflow.query("select run_id from dag_run where dag_id = :dag_id", dag_id=dag_id)
            runs[dag_id] = DagRun(dag_id, run_id)
        return runs[dag_id]

    return run


@pytest.fixture(scope="session")
def images(ran: Callable[[str], DagRun]) -> DagRun:
    """The run that the viewer may see."""
    return ran("browser_images")


@pytest.fixture(scope="session")
def api_as(airflow: RealAirflow, url: str) -> Iterator[Callable[[Person], requests.Session]]:
    """Log somebody in at the REST API."""
    with ExitStack() as stack:
        yield lambda person: stack.enter_context(airflow.session(url, person.login))


@pytest.fixture(scope="session")
def all_visits(browser: Browser, url: str) -> Visits:
    return Visits(browser, url)


@pytest.fixture
def visits(all_visits: Visits) -> Iterator[Visits]:
    """Pages of one test, which fails with any error on them."""
    all_visits.errors.clear()
    yield all_visits
    all_visits.close()
    assert not all_visits.errors
