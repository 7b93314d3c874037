"""Polling from the triggerer: the protocol over aiohttp, with one client for all waits of an account."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from yarl import URL

from airflow_provider_modelscope.exceptions import ModelScopeError, ServiceUnavailableError
from airflow_provider_modelscope.protocol.credit import credit_request, read_credit
from airflow_provider_modelscope.protocol.messages import (
    HttpResponse,
    read_status,
    running_generation,
    status_request,
)
from airflow_provider_modelscope.redaction import redacted
from airflow_provider_modelscope.transport.egress import (
    NO_SOCKS_IN_TRIGGERER,
    USER_AGENT,
    proxy_for,
    tls_trust,
)
from airflow_provider_modelscope.waiting.backoff import Cooldown
from airflow_provider_modelscope.waiting.credit import CreditReadings
from airflow_provider_modelscope.waiting.intervals import MIN_POLL_INTERVAL
from airflow_provider_modelscope.waiting.submit_queue import SubmitQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.credit import Credit
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.waiting.poll import PollSchedule

POOL_SIZE = 64  # connections per account, for any number of waits: 200 polls a second at 0.3 s each
KEEPALIVE_SECONDS = 60.0  # of an idle connection: longer than the usual time between polls
DNS_CACHE_SECONDS = 300
MAX_POLL_BODY = 2**16  # bytes of a response to read: the event loop stands still while they are parsed
MAX_COOLDOWN_JITTER = 5.0  # seconds, so that the waits of an account do not resume together
TICK = 0.25  # seconds: polls that are due within one tick wake the event loop once, for a third less CPU


class Client:
    """Polls as one account in one event loop.

    All waits of the account share its free ``connections``, its cooldown, its ``queue`` of tasks that wait
    for a slot, and the readings of its ``credit``. ``users`` is their number. ``too_many_requests`` is the
    number of responses with status 429.
    """

    def __init__(self, account: Account) -> None:
        self.users = 0
        self.too_many_requests = 0
        self.queue = SubmitQueue()
        self.credit = CreditReadings(self.get_credit)
        self._account = account
        self._proxy = proxy_for(account.base_url, account, no_socks=NO_SOCKS_IN_TRIGGERER)
        self._cooldown = Cooldown()
        # Waits without a connection queue here, which costs nothing. In aiohttp the requests of all waits
        # that begin together would be built in one step of the event loop, and their timeouts would run.
        self.connections = asyncio.Semaphore(POOL_SIZE)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls_trust(account),
                keepalive_timeout=KEEPALIVE_SECONDS,
                ttl_dns_cache=DNS_CACHE_SECONDS,
            ),
            timeout=aiohttp.ClientTimeout(total=account.request_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT},
        )

    async def wait_until_finished(self, schedule: PollSchedule, *, task: str | None = None) -> None:
        """Poll until the generation has finished. The last poll begins at the deadline.

        :param task: The task that waits, for those in the queue that wait for the end of the generation.
        :raises ModelScopeError: if the schedule gives up.
        """
        call = self._status_call(schedule.generation_id)
        clock = asyncio.get_running_loop().time
        with self.queue.track(
            schedule.generation_id,
            submitted_at=schedule.submitted_at,
            usual_seconds=schedule.usual_seconds,
            task=task,
        ):
            while True:
                polled = await self._poll(call, end_time=schedule.end_time)
                if polled is None:
                    return
                outcome = schedule.observe(polled, now=time.time())
                if not isinstance(outcome, float):
                    return
                await asyncio.sleep(align_to_tick(outcome, now=clock()))

    async def poll(self, generation_id: str, *, end_time: float) -> Generation | ModelScopeError | None:
        """Return the generation, the error of the poll, or None if only a worker can read the response.

        A large response repeats the source images of its request. Unless its beginning says otherwise, the
        generation has finished.

        :param end_time: In epoch seconds. A cooldown of the account delays the poll, but not beyond this; a
            wait for a free connection ends one request timeout later.
        """
        return await self._poll(self._status_call(generation_id), end_time=end_time)

    async def get_credit(self) -> Credit:
        """Return the account's credit.

        :raises ModelScopeError: if the service does not return it.
        """
        call = credit_request(self._account)
        try:
            async with self._session.get(
                URL(call.url, encoded=True),
                headers=call.headers,
                proxy=proxy_for(call.url, self._account, no_socks=NO_SOCKS_IN_TRIGGERER),
                allow_redirects=False,
            ) as response:
                body = await _read_body(response.content)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._no_response(error) from None  # its cause may hold the token
        return read_credit(self._received(response, body), account=self._account)

    async def close(self) -> None:
        """Close every connection."""
        self.credit.close()
        await self._session.close()

    def _status_call(self, generation_id: str) -> _StatusCall:
        request = status_request(self._account, generation_id)
        return _StatusCall(generation_id, URL(request.url, encoded=True), request.headers)

    async def _poll(self, call: _StatusCall, *, end_time: float) -> Generation | ModelScopeError | None:
        if seconds := self._cooldown.seconds(now := time.time()):
            seconds += random.uniform(0, min(seconds, MAX_COOLDOWN_JITTER))  # noqa: S311 - no security
            await asyncio.sleep(min(seconds, end_time - now))
        limit = max(0.0, end_time - time.time()) + self._account.request_timeout
        try:
            async with (
                asyncio.timeout(limit),  # includes the wait for a free connection
                self.connections,
                self._session.get(
                    call.url,
                    headers=call.headers,
                    proxy=self._proxy,
                    allow_redirects=False,  # the token goes to the API's own origin only
                ) as response,
            ):
                body = await _read_body(response.content)
                if len(body) == MAX_POLL_BODY and response.status == 200 and body.startswith(b"{"):
                    return running_generation(body, generation_id=call.generation_id)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError includes timeouts
            return self._no_response(error, call.generation_id)
        received = self._received(response, body)
        self._cooldown.observe(received, now=time.time())
        try:
            return read_status(received, account=self._account, generation_id=call.generation_id)
        except ModelScopeError as error:
            return error

    def _received(self, response: aiohttp.ClientResponse, body: bytes) -> HttpResponse:
        self.too_many_requests += response.status == 429
        return HttpResponse(status_code=response.status, headers=response.headers, body=body)

    def _no_response(self, error: Exception, generation_id: str | None = None) -> ServiceUnavailableError:
        # The text of a ClientResponseError contains the URL of the proxy that sent it, password included.
        text = str(error.status) if isinstance(error, aiohttp.ClientResponseError) else str(error)
        reason = f"{type(error).__name__} {redacted(text, self._account.token)}".rstrip()
        return ServiceUnavailableError(
            f"No response from {self._account.base_url}: {reason}", generation_id=generation_id
        )


class _StatusCall(NamedTuple):
    """The HTTP request that polls one generation, built once for all polls."""

    generation_id: str
    url: URL
    headers: Mapping[str, str]


async def _read_body(content: aiohttp.StreamReader) -> bytes:
    """Return the decompressed body, at most ``MAX_POLL_BODY`` bytes. An unread rest closes the connection."""
    body = await content.readany()
    if content.at_eof():  # as usual
        return body[:MAX_POLL_BODY]
    chunks, size = [body], len(body)
    while size < MAX_POLL_BODY and not content.at_eof():
        chunks.append(await content.readany())
        size += len(chunks[-1])
    return b"".join(chunks)[:MAX_POLL_BODY]


def align_to_tick(seconds: float, *, now: float) -> float:
    """Return a sleep that is shortened to end on a tick, but never below the shortest poll interval.

    :param now: On the clock of the event loop, which all its sleeps share.
    """
    aligned = seconds - (now + seconds) % TICK
    return aligned if aligned >= MIN_POLL_INTERVAL else seconds
