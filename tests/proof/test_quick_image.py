"""An image that takes 2 s is stored within 6 s."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.proof.conftest import Proof

LIMIT = 6.0  # seconds from the start of the task to its end


@pytest.mark.parametrize("dag_id", ["one", "one_on_its_worker"])
def test_an_image_of_two_seconds_is_stored_within_six(proof: Proof, dag_id: str) -> None:
    [task] = proof.run(dag_id, "one_image")
    print(f"{dag_id}: stored {task.seconds:.1f} s after the start of the task")
    assert task.state == "success"
    assert task.seconds <= LIMIT
