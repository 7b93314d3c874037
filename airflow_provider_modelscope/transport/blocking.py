"""Blocking calls over requests: a complete response within a time limit, or an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_modelscope.exceptions import ServiceUnavailableError, ServiceUnreachableError
from airflow_provider_modelscope.redaction import redacted
from airflow_provider_modelscope.transport.egress import new_session, request_options

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.messages import HttpRequest, HttpResponse

CHUNK = 64 * 1024  # bytes to read at a time
MIN_SPEED = 100_000  # bytes per second; slower transfers are cut off
GRACE = 1.0  # seconds; the timeouts of requests come first, as their errors say more

Result = TypeVar("Result")


class NotSentError(OSError):
    """The request failed before a connection was attempted."""


def send(call: HttpRequest, account: Account, *, grace: float = GRACE) -> HttpResponse:
    """Send one request over a new connection: a reused one may be dead, which shows only after sending.

    :param grace: Seconds after the timeout of the request to cut it off.
    :raises ServiceUnreachableError: if nothing was sent.
    :raises ServiceUnavailableError: if the request may have been sent.
    """
    from urllib3.exceptions import HTTPError

    timeout = account.request_timeout + len(call.body or b"") / MIN_SPEED
    try:
        return run_within(timeout + grace, lambda: _exchange(call, account, timeout))
    except (OSError, HTTPError, ValueError) as error:  # every error of requests is an OSError
        reason = redacted(str(error), account.token)  # it may repeat the response
        was_not_sent = _was_not_sent(error)
    # Raised here, without its cause, which holds the headers, token included.
    if was_not_sent:
        raise ServiceUnreachableError(f"Cannot reach {account.base_url}: {reason}")
    raise ServiceUnavailableError(f"No response from {account.base_url}: {reason}")


def run_within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return the result of work that runs in a thread, or give up on it after some seconds.

    The timeout of requests limits each single read, so a server that sends one byte at a time would hold the
    task forever. Python cannot stop a thread: after a timeout it runs on, at most until the process ends.

    :raises TimeoutError: if the work takes longer.
    :raises NotSentError: if the thread cannot be started.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    try:
        Thread(target=run, name="modelscope-request", daemon=True).start()
    except RuntimeError as error:  # the machine's limit of threads
        raise NotSentError(str(error)) from error
    try:
        return result.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"timed out after {seconds:g} s") from None


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
            stream=True,
            **request_options(call.url, account),
        ) as response,
    ):
        for chunk in response.iter_content(CHUNK):
            body += chunk
            if len(body) >= MAX_BODY:
                break
    return HttpResponse(
        status_code=response.status_code, headers=response.headers, body=bytes(body[:MAX_BODY])
    )


def _was_not_sent(error: Exception) -> bool:
    """Whether no connection was made, so that a submission cannot have created anything."""
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
        # urllib3 also raises it if a request was sent through a proxy and no response came back.
        reason = reason.original_error
        if str(reason).startswith("Tunnel connection failed"):
            return True
    if isinstance(reason, SSLError):  # of the handshake, not of the encrypted stream after it
        return bool(re.search("CERTIFICATE_VERIFY_FAILED|WRONG_VERSION|HANDSHAKE|PROTOCOL", str(reason)))
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
