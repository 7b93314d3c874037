"""All the waits of an account share one client in the triggerer."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    InvalidConnectionError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.transport.event_loop import POOL_SIZE, Client
from airflow_provider_modelscope.triggers import accounts
from airflow_provider_modelscope.triggers.accounts import account_of
from airflow_provider_modelscope.triggers.clients import shared_client, with_client
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from tests.unit.conftest import TOKEN, connect

WAITS = 4 * POOL_SIZE
STILL_RUNNING = {"task_status": "PROCESSING", "outputs": {}}
SUCCEED = {"task_status": "SUCCEED", "output_images": ["https://images.example/a.png"]}


class Wire:
    """A service that counts its connections, and holds every first look until all of them have come."""

    def __init__(self) -> None:
        self.base_url = ""
        self.opened = 0
        self.looks = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /v1/tasks/"):
                self.looks += 1
                await asyncio.sleep(0)
                body = json.dumps(SUCCEED if self.looks > WAITS else STILL_RUNNING).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the client has closed the connection
        finally:
            writer.close()


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    service = Wire()
    server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
    service.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield service
        server.close()
        await server.wait_closed()  # no connection is left open


def test_many_waits_open_no_more_connections_than_the_pool_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_for_all() -> None:
        async with wire() as service:
            connect(monkeypatch, service.base_url)
            triggers = [
                ModelScopeImageGenerationTrigger(
                    generation_id=str(number),
                    modelscope_conn_id="modelscope_default",
                    poll_interval=1,
                    end_time=time.time() + 60,
                    min_deferral_seconds=0,
                )
                for number in range(WAITS)
            ]
            events = await asyncio.gather(*(anext(trigger.run()) for trigger in triggers))
            assert {event.payload["status"] for event in events} == {"finished"}
            assert 1 <= service.opened <= POOL_SIZE
            assert service.looks >= 2 * WAITS

    asyncio.run(wait_for_all())  # an unclosed session would be a warning, which is an error


def test_one_account_has_one_client_and_another_its_own() -> None:
    async def borrow() -> None:
        account = Account(token=TOKEN, base_url="http://127.0.0.1:9")
        other = Account(token="ms-other", base_url="http://127.0.0.1:9")
        async with shared_client(account) as first:
            async with shared_client(Account(token=TOKEN, base_url="http://127.0.0.1:9")) as second:
                assert first is second
            async with shared_client(other) as third:
                assert third is not first
            async with shared_client(account) as again:
                assert again is first
        async with shared_client(account) as later:
            assert later is not first  # the last to leave has closed it

    asyncio.run(borrow())


def test_an_event_loop_that_is_gone_leaves_nothing_to_the_next() -> None:
    async def borrowed() -> Client:
        async with shared_client(Account(token=TOKEN, base_url="http://127.0.0.1:9")) as client:
            return client

    assert asyncio.run(borrowed()) is not asyncio.run(borrowed())


def test_a_token_that_is_rotated_during_the_wait_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(tokens=["ms-rotated"]) as emulator:
        # What the first read gives is refused; by the time of the second, the deployment has the new token.
        tokens = iter(["ms-expired-1", "ms-rotated"])

        async def read(connection_id: str) -> object:
            from airflow.providers.common.compat.sdk import Connection

            return Connection(
                conn_id=connection_id, conn_type="modelscope", host=emulator.base_url, password=next(tokens)
            )

        monkeypatch.setattr("airflow.providers.common.compat.connection.get_async_connection", read)
        trigger = ModelScopeImageGenerationTrigger(
            generation_id="42",
            modelscope_conn_id="modelscope_default",
            poll_interval=1,
            end_time=0,
            min_deferral_seconds=0,
        )

        async def event() -> object:
            return (await anext(trigger.run())).payload

        payload = asyncio.run(event())
    assert "not found" in str(payload)  # the new token was taken, and its account has no such generation
    assert [exchange.status for exchange in emulator.requests] == [401, 200]


def test_a_bundle_of_authorities_that_the_triggerer_lacks_is_an_error_that_names_it() -> None:
    async def borrow() -> None:
        async with shared_client(Account(token=TOKEN, verify="/no/such/bundle.pem")):
            pass

    with pytest.raises(InvalidConnectionError, match=r"verify.*/no/such/bundle\.pem"):
        asyncio.run(borrow())


def test_tokens_that_are_all_refused_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(tokens=["ms-another"]) as emulator:
        tokens = cycle(["ms-one", "ms-two"])  # two copies of the secrets, each with its own old token

        async def read(connection_id: str) -> object:
            from airflow.providers.common.compat.sdk import Connection

            return Connection(
                conn_id=connection_id, conn_type="modelscope", host=emulator.base_url, password=next(tokens)
            )

        monkeypatch.setattr("airflow.providers.common.compat.connection.get_async_connection", read)

        async def poll(client: Client) -> None:
            raise AuthenticationError("refused")

        with pytest.raises(AuthenticationError):
            asyncio.run(with_client("modelscope_default", poll))


def test_a_proxy_that_refuses_does_not_bring_its_password_into_the_error() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def poll() -> object:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            proxy = f"http://bob:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            account = Account(token=TOKEN, base_url="https://api.example", proxy=proxy)
            async with shared_client(account) as client:
                return await client.poll("42", end_time=time.time() + 5)

    seen = asyncio.run(poll())
    assert isinstance(seen, ServiceUnavailableError)
    assert "407" in str(seen)
    assert "s3cret" not in "".join(traceback.format_exception(seen))


class Secrets:
    """What Airflow answers when a trigger asks for a connection; slow, and failing as often as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, failures: int = 0) -> None:
        self.reads = 0
        self._failures = failures
        monkeypatch.setattr("airflow.providers.common.compat.connection.get_async_connection", self.read)

    async def read(self, connection_id: str) -> object:
        from airflow.providers.common.compat.sdk import Connection

        self.reads += 1
        await asyncio.sleep(0.01)
        if self.reads <= self._failures:
            raise OSError("the secrets backend is away")
        return Connection(conn_id=connection_id, conn_type="modelscope", password=TOKEN)


def test_waits_that_begin_together_read_their_connection_once(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def begin() -> None:
        first, *others = await asyncio.gather(*(account_of("modelscope_default") for _ in range(100)))
        assert all(other == first for other in [*others, await account_of("modelscope_default")])
        assert secrets.reads == 1
        await account_of("another")
        assert secrets.reads == 2
        await account_of("modelscope_default", refused=first)
        assert secrets.reads == 3

    asyncio.run(begin())


def test_a_read_that_failed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = len(accounts.READ_PAUSES) + 1
    monkeypatch.setattr(accounts, "READ_PAUSES", (0.0,) * (tries - 1))
    secrets = Secrets(monkeypatch, failures=tries + 2)

    async def begin() -> None:
        errors = await asyncio.gather(*(account_of("a") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [OSError] * 3
        assert secrets.reads == tries
        # The next read fails in passing, twice, and is tried again.
        assert (await account_of("a")).token == TOKEN

    asyncio.run(begin())
    assert secrets.reads == tries + 3


def test_a_wait_that_is_cancelled_leaves_the_read_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def begin() -> None:
        first, second = (asyncio.create_task(account_of("a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).token == TOKEN

    asyncio.run(begin())
    assert secrets.reads == 1
