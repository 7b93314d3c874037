"""Runs each selected row once; the tests compare the outcomes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from dev.figures import Bench
from tests.faults.rows import ROWS, Outcome
from tests.faults.system import Run, System, system_for
from tests.support.evidence import report
from tests.support.real_airflow import PARTS

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = Bench("faults", "make test-faults")


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
def outcomes(system: System) -> dict[str, Outcome]:
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
    for run in system.runs:
        result = outcomes[run.row.name].details
        FIGURES.add(run.row.fault, {"expected": str(run.row.expected), "result": result})
    return outcomes


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kill: rows that kill a part of Airflow, and the checks after them")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    report(FIGURES, terminalreporter, exitstatus)


def _kill_and_restart(part: str, system: System, runs: list[Run]) -> None:
    """Kill and restart a part. The generations finish in between."""
    system.leaks += system.search()
    system.parts.kill(part)
    for run in runs:
        run.emulator.finish()
    time.sleep(max(run.row.outage for run in runs))
    system.parts.start(part)
    system.parts.await_health()
