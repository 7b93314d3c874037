"""Airflow can fail a task whose trigger fires too early. None of forty tasks of this provider fails."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.proof.conftest import Proof, Task

ROUNDS = 3  # of forty tasks
MAX_ROUNDS = 8  # of forty naive tasks: 6 of 100 fail, but in many rounds none does


def test_this_airflow_fails_tasks_that_are_resumed_too_early(proof: Proof) -> None:
    """Otherwise the next proof would show nothing. ``deferral.min_deferral_seconds`` explains the reason."""
    tasks: list[Task] = []
    failed: Counter[int] = Counter()
    while not failed and len(tasks) < 40 * MAX_ROUNDS:
        tasks += proof.run("naive")
        failed = Counter(task.map_index % 3 for task in tasks if task.state != "success")
    print(
        f"Airflow's own trigger: {failed.total()} of {len(tasks)} tasks failed; "
        f"{failed[0]} with a trigger of 0 s, {failed[1]} of 1 s, {failed[2]} of 2 s"
    )
    if not failed:
        pytest.skip(f"None of {len(tasks)} tasks that were resumed too early failed in this Airflow")


def test_none_of_forty_tasks_that_defer_immediately_fails(proof: Proof) -> None:
    _all_succeed(proof, "forty_deferred_at_once", "race", rounds=ROUNDS)


@pytest.mark.parametrize("seconds", [1, 2, 3])
def test_none_of_forty_images_that_are_ready_soon_is_lost(proof: Proof, seconds: int) -> None:
    _all_succeed(proof, "forty", f"ready_after_{seconds}")


def _all_succeed(proof: Proof, dag_id: str, service: str, *, rounds: int = 1) -> None:
    tasks = [task for _ in range(rounds) for task in proof.run(dag_id, service)]
    ended = Counter((task.state, task.try_number) for task in tasks)
    accepted = proof.services[service].accepted
    stored = len(list(proof.folder(service).iterdir()))
    seconds = sorted(task.seconds for task in tasks)
    print(
        f"{service}: {ended['success', 1]} of {len(tasks)} tasks succeeded in attempt 1, "
        f"{accepted} submissions accepted, {stored} images stored; "
        f"a task took {seconds[len(tasks) // 2]:.1f} s, {seconds[-1]:.1f} s at most"
    )
    assert ended == {("success", 1): 40 * rounds}
    assert (accepted, stored) == (40 * rounds, 40 * rounds)
