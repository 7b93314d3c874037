"""First come, first served: one task for each slot. Slots are freed by generations, not by time."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.waiting import submit_queue
from airflow_provider_modelscope.waiting.submit_queue import SubmitQueue

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from airflow_provider_modelscope.waiting.progress import Place

NOW = 1_700_000_000.0


class Account:
    """A queue whose first slot is taken, with tasks that wait and note when they get one."""

    def __init__(self) -> None:
        self.queue = SubmitQueue()
        self.granted: list[float] = []
        self.tasks: list[asyncio.Task[bool]] = []

    async def take_the_first_slot(self) -> None:
        assert await self.queue.wait_for_slot(queued_at=0, deadline=time.time() + 60)

    async def enqueue(self, *queued_at: float) -> None:
        """Let tasks wait; they are cancelled when the event loop ends."""
        self.tasks += [asyncio.create_task(self._wait(since)) for since in queued_at]
        await settle()

    async def _wait(self, queued_at: float) -> bool:
        is_granted = await self.queue.wait_for_slot(queued_at=queued_at, deadline=time.time() + 3600)
        self.granted.append(queued_at)
        return is_granted

    def generation(
        self, generation_id: str, *, age: float = 0, usual: float | None = None
    ) -> AbstractContextManager[None]:
        return self.queue.track(generation_id, submitted_at=time.time() - age, usual_seconds=usual)


async def settle() -> None:
    """Let every task run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_one_task_is_served_for_each_end_in_order_of_queued_at() -> None:
    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        await account.enqueue(3, 1, 2)
        assert account.granted == []
        for number in (1, 2, 3):
            with account.generation(str(number)):
                await settle()
            await settle()
            assert account.granted == [1, 2, 3][:number]
            assert len(account.queue) == 3 - number

    asyncio.run(run())


def test_slot_of_the_first_task_is_not_taken_by_a_newcomer() -> None:
    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        await account.enqueue(1)
        with account.generation("a"):
            pass
        # The first task is awake and has not run yet when the second one arrives.
        assert not await account.queue.wait_for_slot(queued_at=2, deadline=time.time() + 0.05)
        assert account.granted == [1]

    asyncio.run(run())


def test_slot_is_granted_when_a_generation_is_nearly_over() -> None:
    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        with account.generation("a", age=20, usual=1000):
            await account.enqueue(1)
            assert account.granted == []
            with account.generation("b", age=20, usual=21):
                await settle()
                assert account.granted == [1]

    asyncio.run(run())


def test_failed_wait_for_a_generation_frees_its_slot() -> None:
    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        await account.enqueue(1)
        try:
            with account.generation("a"):
                raise TimeoutError
        except TimeoutError:
            await settle()
        assert account.granted == [1]

    asyncio.run(run())


def test_cancelled_task_makes_room_for_the_next() -> None:
    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        await account.enqueue(1, 2)
        with account.generation("a"):
            pass
        account.tasks[0].cancel()  # after it was woken
        await settle()
        assert account.granted == [2]
        assert len(account.queue) == 0

    asyncio.run(run())


def test_rejected_slot_is_granted_again_at_the_end() -> None:
    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        with account.generation("a", age=20, usual=20):
            await account.enqueue(1, 2)
            assert account.granted == [1]
            account.queue.reject(3.0)
            await settle()
            assert account.granted == [1]
        await settle()
        assert account.granted == [1, 2]

    asyncio.run(run())


def test_wait_ends_at_its_deadline_without_a_slot() -> None:
    async def run() -> None:
        account = Account()
        assert not await account.queue.wait_for_slot(
            queued_at=0, deadline=time.time() - 3600
        )  # though one is due
        await account.take_the_first_slot()
        assert not await account.queue.wait_for_slot(queued_at=1, deadline=time.time() + 0.05)
        assert len(account.queue) == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("position", "running", "expected"),
    [
        (1, {}, None),
        (1, {"a": (10, 30)}, 20),
        (3, {"a": (10, 30)}, 80),
        (1, {"a": (50, 30)}, 0),
        (2, {"a": (50, 30)}, 30),
        (1, {"a": (10, 30), "b": (0, 50)}, 20),
        (2, {"a": (10, 30), "b": (0, 50)}, 50),
        (3, {"a": (10, 30), "b": (0, 50)}, 60),
        (1, {"a": (10, 30), "b": (0, None)}, None),
    ],
)
def test_expected_wait_follows_the_generations_that_run(
    position: int, running: dict[str, tuple[float, float | None]], expected: float | None
) -> None:
    queue = SubmitQueue()
    with ExitStack() as stack:
        for generation_id, (age, usual) in running.items():
            stack.enter_context(queue.track(generation_id, submitted_at=NOW - age, usual_seconds=usual))
        assert queue.expected_seconds(position, now=NOW) == expected


def test_generation_that_ended_is_not_expected_to_end() -> None:
    queue = SubmitQueue()
    with queue.track("a", submitted_at=NOW, usual_seconds=30):
        assert queue.expected_seconds(1, now=NOW) == 30
    assert queue.expected_seconds(1, now=NOW) is None


def test_each_waiting_task_reports_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_queue, "FIRST_REPORT", 0.0)
    places: list[Place] = []

    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        with account.queue.track("42", submitted_at=time.time(), usual_seconds=600, task="draw of Dag a"):
            waits = [
                account.queue.wait_for_slot(
                    queued_at=since, deadline=time.time() + 3600, report=places.append
                )
                for since in range(3)
            ]
            tasks = [asyncio.create_task(wait) for wait in waits]
            await settle()
            for task in tasks:
                task.cancel()

    asyncio.run(run())
    assert [place.position for place in places] == [1, 2, 3]
    assert {one.task for place in places for one in place.running} == {"draw of Dag a"}
    assert [round(place.seconds or 0, -1) for place in places] == [600, 1200, 1800]


def test_task_that_waits_shortly_reports_no_place() -> None:
    places: list[Place] = []

    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        await account.queue.wait_for_slot(queued_at=0, deadline=time.time() + 0.05, report=places.append)

    asyncio.run(run())
    assert places == []


@pytest.mark.parametrize(("report_every", "positions"), [(60.0, [4]), (0.0, [4, 1])])
def test_place_is_reported_once_an_interval_if_it_is_news(
    monkeypatch: pytest.MonkeyPatch, report_every: float, positions: list[int]
) -> None:
    monkeypatch.setattr(submit_queue, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(submit_queue, "REPORT_EVERY", report_every)
    places: list[Place] = []

    async def run() -> None:
        account = Account()
        await account.take_the_first_slot()
        await account.enqueue(1, 2, 3)
        last = account.queue.wait_for_slot(queued_at=4, deadline=time.time() + 3600, report=places.append)
        account.tasks.append(asyncio.create_task(last))
        await settle()
        for task in account.tasks[:3]:
            task.cancel()
        for _ in range(10):
            await settle()

    asyncio.run(run())
    assert [place.position for place in places] == positions
