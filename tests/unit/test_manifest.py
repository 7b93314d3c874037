"""What a batch's state and manifest hold: values as JSON, read from anything; manifests, read as a stream."""

from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import fields, replace
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from airflow_provider_modelscope.exceptions import (
    GenerationRejectedError,
    InvalidRequestError,
    ModelScopeRetryableError,
)
from airflow_provider_modelscope.manifest import (
    ManifestRow,
    Progress,
    Result,
    RowError,
    RunningRow,
    Segment,
    read,
    require_pyarrow,
    write,
)
from tests.unit.builders import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

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


has_pyarrow = pytest.mark.skipif(not find_spec("pyarrow"), reason="pyarrow is an extra")
FORMATS = ["jsonl", pytest.param("parquet", marks=has_pyarrow)]
ROWS = [ManifestRow.of(STORED), ManifestRow.of(REJECTED), replace(ManifestRow.of(STORED), data=None)]


def written(rows: Iterable[ManifestRow], format_: Any) -> bytes:
    file = BytesIO()
    write(rows, file, format_)
    return file.getvalue()


def numbered(count: int, *, start: int = 1, data: Any = None) -> Iterator[ManifestRow]:
    for number in range(start, start + count):
        yield replace(
            ROWS[0], key=f"{number:06}", row=number, data=None if data is None else f"{data}{number}"
        )


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a store with the scheme ``memory``: a remote one, as far as the provider knows."""
    # The registry of providers' filesystems moved after Airflow 3.1.
    module = import_module("airflow.sdk.io.fs" if find_spec("airflow.sdk.io.fs") else "airflow.io")
    store = MemoryFileSystem(skip_instance_cache=True)
    monkeypatch.setattr(store, "store", {})
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    monkeypatch.setitem(module._register_filesystems(), "memory", lambda conn_id: store)
    return store


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


class TestManifest:
    @pytest.mark.parametrize("format_", FORMATS)
    def test_it_is_read_as_it_was_written(self, format_: str, tmp_path: Path, store: Any) -> None:
        content = written(ROWS, format_)
        (tmp_path / f"manifest.{format_}").write_bytes(content)
        store.pipe_file(f"/bucket/manifest.{format_}", content)
        for folder in (f"file://{tmp_path}/", "memory://bucket/"):
            assert list(read(f"{folder}manifest.{format_}")) == ROWS

    def test_a_line_holds_the_columns_as_readable_json(self) -> None:
        [line] = written([replace(ROWS[1], data="一只猫")], "jsonl").splitlines()
        assert list(json.loads(line)) == [field.name for field in fields(ManifestRow)]
        assert "一只猫".encode() in line

    @pytest.mark.parametrize("format_", FORMATS)
    @pytest.mark.parametrize("data", [10**400, [[[]]], "\0", "\u2028", "", 0, False, {}], ids=repr)
    def test_odd_data_is_kept(self, format_: str, data: Any, tmp_path: Path) -> None:
        row = replace(ROWS[0], data=data)
        (tmp_path / f"manifest.{format_}").write_bytes(written([row], format_))
        assert list(read(f"file://{tmp_path}/manifest.{format_}")) == [row]

    @pytest.mark.parametrize("format_", FORMATS)
    def test_halves_of_surrogate_pairs_are_replaced(self, format_: str, tmp_path: Path) -> None:
        row = replace(ROWS[0], data={"half \ud83d": "\udc08"})
        (tmp_path / f"manifest.{format_}").write_bytes(written([row], format_))
        [row] = read(f"file://{tmp_path}/manifest.{format_}")
        assert row.data == {"half \ufffd": "\ufffd"}

    @pytest.mark.parametrize("format_", FORMATS)
    def test_a_batch_without_rows_has_an_empty_one(self, format_: str, tmp_path: Path) -> None:
        (tmp_path / f"manifest.{format_}").write_bytes(written([], format_))
        assert list(read(f"file://{tmp_path}/manifest.{format_}")) == []

    @has_pyarrow
    def test_the_columns_of_parquet_do_not_depend_on_the_rows(self) -> None:
        from pyarrow.parquet import ParquetFile

        full, empty = (ParquetFile(BytesIO(written(rows, "parquet"))).schema_arrow for rows in (ROWS, []))
        assert full == empty
        assert full.names == [field.name for field in fields(ManifestRow)]

    @pytest.mark.parametrize("format_", FORMATS)
    def test_memory_does_not_grow_with_it(self, format_: str, tmp_path: Path) -> None:
        path = tmp_path / f"manifest.{format_}"

        def peak(count: int) -> int:
            tracemalloc.start()
            try:
                with path.open("wb") as file:
                    write(numbered(count, data="x" * 2000), file, format_)  # type: ignore[arg-type]
                assert sum(1 for _ in read(f"file://{path}")) == count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(1)
        assert peak(3000) < peak(1000) + 1_000_000


class TestRead:
    def test_a_list_is_read_in_its_order(self, tmp_path: Path) -> None:
        uris = []
        for name, rows in {"b": ROWS[:1], "a": ROWS[1:]}.items():
            (tmp_path / f"{name}.jsonl").write_bytes(written(rows, "jsonl"))
            uris.append(f"file://{tmp_path}/{name}.jsonl")
        assert list(read(uris)) == ROWS

    def test_return_values_of_batches_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.jsonl").write_bytes(written(ROWS, "jsonl"))
        value = {"manifest": f"file://{tmp_path}/manifest.jsonl", "counts": {"stored": 3}}
        assert list(read(value)) == ROWS
        assert list(read([value, value])) == ROWS + ROWS

    @pytest.mark.parametrize("root", ["file://", "memory://bucket"])
    def test_shards_in_a_folder_are_read_as_one(self, root: str, tmp_path: Path, store: Any) -> None:
        for shard in range(12):
            content = written(numbered(2, start=2 * shard + 1), "jsonl")
            (tmp_path / f"manifest-{shard}-of-12.jsonl").write_bytes(content)
            store.pipe_file(f"/bucket{tmp_path}/manifest-{shard}-of-12.jsonl", content)
        (tmp_path / "000001.png").write_bytes(b"an image")
        (tmp_path / "manifest-old.jsonl").write_bytes(b"a copy by a person")
        assert [row.row for row in read(f"{root}{tmp_path}/")] == list(range(1, 25))

    @pytest.mark.parametrize(
        ("names", "problem"),
        [
            ([], "holds no manifest. A batch writes it when it ends"),
            (["000001.png", "manifest.jsonl.tmp"], "holds no manifest"),
            (
                ["manifest-0-of-3.jsonl", "manifest-2-of-3.jsonl"],
                "no manifest of shard 1 of 3 (the first is 0)",
            ),
            (["manifest-0-of-3.jsonl"], "no manifest of shard 1, 2 of 3"),
            (["manifest-0-of-1.jsonl", "manifest-0-of-2.jsonl", "manifest-1-of-2.jsonl"], "belong together"),
            (["manifest.jsonl", "manifest-0-of-1.jsonl"], "(manifest.jsonl, manifest-0-of-1.jsonl)"),
            (["manifest.jsonl", "manifest.parquet"], "belong together"),
        ],
        ids=str,
    )
    def test_an_incomplete_or_mixed_folder_is_an_error(
        self, names: list[str], problem: str, tmp_path: Path
    ) -> None:
        for name in names:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(InvalidRequestError) as raised:
            list(read(f"file://{tmp_path}/"))
        assert raised.value.message.startswith(f"uri = 'file://{tmp_path}/': ")
        assert problem in raised.value.message

    @pytest.mark.parametrize("uri", ["file:///nowhere/", "memory://nowhere/"])
    def test_a_missing_folder_holds_no_manifest(self, uri: str, store: Any) -> None:
        with pytest.raises(InvalidRequestError, match="holds no manifest"):
            list(read(uri))

    @pytest.mark.parametrize("uri", ["file:///nowhere/manifest.jsonl", "memory://nowhere/manifest.jsonl"])
    def test_a_missing_manifest_is_an_error(self, uri: str, store: Any) -> None:
        with pytest.raises(InvalidRequestError, match=f"^uri = '{uri}': there is no such object"):
            list(read(uri))

    @pytest.mark.parametrize(
        ("uri", "problem"),
        [
            (None, "uri = None: must be the URI of a manifest"),
            (5, "uri = 5: must be the URI"),
            (["file:///a.jsonl", None], "uri = None: must be the URI"),
            ({"counts": {}}, "must be the URI of a manifest, or the return value of the task that wrote it"),
            ("file:///cats/1.png", "must end with .jsonl or .parquet, or with '/' to read a folder"),
            ("file:///cats", "must end with .jsonl"),
            ("", "must end with .jsonl"),
            ("manifest.jsonl", "must be a URI|cannot be opened|there is no such object"),
            ("nothing://bucket/manifest.jsonl", "cannot be opened"),
            ("s3://[x/manifest.jsonl", "is not a valid URI"),
        ],
        ids=str,
    )
    def test_a_wrong_uri_is_an_error(self, uri: Any, problem: str) -> None:
        with pytest.raises(InvalidRequestError, match=problem):
            list(read(uri))

    def test_errors_come_before_the_first_row(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.jsonl").write_bytes(written(ROWS, "jsonl"))
        with pytest.raises(InvalidRequestError, match="must end with"):
            next(read([f"file://{tmp_path}/manifest.jsonl", "file:///cats.txt"]))

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"{",
            b"5",
            b"[]",
            b"{}",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"key": "a", "row": 0, "status": "stored"}',
            b'{"key": "a", "row": 5, "status": "done"}',
            written(ROWS[:1], "jsonl")[:-20],
        ],
        ids=lambda line: repr(line[:20]),
    )
    def test_a_damaged_line_is_named(self, line: bytes, tmp_path: Path) -> None:
        (tmp_path / "manifest.jsonl").write_bytes(written(ROWS, "jsonl") + line + b"\n")
        rows = read(f"file://{tmp_path}/manifest.jsonl")
        assert [next(rows) for _ in ROWS] == ROWS
        with pytest.raises(InvalidRequestError, match="line 4 is damaged, or not of a manifest"):
            next(rows)

    def test_an_endless_line_is_not_read_whole(self, tmp_path: Path) -> None:
        with (tmp_path / "manifest.jsonl").open("wb") as file:
            file.truncate(200_000_000)  # of zeros, which take no space
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRequestError, match="line 1 is damaged"):
                next(read(f"file://{tmp_path}/manifest.jsonl"))
            assert tracemalloc.get_traced_memory()[1] < 100_000_000
        finally:
            tracemalloc.stop()

    @has_pyarrow
    @pytest.mark.parametrize(
        "damage", ["no parquet", "truncated", "other columns", "no JSON", "garbage inside"]
    )
    def test_a_damaged_parquet_file_is_an_error(self, damage: str, tmp_path: Path) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        path = tmp_path / "manifest.parquet"
        content = written(ROWS, "parquet")
        match damage:
            case "no parquet":
                path.write_bytes(b"{}")
            case "truncated":
                path.write_bytes(content[:-20])
            case "other columns":
                write_table(pyarrow.table({"name": ["a"]}), path)
            case "no JSON":
                write_table(
                    pyarrow.table({"key": ["a"], "row": [1], "status": ["failed"], "data": ["{"]}), path
                )
            case "garbage inside":
                path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
        with pytest.raises(InvalidRequestError, match=r"row \d is damaged|what follows row 0"):
            list(read(f"file://{path}"))

    def test_missing_pyarrow_is_named_before_anything_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (tmp_path / "manifest.parquet").write_bytes(b"")
        for uri in ("file:///nowhere/manifest.parquet", f"file://{tmp_path}/"):
            with pytest.raises(
                InvalidRequestError, match=r"pip install 'airflow-provider-modelscope\[parquet\]'"
            ):
                list(read(uri))
        with pytest.raises(InvalidRequestError, match=r"^manifest_format = 'parquet': Parquet needs pyarrow"):
            require_pyarrow("manifest_format = 'parquet'")

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (PermissionError("no"), InvalidRequestError),
            (ConnectionError("down"), ModelScopeRetryableError),
            (TimeoutError("slow"), ModelScopeRetryableError),
        ],
    )
    @pytest.mark.parametrize(
        ("call", "uri"), [("open", "memory://bucket/manifest.jsonl"), ("ls", "memory://bucket/")]
    )
    def test_a_retry_is_offered_only_if_it_can_help(
        self,
        error: Exception,
        kind: type[Exception],
        call: str,
        uri: str,
        store: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(store, call, failing(error))
        with pytest.raises(kind, match=f"^uri = '{uri}': cannot be read .*{error}"):
            list(read(uri))
