"""Wait for a generation in the triggerer: look, sleep, look; one event."""

from __future__ import annotations

import time
from typing import Any

from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.waiting.poll import PollSchedule


class ModelScopeImageGenerationTrigger(ModelScopeTrigger):
    """Fire when a generation has finished or cannot be waited for any longer.

    The event is ``{"status": "finished", "generation_id": ...}``, where finished includes FAILED: the
    resumed task asks for the images, or the reason, itself.

    :param generation_id: The generation to wait for.
    :param poll_interval: Longest time between looks in seconds, at least 1.
    :param submitted_at: When it was submitted, in epoch seconds; None takes the trigger's start.
    :param model: The model of the request, if that is known.
    :param size: The size of the request, if it has one.
    """

    def __init__(
        self,
        *,
        generation_id: str,
        poll_interval: float,
        submitted_at: float | None = None,
        model: str | None = None,
        size: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.generation_id = generation_id
        self.poll_interval = poll_interval
        self.submitted_at = submitted_at
        self.model = model
        self.size = size

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that only this kind of trigger has."""
        return {
            "generation_id": self.generation_id,
            "poll_interval": self.poll_interval,
            "submitted_at": self.submitted_at,
            "model": self.model,
            "size": self.size,
        }

    async def event(self) -> dict[str, Any]:
        """Wait until the generation has finished."""
        from airflow_provider_modelscope.triggers.clients import with_client

        wait = PollSchedule(
            self.generation_id,
            submitted_at=time.time() if self.submitted_at is None else self.submitted_at,
            end_time=self.end_time,
            poll_interval=self.poll_interval,
            model=self.model,
            size=self.size,
        )
        await with_client(self.modelscope_conn_id, lambda client: client.wait_until_finished(wait))
        return {"status": "finished", "generation_id": self.generation_id}
