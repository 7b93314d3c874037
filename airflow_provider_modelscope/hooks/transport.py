"""Calls over requests: one answer, whole and within its time, or an error that says whether it was sent."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from http.cookiejar import DefaultCookiePolicy
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_modelscope.exceptions import (
    ServiceUnavailableError,
    ServiceUnreachableError,
    redacted,
)

if TYPE_CHECKING:
    import requests

    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.api import Answer, Call

CHUNK = 64 * 1024  # bytes that are read at a time
GRACE = 1.0  # seconds that a call may take beside its timeout

Result = TypeVar("Result")


def new_session() -> requests.Session:
    """Return a session that says nothing of its own, and looks at no redirect."""
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """Name none: requests would read all of a redirect's body, and trip over an odd Location."""

    session = Session()
    session.auth = lambda prepared: prepared  # without an auth of its own it would take one from a .netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


def proxies_of(account: Account) -> dict[str, str] | None:
    """Return the connection's proxy, to be given with a request: a session's yields to the environment's."""
    return {"http": account.proxy, "https": account.proxy} if account.proxy else None


def send(call: Call, account: Account) -> Answer:
    """Send one call over a connection of its own: a kept one may be dead, which only shows after sending.

    :raises ServiceUnreachableError: where nothing was sent.
    :raises ServiceUnavailableError: where it may have been.
    """
    from urllib3.exceptions import HTTPError

    try:
        # The timeout of requests is one for each read: bytes that drip would hold the worker for ever. It
        # comes first where it applies, as it says more.
        return _within(account.request_timeout + GRACE, lambda: _exchange(call, account))
    except (OSError, HTTPError, ValueError) as error:  # all that requests raises of its own is an OSError
        said = redacted(str(error), account.token)  # it may show what came
        if _was_not_sent(error):
            raise ServiceUnreachableError(f"{account.base_url} cannot be reached: {said}") from error
        raise ServiceUnavailableError(f"{account.base_url} gave no answer: {said}") from error


def _exchange(call: Call, account: Account) -> Answer:
    from airflow_provider_modelscope.api import MAX_BODY, Answer

    body = bytearray()
    with (
        new_session() as session,
        session.request(
            call.method,
            call.url,
            headers=dict(call.headers),
            data=call.body,
            timeout=account.request_timeout,
            verify=account.verify,  # set on the session, the environment's bundle would win
            proxies=proxies_of(account),
            allow_redirects=False,  # the token goes to the API's own origin only
            stream=True,
        ) as response,
    ):
        for chunk in response.iter_content(CHUNK):
            body += chunk
            if len(body) >= MAX_BODY:
                break
    return Answer(status_code=response.status_code, headers=response.headers, body=bytes(body[:MAX_BODY]))


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what the work returns. After so many seconds it is left to its thread, which ends with the task.

    :raises TimeoutError: where that takes longer.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    Thread(target=run, name="modelscope-request", daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None


def _was_not_sent(error: Exception) -> bool:
    """Whether no connection came about: then a submission can have created nothing."""
    import requests
    from urllib3.exceptions import LocationParseError, NewConnectionError

    if isinstance(
        error,
        requests.ConnectTimeout
        | requests.exceptions.ProxyError
        | requests.exceptions.InvalidURL
        | LocationParseError,
    ):
        return True
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError) or "CERTIFICATE_VERIFY_FAILED" in str(error)
