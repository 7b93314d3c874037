"""What resumes a generation on the Airflow that runs: its version and a setting decide."""

from __future__ import annotations

SECTION, OPTION = "modelscope", "submission_records"
SETTING = f"[{SECTION}] {OPTION}"  # as errors and logs name it


def submission_records() -> str:
    """Return the folder for the records of submissions, or ``""``. Airflow 3.3 and later needs none."""
    from airflow_provider_modelscope.compat import conf

    return str(conf.get(SECTION, OPTION, fallback=""))


def how_to_store_again() -> str:
    """Return what a person can do on this Airflow to store a finished generation without a second charge."""
    from airflow_provider_modelscope.compat import AIRFLOW_VERSION

    operator = "use ModelScopeImageToObjectStorageOperator"
    if AIRFLOW_VERSION >= (3, 4):
        return f"clear the task with 'Keep task state and resume', which resumes it, or {operator}"
    if AIRFLOW_VERSION >= (3, 3) or submission_records():
        return f"clear the task, which resumes it, or {operator}"
    return f"{operator}. Clearing a task that submits would submit again, because {SETTING} is not set"


def how_to_submit_again() -> str:
    """Return what a person can do on this Airflow if a generation never gives a usable image."""
    from airflow_provider_modelscope.compat import AIRFLOW_VERSION

    if AIRFLOW_VERSION < (3, 4):
        return "clear the task, which tries once more and then submits a new generation, which is charged"
    return "clear the task, which submits a new generation, which is charged"
