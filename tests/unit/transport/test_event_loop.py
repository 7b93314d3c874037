"""One client polls for all waits of an account: few connections, one cooldown, no secrets in errors."""

from __future__ import annotations

import asyncio
import json
import re
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from typing import Any

import aiohttp
import pytest

from airflow_provider_modelscope.exceptions import (
    InvalidConnectionError,
    RateLimitedError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.transport.event_loop import (
    MAX_POLL_BODY,
    POOL_SIZE,
    TICK,
    Client,
    align_to_tick,
)
from airflow_provider_modelscope.waiting.poll import PollSchedule
from tests.support.raw_server import http
from tests.unit.conftest import TOKEN

WAITS = 4 * POOL_SIZE
LARGE = {
    name: beginning + 2 * MAX_POLL_BODY * b"A"
    for name, beginning in {
        "json": b'{"input":"',
        "succeeded": b'{"task_status":"SUCCEED","input":"',
        "quoted": b'{"prompt":"\\"task_status\\": \\"PROCESSING\\"","input":"',
        "running": b'{"request_id":"","task_status": "processing", "input":"',
        "html": b"<html>",
    }.items()
}
RUNNING = json.dumps({"task_status": "PROCESSING", "outputs": {}}).encode()
LATER = time.time() + 3600


class Service:
    """A service in the event loop of the test. It rejects polls of the id "429" for five minutes.

    Its responses to the ids in ``LARGE`` are larger than a poll reads.
    """

    def __init__(self) -> None:
        self.opened = 0  # connections
        self.polled: list[str] = []  # ids in the order of their polls
        self.heads: list[str] = []
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        with closing(writer), suppress(asyncio.IncompleteReadError):  # until the client closes the connection
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                [generation_id] = re.findall("^GET /v1/tasks/([^ ]+)", head)
                self.polled.append(generation_id)
                await self.may_respond.wait()
                if generation_id == "429":
                    writer.write(http(b"{}", "Retry-After: 300", "Content-Length: 2", status="429 Slow"))
                elif generation_id in LARGE:
                    writer.write(http(LARGE[generation_id], f"Content-Length: {len(LARGE[generation_id])}"))
                else:
                    writer.write(http(RUNNING, f"Content-Length: {len(RUNNING)}", "Set-Cookie: a=b"))


@asynccontextmanager
async def client_and_service(request_timeout: float = 30.0) -> AsyncIterator[tuple[Client, Service]]:
    service = Service()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    url = f"http://localhost:{server.sockets[0].getsockname()[1]}"
    account = Account(token=TOKEN, base_url=url, request_timeout=request_timeout)
    async with server:
        client = Client(account)
        try:
            yield client, service
        finally:
            await client.close()
        server.close()
        await server.wait_closed()  # no connection is left open


async def poll_all(client: Client) -> list[Any]:
    return list(await asyncio.gather(*(client.poll(str(number), end_time=0) for number in range(WAITS))))


def test_many_waits_share_few_connections() -> None:
    async def run() -> None:
        async with client_and_service() as (client, service):
            for _ in range(2):
                assert {polled.status for polled in await poll_all(client)} == {"PROCESSING"}
            assert 1 <= service.opened <= POOL_SIZE
            assert len(service.polled) == 2 * WAITS

    asyncio.run(run())


def test_a_request_starts_only_when_a_connection_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0
    get = aiohttp.ClientSession.get

    def counted(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
        nonlocal started
        started += 1
        return get(self, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "get", counted)

    async def run() -> None:
        async with client_and_service() as (client, service):
            service.may_respond.clear()
            polls = asyncio.create_task(poll_all(client))
            while len(service.polled) < POOL_SIZE:
                await asyncio.sleep(0)
            assert started == POOL_SIZE
            service.may_respond.set()
            await polls
        assert started == WAITS

    asyncio.run(run())


def test_a_wait_for_a_connection_ends_after_its_deadline() -> None:
    async def run() -> None:
        async with client_and_service(request_timeout=0.01) as (client, service), AsyncExitStack() as others:
            for _ in range(POOL_SIZE):
                await others.enter_async_context(client.connections)
            async with asyncio.timeout(60):
                assert isinstance(await client.poll("1", end_time=0), ServiceUnavailableError)
            assert service.polled == []

    asyncio.run(run())


def test_a_large_response_is_left_to_a_worker_unless_it_is_a_page() -> None:
    async def run() -> None:
        async with client_and_service() as (client, _):
            schedule = PollSchedule("json", submitted_at=0, end_time=LATER, poll_interval=1)
            await client.wait_until_finished(schedule)
            for name in ("json", "succeeded", "quoted"):
                assert await client.poll(name, end_time=0) is None
            assert isinstance(await client.poll("html", end_time=0), ServiceUnavailableError)

    asyncio.run(run())


def test_a_large_response_may_say_that_the_generation_is_running() -> None:
    async def run() -> None:
        async with client_and_service() as (client, _):
            polled = await client.poll("running", end_time=0)
            assert isinstance(polled, Generation)
            assert (polled.status, polled.is_finished) == ("PROCESSING", False)

    asyncio.run(run())


def test_after_a_429_all_waits_of_the_account_slow_down() -> None:
    async def run() -> None:
        async with client_and_service() as (client, service), client_and_service() as (other, _):
            assert isinstance(await client.poll("429", end_time=LATER), RateLimitedError)
            waiting = asyncio.create_task(client.poll("1", end_time=LATER))
            for _ in range(3):  # another account does not wait
                assert isinstance(await other.poll("2", end_time=LATER), Generation)
            assert service.polled == ["429"]
            waiting.cancel()

    asyncio.run(run())


def test_a_cooldown_ends_with_the_wait() -> None:
    async def run() -> None:
        async with client_and_service() as (client, service), asyncio.timeout(60):
            await client.poll("429", end_time=LATER)
            for end_time in (0.0, time.time()):
                assert isinstance(await client.poll("1", end_time=end_time), Generation)
            assert service.polled == ["429", "1", "1"]

    asyncio.run(run())


def test_an_id_is_quoted_once() -> None:
    async def run() -> None:
        async with client_and_service() as (client, service):
            await client.poll("a/b?c %", end_time=0)
            assert service.polled == ["a%2Fb%3Fc%20%25"]

    asyncio.run(run())


def test_no_cookie_is_kept() -> None:
    async def run() -> None:
        async with client_and_service() as (client, service):
            for _ in range(2):
                await client.poll("1", end_time=0)
            assert "cookie" not in service.heads[1].lower()

    asyncio.run(run())


def test_a_missing_ca_bundle_is_an_error_that_names_it() -> None:
    async def run() -> None:
        Client(Account(token=TOKEN, verify="/no/such/bundle.pem"))

    with pytest.raises(InvalidConnectionError, match=r"verify.*/no/such/bundle\.pem"):
        asyncio.run(run())


def test_an_error_of_a_proxy_does_not_show_its_password() -> None:
    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"", "Content-Length: 0", status="407 Proxy Authentication Required"))
        writer.close()

    async def run() -> object:
        async with await asyncio.start_server(reject, "127.0.0.1", 0) as server:
            proxy = f"http://bob:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            client = Client(Account(token=TOKEN, base_url="https://api.example", proxy=proxy))
            try:
                return await client.poll("42", end_time=0)
            finally:
                await client.close()

    error = asyncio.run(run())
    assert isinstance(error, ServiceUnavailableError)
    assert error.generation_id == "42"
    assert "407" in str(error)
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("seconds", [1, 1.1, 1.3, 2, 4.76, 15])
@pytest.mark.parametrize("now", [0.0, 1234.56, 1234.75])
def test_sleeps_end_on_ticks_and_are_never_below_a_second(seconds: float, now: float) -> None:
    aligned = align_to_tick(seconds, now=now)
    assert max(1, seconds - TICK) <= aligned <= seconds
    assert aligned == seconds or ((now + aligned) / TICK).is_integer()


@pytest.mark.parametrize("seconds", [0.001, 0.5, 0.99])
def test_a_short_sleep_before_the_deadline_is_not_shortened(seconds: float) -> None:
    assert align_to_tick(seconds, now=1234.56) == seconds
