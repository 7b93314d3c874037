"""Whatever breaks: each image is stored as it was served, and none is paid for twice in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.rows import ROWS, Row

if TYPE_CHECKING:
    from tests.faults.stage import Outcome, Stage


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_was_promised_comes_of_each_fault(row: Row, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[row.name] == row.expected


def test_a_record_is_gone_when_the_images_are_stored(stage: Stage, outcomes: dict[str, Outcome]) -> None:
    """So that Clear asks for new images."""
    left = stage.query(
        "select run_id, key from task_state_store join dag_run using (run_id) where state = 'success'"
    )
    assert left == []
