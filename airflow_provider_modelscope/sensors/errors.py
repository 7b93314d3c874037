"""The errors of sensors, as Airflow's own sensors raise them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from airflow_provider_modelscope.compat import AirflowException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_modelscope.exceptions import GenerationTimeoutError
from airflow_provider_modelscope.metrics import count_failure

if TYPE_CHECKING:
    from airflow_provider_modelscope.metrics import HasConnection

    class Sensor(HasConnection, Protocol):
        """A sensor with a connection to ModelScope."""

        soft_fail: bool
        never_fail: bool


@contextmanager
def sensor_errors(sensor: Sensor) -> Iterator[None]:
    """Count errors, raise a timeout as Airflow's own, and skip the sensor if it should not fail."""
    try:
        try:
            with count_failure(sensor):
                yield
        except GenerationTimeoutError as error:
            raise AirflowSensorTimeout(str(error)) from error
    except AirflowException as error:
        if sensor.soft_fail or sensor.never_fail:
            raise AirflowSkipException(f"Skipped instead of failed: {error}") from error
        raise
