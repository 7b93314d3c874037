"""A batch whose worker is killed (-9) at any moment stores every image, and pays twice for none in silence.

Each moment is chosen by what the service, the store and the disk see, never by time.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_modelscope.emulator import Emulator
from tests.faults.batch_worker import Killer, Part, kind_of, work
from tests.support.servers import moto, s3_client, s3_connection

pytestmark = pytest.mark.kill

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
BUCKET = "postcards"
AT_ONCE = 6  # moments
MAX_ATTEMPTS = 8
LIMIT = 120.0  # seconds for a part
PRICE = 1.0  # credit
WARNING = re.compile(r"^Submitting again, which may be charged twice.* row (\d+) ", re.MULTILINE)

exit_codes = threading.Lock()  # start() reads those of all processes, and each can be read once
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.faults.batch_worker"])


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to kill the worker of a batch, and what may come of it.

    :param at: The moment: something and what happens to it, see ``Gate`` and ``batch_worker.Part``.
    :param nth: Which of these moments, of the worker's process.
    :param part: Which process of the batch is killed first, from 1. A batch that defers has several.
    :param times: How many processes are killed, one after the other, at the same moment of each.
    :param doubled: How many rows are submitted twice.
    :param warned: How many submissions the log says to be possibly charged twice. None, as also of
        ``doubled``: what else the worker was doing decides.
    """

    at: str
    nth: int = 1
    part: int = 1
    times: int = 1
    doubled: int | None = 0
    warned: int | None = 0
    rows: int = 20
    in_s3: bool = False
    is_deferrable: bool = False
    concurrency: int = 1

    def __str__(self) -> str:
        return "-".join(
            [
                self.at.replace(" ", "_"),
                str(self.nth),
                *([f"part{self.part}"] if self.part > 1 else []),
                *([f"{self.times}times"] if self.times > 1 else []),
                *([f"{self.concurrency}at_once"] if self.concurrency > 1 else []),
                *([f"{self.rows}rows"] if self.rows != 20 else []),
                *(["deferrable"] if self.is_deferrable else []),
                *(["s3"] if self.in_s3 else []),
            ]
        )


def _unsure(at: str, nth: int, **more: Any) -> Moment:
    """Return a moment at which the worker may also be submitting another row."""
    return Moment(at=at, nth=nth, doubled=None, warned=None, **more)


MOMENTS = (
    # Before the first submission
    Moment(at="plan written"),
    Moment(at="plan renamed"),
    Moment(at="progress written"),
    Moment(at="progress renamed"),
    # A submission: of the first row, one in the middle, the last
    *(Moment(at="intent written", nth=nth) for nth in (1, 11, 20)),
    *(Moment(at="intent renamed", nth=nth, warned=1) for nth in (1, 11, 20)),
    *(Moment(at="submission arrives", nth=nth, warned=1) for nth in (1, 11, 20)),
    *(Moment(at="submission answered", nth=nth, warned=1, doubled=1) for nth in (1, 11, 20)),
    # Its response has arrived, and is not recorded
    *(Moment(at="progress written", nth=nth, warned=1, doubled=1) for nth in (2, 12, 21)),
    *(Moment(at="progress renamed", nth=nth) for nth in (2, 12, 21)),
    # Polls
    *(Moment(at="poll arrives", nth=nth) for nth in (1, 11, 20)),
    Moment(at="poll answered", nth=10),
    # Downloads and the store, beside the next submission
    _unsure("download arrives", 1),
    _unsure("download answered", 10),
    *(_unsure("download half", nth) for nth in (1, 10)),
    Moment(at="download half", nth=20),
    *(_unsure("image written", nth) for nth in (1, 10)),
    Moment(at="image written", nth=20),
    _unsure("image renamed", 10),
    Moment(at="image renamed", nth=20),
    # Segments
    *(_unsure(f"segment {what}", 1, rows=60) for what in ("written", "renamed")),
    # The end
    Moment(at="manifest written"),
    Moment(at="manifest renamed"),
    Moment(at="end written"),
    Moment(at="end renamed"),
    # Several times
    Moment(at="submission answered", times=4, doubled=4, warned=4),
    Moment(at="poll arrives", nth=3, times=4),
    _unsure("image written", 4, times=4),
    # Several generations at once
    _unsure("submission answered", 7, concurrency=4),
    _unsure("download half", 7, concurrency=4),
    # Deferrals, of a batch that runs four generations at once
    *(Moment(at="deferral", part=part, is_deferrable=True, concurrency=4) for part in (1, 3)),
    _unsure("poll arrives", 1, part=3, is_deferrable=True, concurrency=4),
    _unsure("submission answered", 2, part=3, is_deferrable=True, concurrency=4),
    _unsure("image written", 1, part=3, is_deferrable=True, concurrency=4),
    # In S3
    Moment(at="plan arrives", in_s3=True),
    Moment(at="intent answered", nth=11, warned=1, in_s3=True),
    Moment(at="progress arrives", nth=12, doubled=1, warned=1, in_s3=True),
    Moment(at="progress answered", nth=12, in_s3=True),
    _unsure("image arrives", 10, in_s3=True),
    _unsure("image answered", 10, in_s3=True),
    _unsure("segment answered", 1, rows=60, in_s3=True),
    Moment(at="manifest arrives", in_s3=True),
)


@dataclass(kw_only=True)
class Outcome:
    """What came of a batch."""

    kills: int = 0
    errors: list[str] = field(default_factory=list)
    attempts: int = 1
    summary: dict[str, Any] = field(default_factory=dict)
    submitted: list[tuple[str, str]] = field(default_factory=list)  # prompts and ids of the accepted ones
    served: dict[str, bytes] = field(default_factory=dict)  # by generation
    objects: dict[str, bytes] = field(default_factory=dict)  # by name, in the destination
    log: str = ""

    @property
    def warned_rows(self) -> Counter[int]:
        """How many warnings of a possible second charge the log has, by row."""
        return Counter(int(row) for row in WARNING.findall(self.log))


class Gate(ThreadingHTTPServer):
    """A proxy before a service that may kill the client.

    Its moments are those of a request: it ``arrives`` and goes no further; it is ``answered``, which the
    client never learns; ``half`` of the response is sent.

    :param url: URL of the service.
    """

    daemon_threads = True
    killer: Killer

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.service = urlsplit(url).netloc
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.killer = Killer("", 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that the client has been killed."""


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Gate

    def setup(self) -> None:
        super().setup()
        self._service = HTTPConnection(self.server.service)

    def finish(self) -> None:
        self._service.close()
        super().finish()

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what, passes = self._what(body), self.server.killer.passes
        self.close_connection = True  # unless all is sent
        if not passes(f"{what} arrives"):
            return
        self._service.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name != "Expect":
                self._service.putheader(name, value)
        self._service.endheaders(body)
        response = self._service.getresponse()
        content = response.read()
        if not passes(f"{what} answered"):
            return
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name not in ("Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        if not passes(f"{what} half"):
            return
        self.wfile.write(content[len(content) // 2 :])
        self.close_connection = False

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _relay

    def _what(self, body: bytes) -> str:
        match self.command, self.path.split("/")[1:]:
            case "POST", ["v1", "images", "generations"]:
                return "submission"
            case "GET", ["v1", "tasks", _]:
                return "poll"
            case "GET", ["images", _]:
                return "download"
            case "PUT", [*_, name]:
                return kind_of(name, body)
        return "other"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def gate_before(url: str) -> Iterator[Gate]:
    """Run a gate in a thread."""
    with Gate(url) as gate:
        thread = threading.Thread(target=gate.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield gate
        finally:
            gate.shutdown()
            thread.join()


def perform(moment: Moment, folder: Path, store_url: str) -> Outcome:
    """Run a batch until it succeeds, and kill its workers at a moment."""
    outcome = Outcome()
    log, end = folder / "log", folder / "end"
    name = folder.name
    duration = 3600.0 if moment.is_deferrable else 0.0
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator(duration=duration, max_running=moment.concurrency))
        gates = [service := stack.enter_context(gate_before(emulator.base_url))]
        connections: dict[str, Any] = {
            "modelscope_default": {"conn_type": "modelscope", "password": "ms-kills", "host": service.url}
        }
        destination = f"file://{folder}/images/"
        if moment.in_s3:
            gates.append(stack.enter_context(gate_before(store_url)))
            connections["store"] = s3_connection(gates[-1].url)
            destination = f"s3://{BUCKET}/{name}/"
        parameters = {
            "requests": [f"postcard {number}" for number in range(1, moment.rows + 1)],
            "destination": destination,
            "storage_conn_id": "store" if moment.in_s3 else None,
            "model": "Qwen/Qwen-Image",
            "size": "1024x64",  # drawn fast
            "concurrency": moment.concurrency,
            "deferrable": moment.is_deferrable,
            "defer_after": 0,
        }
        event, part = None, 0
        while not outcome.summary and outcome.attempts <= MAX_ATTEMPTS:
            part += 1
            kills = moment.part <= part and outcome.kills < moment.times
            at = moment.at if kills else ""
            exit_code = _run(
                Part(
                    connections={name: json.dumps(value) for name, value in connections.items()},
                    parameters=parameters,
                    try_number=outcome.attempts,
                    log=log,
                    end=end,
                    event=event,
                    kill_at=at,
                    nth=moment.nth,
                ),
                gates,
            )
            event = None
            emulator.finish()  # what the trigger waits for, or what nobody knows of
            if exit_code == -signal.SIGKILL:
                outcome.kills += 1
                outcome.attempts += 1
                continue
            if exit_code != 0:
                outcome.errors.append(f"Part {part} has ended with {exit_code}; None: it hangs")
                break
            ended = json.loads(end.read_text())
            end.unlink()
            event = ended.get("event")
            if error := ended.get("error"):
                outcome.errors.append(error)
                outcome.attempts += 1
            outcome.summary = ended.get("summary", {})
        for exchange in emulator.requests:
            if exchange.note == "accepted":
                outcome.submitted.append((exchange.json["prompt"], exchange.generation_id))
            elif exchange.note == "image":
                outcome.served[exchange.generation_id] = exchange.response_body
    outcome.log = log.read_text()
    if moment.in_s3:
        outcome.objects = _objects_in_s3(store_url, f"{name}/")
    else:
        images = folder / "images"
        found = [path for path in images.rglob("*") if path.is_file()]
        outcome.objects = {path.relative_to(images).as_posix(): path.read_bytes() for path in found}
    return outcome


def _run(part: Part, gates: list[Gate]) -> int | None:
    """Run a part in a process, and return its exit code, or None if it hangs."""
    process = processes.Process(target=work, args=[part])
    killer = Killer(part.kill_at, part.nth)
    for gate in gates:
        gate.killer = killer
    with killer.lock, exit_codes:
        process.start()
        assert process.pid
        killer.pid = process.pid
    wait([process.sentinel], LIMIT)
    with exit_codes:
        exit_code = process.exitcode
        process.kill()
        process.join()
    return exit_code


def _objects_in_s3(url: str, prefix: str) -> dict[str, bytes]:
    client = s3_client(url)
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        for entry in listed
    }


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Moment, Outcome]]:
    """The outcome of each selected moment."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = [moment for moment in MOMENTS if {"moment": moment} in parameters]
    folders = [tmp_path_factory.mktemp("kill") for _ in selected]
    with moto() as store_url, ThreadPoolExecutor(AT_ONCE) as threads:
        s3_client(store_url).create_bucket(Bucket=BUCKET)
        performed = threads.map(perform, selected, folders, [store_url] * len(selected))
        yield dict(zip(selected, performed, strict=True))


def test_the_documented_number_of_moments_is_theirs() -> None:
    assert f"kill the worker of a batch at {len(MOMENTS)} moments" in PAGE.read_text()


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_killed_batch_loses_and_repeats_nothing(moment: Moment, outcomes: dict[Moment, Outcome]) -> None:
    outcome = outcomes[moment]
    assert (outcome.errors, outcome.kills) == ([], moment.times), outcome.log
    counts = {"stored": moment.rows, "rejected": 0, "failed": 0, "skipped": 0}
    assert outcome.summary["counts"] == counts

    # Charges
    submissions = Counter(prompt for prompt, _ in outcome.submitted)
    assert len(submissions) == moment.rows
    twice = Counter(
        {int(prompt.split()[-1]): count - 1 for prompt, count in submissions.items() if count > 1}
    )
    assert twice <= outcome.warned_rows
    assert moment.doubled in (None, twice.total())
    assert moment.warned in (None, outcome.warned_rows.total())
    assert outcome.summary["credit"] == PRICE * (moment.rows + outcome.warned_rows.total())

    # Images
    prompts = {generation_id: prompt for prompt, generation_id in outcome.submitted}
    manifest = [json.loads(line) for line in outcome.objects["manifest.jsonl"].splitlines()]
    assert [row["row"] for row in manifest] == list(range(1, moment.rows + 1))
    for row in manifest:
        image = outcome.objects[row["uri"].rpartition("/")[2]]
        assert image == outcome.served[row["generation_id"]]
        assert row["sha256"] == hashlib.sha256(image).hexdigest()
        assert prompts[row["generation_id"]] == f"postcard {row['row']}"

    # Nothing else
    others = {name.rpartition("/")[2] for name in outcome.objects}
    others -= {row["uri"].rpartition("/")[2] for row in manifest}
    segments = {name for name in others if name.startswith("results-")}
    assert others - segments == {"manifest.jsonl", "plan.jsonl", "running.json"}
