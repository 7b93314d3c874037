"""Fixtures of the unit tests: the emulator as the service, and a fake task instance of Airflow."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from airflow_provider_modelscope.compat import BaseHook
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.triggers import accounts
from airflow_provider_modelscope.waiting import credit

TOKEN = "ms-0b1c2d3e-test"

logging.getLogger("airflow.hooks.base").setLevel(logging.WARNING)  # Airflow 3.0 logs each connection


class TaskInstance:
    """The part of Airflow's task instance that our tasks use, in memory."""

    dag_id, run_id, task_id, map_index, try_number = "a_dag", "a_run", "a_task", -1, 1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        self.start_date = datetime.now(UTC)
        self.upstream: Any = None  # the XCom of every task upstream

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = json.loads(json.dumps(value))  # as the database stores it

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int | None = None) -> Any:
        is_own = (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.pushed.get(key) if is_own else self.upstream


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance()}


class Supervisor:
    """Airflow's side of a task that runs: it keeps the XComs that do not go through the XCom backend."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}
        self.error: Exception | None = None

    def send(self, message: Any) -> None:
        if self.error:
            raise self.error
        if message.type == "SetXCom":  # Airflow 3.0 also sends secrets to mask
            self.pushed[message.key] = message.value


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    supervisor = Supervisor()
    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that retries at once."""
    monkeypatch.setattr(ModelScopeHook, "sleep_before_retry", staticmethod(lambda seconds: None))


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A service whose generations finish at once, and the connection ``modelscope_default`` to it."""
    with Emulator(max_running=10) as emulator:
        connect(monkeypatch, emulator.base_url)
        yield emulator


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A service where nobody has credit, and the connection ``modelscope_default`` to it."""
    with Emulator(credit=0, retired_models=["a/retired"]) as emulator:
        connect(monkeypatch, emulator.base_url)
        yield emulator


@pytest.fixture
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a triggerer read the credit at once, and again."""
    monkeypatch.setattr(credit, "MIN_INTERVAL", 0.01)
    monkeypatch.setattr(credit, "MAX_INTERVAL", 0.02)


def serve_connections(monkeypatch: pytest.MonkeyPatch, read: Callable[[str], Awaitable[Any]]) -> None:
    """Let a triggerer read its connections from a function, as from a secrets backend."""
    monkeypatch.setattr(BaseHook, "aget_connection", staticmethod(read), raising=False)
    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(async_to_sync(read)))


def unreadable_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a triggerer read connections from a secrets backend that is away, without pauses."""

    async def read(connection_id: str) -> Any:
        raise OSError("the secrets backend is away")

    serve_connections(monkeypatch, read)
    monkeypatch.setattr(accounts, "RETRY_DELAYS", (0.0,))


def connect(
    monkeypatch: pytest.MonkeyPatch, host: str, connection_id: str = "modelscope_default", **extra: Any
) -> None:
    """Define a connection as deployments do, in the environment."""
    connection = {"conn_type": "modelscope", "password": TOKEN, "host": host, "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{connection_id.upper()}", json.dumps(connection))
