"""Whichever machine dies: each image is stored as it was served, and none is paid for twice."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING

from tests.cluster.cluster import DAG_IDS, IMAGES, LOG_BUCKET, TOKENS

if TYPE_CHECKING:
    from tests.cluster.conftest import Story


def test_every_dag_run_succeeds(story: Story) -> None:
    assert story.cluster.run_states() == ["success"] * len(DAG_IDS)
    assert {task.state for task in story.cluster.tasks()} == {"success"}


def test_every_image_is_stored_as_it_was_served(story: Story) -> None:
    stored = story.cluster.objects()
    assert Counter(name.partition("/")[0] for name in stored) == dict.fromkeys(
        DAG_IDS, IMAGES // len(DAG_IDS)
    )
    served = story.cluster.emulator.served
    digests = {sha256(content).digest() for content in stored.values()}
    assert len(digests) == IMAGES
    assert digests == {sha256(content).digest() for content in served.values()}


def test_every_generation_is_paid_once(story: Story) -> None:
    paid = Counter(one.headers["Authorization"] for one in story.cluster.accepted)
    assert paid == {f"Bearer {token}": IMAGES // len(TOKENS) for token in TOKENS.values()}


def test_the_metrics_of_all_workers_say_the_same(story: Story) -> None:
    refused = sum(one.status == 500 for one in story.cluster.emulator.requests)
    assert story.cluster.statsd.count("modelscope.submission.accepted") == IMAGES
    assert story.cluster.statsd.count("modelscope.submission.rejected.queue_full") == refused
    # A worker may die when it has stored and counted an image, which is then done again.
    assert story.cluster.statsd.count("modelscope.image.stored") >= IMAGES


def test_what_watched_on_the_dead_worker_is_tried_again_on_the_other(story: Story) -> None:
    [ended] = [task for task in story.cluster.tasks() if task[:4] == story.watcher[:4]]
    assert ended.try_number > 1
    assert ended.machine != story.worker


def test_the_waits_of_the_dead_triggerer_are_taken_over(story: Story) -> None:
    assert story.inherited


def test_the_log_of_a_dead_worker_can_be_read(story: Story) -> None:
    log = story.cluster.log_of(story.done)
    assert f"s3://{LOG_BUCKET}/dag_id={story.done.dag_id}/" in log
    assert "airflow_provider_modelscope" in log
