"""After each fault every image is stored as it was served, and no second charge is silent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.rows import ROWS, Row

if TYPE_CHECKING:
    from tests.faults.system import Outcome, System

PAGE = Path(__file__).parents[2] / "docs" / "charged-once.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_fault_has_the_promised_outcome(row: Row, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[row.name] == row.expected


def test_the_documented_table_has_these_rows() -> None:
    lines = [line.rpartition(" | ")[0] for line in PAGE.read_text().splitlines()]
    missing = [row.fault for row in ROWS if f"| {row.fault} | {row.expected}" not in lines]
    assert missing == []


def test_records_are_deleted_after_success(system: System, outcomes: dict[str, Outcome]) -> None:
    """So that Clear generates new images."""
    left = system.query(
        "select run_id, key from task_state_store join dag_run using (run_id) where state = 'success'"
    )
    assert left == []
