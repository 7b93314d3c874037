"""One client for each account and event loop, shared by all waits of the account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_modelscope.exceptions import AuthenticationError
from airflow_provider_modelscope.transport.event_loop import Client
from airflow_provider_modelscope.triggers.accounts import account_of
from airflow_provider_modelscope.triggers.reports import end_report, start_report

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account

Result = TypeVar("Result")

# By event loop, because an HTTP session belongs to one.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Account, Client]] = WeakKeyDictionary()


async def with_client(
    connection_id: str, work: Callable[[Client], Awaitable[Result]], *, end_time: float
) -> Result:
    """Return the result of work with the client of a connection's account.

    If the service rejects the token, the connection is read again, because the token may have been rotated
    during the wait. With another token the work is repeated.

    :param end_time: Until when the connection is read again if that fails, in epoch seconds.
    """
    account = await account_of(connection_id, end_time=end_time)
    rejected = set()
    while True:
        try:
            async with shared_client(account) as client:
                start_report(client, connection_id)
                return await work(client)
        except AuthenticationError:
            rejected.add(account)
            account = await account_of(connection_id, end_time=end_time, rejected=account)
            if account in rejected:
                raise


@asynccontextmanager
async def shared_client(account: Account) -> AsyncIterator[Client]:
    """Lend the account's client in this event loop. The last user closes it, even when cancelled."""
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
            end_report(client)
            await client.close()
