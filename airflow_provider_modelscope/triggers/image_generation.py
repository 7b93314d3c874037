"""Wait for a generation in the triggerer: poll, sleep, poll; one event."""

from __future__ import annotations

import time
from typing import Any

from airflow_provider_modelscope.exceptions import ServiceUnavailableError
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.events import GenerationFinished
from airflow_provider_modelscope.waiting.poll import PollSchedule


class ModelScopeImageGenerationTrigger(ModelScopeTrigger):
    """Emits ``events.GenerationFinished``, or the error of the wait.

    :param generation_id: The generation to wait for.
    :param poll_interval: Longest time between polls in seconds, at least 1.
    :param submitted_at: When it was submitted, in epoch seconds; None means when the trigger starts.
    :param model: The model of the request, if known.
    :param size: The size of the request, if it has one.
    """

    own_arguments = ("generation_id", "poll_interval", "submitted_at", "model", "size")

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

    async def wait(self) -> GenerationFinished:
        """Poll until the generation has finished."""
        schedule = PollSchedule(
            self.generation_id,
            submitted_at=time.time() if self.submitted_at is None else self.submitted_at,
            end_time=self.end_time,
            poll_interval=self.poll_interval,
            model=self.model,
            size=self.size,
            is_continued=True,
        )
        if schedule.usual_seconds:
            self.log.info("Waiting for %s", schedule.running.describe(time.time()))
        try:
            await self.with_client(lambda client: client.wait_until_finished(schedule, task=self.task_name))
        except ServiceUnavailableError as error:  # the connection could not be read until the deadline
            schedule.observe(error, now=time.time())
        return GenerationFinished(generation_id=self.generation_id)
