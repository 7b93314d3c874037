"""Pages that somebody looks at, in a real browser, and what goes wrong on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, StorageState

    from tests.browser.people import Person

ColorScheme = Literal["light", "dark"]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # a container's root may not make one
    "--disable-gpu",
    # It asks nobody but the Airflow here.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
LOGIN = "/auth/login/"
SECONDS = 30.0  # for whatever a page waits for: the machine may be busy


def find_chromium() -> str | None:
    """Return the path of a Chromium of this machine."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Run a browser without a window."""
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def log_in(page: Page, person: Person) -> None:
    """Fill in the login form that the page shows, and wait until it leads on."""
    name, password = person.login
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(password)
    page.locator("input[type=submit]").click()
    page.wait_for_url(lambda url: LOGIN not in url)


class Visits:
    """Visits to the Airflow that runs at ``url``.

    Whoever logged in once stays so. ``errors`` holds what no page may do, in its frames neither: throw, ask
    another host, or complain on its console, as it does of what its sandbox or security policy forbids.
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
        """Return an empty page; a path given to its ``goto`` is one of this Airflow.

        :param person: Who is logged in there, by the login form; nobody if None.
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
        page.on("console", lambda message: self._hear(page, message))
        page.on("request", lambda request: self._see(page, request))
        return page

    def close(self) -> None:
        """Close all pages."""
        while self._open:
            self._open.pop().close()

    def _hear(self, page: Page, message: ConsoleMessage) -> None:
        # That something was refused or is not there may be what a test wants to see.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self._note(page, f"complained: {message.text}")

    def _see(self, page: Page, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self._note(page, f"asked {request.url}")

    def _note(self, page: Page, error: str) -> None:
        if LOGIN not in page.url:  # FAB's own page throws: its moment.js has no time zones
            self.errors.append(f"{page.url} {error}")
