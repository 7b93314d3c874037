"""Connections are read once for all waits that begin together, and a failed read is retried."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.exceptions import InvalidConnectionError, ServiceUnavailableError
from airflow_provider_modelscope.triggers import accounts
from airflow_provider_modelscope.triggers.accounts import account_of as account_until
from tests.unit.conftest import TOKEN, serve_connections

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account


async def account_of(connection_id: str, rejected: Account | None = None) -> Account:
    return await account_until(connection_id, end_time=math.inf, rejected=rejected)


class Secrets:
    """A secrets backend. Its reads take some turns of the event loop, and the first of them may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0, password: str = TOKEN) -> None:
        self.reads = 0
        self.failures = failures
        self._password = password
        serve_connections(monkeypatch, self.read)

    async def read(self, connection_id: str) -> object:
        from airflow.sdk import Connection

        self.reads += 1
        for _ in range(5):
            await asyncio.sleep(0)
        if self.reads <= self.failures:
            raise OSError("the secrets backend is unreachable")
        return Connection(conn_id=connection_id, conn_type="modelscope", password=self._password)


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


def test_a_failed_read_is_retried_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "RETRY_DELAYS", (0.0,))
    secrets = Secrets(monkeypatch, failures=50)

    async def run() -> None:
        late = [account_until("a", end_time=0) for _ in range(3)]
        *errors, account = await asyncio.gather(*late, account_of("a"), return_exceptions=True)
        for error in errors:
            assert isinstance(error, ServiceUnavailableError)
            assert "cannot read Airflow connection 'a': OSError('the secrets backend" in str(error)
        assert account == await account_of("a")

    asyncio.run(run())
    assert secrets.reads == 51


def test_delays_between_failed_reads_grow_and_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "CACHE_SECONDS", 0.0)
    slept: list[float] = []
    secrets = Secrets(monkeypatch, failures=7)

    async def note(seconds: float) -> None:
        if seconds:
            slept.append(seconds)

    async def run() -> None:
        await account_of("a")
        secrets.failures = secrets.reads + 1
        await account_of("a")

    monkeypatch.setattr(asyncio, "sleep", note)
    asyncio.run(run())
    assert slept == [1, 2, 4, 8, 15, 15, 15, 1]


def test_an_invalid_connection_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch, password="")
    with pytest.raises(InvalidConnectionError):
        asyncio.run(account_until("a", end_time=0))
    assert secrets.reads == 1


def test_a_cancelled_wait_leaves_the_read_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def run() -> None:
        first, second = (asyncio.create_task(account_of("a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).token == TOKEN

    asyncio.run(run())
    assert secrets.reads == 1
