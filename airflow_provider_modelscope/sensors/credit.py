"""Wait until the account has enough credit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_modelscope.compat import AirflowSensorTimeout, conf
from airflow_provider_modelscope.exceptions import ModelScopeRetryableError
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.sensors.errors import sensor_errors
from airflow_provider_modelscope.tasks.deferral import can_defer, min_deferral_seconds, resumes
from airflow_provider_modelscope.tasks.task import ModelScopeTask
from airflow_provider_modelscope.validation import check_all, checked_credit, raise_invalid, seconds_errors

if TYPE_CHECKING:
    from airflow.sdk import Context

POKE_INTERVAL = 600.0  # seconds; credit is granted once a day


class ModelScopeCreditSensor(ModelScopeTask, BaseSensorOperator):
    """Wait until the account has enough credit, and return what is available.

    ModelScope grants credit when a person visits its site while logged in, not by itself. ``timeout=0`` reads
    the credit once. With ``soft_fail=True`` as well, the sensor skips what a Dag cannot pay for.

    A reading that fails for a reason that may pass is repeated. A rejected token fails the sensor.

    :param min_available: The credit to wait for, from 0.
    :param modelscope_conn_id: The connection to ModelScope.
    :param poke_interval: Seconds between two readings on a worker. In the triggerer, all waits of an account
        share one reading every 10 to 15 minutes.
    :param deferrable: Wait in the triggerer, without a worker. Default: Airflow's ``default_deferrable``.
    """

    template_fields: Sequence[str] = ("min_available", "modelscope_conn_id")
    operator_extra_links = ()  # there is no image and no model
    _credit = "unknown"  # as it was read last

    def __init__(
        self,
        *,
        min_available: float | str,
        modelscope_conn_id: str = ModelScopeHook.default_conn_name,
        poke_interval: float = POKE_INTERVAL,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.min_available = min_available
        self.modelscope_conn_id = modelscope_conn_id
        self.deferrable = deferrable
        self._check_constants(ModelScopeCreditSensor)

    def _constant_checks(self) -> list[Callable[[], object]]:
        from airflow_provider_modelscope.tasks.parse_time import constant_checks

        return [
            *constant_checks(self, "min_available", partial(checked_credit, "min_available")),
            lambda: raise_invalid(seconds_errors(timeout=self.timeout)),
        ]

    def execute(self, context: Context) -> Any:
        """Read the credit until there is enough, and return what is available."""
        if not self.deferrable:
            return super().execute(context)  # Airflow's own loop
        with sensor_errors(self):
            minimum = self._begin()
            defers = can_defer(self, context, self.hook)
            available = self._read(minimum) if defers else None
            if available is not None:
                return available
            if defers:
                self._defer(minimum, context)
        return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Read the credit once."""
        with sensor_errors(self):
            available = self._read(self._begin())
        return False if available is None else PokeReturnValue(is_done=True, xcom_value=available)

    @resumes
    def execute_complete(self, context: Context, event: Any = None) -> float:
        """Resume after waiting in the triggerer. At the end of the wait, read the credit a last time."""
        from airflow_provider_modelscope.triggers.events import CreditRead, read_event

        with sensor_errors(self):
            minimum = self._begin()
            available = read_event(event, CreditRead).available
            if available is None:
                available = self._read(minimum)
            if available is None:
                raise self._timeout(minimum)
        return available

    def _begin(self) -> float:
        """Validate the parameters, and return the credit to wait for."""
        check_connection = self._refuse_secrets("min_available")
        minimum, *_ = check_all(
            lambda: checked_credit("min_available", self.min_available),
            check_connection,
            lambda: raise_invalid(seconds_errors(timeout=self.timeout)),
        )
        return float(minimum)

    def _read(self, minimum: float) -> float | None:
        """Return the available credit if it is enough."""
        try:
            credit = self.hook.get_credit()
        except ModelScopeRetryableError as error:
            self._credit = "unknown"
            self.log.warning("The credit is unknown: %s", error)
            return None
        self._credit = str(credit)
        self.log.info("Credit: %s. Waiting for %g", credit, minimum)
        return credit.available if credit.available >= minimum else None

    def _defer(self, minimum: float, context: Context) -> None:
        from airflow_provider_modelscope.triggers.credit import ModelScopeCreditTrigger
        from airflow_provider_modelscope.triggers.events import DeferredTask
        from airflow_provider_modelscope.waiting.poll import end_of_wait

        started_at = context["ti"].start_date.timestamp()
        end_time = end_of_wait(self.timeout, self.execution_timeout, since=started_at, started_at=started_at)
        remaining = end_time - time.time()
        if remaining <= 0:
            raise self._timeout(minimum)
        trigger = ModelScopeCreditTrigger(
            min_available=minimum,
            modelscope_conn_id=self.modelscope_conn_id,
            end_time=end_time,
            min_deferral_seconds=min_deferral_seconds(),
            deferred_task=DeferredTask(attempt=context["ti"].try_number).to_json(),
        )
        # Airflow's own timeout is a little later, so that the last reading comes first.
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=remaining + 60))

    def _timeout(self, minimum: float) -> AirflowSensorTimeout:
        return AirflowSensorTimeout(
            f"Not enough credit within the timeout of {self.timeout:g} s: {self._credit}, min_available = "
            f"{minimum:g}. ModelScope grants credit when somebody visits {self.hook.account.credit_url} "
            "while logged in"
        )
