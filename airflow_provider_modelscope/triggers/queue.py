"""Wait in the triggerer for a slot to submit; one event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import QueueFullError
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.waiting.backoff import SubmitBackoff

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client


class ModelScopeQueueTrigger(ModelScopeTrigger):
    """Fire when this task may submit: the account has a free slot, or soon will.

    All tasks that wait in one triggerer as the same account share one queue, first come, first served. The
    trigger does not submit: a submission is recorded before and after, which only a worker can do.

    The event is ``{"status": "turn", "since": ..., "end_time": ...}``.

    :param since: When the task began to wait, in epoch seconds. The earliest is served first.
    :param slot_rejected: Whether it was granted a slot before and was rejected.
    """

    def __init__(self, *, since: float, slot_rejected: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.slot_rejected = slot_rejected

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that only this kind of trigger has."""
        return {"since": self.since, "slot_rejected": self.slot_rejected}

    async def event(self) -> dict[str, Any]:
        """Wait in the queue."""
        from airflow_provider_modelscope.triggers.clients import with_client

        return await with_client(self.modelscope_conn_id, self._wait_for_slot)

    async def _wait_for_slot(self, client: Client) -> dict[str, Any]:
        queue = client.queue
        if self.slot_rejected:
            queue.reject()
        await asyncio.sleep(self.min_deferral_seconds)  # a task that may not resume yet must not get a slot
        self.log.info("Waiting for a slot of the account, %d tasks are queued here", len(queue) + 1)
        if not await queue.wait_for_slot(queued_at=self.since, deadline=self.end_time):
            backoff = SubmitBackoff(since=self.since, end_time=self.end_time)
            backoff.give_up(QueueFullError("The account's queue stayed full"), waiting=len(queue) + 1)
        return {"status": "turn", "since": self.since, "end_time": self.end_time}
