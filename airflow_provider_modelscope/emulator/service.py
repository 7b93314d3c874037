"""The emulated service: its state and its rules. Time is an argument; ``server`` does the talking."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_modelscope.emulator.faults import Faults
from airflow_provider_modelscope.emulator.parameters import Parameters, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

AUTHENTICATION_FAILED = "Authentication failed, please make sure that a valid ModelScope token is supplied."
NO_SYNCHRONOUS_CALLS = (
    "This model does not support synchronous calls, please set X-ModelScope-Async-Mode: true"
)
QUEUE_FULL = "enqueue failed: user queue is full"
NOT_VERIFIED = "Your Alibaba Cloud account must be real name verified before use."

STATUS_MESSAGES = {
    401: AUTHENTICATION_FAILED,
    403: NOT_VERIFIED,
    429: "Too many requests, please slow down and try again later.",
}
"""The message of an error that was asked for by its HTTP status; the others say the status's own phrase."""

SUBMIT_ERRORS = {
    "queue-full": (500, QUEUE_FULL),
    "quota": (429, "You have exceeded today's quota for model {model}, please try again tomorrow."),
    "balance": (402, "Insufficient balance, please top up your account."),
    "unbound": (401, "Please bind your Alibaba Cloud account before use."),
    "unverified": (403, NOT_VERIFIED),
    "unknown-model": (400, "Model id : {model} , has no provider supported"),
}
"""HTTP status and message of the named faults of a submission that are ordinary errors."""

FAILURES = {
    "failed": {"code": 500, "message": "Image generation failed: internal error"},
    "rejected": {"code": 400, "message": "The prompt may contain inappropriate content, please change it"},
    "not-found": {"code": 500, "message": "task not found"},
}
"""The ``errors`` of a FAILED answer, which itself has HTTP status 200."""

REQUESTS_A_DAY = 2000
REQUESTS_A_DAY_PER_MODEL = 500
CREDIT_A_DAY = 250
"""What the service once gave away; the emulator counts down from these, but refuses nothing at 0."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer, or the lack of one."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    picture: Parameters | None = None
    """When set, the body is the picture of these parameters, still to be drawn."""
    image_format: str = "PNG"
    cut: Literal["", "before", "midway"] = ""
    """Where the connection closes: before the answer, or when half of the body is sent."""
    generation_id: str = ""
    note: str = ""
    """A few words for the access log."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """An accepted submission; times are in seconds on the clock of the caller."""

    generation_id: str
    token: str
    parameters: Parameters
    accepted_at: float
    finished_at: float
    image_path: str
    fate: str = ""
    """What a poll fault made of it for good: ``failed``, ``rejected`` or ``stall``."""

    def status(self, now: float) -> str:
        """Return ModelScope's ``task_status``; the first quarter of the time is PENDING."""
        if self.fate in FAILURES:
            return "FAILED"
        if self.fate == "stall":
            return "PROCESSING"
        if now >= self.finished_at:
            return "SUCCEED"
        return (
            "PENDING" if now < self.accepted_at + (self.finished_at - self.accepted_at) / 4 else "PROCESSING"
        )

    def is_running(self, now: float) -> bool:
        """Tell whether it takes a place in the queue; a stalled one gives it up when its time is over."""
        return now < self.finished_at and self.fate not in FAILURES


class Service:
    """The service behind the emulator.

    :param duration: Seconds that each generation takes, from 0.
    :param max_running: how many generations an account (a token) may have running, from 1.
    :param tokens: the valid tokens; none means that any token is valid.
    :param faults: switches as ``faults`` describes them.
    :param first_id: the id of the first generation; the others count up.
    """

    def __init__(
        self,
        *,
        duration: float = 3.0,
        max_running: int = 1,
        tokens: Iterable[str] = (),
        faults: Iterable[str] = (),
        first_id: int = 4003503,
    ) -> None:
        self.faults = Faults(faults)
        self._duration = duration
        self._max_running = max_running
        self._tokens = frozenset(tokens)
        self._generations: dict[str, Generation] = {}
        self._ids = count(first_id)
        self._request_numbers = count(1)

    @property
    def accepted(self) -> int:
        """How many submissions made a generation, whether or not the client was told."""
        return len(self._generations)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """From when to when each generation takes a place in the queue, on the clock of the caller."""
        return [(one.accepted_at, one.finished_at) for one in self._generations.values()]

    def finish(self, *, now: float) -> None:
        """Let every generation that runs be finished, on the clock of the caller."""
        for one in list(self._generations.values()):
            if one.finished_at > now:
                self._generations[one.generation_id] = replace(one, finished_at=now)

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = b"", *, now: float
    ) -> Answer:
        """Answer one HTTP request.

        :param headers: looked up as ModelScope spells them; give a case-insensitive mapping.
        :param body: None when it could not be read.
        :param now: seconds on any clock that never goes back.
        """
        match method, path.split("/")[1:]:
            case "POST", ["v1", "images", "generations"]:
                return self._submit(headers, body, now)
            case "GET", ["v1", "tasks", generation_id]:
                return self._poll(generation_id, headers, now)
            case "GET", ["images", _]:
                return self._image(path, headers, now)
            case "GET", ["v1", "models"]:
                models = [{"id": "Qwen/Qwen-Image", "object": "", "created": 0, "owned_by": "system"}]
                return _json(200, {"object": "list", "data": models})
            case "GET", ["openapi", "v1", "users", "me"]:
                return self._hub(
                    headers, {"username": "emulator", "email": "emulator@example.com", "nickname": "Emulator"}
                )
            case "GET", ["openapi", "v1", "magicubes", "balance"]:
                return self._hub(headers, self._balance(_token(headers), now))
        return self._error(404, "")

    def _submit(self, headers: Mapping[str, str], body: bytes | None, now: float) -> Answer:
        token = _token(headers)
        if not self._is_valid(token):
            return self._error(401, AUTHENTICATION_FAILED)
        if headers.get("X-ModelScope-Async-Mode", "").lower() != "true":
            return self._error(400, NO_SYNCHRONOUS_CALLS)
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            return self._error(400, "Content-Type must be application/json")
        try:
            parameters = Parameters.from_body(body)
        except RefusedError as refusal:
            return self._error(400, str(refusal))
        answer = self._enqueue(token, parameters, now)
        return replace(answer, headers=self._limits(token, parameters.model))

    def _enqueue(self, token: str, parameters: Parameters, now: float) -> Answer:
        if sum(other.is_running(now) for other in self._of(token)) >= self._max_running:
            return self._error(500, QUEUE_FULL)
        fault = self.faults.take("submit")
        match fault:
            case "" | "lost":
                answer = self._accept(token, parameters, now)
                return replace(answer, cut="before", note="accepted, fault lost") if fault else answer
            case "no-id":
                answer = _json(200, {"task_status": "SUCCEED", "request_id": self._request_id()})
            case _ if fault in SUBMIT_ERRORS:
                status, message = SUBMIT_ERRORS[fault]
                answer = self._error(status, message.format(model=parameters.model))
            case _:
                answer = self._wrong(fault)
        return replace(answer, note=f"fault {fault}")

    def _accept(self, token: str, parameters: Parameters, now: float) -> Answer:
        generation_id = str(next(self._ids))
        name = hashlib.sha256(f"{generation_id} {parameters.digest}".encode()).hexdigest()[:32]
        self._generations[generation_id] = Generation(
            generation_id=generation_id,
            token=token,
            parameters=parameters,
            accepted_at=now,
            finished_at=now + self._duration,
            image_path=f"/images/{name}.png",
        )
        accepted = {"task_status": "SUCCEED", "task_id": generation_id, "request_id": self._request_id()}
        return replace(_json(200, accepted), generation_id=generation_id, note="accepted")

    def _poll(self, generation_id: str, headers: Mapping[str, str], now: float) -> Answer:
        token = _token(headers)
        if not self._is_valid(token):
            return self._error(401, AUTHENTICATION_FAILED)
        generation = self._generations.get(generation_id)
        if (
            generation is None
            or generation.token != token
            or headers.get("X-ModelScope-Task-Type") != "image_generation"
        ):
            return replace(self._failed("not-found"), note="task not found")
        fault = "" if generation.fate else self.faults.take("poll")
        match fault:
            case "":
                answer = self._report(generation, headers, now)
            case "failed" | "rejected" | "stall":
                generation = replace(generation, fate=fault)
                self._generations[generation_id] = generation
                answer = self._report(generation, headers, now)
            case "not-found":
                answer = self._failed(fault)
            case "no-images":
                answer = _json(200, {"request_id": self._request_id(), "task_status": "SUCCEED"})
            case "empty":
                answer = Answer()
            case _:
                answer = self._wrong(fault)
        note = f"fault {fault}" if fault else generation.status(now)
        return replace(answer, generation_id=generation_id, note=note)

    def _report(self, generation: Generation, headers: Mapping[str, str], now: float) -> Answer:
        status = generation.status(now)
        if status == "FAILED":
            return self._failed(generation.fate)
        if status != "SUCCEED":
            return _json(200, {"request_id": "", "task_id": "", "task_status": status, "outputs": {}})
        used = generation.parameters
        return _json(
            200,
            {
                "input": {
                    "seed": used.seed,
                    "width": used.width,
                    "height": used.height,
                    "guidanceScale": used.guidance,
                    "numInferenceSteps": used.steps,
                    "sampler": "Euler a",
                    "prompt": used.prompt,
                    "negativePrompt": used.negative_prompt,
                },
                "output_images": [f"http://{headers.get('Host', 'localhost')}{generation.image_path}"],
                "request_id": self._request_id(),
                "task_status": status,
                "time_taken": round(1000 * (generation.finished_at - generation.accepted_at), 1),
            },
        )

    def _image(self, path: str, headers: Mapping[str, str], now: float) -> Answer:
        if "Authorization" in headers:
            return _plain(400, "The image host takes no token: never send the Authorization header here.")
        generation = next((one for one in self._generations.values() if one.image_path == path), None)
        if generation is None or generation.status(now) != "SUCCEED":
            return self._error(404, "")
        answer = Answer(content_type="image/png", picture=generation.parameters)
        fault = self.faults.take("image")
        match fault:
            case "":
                pass
            case "truncated":
                answer = replace(answer, cut="midway")
            case "garbage":
                answer = replace(answer, picture=None, body=hashlib.shake_256(path.encode()).digest(5000))
            case "wrong-suffix":
                answer = replace(answer, image_format="JPEG")
            case "html" | "reset":
                answer = self._wrong(fault)
            case _:
                answer = _plain(int(fault), _phrase(int(fault)))
        return replace(
            answer, generation_id=generation.generation_id, note=f"fault {fault}" if fault else "image"
        )

    def _hub(self, headers: Mapping[str, str], data: Mapping[str, Any]) -> Answer:
        if self._is_valid(_token(headers)):
            return _json(200, {"success": True, "data": data, "request_id": self._request_id()})
        message = "Invalid authentication: missing or invalid Authorization header"
        return _json(401, {"success": False, "code": "InvalidAuthentication", "message": message})

    def _balance(self, token: str, now: float) -> dict[str, int]:
        frozen = sum(one.is_running(now) for one in self._of(token))
        total = max(frozen, CREDIT_A_DAY + frozen - len(self._of(token)))
        return {"total_balance": total, "available_balance": total - frozen, "frozen_amount": frozen}

    def _limits(self, token: str, model: str) -> dict[str, str]:
        used = [one.parameters.model for one in self._of(token)]
        return {
            "modelscope-ratelimit-requests-limit": str(REQUESTS_A_DAY),
            "modelscope-ratelimit-requests-remaining": str(max(0, REQUESTS_A_DAY - len(used))),
            "modelscope-ratelimit-model-requests-limit": str(REQUESTS_A_DAY_PER_MODEL),
            "modelscope-ratelimit-model-requests-remaining": str(
                max(0, REQUESTS_A_DAY_PER_MODEL - used.count(model))
            ),
        }

    def _wrong(self, fault: str) -> Answer:
        if fault == "reset":
            return Answer(cut="before")
        if fault == "html":
            return Answer(
                body=b"<!DOCTYPE html><title>Please wait</title><p>Please wait.", content_type="text/html"
            )
        status = int(fault)
        return self._error(status, STATUS_MESSAGES.get(status, _phrase(status)))

    def _error(self, status: int, message: str) -> Answer:
        # The service uses both envelopes, and a client has to read either.
        if status == 404:
            return _plain(404, "404 page not found")
        error = {"code": status, "message": message}
        if status in (400, 401, 403):
            answer = _json(status, {"errors": error, "request_id": self._request_id()})
        else:
            answer = _json(status, {"error": {**error, "request_id": self._request_id()}})
        return replace(answer, note=message)

    def _failed(self, failure: str) -> Answer:
        errors = FAILURES[failure]
        return _json(200, {"task_status": "FAILED", "errors": errors, "request_id": self._request_id()})

    def _request_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, str(next(self._request_numbers))))

    def _is_valid(self, token: str) -> bool:
        return token in self._tokens if self._tokens else token != ""

    def _of(self, token: str) -> list[Generation]:
        return [generation for generation in self._generations.values() if generation.token == token]


def _token(headers: Mapping[str, str]) -> str:
    match = re.fullmatch(r"Bearer (\S+)", headers.get("Authorization", ""))
    return match[1] if match else ""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Error {status}"


def _json(status: int, content: Mapping[str, Any]) -> Answer:
    return Answer(status=status, body=json.dumps(content).encode())


def _plain(status: int, text: str) -> Answer:
    return Answer(status=status, body=text.encode(), content_type="text/plain", note=text)
