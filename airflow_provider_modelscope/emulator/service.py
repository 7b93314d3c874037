"""The emulated service: its state and its rules. Time is an argument, and ``server`` speaks HTTP."""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_modelscope.emulator.credit import CREDIT, TIERS, as_number, price_of, read_amount
from airflow_provider_modelscope.emulator.faults import Faults
from airflow_provider_modelscope.emulator.parameters import (
    BadRequestError,
    Parameters,
    model_exists,
    read_body,
)
from airflow_provider_modelscope.emulator.traits import altered, read_traits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

AUTHENTICATION_FAILED = "Authentication failed, please make sure that a valid ModelScope token is supplied."
NO_SYNCHRONOUS_CALLS = (
    "This model does not support synchronous calls, please set X-ModelScope-Async-Mode: true"
)
QUEUE_FULL = "enqueue failed: user queue is full"
BUSY = "Server is busy, please try again later"
QUOTA = "You have exceeded today's quota for model {model}, please try again tomorrow."
INAPPROPRIATE = "Input data may contain inappropriate content."
NOT_VERIFIED = "Your Alibaba Cloud account must be real name verified before use."
INVALID_TOKEN = "ms-00000000-0000-0000-0000-000000000000"  # noqa: S105 - valid nowhere
NO_CREDIT = (403, "QuotaLimitExceed", "magicube balance exhausted")
RETIRED_MODEL = (429, "", "insufficient balance (1008)")

STATUS_MESSAGES = {
    401: AUTHENTICATION_FAILED,
    403: NOT_VERIFIED,
    404: "404 page not found",
    429: "Too many requests, please slow down and try again later.",
}
"""Messages of faults that are an HTTP status. The default is the standard phrase of the status."""

SUBMIT_ERRORS = {
    "queue-full": (500, "", QUEUE_FULL),
    "image-queue-full": (503, "", "image queue is full"),
    "busy": (503, "", BUSY),
    "busy-200": (200, "", BUSY),
    "busy-400": (400, "", BUSY),
    "too-many": (429, "", "Too many concurrent requests for model {model}, please slow down"),
    "too-fast": (429, "too_many_requests", "AppId:123 达到使用量上限"),
    "quota": (429, "", QUOTA),
    "quota-200": (200, "", QUOTA),
    "quota-chinese": (429, "", "今日额度已用完"),
    "balance": (402, "", "Insufficient balance, please top up your account."),
    "no-credit": NO_CREDIT,
    "no-credit-chinese": (429, "", "魔粒不足，请获取魔粒后重试"),
    "retired-model": RETIRED_MODEL,
    "unbound": (401, "", "Please bind your Alibaba Cloud account before use."),
    "unverified": (403, "", NOT_VERIFIED),
    "forbidden": (403, "OperationNotAllowed", "insufficient token permission"),
    "unknown-model": (400, "", "Model id : {model} , has no provider supported"),
    "model-not-found": (404, "", "Model not found"),
    "moderated": (400, "DataInspectionFailed", INAPPROPRIATE),
    "echo": (500, "", "Failed: {prompt}"),
}
"""HTTP status, textual code and message of the named faults of a submission that are an error response."""

POLL_ERRORS = {
    "busy": (200, BUSY),
    "not-found-400": (400, "task not found"),
    "unlucky": (503, "model Qwen/Qwen-Image is not available, please retry"),
    "bad-request": (400, "upstream connect error"),
    "forbidden": (403, "Forbidden"),
}
"""HTTP status and message of the named faults of a poll that are an error response."""

FAILURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "failed": ("FAILED", {"code": 500, "message": "Image generation failed: internal error"}),
    "rejected": (
        "FAILED",
        {"code": 400, "message": "The prompt may contain inappropriate content, please change it"},
    ),
    "moderated": ("FAILED", {"code": "DataInspectionFailed", "message": INAPPROPRIATE}),
    "moderated-nested": ("FAILED", {"code": "DataInspectionFailed", "message": INAPPROPRIATE}),
    "moderated-40301": ("FAILED", {"code": 40301, "message": "the prompt was rejected"}),
    "moderated-chinese": ("FAILED", {"code": 500, "message": "输入内容包含敏感信息，请修改后重试"}),
    "filtered": ("SUCCEED", {"message": "image was filtered by safety checker"}),
    "canceled": ("CANCELED", {"code": 500, "message": "task was cancelled by the system"}),
    "expired": ("EXPIRED", {"code": 500, "message": "task has expired"}),
    "not-found": ("FAILED", {"code": 500, "message": "task not found"}),
}
"""``task_status`` and ``errors`` of a generation without images. The HTTP status of that response is 200."""

REFUNDED = {"failed", "canceled", "expired"}
"""The failures that are a fault of the service. What the content of a request causes is charged."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """One HTTP response, or a closed connection."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    drawn_from: Parameters | None = None
    """If set, the body is the image of these parameters, which ``server`` draws."""
    image_format: str = "PNG"
    cut: Literal["", "before", "midway", "end"] = ""
    """When the connection closes: before the response, after half of the body, or before its end."""
    generation_id: str = ""
    note: str = ""
    """The end of the log line."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """An accepted submission. Times are in seconds on the caller's clock."""

    generation_id: str
    token: str
    parameters: Parameters
    accepted_at: float
    finished_at: float
    image_path: str
    fault: str = ""
    """The fault that decides on its status: one of ``FAILURES``, ``stall`` or ``other-words``."""

    def status(self, now: float) -> str:
        """Return ModelScope's ``task_status``. It is PENDING for the first quarter of the duration."""
        if self.fault in FAILURES:
            return "FAILED"
        if self.fault == "stall":
            return "PROCESSING"
        if now >= self.finished_at:
            return "SUCCEED"
        return (
            "PENDING" if now < self.accepted_at + (self.finished_at - self.accepted_at) / 4 else "PROCESSING"
        )

    def is_running(self, now: float) -> bool:
        """Whether it occupies a slot of the account. A stalled one does so until its duration is over."""
        return now < self.finished_at and self.fault not in FAILURES

    @property
    def price(self) -> Decimal:
        """What it costs. The credit is frozen while it runs, and 0 is left of it after a refund."""
        return Decimal(0) if self.fault in REFUNDED else price_of(self.parameters.model)


class Service:
    """The service behind the emulator. Its other parameters are those of ``server.Emulator``.

    :param first_id: The id of the first generation. Each further id is one higher.
    """

    def __init__(
        self,
        *,
        duration: float = 3.0,
        max_running: int = 1,
        tokens: Iterable[str] = (),
        faults: Iterable[str] = (),
        credit: float = CREDIT,
        retired_models: Iterable[str] = (),
        without: Iterable[str] = (),
        first_id: int = 4003503,
    ) -> None:
        self._without = read_traits(without)
        self.faults = Faults(faults)
        self._credit = read_amount(credit)
        self._granted: dict[str, Decimal] = {}
        self._retired_models = frozenset(retired_models)
        self._duration = duration
        self._max_running = math.inf if "one-at-a-time" in self._without else max_running
        self._tokens = frozenset(tokens)
        self._generations: dict[str, Generation] = {}
        self._ids = count(first_id)
        self._request_numbers = count(1)

    @property
    def accepted(self) -> int:
        """How many generations were created, whether or not the client received the response."""
        return len(self._generations)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of each generation, on the caller's clock."""
        return [(generation.accepted_at, generation.finished_at) for generation in self._generations.values()]

    def finish(self, *, now: float) -> None:
        """Finish all generations that are running.

        :param now: Seconds on the caller's clock.
        """
        for generation_id, generation in self._generations.items():
            if generation.finished_at > now:
                self._generations[generation_id] = replace(generation, finished_at=now)

    def grant(self, token: str, credit: float) -> None:
        """Add credit to an account, as ``Emulator.grant`` does."""
        if not self._is_valid(token):
            raise ValueError("No account has this token")
        self._granted[token] = self._granted.get(token, 0) + read_amount(credit)

    def respond(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = b"",
        *,
        query: Mapping[str, str] | None = None,
        now: float,
    ) -> Response:
        """Return the response to one HTTP request.

        :param headers: A case-insensitive mapping.
        :param body: None if it could not be read.
        :param query: The parameters of the URL.
        :param now: Seconds on any clock that does not go back.
        """
        response = self._respond(method, path, headers, body, query or {}, now)
        if "no-quota-headers" in self._without:
            response = replace(
                response, headers={**response.headers, "modelscope-ratelimit-requests-remaining": "1999"}
            )
        if response.content_type != "application/json" or not response.body:
            return response
        for trait in self._without:
            if change := altered(trait, path, headers, response.status, json.loads(response.body)):
                status, content = change
                response = replace(response, status=status, body=json.dumps(content).encode())
        return response

    def _respond(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        query: Mapping[str, str],
        now: float,
    ) -> Response:
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
            case "GET", ["api", "v1", "inference", "list_model_providers"]:
                return self._providers(query.get("ModelId", ""))
            case "GET", ["moved", name] if "no-redirect" in self._without:
                return Response(status=302, headers={"Location": f"/images/{name}"})
            case "POST", ["emulator", "grant"]:
                return self._grant(headers, body, now)
        return self._error(404, "")

    def _submit(self, headers: Mapping[str, str], body: bytes | None, now: float) -> Response:
        token = _token(headers)
        if not self._is_valid(token):
            return self._error(401, AUTHENTICATION_FAILED)
        if headers.get("X-ModelScope-Async-Mode", "").lower() != "true":
            return self._error(400, NO_SYNCHRONOUS_CALLS)
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            return self._error(400, "Content-Type must be application/json")
        try:
            parameters = Parameters.from_body(body)
        except BadRequestError as error:
            return self._error(400, str(error))
        return self._enqueue(token, parameters, headers, now)

    def _enqueue(
        self, token: str, parameters: Parameters, headers: Mapping[str, str], now: float
    ) -> Response:
        if parameters.model in self._retired_models:
            return self._rejected(RETIRED_MODEL, parameters)
        if sum(generation.is_running(now) for generation in self._of(token)) >= self._max_running:
            return self._error(500, QUEUE_FULL)
        if self._left(token, now) < price_of(parameters.model):
            return self._rejected(NO_CREDIT, parameters)
        fault = self.faults.take("submit")
        match fault:
            case "" | "lost":
                response = self._accept(token, parameters, now)
                return replace(response, cut="before", note="accepted, fault lost") if fault else response
            case "no-end":
                response = replace(self._accept(token, parameters, now), cut="end")
            case "no-id":
                response = _json(200, {"task_status": "SUCCEED", "request_id": self._request_id()})
            case "nested-id":
                accepted = self._accept(token, parameters, now)
                output = {"task_id": accepted.generation_id, "task_status": "PENDING"}
                response = _json(200, {"output": output, "request_id": self._request_id()})
            case "images":
                accepted = self._accept(token, parameters, now)
                finished = replace(self._generations[accepted.generation_id], finished_at=now)
                self._generations[accepted.generation_id] = finished
                images = [{"url": _image_url(finished, headers)}]
                response = _json(200, {"images": images, "request_id": self._request_id()})
            case _ if fault in SUBMIT_ERRORS:
                response = self._rejected(SUBMIT_ERRORS[fault], parameters)
            case _:
                response = self._faulty_response(fault)
        return replace(response, note=f"fault {fault}")

    def _rejected(self, error: tuple[int, str, str], parameters: Parameters) -> Response:
        status, code, message = error
        said = message.format(model=parameters.model, prompt=parameters.prompt)
        return self._error(status, said, code)

    def _accept(self, token: str, parameters: Parameters, now: float) -> Response:
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

    def _poll(self, generation_id: str, headers: Mapping[str, str], now: float) -> Response:
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
        fault = "" if generation.fault else self.faults.take("poll")
        match fault:
            case "":
                response = self._report(generation, headers, now)
            case "not-found":
                response = self._failed(fault)
            case _ if fault in FAILURES or fault in ("stall", "other-words", "partial"):
                generation = replace(generation, fault=fault)
                self._generations[generation_id] = generation
                response = self._report(generation, headers, now)
            case _ if fault in POLL_ERRORS:
                response = self._error(*POLL_ERRORS[fault])
            case "no-images":
                response = _json(200, {"request_id": self._request_id(), "task_status": "SUCCEED"})
            case "empty":
                response = Response()
            case _:
                response = self._faulty_response(fault)
        note = f"fault {fault}" if fault else generation.status(now)
        return replace(response, generation_id=generation_id, note=note)

    def _report(self, generation: Generation, headers: Mapping[str, str], now: float) -> Response:
        status = generation.status(now)
        if status == "FAILED":
            return self._failed(generation.fault)
        if status != "SUCCEED":
            return _json(200, {"request_id": "", "task_id": "", "task_status": status, "outputs": {}})
        parameters = generation.parameters
        url = _image_url(generation, headers)
        if generation.fault == "partial":
            return _json(200, {"task_status": "PARTIAL_SUCCEEDED", "output_images": [url]})
        if generation.fault == "other-words":
            return _json(200, {"task_status": "COMPLETED", "output": {"results": [{"url": url}, None]}})
        return _json(
            200,
            {
                "input": {
                    "seed": parameters.seed,
                    "width": parameters.width,
                    "height": parameters.height,
                    "guidanceScale": parameters.guidance,
                    "numInferenceSteps": parameters.steps,
                    "sampler": "Euler a",
                    "prompt": parameters.prompt,
                    "negativePrompt": parameters.negative_prompt,
                },
                "output_images": [url],
                "request_id": self._request_id(),
                "task_status": status,
                "time_taken": round(1000 * (generation.finished_at - generation.accepted_at), 1),
            },
        )

    def _image(self, path: str, headers: Mapping[str, str], now: float) -> Response:
        if "Authorization" in headers:
            return _plain(400, "The image host accepts no token. Do not send the header Authorization.")
        generation = next((known for known in self._generations.values() if known.image_path == path), None)
        if generation is None or generation.status(now) != "SUCCEED":
            return self._error(404, "")
        if "url-stays" in self._without and now > generation.finished_at + 30:
            return self._error(404, "")
        response = Response(
            content_type="application/octet-stream" if "content-type" in self._without else "image/png",
            drawn_from=generation.parameters,
            image_format="PNG without label" if "label" in self._without else "PNG",
        )
        fault = self.faults.take("image")
        match fault:
            case "":
                pass
            case "truncated":
                response = replace(response, cut="midway")
            case "garbage":
                response = replace(
                    response, drawn_from=None, body=hashlib.shake_256(path.encode()).digest(5000)
                )
            case "wrong-suffix":
                response = replace(response, image_format="JPEG")
            case "signed":
                response = replace(response, image_format="signed PNG")
            case "html" | "reset":
                response = self._faulty_response(fault)
            case _:
                response = _plain(int(fault), _phrase(int(fault)))
        return replace(
            response, generation_id=generation.generation_id, note=f"fault {fault}" if fault else "image"
        )

    def _hub(self, headers: Mapping[str, str], data: Mapping[str, Any]) -> Response:
        if self._is_valid(_token(headers)):
            return _json(200, {"success": True, "data": data, "request_id": self._request_id()})
        message = "Invalid authentication: missing or invalid Authorization header"
        return _json(401, {"success": False, "code": "InvalidAuthentication", "message": message})

    def _balance(self, token: str, now: float) -> dict[str, int | float]:
        available = self._left(token, now)
        running = [one for one in self._of(token) if one.status(now) in ("PENDING", "PROCESSING")]
        held = [] if "frozen" in self._without else [generation.price for generation in running]
        frozen = sum(held, Decimal(0))
        return {
            "total_balance": as_number(available + frozen),
            "available_balance": as_number(available),
            "frozen_amount": as_number(frozen),
        }

    def _left(self, token: str, now: float) -> Decimal:
        dear = "spent" in self._without
        spent_or_frozen = sum(
            generation.price * (2 if dear and generation.status(now) == "SUCCEED" else 1)
            for generation in self._of(token)
        )
        return self._credit + self._granted.get(token, 0) - spent_or_frozen

    def _grant(self, headers: Mapping[str, str], body: bytes | None, now: float) -> Response:
        token = _token(headers)
        if self._is_valid(token):
            try:
                credit: Any = read_body(body).get("credit")
                self.grant(token, credit)
            except ValueError as error:
                return self._error(400, str(error))
        return self._hub(headers, self._balance(token, now))

    def _providers(self, model: str) -> Response:
        if not model_exists(model):
            return _json(500, {"Code": 500, "Message": "record not found", "Success": False})
        price = price_of(model)
        provider = {
            "Name": "ModelScope",
            "CostTier": TIERS[price],
            "EstimatedMagicGrainCost": as_number(price),
        }
        found = None if model in self._retired_models else [provider]
        data = {"Providers": found, "TotalCount": len(found or [])}
        return _json(200, {"Code": 200, "Data": data, "Success": True})

    def _faulty_response(self, fault: str) -> Response:
        if fault == "reset":
            return Response(cut="before")
        if fault == "html":
            return Response(
                body=b"<!DOCTYPE html><title>Please wait</title><p>Please wait.", content_type="text/html"
            )
        status = int(fault)
        return self._error(status, STATUS_MESSAGES.get(status, _phrase(status)))

    def _error(self, status: int, message: str, code: str = "") -> Response:
        # ModelScope uses two envelopes, and its hub another one.
        if status == 404:
            return _plain(404, message or STATUS_MESSAGES[404])
        error = {"code": status, "message": message} if status >= 400 else {"message": message}
        if code:
            body = {"success": False, "code": code, "message": message, "request_id": self._request_id()}
        elif status in (400, 401, 403):
            body = {"errors": error, "request_id": self._request_id()}
        else:
            body = {"error": {**error, "request_id": self._request_id()}}
        return replace(_json(status, body), note=message)

    def _failed(self, failure: str) -> Response:
        status, errors = FAILURES[failure]
        if failure == "moderated-nested":
            return _json(200, {"output": {"task_status": status, **errors}, "request_id": self._request_id()})
        body = {"task_status": status, "errors": errors, "request_id": self._request_id()}
        return _json(200, body | {"output_images": []} if status == "SUCCEED" else body)

    def _request_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, str(next(self._request_numbers))))

    def _is_valid(self, token: str) -> bool:
        return token in self._tokens if self._tokens else token not in ("", INVALID_TOKEN)

    def _of(self, token: str) -> list[Generation]:
        return [generation for generation in self._generations.values() if generation.token == token]


def _image_url(generation: Generation, headers: Mapping[str, str]) -> str:
    return f"http://{headers.get('Host', 'localhost')}{generation.image_path}"


def _token(headers: Mapping[str, str]) -> str:
    match = re.fullmatch(r"Bearer (\S+)", headers.get("Authorization", ""))
    return match[1] if match else ""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Error {status}"


def _json(status: int, content: Mapping[str, Any]) -> Response:
    return Response(status=status, body=json.dumps(content).encode())


def _plain(status: int, text: str) -> Response:
    return Response(status=status, body=text.encode(), content_type="text/plain", note=text)
