"""Wait in the triggerer for a turn to submit; one event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import QueueFullError
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.waiting.backoff import SubmitBackoff

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client


class ModelScopeQueueTrigger(ModelScopeTrigger):
    """Fire when it is this task's turn to submit: the account's queue has room, or soon will.

    All that wait in one triggerer as the same account stand in one line, first come, first served. It does
    not submit by itself: what is paid for is recorded before and after, which only a worker can do.

    The event is ``{"status": "turn", "since": ..., "end_time": ...}``.

    :param since: When the task began to wait, in epoch seconds: its place in the line.
    :param model: The model of its request.
    :param size: The size of its request, if it has one.
    :param slot_rejected: Whether it had its turn already and found no room.
    """

    def __init__(
        self, *, since: float, model: str, size: str | None = None, slot_rejected: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.since = since
        self.model = model
        self.size = size
        self.slot_rejected = slot_rejected

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that only this kind of trigger has."""
        return {
            "since": self.since,
            "model": self.model,
            "size": self.size,
            "slot_rejected": self.slot_rejected,
        }

    async def event(self) -> dict[str, Any]:
        """Wait in line."""
        from airflow_provider_modelscope.triggers.clients import with_client

        return await with_client(self.modelscope_conn_id, self._stand_in_line)

    async def _stand_in_line(self, client: Client) -> dict[str, Any]:
        line = client.line
        if self.slot_rejected:
            line.refuse()
        await asyncio.sleep(self.min_deferral_seconds)  # whoever cannot use its turn yet is not to have it
        self.log.info("Waiting for room in the account's queue; %d wait in this triggerer", len(line) + 1)
        if not await line.turn(since=self.since, end_time=self.end_time, model=self.model, size=self.size):
            queue = SubmitBackoff(since=self.since, end_time=self.end_time)
            queue.give_up(QueueFullError("The account's queue stayed full"), waiting=len(line) + 1)
        return {"status": "turn", "since": self.since, "end_time": self.end_time}
