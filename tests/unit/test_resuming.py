"""What is said about Clear is so on the Airflow that runs."""

from __future__ import annotations

import pytest

from airflow_provider_modelscope.resuming import how_to_store_again, submission_records

OPERATOR = "use ModelScopeImageToObjectStorageOperator"


@pytest.mark.parametrize(
    ("version", "setting", "advice"),
    [
        ((3, 0), "", f"{OPERATOR}. Clearing a task that submits would submit again, because"),
        ((3, 2), "", f"{OPERATOR}. Clearing a task that submits would submit again, because"),
        ((3, 2), "s3://bucket/records/", f"clear the task, which resumes it, or {OPERATOR}"),
        ((3, 3), "", f"clear the task, which resumes it, or {OPERATOR}"),
        ((3, 4), "", f"clear the task with 'Keep task state and resume', which resumes it, or {OPERATOR}"),
        ((3, 10), "s3://bucket/records/", "clear the task with 'Keep task state and resume'"),
    ],
)
def test_advice_follows_version_and_setting(
    version: tuple[int, int], setting: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_modelscope.compat.AIRFLOW_VERSION", version)
    monkeypatch.setenv("AIRFLOW__MODELSCOPE__SUBMISSION_RECORDS", setting)
    assert how_to_store_again().startswith(advice)


def test_without_the_setting_there_is_no_folder() -> None:
    assert submission_records() == ""
