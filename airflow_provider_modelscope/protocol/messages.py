"""The HTTP messages: what to send to ModelScope, and what each response means.

Pure functions without a clock or a network, so that the transport on workers (requests) and the one in the
triggerer (aiohttp) cannot differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_modelscope.exceptions import (
    AccountNotReadyError,
    AuthenticationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeFinalError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.protocol.generation import (
    FAILED,
    ErrorDetail,
    Generation,
    checked_id,
    is_rejection,
)
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line, redacted

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.request import GenerationRequest

MAX_BODY = 32 * 1024 * 1024  # bytes of a response to read: it may echo the images of the request
REQUEST_ID_HEADERS = ("X-Request-Id", "X-Acs-Request-Id")


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """One HTTP request. Its repr hides the token and the prompt."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Quota:
    """How many requests the account may still make today, as far as the service reports it."""

    limit: int | None = None
    remaining: int | None = None
    model_limit: int | None = None
    model_remaining: int | None = None

    def __str__(self) -> str:
        account = _requests_left(self.remaining, self.limit)
        model = _requests_left(self.model_remaining, self.model_limit)
        return ", ".join(filter(None, [account, model and f"of this model {model}"]))


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """One HTTP response. It may echo the token, so the methods that return text take a secret to redact.

    :param headers: With case-insensitive names.
    :param body: Its first ``MAX_BODY`` bytes, decompressed.
    """

    status_code: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The JSON object in the body, or None."""
        if len(self.body) >= MAX_BODY:  # truncated, and parsing it would take a second
            return None
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def error_detail(self, *, secret: str) -> ErrorDetail:
        """Return what the response reports about an error; empty if nothing."""
        detail = ErrorDetail.from_json(self.json or {}, secret=secret)
        if detail.request_id:
            return detail
        header = next(filter(None, map(self.headers.get, REQUEST_ID_HEADERS)), "")
        return replace(detail, request_id=one_line(header, MAX_NAME, secret=secret) or None)

    def text(self, *, secret: str) -> str:
        """Return the service's message if there is one, else the body as text."""
        body = self.body[: 4 * MAX_MESSAGE].decode(errors="replace")
        message = self.error_detail(secret=secret).message or one_line(body, MAX_MESSAGE, secret=secret)
        return " ".join(message.split())

    def excerpt(self, *, secret: str) -> str:
        """Return the first 200 characters of :meth:`text`."""
        return self.text(secret=secret)[:200] or "(empty response)"

    @property
    def retry_after(self) -> float | None:
        """Seconds that the service asks to wait. A date counts from the response's own ``Date`` header."""
        value = self.headers.get("Retry-After")
        if not value:
            return None
        if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
            return float(value)
        try:
            until, now = (parsedate_to_datetime(text) for text in (value, self.headers.get("Date", "")))
            return max(0.0, (until.astimezone(UTC) - now.astimezone(UTC)).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return None

    @property
    def quota(self) -> Quota:
        """The remaining quota, if the service reports it."""

        def number(name: str) -> int | None:
            value = self.headers.get(f"modelscope-ratelimit-{name}", "")
            return int(value) if re.fullmatch("-?[0-9]{1,12}", value) else None

        return Quota(
            limit=number("requests-limit"),
            remaining=number("requests-remaining"),
            model_limit=number("model-requests-limit"),
            model_remaining=number("model-requests-remaining"),
        )


def submission_request(account: Account, request: GenerationRequest) -> HttpRequest:
    """Return the HTTP request that starts a generation."""
    return HttpRequest(
        method="POST",
        url=f"{account.base_url}/v1/images/generations",
        headers={
            **_authorization(account),
            "Content-Type": "application/json",
            "X-ModelScope-Async-Mode": "true",
        },
        body=json.dumps(request.to_json(), ensure_ascii=False, allow_nan=False).encode(),
    )


def status_request(account: Account, generation_id: str) -> HttpRequest:
    """Return the HTTP request that polls a generation."""
    return HttpRequest(
        method="GET",
        url=f"{account.base_url}/v1/tasks/{quote(generation_id, safe='')}",
        # Without this header the service reports FAILED, "task not found".
        headers={**_authorization(account), "X-ModelScope-Task-Type": "image_generation"},
    )


def user_request(account: Account, site: str) -> HttpRequest:
    """Return the HTTP request that verifies a token at a site; ``/v1/models`` accepts any token."""
    return HttpRequest(method="GET", url=f"{site}/openapi/v1/users/me", headers=_authorization(account))


def read_submission(response: HttpResponse, *, account: Account, model: str) -> str:
    """Return the id of the accepted generation.

    The ``task_status`` of this response is SUCCEED, which only means that the submission was accepted.

    :raises SubmissionLostError: if the response does not tell whether a generation was created.
    :raises ModelScopeError: the error that any other response means.
    """
    if 200 <= response.status_code < 300:
        try:
            generation_id = checked_id((response.json or {}).get("task_id"))
        except InvalidRequestError:
            generation_id = ""
        if generation_id and redacted(generation_id, account.token) == generation_id:  # logs show the id
            return generation_id
        raise lost_submission(
            f"ModelScope's response contains no generation id: {response.excerpt(secret=account.token)}",
            response.status_code,
            response.error_detail(secret=account.token).request_id,
        )
    error = error_from(response, account=account, model=model)
    if isinstance(error, ServiceUnavailableError):
        raise lost_submission(error.message, response.status_code, error.request_id)
    raise error


def lost_submission(
    what_happened: str, code: int | None = None, request_id: str | None = None
) -> SubmissionLostError:
    """Return the error for a submission that may or may not have created a generation."""
    return SubmissionLostError(
        f"{what_happened.rstrip('.')}. The service may have started and charged a generation; its API cannot "
        "tell. The request was not sent again",
        code=code,
        request_id=request_id,
    )


def read_status(response: HttpResponse, *, account: Account, generation_id: str) -> Generation:
    """Return the generation that the response to a poll describes.

    A response with HTTP status 400 or 5xx counts as well if it contains the images or the reason of a
    failure: only the service itself knows those. Other errors are final only if they are JSON of the API: a
    gateway's 404 or a firewall's page may be temporary, and the running generation is paid for.

    :raises ServiceUnavailableError: if a later poll may succeed.
    :raises ModelScopeError: the error that any other response means.
    """
    status, body = response.status_code, response.json
    is_success = 200 <= status < 300
    if body is not None and "task_status" in body:
        generation = Generation.from_json(body, generation_id=generation_id, secret=account.token)
        if not generation.is_finished:
            if is_success:
                return generation
        elif is_success or (
            (status == 400 or status >= 500) and (generation.output_images or generation.error.message)
        ):
            return _with_evidence(generation, response, secret=account.token)
    error = error_from(response, account=account)
    if isinstance(error, ModelScopeFinalError) and (body is None or status == 404):
        error = ServiceUnavailableError(
            f"Unexpected response to a poll: {response.excerpt(secret=account.token)}",
            code=status,
            request_id=error.request_id,
            retry_after=error.retry_after,
        )
    error.generation_id = generation_id
    raise error


def _with_evidence(generation: Generation, response: HttpResponse, *, secret: str) -> Generation:
    """Add the request id from the headers and, if a failure has no reason, the text of the response."""
    detail = response.error_detail(secret=secret)
    if generation.status == FAILED and not detail.message:
        detail = replace(detail, message=f"no reason given, response: {response.excerpt(secret=secret)}")
    return replace(generation, error=detail)


def error_from(response: HttpResponse, *, account: Account, model: str | None = None) -> ModelScopeError:
    """Return the error that an unexpected response means. Its class depends on what the caller can do.

    :param model: The requested model. A 429 that contains its name is about the daily quota.
    """
    text = response.text(secret=account.token)
    excerpt = response.excerpt(secret=account.token)
    words = text.lower().replace("\u2019", "'")
    kind: type[ModelScopeError] = ServiceUnavailableError
    problem, advice = "ModelScope is unavailable", ""
    match response.status_code:
        case 401 | 403 if "bind" in words or "real name" in words or "real-name" in words:
            kind, problem = AccountNotReadyError, "The ModelScope account is not ready"
            advice = f"Bind or verify it at {account.settings_url}, then run the task again"
        case 401 | 403:
            kind, problem = AuthenticationError, "ModelScope rejected the token"
            advice = f"Check the connection's password against the tokens at {account.settings_url}"
        case 402 | 429 if response.status_code == 402 or _is_about_balance(words):
            kind, problem = QuotaExhaustedError, "The account's credit is used up"
            advice = f"See {account.settings_url}"
        case 429 if "today's quota" in words or (model and model.lower() in words):
            kind, problem = QuotaExhaustedError, "The daily quota is used up"
            advice = "Use another model, or try again tomorrow"
        case 429:
            kind, problem = RateLimitedError, "ModelScope received too many requests"
        case 400 if "has no provider supported" in words:
            kind, problem = UnknownModelError, "ModelScope does not serve this model"
            advice = "Choose a model that shows API-Inference on its page"
        case 500 if "queue is full" in words:
            kind, problem = QueueFullError, "The account's queue at ModelScope is full"
        case code if is_rejection(code):
            kind, problem = RequestRejectedError, "ModelScope rejected the request"
        case code if 300 <= code < 400:
            target = one_line(response.headers.get("Location") or "", 200, secret=account.token)
            problem, excerpt = f"Redirect from {account.base_url} not followed", target or "(no address)"
            advice = "Check the connection's host"
        case code if code < 300:
            problem = f"{account.base_url} sent a response that is not from ModelScope's API"
            advice = "Check the connection's host"
    return kind(
        f"{problem}: {excerpt.rstrip('.')}. {advice}" if advice else f"{problem}: {excerpt}",
        code=response.status_code,
        request_id=response.error_detail(secret=account.token).request_id,
        retry_after=response.retry_after,
    )


def _requests_left(remaining: int | None, limit: int | None) -> str:
    match remaining, limit:
        case None, None:
            return ""
        case None, _:
            return f"at most {limit} requests"
        case _, None:
            return f"{remaining} requests left"
    return f"{remaining} of {limit} requests left"


def _authorization(account: Account) -> dict[str, str]:
    return {"Authorization": f"Bearer {account.token}"}


def _is_about_balance(words: str) -> bool:
    return bool(
        re.search(r"insufficient|not enough|out of credit|no credit|balance (is|of) |余额|欠费", words)
    )
