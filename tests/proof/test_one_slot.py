"""Twenty tasks share an account with one slot, and none of them waits on a worker."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

    from tests.proof.conftest import Proof

TASKS = 20
BUSY = 0.8  # fraction of the time, at least
RUNNING = 2.0  # tasks on workers on average, at most: to submit, to poll and to store
DEFERRED = 15  # tasks in the triggerer at some moment, at least


def test_twenty_tasks_share_one_slot_without_holding_workers(proof: Proof) -> None:
    observed: list[Counter[str]] = []
    tasks = proof.run("twenty", "one_slot", limit=600.0, watch=observed.append)
    service = proof.services["one_slot"]
    images = list(proof.folder("one_slot").iterdir())
    spans = service.spans
    total = spans[-1][1] - spans[0][0]
    busy = sum(end - begin for begin, end in spans) / total
    running = [states["running"] for states in observed]
    deferred = [states["deferred"] for states in observed]
    print(
        f"one slot: {service.accepted} submissions accepted in {total:.0f} s, slot busy {busy:.0%}; "
        f"{mean(running):.1f} tasks running on average, {max(running)} at most, in {len(observed)} samples; "
        f"{mean(deferred):.1f} deferred on average, {max(deferred)} at most"
    )
    assert {(task.state, task.try_number) for task in tasks} == {("success", 1)}
    assert (len(tasks), service.accepted, len(images)) == (TASKS, TASKS, TASKS)
    assert busy >= BUSY
    assert mean(running) <= RUNNING
    assert max(deferred) >= DEFERRED
