"""ModelScope from the triggerer: the protocol over aiohttp, one client for all the waits of an account."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import aiohttp
from yarl import URL

from airflow_provider_modelscope.api import MAX_BODY, Answer, Call, generation_call, read_generation
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    InvalidConnectionError,
    ModelScopeError,
    ServiceUnavailableError,
    redacted,
)
from airflow_provider_modelscope.triggers.accounts import account_of
from airflow_provider_modelscope.triggers.line import Line
from airflow_provider_modelscope.waiting.intervals import MIN_POLL_INTERVAL
from airflow_provider_modelscope.waiting.poll import GenerationWait, Quiet

if TYPE_CHECKING:
    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.generation import Generation

POOL_SIZE = 64  # connections to one service, for however many waits: 200 looks a second at 0.3 s each
KEPT_SECONDS = 60.0  # that an idle connection is kept: longer than the usual time between looks
DNS_SECONDS = 300
TICK = 0.25  # seconds: looks that fall due within it wake the event loop once: a third less CPU

Result = TypeVar("Result")

# An HTTP session is bound to its event loop, so each loop has clients of its own.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Account, Client]] = WeakKeyDictionary()


class Client:
    """What one account says to the service in one event loop. Made by :func:`with_client`.

    ``line`` holds those that wait for room to submit.
    """

    def __init__(self, account: Account) -> None:
        self.users = 0
        self.line = Line()
        self._account = account
        self._proxy = account.proxy_for(account.base_url)
        self._quiet = Quiet()
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

    async def look(self, generation_id: str, *, end_time: float) -> Generation | ModelScopeError:
        """Return what the service says of a generation now, or the error that stands in the way.

        Where the service asked this account to wait, every wait of the account does, with some jitter.

        :param end_time: When the wait ends, in epoch seconds: it is not paused beyond that.
        """
        await self._keep_quiet(end_time)
        try:
            async with self._connections:
                answer = await self._send(generation_call(self._account, generation_id))
            return read_generation(answer, account=self._account, generation_id=generation_id)
        except ModelScopeError as error:
            error.generation_id = generation_id
            return error

    async def see_finished(self, wait: GenerationWait) -> None:
        """Look until a generation has finished.

        :raises ModelScopeError: where the wait ends without that.
        """
        with self.line.running(wait):
            while True:
                look = await self.look(wait.generation_id, end_time=wait.end_time)
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

    async def _send(self, call: Call) -> Answer:
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
            answer = Answer(status_code=response.status, headers=response.headers, body=bytes(body))
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


async def with_client(connection_id: str, work: Callable[[Client], Awaitable[Result]]) -> Result:
    """Return what the work does with the client of a connection's account.

    All that work with the same account in this event loop share its client; the last one to leave closes it,
    also when cancelled. Where the service refuses the token, the connection is read again: if the token was
    rotated meanwhile, that was no verdict on the new one, and the work is done with that.
    """
    account = await account_of(connection_id)
    refused = set()
    while True:
        try:
            async with shared_client(account) as client:
                return await work(client)
        except AuthenticationError:
            refused.add(account)
            account = await account_of(connection_id, refused=account)
            if account in refused:
                raise


@asynccontextmanager
async def shared_client(account: Account) -> AsyncIterator[Client]:
    """Lend the account's client of this event loop; the last to leave closes it."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    client = clients.get(account)
    if client is None:
        client = clients[account] = Client(account)
    client.users += 1
    try:
        yield client
    finally:
        client.users -= 1
        if not client.users:
            del clients[account]
            await client.close()
