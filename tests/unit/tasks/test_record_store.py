"""The records in object storage: one whole object for each task instance, and nothing is sent without it."""

from __future__ import annotations

import json
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import InvalidDestinationError, SubmissionRecordError
from airflow_provider_modelscope.tasks.record_store import RecordStore
from airflow_provider_modelscope.tasks.submission_record import KEY
from tests.support.disk import full_disk
from tests.unit.builders import Context, one_step, rendered, submissions, submitter
from tests.unit.conftest import TaskInstance
from tests.unit.images.conftest import Store

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator
    from tests.unit.images.conftest import Register

pytestmark = pytest.mark.usefixtures("no_pauses")

HOSTILE_IDS = [
    "a",
    "b",
    "a.b",
    "b.c",
    "a/b",
    "a_b",
    "..",
    "../../escaped",
    "scheduled__2026-11-29T06:20:13+00:00",
    "scheduled__2026-11-29T06:20:13 00:00",
    "?versionId=1#a\n\0",
    "一只猫",
    "x" * 250,
    "x" * 249 + "y",
]


def set_folder(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("AIRFLOW__MODELSCOPE__SUBMISSION_RECORDS", folder)


def record_store(folder: str, *ids: Any) -> RecordStore:
    names = ("dag_id", "run_id", "task_id", "map_index")
    return RecordStore(folder, SimpleNamespace(**dict(zip(names, ids or ("a", "b", "c", -1), strict=True))))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder that the setting names."""
    folder = tmp_path / "records"
    folder.mkdir()
    set_folder(monkeypatch, f"file://{folder}/")
    return folder


class TestSetting:
    @pytest.mark.parametrize(
        ("setting", "problem"),
        [
            ("records/", "must be a URI such as 's3://bucket/folder/'"),
            ("/data/records/", "must be a URI"),
            ("   ", "must be a URI"),
            (" memory://bucket/records/", "must be a URI"),
            ("memory://bucket/records/ ", "must be a folder: end it with '/'"),
            ("memory://bucket/records", "must be a folder: end it with '/'"),
            ("memory://bucket", "end it with '/'"),
            ("memory:///records/", "contains no bucket"),
            ("memory://bucket/../records/", "must not contain the folders '.' and '..'"),
            ("memory://bucket/records/\n", "control characters"),
            ("file://records/", "a local path has three slashes"),
            ("file://{file}/", "is a file: name a folder"),
            ("ftp://server/records/", "No filesystem registered for scheme ftp"),
            (
                "memory://unknown@bucket/records/",
                "define that connection, or name another in it, as in 's3://conn_id@bucket/'",
            ),
        ],
    )
    def test_an_invalid_folder_is_an_error_before_anything_is_sent(
        self,
        emulator: Emulator,
        setting: str,
        problem: str,
        register: Register,
        context: Context,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        memory = register("memory")
        (tmp_path / "a_file").touch()
        setting = setting.replace("{file}", str(tmp_path / "a_file"))
        set_folder(monkeypatch, setting)
        for task in (submitter(), one_step(tmp_path)):
            with pytest.raises(InvalidDestinationError) as raised:
                task.execute(context)
            assert str(raised.value).startswith(f"[modelscope] submission_records = {setting!r}: ")
            assert problem in str(raised.value)
        assert not emulator.requests
        assert not memory.objects

    def test_its_error_stands_beside_those_of_the_parameters(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_folder(monkeypatch, "records")
        with pytest.raises(Exception, match=r"seed = .*submission_records = 'records': must be a URI"):
            rendered(submitter(), seed=-1).execute(context)

    def test_a_missing_local_folder_is_not_created(
        self, emulator: Emulator, context: Context, folder: Path
    ) -> None:
        folder.rmdir()  # a shared folder that is not mounted
        with pytest.raises(SubmissionRecordError, match=r"^\[modelscope\] submission_records = .* not exist"):
            submitter().execute(context)
        assert not emulator.requests
        assert not folder.exists()

    def test_the_task_state_store_is_preferred(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class TaskStateStore(dict[str, Any]):
            def set(self, key: str, value: Any, *, retention: Any = None) -> None:
                self[key] = value

        set_folder(monkeypatch, "invalid")
        context["task_state_store"] = store = TaskStateStore()
        assert submitter().execute(context)
        assert KEY in store

    def test_it_is_not_used_if_the_task_is_not_durable(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_folder(monkeypatch, "invalid")
        assert submitter(durable=False).execute(context)

    def test_its_connection_opens_the_folder(
        self, emulator: Emulator, context: Context, register: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = register("memory")
        monkeypatch.setenv("AIRFLOW_CONN_RECORDS", '{"conn_type": "aws", "host": "a-host"}')
        set_folder(monkeypatch, "memory://records@bucket/folder/")
        context["ti"].max_tries = 1
        submitter().execute(context)
        assert set(memory.opened_with) == {"a-host"}
        assert all(name.startswith("bucket/folder/") for name in memory.objects)
        assert memory.objects


class TestObject:
    def test_no_two_task_instances_share_one(self, tmp_path: Path) -> None:
        ids = [*product(HOSTILE_IDS, HOSTILE_IDS, HOSTILE_IDS[:6], (-1, 0, 1))]
        names = {str(record_store(f"file://{tmp_path}/", *instance)) for instance in ids}
        assert len(names) == len(ids)

    @pytest.mark.parametrize("hostile", HOSTILE_IDS, ids=ascii)
    def test_hostile_ids_stay_in_the_folder(self, hostile: str, folder: Path, register: Register) -> None:
        memory = register("memory")
        for uri in (f"file://{folder}/", "memory://bucket/records/"):
            store = record_store(uri, hostile, hostile, hostile, 0)
            store.set(KEY, {"a": 1})
            assert store.get(KEY) == {"a": 1}
        [file] = folder.parent.rglob("*.json")
        assert file.parent == folder
        assert len(file.name) <= 255
        assert list(memory.objects) == [f"bucket/records/{file.name}"]

    def test_its_name_shows_whose_it_is(self) -> None:
        name = str(record_store("s3://bucket/", "a_dag", "manual__2026-11-29T06:20:13+00:00", "draw", 3))
        assert name.startswith("s3://bucket/a_dag.manual__2026-11-29T06_20_13_00_00.draw.3-")

    def test_a_failed_write_keeps_the_old_record(self, folder: Path) -> None:
        store = record_store(f"file://{folder}/")
        store.set(KEY, {"a": 1})
        with full_disk(at=5), pytest.raises(OSError, match="File too large"):
            store.set(KEY, {"a": 2})
        assert store.get(KEY) == {"a": 1}
        assert len(list(folder.iterdir())) == 1

    def test_deleting_twice_is_no_error(self, folder: Path) -> None:
        store = record_store(f"file://{folder}/")
        store.set(KEY, {"a": 1})
        for _ in range(2):
            store.delete(KEY)
            assert store.get(KEY) is None

    def test_what_another_process_wrote_is_read(self, register: Register) -> None:
        class Cached(Store):
            """A store whose client knows only what it has listed before."""

            def __init__(self) -> None:
                super().__init__()
                self.is_stale = True

            def invalidate_cache(self, path: str | None = None) -> None:
                self.is_stale = False

            def cat_file(self, path: str, **options: Any) -> Any:
                if self.is_stale:
                    raise FileNotFoundError(path)
                return super().cat_file(path, **options)

        memory = register("memory", Cached())
        store = record_store("memory://bucket/")
        store.set(KEY, {"a": 1})
        memory.is_stale = True
        assert store.get(KEY) == {"a": 1}


class TestTask:
    def test_a_retry_resumes_from_a_shared_folder(
        self, emulator: Emulator, folder: Path, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("image:500:5")
        with pytest.raises(Exception, match="Cannot download"):
            one_step(tmp_path).execute(context)
        [record] = folder.iterdir()
        [entry] = json.loads(record.read_text())[KEY].values()
        generation_id = entry["generation_id"]
        context["ti"] = TaskInstance()
        [uri] = one_step(tmp_path).execute(context)
        assert generation_id in uri
        assert emulator.accepted == 1
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        "fault", [PermissionError("Access Denied"), TimeoutError("no response")], ids=str
    )
    def test_what_cannot_be_read_is_not_missing(
        self,
        emulator: Emulator,
        fault: Exception,
        context: Context,
        register: Register,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Failing(Store):
            def cat_file(self, path: str, **options: Any) -> Any:
                raise fault

        register("memory", Failing())
        set_folder(monkeypatch, "memory://bucket/records/")
        with pytest.raises(SubmissionRecordError, match=f"'memory://bucket/.* cannot be read: .*{fault}"):
            submitter().execute(context)
        assert not emulator.requests

    def test_a_missing_bucket_stops_the_task(
        self, emulator: Emulator, context: Context, register: Register, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Missing(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                raise FileNotFoundError("The specified bucket does not exist")

        register("memory", Missing())
        set_folder(monkeypatch, "memory://bucket/records/")
        with pytest.raises(SubmissionRecordError, match=r"cannot be written: .*bucket does not exist"):
            submitter().execute(context)
        assert not submissions(emulator)

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"null", b"[]", b"\xff\0", b'{"other": {}}', f'{{"{KEY}": null}}'.encode()]
    )
    def test_a_damaged_object_is_named(
        self, emulator: Emulator, content: bytes, context: Context, folder: Path
    ) -> None:
        store = RecordStore(f"file://{folder}/", context["ti"])
        store.set(KEY, {})
        [file] = folder.iterdir()
        file.write_bytes(content)
        with pytest.raises(
            SubmissionRecordError, match=r"^Invalid record 'file://.*\.json', nothing was sent"
        ):
            submitter().execute(context)
        assert not emulator.requests
