"""Play the story once: sixty images are drawn, and a worker and a triggerer are killed meanwhile."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import pytest

from tests.cluster.cluster import IMAGES, TOKENS, TRIGGERERS, WORKERS, Cluster, Task, cluster_in

TABLE = pytest.StashKey[list[str]]()


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened; times are in seconds from the start of the Dag runs.

    :param worker: The one that was killed.
    :param done: A task that had succeeded on it before, and whose log is stored.
    :param watcher: A task that watched its generation on it when it was killed.
    :param running: How many tasks ran on it.
    :param triggerer: The one that was killed.
    :param waits: The triggers that it held.
    :param ended_at: When the last Dag run had ended.
    """

    cluster: Cluster
    worker: str
    worker_killed_at: float
    done: Task
    watcher: Task
    running: int
    triggerer: str
    triggerer_killed_at: float
    waits: set[int]
    ended_at: float

    @property
    def inherited(self) -> set[int]:
        """The triggers that the other triggerer took over."""
        [other] = set(TRIGGERERS) - {self.triggerer}
        return self.waits & self.cluster.triggers[other]

    def table(self) -> list[str]:
        """Return what it came to, in lines."""
        cluster = self.cluster
        accounts = Counter(one.headers["Authorization"] for one in cluster.accepted)
        refused = sum(one.status == 500 for one in cluster.emulator.requests)
        busy = sum(end - begin for begin, end in cluster.emulator.spans) / (self.ended_at * len(TOKENS))
        late = cluster.statsd.seconds("modelscope.generation.delivery_delay")
        ends = {
            self.worker: f", killed after {self.worker_killed_at:.0f} s with {self.running} running",
            self.triggerer: f", killed after {self.triggerer_killed_at:.0f} s with {len(self.waits)} waits",
        }
        retried = sum(task.try_number > 1 for task in cluster.tasks())
        return [
            f"images stored: {len(cluster.objects())} of {IMAGES}",
            f"submissions: {len(cluster.accepted)} accepted, by account {list(accounts.values())}; "
            f"{refused} refused because the queue was full",
            f"time: {self.ended_at:.0f} s, the accounts were busy for {busy:.0%} of it",
            f"half of the images were stored within {median(late):.0f} s of being ready, "
            f"all within {max(late):.0f} s",
            *(f"{name}: was given tasks {cluster.legs(name)} times{ends.get(name, '')}" for name in WORKERS),
            *(f"{name}: held {len(cluster.triggers[name])} waits{ends.get(name, '')}" for name in TRIGGERERS),
            f"waits of the dead triggerer that the other took over: {len(self.inherited)}",
            f"tasks tried again: {retried}",
        ]


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Story]:
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # whichever comes, what was started is ended
        signal.signal(signal_, signal.default_int_handler)
    with cluster_in(tmp_path_factory.mktemp("cluster")) as cluster:
        story = _play(cluster)
        pytestconfig.stash[TABLE] = story.table()
        yield story


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


def _play(cluster: Cluster) -> Story:
    cluster.start_runs()
    cluster.until(lambda: len(cluster.accepted) >= IMAGES // 4, "a quarter is submitted")
    watcher, done = cluster.until(lambda: _watcher(cluster), "a worker watches a generation")
    worker = watcher.machine
    running = sum((task.machine, task.state) == (worker, "running") for task in cluster.tasks())
    worker_killed_at = cluster.kill(worker)
    cluster.until(lambda: len(cluster.accepted) >= IMAGES // 2, "half is submitted")
    triggerer, waits = cluster.until(lambda: _triggerer_to_kill(cluster), "both triggerers hold waits")
    triggerer_killed_at = cluster.kill(triggerer)
    cluster.until(lambda: not cluster.held_triggers()[triggerer], "the other triggerer has its waits")
    cluster.until(lambda: set(cluster.run_states()) <= {"success", "failed"}, "all Dag runs have ended")
    return Story(
        cluster=cluster,
        worker=worker,
        worker_killed_at=worker_killed_at,
        done=done,
        watcher=watcher,
        running=running,
        triggerer=triggerer,
        triggerer_killed_at=triggerer_killed_at,
        waits=waits,
        ended_at=cluster.seconds,
    )


def _watcher(cluster: Cluster) -> tuple[Task, Task] | None:
    """Return a task that watches its generation on a worker now, and one whose log that worker has stored."""
    for task in cluster.watchers():
        if task.state == "running" and task.task_id.startswith("draw"):
            for done in cluster.tasks():
                if (done.machine, done.state) == (task.machine, "success") and cluster.has_log(done):
                    return task, done
    return None


def _triggerer_to_kill(cluster: Cluster) -> tuple[str, set[int]] | None:
    """Return the triggerer that holds the most waits, and these: enough that not all end before it does."""
    held = cluster.held_triggers()
    triggerer, waits = max(held.items(), key=lambda item: len(item[1]))
    return (triggerer, waits) if all(held.values()) and len(waits) > 2 else None
