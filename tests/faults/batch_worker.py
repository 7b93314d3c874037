"""One attempt of a batch, or one part of it, in a process of its own that may be killed at a chosen moment.

It is a worker without the rest of Airflow. What it leaves is in the objects of the batch, and in two files
for the test: its log and how it ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_modelscope.compat import BaseHook, TaskDeferred, get_hook_lineage_collector
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.triggers.events import GenerationFinished
from airflow_provider_modelscope.waiting import intervals

# All workers are forks of one process, which has loaded what an operator loads when it runs.
for module in ("batch.run", "batch.state", "images.preflight", "tasks.parse_time", "transport.blocking"):
    import_module(f"airflow_provider_modelscope.{module}")
import_module("s3fs")
os.environ["AIRFLOW_CONN_NONE"] = "modelscope://"
BaseHook.get_connection("none")
get_hook_lineage_collector()
_ = ObjectStoragePath("file:///").fs


class Killer:
    """Kills a process (-9) when it comes to a moment for the ``nth`` time.

    :param at: The moment, such as ``poll arrives``. Empty: never.
    :param pid: The process. To start it later, hold the lock.
    """

    def __init__(self, at: str, nth: int, pid: int = 0) -> None:
        self.pid = pid
        self._at = at
        self._nth = nth
        self._passed: Counter[str] = Counter()
        self.lock = Lock()

    def passes(self, moment: str) -> bool:
        """Kill the process if this is the moment. Return whether it lives on."""
        with self.lock:
            self._passed[moment] += 1
            if moment != self._at or self._passed[moment] != self._nth:
                return True
        os.kill(self.pid, signal.SIGKILL)
        return False


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a worker is to do.

    :param connections: Airflow connections, as JSON, by their id.
    :param parameters: Of the operator.
    :param event: Of the trigger, if the part resumes a deferred task.
    :param kill_at: A moment that the worker sees itself: ``deferral``, or a file that is ``written`` and not
        yet renamed, or ``renamed``, such as ``plan written``.
    """

    connections: dict[str, str]
    parameters: dict[str, Any]
    try_number: int
    log: Path
    end: Path
    event: dict[str, Any] | None = None
    kill_at: str = ""
    nth: int = 1


@dataclass
class TaskInstance:
    """The part of Airflow's task instance that the operator uses."""

    try_number: int
    dag_id: str = "postcards"
    run_id: str = "monday"
    task_id: str = "draw"
    map_index: int = -1
    max_tries: int = 3
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int | None = None) -> Any:
        return None


def work(part: Part) -> None:
    """Do a part, and write how it ended: ``summary``, ``event`` of the trigger, or ``error``."""
    for name, connection in part.connections.items():
        os.environ[f"AIRFLOW_CONN_{name.upper()}"] = connection
    handler = logging.FileHandler(part.log)
    logging.getLogger().addHandler(handler)
    logging.getLogger("airflow_provider_modelscope").setLevel(logging.INFO)
    intervals.MIN_CLOSE_INTERVAL = 0.02
    killer = Killer(part.kill_at, part.nth, os.getpid())
    _watch_files(killer)
    task = ModelScopeImageBatchOperator(task_id="draw", **part.parameters)
    context: Any = {"ti": TaskInstance(part.try_number)}
    end: dict[str, Any]
    try:
        resumes = part.event is not None
        end = {"summary": task.execute_complete(context, part.event) if resumes else task.execute(context)}
    except TaskDeferred as deferral:
        killer.passes("deferral")
        _, arguments = deferral.trigger.serialize()
        finished = GenerationFinished(generation_id=arguments["generation_id"])
        end = {"event": {**finished.to_json(), "deferred_task": arguments["deferred_task"]}}
    except Exception as error:
        logging.getLogger().exception("The attempt has failed")
        end = {"error": f"{type(error).__name__}: {error}"}
    part.end.write_text(json.dumps(end))


def kind_of(name: str, content: bytes) -> str:
    """Return what an object of a batch is, by its name and content."""
    match name.partition("-")[0].partition(".")[0]:
        case "running":
            value = json.loads(content)["modelscope_batch"]
            if value.get("is_finished"):
                return "end"
            is_sending = any(row["generation_id"] is None for row in value["running"])
            return "intent" if is_sending else "progress"
        case "results":
            return "segment"
        case ("plan" | "manifest") as kind:
            return kind
    return "image"


def _watch_files(killer: Killer) -> None:
    renaming: list[tuple[str, Path]] = []  # moments that come when the file has another name

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        for one in list(renaming):  # whatever Python does next, in any thread
            moment, source = one
            if not source.exists():
                with suppress(ValueError):  # another thread was faster
                    renaming.remove(one)
                    killer.passes(moment)
        if event == "os.rename" and (source := Path(arguments[0])).name.startswith(".image-"):
            kind = kind_of(Path(arguments[1]).name, source.read_bytes())
            killer.passes(f"{kind} written")
            renaming.append((f"{kind} renamed", source))

    sys.addaudithook(watch)
