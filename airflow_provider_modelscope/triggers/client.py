"""ModelScope from the triggerer: the protocol over aiohttp, one client for all the waits of an account.

It only looks; what is stored passes a worker.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_modelscope.api import Answer, generation_call, read_generation
from airflow_provider_modelscope.exceptions import ModelScopeError, ServiceUnavailableError
from airflow_provider_modelscope.waiting import Quiet

if TYPE_CHECKING:
    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.generation import Generation

POOL_SIZE = 64  # connections to one service, for however many waits: 200 looks a second at 0.3 s each
KEPT_SECONDS = 60.0  # that an idle connection is kept: longer than the usual time between looks
DNS_SECONDS = 300

# An HTTP session is bound to its event loop, so each loop has clients of its own.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Account, Client]] = WeakKeyDictionary()


class Client:
    """The looks of one account at its generations, over one session. Made by :func:`shared_client`."""

    def __init__(self, account: Account) -> None:
        import aiohttp

        self.waits = 0
        self._account = account
        self._proxy = account.proxy_for(account.base_url)
        self._quiet = Quiet()
        # Whoever has no connection yet waits here, which costs nothing. Inside aiohttp its request would be
        # built first, all in one turn of the loop where many begin at once, and its timeout would run.
        self._turns = asyncio.Semaphore(POOL_SIZE)
        trust: ssl.SSLContext | bool = account.verify is not False
        if isinstance(account.verify, str):
            trust = ssl.create_default_context(cafile=account.verify)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=trust, limit=POOL_SIZE, keepalive_timeout=KEPT_SECONDS, ttl_dns_cache=DNS_SECONDS
            ),
            timeout=aiohttp.ClientTimeout(total=account.request_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def look(self, generation_id: str, *, end_time: float) -> Generation | ModelScopeError:
        """Return what the service says of a generation now, or the error that stands in the way.

        Where the service asked this account to wait, every wait of the account does, with some jitter.

        :param end_time: When the wait ends, in epoch seconds: it is not paused beyond that.
        """
        now = time.time()
        if pause := self._quiet.seconds(now):
            jitter = random.uniform(0, min(pause, 5.0))  # noqa: S311 - it spreads load, and hides nothing
            await asyncio.sleep(max(0.0, min(pause + jitter, end_time - now)))
        try:
            answer = await self._send(generation_id)
            self._quiet.hear(answer, now=time.time())
            return read_generation(answer, account=self._account, generation_id=generation_id)
        except ModelScopeError as error:
            return error

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _send(self, generation_id: str) -> Answer:
        import aiohttp

        call = generation_call(self._account, generation_id)
        try:
            async with (
                self._turns,
                self._session.request(
                    call.method,
                    call.url,
                    headers=call.headers,
                    proxy=self._proxy,
                    allow_redirects=False,  # the token goes to the API's own origin only
                ) as response,
            ):
                body = await response.read()
                return Answer(status_code=response.status, headers=response.headers, body=body)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError: a timeout is one too
            raise ServiceUnavailableError(
                f"{self._account.base_url} gave no answer: {type(error).__name__} {error}".rstrip(),
                generation_id=generation_id,
            ) from error


@asynccontextmanager
async def shared_client(account: Account) -> AsyncIterator[Client]:
    """Lend the account's client of this event loop; the last wait to leave closes it, also when cancelled."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    client = clients.get(account)
    if client is None:
        client = clients[account] = Client(account)
    client.waits += 1
    try:
        yield client
    finally:
        client.waits -= 1
        if not client.waits:
            del clients[account]
            await client.close()
