"""Wait for a generation that another task submitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_modelscope.compat import conf
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.sensors.errors import sensor_errors
from airflow_provider_modelscope.tasks.deferral import (
    DEFER_AFTER,
    POLL_INTERVAL,
    can_defer,
    resumes,
    wait_or_defer,
)
from airflow_provider_modelscope.tasks.task import ModelScopeTask
from airflow_provider_modelscope.validation import check_all, raise_invalid, seconds_errors

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.waiting.poll import PollSchedule


class ModelScopeImageGenerationSensor(ModelScopeTask, BaseSensorOperator):
    """Wait until a generation has succeeded, and return its ``generation_id``.

    A generation that FAILED fails the task without retries: submit a new one. Transient errors do not end the
    wait before its deadline.

    :param generation_id: The id that the submit task returned.
    :param modelscope_conn_id: The connection that submitted the generation.
    :param poke_interval: Longest time between two polls, in seconds. Most polls are closer together, but
        never closer than 1 s. In mode ``reschedule``: the time between two polls.
    :param timeout: Seconds from the submission after which the task fails; at least 1. They count from the
        start of the sensor if no submit task is upstream, or if a person has cleared the sensor.
    :param deferrable: Wait in the triggerer, without a worker. Default: Airflow's ``default_deferrable``.
    :param defer_after: How old a generation may become, in seconds, before a deferrable task leaves its
        worker. A fast model has finished by then, and a deferral takes about 11 s. 0 polls once, then frees
        the worker.
    """

    template_fields: Sequence[str] = ("generation_id", "modelscope_conn_id")
    has_images = False

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
        self._check_constants(ModelScopeImageGenerationSensor)

    def _constant_checks(self) -> list[Callable[[], object]]:
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.tasks.parse_time import constant_checks

        return [
            *constant_checks(self, "generation_id", checked_id),
            lambda: raise_invalid(self._option_errors()),
        ]

    def _option_errors(self) -> Iterator[str]:
        yield from seconds_errors(least=1, timeout=self.timeout)
        yield from seconds_errors(defer_after=self.defer_after)

    def execute(self, context: Context) -> Any:
        """Poll until the generation has succeeded, and return the ``generation_id``."""
        from airflow_provider_modelscope.triggers.events import DeferredTask

        if not self.deferrable and (self.reschedule or self.exponential_backoff):
            return super().execute(context)  # Airflow's own loop: the author of the Dag says when to poll
        with sensor_errors(self):
            wait = self._begin(context)
            defer_after = (
                self.defer_after if self.deferrable and can_defer(self, context, self.hook) else None
            )
            resume_with = DeferredTask(attempt=context["ti"].try_number)
            return self._succeeded(
                wait_or_defer(self, wait, self.hook, defer_after=defer_after, resume_with=resume_with)
            )

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Poll once."""
        with sensor_errors(self):
            wait = self._begin(context)
            outcome = wait.observe(self.hook.poll(wait.generation_id), now=time.time())
            if isinstance(outcome, float):
                return False
            return PokeReturnValue(is_done=True, xcom_value=self._succeeded(outcome))

    @resumes
    def execute_complete(self, context: Context, event: Any = None) -> str:
        """Resume after waiting in the triggerer."""
        from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
        from airflow_provider_modelscope.triggers.events import GenerationFinished, read_event

        with sensor_errors(self):
            self._find_submission(str(self.generation_id), context)  # for the link to its model
            generation_id = read_event(event, GenerationFinished).generation_id
            return self._succeeded(fetch_finished_generation(self.hook, generation_id))

    def _begin(self, context: Context) -> PollSchedule:
        """Validate the parameters, link the images and the model, and return the wait."""
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.waiting.poll import PollSchedule, end_of_wait

        check_connection = self._refuse_secrets("generation_id")
        generation_id, *_ = check_all(
            partial(checked_id, self.generation_id),
            check_connection,
            lambda: raise_invalid(self._option_errors()),
        )
        submission = self._find_submission(generation_id, context)
        ti = context["ti"]
        started_at = first_poll_at = ti.start_date.timestamp()
        was_cleared = _was_cleared(ti, self)
        if self.reschedule and (was_cleared or not submission):  # each poll has a start of its own
            first = ti.get_first_reschedule_date(context)
            first_poll_at = first.timestamp() if first else started_at
        submitted_at = submission.submitted_at if submission else first_poll_at
        since = first_poll_at if was_cleared else submitted_at
        return PollSchedule(
            generation_id,
            submitted_at=submitted_at,
            end_time=end_of_wait(self.timeout, self.execution_timeout, since=since, started_at=started_at),
            poll_interval=self.poke_interval,
            model=self.model,
            size=submission.size if submission else None,
            fast_poll_until_age=DEFER_AFTER,
        )

    def _succeeded(self, generation: Generation) -> str:
        generation.raise_for_failure(retry_resubmits=False)
        return generation.generation_id


def _was_cleared(ti: Any, task: BaseSensorOperator) -> bool:
    """Whether a person cleared the task since its first attempt: only Clear allows more retries."""
    retries = getattr(ti, "task", task).retries or 0
    return getattr(ti, "max_tries", retries) > retries
