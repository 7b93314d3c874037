"""After each fault every image is stored as it was served, and no second charge is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.rows import ROWS, Outcome, Row

if TYPE_CHECKING:
    from tests.faults.system import System


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=pytest.mark.kill if "killed (-9)" in row.fault else ())
        for row in ROWS
    ],
)
def test_each_fault_has_the_promised_outcome(row: Row, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[row.name] == row.expected


@pytest.mark.kill
def test_records_are_deleted_after_success(system: System, outcomes: dict[str, Outcome]) -> None:
    """So that Clear generates new images."""
    succeeded = [name for name, outcome in outcomes.items() if outcome.state == "success"]
    assert succeeded
    assert {name: records for name in succeeded if (records := system.records(name))} == {}
