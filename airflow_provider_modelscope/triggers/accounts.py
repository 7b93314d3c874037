"""Which account an Airflow connection means, read once for the waits that begin together."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_modelscope.hooks.connection import account_from_connection

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account

KEPT_SECONDS = 60.0  # that what was read is believed; waits that begin later read it again
READ_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds: many paid generations may wait for one read

log = logging.getLogger(__name__)


async def account_of(connection_id: str, *, refused: Account | None = None) -> Account:
    """Return the account of a connection.

    :param refused: One that the service no longer takes: where that was read, it is read again.
    :raises InvalidConnectionError: where the connection cannot be used.
    """
    accounts = _accounts.setdefault(asyncio.get_running_loop(), _Accounts())
    return await accounts.of(connection_id, refused=refused)


class _Accounts:
    """What connections say. Each read is a round trip through the supervisor, half a millisecond of CPU."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Account]] = {}
        self._reads: dict[str, asyncio.Task[Account]] = {}

    async def of(self, connection_id: str, *, refused: Account | None) -> Account:
        read_at, account = self._known.get(connection_id, (0.0, None))
        if account is not None and account != refused and time.monotonic() < read_at + KEPT_SECONDS:
            return account
        if connection_id not in self._reads:
            self._reads[connection_id] = asyncio.create_task(self._read(connection_id))
        return await asyncio.shield(self._reads[connection_id])  # who is cancelled leaves it to the others

    async def _read(self, connection_id: str) -> Account:
        from airflow.providers.common.compat.connection import get_async_connection

        try:
            for pause in (*READ_PAUSES, None):
                try:
                    connection = await get_async_connection(connection_id)
                    break
                except Exception as error:  # whatever a secrets backend that is away for a moment raises
                    if pause is None:
                        raise
                    log.warning("Reading connection %r again in %g s: %r", connection_id, pause, error)
                await asyncio.sleep(pause)
            account = account_from_connection(connection)
        finally:
            del self._reads[connection_id]
        self._known[connection_id] = time.monotonic(), account
        return account


# Per event loop: a triggerer has one, and serves one team at most, so there an id means one connection.
_accounts: WeakKeyDictionary[asyncio.AbstractEventLoop, _Accounts] = WeakKeyDictionary()
