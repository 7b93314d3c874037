"""Waiting for credit: how often it is read, and how many waits one reading lets go."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_modelscope.exceptions import ServiceUnavailableError
from airflow_provider_modelscope.protocol.credit import Credit
from airflow_provider_modelscope.waiting import credit as waiting
from airflow_provider_modelscope.waiting.backoff import DAY, NEXT_DAY_JITTER, next_day
from airflow_provider_modelscope.waiting.credit import CreditReadings

CREDIT = Credit(total=3, available=2.5, frozen=0.5)


class Account:
    """An account whose credit is read."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False

    async def read(self) -> Credit:
        self.count += 1
        if self.fails:
            raise ServiceUnavailableError("away")
        return CREDIT


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(waiting, "MAX_INTERVAL", 0.0)


def test_a_thousand_waits_share_each_reading() -> None:
    async def run() -> None:
        account = Account()
        readings = CreditReadings(account.read)
        for count in (1, 2, 3):
            assert set(await asyncio.gather(*(readings.next() for _ in range(1000)))) == {CREDIT}
            assert account.count == count

    asyncio.run(run())


def test_a_reading_is_claimed_by_no_more_than_it_suffices_for() -> None:
    async def run() -> None:
        readings = CreditReadings(Account().read)
        assert not readings.claim(0.2)
        for _ in range(2):
            await readings.next()
            assert [readings.claim(credit) for credit in (1, 2, 1, 0.5, 0.2)] == [
                True,
                False,
                True,
                True,
                False,
            ]

    asyncio.run(run())


def test_after_a_failed_reading_nothing_can_be_claimed() -> None:
    async def run() -> None:
        account = Account()
        readings = CreditReadings(account.read)
        await readings.next()
        account.fails = True
        results = await asyncio.gather(*(readings.next() for _ in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["away"] * 3
        assert not readings.claim(0.2)
        account.fails = False
        await readings.next()
        assert readings.claim(2.5)
        assert account.count == 3

    asyncio.run(run())


def test_a_cancelled_wait_leaves_the_reading_to_the_others() -> None:
    async def run() -> None:
        readings = CreditReadings(Account().read)
        first, second = (asyncio.create_task(readings.next()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == CREDIT

    asyncio.run(run())


def test_nothing_is_read_after_the_last_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(waiting, "MAX_INTERVAL", 3600.0)
        monkeypatch.setattr(waiting, "MIN_INTERVAL", 3600.0)
        readings = CreditReadings(Account().read)
        wait = asyncio.create_task(readings.next())
        await asyncio.sleep(0)
        wait.cancel()
        readings.close()
        await asyncio.gather(wait, return_exceptions=True)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("now", "midnight"),
    [
        (1764345600, 1764345600 + DAY),  # 2025-11-28 16:00 UTC is midnight there
        (1764345599, 1764345600),
        (1764345600 - 3600, 1764345600),
    ],
)
def test_the_next_day_begins_at_midnight_in_shanghai(now: float, midnight: float) -> None:
    for _ in range(100):
        assert midnight <= next_day(now) <= midnight + NEXT_DAY_JITTER
    assert next_day(now) - now <= DAY + NEXT_DAY_JITTER
