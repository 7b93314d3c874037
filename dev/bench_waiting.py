"""What a wait costs: this provider's trigger compared with four other ways to wait.

``python -m dev.bench_waiting`` takes nine minutes, ``--waits 1000 --runs 1`` much less. Each way waits in a
new process, so that CPU and memory are its own. The service is another process that costs little: it uses TLS
and a host name, as the real one, but responds immediately. All ways with a fixed interval poll every 5 s. The
trigger does so too, because its model is unknown; ``dev.bench_intervals`` measures the polling rule. CPU is
that of the process from the start of the first wait to the end of the last one, per poll.

A run measures the bare loop and the trigger, one after the other, and compares them with each other. Five
runs give the medians, and the range of the comparison. The other ways are measured in the first run.

Logging is set up as in the process of a triggerer: INFO, as JSON, over an unbuffered pipe to another process
(the supervisor of Airflow, here ``cat``), with the ids of the task in each line. The lines that Airflow logs
for every trigger are not measured.

All waits start at once, as in a triggerer that restarts; ``--within 5`` spreads the starts over 5 s. The lag
of the event loop is measured as the triggerer's watchdog does, less the 0.1 s that it sleeps. Modules that
were loaded before the waits are excluded from garbage collection: a collection of all of Airflow stops a
process for 0.15 s, and would hit one of the ways by chance.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import tests.conftest  # noqa: F401 - sets the environment for Airflow in this and all new processes
from dev.figures import Bench

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

Wait = Callable[[str], Awaitable[None]]
Way = Callable[[str], AbstractAsyncContextManager[Wait]]

BARE, OURS = "bare loop", "this trigger"
INTERVAL = 5.0  # seconds between polls, for all ways with a fixed interval
WATCHDOG_SLEEP = 0.1  # seconds, as in airflow.jobs.triggerer_job_runner.TriggerRunner.block_watchdog
WATCHDOG_LIMIT = 0.2  # seconds, its sleep included, above which it warns
TIMEOUT = 120.0  # seconds for one run
LOG_CONTEXT = {  # a triggerer adds these to each line
    "ti_id": "0199b4c0-0000-7000-8000-000000000000",
    "dag_id": "a_dag",
    "task_id": "a_task",
    "run_id": "scheduled__2026-01-05T08:00:00+00:00",
    "try_number": 1,
}
HEADERS = {"Authorization": "Bearer ms-bench", "X-ModelScope-Task-Type": "image_generation"}
SPAWN = get_context("spawn")  # a new interpreter, which shares no memory with this one


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The cost of one way in one run."""

    cpu_ms: float  # per poll, user and system
    lag_p99_ms: float
    lag_max_ms: float
    polls: float  # per generation
    delay: float  # seconds per generation, from its end to the end of the wait
    memory_kb: float  # per wait: peak of the resident set, less its size before
    connections: float
    service_load: float  # fraction of a core that the service used


Runs = list[dict[str, Figures]]  # the figures of each way, for one number of waits


class Service(asyncio.Protocol):
    """A connection to a service. An id contains the end of its generation: ``<number>-<epoch seconds>``."""

    opened = 0
    polls = 0
    latency = 0.0

    def __init__(self) -> None:
        self._received = b""
        self._is_new = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _end, self._received = self._received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if not path.startswith(b"/v1/tasks/"):
                counts = {"opened": self.opened, "polls": self.polls, "cpu": time.process_time()}
                self._write(_http(counts))
                continue
            Service.polls += 1
            Service.opened += self._is_new
            self._is_new = False
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self._respond, path)
            else:
                self._respond(path)

    def _respond(self, path: bytes) -> None:
        self._write(SUCCEED if time.time() >= float(path.rpartition(b"-")[2]) else PROCESSING)

    def _write(self, response: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(response)


def _http(body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    head = "HTTP/1.1 200 OK\r\nDate: Mon, 05 Jan 2026 08:00:00 GMT\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


PROCESSING = _http({"request_id": "", "task_id": "", "task_status": "PROCESSING", "outputs": {}})
SUCCEED = _http(
    {
        "input": {"seed": 42, "width": 1024, "height": 1024},
        "output_images": ["https://images.example/a.png"],
        "request_id": "00000000-0000-4000-8000-000000000000",
        "task_status": "SUCCEED",
        "time_taken": 9000.0,
    }
)


def serve(pipe: Pipe, certificate: str, latency: float) -> None:
    """Send the port through the pipe, and serve until the process is terminated."""
    import ssl

    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(certificate)
    Service.latency = latency
    _allow_many_files()

    async def run() -> None:
        create_server = partial(asyncio.get_running_loop().create_server, Service, ssl=trust, backlog=4096)
        server = await create_server("127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with suppress(OSError):
            await create_server("::1", port)  # localhost is this address first, if there is IPv6
        pipe.send(port)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def service(latency: float) -> Iterator[str]:
    """Run the service in a process of its own, and yield its base URL."""
    with TemporaryDirectory() as folder:
        certificate = Path(folder, "service.pem")
        certificate.write_bytes(_certificate())
        # All clients in processes that are started from here on trust it.
        os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = str(certificate)
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(there, str(certificate), latency), daemon=True)
        process.start()
        try:
            yield f"https://localhost:{here.recv()}"
        finally:
            process.terminate()
            process.join()


def _certificate() -> bytes:
    """Return a key and a self-signed certificate for localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, form, serialization.NoEncryption()) + certificate.public_bytes(pem)


@asynccontextmanager
async def bare_loop(base_url: str) -> AsyncIterator[Wait]:
    """The lower limit: one session for all waits, and only the poll."""
    import aiohttp

    async with aiohttp.ClientSession(headers=HEADERS) as session:

        async def wait(generation_id: str) -> None:
            while True:
                async with session.get(f"{base_url}/v1/tasks/{generation_id}") as response:
                    if (await response.json())["task_status"] == "SUCCEED":
                        return
                await asyncio.sleep(INTERVAL)

        yield wait


@asynccontextmanager
async def this_trigger(base_url: str) -> AsyncIterator[Wait]:
    from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger

    connection = {"conn_type": "modelscope", "password": "ms-bench", "host": base_url}
    os.environ["AIRFLOW_CONN_MODELSCOPE_DEFAULT"] = json.dumps(connection)

    async def wait(generation_id: str) -> None:
        now = time.time()
        trigger = ModelScopeImageGenerationTrigger(
            generation_id=generation_id,
            modelscope_conn_id="modelscope_default",
            poll_interval=INTERVAL,
            end_time=now + 3600,
            submitted_at=now,
            min_deferral_seconds=0,
        )
        async for event in trigger.run():
            if event.payload["status"] != "finished":
                raise RuntimeError(event.payload)

    yield wait


@asynccontextmanager
async def http_provider(base_url: str) -> AsyncIterator[Wait]:
    """One session per poll with the hook of the http provider, as in its own triggers."""
    import aiohttp
    from airflow.providers.http.hooks.http import HttpAsyncHook

    os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = json.dumps({"conn_type": "http", "host": base_url})

    async def wait(generation_id: str) -> None:
        hook = HttpAsyncHook(method="GET")
        while True:
            async with aiohttp.ClientSession() as session:
                response = await hook.run(
                    session=session, endpoint=f"v1/tasks/{generation_id}", headers=HEADERS
                )
                if (await response.json())["task_status"] == "SUCCEED":
                    return
            await asyncio.sleep(INTERVAL)

    yield wait


@asynccontextmanager
async def threads(base_url: str) -> AsyncIterator[Wait]:
    """A blocking client per wait, each poll in a thread, as in the anthropic and common-ai providers."""

    async def wait(generation_id: str) -> None:
        with _blocking_poll(base_url) as is_finished:
            while not await asyncio.to_thread(is_finished, generation_id):
                await asyncio.sleep(INTERVAL)

    yield wait


@asynccontextmanager
async def blocking(base_url: str) -> AsyncIterator[Wait]:
    """One blocking client for all waits, on the event loop, as in the openai provider."""
    with _blocking_poll(base_url) as is_finished:

        async def wait(generation_id: str) -> None:
            while not is_finished(generation_id):
                await asyncio.sleep(INTERVAL)

        yield wait


@contextmanager
def _blocking_poll(base_url: str) -> Iterator[Callable[[str], bool]]:
    import requests

    with requests.Session() as session:
        session.headers.update(HEADERS)

        def is_finished(generation_id: str) -> bool:
            response = session.get(f"{base_url}/v1/tasks/{generation_id}", timeout=30)
            return bool(response.json()["task_status"] == "SUCCEED")

        yield is_finished


WAYS: dict[str, Way] = {
    BARE: bare_loop,
    OURS: this_trigger,
    "http provider": http_provider,
    "threads": threads,
    "blocking": blocking,
}
TITLES = {
    BARE: "a bare aiohttp loop, nothing else",
    OURS: OURS,
    "http provider": "the http provider's hook, one session per poll",
    "threads": "a blocking client per wait, in threads",
    "blocking": "a blocking client on the event loop, with immediate responses",
}
MAX_WAITS = {"threads": 1000, "blocking": 1000}  # to save time: with more, they only fall further behind


def measure(way: str, base_url: str, waits: int, seconds: float, within: float) -> Figures:
    """Wait in this process, which is new, and return the cost."""
    _allow_many_files()
    _log_as_a_triggerer()
    for module in ("aiohttp", "requests", "airflow_provider_modelscope.triggers.image_generation"):
        import_module(module)  # for every way, so that garbage collection costs all of them the same
    return asyncio.run(_measure(WAYS[way], base_url, waits, seconds, within))


async def _measure(way: Way, base_url: str, waits: int, seconds: float, within: float) -> Figures:
    import psutil  # type: ignore[import-untyped]
    from structlog.contextvars import bind_contextvars

    resident = psutil.Process()
    lags: list[float] = []
    delays: list[float] = []
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            last_run = time.monotonic()
            await asyncio.sleep(WATCHDOG_SLEEP)
            lags.append(time.monotonic() - last_run - WATCHDOG_SLEEP)
            peak = max(peak, resident.memory_info().rss)

    async def wait_for(number: int, finished_at: float) -> None:
        bind_contextvars(**LOG_CONTEXT, trigger_id=number, map_index=number)
        await wait(f"{number}-{finished_at}")
        delays.append(time.time() - finished_at)

    async with way(base_url) as wait:
        await wait("0-0")  # finished long ago: loads what the first poll loads
    await asyncio.sleep(0.1)
    spread = random.Random(1)  # noqa: S311 - the same times for every way
    async with way(base_url) as wait, asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        before = _counts(base_url)
        gc.collect()
        gc.freeze()
        rss = resident.memory_info().rss
        cpu, started = time.process_time(), time.monotonic()
        watchdog = asyncio.create_task(watch())
        waiting = []
        for number in range(waits):
            finished_at = time.time() + seconds * spread.uniform(0.5, 1)
            waiting.append(tasks.create_task(wait_for(number, finished_at)))
            await asyncio.sleep(max(0.0, started + within * (number + 1) / waits - time.monotonic()))
        await asyncio.wait(waiting)
        cpu, took = time.process_time() - cpu, time.monotonic() - started
        watchdog.cancel()
        after = _counts(base_url)
    polls = after["polls"] - before["polls"]
    lags.sort()
    return Figures(
        cpu_ms=1000 * cpu / polls,
        lag_p99_ms=1000 * lags[int(len(lags) * 0.99)],
        lag_max_ms=1000 * lags[-1],
        polls=polls / waits,
        delay=sum(delays) / waits,
        memory_kb=(peak - rss) / 1024 / waits,
        connections=after["opened"] - before["opened"],
        service_load=(after["cpu"] - before["cpu"]) / took,
    )


def _counts(base_url: str) -> dict[str, float]:
    with urlopen(f"{base_url}/counts") as response:  # noqa: S310 - the service above
        counts: dict[str, float] = json.load(response)
        return counts


def _allow_many_files() -> None:
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_as_a_triggerer() -> None:
    """Set up logging as ``airflow.sdk.execution_time.supervisor`` does in the process of a triggerer."""
    from airflow.sdk.log import configure_logging, reset_logging

    supervisor = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)  # noqa: S607
    reset_logging()  # type: ignore[no-untyped-call]
    configure_logging(json_output=True, output=supervisor.stdin, sending_to_supervisor=True)


HEADER = """\
      |               |       CPU per poll        |    lag, ms     | a generation  |  memory | connec | ser-
waits | way           |    ms   /bare     range   |    p99     max | polls delay s | KB/wait |  tions | vice\
"""


def medians(runs: Runs, way: str) -> Figures | None:
    """Return the median of each figure of a way."""
    measured = [asdict(run[way]) for run in runs if way in run]
    if not measured:
        return None
    return Figures(**{name: median(figures[name] for figures in measured) for name in measured[0]})


def ratios(runs: Runs, way: str) -> list[float]:
    """Return the CPU per poll of a way, relative to the bare loop in the same run, in ascending order."""
    return sorted(run[way].cpu_ms / run[BARE].cpu_ms for run in runs if run.keys() >= {way, BARE})


def spread(ratio: Sequence[float]) -> str:
    """Return the lowest and the highest ratio; empty if they do not differ."""
    return f"{ratio[0]:.2f} to {ratio[-1]:.2f}" if ratio and ratio[0] < ratio[-1] else ""


def print_rows(waits: int, runs: Runs) -> None:
    """Print the medians of every way for one number of waits."""
    for way in WAYS:
        if figures := medians(runs, way):
            ratio = ratios(runs, way)
            relative = f"{median(ratio):6.2f}" if ratio else "     -"
            print(
                f"{waits:5} | {way:13} | {figures.cpu_ms:5.2f} {relative} {spread(ratio):12} "
                f"| {figures.lag_p99_ms:6.1f} {figures.lag_max_ms:7.1f} | {figures.polls:5.2f} "
                f"{figures.delay:7.2f} | {figures.memory_kb:7.1f} | {figures.connections:6.0f} "
                f"| {figures.service_load:4.0%}",
                flush=True,
            )


def print_targets(measured: dict[int, Runs], bench: Bench) -> None:
    """Print the targets, and whether the medians meet them."""
    from airflow_provider_modelscope.transport.event_loop import POOL_SIZE

    row = bench.at_most
    print()
    for waits, runs in measured.items():
        if ratio := ratios(runs, OURS):
            row(f"CPU per poll at {waits} waits, relative to the bare loop", median(ratio), 1.3)
    runs = measured.get(1000, [])
    if ours := medians(runs, OURS):
        if other := medians(runs, "threads"):
            row("CPU per poll at 1000 waits, relative to threads", ours.cpu_ms / other.cpu_ms, 1 / 3)
        if other := medians(runs, "http provider"):
            what = "CPU per poll at 1000 waits, relative to the http provider"
            row(what, ours.cpu_ms / other.cpu_ms, 1 / 8)
        if bare := medians(runs, BARE):
            what = "p99 of the lag at 1000 waits, relative to the bare loop"
            row(what, ours.lag_p99_ms / bare.lag_p99_ms, 1.5)
        longest = ours.lag_max_ms / 1000 + WATCHDOG_SLEEP
        row("seconds that the watchdog measures at 1000 waits", longest, WATCHDOG_LIMIT)
        row("connections at 1000 waits", ours.connections, POOL_SIZE)
    runs = measured.get(5000, [])
    if (ours := medians(runs, OURS)) and (bare := medians(runs, BARE)):
        row("memory per wait at 5000 waits, relative to the bare loop", ours.memory_kb / bare.memory_kb, 2)


def print_table(runs: Runs, bench: Bench) -> None:
    """Print the figures for 1000 waits as docs/evidence.md shows them."""
    if not runs:
        return
    print("\n| way | CPU, of a bare loop's | lag, ms | connections |\n| --- | --- | --- | --- |")
    for way, title in TITLES.items():
        if (figures := medians(runs, way)) and (ratio := ratios(runs, way)):
            relative = f"{median(ratio):.2f} ({spread(ratio)})" if spread(ratio) else f"{median(ratio):.2g}"
            print(f"| {title} | {relative} | {figures.lag_max_ms:.0f} | {figures.connections:.0f} |")
            bench.add(
                title,
                {"cpu": median(ratio), "lag_ms": figures.lag_max_ms, "connections": figures.connections},
            )


def run_once(
    base_url: str, waits: int, ways: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Figures]:
    """Measure each way in a new process."""
    measured = {}
    for way in ways:
        with ProcessPoolExecutor(1, mp_context=SPAWN) as new_process:
            run = new_process.submit(measure, way, base_url, waits, arguments.seconds, arguments.within)
            try:
                measured[way] = run.result()
            except Exception as error:  # a way that fails is a result
                print(f"{waits:5} | {way:13} | failed: {error!r}", flush=True)
    return measured


def main() -> int:
    """Measure every way with every number of waits."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--waits", default="1000,5000", help="numbers of waits, separated by commas")
    options.add_argument("--runs", type=int, default=5, help="runs of the bare loop and the trigger")
    options.add_argument(
        "--seconds",
        type=float,
        default=15,
        help="duration of the longest generation; the shortest takes half of it",
    )
    options.add_argument("--within", type=float, default=0, help="seconds over which the starts are spread")
    options.add_argument("--latency", type=float, default=0, help="seconds that the service takes to respond")
    options.add_argument("--ways", nargs="+", default=list(WAYS), help="ways to measure")
    arguments = options.parse_args()
    if arguments.seconds < 2 * arguments.within:
        options.error("--seconds must be at least twice --within, so that all waits overlap")

    start = f"started within {arguments.within:g} s" if arguments.within else "started at once"
    print(
        f"Generations of {arguments.seconds / 2:g} to {arguments.seconds:g} s, waits {start}, polls every "
        f"{INTERVAL:g} s,\na service that responds after {arguments.latency:g} s. Medians of "
        f"{arguments.runs} runs.\nPython {sys.version.split()[0]}, aiohttp {version('aiohttp')}, http "
        f"provider {version('apache-airflow-providers-http')}, {os.cpu_count()} cores.\n"
    )
    print(HEADER)
    measured: dict[int, Runs] = {}
    with service(arguments.latency) as base_url:
        for waits in map(int, arguments.waits.split(",")):
            runs = measured[waits] = []
            for number in range(arguments.runs):
                ways = [
                    way
                    for way in arguments.ways
                    if way in (BARE, OURS) or (number == 0 and waits <= MAX_WAITS.get(way, waits))
                ]
                runs.append(run_once(base_url, waits, ways, arguments))
            print_rows(waits, runs)
    bench = Bench("waiting", "make bench")
    print_targets(measured, bench)
    print_table(measured.get(1000, []), bench)
    if arguments == options.parse_args([]):
        bench.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
