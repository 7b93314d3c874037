"""ModelScope from the triggerer: the protocol over aiohttp, one client for all the waits of an account."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from airflow_provider_modelscope.exceptions import (
    InvalidConnectionError,
    ModelScopeError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.protocol.messages import (
    MAX_BODY,
    HttpRequest,
    HttpResponse,
    read_status,
    status_request,
)
from airflow_provider_modelscope.redaction import redacted
from airflow_provider_modelscope.transport.egress import proxy_for
from airflow_provider_modelscope.waiting.backoff import Cooldown
from airflow_provider_modelscope.waiting.intervals import MIN_POLL_INTERVAL
from airflow_provider_modelscope.waiting.submit_queue import SubmitQueue

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.waiting.poll import PollSchedule

POOL_SIZE = 64  # connections to one service, for however many waits: 200 looks a second at 0.3 s each
KEPT_SECONDS = 60.0  # that an idle connection is kept: longer than the usual time between looks
DNS_SECONDS = 300
TICK = 0.25  # seconds: looks that fall due within it wake the event loop once: a third less CPU


class Client:
    """What one account says to the service in one event loop. Made by :func:`with_client`.

    ``queue`` holds the tasks that wait to submit.
    """

    def __init__(self, account: Account) -> None:
        self.users = 0
        self.queue = SubmitQueue()
        self._account = account
        self._proxy = proxy_for(account.base_url, account)
        self._quiet = Cooldown()
        # Whoever has no connection yet waits here, which costs nothing. Inside aiohttp its request would be
        # built first, all in one turn of the loop where many begin at once, and its timeout would run.
        self._connections = asyncio.Semaphore(POOL_SIZE)
        trust: ssl.SSLContext | bool = account.verify is not False
        if isinstance(account.verify, str):
            try:
                if os.path.isdir(account.verify):  # noqa: PTH112 - as requests tells them apart
                    trust = ssl.create_default_context(capath=account.verify)
                else:
                    trust = ssl.create_default_context(cafile=account.verify)
            except OSError as error:
                raise InvalidConnectionError(
                    f"The triggerer cannot read the connection's verify, {account.verify!r}: {error}"
                ) from error
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=trust,
                limit=POOL_SIZE,
                keepalive_timeout=KEPT_SECONDS,
                ttl_dns_cache=DNS_SECONDS,
            ),
            timeout=aiohttp.ClientTimeout(total=account.request_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def poll(self, generation_id: str, *, end_time: float) -> Generation | ModelScopeError:
        """Return what the service says of a generation now, or the error that stands in the way.

        Where the service asked this account to wait, every wait of the account does, with some jitter.

        :param end_time: When the wait ends, in epoch seconds: it is not paused beyond that.
        """
        await self._keep_quiet(end_time)
        try:
            async with self._connections:
                answer = await self._send(status_request(self._account, generation_id))
            return read_status(answer, account=self._account, generation_id=generation_id)
        except ModelScopeError as error:
            error.generation_id = generation_id
            return error

    async def wait_until_finished(self, wait: PollSchedule) -> None:
        """Look until a generation has finished.

        :raises ModelScopeError: where the wait ends without that.
        """
        with self.queue.track(
            wait.generation_id, submitted_at=wait.submitted_at, usual_seconds=wait.usual_seconds
        ):
            while True:
                look = await self.poll(wait.generation_id, end_time=wait.end_time)
                outcome = wait.after(look, now=time.time())
                if not isinstance(outcome, float):
                    return
                await asyncio.sleep(until_a_tick(outcome, now=asyncio.get_running_loop().time()))

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _keep_quiet(self, end_time: float) -> None:
        now = time.time()
        if pause := self._quiet.seconds(now):
            jitter = random.uniform(0, min(pause, 5.0))  # noqa: S311 - it spreads load, and hides nothing
            await asyncio.sleep(max(0.0, min(pause + jitter, end_time - now)))

    async def _send(self, call: HttpRequest) -> HttpResponse:
        """Send one call.

        :raises ServiceUnavailableError: where there is no answer.
        """
        try:
            async with self._session.request(
                call.method,
                URL(call.url, encoded=True),  # an id is quoted already, and is not to be again
                headers=call.headers,
                data=call.body,
                proxy=self._proxy,
                allow_redirects=False,  # the token goes to the API's own origin only
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) >= MAX_BODY:
                        response.close()  # not to be read to its end
                        break
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError: a timeout is one too
            # What a proxy answered would show its URL, password included.
            said = f"{error.status}" if isinstance(error, aiohttp.ClientResponseError) else str(error)
            said = f"{type(error).__name__} {redacted(said, self._account.token)}".rstrip()
        else:
            body = body[:MAX_BODY]
            answer = HttpResponse(status_code=response.status, headers=response.headers, body=bytes(body))
            self._quiet.hear(answer, now=time.time())
            return answer
        # Raised here, without its cause, which may hold the token that a service repeats.
        raise ServiceUnavailableError(f"{self._account.base_url} gave no answer: {said}")


def until_a_tick(seconds: float, *, now: float) -> float:
    """Return the seconds of a pause that is cut to end on a tick, where that leaves it a second or more.

    :param now: On the event loop's clock, which all its pauses share.
    """
    cut = seconds - (now + seconds) % TICK
    return cut if cut >= MIN_POLL_INTERVAL else seconds
