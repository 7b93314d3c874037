"""Runs each selected row once; the tests compare the outcomes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.faults.rows import ROWS
from tests.faults.system import Outcome, Run, System, system_for
from tests.support.real_airflow import PARTS

if TYPE_CHECKING:
    from pathlib import Path

TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # on either of them, all processes are ended
        signal.signal(signal_, signal.default_int_handler)
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = [row for row in ROWS if {"row": row} in parameters]
    home: Path = tmp_path_factory.mktemp("faults") / "airflow"
    with system_for(selected, home) as system:
        yield system


@pytest.fixture(scope="session")
def outcomes(system: System, pytestconfig: pytest.Config) -> dict[str, Outcome]:
    """The outcome of each row, by its name. Rows with the same part, or without one, run at the same time."""
    with ThreadPoolExecutor(max(1, len(system.runs))) as threads:
        try:
            for part in ("", *PARTS):
                runs = [run for run in system.runs if run.row.part == part]
                list(threads.map(lambda run: run.perform(run.row.inject), runs))
                if part and runs:
                    _kill_and_restart(part, system, runs)
                    list(threads.map(lambda run: run.perform(Run.until_ended), runs))
        except BaseException:
            system.close()
            raise
    outcomes = {run.row.name: run.outcome() for run in system.runs}
    pytestconfig.stash[TABLE] = [
        "| Fault | Expected | Result, images compared byte by byte |",
        "| --- | --- | --- |",
        *(
            f"| {run.row.fault} | {run.row.expected} | {outcomes[run.row.name].details} |"
            for run in system.runs
        ),
    ]
    return outcomes


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kill: rows that kill a part of Airflow, and the checks after them")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


def _kill_and_restart(part: str, system: System, runs: list[Run]) -> None:
    """Kill and restart a part. The generations finish in between."""
    system.leaks += system.search()
    system.parts.kill(part)
    for run in runs:
        run.emulator.finish()
    time.sleep(max(run.row.outage for run in runs))
    system.parts.start(part)
    system.parts.await_health()
