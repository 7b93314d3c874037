"""Wait in the triggerer for room in the account's queue, and submit there; one event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    QueueFullError,
    RateLimitedError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.request import GenerationRequest
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.waiting import QueueWait

if TYPE_CHECKING:
    from airflow_provider_modelscope.triggers.client import Client
    from airflow_provider_modelscope.triggers.line import Line, Place

LATE = 10.0  # seconds past the deadline; later nobody may be left to tell what was submitted
HAND_BACK_PAUSE = 30.0  # seconds before a worker is asked to try, where nothing tells that there is room


class ModelScopeSubmissionTrigger(ModelScopeTrigger):
    """Wait in line until the account has room, and submit: a worker would leave that room idle for seconds.

    All that wait in one triggerer as the same account stand in one line, first come, first served. The first
    tries when a generation of the account ends, or after a pause that grows with each refusal.

    The event is ``{"status": "submitted", "generation_id": ..., "submitted_at": ..., "request": ...}``; or,
    where the worker is to submit, ``{"status": "room", "since": ..., "end_time": ...}``.

    :param request: The parameters of a ``GenerationRequest``. None where they hold pictures or signed URLs,
        which would have to lie in Airflow's database: the worker submits.
    :param since: When the task began to wait, in epoch seconds: its place in the line.
    """

    def __init__(self, *, request: Mapping[str, Any] | None, since: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.request = request
        self.since = since

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that only this kind of trigger has."""
        return {"request": self.request, "since": self.since}

    async def event(self) -> dict[str, Any]:
        """Wait in line, then submit."""
        from airflow_provider_modelscope.triggers.client import with_client

        return await with_client(self.modelscope_conn_id, self._stand_in_line)

    async def _stand_in_line(self, client: Client) -> dict[str, Any]:
        request = None if self.request is None else GenerationRequest(**self.request)
        queue = QueueWait(since=self.since, end_time=self.end_time, refused=True)
        with client.line.place(self.since) as place:
            self.log.info("Waiting for room in the account's queue to submit; %d wait before it", place.ahead)
            # Not later: what was submitted must be told at once. A triggerer that ends in the second before
            # Airflow has the event leaves nothing behind, and the next one submits again.
            await asyncio.sleep(self.settling_seconds)
            while True:
                await self._become_first(client.line, place, queue)
                if request is None:
                    await place.wait(min(HAND_BACK_PAUSE, self.end_time - time.time()))
                    client.line.hold()
                    return {"status": "room", "since": self.since, "end_time": self.end_time}
                place.called.clear()  # what called before is answered by this try
                try:
                    generation_id = await client.submit(request, end_time=self.end_time)
                except (RateLimitedError, ServiceUnreachableError) as error:
                    pause = queue.after(error, now=time.time(), waiting=len(client.line))
                    self.log.info("Submitting again in %.0f s or when a generation ends: %s", pause, error)
                    await place.wait(pause)
                else:
                    self.log.info("ModelScope accepted generation %s", generation_id)
                    return {
                        "status": "submitted",
                        "generation_id": generation_id,
                        "submitted_at": time.time(),
                        "request": self.request,
                    }

    async def _become_first(self, line: Line, place: Place, queue: QueueWait) -> None:
        """Wait until nobody is before it.

        :raises QueueFullError: where the time is up first.
        """
        while True:
            remaining = self.end_time - time.time()
            is_first = not place.ahead and not line.held
            if is_first and remaining > -LATE:
                return
            if remaining <= 0:
                full = f"The account's queue stayed full, and {place.ahead} tasks waited before this one"
                queue.give_up(QueueFullError(full), waiting=len(line))
            if place.ahead:
                await place.wait(remaining)
            else:
                await asyncio.sleep(min(remaining, line.held))
