"""Wait for credit in the triggerer; one event."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    ModelScopeError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.events import CreditAvailable

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client


class ModelScopeExhaustedTrigger(ModelScopeTrigger):
    """Emits ``events.CreditAvailable`` when a task whose submission was refused may submit again.

    At the deadline the task makes one last attempt, even if no triggerer was running until then.

    All tasks that wait in one triggerer as the same account share its readings. One reading lets as many of
    them submit as it suffices for.

    :param needed: The credit that the task needs; None waits for the next day.
    :param next_day: When the service's next day begins, in epoch seconds. If the credit cannot be read then,
        the task submits.
    """

    def __init__(self, *, needed: float | None, next_day: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.needed = needed
        self.next_day = next_day

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the other triggers do not have."""
        return {"needed": self.needed, "next_day": self.next_day}

    async def wait(self) -> CreditAvailable:
        """Wait for credit, or for the next day."""
        from airflow_provider_modelscope.triggers.clients import with_client

        if self.needed is None:
            await asyncio.sleep(min(self.next_day, self.end_time) - time.time())
            return CreditAvailable()
        while time.time() < self.end_time:
            try:
                # Not one client for all readings: meanwhile the token may be rotated.
                if await with_client(self.modelscope_conn_id, self._claim, end_time=self.end_time):
                    break
            except AuthenticationError as error:  # a token that may submit need not have access to the credit
                if self._cannot_tell(error):
                    break
            except ServiceUnavailableError as error:  # the connection could not be read until the deadline
                self.log.warning("Submitting without knowing the credit: %s", error)
                break
        return CreditAvailable()

    async def _claim(self, client: Client) -> bool:
        """Return whether the next reading of the credit suffices, or the task should submit anyway."""
        try:
            async with asyncio.timeout(self.end_time - time.time()):
                credit = await client.credit.next()
        except TimeoutError:
            return True
        except AuthenticationError:
            raise  # the connection is read again
        except ModelScopeError as error:
            return self._cannot_tell(error)
        self.log.info("Credit: %s. This task needs %g", credit, self.needed)
        return client.credit.claim(self.needed or 0.0)

    def _cannot_tell(self, error: ModelScopeError) -> bool:
        """Return whether to submit although the credit cannot be read."""
        self.log.warning("The credit is unknown: %s", error)
        return time.time() >= self.next_day
