"""How busy ways to generate many images keep an account with one slot, and what they cost.

``python -m dev.bench_batch`` takes half an hour, ``--ways batch --images 20 --rows 0`` seven minutes. It
generates 100 images of 1 s and 60 images of 5 s in each of these ways:

==========  ===========================================================================================
``batch``   ``ModelScopeImageBatchOperator``, one task in a real Airflow on PostgreSQL
``mapped``  ``ModelScopeImageGenerationOperator`` with ``expand``, deferrable, in the same Airflow
``sample``  a loop of the shape of ModelScope's sample: submit, poll every 5 s, download, store, next image
``bare``    the least that can be done with the hook: polls around the expected end, and a thread that stores
==========  ===========================================================================================

The account is an emulator in a process of its own for each way and load, and what it recorded is the measure
of: *busy*, the part of the time from the first accepted submission to the end of the last generation in which
a generation ran; refused submissions; polls; *found*, how long after its end a poll found a generation
finished; and *next*, how long after it the next one was accepted, both on average.

CPU is user and system. For ``sample`` and ``bare`` it is that of the process, without its imports. For the
others it is that of all processes of Airflow (scheduler, API server, triggerer, Dag processor, workers, tasks
that have ended), less what the same Airflow uses in the same time when it is idle, which is measured for a
minute. PostgreSQL is not included. Memory is the largest resident set of a process that works on images,
Airflow's modules included.

``sample``, ``bare`` and ``batch`` sleep for nearly all of the time, so they run side by side; before them
Airflow is measured idle, and after them ``mapped`` has the machine for itself. At last a batch of 100 and one
of ``--rows`` rows run in processes of their own, without Airflow around them, on an account without limits
whose generations take no time: for their memory and speed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
import requests

import tests.conftest  # noqa: F401 - sets the environment for Airflow in this and all new processes
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.credit import MAX_CREDIT
from airflow_provider_modelscope.emulator.service import QUEUE_FULL
from dev.figures import Bench
from tests.support.postgres import postgres
from tests.support.real_airflow import RealAirflow, start_run

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

    from airflow_provider_modelscope.protocol.generation import Generation

BATCH, MAPPED, SAMPLE, BARE = WAYS = ("batch", "mapped", "sample", "bare")
LOADS = {1: 100, 5: 60}  # images, by the seconds that each takes
MODEL, SIZE = "Qwen/Qwen-Image", "512x512"
FEW_ROWS = 100
CONCURRENCY = 20  # of the batches of rows: the first poll of a generation is 0.2 s after its submission
WARM_UP = 40  # mapped tasks: each worker of Airflow loads modules for its first one
IDLE_SECONDS = 60.0
SETTLE_SECONDS = 5.0  # in which the processes of a task end
LIMIT = 1200.0  # seconds for one run
SAMPLE_INTERVAL = 5.0  # seconds, as in ModelScope's sample
MIN_BUSY = {1: 0.85, 5: 0.97}
MAX_CPU, MAX_REFUSED, MAX_GROWTH_MB = 0.1, 0.1, 20.0
TASK_PROCESS = re.compile(r"airflow worker -- [0-9a-f-]{36}\s*")
SPAWN = get_context("spawn")  # a new interpreter, which shares no memory with this one


@dataclass(frozen=True, kw_only=True)
class Record:
    """What happened on an account.

    :param spans: Start and end of each generation, in the order of submission.
    :param found_at: When a poll first found each of them finished, in the same order.
    """

    spans: list[tuple[float, float]]
    found_at: list[float]
    refused: int
    polls: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a way needed for all its images."""

    wall: float  # seconds
    cpu: float  # seconds
    memory_mb: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The result of one way and load. All but the first two and the last are for each image."""

    busy: float
    wall: float
    cpu: float
    refused: float
    polls: float
    found_ms: float
    next_ms: float
    memory_mb: float

    @classmethod
    def of(cls, record: Record, cost: Cost) -> Figures:
        """Put together what the account and the way measured."""
        spans, images = record.spans, len(record.spans)
        total = spans[-1][1] - spans[0][0]
        found = [at - end for at, (_, end) in zip(record.found_at, spans, strict=True)]
        idle = [start - end for (_, end), (start, _) in pairwise(spans)]
        return cls(
            busy=sum(end - start for start, end in spans) / total,
            wall=cost.wall,
            cpu=cost.cpu / images,
            refused=record.refused / images,
            polls=record.polls / images,
            found_ms=1000 * mean(found),
            next_ms=1000 * mean(idle),
            memory_mb=cost.memory_mb,
        )


class Account:
    """An account of the service: an emulator in a process of its own.

    :param options: Of the emulator.
    """

    def __init__(self, **options: Any) -> None:
        self._pipe, there = SPAWN.Pipe()
        self._process = SPAWN.Process(target=emulate, args=(there, options), daemon=True)

    def __enter__(self) -> Account:
        self._process.start()
        self.base_url: str = self._pipe.recv()
        return self

    def __exit__(self, *_error: object) -> None:
        self._pipe.close()
        self._process.join()

    @property
    def connection(self) -> dict[str, Any]:
        """The Airflow connection to it."""
        return {"conn_type": "modelscope", "password": "ms-bench", "host": self.base_url}

    def read(self) -> Record:
        """Return what has happened on it."""
        self._pipe.send("")
        record: Record = self._pipe.recv()
        return record


def emulate(pipe: Pipe, options: dict[str, Any]) -> None:
    """Send the URL through the pipe, and then a record whenever something comes, until it is closed."""
    with suppress(EOFError), Emulator(**options) as emulator:
        pipe.send(emulator.base_url)
        while True:
            pipe.recv()
            polls = [one for one in emulator.requests if one.path.startswith("/v1/tasks/")]
            found = {one.generation_id: one.arrived_at for one in reversed(polls) if one.note == "SUCCEED"}
            refused = sum(one.note == QUEUE_FULL for one in emulator.requests)
            pipe.send(
                Record(
                    spans=emulator.spans,
                    found_at=[found[generation_id] for generation_id in sorted(found, key=int)],
                    refused=refused,
                    polls=len(polls),
                )
            )


def prompts(images: int) -> list[str]:
    """Return the prompts of some images."""
    return [f"A postcard, number {number}" for number in range(images)]


def sample(base_url: str, images: int, folder: Path) -> None:
    """Generate images one after the other, as ModelScope's sample does for one."""
    from io import BytesIO

    from PIL import Image

    headers = {"Authorization": "Bearer ms-bench", "Content-Type": "application/json"}
    for number, prompt in enumerate(prompts(images)):
        submitted = requests.post(
            f"{base_url}/v1/images/generations",
            headers={**headers, "X-ModelScope-Async-Mode": "true"},
            data=json.dumps({"model": MODEL, "prompt": prompt, "size": SIZE}),
            timeout=30,
        )
        submitted.raise_for_status()
        while True:
            polled = requests.get(
                f"{base_url}/v1/tasks/{submitted.json()['task_id']}",
                headers={**headers, "X-ModelScope-Task-Type": "image_generation"},
                timeout=30,
            ).json()
            if polled["task_status"] == "SUCCEED":
                break
            time.sleep(SAMPLE_INTERVAL)
        image = requests.get(polled["output_images"][0], timeout=30).content
        Image.open(BytesIO(image)).save(folder / f"{number}.png")


def bare(base_url: str, images: int, folder: Path) -> None:
    """Generate images with the hook: poll around the expected end, and store beside the next generation."""
    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.request import GenerationRequest

    connect(base_url)
    hook = ModelScopeHook()
    destination = Destination.parse(f"file://{folder}/")

    def store(generation: Generation) -> None:
        with hook.download_image(generation.output_images[0]) as image:
            destination.store(image, generation_id=generation.generation_id, number=1)

    usual = 0.0
    with ThreadPoolExecutor(1) as thread:
        stored = []
        for prompt in prompts(images):
            request = GenerationRequest(model=MODEL, prompt=prompt, size=SIZE)
            generation_id = hook.submit_generation(request)
            pause = max(0.2, usual / 20)
            time.sleep(max(0.0, usual - pause))
            while not (generation := hook.get_generation(generation_id)).is_finished:
                time.sleep(pause)
            usual = (generation.duration_ms or 0.0) / 1000
            stored.append(thread.submit(store, generation))
    for one in stored:
        one.result()


def batch_of_rows(base_url: str, rows: int, folder: Path) -> None:
    """Run a batch as the process of a task does, without Airflow around it."""
    from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator

    connect(base_url)
    file = folder / "requests.jsonl"
    with file.open("w") as lines:
        lines.writelines(json.dumps({"prompt": "A postcard"}) + "\n" for _ in range(rows))
    ti = SimpleNamespace(
        dag_id="bench",
        run_id="bench",
        task_id="draw",
        map_index=-1,
        try_number=1,
        start_date=None,
        xcom_push=lambda **_xcom: None,
        xcom_pull=lambda **_xcom: None,
    )
    batch = ModelScopeImageBatchOperator(
        task_id="draw",
        requests=f"file://{file}",
        model=MODEL,
        size="64x64",
        destination=f"file://{folder}/",
        concurrency=CONCURRENCY,
    )
    batch.execute({"ti": ti})  # type: ignore[typeddict-item]


def connect(base_url: str) -> None:
    """Let this process use an account, and log as little as the processes of no task."""
    import structlog

    os.environ["AIRFLOW_CONN_MODELSCOPE_DEFAULT"] = json.dumps(
        {"conn_type": "modelscope", "password": "ms-bench", "host": base_url}
    )
    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


PLAIN: dict[str, Callable[[str, int, Path], None]] = {SAMPLE: sample, BARE: bare, BATCH: batch_of_rows}


def run_plain(way: str, base_url: str, images: int) -> Cost:
    """Generate images in this process, which is new, and return the cost."""
    from airflow_provider_modelscope.hooks import modelscope  # noqa: F401 - loaded before it is measured

    with TemporaryDirectory() as folder:
        cpu, started = time.process_time(), time.perf_counter()
        PLAIN[way](base_url, images, Path(folder))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - started
        check_images(Path(folder), images)
    return Cost(wall=wall, cpu=cpu, memory_mb=peak_memory_mb(os.getpid()))


def check_images(folder: Path, expected: int) -> None:
    """Check that all images were stored."""
    if (stored := len(list(folder.glob("*.png")))) != expected:
        raise RuntimeError(f"{stored} images were stored instead of {expected}")


def peak_memory_mb(pid: int) -> float:
    """Return the largest resident set that a process has had, as Linux reports it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


@contextmanager
def new_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield processes for one measurement each."""
    with ProcessPoolExecutor(count, mp_context=SPAWN, max_tasks_per_child=1) as processes:
        yield processes


class MeasuredAirflow:
    """A running Airflow whose CPU is measured.

    :param url: URL of its API server.
    :param roots: Its processes without those that they started.
    """

    def __init__(self, airflow: RealAirflow, url: str, roots: list[psutil.Process]) -> None:
        self._airflow = airflow
        self._url = url
        self._roots = roots
        self.idle = 0.0  # CPU seconds that it uses without a run in a second

    def measure_idle(self) -> None:
        """Measure what it uses without a run, which is no cost of later runs."""
        time.sleep(SETTLE_SECONDS)
        cpu = self._cpu()
        time.sleep(IDLE_SECONDS)
        self.idle = (self._cpu() - cpu) / IDLE_SECONDS

    def run(self, dag_id: str) -> Cost:
        """Run a Dag and return the cost."""
        with self._airflow.session(self._url) as session, self._watched_memory() as peaks:
            cpu, started = self._cpu(), time.monotonic()
            run_id = start_run(session, self._url, dag_id, {}).rpartition("/")[2]
            wall = self._await_end(dag_id, run_id)
            time.sleep(SETTLE_SECONDS)
            cpu, seconds = self._cpu() - cpu, time.monotonic() - started
        return Cost(wall=wall, cpu=cpu - self.idle * seconds, memory_mb=max(peaks, default=0.0))

    def _await_end(self, dag_id: str, run_id: str) -> float:
        # From the database, because the API server would use CPU for it.
        deadline = time.monotonic() + LIMIT
        while True:
            [[state, seconds]] = self._airflow.query(
                "select state, extract(epoch from end_date - queued_at) from dag_run "
                "where dag_id = :dag_id and run_id = :run_id",
                dag_id=dag_id,
                run_id=run_id,
            )
            if state == "success":
                return float(seconds)
            if state == "failed" or time.monotonic() > deadline:
                raise RuntimeError(f"{dag_id} is {state}. Tasks: {self._airflow.task_states(dag_id)}")
            time.sleep(1)

    def _cpu(self) -> float:
        """Return the CPU seconds that all processes of Airflow have used, those that have ended included."""
        used = 0.0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:4])  # user, system, and both of its children that ended
        return used

    def _processes(self) -> list[psutil.Process]:
        found = list(self._roots)
        for root in self._roots:
            with suppress(psutil.NoSuchProcess):
                found += root.children(recursive=True)
        return found

    @contextmanager
    def _watched_memory(self) -> Iterator[list[float]]:
        """Yield a list that is filled with the peak of each task's process, again and again."""
        peaks: list[float] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                for process in self._processes():
                    with suppress(psutil.NoSuchProcess, OSError):
                        if TASK_PROCESS.fullmatch(" ".join(process.cmdline())):
                            peaks.append(peak_memory_mb(process.pid))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield peaks
        finally:
            stop.set()
            thread.join()


def run_in_airflow(
    ways: list[str], loads: dict[int, int], folder: Path, *, start_loops: Callable[[], None]
) -> dict[tuple[str, int], Figures]:
    """Run the ways that need Airflow one after the other in the same one.

    :param start_loops: Called when Airflow is ready.
    """
    with ExitStack() as stack:
        accounts = {
            (way, seconds): stack.enter_context(Account(duration=float(seconds)))
            for way in ways
            for seconds in loads
        }
        warm_up = stack.enter_context(Account(duration=0.0, max_running=WARM_UP))
        names = {(way, seconds): f"{way}_{seconds}_s" for way, seconds in accounts}
        dags = {
            name: {"way": way, "images": loads[seconds], "modelscope_conn_id": name}
            for (way, seconds), name in names.items()
        }
        for way in ways:
            dags[f"{way}_warm_up"] = {"way": way, "images": WARM_UP, "modelscope_conn_id": "warm_up"}
        for name, dag in dags.items():
            dag |= {"model": MODEL, "size": SIZE, "destination": f"file://{folder}/{name}/"}
        airflow = RealAirflow(
            folder / "airflow",
            dags=Path(__file__).parent / "bench_dags",
            connections={
                "warm_up": warm_up.connection,
                **{name: accounts[key].connection for key, name in names.items()},
            },
            database_url=stack.enter_context(postgres()),
        )
        airflow.environment |= {
            "BENCH_DAGS": json.dumps(dags),
            # The API server has 40 threads. With the default of 15 connections they block each other.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "40",
        }
        airflow.migrate()
        others = psutil.Process().children()
        url = stack.enter_context(airflow.standalone())
        roots = [process for process in psutil.Process().children() if process not in others]
        measured = MeasuredAirflow(airflow, url, roots)
        for way in ways:
            measured.run(f"{way}_warm_up")
        report("Airflow, idle ...")
        measured.measure_idle()
        report(f"It uses {measured.idle:.3f} of a core")
        start_loops()
        figures = {}
        for key, name in names.items():
            report(f"{key[0]}, {key[1]} s ...")
            try:
                cost = measured.run(name)
                check_images(folder / name, loads[key[1]])
            except RuntimeError as error:  # a way that fails is a result
                report(f"failed: {error}")
            else:
                figures[key] = Figures.of(accounts[key].read(), cost)
        return figures


def report(text: str) -> None:
    """Print a line about the progress."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


HEADER = """\
images      | way    |   busy | wall s | CPU s | refused | polls | found ms | next ms | memory MB\
"""


def print_table(loads: dict[int, int], figures: dict[tuple[str, int], Figures]) -> None:
    """Print the figures of every way and load."""
    print(HEADER)
    for seconds, images in loads.items():
        for way in WAYS:
            if one := figures.get((way, seconds)):
                print(
                    f"{images:3} of {seconds:2} s | {way:6} | {one.busy:6.1%} | {one.wall:6.0f} "
                    f"| {one.cpu:5.3f} | {one.refused:7.2f} | {one.polls:5.2f} | {one.found_ms:8.0f} "
                    f"| {one.next_ms:7.0f} | {one.memory_mb:9.0f}"
                )


def main() -> int:
    """Measure, print the figures and the targets, and return 1 if a way fails or a target is missed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="ways to measure")
    options.add_argument("--images", type=int, help="images of each way and load, instead of 100 and 60")
    options.add_argument("--rows", type=int, default=10_000, help="rows of the long batch; 0: without it")
    arguments = options.parse_args()
    loads = {seconds: arguments.images or images for seconds, images in LOADS.items()}
    figures: dict[tuple[str, int], Figures] = {}
    rows: dict[int, Cost] = {}
    loops: dict[tuple[str, int], tuple[Account, Future[Cost]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-batch-")))
        processes = stack.enter_context(new_processes(2 * len(loads)))

        def start_loops() -> None:
            for way in (SAMPLE, BARE):
                for seconds, images in loads.items() if way in arguments.ways else ():
                    account = stack.enter_context(Account(duration=float(seconds)))
                    loops[way, seconds] = account, processes.submit(run_plain, way, account.base_url, images)

        if in_airflow := [way for way in (BATCH, MAPPED) if way in arguments.ways]:
            report("Airflow starts ...")
            figures |= run_in_airflow(in_airflow, loads, folder, start_loops=start_loops)
        else:
            start_loops()
        for key, (account, future) in loops.items():
            cost = future.result()
            figures[key] = Figures.of(account.read(), cost)
        if BATCH in arguments.ways and arguments.rows:
            for count in (FEW_ROWS, arguments.rows):
                report(f"A batch of {count} rows ...")
                with Account(duration=0.0, max_running=1000, credit=MAX_CREDIT) as account:
                    rows[count] = processes.submit(run_plain, BATCH, account.base_url, count).result()
    print_table(loads, figures)
    for count, cost in rows.items():
        print(
            f"{count:6} rows: {count / cost.wall:.0f} rows/s, {1000 * cost.cpu / count:.1f} CPU ms a row, "
            f"{cost.memory_mb:.0f} MB"
        )
    bench = Bench("batch", "make bench-batch")
    for (way, seconds), one in figures.items():
        bench.add(
            f"{seconds} s, {way}",
            {"images": loads[seconds], "busy": one.busy, "cpu": one.cpu, "refused": one.refused},
        )
    for count, cost in rows.items():
        bench.add(f"{count} rows", {"memory_mb": cost.memory_mb})
    for (way, seconds), one in figures.items():
        if way == BATCH:
            bench.at_least(
                f"batch, {seconds} s: part of the time that the account is busy", one.busy, MIN_BUSY[seconds]
            )
            bench.at_most(f"batch, {seconds} s: CPU seconds of Airflow for an image", one.cpu, MAX_CPU)
            bench.at_most(f"batch, {seconds} s: refused submissions for an image", one.refused, MAX_REFUSED)
    if rows:
        growth = rows[arguments.rows].memory_mb - rows[FEW_ROWS].memory_mb
        bench.at_most(
            f"batch: MB that {arguments.rows} rows need more than {FEW_ROWS}", growth, MAX_GROWTH_MB
        )
    if arguments == options.parse_args([]):
        bench.write()
    is_complete = len(figures) == len(arguments.ways) * len(loads)
    return 0 if is_complete and not bench.missed else 1


if __name__ == "__main__":
    sys.exit(main())
