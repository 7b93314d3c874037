"""Wait for credit in the triggerer; one event."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    ModelScopeError,
    ModelScopeRetryableError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.triggers.base import ModelScopeTrigger
from airflow_provider_modelscope.triggers.events import CreditAvailable, CreditRead

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

    own_arguments = ("needed", "next_day")

    def __init__(self, *, needed: float | None, next_day: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.needed = needed
        self.next_day = next_day

    async def wait(self) -> CreditAvailable:
        """Wait for credit, or for the next day."""
        if self.needed is None:
            await asyncio.sleep(min(self.next_day, self.end_time) - time.time())
            return CreditAvailable()
        while time.time() < self.end_time:
            try:
                # Not one client for all readings: meanwhile the token may be rotated.
                if await self.with_client(self._claim):
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
        self.log_change(logging.INFO, f"Credit: {credit}. This task needs {self.needed:g}")
        return client.credit.claim(self.needed or 0.0)

    def _cannot_tell(self, error: ModelScopeError) -> bool:
        """Return whether to submit although the credit cannot be read."""
        self.log_change(logging.WARNING, f"The credit is unknown: {error.message}")
        return time.time() >= self.next_day


class ModelScopeCreditTrigger(ModelScopeTrigger):
    """Emits ``events.CreditRead`` when an account has enough credit, or at the deadline.

    All waits in one triggerer for the same account share its readings. A reading that fails for a reason that
    may pass is no reason to end the wait.

    :param min_available: The credit to wait for.
    """

    own_arguments = ("min_available",)

    def __init__(self, *, min_available: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_available = min_available

    async def wait(self) -> CreditRead:
        """Wait for enough credit."""
        while (seconds := self.end_time - time.time()) > 0:
            try:
                async with asyncio.timeout(seconds):
                    # Not one client for all readings: meanwhile the token may be rotated.
                    credit = await self.with_client(lambda client: client.credit.next())
            except TimeoutError:
                break
            except ModelScopeRetryableError as error:
                self.log_change(logging.WARNING, f"The credit is unknown: {error.message}")
                continue
            self.log_change(logging.INFO, f"Credit: {credit}. Waiting for {self.min_available:g}")
            if credit.available >= self.min_available:
                return CreditRead(available=credit.available)
        return CreditRead(available=None)
