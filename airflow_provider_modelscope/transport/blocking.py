"""Calls over requests: one answer, whole and within its time, or an error that says whether it was sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from http.cookiejar import DefaultCookiePolicy
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_modelscope.exceptions import ServiceUnavailableError, ServiceUnreachableError
from airflow_provider_modelscope.redaction import redacted
from airflow_provider_modelscope.transport.egress import proxies_for

if TYPE_CHECKING:
    import requests

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.messages import HttpRequest, HttpResponse

CHUNK = 64 * 1024  # bytes that are read at a time
SLOWEST = 100_000  # bytes a second; what is slower is broken off
GRACE = 1.0  # seconds that a call may take beside its timeout

Result = TypeVar("Result")


class NotSentError(OSError):
    """It did not come to a connection."""


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


def send(call: HttpRequest, account: Account) -> HttpResponse:
    """Send one call over a connection of its own: a kept one may be dead, which only shows after sending.

    :raises ServiceUnreachableError: where nothing was sent.
    :raises ServiceUnavailableError: where it may have been.
    """
    from urllib3.exceptions import HTTPError

    timeout = account.request_timeout + len(call.body or b"") / SLOWEST
    try:
        # The timeout of requests is one for each read: bytes that drip would hold the worker for ever. It
        # comes first where it applies, as it says more.
        return _within(timeout + GRACE, lambda: _exchange(call, account, timeout))
    except (OSError, HTTPError, ValueError) as error:  # all that requests raises of its own is an OSError
        said = redacted(str(error), account.token)  # it may show what came
        kind, what = ServiceUnavailableError, "gave no answer"
        if _was_not_sent(error):
            kind, what = ServiceUnreachableError, "cannot be reached"
    # Raised here, without its cause: that holds the headers, and what came, token included.
    raise kind(f"{account.base_url} {what}: {said}")


def _exchange(call: HttpRequest, account: Account, timeout: float) -> HttpResponse:
    from airflow_provider_modelscope.protocol.messages import MAX_BODY, HttpResponse

    body = bytearray()
    with (
        new_session() as session,
        session.request(
            call.method,
            call.url,
            headers=dict(call.headers),
            data=call.body,
            timeout=timeout,
            verify=account.verify,  # set on the session, the environment's bundle would win
            proxies=proxies_for(call.url, account),
            allow_redirects=False,  # the token goes to the API's own origin only
            stream=True,
        ) as response,
    ):
        for chunk in response.iter_content(CHUNK):
            body += chunk
            if len(body) >= MAX_BODY:
                break
    return HttpResponse(
        status_code=response.status_code, headers=response.headers, body=bytes(body[:MAX_BODY])
    )


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

    try:
        Thread(target=run, name="modelscope-request", daemon=True).start()
    except RuntimeError as error:  # this machine has no room for another
        raise NotSentError(str(error)) from error
    try:
        return result.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None


def _was_not_sent(error: Exception) -> bool:
    """Whether no connection came about: then a submission can have created nothing."""
    import requests
    from urllib3.exceptions import (
        ConnectTimeoutError,
        LocationParseError,
        NewConnectionError,
        ProxyError,
        SSLError,
    )

    no_address = requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema | LocationParseError
    if isinstance(error, NotSentError | requests.ConnectTimeout | no_address):
        return True
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(reason, ProxyError):
        # urllib3 calls it so, too, where the answer to what was sent through a proxy does not come.
        reason = reason.original_error
        if str(reason).startswith("Tunnel connection failed"):
            return True
    if isinstance(reason, SSLError):  # of the handshake, not of what came after
        return bool(re.search("CERTIFICATE_VERIFY_FAILED|WRONG_VERSION|HANDSHAKE|PROTOCOL", str(reason)))
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
