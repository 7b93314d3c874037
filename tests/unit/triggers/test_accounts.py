"""Connections are read once for all waits that begin together, and a failed read is retried."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_provider_modelscope.triggers import accounts
from airflow_provider_modelscope.triggers.accounts import account_of
from tests.unit.conftest import TOKEN, serve_connections

if TYPE_CHECKING:
    import pytest


class Secrets:
    """A secrets backend. Its reads take some turns of the event loop, and the first of them may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0) -> None:
        self.reads = 0
        self._failures = failures
        serve_connections(monkeypatch, self.read)

    async def read(self, connection_id: str) -> object:
        from airflow.sdk import Connection

        self.reads += 1
        for _ in range(5):
            await asyncio.sleep(0)
        if self.reads <= self._failures:
            raise OSError("the secrets backend is unreachable")
        return Connection(conn_id=connection_id, conn_type="modelscope", password=TOKEN)


def test_waits_that_begin_together_read_a_connection_once(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def run() -> None:
        first, *others = await asyncio.gather(*(account_of("modelscope_default") for _ in range(100)))
        assert all(other == first for other in [*others, await account_of("modelscope_default")])
        assert secrets.reads == 1
        await account_of("another")
        assert secrets.reads == 2
        await account_of("modelscope_default", rejected=first)
        assert secrets.reads == 3

    asyncio.run(run())


def test_an_account_is_read_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "CACHE_SECONDS", 0.0)
    secrets = Secrets(monkeypatch)

    async def run() -> None:
        await account_of("a")
        await account_of("a")

    asyncio.run(run())
    assert secrets.reads == 2


def test_a_failed_read_is_retried_but_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = len(accounts.RETRY_DELAYS) + 1
    monkeypatch.setattr(accounts, "RETRY_DELAYS", (0.0,) * (attempts - 1))
    secrets = Secrets(monkeypatch, failures=attempts + 2)

    async def run() -> None:
        errors = await asyncio.gather(*(account_of("a") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [OSError] * 3
        assert secrets.reads == attempts
        assert (await account_of("a")).token == TOKEN  # after two more failures

    asyncio.run(run())
    assert secrets.reads == attempts + 3


def test_a_cancelled_wait_leaves_the_read_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def run() -> None:
        first, second = (asyncio.create_task(account_of("a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).token == TOKEN

    asyncio.run(run())
    assert secrets.reads == 1
