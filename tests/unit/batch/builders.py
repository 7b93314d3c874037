"""Rows, results and an account in memory, for the tests of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow_provider_modelscope.batch.engine import Work
from airflow_provider_modelscope.batch.rows import Row
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.xcoms import Submission

START = 1_700_000_002.0  # 8 s before others have a turn


def row(number: int, **request: Any) -> Row:
    given = {"prompt": f"Cat {number}", "model": "a/b", **request}
    return Row(
        number=number,
        key=given.pop("key", f"{number:06}"),
        data=given.pop("data", None),
        request=GenerationRequest(**given),
    )


def work(number: int, **request: Any) -> Work:
    one = row(number, **request)
    return Work(row=one, fingerprint=fingerprint_of(one))


def fingerprint_of(one: Row) -> str:
    return repr(one.request)


def with_fingerprints(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    return [(one, fingerprint_of(one)) for one in rows]


def submission(generation_id: str, *, at: float, model: str = "a/b") -> Submission:
    return Submission(generation_id=generation_id, model=model, submitted_at=at)
