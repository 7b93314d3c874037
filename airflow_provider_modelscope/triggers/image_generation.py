"""Wait for a generation in the triggerer: look, sleep, look; one event."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.schedule import MIN_POLL_INTERVAL
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.waiting import GenerationWait

if TYPE_CHECKING:
    from airflow_provider_modelscope.triggers.client import Client

TICK = 0.25  # seconds: looks that fall due within it wake the event loop once: a third less CPU


class ModelScopeImageGenerationTrigger(ModelScopeTrigger):
    """Fire when a generation has finished or cannot be waited for any longer.

    The event is ``{"status": "finished", "generation_id": ...}``, where finished includes FAILED: the
    resumed task asks for the images, or the reason, itself.

    :param generation_id: The generation to wait for.
    :param poll_interval: Longest time between looks in seconds, at least 1.
    :param submitted_at: When it was submitted, in epoch seconds; None takes the trigger's start.
    :param model: The model that was asked for, where that is known.
    """

    def __init__(
        self,
        *,
        generation_id: str,
        poll_interval: float,
        submitted_at: float | None = None,
        model: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.generation_id = generation_id
        self.poll_interval = poll_interval
        self.submitted_at = submitted_at
        self.model = model

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that only this kind of trigger has."""
        return {
            "generation_id": self.generation_id,
            "poll_interval": self.poll_interval,
            "submitted_at": self.submitted_at,
            "model": self.model,
        }

    async def event(self) -> dict[str, Any]:
        """Wait until the generation has finished."""
        from airflow_provider_modelscope.triggers.client import with_client

        wait = GenerationWait(
            self.generation_id,
            submitted_at=time.time() if self.submitted_at is None else self.submitted_at,
            end_time=self.end_time,
            poll_interval=self.poll_interval,
            model=self.model,
        )

        async def look_until_finished(client: Client) -> None:
            while True:
                look = await client.look(self.generation_id, end_time=self.end_time)
                outcome = wait.after(look, now=time.time())
                if not isinstance(outcome, float):
                    return client.line.call()
                await asyncio.sleep(until_a_tick(outcome, now=asyncio.get_running_loop().time()))

        await with_client(self.modelscope_conn_id, look_until_finished)
        return {"status": "finished", "generation_id": self.generation_id}


def until_a_tick(seconds: float, *, now: float) -> float:
    """Return the seconds of a pause that is cut to end on a tick, where that leaves it a second or more.

    :param now: On the event loop's clock, which all its pauses share.
    """
    cut = seconds - (now + seconds) % TICK
    return cut if cut >= MIN_POLL_INTERVAL else seconds
