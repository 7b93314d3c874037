"""Polling from the triggerer: all waits of an account share one client."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import aiohttp
import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    InvalidConnectionError,
    RateLimitedError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.transport.event_loop import POOL_SIZE, Client
from airflow_provider_modelscope.triggers import accounts
from airflow_provider_modelscope.triggers.accounts import account_of
from airflow_provider_modelscope.triggers.clients import shared_client, with_client
from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger
from airflow_provider_modelscope.waiting.backoff import DEFAULT_COOLDOWN
from tests.unit.conftest import TOKEN, connect

WAITS = 4 * POOL_SIZE
STILL_RUNNING = {"task_status": "PROCESSING", "outputs": {}}
SUCCEED = {"task_status": "SUCCEED", "output_images": ["https://images.example/a.png"]}


class Wire:
    """A service that counts its connections, and responds only after every wait has polled once."""

    def __init__(self) -> None:
        self.base_url = ""
        self.opened = 0
        self.polls = 0

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /v1/tasks/"):
                self.polls += 1
                await asyncio.sleep(0)
                body = json.dumps(SUCCEED if self.polls > WAITS else STILL_RUNNING).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the client has closed the connection
        finally:
            writer.close()


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    service = Wire()
    server = await asyncio.start_server(service.respond, "127.0.0.1", 0)
    service.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield service
        server.close()
        await server.wait_closed()  # no connection is left open


def test_many_waits_share_the_connections_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
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
            assert service.polls >= 2 * WAITS

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
            assert later is not first  # the last user has closed it

    asyncio.run(borrow())


def test_each_event_loop_has_its_own_client() -> None:
    async def borrowed() -> Client:
        async with shared_client(Account(token=TOKEN, base_url="http://127.0.0.1:9")) as client:
            return client

    assert asyncio.run(borrowed()) is not asyncio.run(borrowed())


def test_a_token_rotated_during_the_wait_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Emulator(tokens=["ms-rotated"]) as emulator:
        # The first token is rejected; at the second read the deployment has the new one.
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
    assert "not found" in str(payload)  # the new token was used, and its account has no such generation
    assert [exchange.status for exchange in emulator.requests] == [401, 200]


def test_a_missing_ca_bundle_is_an_error_with_its_path() -> None:
    async def borrow() -> None:
        async with shared_client(Account(token=TOKEN, verify="/no/such/bundle.pem")):
            pass

    with pytest.raises(InvalidConnectionError, match=r"verify.*/no/such/bundle\.pem"):
        asyncio.run(borrow())


def test_tokens_that_are_all_rejected_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_error_of_a_proxy_does_not_contain_its_password() -> None:
    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def poll() -> object:
        async with await asyncio.start_server(reject, "127.0.0.1", 0) as server:
            proxy = f"http://bob:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            account = Account(token=TOKEN, base_url="https://api.example", proxy=proxy)
            async with shared_client(account) as client:
                return await client.poll("42", end_time=time.time() + 5)

    error = asyncio.run(poll())
    assert isinstance(error, ServiceUnavailableError)
    assert "407" in str(error)
    assert "s3cret" not in "".join(traceback.format_exception(error))


class Secrets:
    """Airflow's connections, as a trigger reads them: slow, and with a number of failures first."""

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


def test_waits_that_begin_together_read_the_connection_once(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def begin() -> None:
        first, *others = await asyncio.gather(*(account_of("modelscope_default") for _ in range(100)))
        assert all(other == first for other in [*others, await account_of("modelscope_default")])
        assert secrets.reads == 1
        await account_of("another")
        assert secrets.reads == 2
        await account_of("modelscope_default", rejected=first)
        assert secrets.reads == 3

    asyncio.run(begin())


def test_a_failed_read_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = len(accounts.RETRY_DELAYS) + 1
    monkeypatch.setattr(accounts, "RETRY_DELAYS", (0.0,) * (attempts - 1))
    secrets = Secrets(monkeypatch, failures=attempts + 2)

    async def begin() -> None:
        errors = await asyncio.gather(*(account_of("a") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [OSError] * 3
        assert secrets.reads == attempts
        # The next read fails twice, and is retried.
        assert (await account_of("a")).token == TOKEN

    asyncio.run(begin())
    assert secrets.reads == attempts + 3


def test_a_cancelled_wait_leaves_the_read_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)

    async def begin() -> None:
        first, second = (asyncio.create_task(account_of("a")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).token == TOKEN

    asyncio.run(begin())
    assert secrets.reads == 1


class Sleeps:
    """In place of ``asyncio.sleep`` for seconds: records them, and lets other tasks run instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        self._yield = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.seconds.append(seconds)
        await self._yield(0)


def test_a_429_delays_every_wait_of_the_account(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    generation_id = ModelScopeHook().submit_generation(GenerationRequest(model="a/b", prompt="A cat"))
    sleeps = Sleeps(monkeypatch)
    emulator.fail("poll:429")

    async def poll_twice() -> None:
        async with shared_client(ModelScopeHook().account) as client:
            assert isinstance(await client.poll(generation_id, end_time=time.time() + 3600), RateLimitedError)
            assert not sleeps.seconds
            await client.poll("another", end_time=time.time() + 3600)

    asyncio.run(poll_twice())
    [seconds] = sleeps.seconds
    assert 0.9 * DEFAULT_COOLDOWN < seconds <= 2 * DEFAULT_COOLDOWN


def test_a_cooldown_does_not_outlast_the_deadline(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation_id = ModelScopeHook().submit_generation(GenerationRequest(model="a/b", prompt="A cat"))
    sleeps = Sleeps(monkeypatch)
    emulator.fail("poll:429")

    async def poll_twice() -> None:
        async with shared_client(ModelScopeHook().account) as client:
            await client.poll(generation_id, end_time=time.time() + 3600)
            await client.poll("another", end_time=time.time() + 0.5)

    asyncio.run(poll_twice())
    [seconds] = sleeps.seconds
    assert seconds <= 0.5


def test_a_wait_without_a_connection_has_not_started_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the timeouts of queued requests would run while they wait for a connection."""
    started = 0

    async def count(session: object, context: object, params: object) -> None:
        nonlocal started
        started += 1

    async def poll_all() -> None:
        async with wire() as service:
            account = Account(token=TOKEN, base_url=service.base_url)
            async with shared_client(account) as client:
                trace = aiohttp.TraceConfig()
                trace.on_request_start.append(count)
                trace.freeze()
                client._session.trace_configs.append(trace)
                end_time = time.time() + 60
                polls = [
                    asyncio.create_task(client.poll(str(number), end_time=end_time))
                    for number in range(WAITS)
                ]
                await asyncio.sleep(0)
                assert started == POOL_SIZE
                await asyncio.gather(*polls)
                assert started == WAITS

    asyncio.run(poll_all())
