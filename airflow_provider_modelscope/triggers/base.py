"""The base of all triggers: wait, then emit one event, but not too early."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_modelscope.exceptions import ModelScopeError
from airflow_provider_modelscope.triggers.events import Event, WaitFailed

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client

Result = TypeVar("Result")

_SHARED_ARGUMENTS = ("modelscope_conn_id", "end_time", "min_deferral_seconds", "deferred_task")


class ModelScopeTrigger(BaseTrigger):
    """Emits one event, and not before the minimum deferral time.

    An error is an event as well, which the resumed task raises. Events are stored in the database and logged,
    so they contain no token and no signed URL.

    There is no ``on_kill``, because ModelScope has no call that cancels a generation.

    :param modelscope_conn_id: The connection to ModelScope.
    :param end_time: When to give up, in epoch seconds: it survives a restart of the triggerer.
    :param min_deferral_seconds: Seconds from the start of the trigger before which it emits no event; tasks
        pass :func:`airflow_provider_modelscope.tasks.deferral.min_deferral_seconds`.
    :param deferred_task: JSON that the event returns unchanged; tasks pass an ``events.DeferredTask``.
    """

    own_arguments: ClassVar[tuple[str, ...]]  # those that the other triggers do not have

    def __init__(
        self,
        *,
        modelscope_conn_id: str,
        end_time: float,
        min_deferral_seconds: float = 8.0,
        deferred_task: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modelscope_conn_id = modelscope_conn_id
        self.end_time = end_time
        self.min_deferral_seconds = min_deferral_seconds
        self.deferred_task = deferred_task
        self._logged: str | None = None

    @property
    def task_name(self) -> str | None:
        """The task that waits, such as ``draw [2] of Dag postcards``; None if Airflow does not say it."""
        if (ti := self.task_instance) is None:
            return None
        index = "" if ti.map_index in (None, -1) else f" [{ti.map_index}]"
        return f"{ti.task_id}{index} of Dag {ti.dag_id}"

    def log_change(self, level: int, text: str) -> None:
        """Log a text, unless it is the last one that was logged."""
        if text != self._logged:
            self._logged = text
            self.log.log(level, "%s", text)

    @abstractmethod
    async def wait(self) -> Event:
        """Wait, and return the event to emit.

        :raises ModelScopeError: the error to emit instead.
        """

    async def with_client(self, work: Callable[[Client], Awaitable[Result]]) -> Result:
        """Return the result of work with the client of the account, see ``clients.with_client``."""
        from airflow_provider_modelscope.triggers.clients import with_client

        return await with_client(self.modelscope_conn_id, work, end_time=self.end_time)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of the class and the arguments to construct it again. The database stores both."""
        names = (*self.own_arguments, *_SHARED_ARGUMENTS)
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {name: getattr(self, name) for name in names},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then yield one event."""
        not_before = time.monotonic() + self.min_deferral_seconds
        try:
            event = await self.wait()
        except ModelScopeError as error:
            event = WaitFailed(error=error)
        await asyncio.sleep(not_before - time.monotonic())
        returned = {} if self.deferred_task is None else {"deferred_task": self.deferred_task}
        yield TriggerEvent({**event.to_json(), **returned})
