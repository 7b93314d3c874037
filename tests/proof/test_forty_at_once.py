"""Forty tasks at once, on an Airflow that fails tasks whose trigger fires too soon: none of ours is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.proof.conftest import Proof, Task

ROUNDS = 3  # of forty tasks
MOST_ROUNDS = 8  # of those that the race may fail: some 6 in 100, but none in many a round


def test_this_airflow_fails_tasks_that_are_resumed_at_once(proof: Proof) -> None:
    """Without which the next proof would prove nothing. Why it does: ``deferral.min_deferral_seconds``."""
    tasks: list[Task] = []
    failed: Counter[int] = Counter()
    while not failed and len(tasks) < 40 * MOST_ROUNDS:
        tasks += proof.run("naive")
        failed = Counter(task.map_index % 3 for task in tasks if task.state != "success")
    print(
        f"Airflow's own trigger: {failed.total()} of {len(tasks)} tasks failed; "
        f"by when it fired: 0 s {failed[0]}, 1 s {failed[1]}, 2 s {failed[2]}"
    )
    if not failed:
        pytest.skip(f"of {len(tasks)} tasks that were resumed at once this Airflow failed none")


def test_of_forty_tasks_that_defer_at_once_none_fails(proof: Proof) -> None:
    _all_succeed(proof, "forty_deferred_at_once", "race", rounds=ROUNDS)


@pytest.mark.parametrize("seconds", [1, 2, 3])
def test_of_forty_images_that_are_ready_soon_none_is_lost(proof: Proof, seconds: int) -> None:
    _all_succeed(proof, "forty", f"ready_after_{seconds}")


def _all_succeed(proof: Proof, dag_id: str, service: str, *, rounds: int = 1) -> None:
    tasks = [task for _ in range(rounds) for task in proof.run(dag_id, service)]
    ended = Counter((task.state, task.try_number) for task in tasks)
    accepted = proof.services[service].accepted
    stored = len(list(proof.folder(service).iterdir()))
    seconds = sorted(task.seconds for task in tasks)
    print(
        f"{service}: {ended['success', 1]} of {len(tasks)} tasks succeeded at their first try, "
        f"{accepted} submissions accepted, {stored} images stored; "
        f"a task took {seconds[len(tasks) // 2]:.1f} s, {seconds[-1]:.1f} s at most"
    )
    assert ended == {("success", 1): 40 * rounds}
    assert (accepted, stored) == (40 * rounds, 40 * rounds)
