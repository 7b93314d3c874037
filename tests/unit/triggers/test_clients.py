"""Waits of an account share one client, until the last of them leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import AuthenticationError, ModelScopeError
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.triggers.clients import shared_client, with_client
from tests.unit.conftest import TOKEN, serve_connections

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client

ACCOUNT = Account(token=TOKEN, base_url="http://127.0.0.1:9")
UseTokens = Callable[[str, Iterable[str]], None]


@pytest.fixture
def use_tokens(monkeypatch: pytest.MonkeyPatch) -> UseTokens:
    """Let each read of a connection return the next token."""

    def use(host: str, tokens: Iterable[str]) -> None:
        token: Iterator[str] = iter(tokens)

        async def read(connection_id: str) -> object:
            from airflow.sdk import Connection

            return Connection(conn_id=connection_id, conn_type="modelscope", host=host, password=next(token))

        serve_connections(monkeypatch, read)

    return use


async def poll(client: Client) -> None:
    polled = await client.poll("42", end_time=0)
    if isinstance(polled, ModelScopeError):
        raise polled


def test_each_account_has_one_client() -> None:
    async def run() -> None:
        other = Account(token="ms-other", base_url=ACCOUNT.base_url)
        async with shared_client(ACCOUNT) as first:
            async with shared_client(Account(token=TOKEN, base_url=ACCOUNT.base_url)) as second:
                assert first is second
            async with shared_client(other) as third:
                assert third is not first
            async with shared_client(ACCOUNT) as again:
                assert again is first
        async with shared_client(ACCOUNT) as later:
            assert later is not first  # the last user has closed it

    asyncio.run(run())


def test_each_event_loop_has_its_own_client() -> None:
    async def run() -> Client:
        async with shared_client(ACCOUNT) as client:
            return client

    assert asyncio.run(run()) is not asyncio.run(run())


def test_a_token_that_is_rotated_during_the_wait_is_used(use_tokens: UseTokens) -> None:
    with Emulator(tokens=["ms-rotated"]) as emulator:
        use_tokens(emulator.base_url, ["ms-expired-1", "ms-rotated"])
        asyncio.run(with_client("modelscope_default", poll, end_time=0))
        assert [exchange.status for exchange in emulator.requests] == [401, 200]


def test_tokens_that_are_all_rejected_end_the_wait(use_tokens: UseTokens) -> None:
    with Emulator(tokens=["ms-another"]) as emulator:
        use_tokens(emulator.base_url, cycle(["ms-one", "ms-two"]))  # of two replicas of a secrets backend
        with pytest.raises(AuthenticationError):
            asyncio.run(asyncio.wait_for(with_client("modelscope_default", poll, end_time=0), 30))
        assert len(emulator.requests) == 2
