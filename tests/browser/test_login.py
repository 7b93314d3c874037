"""Users see the Dags that they may see, and no others. The other browser tests rely on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.people import ADMIN, STRANGER, VIEWER, Person
from tests.browser.visits import LOGIN, log_in

if TYPE_CHECKING:
    import requests

    from tests.browser.conftest import DagRun
    from tests.browser.visits import ColorScheme, Visits


def test_a_link_to_a_dag_run_leads_through_the_login(images: DagRun, visits: Visits) -> None:
    page = visits.page(None)
    page.goto(images.path)
    page.wait_for_url(lambda url: LOGIN in url)
    log_in(page, VIEWER)
    expect(page.get_by_role("heading", name="3 Task Instances")).to_be_visible()
    expect(page.get_by_role("heading", name=images.run_id)).to_be_visible()


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_the_viewer_sees_the_run_and_its_tasks(
    images: DagRun, visits: Visits, color_scheme: ColorScheme
) -> None:
    page = visits.page(VIEWER, color_scheme=color_scheme)
    failed: list[str] = []
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    page.goto(images.path)
    expect(page.get_by_role("heading", name="3 Task Instances")).to_be_visible()
    page.goto(images.task_path(0))
    expect(page.get_by_role("link", name="Rendered Templates")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert not failed


def test_the_stranger_does_not_see_the_run(images: DagRun, visits: Visits) -> None:
    page = visits.page(STRANGER)
    with page.expect_response(lambda response: "/taskInstances" in response.url) as response:
        page.goto(images.path)
    assert response.value.status == 403
    expect(page.get_by_text("No Task Instances found")).to_be_visible()


@pytest.mark.parametrize(("person", "status"), [(ADMIN, 200), (VIEWER, 200), (STRANGER, 403)])
def test_the_rest_api_returns_xcoms_to_those_who_see_the_dag(
    images: DagRun, url: str, api_as: Callable[[Person], requests.Session], person: Person, status: int
) -> None:
    path = images.api("/taskInstances/draw/xcomEntries/images?map_index=0")
    response = api_as(person).get(f"{url}{path}", timeout=30)
    assert response.status_code == status
    assert ("sha256" in response.text) == (status == 200)


def test_the_stranger_sees_another_dag(
    ran: Callable[[str], DagRun], url: str, api_as: Callable[[Person], requests.Session]
) -> None:
    path = ran("browser_other").api("/taskInstances/draw/xcomEntries/images?map_index=0")
    assert {
        person: api_as(person).get(f"{url}{path}", timeout=30).status_code for person in (STRANGER, VIEWER)
    } == {STRANGER: 200, VIEWER: 403}
