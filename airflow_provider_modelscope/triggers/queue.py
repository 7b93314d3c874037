"""Wait for a free slot in the triggerer; one event."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import ServiceUnavailableError
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.events import SlotFree

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client
    from airflow_provider_modelscope.waiting.progress import Place


class ModelScopeQueueTrigger(ModelScopeTrigger):
    """Emits ``events.SlotFree`` when the task may submit: when a slot is free, or at the deadline.

    At the deadline the task makes one last attempt, even if no triggerer was running until then.

    All tasks that wait in one triggerer as the same account share one queue: first come, first served. The
    trigger does not submit, because a submission is recorded before and after, which only a worker can do.

    :param queued_at: When the task began to wait, in epoch seconds. The earliest is served first.
    :param start_seconds: If the task had a slot before, and the service rejected its submission: the seconds
        from the grant until the task was on a worker.
    """

    own_arguments = ("queued_at", "start_seconds")

    def __init__(self, *, queued_at: float, start_seconds: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.queued_at = queued_at
        self.start_seconds = start_seconds

    async def wait(self) -> SlotFree:
        """Wait in the account's queue."""
        try:
            await self.with_client(self._wait_for_slot)
        except ServiceUnavailableError as error:  # the connection could not be read until the deadline
            self.log.warning("Making the last attempt without waiting for a slot: %s", error)
        return SlotFree(queued_at=self.queued_at, end_time=self.end_time, granted_at=time.time())

    async def _wait_for_slot(self, client: Client) -> None:
        queue = client.queue
        if self.start_seconds is not None:
            queue.reject(self.start_seconds)
        await asyncio.sleep(self.min_deferral_seconds)  # a task that may not resume yet must not get a slot
        await queue.wait_for_slot(queued_at=self.queued_at, deadline=self.end_time, report=self._report)

    def _report(self, place: Place) -> None:
        self.log.info("%s", place.describe(time.time()))
