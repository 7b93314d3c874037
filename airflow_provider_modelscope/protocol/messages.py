"""The protocol: what to send to ModelScope, and what an answer means.

Pure functions, so that the transport on workers (requests) and the one in the triggerer (aiohttp) cannot
differ. No clock, no network.
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
    is_callers_fault,
)
from airflow_provider_modelscope.redaction import MAX_MESSAGE, MAX_NAME, one_line, redacted

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.request import GenerationRequest

MAX_BODY = 32 * 1024 * 1024  # bytes of an answer that are read: it may repeat the pictures that it was sent
REQUEST_ID_HEADERS = ("X-Request-Id", "X-Acs-Request-Id")


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """One HTTP request. It carries the token, so it is never shown."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What the service says of the requests that an account may make today, as far as it says so."""

    limit: int | None = None
    remaining: int | None = None
    model_limit: int | None = None
    model_remaining: int | None = None

    def __str__(self) -> str:
        account = _quota_words(self.remaining, self.limit)
        model = _quota_words(self.model_remaining, self.model_limit)
        return ", ".join(filter(None, [account, model and f"of this model {model}"]))


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """One HTTP answer.

    :param headers: Looked up in any case.
    :param body: Its first ``MAX_BODY`` bytes, decompressed.
    :param secret: What is not to be shown of it where it repeats that: the token.
    """

    status_code: int
    headers: Mapping[str, str]
    body: bytes = b""
    secret: str = field(default="", repr=False)

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The JSON object that it holds, or None."""
        if len(self.body) >= MAX_BODY:  # it was cut, and reading it would take a second
            return None
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    @property
    def detail(self) -> ErrorDetail:
        """What it says of an error, empty where it says nothing."""
        detail = ErrorDetail.from_json(self.json or {}, secret=self.secret)
        if detail.request_id:
            return detail
        header = next(filter(None, map(self.headers.get, REQUEST_ID_HEADERS)), "")
        return replace(detail, request_id=one_line(header, MAX_NAME, secret=self.secret) or None)

    @property
    def words(self) -> str:
        """What it says: the service's message, or else the body's text."""
        body = self.body[: 4 * MAX_MESSAGE].decode(errors="replace")
        return " ".join((self.detail.message or one_line(body, MAX_MESSAGE, secret=self.secret)).split())

    @property
    def evidence(self) -> str:
        """What it says, in 200 characters."""
        return self.words[:200] or "nothing"

    @property
    def retry_after(self) -> float | None:
        """Seconds that it asks to wait. A date is read against the answer's own, so clocks may differ."""
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
        """What it says of the quota left, where the service sends that."""

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
    """Return the call that starts a generation."""
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
    """Return the call that asks for a generation."""
    return HttpRequest(
        method="GET",
        url=f"{account.base_url}/v1/tasks/{quote(generation_id, safe='')}",
        # Without this header the service answers FAILED, "task not found".
        headers={**_authorization(account), "X-ModelScope-Task-Type": "image_generation"},
    )


def user_request(account: Account, site: str) -> HttpRequest:
    """Return the call that asks a site whose token this is; ``/v1/models`` answers 200 to any token."""
    return HttpRequest(method="GET", url=f"{site}/openapi/v1/users/me", headers=_authorization(account))


def read_submission(answer: HttpResponse, *, account: Account, model: str) -> str:
    """Return the id of the generation that was accepted.

    The ``task_status`` of this answer says SUCCEED, which means no more than accepted.

    :raises ModelScopeError: whatever the answer means instead. :class:`SubmissionLostError` where nobody
        can tell whether a generation was made.
    """
    answer = replace(answer, secret=account.token)
    if 200 <= answer.status_code < 300:
        try:
            generation_id = checked_id((answer.json or {}).get("task_id"))
        except InvalidRequestError:
            generation_id = ""
        if generation_id and redacted(generation_id, account.token) == generation_id:  # an id is shown
            return generation_id
        raise lost(
            f"ModelScope's answer names no generation. It says: {answer.evidence}",
            answer.status_code,
            answer.detail.request_id,
        )
    error = error_from(answer, account=account, model=model)
    if isinstance(error, ServiceUnavailableError):
        raise lost(error.message, answer.status_code, error.request_id)
    raise error


def _quota_words(remaining: int | None, limit: int | None) -> str:
    match remaining, limit:
        case None, None:
            return ""
        case None, _:
            return f"at most {limit} requests"
        case _, None:
            return f"{remaining} requests left"
    return f"{remaining} of {limit} requests left"


def lost(what_happened: str, code: int | None = None, request_id: str | None = None) -> SubmissionLostError:
    """Return the error of a submission of which nobody can tell whether it made a generation."""
    return SubmissionLostError(
        f"{what_happened}. The service may have started a generation all the same, and charged it; "
        "there is no way to ask it. It was not sent again",
        code=code,
        request_id=request_id,
    )


def read_status(answer: HttpResponse, *, account: Account, generation_id: str) -> Generation:
    """Return what the service says of a generation.

    That it has ended is believed under the HTTP statuses 400 and 5xx as well, where the body gives the images
    or the reason: only the service itself knows those. Of anything else only a refusal in the API's own JSON
    is a verdict: a gateway's 404 or a firewall's page may pass, and what runs is paid for.

    :raises ModelScopeError: where the answer is about something else, :class:`ServiceUnavailableError`
        where it may pass.
    """
    answer = replace(answer, secret=account.token)
    status, body = answer.status_code, answer.json
    if body is not None and "task_status" in body:
        said = Generation.from_json(body, generation_id=generation_id, secret=account.token)
        gives_end = said.is_finished and bool(said.output_images or said.error.message)
        if 200 <= status < 300 or (gives_end and (status == 400 or status >= 500)):
            silent = said.status == FAILED and not said.error.message
            reason = f"without a reason: {answer.evidence}" if silent else said.error.message
            return replace(said, error=replace(answer.detail, message=reason))
    error = error_from(answer, account=account)
    if isinstance(error, ModelScopeFinalError) and (body is None or status == 404):
        text = f"Not an answer of ModelScope's API to a look. It says: {answer.evidence}"
        error = ServiceUnavailableError(
            text, code=status, request_id=error.request_id, retry_after=error.retry_after
        )
    error.generation_id = generation_id
    raise error


def error_from(answer: HttpResponse, *, account: Account, model: str | None = None) -> ModelScopeError:
    """Return what an answer that is not the wanted one means, by what a caller can do about it.

    :param model: The model asked for: a 429 that names it speaks of the day's quota.
    """
    if answer.secret != account.token:
        answer = replace(answer, secret=account.token)
    says = f"ModelScope says: {answer.evidence.rstrip('.')}."
    words = answer.words.lower().replace("\u2019", "'")
    kind: type[ModelScopeError] = ServiceUnavailableError
    match answer.status_code:
        case 401 | 403 if "bind" in words or "real name" in words or "real-name" in words:
            kind = AccountNotReadyError
            says += f" Do so at {account.settings_url}, then run the task again"
        case 401 | 403:
            kind = AuthenticationError
            says += f" Check the connection's password against the tokens at {account.settings_url}"
        case 402 | 429 if answer.status_code == 402 or _speaks_of_balance(words):
            kind = QuotaExhaustedError
            says += f" The account's credit is spent; see {account.settings_url}"
        case 429 if "today's quota" in words or (model and model.lower() in words):
            kind = QuotaExhaustedError
            says += " The day's quota is spent; try another model, or tomorrow"
        case 429:
            kind = RateLimitedError
        case 400 if "has no provider supported" in words:
            kind = UnknownModelError
            says += " Choose a model that shows API-Inference on its page"
        case 500 if "queue is full" in words:
            kind = QueueFullError
        case code if is_callers_fault(code):
            kind = RequestRejectedError
        case code if 300 <= code < 400:
            target = one_line(answer.headers.get("Location") or "nowhere", 200, secret=account.token)
            says = (
                f"{account.base_url} redirects, which is not followed, to {target}. "
                "Check the connection's host"
            )
        case code if code < 300:
            says = f"{account.base_url} does not answer as ModelScope's API does. It says: {answer.evidence}"
    return kind(
        says, code=answer.status_code, request_id=answer.detail.request_id, retry_after=answer.retry_after
    )


def _authorization(account: Account) -> dict[str, str]:
    return {"Authorization": f"Bearer {account.token}"}


def _speaks_of_balance(words: str) -> bool:
    return bool(
        re.search(r"insufficient|not enough|out of credit|no credit|balance (is|of) |余额|欠费", words)
    )
