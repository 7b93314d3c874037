"""Runs the scenario once: sixty images are generated while a worker and a triggerer are killed."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import pytest

from dev.figures import Bench
from tests.cluster.cluster import IMAGES, TOKENS, TRIGGERERS, WORKERS, Cluster, Task, cluster_in
from tests.support.evidence import report

FIGURES = Bench("cluster", "make test-cluster")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happened. Times are in seconds since the start of the Dag runs.

    :param worker: The worker that was killed.
    :param done: A task that had succeeded on this worker, and whose log is in the store.
    :param polling: A task that polled its generation on this worker when it was killed.
    :param running: Number of tasks that ran on it.
    :param triggerer: The triggerer that was killed.
    :param waits: Ids of the triggers that it held.
    :param ended_at: The end of the last Dag run.
    """

    cluster: Cluster
    worker: str
    worker_killed_at: float
    done: Task
    polling: Task
    running: int
    triggerer: str
    triggerer_killed_at: float
    waits: set[int]
    ended_at: float

    @property
    def other_triggerer(self) -> str:
        [other] = set(TRIGGERERS) - {self.triggerer}
        return other

    @property
    def taken_over(self) -> set[int]:
        """Ids of the triggers that the other triggerer took over."""
        return self.waits & self.cluster.triggers[self.other_triggerer]

    def figures(self) -> dict[str, str | int]:
        """Return what is printed, by what it is."""
        cluster = self.cluster
        accounts = sorted(
            Counter(exchange.headers["Authorization"] for exchange in cluster.accepted).values()
        )
        each = f"{accounts[0]} for each account" if len(set(accounts)) == 1 else f"by account {accounts}"
        rejected = sum(exchange.status == 500 for exchange in cluster.emulator.requests)
        busy = sum(end - begin for begin, end in cluster.emulator.spans) / (self.ended_at * len(TOKENS))
        delays = cluster.statsd.seconds("modelscope.generation.delivery_delay")
        killed = {
            self.worker: f". Killed after {self.worker_killed_at:.0f} s, with {self.running} tasks running",
            self.triggerer: f". Killed after {self.triggerer_killed_at:.0f} s, with {len(self.waits)} waits",
        }
        return {
            "images stored": f"{len(cluster.objects())} of {IMAGES}",
            "submissions accepted": f"{len(cluster.accepted)}, {each}",
            "submissions rejected because the queue was full": rejected,
            "duration": f"{self.ended_at:.0f} s. The accounts were busy for {100 * busy:.0f} % of it",
            "delay from the end of a generation until its image was stored": (
                f"{median(delays):.0f} s for half of the images, at most {max(delays):.0f} s"
            ),
            **{
                f"tasks given to {_spaced(name)}": f"{cluster.tasks_given(name)} times{killed.get(name, '')}"
                for name in WORKERS
            },
            **{
                f"waits in {_spaced(name)}": f"{len(cluster.triggers[name])}{killed.get(name, '')}"
                for name in TRIGGERERS
            },
            f"waits of {_spaced(self.triggerer)} that {_spaced(self.other_triggerer)} took over": len(
                self.taken_over
            ),
            "retried tasks": sum(task.try_number > 1 for task in cluster.tasks()),
        }


@pytest.fixture(scope="session")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    for signal_ in (signal.SIGINT, signal.SIGTERM):  # on either of them, all processes are ended
        signal.signal(signal_, signal.default_int_handler)
    with cluster_in(tmp_path_factory.mktemp("cluster")) as cluster:
        scenario = _run(cluster)
        for what, result in scenario.figures().items():
            FIGURES.add(what, result)
        yield scenario


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    report(FIGURES, terminalreporter, exitstatus)


def _run(cluster: Cluster) -> Scenario:
    cluster.start_runs()
    cluster.until(lambda: len(cluster.accepted) >= IMAGES // 4, "a quarter is submitted")
    polling, done = cluster.until(lambda: _polling_task(cluster), "a worker polls a generation")
    worker = polling.machine
    running = sum((task.machine, task.state) == (worker, "running") for task in cluster.tasks())
    worker_killed_at = cluster.kill(worker)
    cluster.until(lambda: len(cluster.accepted) >= IMAGES // 2, "half is submitted")
    triggerer, waits = cluster.until(lambda: _triggerer_to_kill(cluster), "a triggerer holds waits")
    triggerer_killed_at = cluster.kill(triggerer)
    cluster.until(
        lambda: not cluster.held_triggers()[triggerer], "the other triggerer has taken over its waits"
    )
    cluster.until(lambda: set(cluster.run_states()) <= {"success", "failed"}, "all Dag runs have ended")
    return Scenario(
        cluster=cluster,
        worker=worker,
        worker_killed_at=worker_killed_at,
        done=done,
        polling=polling,
        running=running,
        triggerer=triggerer,
        triggerer_killed_at=triggerer_killed_at,
        waits=waits,
        ended_at=cluster.seconds,
    )


def _polling_task(cluster: Cluster) -> tuple[Task, Task] | None:
    """Return a task that is polling on a worker, and one that has succeeded there and whose log is stored."""
    for task in cluster.polling_tasks():
        if task.state == "running" and task.task_id.startswith("draw"):
            for done in cluster.tasks():
                if (done.machine, done.state) == (task.machine, "success") and cluster.has_log(done):
                    return task, done
    return None


def _triggerer_to_kill(cluster: Cluster) -> tuple[str, set[int]] | None:
    """Return the triggerer with the most waits, and these, if there are enough for the test.

    The other one may hold none: Airflow gives new triggers to the first triggerer that asks.
    """
    triggerer, waits = max(cluster.held_triggers().items(), key=lambda item: len(item[1]))
    return (triggerer, waits) if len(waits) > 2 else None


def _spaced(name: str) -> str:
    return name.replace("-", " ")
