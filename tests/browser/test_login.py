"""Who logs in sees the Dag that they may see, and no other: what the other browser tests stand on."""

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


def test_who_follows_a_link_to_a_dag_run_logs_in_first_and_then_sees_it(
    images: DagRun, visits: Visits
) -> None:
    page = visits.page(None)
    page.goto(images.path)
    page.wait_for_url(lambda url: LOGIN in url)
    log_in(page, VIEWER)
    expect(page.get_by_role("heading", name="3 Task Instances")).to_be_visible()
    expect(page.get_by_role("heading", name=images.run_id)).to_be_visible()


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_the_viewer_sees_the_run_and_its_tasks_and_is_refused_nothing(
    images: DagRun, visits: Visits, color_scheme: ColorScheme
) -> None:
    page = visits.page(VIEWER, color_scheme=color_scheme)
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    page.goto(images.path)
    expect(page.get_by_role("heading", name="3 Task Instances")).to_be_visible()
    page.goto(images.task_path(0))
    expect(page.get_by_role("link", name="Rendered Templates")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert not refused


def test_the_stranger_sees_nothing_of_it(images: DagRun, visits: Visits) -> None:
    page = visits.page(STRANGER)
    with page.expect_response(lambda answer: "/taskInstances" in answer.url) as answer:
        page.goto(images.path)
    assert answer.value.status == 403
    expect(page.get_by_text("No Task Instances found")).to_be_visible()


@pytest.mark.parametrize(("person", "status"), [(ADMIN, 200), (VIEWER, 200), (STRANGER, 403)])
def test_the_rest_api_gives_xcoms_to_whom_the_dag_is_shown(
    images: DagRun, url: str, api_as: Callable[[Person], requests.Session], person: Person, status: int
) -> None:
    path = images.api("/taskInstances/draw/xcomEntries/images?map_index=0")
    answer = api_as(person).get(f"{url}{path}", timeout=30)
    assert answer.status_code == status
    assert ("sha256" in answer.text) == (status == 200)


def test_the_stranger_has_a_dag_of_their_own(
    ran: Callable[[str], DagRun], url: str, api_as: Callable[[Person], requests.Session]
) -> None:
    path = ran("browser_other").api("/taskInstances/draw/xcomEntries/images?map_index=0")
    assert {
        person: api_as(person).get(f"{url}{path}", timeout=30).status_code for person in (STRANGER, VIEWER)
    } == {STRANGER: 200, VIEWER: 403}
