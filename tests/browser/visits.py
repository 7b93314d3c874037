"""Pages in a real browser, opened as one of the users, and the errors on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Page,
        Request,
        Route,
        StorageState,
    )

    from tests.browser.people import Person

ColorScheme = Literal["light", "dark"]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # root in a container cannot create one
    "--disable-gpu",
    # No requests to other hosts.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
LOGIN = "/auth/login/"
SECONDS = 30.0  # timeout of all waits on a page


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Run a headless browser."""
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def log_in(page: Page, person: Person) -> None:
    """Fill in the login form on the page, and wait for the redirect."""
    name, password = person.login
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(password)
    page.locator("input[type=submit]").click()
    page.wait_for_url(lambda url: LOGIN not in url)


def bring_whole_page(page: Page, change: Callable[[str], str] = str) -> None:
    """Let an open page of images ask for updates, and get the whole page.

    :param change: Returns what it gets instead of this page.
    """

    def send(route: Route) -> None:
        own = ("if-none-match", "known-chunks")
        headers = {name: value for name, value in route.request.headers.items() if name not in own}
        response = route.fetch(headers=headers)
        route.fulfill(response=response, body=change(response.text()))

    page.route("**/images?*", send, times=1)
    ask_for_updates(page)


def ask_for_updates(page: Page) -> None:
    """Let an open page of images ask for updates now."""
    with page.expect_event("requestfinished", lambda request: "/images?" in request.url):
        page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")


class Visits:
    """Visits to the Airflow at ``url``. Users log in once.

    ``errors`` collects what no page and no frame may do: throw, send a request to another host, or log an
    error on the console, as browsers do for violations of a sandbox or a security policy.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self.url = url
        self.errors: list[str] = []
        self._browser = browser
        self._open: list[BrowserContext] = []
        self._logins: dict[Person, StorageState] = {}

    def page(
        self,
        person: Person | None,
        *,
        viewport: tuple[int, int] = (1280, 900),
        color_scheme: ColorScheme = "light",
    ) -> Page:
        """Return an empty page. Paths given to its ``goto`` are relative to this Airflow.

        :param person: The logged-in user; signed out if None.
        :param viewport: Width and height in pixels.
        """
        if person and person not in self._logins:
            page = self.page(None)
            page.goto(LOGIN)
            log_in(page, person)
            self._logins[person] = page.context.storage_state()
        width, height = viewport
        context = self._browser.new_context(
            base_url=self.url,
            storage_state=self._logins[person] if person else None,
            viewport={"width": width, "height": height},
            color_scheme=color_scheme,
        )
        self._open.append(context)
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: self._note(page, f"threw {error}"))
        page.on("console", lambda message: self._on_console(page, message))
        page.on("request", lambda request: self._on_request(page, request))
        return page

    def close(self) -> None:
        """Close all pages."""
        while self._open:
            self._open.pop().close()

    def _on_console(self, page: Page, message: ConsoleMessage) -> None:
        # Tests may expect a request to fail with 403 or 404.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self._note(page, f"logged: {message.text}")

    def _on_request(self, page: Page, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self._note(page, f"requested {request.url}")

    def _note(self, page: Page, error: str) -> None:
        if LOGIN not in page.url:  # FAB's own login page throws: its moment.js has no time zones
            self.errors.append(f"{page.url} {error}")
