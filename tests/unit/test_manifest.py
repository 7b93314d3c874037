"""The values that a batch's state and manifest hold: written as JSON, and read from anything."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import GenerationRejectedError
from airflow_provider_modelscope.manifest import (
    ManifestRow,
    Progress,
    Result,
    RowError,
    RunningRow,
    Segment,
)
from tests.unit.builders import IMAGE

ERROR = RowError(type="GenerationRejectedError", message="The prompt was rejected.", request_id="r-1")
STORED = Result(
    key="cat-one",
    row=17,
    status="stored",
    fingerprint="ab12",
    image=IMAGE,
    further_images=(replace(IMAGE, uri="s3://bucket/42-2.png"),),
    model="a/b",
    asked_model="c/d",
    generation_id="42",
    credit=0.5,
    prompt="一只猫",
    data={"product": [1, None, {"name": "é"}]},
    finished_at=1790000000.5,
)
REJECTED = replace(STORED, status="rejected", image=None, further_images=(), error=ERROR)
RUNNING = RunningRow(
    key="cat-two",
    number=18,
    prompt="Two cats",
    fingerprint="cd34",
    generation_id="43",
    submitted_at=1790000001.0,
    model="a/b",
    asked_model="c/d",
    credit=0.5,
    attempts=2,
)
RUNNING_JSON = {
    "total": 20,
    "counts": {"stored": 15, "rejected": 1, "failed": 2, "skipped": 0},
    "started_at": 1790000000.0,
    "updated_at": 1790000009.5,
    "spent": 9.5,
    "per_minute": 11.5,
    "stopped_by": "credit",
    "is_finished": True,
    "running": [vars(RUNNING)],
    "results": [STORED.to_json(), REJECTED.to_json()],
}
PROGRESS = Progress(
    **RUNNING_JSON  # type: ignore[arg-type] # the two that differ are replaced
    | {"running": (RUNNING,), "results": (STORED, REJECTED)}
)
NO_VALUES = [None, 5, "x", [], {}, [STORED.to_json()], {"key": "a"}]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


class TestResult:
    @pytest.mark.parametrize("result", [STORED, REJECTED], ids=lambda result: result.status)
    def test_it_survives_json(self, result: Result) -> None:
        assert Result.from_json(through_json(result.to_json())) == result

    def test_a_field_of_its_writer_is_ignored(self) -> None:
        assert Result.from_json(STORED.to_json() | {"attempts": 2}) == STORED

    @pytest.mark.parametrize("value", NO_VALUES, ids=str)
    def test_other_values_are_none(self, value: Any) -> None:
        assert Result.from_json(value) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            {"key": None},
            {"key": ""},
            {"row": 0},
            {"row": -1},
            {"row": True},
            {"row": 1.5},
            {"row": 10**400},
            {"status": "running"},
            {"status": ["stored"]},
            {"image": None},
            {"image": {"uri": "s3://bucket/1.png"}},
        ],
        ids=str,
    )
    def test_one_without_its_place_status_or_image_is_none(self, wrong: dict[str, Any]) -> None:
        assert Result.from_json(STORED.to_json() | wrong) is None

    @pytest.mark.parametrize(
        ("name", "wrong", "read"),
        [
            ("fingerprint", 5, None),
            ("further_images", 5, ()),
            ("further_images", [None, {"uri": 5}], ()),
            ("model", ["a/b"], None),
            ("asked_model", 5, None),
            ("generation_id", 42, None),
            ("credit", "much", None),
            ("credit", float("nan"), None),
            ("error", "it failed", None),
            ("error", {"type": "X"}, None),
            ("prompt", {"a": 1}, None),
            ("prompt", "half \ud83d", "half \ufffd"),
            ("finished_at", -5, None),
        ],
    )
    def test_a_wrong_optional_fact_is_none(self, name: str, wrong: Any, read: Any) -> None:
        assert Result.from_json(STORED.to_json() | {name: wrong}) == replace(STORED, **{name: read})

    def test_a_row_that_is_not_stored_has_no_images(self) -> None:
        entry = STORED.to_json() | {"status": "failed"}
        result = Result.from_json(entry)
        assert result
        assert result.images == ()
        assert len(STORED.images) == 2


def test_an_error_is_recorded_with_its_class_and_request() -> None:
    error = GenerationRejectedError("The prompt was rejected.", request_id="r-1", generation_id="42")
    assert RowError.of(error) == ERROR
    assert RowError.of(ValueError("two\nlines")) == RowError(type="ValueError", message="two lines")


class TestManifestRow:
    @pytest.mark.parametrize("result", [STORED, REJECTED], ids=lambda result: result.status)
    def test_it_survives_json(self, result: Result) -> None:
        row = ManifestRow.of(result)
        assert ManifestRow.from_json(through_json(row.to_json())) == row

    def test_its_columns_have_their_order_and_values(self) -> None:
        assert list(ManifestRow.of(STORED).to_json().items()) == [
            ("key", "cat-one"),
            ("row", 17),
            ("status", "stored"),
            ("uri", "s3://bucket/42-1.png"),
            ("sha256", "ab" * 32),
            ("width", 64),
            ("height", 32),
            ("seed", 7),
            ("model", "a/b"),
            ("asked_model", "c/d"),
            ("generation_id", "42"),
            ("credit", 0.5),
            ("error", None),
            ("data", {"product": [1, None, {"name": "é"}]}),
            ("further_uris", ["s3://bucket/42-2.png"]),
        ]
        assert ManifestRow.of(REJECTED).to_json()["error"] == {
            "type": "GenerationRejectedError",
            "message": "The prompt was rejected.",
            "request_id": "r-1",
        }

    @pytest.mark.parametrize("value", NO_VALUES, ids=str)
    def test_other_values_are_none(self, value: Any) -> None:
        assert ManifestRow.from_json(value) is None

    def test_wrong_optional_facts_are_none(self) -> None:
        row = ManifestRow.of(STORED)
        required = {"key", "row", "status", "data"}
        wrong = {field.name: object() for field in fields(row) if field.name not in required}
        expected: dict[str, Any] = dict.fromkeys(wrong) | {"further_uris": ()}
        assert ManifestRow.from_json(row.to_json() | wrong) == replace(row, **expected)


class TestProgress:
    def test_it_is_what_the_object_says(self) -> None:
        assert Progress.from_json(through_json({"modelscope_batch": RUNNING_JSON})) == PROGRESS
        assert PROGRESS.finished == 18

    @pytest.mark.parametrize(
        "document",
        [
            *NO_VALUES,
            RUNNING_JSON,
            {"modelscope_batch": None},
            {"modelscope_batch": {"total": 5}},
            {"modelscope_batch": {"total": "5", "counts": {}}},
            {"modelscope_batch": {"total": 5, "counts": [1]}},
        ],
        ids=str,
    )
    def test_other_documents_are_none(self, document: Any) -> None:
        assert Progress.from_json(document) is None

    def test_wrong_optional_facts_are_none(self) -> None:
        wrong = dict.fromkeys(set(RUNNING_JSON) - {"total"}, "?") | {"counts": {"stored": "?", "new": 5}}
        nothing = dict.fromkeys(("stored", "rejected", "failed", "skipped"), 0)
        expected = Progress(total=20, counts=nothing, stopped_by="?")
        assert Progress.from_json({"modelscope_batch": RUNNING_JSON | wrong}) == expected

    def test_rows_that_are_none_are_left_out(self) -> None:
        running = [{"key": "a", "number": 0}, 5, vars(RUNNING)]
        document = {"modelscope_batch": RUNNING_JSON | {"running": running, "results": [None, {}]}}
        assert Progress.from_json(document) == replace(PROGRESS, results=())


class TestSegment:
    def test_its_name_is_read_back(self) -> None:
        segment = Segment(sequence=12, count=50, without_image=3, token="0123abcd")
        assert segment.name == "results-000012-50-3-0123abcd.jsonl"
        assert Segment.from_name(segment.name) == segment

    @pytest.mark.parametrize(
        "name",
        [
            "running.json",
            "results-000012-50-3-0123abcd.json",
            "results-12-50-3-0123abcd.jsonl",
            "results-0000012-50-3-0123abcd.jsonl",
            "results-000012-050-3-0123abcd.jsonl",
            "results-000012-50-51-0123abcd.jsonl",
            "results-000012-0-0-0123abcd.jsonl",
            "results-000012-50-3-0123ABCD.jsonl",
            "results-00001٢-50-3-0123abcd.jsonl",
            "results-000012-50-3-0123abcd.jsonl\n",
            "../results-000012-50-3-0123abcd.jsonl",
        ],
    )
    def test_other_names_are_none(self, name: str) -> None:
        assert Segment.from_name(name) is None
