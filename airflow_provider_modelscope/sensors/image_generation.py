"""Wait for a generation that another task submitted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_modelscope.exceptions import GenerationTimeoutError
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import push_links
from airflow_provider_modelscope.metrics import count_failure
from airflow_provider_modelscope.tasks.deferral import DEFER_AFTER, wait_or_defer
from airflow_provider_modelscope.tasks.task import ModelScopeTask
from airflow_provider_modelscope.triggers.events import generation_id_of
from airflow_provider_modelscope.validation import check_all, check_seconds
from airflow_provider_modelscope.waiting.poll import POLL_INTERVAL, PollSchedule, end_of_wait

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_modelscope.protocol.generation import Generation


class ModelScopeImageGenerationSensor(ModelScopeTask, BaseSensorOperator):
    """Wait until a generation has succeeded, and return its ``generation_id``.

    A generation that FAILED stays so, and fails the task without retries; submit anew. Faults that pass do
    not end a wait that still has time.

    :param generation_id: What the submit task returned.
    :param modelscope_conn_id: The connection that submitted it.
    :param poke_interval: Longest time between looks in seconds, at least 1; most are closer. In mode
        ``reschedule`` the time between them.
    :param timeout: Seconds from submission after which the task fails; from the sensor's start where no
        submit task stands upstream.
    :param deferrable: Wait in the triggerer, without a worker. Default: Airflow's ``default_deferrable``.
    :param defer_after: Age of the generation in seconds until which a deferrable task looks from its worker:
        a deferral costs some 11 s, in which a fast model has finished. 0 looks once, then frees the worker.
    """

    template_fields: Sequence[str] = ("generation_id", "modelscope_conn_id")

    def __init__(
        self,
        *,
        generation_id: str | XComArg,
        modelscope_conn_id: str = ModelScopeHook.default_conn_name,
        poke_interval: float = POLL_INTERVAL,
        timeout: float = 900,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float = DEFER_AFTER,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.generation_id = generation_id
        self.modelscope_conn_id = modelscope_conn_id
        self.deferrable = deferrable
        self.defer_after = defer_after

    def execute(self, context: Context) -> Any:
        """Look, wait where it still runs, and return the ``generation_id``."""
        with self._ending_as_sensors_do():
            wait = self._wait(context)
            model_url = self.hook.account.model_url(wait.model) if wait.model else None
            push_links(context, model_url=model_url, has_images=False)
        if not self.deferrable and (self.reschedule or self.exponential_backoff):
            return super().execute(context)  # Airflow's own loop: the Dag's author says when to look
        with self._ending_as_sensors_do():
            defer_after = self.defer_after if self.deferrable else None
            return self._succeeded(wait_or_defer(self, wait, self.hook, defer_after=defer_after))

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Look once."""
        with self._ending_as_sensors_do():
            wait = self._wait(context)
            outcome = wait.after(self.hook.poll(wait.generation_id), now=time.time())
            if isinstance(outcome, float):
                return False
            return PokeReturnValue(is_done=True, xcom_value=self._succeeded(outcome))

    def _wait(self, context: Context) -> PollSchedule:
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.xcoms import Submission

        check_all(  # timeout and poke_interval are checked by Airflow's own sensor
            lambda: checked_id(self.generation_id),
            lambda: check_seconds(defer_after=self.defer_after),
            lambda: self.hook.account,
        )
        generation_id = checked_id(self.generation_id)
        submission = Submission.find(generation_id, task=self, context=context)
        started_at = context["ti"].start_date.timestamp()
        since = submission.submitted_at if submission else started_at
        return PollSchedule(
            generation_id,
            submitted_at=since,
            end_time=end_of_wait(self.timeout, self.execution_timeout, since=since, started_at=started_at),
            poll_interval=self.poke_interval,
            model=submission.model if submission else None,
            size=submission.size if submission else None,
            fast_poll_until_age=DEFER_AFTER,
        )

    def execute_complete(self, context: Context, event: Any = None) -> str:
        """Go on after the wait in the triggerer."""
        from airflow_provider_modelscope.tasks.storing import fetch_finished_generation

        with self._ending_as_sensors_do():
            return self._succeeded(fetch_finished_generation(self.hook, generation_id_of(event)))

    def _succeeded(self, generation: Generation) -> str:
        generation.raise_for_failure(retry_resubmits=False)
        return generation.generation_id

    @contextmanager
    def _ending_as_sensors_do(self) -> Iterator[None]:
        """Time out with Airflow's own error, and skip instead of failing where that is asked for."""
        try:
            try:
                with count_failure(self):
                    yield
            except GenerationTimeoutError as error:
                raise AirflowSensorTimeout(str(error)) from error
        except AirflowSkipException:
            raise
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"Skipped instead of failed: {error}") from error
            raise
