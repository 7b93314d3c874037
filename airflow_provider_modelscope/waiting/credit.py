"""Waiting for credit: one reading for all waits of an account, and how many of them it suffices for."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_modelscope.protocol.credit import Credit

MIN_INTERVAL, MAX_INTERVAL = 600.0, 900.0  # seconds between two readings


class CreditReadings:
    """The readings of one account's credit in one event loop, as long as anybody waits for one.

    :param read: Returns the credit.
    """

    def __init__(self, read: Callable[[], Awaitable[Credit]]) -> None:
        self._read = read
        self._next: asyncio.Task[Credit] | None = None
        self._unclaimed = 0.0

    async def next(self) -> Credit:
        """Wait for the next reading, which all waits share.

        :raises ModelScopeError: if it fails.
        """
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._read_later())
        return await asyncio.shield(self._next)  # a cancelled wait leaves it to the others

    def claim(self, credit: float) -> bool:
        """Return whether the last reading has so much left for this wait, after all earlier claims."""
        if credit > self._unclaimed:
            return False
        self._unclaimed -= credit
        return True

    def close(self) -> None:
        """Cancel the next reading."""
        if self._next:
            self._next.cancel()

    async def _read_later(self) -> Credit:
        await asyncio.sleep(random.uniform(MIN_INTERVAL, MAX_INTERVAL))  # noqa: S311 - no security
        self._unclaimed = 0.0
        credit = await self._read()
        self._unclaimed = credit.available
        return credit
