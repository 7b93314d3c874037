"""Whether the forms for approval by a person, as the examples use them, are installed."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

from airflow_provider_modelscope.compat import AIRFLOW_VERSION

STANDARD = "1.12.2"  # of apache-airflow-providers-standard: the first with ``response_timeout``
HAS_FORMS = AIRFLOW_VERSION >= (3, 1) and Version(version("apache-airflow-providers-standard")) >= Version(
    STANDARD
)
NO_FORMS = f"human approval needs Airflow 3.1 and apache-airflow-providers-standard {STANDARD}"
