"""What both triggers are: one event, not too soon."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_modelscope.exceptions import ModelScopeError


class ModelScopeTrigger(BaseTrigger):
    """Fires once, and not before the task has settled in its deferral.

    An error is an event too: ``{"status": "error", "error": ...}`` holds what the task is to raise. No event
    holds a token or a signed URL: events are kept in the database and logged.

    :param modelscope_conn_id: The connection of the account.
    :param end_time: When to give up, in epoch seconds.
    :param min_deferral_seconds: Seconds from its start in which it does not fire, whatever it has seen; see
        :func:`airflow_provider_modelscope.tasks.deferral.min_deferral_seconds`, which a task that defers passes.
    """

    def __init__(
        self, *, modelscope_conn_id: str, end_time: float, min_deferral_seconds: float = 8.0
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modelscope_conn_id = modelscope_conn_id
        self.end_time = end_time
        self.min_deferral_seconds = min_deferral_seconds

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the kinds of trigger do not share."""

    @abstractmethod
    async def event(self) -> dict[str, Any]:
        """Wait, and return the event.

        :raises ModelScopeError: what is to be the event instead.
        """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of this class and the arguments that make it again, in plain text."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                **self.arguments(),
                "modelscope_conn_id": self.modelscope_conn_id,
                "end_time": self.end_time,
                "min_deferral_seconds": self.min_deferral_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event."""
        settled = time.monotonic() + self.min_deferral_seconds
        try:
            event = await self.event()
        except ModelScopeError as error:
            event = {"status": "error", "error": error.to_json()}
        await asyncio.sleep(settled - time.monotonic())
        yield TriggerEvent(event)
