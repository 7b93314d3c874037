"""The connection form, and the button that tests a stored connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from airflow_provider_modelscope.emulator import Emulator
from tests.browser.people import ADMIN

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from tests.browser.visits import Visits

GOOD, BAD = "ms-good", "ms-bad"


@pytest.fixture(scope="module")
def service() -> Iterator[Emulator]:
    """A service with one valid token."""
    with Emulator(tokens=[GOOD]) as emulator:
        yield emulator


@pytest.fixture
def page(visits: Visits) -> Page:
    page = visits.page(ADMIN)
    page.goto("/connections")
    return page


def row(page: Page, connection_id: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=connection_id, exact=True))


def save(page: Page, **fields: str) -> None:
    """Fill in standard fields of the open form, and save it."""
    for name, value in fields.items():
        page.locator(f"input[name={name}]").fill(value)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def add(page: Page, connection_id: str, **fields: str) -> None:
    """Add a connection of our type in the form."""
    page.get_by_role("button", name="Add Connection").click()
    page.locator("input[name=connection_id]").fill(connection_id)
    page.get_by_role("dialog").get_by_role("combobox").fill("ModelScope")
    page.get_by_role("option", name="ModelScope", exact=True).click()
    save(page, **fields)


def edit(page: Page, connection_id: str, **fields: str) -> None:
    """Change a connection in the form."""
    row(page, connection_id).get_by_role("button", name="Edit Connection").click()
    save(page, **fields)


def press_test(page: Page, connection_id: str) -> None:
    row(page, connection_id).get_by_role("button", name="Test Connection").click()


def expect_success(page: Page, service: Emulator) -> None:
    expect(page.get_by_text("Test Connection Successful")).to_be_visible()
    expect(page.get_by_text(f"Connected to {service.base_url}: the token is valid, ")).to_be_visible()


def expect_failure(page: Page, sentence: str) -> None:
    expect(page.get_by_text("Test Connection Failed")).to_be_visible()
    expect(page.get_by_text(sentence)).to_be_visible()


@pytest.mark.parametrize("names_port_twice", [False, True])
def test_the_button_accepts_the_good_token(page: Page, service: Emulator, names_port_twice: bool) -> None:
    url = urlsplit(service.base_url)
    host = service.base_url if names_port_twice else str(url.hostname)
    connection_id = f"good_{names_port_twice}"
    add(page, connection_id, password=GOOD, host=host, port=str(url.port))
    press_test(page, connection_id)
    expect_success(page, service)
    assert service.requests[-1].path.endswith("/magicubes/balance")
    assert not service.accepted


def test_the_button_rejects_a_bad_token_until_it_is_edited(page: Page, service: Emulator) -> None:
    add(page, "bad", password=BAD, host=service.base_url, port=str(urlsplit(service.base_url).port))
    press_test(page, "bad")
    expect_failure(page, "Authentication failed")
    page.reload()
    edit(page, "bad", password=GOOD)
    press_test(page, "bad")
    expect_success(page, service)


def test_the_button_names_a_port_that_contradicts_the_host(page: Page, service: Emulator) -> None:
    add(page, "two_ports", password=GOOD, host=service.base_url, port="443")
    press_test(page, "two_ports")
    port = urlsplit(service.base_url).port
    expect_failure(page, f"port must be empty or {port}, the port in host, not 443.")
