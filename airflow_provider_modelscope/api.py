"""The protocol: what to send to ModelScope, and what an answer means.

Pure functions, so that the transport on workers (requests) and the one in the triggerer (aiohttp) cannot
differ. No clock, no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_modelscope.exceptions import (
    AccountNotReadyError,
    AuthenticationError,
    ModelScopeError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.generation import FAILED, ErrorDetail, Generation, is_callers_fault

if TYPE_CHECKING:
    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Call:
    """One HTTP request. It carries the token, so it is never shown."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer, whole."""

    status_code: int
    headers: Mapping[str, str]  # looked up in any case
    body: bytes = b""

    @property
    def json(self) -> dict[str, Any] | None:
        """The JSON object that it holds, or None."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    @property
    def detail(self) -> ErrorDetail:
        """What it says of an error, empty where it says nothing."""
        return ErrorDetail.from_json(self.json or {})

    @property
    def words(self) -> str:
        """What it says: the service's message, or else the body's text."""
        return " ".join((self.detail.message or self.body[:4000].decode(errors="replace")).split())

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
    def quota(self) -> dict[str, str]:
        """What it says of the quota left, where the service sends that."""
        names = ("requests-limit", "requests-remaining", "model-requests-limit", "model-requests-remaining")
        found = {name: self.headers.get(f"modelscope-ratelimit-{name}") for name in names}
        return {name: value for name, value in found.items() if value is not None}


def submission_call(account: Account, request: GenerationRequest) -> Call:
    """Return the call that starts a generation."""
    return Call(
        method="POST",
        url=f"{account.base_url}/v1/images/generations",
        headers={
            **_authorization(account),
            "Content-Type": "application/json",
            "X-ModelScope-Async-Mode": "true",
        },
        body=json.dumps(request.to_json(), ensure_ascii=False, allow_nan=False).encode(),
    )


def generation_call(account: Account, generation_id: str) -> Call:
    """Return the call that asks for a generation."""
    return Call(
        method="GET",
        url=f"{account.base_url}/v1/tasks/{quote(generation_id, safe='')}",
        # Without this header the service answers FAILED, "task not found".
        headers={**_authorization(account), "X-ModelScope-Task-Type": "image_generation"},
    )


def user_call(account: Account, site: str) -> Call:
    """Return the call that asks a site whose token this is; ``/v1/models`` answers 200 to any token."""
    return Call(method="GET", url=f"{site}/openapi/v1/users/me", headers=_authorization(account))


def read_submission(answer: Answer, *, account: Account, model: str) -> str:
    """Return the id of the generation that was accepted.

    The ``task_status`` of this answer says SUCCEED, which means no more than accepted.

    :raises ModelScopeError: whatever the answer means instead. :class:`SubmissionLostError` where nobody
        can tell whether a generation was made.
    """
    generation_id = (answer.json or {}).get("task_id")
    is_id = isinstance(generation_id, int | str) and not isinstance(generation_id, bool)
    if 200 <= answer.status_code < 300:
        if is_id and (text := str(generation_id).strip()):
            return text
        raise lost(
            f"ModelScope's answer names no generation. It says: {answer.evidence}",
            answer.status_code,
            answer.detail.request_id,
        )
    error = error_of(answer, account=account, model=model)
    if isinstance(error, ServiceUnavailableError):
        raise lost(error.message, answer.status_code, error.request_id)
    raise error


def lost(what_happened: str, code: int | None = None, request_id: str | None = None) -> SubmissionLostError:
    """Return the error of a submission of which nobody can tell whether it made a generation."""
    return SubmissionLostError(
        f"{what_happened}. The service may have started a generation all the same, and charged it; "
        "it has no way to ask. It was not sent again",
        code=code,
        request_id=request_id,
    )


def read_generation(answer: Answer, *, account: Account, generation_id: str) -> Generation:
    """Return what the service says of a generation.

    :raises ModelScopeError: where the answer is about something else, :class:`ServiceUnavailableError`
        where it may pass.
    """
    if answer.status_code == 404:
        message = f"not found: {answer.evidence}"
        detail = ErrorDetail(message=message, code=404, request_id=answer.detail.request_id)
        return Generation(generation_id=generation_id, status=FAILED, error=detail)
    body = answer.json
    if 200 <= answer.status_code < 300 and body is not None and "task_status" in body:
        return Generation.from_json(body, generation_id=generation_id)
    error = error_of(answer, account=account)
    error.generation_id = generation_id
    raise error


def error_of(answer: Answer, *, account: Account, model: str | None = None) -> ModelScopeError:
    """Return what an answer that is not the wanted one means, by what a caller can do about it.

    :param model: The model asked for: a 429 that names it speaks of the day's quota.
    """
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
            says = f"{account.base_url} redirects, which is not followed. Check the connection's host"
        case code if code < 300:
            says = f"{account.base_url} does not answer as ModelScope's API does. It says: {answer.evidence}"
    return kind(
        says, code=answer.status_code, request_id=answer.detail.request_id, retry_after=answer.retry_after
    )


def _authorization(account: Account) -> dict[str, str]:
    return {"Authorization": f"Bearer {account.token}"}


def _speaks_of_balance(words: str) -> bool:
    return bool(re.search(r"\bbalance\b|\bcredits?\b|insufficient fund|余额|欠费", words))
