"""The rows of a batch and their results: each row is worked on once, and no result is taken for another."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.batch.working_set import WorkingSet
from tests.unit.batch.builders import fingerprint_of, row, with_fingerprints

if TYPE_CHECKING:
    from airflow_provider_modelscope.batch.rows import Row

STORED = {"status": "stored", "credit": 1.0}
ODD: dict[str, Any] = {
    "prompt": "一只猫 \u2028 \"'{{ x }}",
    "negative_prompt": "blurry",
    "size": "64x64",
    "seed": 2**31 - 1,
    "steps": 30,
    "guidance": 7.5,
    "image_url": ["https://images.example/a.png", "s3://bucket/b.png"],
    "loras": {"a/b": 0.4, "c/d": 0.6},
    "extra_parameters": {"sampler": "Euler a", "list": [1, None]},
    "key": "katze 猫",
    "data": {"id": [1, 2.5, None, True, "😀"]},
}


def set_of(*rows: Row) -> WorkingSet:
    working_set = WorkingSet()
    working_set.add(with_fingerprints(rows))
    return working_set


def result_of(one: Row, **given: Any) -> dict[str, Any]:
    return {**STORED, "key": one.key, **given}


def finish(rows: WorkingSet, one: Row, **given: Any) -> int:
    return rows.set_result(one.key, fingerprint_of(one), result_of(one, **given))


def statuses(rows: WorkingSet) -> list[str | None]:
    return [result["status"] if result else None for _, result in rows.results()]


def taken(rows: WorkingSet) -> list[int]:
    """Return the numbers of the rows that are still to be worked on."""
    numbers = []
    while work := rows.take():
        numbers.append(work.row.number)
    return numbers


def test_each_row_is_taken_once_in_order() -> None:
    rows = set_of(row(3), row(1), row(2))
    assert (len(rows), taken(rows), rows.take()) == (3, [1, 2, 3], None)


def test_a_row_comes_back_as_it_was_added() -> None:
    one = row(1, **ODD)
    rows = set_of(one)
    [(found, result)] = rows.results()
    assert (found, result) == (one, None)
    work = rows.take()
    assert work
    assert (work.row, work.fingerprint, work.attempts, work.submission) == (one, fingerprint_of(one), 0, None)


def test_a_plan_has_the_same_rows() -> None:
    rows = set_of(row(1, **ODD), row(5), row(7, seed=3), row(8, seed=3, prompt="Cat 7"))
    file = io.BytesIO()
    rows.write_plan(file)
    file.seek(0)
    again = WorkingSet()
    again.read_plan(file)
    assert list(again.results()) == list(rows.results())
    assert taken(again) == taken(rows) == [1, 5, 7]


@pytest.mark.parametrize(
    "line", [b"{", b"5", b"[1]", b'[1, "a", "f", 5, null]', b'[1, "a", "f", {"prompt": 5}, null]', b"\xff"]
)
def test_a_damaged_plan_adds_nothing(line: bytes) -> None:
    rows = WorkingSet()
    with pytest.raises(Exception):  # noqa: B017, PT011 - the state makes one error of it
        rows.read_plan([b'[1, "a", "f", {"prompt": "A cat", "model": "a/b"}, null]\n', line])
    assert len(rows) == 0


def test_after_an_error_no_row_is_added() -> None:
    rows = set_of(row(1))

    def failing() -> Any:
        yield from with_fingerprints([row(2)])
        raise KeyError("row 3")

    with pytest.raises(KeyError, match="row 3"):
        rows.add(failing())
    assert len(rows) == 1


def test_a_row_with_a_result_is_not_taken() -> None:
    rows = set_of(row(1), row(2), row(3))
    assert finish(rows, row(2)) == 1
    assert taken(rows) == [1, 3]
    assert statuses(rows) == [None, "stored", None]
    assert rows.counts() == {"stored": 1, "rejected": 0, "failed": 0, "skipped": 0}


def test_the_result_of_a_row_that_has_changed_is_not_used() -> None:
    rows = set_of(row(1))
    assert finish(rows, row(1, prompt="Another cat")) == 0
    assert finish(rows, row(9)) == 0
    assert taken(rows) == [1]


def test_a_result_can_be_cleared() -> None:
    rows = set_of(row(1), row(2))
    finish(rows, row(1))
    rows.clear_result("000001", fingerprint_of(row(1)))
    rows.clear_result("unknown", "unknown")
    assert taken(rows) == [1, 2]


def test_a_row_that_is_taken_by_its_key_is_not_taken_again() -> None:
    rows = set_of(row(1), row(2))
    work = rows.take_row("000002", fingerprint_of(row(2)))
    assert work
    assert work.row == row(2)
    assert rows.take_row("000002", fingerprint_of(row(2))) is None
    assert rows.take_row("000001", "another") is None
    rows.give_back(work)
    assert taken(rows) == [1, 2]


class TestTwins:
    """Equal rows with a seed are generated once."""

    ROWS = [row(number, prompt="A cat", seed=5, key=key) for number, key in ((1, "a"), (2, "b"), (3, "c"))]

    def test_only_the_first_is_taken_and_all_get_its_result(self) -> None:
        rows = set_of(*self.ROWS, row(4))
        assert taken(rows) == [1, 4]
        assert finish(rows, self.ROWS[0]) == 3
        assert statuses(rows) == ["stored", "stored", "stored", None]
        assert [result["credit"] for _, result in rows.results() if result] == [1, 0, 0]

    def test_an_unknown_price_stays_unknown(self) -> None:
        rows = set_of(*self.ROWS)
        finish(rows, self.ROWS[0], credit=None)
        assert [result["credit"] for _, result in rows.results() if result] == [None, None, None]

    def test_without_a_seed_each_is_taken(self) -> None:
        rows = set_of(*(row(number, prompt="A cat") for number in (1, 2, 3)))
        assert taken(rows) == [1, 2, 3]
        assert finish(rows, row(2, prompt="A cat")) == 1

    def test_they_are_cleared_together(self) -> None:
        rows = set_of(*self.ROWS)
        finish(rows, self.ROWS[0])
        rows.clear_result("a", fingerprint_of(self.ROWS[0]))
        assert statuses(rows) == [None] * 3

    @pytest.mark.parametrize("first", [1, 2])
    def test_the_result_of_any_is_that_of_all(self, first: int) -> None:
        rows = set_of(*self.ROWS[first - 1 :])
        assert finish(rows, self.ROWS[2]) == 4 - first
        assert taken(rows) == []

    def test_a_generation_of_any_is_that_of_the_first(self) -> None:
        rows = set_of(*self.ROWS)
        work = rows.take_row("c", fingerprint_of(self.ROWS[2]))
        assert work
        assert work.row.key == "a"


class TestRenamed:
    """The result of a row that is gone is that of another one with the same request and seed."""

    def test_a_row_with_a_seed_keeps_its_result(self) -> None:
        rows = set_of(row(1, seed=5, key="new"))
        assert finish(rows, row(1, seed=5, key="old")) == 1

    def test_a_row_without_a_seed_does_not(self) -> None:
        rows = set_of(row(1, key="new"))
        assert finish(rows, row(1, key="old")) == 0

    def test_not_if_another_request_now_has_the_name(self) -> None:
        moved, new = row(2, prompt="A cat", seed=5, key="b"), row(1, prompt="A dog", key="a")
        rows = set_of(new, moved)
        assert finish(rows, row(1, prompt="A cat", seed=5, key="a")) == 0
        assert taken(rows) == [1, 2]


class TestOverwritten:
    def test_a_later_image_of_the_same_name_undoes_the_result(self) -> None:
        rows = set_of(row(1), row(2))
        finish(rows, row(1))
        rows.clear_overwritten("000001", fingerprint_of(row(1)))
        assert statuses(rows) == ["stored", None]
        rows.clear_overwritten("000001", "another")
        assert statuses(rows) == [None, None]

    def test_also_if_the_row_was_renamed(self) -> None:
        rows = set_of(row(1, seed=5, key="new"))
        finish(rows, row(1, seed=5, key="old"))
        rows.clear_overwritten("old", "another")
        assert statuses(rows) == [None]


def test_models_are_counted_for_rows_without_a_result() -> None:
    twins = [row(number, prompt="A cat", seed=5, model="c/d") for number in (4, 5)]
    rows = set_of(row(1), row(2), row(3), *twins)
    finish(rows, row(2))
    assert rows.models() == {"a/b": 2, "c/d": 1}


class TestFirstFailure:
    ERROR = {"type": "GenerationFailedError", "message": "no image"}

    def test_it_names_the_row_and_says_if_a_retry_helps(self) -> None:
        rows = set_of(row(1), row(2), row(3))
        finish(rows, row(3), status="failed", error=self.ERROR, is_final=False)
        assert rows.first_failure() == ("row 3 (000003): GenerationFailedError: no image", True)
        finish(rows, row(2), status="rejected", error=self.ERROR, is_final=True)
        assert rows.first_failure() == ("row 2 (000002): GenerationFailedError: no image", True)
        finish(rows, row(3), status="failed", error=self.ERROR, is_final=True)
        assert rows.first_failure()[1] is False

    def test_a_failure_without_a_reason_is_shown_too(self) -> None:
        rows = set_of(row(1))
        finish(rows, row(1), status="failed")
        assert rows.first_failure() == ("row 1 (000001): an error: unknown", False)


def test_a_thousand_rows_take_no_time_for_each_result() -> None:
    equal = [row(number, prompt="A cat") for number in range(1, 1001)]
    rows = set_of(*equal)
    for one in equal:
        assert finish(rows, one) == 1
    assert rows.counts()["stored"] == 1000
