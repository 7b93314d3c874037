"""Wait for a generation in the triggerer: look, sleep, look; one event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_modelscope.exceptions import AuthenticationError, ModelScopeError
from airflow_provider_modelscope.waiting import GenerationWait

if TYPE_CHECKING:
    from airflow_provider_modelscope.account import Account

# Airflow fails a task whose trigger fires before the scheduler has read that the task deferred: on 3.3.2
# up to a third of them within 3 s, none from 5 s on (apache/airflow issues 66374, 67287, 71580, 72716).
SETTLING_SECONDS = 5.0


class ModelScopeImageGenerationTrigger(BaseTrigger):
    """Fire once, when a generation has finished or cannot be waited for any longer.

    The event is ``{"status": "finished", "generation_id": ...}``, where finished includes FAILED: the
    resumed task asks for the images, or the reason, itself. Otherwise ``{"status": "error",
    "generation_id": ..., "error": ...}`` holds the error to raise. Neither holds a URL or a token: events
    are kept in the database and logged.

    :param generation_id: The generation to wait for.
    :param modelscope_conn_id: The connection that submitted it.
    :param poll_interval: Seconds between looks, at least 1.
    :param end_time: When to give up, in epoch seconds.
    :param submitted_at: When the generation was submitted, in epoch seconds; None takes the trigger's start.
    :param settling_seconds: Seconds from its start in which it does not fire, whatever it has seen.
    """

    def __init__(
        self,
        *,
        generation_id: str,
        modelscope_conn_id: str,
        poll_interval: float,
        end_time: float,
        submitted_at: float | None = None,
        settling_seconds: float = SETTLING_SECONDS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generation_id = generation_id
        self.modelscope_conn_id = modelscope_conn_id
        self.poll_interval = poll_interval
        self.end_time = end_time
        self.submitted_at = submitted_at
        self.settling_seconds = settling_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of this class and the arguments that make it again, in plain text."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "generation_id": self.generation_id,
                "modelscope_conn_id": self.modelscope_conn_id,
                "poll_interval": self.poll_interval,
                "end_time": self.end_time,
                "submitted_at": self.submitted_at,
                "settling_seconds": self.settling_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event."""
        settled = time.monotonic() + self.settling_seconds
        event: dict[str, Any] = {"status": "finished", "generation_id": self.generation_id}
        try:
            await self._wait()
        except ModelScopeError as error:
            event |= {"status": "error", "error": error.to_json()}
        await asyncio.sleep(settled - time.monotonic())
        yield TriggerEvent(event)

    async def _wait(self) -> None:
        """Return when the generation has finished; raise what ends the wait otherwise."""
        wait = GenerationWait(
            self.generation_id,
            submitted_at=time.time() if self.submitted_at is None else self.submitted_at,
            end_time=self.end_time,
            poll_interval=self.poll_interval,
        )
        account = await self._account()
        while True:
            try:
                return await self._wait_as(account, wait)
            except AuthenticationError:
                # The token may have been rotated during the wait: that is no verdict on the new one.
                refused, account = account, await self._account()
                if account == refused:
                    raise

    async def _wait_as(self, account: Account, wait: GenerationWait) -> None:
        from airflow_provider_modelscope.triggers.client import shared_client

        async with shared_client(account) as client:
            while True:
                look = await client.look(self.generation_id, end_time=self.end_time)
                outcome = wait.after(look, now=time.time())
                if not isinstance(outcome, float):
                    return
                await asyncio.sleep(outcome)

    async def _account(self) -> Account:
        """Read the connection, not once a look: each time is a round trip through the supervisor."""
        from airflow.providers.common.compat.connection import get_async_connection

        from airflow_provider_modelscope.account import Account

        return Account.from_connection(await get_async_connection(self.modelscope_conn_id))
