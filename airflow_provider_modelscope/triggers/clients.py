"""One client for each account and event loop, shared by all the waits of that account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_modelscope.exceptions import AuthenticationError
from airflow_provider_modelscope.transport.event_loop import Client
from airflow_provider_modelscope.triggers.accounts import account_of

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account

Result = TypeVar("Result")


# An HTTP session is bound to its event loop, so each loop has clients of its own.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Account, Client]] = WeakKeyDictionary()


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
