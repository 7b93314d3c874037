"""The accounts of Airflow connections, each read once for all waits that begin together."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_modelscope.exceptions import ModelScopeError, ServiceUnavailableError
from airflow_provider_modelscope.hooks.connection import account_from_connection

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_modelscope.protocol.account import Account

CACHE_SECONDS = 60.0  # for which an account is not read again
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds after a failed read; the last is repeated

log = logging.getLogger(__name__)


async def account_of(connection_id: str, *, end_time: float, rejected: Account | None = None) -> Account:
    """Return the account of a connection. A failed read is repeated: a paid generation may depend on it.

    :param end_time: In epoch seconds. A read that fails later is the last.
    :param rejected: An account whose token the service rejected: it is not taken from the cache.
    :raises InvalidConnectionError: if the connection cannot be used.
    :raises ServiceUnavailableError: if it cannot be read.
    """
    cache = _caches.setdefault(asyncio.get_running_loop(), _Cache())
    while True:
        try:
            return await cache.get(connection_id, rejected=rejected)
        except ModelScopeError:
            raise
        except Exception as error:  # of any secrets backend
            if time.time() >= end_time:
                raise ServiceUnavailableError(
                    f"The triggerer cannot read Airflow connection {connection_id!r}: {error!r}"
                ) from error


class _Cache:
    """The accounts of an event loop. A read is a round trip through the supervisor: half a ms of CPU."""

    def __init__(self) -> None:
        self._accounts: dict[str, tuple[float, Account]] = {}
        self._reads: dict[str, asyncio.Task[Account]] = {}
        self._failures: dict[str, int] = {}  # failed reads since the last one that succeeded

    async def get(self, connection_id: str, *, rejected: Account | None) -> Account:
        read_at, account = self._accounts.get(connection_id, (0.0, None))
        if account is not None and account != rejected and time.monotonic() < read_at + CACHE_SECONDS:
            return account
        if connection_id not in self._reads:
            self._reads[connection_id] = asyncio.create_task(self._read(connection_id))
        return await asyncio.shield(self._reads[connection_id])  # a cancelled wait leaves it to the others

    async def _read(self, connection_id: str) -> Account:
        try:
            connection = await _connection(connection_id)
        except Exception as error:
            failures = self._failures.get(connection_id, 0)
            self._failures[connection_id] = failures + 1
            delay = RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)]
            log.warning("Connection %r cannot be read, retrying in %g s: %r", connection_id, delay, error)
            await asyncio.sleep(delay)  # here, so that all waits repeat the read together
            raise
        finally:
            del self._reads[connection_id]
        self._failures.pop(connection_id, None)
        account = account_from_connection(connection)
        self._accounts[connection_id] = time.monotonic(), account
        return account


async def _connection(connection_id: str) -> Connection:
    """Return a connection without blocking the event loop."""
    from airflow.sdk import Connection

    from airflow_provider_modelscope.compat import BaseHook

    if hasattr(Connection, "aextra_dejson"):  # before Airflow 3.3.2, aget_connection blocks to mask secrets
        return await BaseHook.aget_connection(connection_id)
    from asgiref.sync import sync_to_async

    return await sync_to_async(BaseHook.get_connection)(connection_id)


# A triggerer has one event loop and serves at most one team, so there an id means one connection.
_caches: WeakKeyDictionary[asyncio.AbstractEventLoop, _Cache] = WeakKeyDictionary()
