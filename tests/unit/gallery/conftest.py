"""What the gallery's tests share: XCom entries, images, Airflow's tables, and an object store."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow import __version__
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import Image as Pillow

from airflow_provider_modelscope.links import HAS_GALLERY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from airflow.triggers.base import BaseTrigger
    from fastapi.testclient import TestClient
    from sqlalchemy import CursorResult

HAS_LOOPS = not __version__.startswith(("3.0.", "3.1.", "3.2.", "3.3."))

needs_loops = pytest.mark.skipif(not HAS_LOOPS, reason="Airflow has loops from 3.4 on")
SIGNED_IN = {"Authorization": "Bearer a-token"}

needs_gallery = pytest.mark.skipif(not HAS_GALLERY, reason="Airflow 3.0 has no tabs for plugins")


def encoded(format_: str = "PNG", size: tuple[int, int] = (640, 400), mode: str = "RGB") -> bytes:
    file = BytesIO()
    Pillow.new(mode, size, "red" if mode.startswith("RGB") else 1).save(file, format_)
    return file.getvalue()


def entry(generation_id: str = "42", **facts: Any) -> dict[str, Any]:
    """Return an entry of the XCom ``images``."""
    return {
        "uri": f"s3://bucket/{generation_id}.png",
        "storage_conn_id": "my_s3",
        "sha256": "ab" * 32,
        "size_bytes": 5,
        "width": 64,
        "height": 32,
        "generation_id": generation_id,
        "duration_ms": 5412.9,
        "credit": 0.5,
        "parameters": {"model": "a/b", "prompt": "A cat", "seed": 0, "steps": 30},
        **facts,
    }


def entry_of(uri: str, content: bytes, **facts: Any) -> dict[str, Any]:
    """Return the entry of an image that is stored at a URI."""
    sha256 = hashlib.sha256(content).hexdigest()
    return entry(uri=uri, storage_conn_id=None, sha256=sha256, size_bytes=len(content)) | facts


class Bucket(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """``memory://bucket/``, which counts what is asked, and holds reads back until ``released`` is set."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.bytes_read = 0
        self.reads = 0
        self.descriptions = 0
        self.released = threading.Event()
        self.released.set()
        self._lock = threading.Lock()

    def put_image(self, content: bytes, *, name: str = "a.png", **facts: Any) -> dict[str, Any]:
        """Store an image, and return its entry of the XCom ``images``."""
        self.pipe_file(f"/bucket/{name}", content)
        return entry_of(f"memory://bucket/{name}", content, **facts)

    def info(self, path: str, **options: Any) -> Any:
        with self._lock:
            self.descriptions += 1
        return super().info(path, **options)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super().open(path, mode, **options)
        with self._lock:
            self.reads += 1
        self.released.wait()
        return _CountingFile(self, self.cat_file(path))


class _CountingFile(BytesIO):
    def __init__(self, bucket: Bucket, content: bytes) -> None:
        super().__init__(content)
        self._bucket = bucket

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self._bucket.bytes_read += len(content)
        return content


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    # The registry of providers' filesystems moved after Airflow 3.1.
    module = import_module("airflow.sdk.io.fs" if find_spec("airflow.sdk.io.fs") else "airflow.io")
    bucket = Bucket()
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    monkeypatch.setitem(module._register_filesystems(), "memory", lambda conn_id: bucket)
    return bucket


class Database:
    """Rows of the tables that the gallery reads."""

    def __init__(self) -> None:
        self._runs: list[tuple[str, str]] = []
        self._tasks: dict[tuple[Any, ...], Any] = {}

    def add_run(self, dag_id: str = "a_dag", run_id: str = "a_run", state: str = "running") -> None:
        from airflow.models.dagrun import DagRun

        self._insert(
            DagRun,
            id=self._row_of(dag_id, run_id),
            dag_id=dag_id,
            run_id=run_id,
            state=state,
            run_type="manual",
            run_after=datetime.now(UTC),
            log_template_id=1,
        )

    def add_dag(self, **columns: bool) -> None:
        from airflow.models.dag import DagModel

        limits = {"max_active_tasks": 16, "max_consecutive_failed_dag_runs": 0}
        flags = {"has_task_concurrency_limits": False, "is_stale": False, "is_paused": False} | columns
        self._insert(DagModel, dag_id="a_dag", bundle_name="a_bundle", **limits, **flags)

    def add_heartbeat(self, at: datetime, job_type: str = "TriggererJob") -> None:
        """Add a process of Airflow that was last seen at a time."""
        from airflow.jobs.job import Job

        self._insert(Job, job_type=job_type, latest_heartbeat=at)

    def add_trigger(self, trigger: BaseTrigger, created_at: datetime) -> int:
        """Add a trigger, and return its id."""
        from airflow.models.trigger import Trigger

        classpath, arguments = trigger.serialize()
        kwargs = Trigger.encrypt_kwargs(arguments)
        return int(self._insert(Trigger, classpath=classpath, kwargs=kwargs, created_date=created_at)[0])

    def add_task(
        self,
        task_id: str = "draw",
        map_index: int = -1,
        *,
        dag_id: str = "a_dag",
        run_id: str = "a_run",
        region_id: UUID | None = None,
        **columns: Any,
    ) -> UUID:
        """Add a task instance, and return the id of its attempt."""
        from airflow.models.taskinstance import TaskInstance

        ids: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id}
        ids |= {"region_index" if HAS_LOOPS else "map_index": map_index}
        ids |= {"region_id": region_id} if region_id else {}
        key = self._insert(TaskInstance, pool="default_pool", pool_slots=1, **ids, **columns)
        self._tasks[dag_id, run_id, task_id, map_index, region_id] = key[0]
        return cast("UUID", key[0])

    def add_log(self, event: str, at: datetime, **columns: Any) -> None:
        """Add an entry of Airflow's audit log about the run ``a_run``."""
        from airflow.models.log import Log

        self._insert(Log, event=event, dttm=at, **{"dag_id": "a_dag", "run_id": "a_run", **columns})

    def render(self, fields: Any, task_id: str = "draw", map_index: int = -1) -> None:
        """Add the rendered parameters of a task instance of the run ``a_run``."""
        from airflow.models.renderedtifields import RenderedTaskInstanceFields

        ids: dict[str, Any] = {
            "dag_id": "a_dag",
            "run_id": "a_run",
            "task_id": task_id,
            "map_index": map_index,
        }
        if HAS_LOOPS:
            ids = {"task_instance_id": self._tasks["a_dag", "a_run", task_id, map_index, None]}
        self._insert(RenderedTaskInstanceFields, rendered_fields=fields, **ids)

    def push(self, value: Any, key: str = "images", **ids: Any) -> None:
        """Add an XCom; from Airflow 3.4 on also its task instance, if there is none."""
        self.push_text(json.dumps(value), key, **ids)

    def push_text(
        self,
        text: str,
        key: str = "images",
        *,
        dag_id: str = "a_dag",
        run_id: str = "a_run",
        task_id: str = "draw",
        map_index: int = -1,
        region_id: UUID | None = None,
    ) -> None:
        """Add an XCom of this JSON: a text in a JSON column, as Airflow's task SDK sends it."""
        from airflow.models import xcom

        columns = {"key": key, "value": text, "timestamp": datetime.now(UTC)}
        ids: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id}
        instance: dict[str, Any] = {"task_id": task_id, "map_index": map_index}
        if not HAS_LOOPS:
            row = self._row_of(dag_id, run_id)
            self._insert(xcom.XComModel, dag_run_id=row, **ids, **instance, **columns)
            return
        if (dag_id, run_id) not in self._runs:
            self.add_run(**ids)
        task = (dag_id, run_id, task_id, map_index, region_id)
        if task not in self._tasks:
            self.add_task(**ids, **instance, region_id=region_id)
        self._insert(xcom.XComModelV2, task_instance_id=self._tasks[task], **columns)

    def update(self, model: Any, run_id: str | None = None, **columns: Any) -> None:
        """Change all rows of a table, or those of a run."""
        from airflow.utils.session import create_session
        from sqlalchemy import update

        with create_session() as session:
            of_run = [] if run_id is None else [model.run_id == run_id]
            session.execute(update(model).where(*of_run).values(**columns))

    def _row_of(self, dag_id: str, run_id: str) -> int:
        if (dag_id, run_id) not in self._runs:
            self._runs.append((dag_id, run_id))
        return self._runs.index((dag_id, run_id)) + 1

    def _insert(self, model: Any, **columns: Any) -> Any:
        """Add a row, and return its primary key."""
        from airflow.utils.session import create_session
        from sqlalchemy import insert

        with create_session() as session:
            inserted = session.execute(insert(model.__table__).values(**columns))
            return cast("CursorResult[Any]", inserted).inserted_primary_key


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Airflow's own tables, empty. Foreign keys are not checked: a test adds only the rows that it needs."""
    from airflow import settings
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from sqlalchemy import create_engine
    from sqlalchemy.orm import configure_mappers, scoped_session, sessionmaker

    import_all_models()  # type: ignore[no-untyped-call] # foreign keys lead to all of them
    with warnings.catch_warnings(action="ignore"):  # Airflow 3.1 uses what newer SQLAlchemys deprecate
        configure_mappers()
    names = {"dag", "dag_bundle", "dag_bundle_team", "dag_run", "job", "task_instance", "team", "trigger"}
    names |= {"log", "rendered_task_instance_fields", "xcom"}
    # From Airflow 3.4 on:
    names |= {"dynamic_region", "legacy_task_data_owner", "rtif_v2", "xcom_v1", "xcom_v2"}
    tables = [table for table in Base.metadata.tables.values() if table.name in names]
    engine = create_engine(f"sqlite:///{tmp_path}/airflow.db")
    Base.metadata.create_all(engine, tables=tables)
    monkeypatch.setattr(settings, "Session", scoped_session(sessionmaker(engine)))
    yield Database()
    engine.dispose()


class AuthManager:
    """Airflow's auth manager, with one user, whose requests for access it records."""

    def __init__(self) -> None:
        self.is_allowed = True
        self.requests: list[SimpleNamespace] = []
        self.user = object()

    async def get_user_from_token(self, token: str) -> object:
        return self.user

    def is_authorized_dag(self, **request: Any) -> bool:
        self.requests.append(SimpleNamespace(**request))
        return self.is_allowed


@pytest.fixture
def auth_manager(monkeypatch: pytest.MonkeyPatch) -> AuthManager:
    manager = AuthManager()
    monkeypatch.setattr("airflow.api_fastapi.core_api.security.get_auth_manager", lambda: manager)
    return manager


@pytest.fixture
def client(auth_manager: AuthManager, database: Database) -> Iterator[TestClient]:
    """A signed-in user's browser, and a run whose task is running."""
    database.add_run()
    database.add_task(state="running", operator="ModelScopeImageGenerationOperator")
    from fastapi.testclient import TestClient

    from airflow_provider_modelscope.gallery.app import make_app

    with TestClient(make_app(), headers=SIGNED_IN) as client:
        yield client
