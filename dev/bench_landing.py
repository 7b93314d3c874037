"""What it costs to store an image: this provider compared with bare copying.

``python -m dev.bench_landing`` takes ten minutes, ``--rounds 1 --images "5 MB PNG"`` much less. An image is
downloaded from a server on this machine, and stored on disk or in an S3 that only counts bytes; both are in a
process of their own. The ways to do it:

===========  ==========================================================================================
``copy``     the least: requests to a temporary file, then a plain copy, or a PUT with boto3
``limit``    the same, and what cannot be left out: the check of the file, its sha256, fsync on disk
``plain``    this provider: from the URLs of a generation to its stored images
``embed``    the same with ``embed_metadata=True``
``.jpg``     the same with conversion to JPEG, or of a JPEG to PNG
===========  ==========================================================================================

Each figure is measured in a new process, after two small images that load all modules. All ways of an image
follow each other in one round, and are compared within it; the figures are medians over the rounds. CPU is
that of the process, user and system. Memory is the peak of the resident set, less its size after the small
images.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile, TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import tests.conftest  # noqa: F401 - sets the environment for Airflow in this and all new processes
from dev.figures import Bench

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

    from aiohttp import web

Way = Callable[[str, str, str], None]  # stores the image at a URL as this name in this folder

COPY, LIMIT, PLAIN, EMBED, CONVERT = "copy", "limit", "plain", "embed", ".jpg"
WAYS = (COPY, LIMIT, PLAIN, EMBED, CONVERT)
WARM_UP = "1 MB PNG"
LARGEST = "60 MB PNG"
# Sides of the images of noise in pixels; their PNGs are not compressed much.
NOISE = {WARM_UP: 590, "5 MB PNG": 1320, "20 MB PNG": 2640, LARGEST: 4570}
PHOTO, JPEG = "3 MB photo as PNG", "JPEG of 5 Mi pixels"
IMAGES = (*NOISE, PHOTO, JPEG)
DISK, S3 = "disk", "S3"
BUCKET = "bench"
REPEATS = 5  # in a process
MAX_EMBED, MAX_OVER_LIMIT, MAX_MEMORY_MB = 1.15, 1.3, 40
SPAWN = get_context("spawn")  # a new interpreter, which shares no memory with this one


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The cost of storing one image in one way."""

    cpu_ms: float
    wall_ms: float
    memory_mb: float


Round = dict[str, Figures]  # the figures of each way, for one image and one store


def make_image(name: str) -> bytes:
    """Return the bytes of an image; the same in each run."""
    from PIL import Image as Pillow, ImageFilter

    def noise(side: int) -> Pillow.Image:
        chance = random.Random(side)  # noqa: S311
        return Pillow.frombytes("RGB", (side, side), chance.randbytes(3 * side * side))

    file = BytesIO()
    if name == PHOTO:
        noise(2048).filter(ImageFilter.GaussianBlur(4)).save(file, "PNG")
    elif name == JPEG:
        noise(2300).filter(ImageFilter.BoxBlur(1)).save(file, "JPEG", quality=88)
    else:
        noise(NOISE[name]).save(file, "PNG", compress_level=1)
    return file.getvalue()


def serve(pipe: Pipe, folder: str) -> None:
    """Send the port through the pipe, and serve images and an S3 until the process is terminated."""
    import asyncio

    from aiohttp import web

    images = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    held: dict[str, dict[str, str]] = {}  # the headers of each object

    async def image(request: web.Request) -> web.Response:
        return web.Response(body=images[request.match_info["name"]], content_type="image/png")

    async def put(request: web.Request) -> web.Response:
        length = 0
        async for piece in request.content.iter_chunked(1 << 18):
            length += len(piece)
        length = int(request.headers.get("x-amz-decoded-content-length", length))
        headers = {"Content-Length": str(length), "ETag": '"none"'}
        if checksum := request.headers.get("x-amz-checksum-sha256"):
            headers["x-amz-checksum-sha256"] = checksum
        held[request.path] = headers
        return web.Response(headers={"ETag": '"none"'})

    async def head(request: web.Request) -> web.StreamResponse:
        if request.path not in held:
            return web.Response(status=404)
        response = web.StreamResponse(headers=held[request.path])
        response.last_modified = time.time()
        await response.prepare(request)
        return response

    async def nothing(_request: web.Request) -> web.Response:
        return web.Response(text="<ListBucketResult></ListBucketResult>", content_type="application/xml")

    async def run() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/images/{name}", image, allow_head=False)
        app.router.add_put(f"/s3/{BUCKET}/{{key:.*}}", put)
        app.router.add_head(f"/s3/{BUCKET}/{{key:.*}}", head)
        app.router.add_get("/s3/{path:.*}", nothing, allow_head=False)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def server(folder: str) -> Iterator[str]:
    """Run the server in a process of its own, and yield its base URL."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(there, folder), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def bare_way(store: str, base_url: str, *, is_checked: bool) -> Way:
    """Return how to copy an image with the least effort, or with all that an honest copy needs."""
    import hashlib

    import requests

    from airflow_provider_modelscope.images.check import check_image

    if store == S3:
        import boto3  # type: ignore[import-untyped]

        client = boto3.client(
            "s3",
            endpoint_url=f"{base_url}/s3",
            region_name="us-east-1",
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )

    def copy(url: str, folder: str, name: str) -> None:
        with NamedTemporaryFile() as file, requests.get(url, stream=True, timeout=30) as response:
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
            file.flush()
            if is_checked:
                check_image(file.file)
                file.seek(0)
                hashlib.file_digest(file, "sha256")
            if store == S3:
                file.seek(0)
                client.put_object(Bucket=BUCKET, Key=name, Body=file, ContentType="image/png")
                return
            shutil.copyfile(file.name, Path(folder, name))
            if is_checked:
                with Path(folder, name).open("rb") as copied:
                    os.fsync(copied.fileno())

    return copy


def our_way(store: str, base_url: str, way: str, image: str) -> Way:
    """Return how this provider stores the image of a generation."""
    import structlog

    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.generation import SUCCEED, Generation
    from airflow_provider_modelscope.tasks.storing import store_images

    connections: dict[str, dict[str, Any]] = {
        "MODELSCOPE_DEFAULT": {
            "conn_type": "modelscope",
            "password": "ms-bench",
            "host": base_url,
            "extra": {"max_image_bytes": 100_000_000},
        },
        "BENCH_S3": {
            "conn_type": "aws",
            "login": "bench",
            "password": "bench",
            "extra": {"endpoint_url": f"{base_url}/s3", "region_name": "us-east-1"},
        },
    }
    for name, connection in connections.items():
        os.environ[f"AIRFLOW_CONN_{name}"] = json.dumps(connection)
    suffix = "" if way != CONVERT else ".png" if image == JPEG else ".jpg"
    hook = ModelScopeHook()
    logging.disable(logging.INFO)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    ti: Any = SimpleNamespace(xcom_push=lambda **_xcom: None)

    def store_one(url: str, folder: str, name: str) -> None:
        target = f"s3://{BUCKET}/" if store == S3 else f"file://{folder}/"
        destination = Destination.parse(
            target + (f"{name}{suffix}" if suffix else ""),
            storage_conn_id="bench_s3" if store == S3 else None,
        )
        generation = Generation(generation_id=name, status=SUCCEED, output_images=(url,))
        store_images(
            generation,
            destination,
            hook=hook,
            context={"ti": ti},
            submission=None,
            embed_metadata=way == EMBED,
        )

    return store_one


def measure(way: str, image: str, store: str, base_url: str) -> Figures:
    """Store an image several times in this process, which is new, and return the medians."""
    if way in (COPY, LIMIT):
        run = bare_way(store, base_url, is_checked=way == LIMIT)
    else:
        run = our_way(store, base_url, way, image)
    figures: list[Figures] = []
    with TemporaryDirectory() as folder:
        for number in range(2):
            run(_url(base_url, WARM_UP), folder, f"small-{number}")
        gc.collect()
        before = _status("VmRSS")
        for number in range(REPEATS):
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the resident set
            cpu, started = time.process_time(), time.perf_counter()
            run(_url(base_url, image), folder, f"image-{number}")
            cpu, wall = time.process_time() - cpu, time.perf_counter() - started
            memory = (_status("VmHWM") - before) / 1024
            figures.append(Figures(cpu_ms=1000 * cpu, wall_ms=1000 * wall, memory_mb=memory))
    return medians(figures)


def _url(base_url: str, image: str) -> str:
    return f"{base_url}/images/{quote(image)}"


def _status(field: str) -> int:
    """Return a size of this process in KiB, as Linux reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def medians(measured: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    rows = [asdict(figures) for figures in measured]
    return Figures(**{name: median(row[name] for row in rows) for name in rows[0]})


def ratio(rounds: Sequence[Round], way: str, other: str) -> float | None:
    """Return the CPU of a way, relative to another one in the same round: the median."""
    ratios = [one[way].cpu_ms / one[other].cpu_ms for one in rounds if one.keys() >= {way, other}]
    return median(ratios) if ratios else None


HEADER = """\
store | image               | way   |   CPU ms  /copy  /limit |  wall ms | memory MB\
"""


def print_rows(store: str, image: str, rounds: Sequence[Round]) -> None:
    """Print the medians of every way for one image and one store."""
    for way in WAYS:
        measured = [one[way] for one in rounds if way in one]
        if not measured:
            continue
        figures = medians(measured)
        relative = [
            f"{value:6.2f}" if (value := ratio(rounds, way, to)) else "     -" for to in (COPY, LIMIT)
        ]
        title = ".png" if way == CONVERT and image == JPEG else way
        print(
            f"{store:5} | {image:19} | {title:5} | {figures.cpu_ms:8.1f} {relative[0]}  {relative[1]} "
            f"| {figures.wall_ms:8.1f} | {figures.memory_mb:9.1f}",
            flush=True,
        )


def print_targets(measured: dict[tuple[str, str], list[Round]], bench: Bench) -> None:
    """Print the targets, and whether the medians meet them."""

    def row(what: str, value: float | None, target: float) -> None:
        if value is not None:
            bench.at_most(what, value, target)

    print()
    for (store, image), rounds in measured.items():
        where = f"{image} to {store}"
        row(f"CPU, {where}: of the least possible", ratio(rounds, PLAIN, LIMIT), MAX_OVER_LIMIT)
        row(f"CPU, {where}: embedding, of plain", ratio(rounds, EMBED, PLAIN), MAX_EMBED)
    rounds = measured.get((DISK, LARGEST), [])
    more = [one[PLAIN].memory_mb - one[COPY].memory_mb for one in rounds if one.keys() >= {PLAIN, COPY}]
    what = f"memory, {LARGEST} to {DISK}: this provider, MB more than a copy"
    row(what, median(more) if more else None, MAX_MEMORY_MB)


def run_round(base_url: str, image: str, store: str) -> Round:
    """Measure each way in a new process."""
    measured = {}
    for way in WAYS:
        if way == CONVERT and store == S3:
            continue  # converting costs the same everywhere
        with ProcessPoolExecutor(1, mp_context=SPAWN) as new_process:
            try:
                measured[way] = new_process.submit(measure, way, image, store, base_url).result()
            except Exception as error:  # a way that fails is a result
                print(f"{store:5} | {image:19} | {way:5} | failed: {error!r}", flush=True)
    return measured


def main() -> int:
    """Measure every way with every image and store."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=int, default=3, help="how often each figure is measured")
    options.add_argument("--images", nargs="+", default=IMAGES, choices=IMAGES, help="images to store")
    options.add_argument("--stores", nargs="+", default=[DISK, S3], choices=[DISK, S3], help="where")
    arguments = options.parse_args()
    print(
        f"Images from and to this machine, {arguments.rounds} rounds of {REPEATS} images. "
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores.\n"
    )
    measured: dict[tuple[str, str], list[Round]] = {}
    with TemporaryDirectory() as folder:
        for image in {WARM_UP, *arguments.images}:
            Path(folder, image).write_bytes(make_image(image))
        print(HEADER)
        with server(folder) as base_url:
            for store in arguments.stores:
                for image in arguments.images:
                    rounds = [run_round(base_url, image, store) for _ in range(arguments.rounds)]
                    measured[store, image] = rounds
                    print_rows(store, image, rounds)
    bench = Bench("storing", "make bench-landing")
    print_targets(measured, bench)
    for (store, image), rounds in measured.items():
        pairs = {"plain": (PLAIN, LIMIT), "embedding": (EMBED, PLAIN)}
        bench.add(f"{store}, {image}", {name: ratio(rounds, *pair) for name, pair in pairs.items()})
    if arguments == options.parse_args([]):
        bench.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
