"""What is shown of a batch: its bar and sentences, and pages of its images or failed rows."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.gallery import batch_state
from airflow_provider_modelscope.gallery.batches import (
    MAX_BATCHES,
    PAGE_SIZE,
    Batch,
    batches_of,
    versions_of,
)
from airflow_provider_modelscope.gallery.run import PushedXCom, Run, TaskState
from airflow_provider_modelscope.images.object_storage import read_object
from airflow_provider_modelscope.links import Instance
from tests.support.batches import StateFolder, result

if TYPE_CHECKING:
    from pathlib import Path

DRAW = Instance.make("draw", -1)
NOW = 1790000200.0
SEEN = {"triggerer_seen_at": NOW}
ONE_STORED = {"stored": 1, "rejected": 0, "failed": 0, "skipped": 0}


def task(state: str | None = "running", instance: Instance = DRAW, **others: Any) -> TaskState:
    given = {"operator": "ModelScopeImageBatchOperator", "started_at": 1.0, **others}
    return TaskState(instance=instance, state=state, **given)


def run(*tasks: TaskState, **xcoms: Any) -> Run:
    """Return a run whose tasks have pushed these XComs ``batch``, by the id of the task."""
    pushed = [PushedXCom(instance=Instance.make(name, -1), key="batch", value=xcoms[name]) for name in xcoms]
    return Run(dag_id="a_dag", run_id="a_run", state="running", xcoms=pushed, tasks=tasks or [task()])


def batches(a_run: Run, **options: Any) -> list[Batch]:
    return batches_of(a_run, now=NOW, **options)


def shown(folder: StateFolder, *, total: int = 1000, state: str | None = "running", **options: Any) -> Batch:
    """Return the batch of the task ``draw`` as its own page shows it."""
    [batch] = batches(run(task(state), draw=folder.xcom(total)), only=DRAW, **options)
    return batch


def rows_of(batch: Batch) -> list[int]:
    return [one.row for one, _ in batch.page.rows]


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_cached() -> None:
    batch_state._results.cache_clear()
    batch_state._keys.cache_clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the objects that were read."""
    names: list[str] = []

    def reading(uri: str, *others: Any, **options: Any) -> bytes:
        names.append(uri.rpartition("/")[2])
        return read_object(uri, *others, **options)

    monkeypatch.setattr(batch_state, "read_object", reading)
    return names


def every_tenth_fails(first: int, last: int) -> list[dict[str, Any]]:
    return [result(n, "stored" if n % 10 else "failed") for n in range(first, last + 1)]


class TestPages:
    def test_the_newest_images_come_first(self, folder: StateFolder) -> None:
        folder.write(every_tenth_fails(1, 120), latest=every_tenth_fails(121, 130), total=1000)
        batch = shown(folder)
        assert rows_of(batch) == [n for n in range(130, 0, -1) if n % 10][:PAGE_SIZE]
        assert (batch.page.first, batch.page.last, batch.page.total) == (1, 100, 117)
        assert (batch.page.newer, batch.page.older) == (None, 17)
        assert [card.caption for card in batch.cards][:2] == ["000129", "000128"]

    def test_older_pages_follow_until_the_oldest(self, folder: StateFolder) -> None:
        folder.write(every_tenth_fails(1, 300), total=1000)
        seen: list[int] = []
        turns: list[int | None] = []
        up_to: int | None = 0
        while up_to is not None:
            page = shown(folder, up_to=up_to).page
            seen += [one.row for one, _ in page.rows]
            turns.append(page.newer)
            up_to = page.older
        assert seen == [n for n in range(300, 0, -1) if n % 10]
        assert turns == [None, 0, 170]

    def test_a_page_keeps_its_rows_while_newer_ones_finish(self, folder: StateFolder) -> None:
        folder.write(every_tenth_fails(1, 300), total=1000)
        before = shown(folder, up_to=100)
        folder.write(every_tenth_fails(301, 400), total=1000)
        assert rows_of(shown(folder, up_to=100)) == rows_of(before)

    @pytest.mark.parametrize("up_to", [0, -1, 271, 10**9])
    def test_a_row_that_is_none_gives_the_newest(self, folder: StateFolder, up_to: int) -> None:
        folder.write(every_tenth_fails(1, 300), total=1000)
        assert shown(folder, up_to=up_to).page.first == 1

    def test_failed_rows_have_pages_of_their_own(self, folder: StateFolder) -> None:
        folder.write(every_tenth_fails(1, 1200), latest=[result(1210, "rejected")], total=2000)
        batch = shown(folder, view="failed")
        assert rows_of(batch) == [1210, *range(1200, 210, -10)]
        assert (batch.page.total, batch.page.older) == (121, 21)
        assert rows_of(shown(folder, view="failed", up_to=21)) == list(range(210, 0, -10))

    def test_only_the_segments_of_the_page_are_read(self, folder: StateFolder, reads: list[str]) -> None:
        folder.write(every_tenth_fails(1, 10_000), total=10_000)
        assert shown(folder, up_to=4550).page.rows
        assert len(reads) <= 1 + 4
        reads.clear()
        shown(folder, up_to=4550)
        assert reads == ["running.json"]  # segments are never rewritten

    def test_a_row_that_was_done_again_is_shown_once(self, folder: StateFolder) -> None:
        folder.write(every_tenth_fails(1, 100), total=100)
        again = [result(n, finished_at=1790000900.0 + n) for n in (5, 10, 20)]
        folder.write(again[:2], latest=again[2:], total=100)
        images = shown(folder)
        assert rows_of(images)[:4] == [20, 10, 5, 99]
        assert sorted(rows_of(images)) == [n for n in range(1, 101) if n % 10 or n in (10, 20)]
        assert rows_of(shown(folder, view="failed")) == list(range(100, 20, -10))

    def test_a_result_that_moves_into_a_segment_is_shown_once(
        self, folder: StateFolder, reads: list[str]
    ) -> None:
        """The segment is written first, then ``running.json``."""
        results = every_tenth_fails(1, 500)
        folder.write(results, latest=results[-50:], total=1000)
        assert rows_of(shown(folder)) == [n for n in range(500, 0, -1) if n % 10][:PAGE_SIZE]
        assert len(reads) <= 1 + 3

    def test_a_row_may_have_several_images(self, folder: StateFolder) -> None:
        image = result(1)["image"]
        folder.write([result(1, further_images=[image, image])], total=1)
        cards = shown(folder).cards
        assert [(card.row, card.number) for card in cards] == [("000001", 1), ("000001", 2), ("000001", 3)]
        assert len({card.key for card in cards}) == 3
        assert "row=000001&segment=results-000001-1-0-00000001.jsonl" in cards[0].query("a_run")


class TestSelection:
    def test_a_run_shows_the_first_page_of_each_batch(self, tmp_path: Path) -> None:
        tasks, xcoms = [], {}
        for number, name in enumerate(("b", "a", "c")):
            folder = StateFolder(tmp_path / name, task_id=name)
            folder.write(every_tenth_fails(1, 300), total=300)
            xcoms[name] = folder.xcom(300)
            tasks.append(task(instance=Instance.make(name, -1), started_at=float(number)))
        found = batches(run(*tasks, **xcoms), view="failed", up_to=20)
        assert [batch.title for batch in found] == ["b", "a", "c"]
        assert {(batch.view, batch.page.first, batch.is_alone) for batch in found} == {("images", 1, False)}

    def test_mapped_batches_have_sections_of_their_own(self, tmp_path: Path) -> None:
        instances = [Instance.make("draw", index) for index in range(3)]
        folders = [StateFolder(tmp_path / str(index), map_index=index) for index in range(3)]
        for number, folder in enumerate(folders):
            folder.write([result(number + 1)], total=1)
        pushed = [
            PushedXCom(instance=one, key="batch", value=folder.xcom(1))
            for one, folder in zip(instances, folders, strict=True)
        ]
        a_run = replace(run(*(task(instance=one, label="") for one in instances)), xcoms=pushed)
        assert [batch.title for batch in batches(a_run)] == ["draw [0]", "draw [1]", "draw [2]"]
        [batch] = batches(a_run, only=instances[1])
        assert (rows_of(batch), batch.is_alone) == ([2], True)
        assert not any(batch.is_alone for batch in batches(a_run, only=DRAW))

    def test_a_subclass_that_pushes_the_xcom_is_a_batch(self, folder: StateFolder) -> None:
        folder.write([result(1)], total=1)
        [batch] = batches(run(task(operator="MyBatch"), draw=folder.xcom(1)))
        assert batch.stored == 1

    def test_other_tasks_are_no_batches(self) -> None:
        other = task(operator="BashOperator", instance=Instance.make("other", -1))
        assert batches(run(task("removed"), other)) == []

    def test_few_states_are_read_for_one_page(self, tmp_path: Path) -> None:
        names = [f"task_{number:02}" for number in range(MAX_BATCHES + 2)]
        xcoms = {}
        for name in names:
            folder = StateFolder(tmp_path / name, task_id=name)
            folder.write([result(1)], total=1)
            xcoms[name] = folder.xcom(1)
        a_run = run(*(task(instance=Instance.make(one, -1)) for one in names), **xcoms)
        found = batches(a_run)
        assert [batch.stored for batch in found] == [1] * MAX_BATCHES + [0, 0]
        assert [batch.status for batch in found[-2:]] == ["Open this batch to see its state."] * 2
        last = Instance.make(names[-1], -1)
        assert [batch.stored for batch in batches(a_run, only=last)] == [1]

        def versions(**options: Any) -> list[str]:
            return versions_of("a_dag", "a_run", a_run.xcoms, **options)

        before, before_of_last = versions(), versions(only=last)
        folder.write([], latest=[result(2)], total=2)
        assert versions(only=last) != before_of_last
        assert len(before) == MAX_BATCHES
        assert versions() == before

    def test_the_version_is_that_of_the_states_on_the_page(self, tmp_path: Path) -> None:
        """The database returns XComs in any order."""
        names = [f"task_{number:02}" for number in range(MAX_BATCHES + 1)]
        folders = {name: StateFolder(tmp_path / name, task_id=name) for name in reversed(names)}
        for folder in folders.values():
            folder.write([result(1)], total=1)
        a_run = run(
            *(task(instance=Instance.make(name, -1)) for name in names),
            **{name: folder.xcom(1) for name, folder in folders.items()},
        )
        before = versions_of("a_dag", "a_run", a_run.xcoms)
        assert batches(a_run)[0].stored == 1
        folders[names[0]].write([], latest=[result(2)], total=2)
        assert versions_of("a_dag", "a_run", a_run.xcoms) != before


class TestSentences:
    @pytest.mark.parametrize(
        ("state", "sentence"),
        [
            (None, ""),
            ("scheduled", ""),
            ("running", "Starting."),
            ("upstream_failed", "Not started: an upstream task failed."),
            ("skipped", "The task was skipped."),
            ("failed", "The task failed. See its log."),
            ("success", "The task succeeded and generated nothing, as in a dry run."),
        ],
    )
    def test_a_batch_without_a_state_says_why(self, state: str | None, sentence: str) -> None:
        [batch] = batches(run(task(state)))
        assert (batch.status, batch.progress, batch.cards) == (sentence, None, [])

    @pytest.mark.parametrize(
        ("state", "stopped_by", "sentence"),
        [
            ("running", None, ""),
            ("deferred", None, ""),
            ("failed", None, "The task failed. See its log."),
            ("success", None, ""),
            (
                "success",
                "credit",
                "Stopped: the credit of the account is used up. 5 rows left. Clear the task",
            ),
            ("failed", "max_credit", "Stopped: the next row would exceed max_credit. 5 rows left."),
            ("success", "a comet", "Stopped by a comet. 5 rows left."),
        ],
    )
    def test_a_batch_with_a_state_says_what_is_special(
        self, folder: StateFolder, state: str, stopped_by: str | None, sentence: str
    ) -> None:
        counts = ONE_STORED | {"skipped": 5}
        folder.write([result(1)], total=6, counts=counts, stopped_by=stopped_by)
        status = shown(folder, state=state, total=6).status
        assert status.startswith(sentence) if sentence else not status

    def test_the_error_of_a_batch_says_why_it_failed(self) -> None:
        error = {"type": "BatchRejectedError", "message": "3 of 9 rows have no image. Correct them."}
        failed = run(task("failed"))
        pushed = [PushedXCom(instance=DRAW, key="error", value=error)]
        [batch] = batches(replace(failed, xcoms=pushed))
        assert batch.status == "3 of 9 rows have no image."

    @pytest.mark.parametrize(
        ("a_task", "of_run", "label"),
        [
            ({"state": None}, {}, "Not started"),
            ({"state": None}, {"is_paused": True}, "Paused Dag"),
            ({"state": "queued"}, {}, "Waiting for a worker"),
            ({"state": "up_for_retry", "retry_at": NOW + 60}, {}, "Retrying at"),
            ({"state": "deferred"}, {}, "No triggerer seen"),
            ({"state": "deferred", "trigger": "ModelScopeQueueTrigger"}, SEEN, "Queued"),
            ({"state": "deferred", "trigger": "ModelScopeImageGenerationTrigger"}, SEEN, "Generating"),
            ({"state": "deferred", "trigger": "ModelScopeExhaustedTrigger"}, SEEN, "Waiting for credit"),
            ({"state": "running"}, {}, None),
            ({"state": "success"}, {}, None),
        ],
        ids=str,
    )
    def test_a_batch_that_does_nothing_says_why(
        self, folder: StateFolder, a_task: dict[str, Any], of_run: dict[str, Any], label: str | None
    ) -> None:
        folder.write([], total=100, counts=ONE_STORED, per_minute=11.53)
        a_run = run(task(**a_task), draw=folder.xcom(100))
        [batch] = batches(replace(a_run, **of_run))
        assert (batch.waiting and batch.waiting.label) == label
        assert bool(batch.pace) is (label in ("Queued", "Generating") or a_task["state"] == "running")

    def test_the_bar_and_its_text_show_the_counts(self, folder: StateFolder) -> None:
        counts = {"stored": 1812, "rejected": 1, "failed": 1, "skipped": 5}
        folder.write([], total=2000, counts=counts, per_minute=11.53)
        batch = shown(folder)
        assert batch.summary == "1,812 of 2,000 rows stored, 1 failed, 1 rejected, 5 skipped, 181 left"
        assert list(batch.bar) == [("stored", 0.0, 90.6), ("failed", 90.6, 0.5)]

    @pytest.mark.parametrize(
        "counts",
        [{"stored": 10**15}, {"stored": 5, "failed": 10**15}, {"failed": 7}, {}],
        ids=str,
    )
    @pytest.mark.parametrize("total", [0, 7])
    def test_a_bar_of_odd_counts_stays_in_its_frame(
        self, folder: StateFolder, counts: dict[str, int], total: int
    ) -> None:
        folder.write([], total=total, counts=counts)
        batch = shown(folder, total=total)
        assert all(start >= 0 and width >= 0 and start + width <= 100 for _, start, width in batch.bar)
        assert batch.summary

    @pytest.mark.parametrize(
        ("per_minute", "text"),
        [
            (11.53, "11.5 a minute, about 9 min left"),
            (240.0, "240 a minute, about 25 s left"),
            (0.05, "0.05 a minute, about 33 h left"),
            (0.01, "0.01 a minute, about 7 days left"),
            (0.0, ""),
            (None, ""),
        ],
    )
    def test_the_pace_says_how_long_it_takes(
        self, folder: StateFolder, per_minute: float | None, text: str
    ) -> None:
        folder.write([], total=100, counts=ONE_STORED, per_minute=per_minute)
        assert shown(folder, total=100).pace == text
        assert shown(folder, total=100, state="success").pace == ""

    def test_running_rows_say_what_happens_to_them(self, folder: StateFolder) -> None:
        running = [
            {"key": "a", "number": 1, "sent_at": NOW, "attempts": 1},
            {"key": "b", "number": 2, "generation_id": "42", "submitted_at": NOW - 14, "attempts": 2},
        ]
        folder.write([], total=5, running=running)
        assert [(row.key, activity) for row, activity in shown(folder).running] == [
            ("a", "being submitted"),
            ("b", "generation 42, attempt 2"),
        ]
        assert shown(folder, state="failed").running == []

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            ("It failed. Clear the task.", "It failed."),
            ("Version 1.5 failed", "Version 1.5 failed"),
            ("提示词被拒绝。请修改。", "提示词被拒绝。"),
            ("x" * 1000, "x" * 280 + "... (1000 characters)"),
        ],
    )
    def test_a_failed_row_shows_its_first_sentence(
        self, folder: StateFolder, message: str, reason: str
    ) -> None:
        error = {"type": "GenerationFailedError", "message": message}
        folder.write([result(1, "failed", error=error), result(2, "rejected", error=None)], total=2)
        unknown, row = shown(folder, view="failed").failed_rows
        assert (row.reason, row.message) == (reason, message)
        assert unknown.reason == "The reason is not known."


class TestTrust:
    @pytest.mark.parametrize("other", [{"dag_id": "b_dag"}, {"run_id": "b_run"}, {"task_id": "other"}])
    def test_the_state_of_another_task_is_not_shown(self, tmp_path: Path, other: dict[str, Any]) -> None:
        """A user who may write XComs of one Dag may not see the images of another."""
        folder = StateFolder(tmp_path, **other)
        folder.write([result(1)], total=1)
        batch = shown(folder)
        assert (batch.progress, batch.page.rows, batch.location) == (None, (), None)
        assert batch.status == "The XCom batch names no state of this task."

    @pytest.mark.parametrize(
        "value",
        [
            None,
            5,
            {},
            {"state": 5, "manifest": "", "total": 1},
            {"state": "file:///etc/", "manifest": "", "total": -1},
            {"state": "file:///etc/", "manifest": "", "total": 1, "storage_conn_id": 5},
        ],
        ids=str,
    )
    def test_another_xcom_is_ignored(self, value: Any) -> None:
        [batch] = batches(run(draw=value))
        assert batch.location is None

    @pytest.mark.parametrize(
        "content", ["", "{", "5", "[" * 100_000, '{"modelscope_batch": 5}', '{"secret": "x"}', "\ud83d"]
    )
    def test_a_damaged_state_is_not_shown(self, folder: StateFolder, content: str) -> None:
        folder.write([result(1)], total=1)
        (folder.path / "running.json").write_bytes(content.encode(errors="surrogatepass"))
        batch = shown(folder, state="success")
        assert batch.status == f"The state of this batch cannot be read: file://{folder.path}/"
        assert "secret" not in repr(batch)

    def test_a_missing_state_is_like_a_damaged_one(self, folder: StateFolder) -> None:
        """Otherwise an XCom could ask whether an object exists."""
        missing = shown(folder, state="success")
        folder.path.mkdir(parents=True)
        (folder.path / "running.json").write_text("other")
        assert shown(folder, state="success") == missing

    def test_a_state_that_cannot_be_opened_says_why(self, folder: StateFolder) -> None:
        value = folder.xcom(5) | {"storage_conn_id": "nowhere"}
        value["state"] = value["state"].replace("file://", "s3://bucket")
        [batch] = batches(run(draw=value))
        assert batch.status.startswith("The API server cannot open this batch: uri = 's3://bucket/")
        assert "nowhere" in batch.status

    def test_a_huge_object_is_not_read_whole(self, folder: StateFolder) -> None:
        folder.write([result(1)], total=1)
        with (folder.path / "running.json").open("a") as file:
            file.truncate(300_000_000)  # zeros, which take no space
        tracemalloc.start()
        try:
            assert shown(folder).progress is None
            assert tracemalloc.get_traced_memory()[1] < 100_000_000
        finally:
            tracemalloc.stop()

    def test_a_large_state_that_parses_is_not_shown(
        self, folder: StateFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batch_state, "_MAX_BYTES", 20_000)
        folder.write([result(1)], latest=[result(2)], total=2)
        assert shown(folder).stored == 2
        with (folder.path / "running.json").open("a") as file:
            file.write(" " * 20_000)
        assert shown(folder).progress is None

    @pytest.mark.parametrize("damage", ["missing", "garbage", "fewer", "others"])
    def test_a_damaged_segment_does_not_break_the_page(self, folder: StateFolder, damage: str) -> None:
        names = folder.write(every_tenth_fails(1, 100), total=100)
        path = folder.path / names[0]
        match damage:
            case "missing":
                path.unlink()
            case "garbage":
                path.write_bytes(b"\xff\n[\n5\n{}\n")
            case "fewer":
                path.write_text("".join(path.read_text().splitlines(keepends=True)[:10]))
            case "others":
                path.write_text(json.dumps(result(1, "failed")) + "\n")
        rows = rows_of(shown(folder, total=100))
        assert set(range(51, 100)) - set(range(60, 100, 10)) <= set(rows)
        assert len(rows) < 100

    def test_an_unreadable_segment_is_read_again(self, folder: StateFolder) -> None:
        names = folder.write([result(1)], total=1)
        content = (folder.path / names[0]).read_bytes()
        (folder.path / names[0]).unlink()
        (folder.path / names[0]).mkdir()
        assert rows_of(shown(folder)) == []
        (folder.path / names[0]).rmdir()
        (folder.path / names[0]).write_bytes(content)
        assert rows_of(shown(folder)) == [1]

    def test_data_is_not_kept_in_memory(self, folder: StateFolder) -> None:
        folder.write([result(1, data="x" * 100)], total=1)
        [(row, _)] = shown(folder).page.rows
        assert row.data is None
