"""Play every row that was chosen, once; the tests then say what came of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.faults.rows import ROWS, until_ended
from tests.faults.stage import Outcome, Stage, stage_for
from tests.support.real_airflow import PARTS

if TYPE_CHECKING:
    from tests.faults.stage import Scene

TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # whichever comes, what was started is ended
        signal.signal(signal_, signal.default_int_handler)
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = [row for row in ROWS if {"row": row} in parameters]
    with stage_for(chosen, tmp_path_factory.mktemp("faults") / "airflow") as stage:
        yield stage


@pytest.fixture(scope="session")
def outcomes(stage: Stage, pytestconfig: pytest.Config) -> dict[str, Outcome]:
    """What came of each row, by its name. Rows that kill the same part, or none, are played at once."""
    with ThreadPoolExecutor(max(1, len(stage.scenes))) as threads:
        try:
            for part in ("", *PARTS):
                scenes = [scene for scene in stage.scenes if scene.row.part == part]
                list(threads.map(lambda scene: scene.attempt(scene.row.play), scenes))
                if part and scenes:
                    _kill_and_start(part, stage, scenes)
                    list(threads.map(lambda scene: scene.attempt(until_ended), scenes))
        except BaseException:
            stage.close()
            raise
    outcomes = {scene.row.name: scene.outcome() for scene in stage.scenes}
    pytestconfig.stash[TABLE] = [
        "| Fault | Expected | Seen, images to the byte |",
        "| --- | --- | --- |",
        *(
            f"| {scene.row.fault} | {scene.row.expected} | {outcomes[scene.row.name].seen} |"
            for scene in stage.scenes
        ),
    ]
    return outcomes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


def _kill_and_start(part: str, stage: Stage, scenes: list[Scene]) -> None:
    """While the part is dead, what the tasks wait for is finished."""
    stage.leaks += stage.search()
    stage.parts.kill(part)
    for scene in scenes:
        scene.emulator.finish()
    stage.parts.start(part)
    stage.parts.await_health()
