"""The state of a batch: what is written is found again, in the order in which it happened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.batch.state import MAX_LATEST, BatchState
from airflow_provider_modelscope.batch.working_set import WorkingSet
from airflow_provider_modelscope.exceptions import SubmissionRecordError
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.manifest import Progress, RunningRow, Segment
from tests.unit.batch.builders import row, with_fingerprints
from tests.unit.conftest import TaskInstance

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.images.conftest import Store

PROGRESS = {"total": 3, "counts": {"stored": 1}, "spent": 1.5}
RUNNING = RunningRow(key="a", number=1, prompt="A cat", fingerprint="f", generation_id="42")


def state_of(**ti: Any) -> BatchState:
    instance = TaskInstance()
    vars(instance).update(ti)
    return BatchState(Destination.parse("memory://bucket/out/"), instance)


def result(number: int, status: str = "stored") -> dict[str, Any]:
    return {"key": f"{number:06}", "row": number, "status": status, "fingerprint": "f"}


def add(state: BatchState, numbers: Iterable[int]) -> None:
    for number in numbers:
        state.add(result(number))


def rows_of(state: BatchState) -> list[int]:
    return [one["row"] for one in state.load()[1]]


def segments_in(store: Store) -> list[Segment]:
    found = (Segment.from_name(path.rpartition("/")[2]) for path in store.objects)
    return sorted(segment for segment in found if segment)


def test_without_a_state_there_is_nothing(memory: Store) -> None:
    value, results = state_of().load()
    assert (value, list(results)) == ({}, [])


def test_what_is_written_is_found_again(memory: Store) -> None:
    state = state_of()
    state.add(result(1))
    state.write(PROGRESS, [RUNNING])
    value, results = state_of().load()
    assert value.items() >= PROGRESS.items()
    assert [RunningRow.from_json(one) for one in value["running"]] == [RUNNING]
    assert list(results) == [result(1)]


def test_readers_get_the_progress(memory: Store) -> None:
    state_of().write(PROGRESS, [RUNNING])
    [content] = memory.objects.values()
    progress = Progress.from_json(json.loads(content))
    assert progress
    assert (progress.total, progress.running, progress.spent) == (3, (RUNNING,), 1.5)


def test_full_segments_are_never_written_again(memory: Store) -> None:
    state = state_of()
    add(state, range(1, MAX_LATEST))
    assert not segments_in(memory)
    state.add(result(MAX_LATEST, "failed"))
    [segment] = segments_in(memory)
    assert (segment.sequence, segment.count, segment.without_image) == (1, MAX_LATEST, 1)
    before = dict(memory.objects)
    add(state, range(MAX_LATEST + 1, 2 * MAX_LATEST + 6))
    state.write(PROGRESS, [])
    assert before.items() <= memory.objects.items()
    assert rows_of(state_of()) == list(range(1, 2 * MAX_LATEST + 6))


def test_another_attempt_goes_on_with_the_next_segment(memory: Store) -> None:
    for attempt in range(3):
        state = state_of()
        state.load()
        add(state, range(attempt * MAX_LATEST, (attempt + 1) * MAX_LATEST))
        state.write(PROGRESS, [])
    assert [segment.sequence for segment in segments_in(memory)] == [1, 2, 3]
    assert rows_of(state_of()) == list(range(3 * MAX_LATEST))


def test_another_attempt_writes_the_latest_results_again(memory: Store) -> None:
    for number in (1, 2, 3):
        state = state_of()
        state.load()
        state.add(result(number))
        state.write(PROGRESS, [])
    assert rows_of(state_of()) == [1, 2, 3]


def test_a_kill_after_a_segment_does_not_bring_back_older_results(memory: Store) -> None:
    state = state_of()
    state.add(result(1, "failed"))
    state.write(PROGRESS, [])
    add(state, range(1, MAX_LATEST))  # the first again, which is stored now
    results = list(state_of().load()[1])
    assert len(results) == MAX_LATEST
    assert [one["status"] for one in results if one["row"] == 1] == ["failed", "stored"]


def test_a_segment_that_cannot_be_written_stays_in_running_json(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe_file(path: str, value: bytes, *args: Any, **options: Any) -> None:
        if "results-" in path:
            raise OSError("the store is away")
        write(path, value, *args, **options)

    write = memory.pipe_file
    state = state_of()
    with monkeypatch.context() as patch:
        patch.setattr(memory, "pipe_file", pipe_file)
        add(state, range(MAX_LATEST + 5))
        state.write(PROGRESS, [])
        assert rows_of(state_of()) == list(range(MAX_LATEST + 5))
    state.add(result(99))
    assert len(segments_in(memory)) == 1


def test_other_objects_in_the_folder_are_no_segments(memory: Store) -> None:
    state = state_of()
    add(state, range(MAX_LATEST))
    state.write(PROGRESS, [])
    [name] = [name for name in memory.objects if "results-" in name]
    for other in ("results-000002-1-0-xyz.jsonl", "results-a.jsonl", "notes.txt"):
        memory.pipe_file(f"{name.rpartition('/')[0]}/{other}", b"[")
    assert len(rows_of(state_of())) == MAX_LATEST


def test_files_that_a_killed_worker_left_are_removed(tmp_path: Path) -> None:
    state = BatchState(Destination.parse(f"file://{tmp_path}/"), TaskInstance())
    state.write(PROGRESS, [])
    assert state.scratch
    (state.scratch / ".image-0123456789abcdef").write_bytes(b"half an ima")
    state.load()
    assert [path.name for path in state.scratch.iterdir()] == ["running.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a": 1}\n{'])
def test_a_damaged_segment_is_an_error(memory: Store, content: bytes) -> None:
    state = state_of()
    add(state, range(MAX_LATEST))
    [name] = memory.objects
    memory.pipe_file(name, content)
    with pytest.raises(SubmissionRecordError, match="cannot be read, nothing was sent"):
        list(state_of().load()[1])


def test_an_error_of_the_store_is_not_taken_for_no_state(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise PermissionError("forbidden")

    for method in ("cat_file", "ls"):
        with monkeypatch.context() as patch:
            patch.setattr(memory, method, fail)
            with pytest.raises(SubmissionRecordError, match="forbidden"):
                state_of().load()


def test_an_error_while_writing_names_the_object(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("full")

    monkeypatch.setattr(memory, "pipe_file", fail)
    with pytest.raises(SubmissionRecordError, match=r"running\.json, cannot be written: .*full"):
        state_of().write(PROGRESS, [])
    with WorkingSet() as rows, pytest.raises(SubmissionRecordError, match=r"plan\.jsonl, cannot be written"):
        state_of().write_plan(rows)


def test_a_plan_is_found_again(memory: Store) -> None:
    with WorkingSet() as rows, WorkingSet() as again:
        rows.add(with_fingerprints([row(1), row(2, data={"id": 7})]))
        state_of().write_plan(rows)
        state_of().read_plan(again)
        assert list(again.results()) == list(rows.results())


def test_a_missing_plan_is_an_error(memory: Store) -> None:
    with WorkingSet() as rows, pytest.raises(SubmissionRecordError, match="cannot be read"):
        state_of().read_plan(rows)


@pytest.mark.parametrize("other", [{"dag_id": "b"}, {"run_id": "b"}, {"task_id": "b"}, {"map_index": 3}])
def test_no_two_task_instances_share_a_state(memory: Store, other: dict[str, Any]) -> None:
    state_of().write(PROGRESS, [])
    assert state_of(**other).load()[0] == {}


def test_all_attempts_of_a_task_instance_share_it(memory: Store) -> None:
    state_of().write(PROGRESS, [])
    assert state_of(try_number=4, max_tries=9).load()[0]
