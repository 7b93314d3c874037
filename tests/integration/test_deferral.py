"""In a real Airflow a long wait moves to the triggerer, and its logs and metrics show what happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modelscope.emulator import Emulator
from tests.support.statsd import StatsD

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

DAG = "example_text_to_image"
DURATION = 14.0  # seconds, longer than a task polls from its worker


def test_a_wait_moves_to_the_triggerer_and_leaks_no_token(
    airflow_for: Callable[[Emulator], RealAirflow], tmp_path: Path
) -> None:
    states: set[tuple[str, str]] = set()
    with Emulator(duration=DURATION) as emulator, StatsD() as statsd:
        airflow = airflow_for(emulator)
        airflow.environment |= statsd.environment
        with airflow.standalone() as url:
            state = airflow.run_dag(
                url,
                DAG,
                {"destination": f"file://{tmp_path}/images/"},
                watch=lambda: states.update(airflow.task_states(DAG)),
            )
        assert state == "success", airflow.task_states(DAG)
        [[image]] = airflow.xcoms(DAG, "store", "images")
        assert [Path(image["uri"].removeprefix("file://")).read_bytes()] == list(emulator.served.values())
        assert ("wait", "deferred") in states
        assert emulator.accepted == 1
        assert statsd.count("modelscope.submission.sent") == 1
        assert statsd.count("modelscope.submission.accepted") == 1
        assert statsd.count("modelscope.image.stored_bytes") == image["size_bytes"]
        assert statsd.seconds("modelscope.generation.duration") == [image["duration_ms"] / 1000]
        [delay] = statsd.seconds("modelscope.generation.delivery_delay")
        assert 0 <= delay < 120
        assert statsd.count("modelscope.credit.spent") == 100 * image["credit"]
        assert statsd.metrics["airflow.modelscope.generation.running"][-1] == "0|g"  # from the triggerer
        assert len(statsd.seconds("modelscope.queue.seconds")) == 1
        before, after = statsd.metrics["airflow.modelscope.credit.available"]
        assert float(before.removesuffix("|g")) > float(after.removesuffix("|g"))
    for log in [*airflow.home.rglob("*.log"), airflow.database]:
        assert b"ms-integration" not in log.read_bytes(), log
    assert_logs_show_each_step(airflow.home / "logs", image["generation_id"], image["uri"])


def assert_logs_show_each_step(logs: Path, generation_id: str, uri: str) -> None:
    """A search for the id of the generation finds each step, from the prompt to the stored image."""
    entries = [
        json.loads(line) for log in logs.rglob("*attempt=*.log*") for line in log.read_text().splitlines()
    ]
    entries.sort(key=lambda entry: entry["timestamp"])
    lines = [entry["event"] for entry in entries if generation_id in entry["event"]]
    way = [
        f"Submitted generation {generation_id} to Qwen/Qwen-Image: 'A lighthouse",
        f"Generation {generation_id} is PROCESSING",
        f"Deferring: generation {generation_id} is not finished after ",
        f"Generation {generation_id} is SUCCEED",
        f"Downloading 1 image of generation {generation_id}",
        f"Stored generation {generation_id}: {uri} (",
    ]
    assert len([line for line in lines if "SUCCEED" in line]) == 1, lines
    for step in way:
        while lines and not lines[0].startswith(step):
            lines.pop(0)
        assert lines, f"{step!r} is not in the logs, or not in this order"
    credit = [entry["event"] for entry in entries if entry["event"].startswith("Credit ")]
    assert ["before" in line for line in credit] == [True, False], credit
