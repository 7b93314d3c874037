"""What the log of a batch says: that others use the account, once, and how far the batch is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.batch import run, share
from airflow_provider_modelscope.waiting import backoff
from tests.unit.builders import Context, batch

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator


@pytest.mark.usefixtures("no_pauses")
def test_a_busy_account_is_one_line(
    emulator: Emulator,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(share, "SOON", 0.002)
    monkeypatch.setattr(backoff, "MIN_QUEUE_DELAY", 0.002)
    caplog.set_level(logging.INFO)
    emulator.fail("submit:queue-full:5")
    batch(tmp_path, deferrable=False).execute(context)
    assert emulator.accepted == 2
    [busy] = [line for line in caplog.messages if "busy" in line]
    assert busy == (
        "The account is busy, which is normal: ModelScope runs one generation of an account at a time. "
        "Rows are submitted when it accepts them"
    )
    assert "code 500" not in caplog.text


@pytest.mark.parametrize(("max_credit", "stored"), [(None, 2), (1, 1)])
def test_the_last_line_comes_once_and_says_what_is_done(
    emulator: Emulator,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    max_credit: int | None,
    stored: int,
) -> None:
    monkeypatch.setattr(run, "REPORT_ROWS", 2)
    caplog.set_level(logging.INFO)
    batch(tmp_path, max_credit=max_credit, on_exhausted="stop").execute(context)
    [line] = [line for line in caplog.messages if "rows are done:" in line]
    assert line.startswith(f"{stored} of 2 rows are done: {stored} stored, 0 rejected, 0 failed")
    assert "left" not in line


def test_a_model_that_refuses_each_row_is_one_warning(
    emulator: Emulator, context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    task = batch(tmp_path, requests=["A cat"] * 9, model="nobody/no-such-model", max_failures="100%")
    task.execute(context)
    [line] = [line for line in caplog.messages if "does not serve this model" in line]
    assert line.startswith("row 1 (000001) failed: ")
