"""The emulator's service behind requests, on a clock that only sleeping moves."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from requests_mock import ANY, Mocker

from airflow_provider_modelscope.check.__main__ import run
from airflow_provider_modelscope.emulator.drawing import draw
from airflow_provider_modelscope.emulator.service import Service
from tests.unit.conftest import connect

HOST = "https://api.example"
OPTIONS = Namespace(conn_id="modelscope_default", model="Tongyi-MAI/Z-Image-Turbo", spend=True, json=True)


@dataclass
class Answer:
    """A response in place of the service's own."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Wire:
    """What the check sends, and how it is answered."""

    def __init__(self, mocker: Mocker) -> None:
        self.service = Service(duration=8)
        self.now = 0.0
        self.sent: list[tuple[str, str]] = []
        self.instead: Callable[[str, str], Answer | Exception | None] = lambda method, path: None
        mocker.register_uri(ANY, ANY, content=self._respond)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def _respond(self, request: Any, context: Any) -> bytes:
        parts = urlsplit(request.url)
        self.sent.append((request.method, parts.path))
        answer = self.instead(request.method, parts.path)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            answer = self._of_the_service(request, parts.path, dict(parse_qsl(parts.query)))
        context.status_code = answer.status
        context.headers.update(answer.headers)
        return answer.body

    def _of_the_service(self, request: Any, path: str, query: dict[str, str]) -> Answer:
        headers = requests.structures.CaseInsensitiveDict({**request.headers, "Host": "api.example"})
        response = self.service.respond(
            request.method, path, headers, request.body or b"", query=query, now=self.now
        )
        body = response.body
        if response.drawn_from:
            body = draw(response.drawn_from, response.image_format)
        if response.cut == "before":
            raise requests.ConnectionError("closed")
        length = {"Content-Length": str(len(body))}
        if response.cut:
            body = body[: len(body) // 2]
        return Answer(
            body, response.status, {"Content-Type": response.content_type, **length, **response.headers}
        )


@dataclass
class Checked:
    """The outcome of a check."""

    exit_code: int
    output: str
    report: dict[str, Any]

    @property
    def verdicts(self) -> dict[str, str]:
        return {finding["name"]: finding["verdict"] for finding in self.report["findings"]}

    @property
    def came(self) -> dict[str, str]:
        return {finding["name"]: finding["came"] for finding in self.report["findings"]}

    @property
    def differing(self) -> set[str]:
        return {name for name, verdict in self.verdicts.items() if verdict == "differs"}


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with Mocker() as mocker:
        connect(monkeypatch, HOST)
        yield Wire(mocker)


@pytest.fixture
def check(wire: Wire, capsys: pytest.CaptureFixture[str]) -> Callable[..., Checked]:
    """Run the check, and return what it prints as JSON."""

    def check(**options: Any) -> Checked:
        given = Namespace(**{**vars(OPTIONS), **options})
        code = run(given, sleep=wire.sleep, clock=lambda: wire.now)
        captured = capsys.readouterr()
        report = json.loads(captured.out) if captured.out.startswith("{") else {}
        return Checked(code, captured.out + captured.err, report)

    return check
