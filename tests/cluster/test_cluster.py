"""When machines die, every image is stored as it was served, and none is charged twice."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.cluster.cluster import DAG_IDS, IMAGES, LOG_BUCKET, TOKENS

if TYPE_CHECKING:
    from tests.cluster.conftest import Scenario


def test_every_dag_run_succeeds(scenario: Scenario) -> None:
    assert scenario.cluster.run_states() == ["success"] * len(DAG_IDS)
    assert {task.state for task in scenario.cluster.tasks()} == {"success"}


def test_every_image_is_stored_as_it_was_served(scenario: Scenario) -> None:
    stored = scenario.cluster.objects()
    assert Counter(name.partition("/")[0] for name in stored) == dict.fromkeys(
        DAG_IDS, IMAGES // len(DAG_IDS)
    )
    served = scenario.cluster.emulator.served
    digests = {sha256(content).digest() for content in stored.values()}
    assert len(digests) == IMAGES
    assert digests == {sha256(content).digest() for content in served.values()}


def test_every_generation_is_charged_once(scenario: Scenario) -> None:
    accepted = Counter(exchange.headers["Authorization"] for exchange in scenario.cluster.accepted)
    assert accepted == {f"Bearer {token}": IMAGES // len(TOKENS) for token in TOKENS.values()}


def test_the_metrics_of_all_workers_add_up(scenario: Scenario) -> None:
    rejected = sum(exchange.status == 500 for exchange in scenario.cluster.emulator.requests)
    assert scenario.cluster.statsd.count("modelscope.submission.accepted") == IMAGES
    assert scenario.cluster.statsd.count("modelscope.submission.rejected.queue_full") == rejected
    # A worker can die after it has stored and counted an image. The image is then stored again.
    assert scenario.cluster.statsd.count("modelscope.image.stored") >= IMAGES


def test_a_task_of_the_dead_worker_is_retried_on_the_other(scenario: Scenario) -> None:
    [ended] = [task for task in scenario.cluster.tasks() if task[:4] == scenario.polling[:4]]
    assert ended.try_number > 1
    assert ended.machine != scenario.worker


def test_the_waits_of_the_dead_triggerer_are_taken_over(scenario: Scenario) -> None:
    assert scenario.taken_over


def test_the_log_of_a_dead_worker_can_be_read(scenario: Scenario) -> None:
    log = scenario.cluster.log_of(scenario.done)
    assert f"s3://{LOG_BUCKET}/dag_id={scenario.done.dag_id}/" in log
    assert "airflow_provider_modelscope" in log
