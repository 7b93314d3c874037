"""What a wait costs: this provider's trigger beside four other ways, all measured in this run.

``python -m tests.bench_waiting`` takes seven minutes; ``--waits 1000`` is a quick look. Each way waits in
a fresh process, so that CPU and memory are its own, for a service that costs little in another: over TLS and
by name, as the real one, but with an answer at once. All that poll at a fixed interval do so every 5 s.

So does the trigger while its model is unknown; what it learns is measured by ``dev.bench_intervals``. CPU is
the whole process's from the first wait's begin to the last one's end, over the polls.

All waits begin at once, as in a triggerer that restarts; ``--within 5`` spreads that over 5 s. The lag of the
loop is taken as the triggerer's watchdog takes it, less the 0.1 s that it sleeps: how late its turn is. What
was loaded before the waits is kept out of garbage collection: one walk over all of Airflow stops any process
for 0.15 s here, and which way it hits is chance.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import tests.conftest  # noqa: F401 - the environment that Airflow needs, and every process begun here

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

Wait = Callable[[str], Awaitable[None]]
Way = Callable[[str], AbstractAsyncContextManager[Wait]]

OURS = "this trigger"
INTERVAL = 5.0  # seconds between the looks of all that have a fixed one
WATCHDOG_SLEEP = 0.1  # seconds, as in airflow.jobs.triggerer_job_runner.TriggerRunner.block_watchdog
WATCHDOG_LIMIT = 0.2  # seconds, its own sleep included, from which it warns
PATIENCE = 120.0  # seconds after which a run is given up
HEADERS = {"Authorization": "Bearer ms-bench", "X-ModelScope-Task-Type": "image_generation"}
SPAWN = get_context("spawn")  # a fresh interpreter: nothing of this process is in its memory


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one way cost in one run."""

    cpu_ms: float  # per poll, user and system
    lag_p99_ms: float
    lag_max_ms: float
    polls: float  # per generation
    lateness: float  # seconds per generation, from its end to the moment the wait knew
    memory_kb: float  # per wait: growth of the resident set to its peak
    connections: int
    service_load: float  # of one core: what the service needed of it


class Service(asyncio.Protocol):
    """A connection to a service that reads in an id when it ends: ``<number>-<epoch seconds>``."""

    opened = 0
    looks = 0
    latency = 0.0

    def __init__(self) -> None:
        self._held = b""
        self._is_new = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while b"\r\n\r\n" in self._held:
            head, _end, self._held = self._held.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if not path.startswith(b"/v1/tasks/"):
                counts = {"opened": self.opened, "looks": self.looks, "cpu": time.process_time()}
                self._write(_http(counts))
                continue
            Service.looks += 1
            Service.opened += self._is_new
            self._is_new = False
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self._answer, path)
            else:
                self._answer(path)

    def _answer(self, path: bytes) -> None:
        self._write(SUCCEED if time.time() >= float(path.rpartition(b"-")[2]) else PROCESSING)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


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
    """Serve until the process is ended, and say through the pipe at which port."""
    import ssl

    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trust.load_cert_chain(certificate)
    Service.latency = latency
    _allow_many_files()

    async def run() -> None:
        begin = partial(asyncio.get_running_loop().create_server, Service, ssl=trust, backlog=4096)
        server = await begin("127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with suppress(OSError):
            await begin("::1", port)  # what the name stands for first, where there is IPv6
        pipe.send(port)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def service(latency: float) -> Iterator[str]:
    """Run the service in a process of its own, and give its base URL."""
    with TemporaryDirectory() as folder:
        certificate = Path(folder, "service.pem")
        certificate.write_bytes(_certificate())
        # Every client in the processes begun from here trusts it.
        os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = str(certificate)
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(theirs, str(certificate), latency), daemon=True)
        process.start()
        try:
            yield f"https://localhost:{ours.recv()}"
        finally:
            process.terminate()
            process.join()


def _certificate() -> bytes:
    """Return a key and a certificate for localhost that nobody else trusts."""
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
    """The floor: one session for all, and nothing but the poll."""
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
            settling_seconds=0,
        )
        async for event in trigger.run():
            if event.payload["status"] != "finished":
                raise RuntimeError(event.payload)

    yield wait


@asynccontextmanager
async def http_provider(base_url: str) -> AsyncIterator[Wait]:
    """A session per poll, through the http provider's hook, as its own triggers do."""
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
    """A blocking client per wait, each look in a thread, as the anthropic and common-ai providers do."""

    async def wait(generation_id: str) -> None:
        with _blocking_look(base_url) as is_finished:
            while not await asyncio.to_thread(is_finished, generation_id):
                await asyncio.sleep(INTERVAL)

    yield wait


@asynccontextmanager
async def blocking(base_url: str) -> AsyncIterator[Wait]:
    """One such client for all, on the loop itself, as the openai provider does."""
    with _blocking_look(base_url) as is_finished:

        async def wait(generation_id: str) -> None:
            while not is_finished(generation_id):
                await asyncio.sleep(INTERVAL)

        yield wait


@contextmanager
def _blocking_look(base_url: str) -> Iterator[Callable[[str], bool]]:
    import requests

    with requests.Session() as session:
        session.headers.update(HEADERS)

        def is_finished(generation_id: str) -> bool:
            answer = session.get(f"{base_url}/v1/tasks/{generation_id}", timeout=30)
            return bool(answer.json()["task_status"] == "SUCCEED")

        yield is_finished


WAYS: dict[str, Way] = {
    "bare loop": bare_loop,
    OURS: this_trigger,
    "http provider": http_provider,
    "threads": threads,
    "blocking": blocking,
}
MOST_WAITS = {"threads": 1000, "blocking": 1000}  # to save time: more of them only fall further behind


def measure(way: str, base_url: str, waits: int, seconds: float, within: float) -> Figures:
    """Wait in this process, which did nothing before, and say what it cost."""
    _allow_many_files()
    for module in ("aiohttp", "requests", "airflow_provider_modelscope.triggers.image_generation"):
        import_module(module)  # whatever the way: what garbage collection walks is the same for all
    return asyncio.run(_measure(WAYS[way], base_url, waits, seconds, within))


async def _measure(way: Way, base_url: str, waits: int, seconds: float, within: float) -> Figures:
    import psutil  # type: ignore[import-untyped]

    resident = psutil.Process()
    lags: list[float] = []
    lateness: list[float] = []
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            last_run = time.monotonic()
            await asyncio.sleep(WATCHDOG_SLEEP)
            lags.append(time.monotonic() - last_run - WATCHDOG_SLEEP)
            peak = max(peak, resident.memory_info().rss)

    async def see(generation_id: str, finished_at: float) -> None:
        await wait(generation_id)
        lateness.append(time.time() - finished_at)

    async with way(base_url) as wait:
        await wait("0-0")  # finished long ago: what is only loaded at a first look is loaded now
    await asyncio.sleep(0.1)
    spread = random.Random(1)  # noqa: S311 - the same times for every way
    async with way(base_url) as wait, asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        before = _counts(base_url)
        gc.collect()
        gc.freeze()
        rss = resident.memory_info().rss
        cpu, started = time.process_time(), time.monotonic()
        watchdog = asyncio.create_task(watch())
        seeing = []
        for number in range(waits):
            finished_at = time.time() + seconds * spread.uniform(0.5, 1)
            seeing.append(tasks.create_task(see(f"{number}-{finished_at}", finished_at)))
            await asyncio.sleep(max(0.0, started + within * (number + 1) / waits - time.monotonic()))
        await asyncio.wait(seeing)
        cpu, took = time.process_time() - cpu, time.monotonic() - started
        watchdog.cancel()
        after = _counts(base_url)
    looks = after["looks"] - before["looks"]
    lags.sort()
    return Figures(
        cpu_ms=1000 * cpu / looks,
        lag_p99_ms=1000 * lags[int(len(lags) * 0.99)],
        lag_max_ms=1000 * lags[-1],
        polls=looks / waits,
        lateness=sum(lateness) / waits,
        memory_kb=(peak - rss) / 1024 / waits,
        connections=int(after["opened"] - before["opened"]),
        service_load=(after["cpu"] - before["cpu"]) / took,
    )


def _counts(base_url: str) -> dict[str, float]:
    with urlopen(f"{base_url}/counts") as answer:  # noqa: S310 - our own service
        counts: dict[str, float] = json.load(answer)
        return counts


def _allow_many_files() -> None:
    import resource

    _soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def print_row(way: str, waits: int, figures: Figures, floor: Figures | None) -> None:
    ratio = f"{figures.cpu_ms / floor.cpu_ms:6.2f}" if floor else "     -"
    print(
        f"{waits:5} | {way:17} | {figures.cpu_ms:6.2f} {ratio} "
        f"| {figures.lag_p99_ms:6.1f} {figures.lag_max_ms:7.1f} | {figures.polls:5.2f} "
        f"{figures.lateness:6.2f} | {figures.memory_kb:7.1f} | {figures.connections:6} "
        f"| {figures.service_load:4.0%}",
        flush=True,
    )


def print_ratios(seen: dict[tuple[str, int], Figures]) -> None:
    """Print what was asked for beside what was measured."""
    from airflow_provider_modelscope.triggers.client import POOL_SIZE

    def row(what: str, measured: float, target: float) -> None:
        digits = 0 if target == POOL_SIZE else 3
        verdict = "met" if measured <= target else "NOT met"
        print(f"{what:62} {measured:7.{digits}f}   at most {target:6.{digits}f}   {verdict}")

    print()
    ours, bare = seen.get((OURS, 1000)), seen.get(("bare loop", 1000))
    if ours and bare:
        row("CPU per poll at 1000, of the bare loop's", ours.cpu_ms / bare.cpu_ms, 1.3)
        if other := seen.get(("threads", 1000)):
            row("CPU per poll at 1000, of threads'", ours.cpu_ms / other.cpu_ms, 1 / 3)
        if other := seen.get(("http provider", 1000)):
            row("CPU per poll at 1000, of a session's per poll", ours.cpu_ms / other.cpu_ms, 1 / 8)
        row("lag p99 at 1000, of the bare loop's", ours.lag_p99_ms / bare.lag_p99_ms, 1.5)
    if ours:
        longest = ours.lag_max_ms / 1000 + WATCHDOG_SLEEP
        row("seconds that the watchdog reads at 1000", longest, WATCHDOG_LIMIT)
        row("connections at 1000", ours.connections, POOL_SIZE)
    ours, bare = seen.get((OURS, 5000)), seen.get(("bare loop", 5000))
    if ours and bare:
        row("memory per wait at 5000, of the bare loop's", ours.memory_kb / bare.memory_kb, 2)


def main() -> int:
    """Measure every way with every number of waits."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--waits", default="100,1000,5000", help="how many at once; several with commas")
    options.add_argument(
        "--seconds", type=float, default=15, help="the longest generation; the shortest is half"
    )
    options.add_argument("--within", type=float, default=0, help="seconds in which the waits begin")
    options.add_argument("--latency", type=float, default=0, help="seconds that the service takes to answer")
    options.add_argument("--ways", nargs="+", default=list(WAYS), help=f"which of them: {list(WAYS)}")
    given = options.parse_args()
    if given.seconds < 2 * given.within:
        options.error("--seconds must be twice --within or more, so that all waits are there at one time")

    begun = f"within {given.within:g} s" if given.within else "at once"
    print(
        f"Generations of {given.seconds / 2:g} to {given.seconds:g} s, waits begun {begun}, looks every "
        f"{INTERVAL:g} s,\na service that answers after {given.latency:g} s. "
        f"Python {sys.version.split()[0]}, aiohttp {version('aiohttp')}, http provider "
        f"{version('apache-airflow-providers-http')}, {os.cpu_count()} cores.\n"
    )
    print(
        "      |                   |  CPU per poll | loop's lag, ms | a generation |  memory | connec | ser-"
    )
    print(
        "waits | way               |     ms  /bare |    p99     max | polls late s | KB/wait |  tions | vice"
    )
    seen: dict[tuple[str, int], Figures] = {}
    with service(given.latency) as base_url:
        for waits in map(int, given.waits.split(",")):
            for way in given.ways:
                if waits > MOST_WAITS.get(way, waits):
                    print(f"{waits:5} | {way:17} | left out: at most {MOST_WAITS[way]}")
                    continue
                with ProcessPoolExecutor(1, mp_context=SPAWN) as fresh:
                    run = fresh.submit(measure, way, base_url, waits, given.seconds, given.within)
                    try:
                        figures = run.result()
                    except Exception as error:  # a way that breaks down is a finding
                        print(f"{waits:5} | {way:17} | broke down: {error!r}", flush=True)
                        continue
                seen[way, waits] = figures
                print_row(way, waits, figures, seen.get(("bare loop", waits)))
    print_ratios(seen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
