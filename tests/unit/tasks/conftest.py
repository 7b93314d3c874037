"""Where submissions are recorded: the task state store, and an object store in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.tasks.submission_record import KEY
from tests.unit.conftest import TaskInstance
from tests.unit.images.conftest import Store as MemoryStore, filesystems, register

if TYPE_CHECKING:
    from tests.unit.builders import Context
    from tests.unit.images.conftest import Register

__all__ = ["filesystems", "register"]


class RealTaskInstance(TaskInstance):
    """A task instance with the number of attempts that Airflow allows, which grows after a Clear."""

    def __init__(self, max_tries: int) -> None:
        super().__init__()
        self.max_tries = max_tries
        self.recorded_state: str | None = "success"

    def get_task_states(
        self, *, dag_id: str, task_ids: list[str], run_ids: list[str], map_index: int
    ) -> dict[str, dict[str, str]]:
        assert (dag_id, task_ids, run_ids, map_index) == ("a_dag", ["a_task"], ["a_run"], -1)
        if self.recorded_state is None:
            raise ConnectionError("no API server")
        return {"a_run": {"a_task": self.recorded_state}}


class Store:
    """Where the record is kept, and the contexts of tasks that find it there."""

    def __init__(self) -> None:
        self.broken: set[str] = set()  # calls that fail: "set", or "set 2" for the second one
        self.calls: list[str] = []

    def attempt(self, ti: TaskInstance | None = None) -> Context:
        """Return the context of one attempt: XCom starts empty, the record is kept."""
        raise NotImplementedError

    @property
    def text(self) -> str | None:
        """The record as JSON, or None if there is none. May be set."""
        raise NotImplementedError

    @text.setter
    def text(self, text: str) -> None:
        raise NotImplementedError

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = json.loads(self.text or "{}")
        return entries

    @property
    def record(self) -> dict[str, Any]:
        """The entry of the only request."""
        [entry] = self.entries.values()
        return entry

    def change(self, **changes: Any) -> None:
        """Change the entry of the only request."""
        [(fingerprint, entry)] = self.entries.items()
        self.text = json.dumps({fingerprint: {**entry, **changes}})

    def fail_if_broken(self, what: str) -> None:
        self.calls.append(what)
        if {what, f"{what} {self.calls.count(what)}"} & self.broken:
            raise RuntimeError(f"{what} failed")


class TaskStateStore(Store):
    """Airflow's task state store as a task sees it, in memory."""

    text: str | None = None
    retention: Any = None

    def attempt(self, ti: TaskInstance | None = None) -> Context:
        return {"ti": ti or TaskInstance(), "task_state_store": self}

    def get(self, key: str, default: Any = None) -> Any:
        assert key == KEY
        self.fail_if_broken("get")
        return default if self.text is None else json.loads(self.text)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        assert key == KEY
        self.fail_if_broken("set")
        self.text, self.retention = json.dumps(value), retention

    def delete(self, key: str) -> None:
        assert key == KEY
        self.fail_if_broken("delete")
        self.text = None


class ObjectStorage(Store):
    """The setting ``submission_records``, with an object store in memory."""

    def __init__(self, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        breakable = self

        class Filesystem(MemoryStore):
            def cat_file(self, path: str, **options: Any) -> Any:
                breakable.fail_if_broken("get")
                return super().cat_file(path, **options)

            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                breakable.fail_if_broken("set")
                super().pipe_file(path, value, mode, **options)

            def rm_file(self, path: str) -> None:
                breakable.fail_if_broken("delete")
                super().rm_file(path)

        self.filesystem = register("memory", Filesystem())
        monkeypatch.setenv("AIRFLOW__MODELSCOPE__SUBMISSION_RECORDS", "memory://bucket/records/")

    def attempt(self, ti: TaskInstance | None = None) -> Context:
        return {"ti": ti or TaskInstance()}

    @property
    def text(self) -> str | None:
        [content] = self.filesystem.objects.values() or [None]
        return None if content is None else json.dumps(json.loads(content)[KEY])

    @text.setter
    def text(self, text: str) -> None:
        [name] = self.filesystem.objects
        self.filesystem.pipe_file(name, f'{{"{KEY}": {text}}}'.encode())


@pytest.fixture(params=["task state store", "object storage"])
def store(request: pytest.FixtureRequest, register: Register, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "task state store":
        return TaskStateStore()
    return ObjectStorage(register, monkeypatch)


class MortalTaskInstance(TaskInstance):
    """A task whose process ends when it pushes the XCom ``request``, right after it saved the record."""

    def xcom_push(self, key: str, value: Any) -> None:
        if key == "request":
            raise KeyboardInterrupt


def die(task: Any, store: Store) -> str:
    """Let an attempt end right after its submission was recorded; return the generation's id."""
    with pytest.raises(KeyboardInterrupt):
        task.execute(store.attempt(MortalTaskInstance()))
    return str(store.record["generation_id"])
