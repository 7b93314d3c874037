"""The HTTP messages: what to send to ModelScope, and what each response means.

Pure functions without a clock or a network, so that the transport on workers (requests) and the one in the
triggerer (aiohttp) cannot differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
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
    ModelScopeRetryableError,
    RequestRejectedError,
    ServiceUnavailableError,
    SubmissionLostError,
)
from airflow_provider_modelscope.protocol.errors import UNAVAILABLE, Meaning, meaning_of, status_of
from airflow_provider_modelscope.protocol.generation import (
    FAILED,
    SUCCEED,
    ErrorDetail,
    Generation,
    checked_id,
    first,
    has_status,
    output_images,
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


def read_submission(
    response: HttpResponse, *, account: Account, request: GenerationRequest | None = None
) -> Generation:
    """Return the accepted generation. It is only finished if the response contains its images and no id.

    The ``task_status`` of this response is SUCCEED, which only means that the submission was accepted.

    :param request: What was submitted. An error that repeats its prompt is not what the prompt says.
    :raises SubmissionLostError: if the response does not say whether a generation was created: a success with
        neither an id nor an error, a redirect, or a 5xx for another reason than overload.
    :raises ModelScopeError: the error that any other response means.
    """
    body, detail = response.json or {}, response.error_detail(secret=account.token)
    given = first(body, "task_id")
    echoes = (request.prompt, request.negative_prompt or "") if request else ()
    error = error_from(response, account=account, echoes=echoes)
    if 200 <= response.status_code < 300:
        if given is None:
            if generation := _finished_at_once(body, is_error=detail.is_error, secret=account.token):
                return generation
            if detail.is_error:
                raise error
            given = first(body, "id")
        if generation_id := _usable_id(given, secret=account.token):
            return Generation(generation_id=generation_id, status="")
        excerpt = response.excerpt(secret=account.token)
        error.message = f"ModelScope's response contains no generation id: {excerpt}"
    elif not isinstance(error, ModelScopeRetryableError):
        raise error
    elif response.status_code >= 400 and (generation_id := _usable_id(given, secret=account.token)):
        return Generation(generation_id=generation_id, status="")
    elif not isinstance(error, ServiceUnavailableError):
        raise error
    raise lost_submission(error.message, error.code, error.request_id)


def _usable_id(given: Any, *, secret: str) -> str | None:
    try:
        generation_id = checked_id(given)
    except InvalidRequestError:
        return None
    return generation_id if redacted(generation_id, secret) == generation_id else None  # logs show the id


def _finished_at_once(body: Mapping[str, Any], *, is_error: bool, secret: str) -> Generation | None:
    """Return the generation if a response to a submission contains its images: it has no id to poll.

    An error may contain another URL, such as that of the page to visit.
    """
    if is_error:
        body = {name: part for name, part in body.items() if not isinstance(part, Mapping)}
    images = output_images(body)
    if not images or body.get("success") is False:
        return None
    generation_id = hashlib.sha256("\n".join(images).encode()).hexdigest()[:32]
    generation = Generation.from_json(body, generation_id=generation_id, secret=secret)
    return generation.with_images_as_success()


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

    Images count at any HTTP status but a redirect's, the reason of a failure at 400 and 5xx: only the service
    itself knows those. So does JSON with status 400, 404 or 410 that says that the
    task does not exist. Few other errors are final, and only as JSON of the API: a gateway's 404, a proxy's
    page or any 5xx may be temporary, and the running generation is paid for.

    :raises ServiceUnavailableError: if a later poll may succeed.
    :raises ModelScopeError: the error that any other response means.
    """
    status, body = response.status_code, response.json
    is_success = 200 <= status < 300
    if body is not None and (has_status(body) or (is_success and output_images(body))):
        generation = Generation.from_json(body, generation_id=generation_id, secret=account.token)
        if not generation.is_finished:
            if is_success:
                return generation
        elif (
            is_success
            or (status >= 400 and generation.output_images)
            or ((status == 400 or status >= 500) and generation.error.message)
        ):
            return _with_evidence(generation, response, secret=account.token)
    error = error_from(response, account=account)
    if body is not None and status in (400, 404, 410):
        detail = response.error_detail(secret=account.token)
        generation = Generation(generation_id=generation_id, status=FAILED, error=detail)
        if generation.is_not_found:
            return generation
    is_verdict = body is not None and isinstance(error, _FINAL_FOR_A_POLL.get(status, ()))
    if status == 403 and meaning_of(200, response.text(secret=account.token)) is UNAVAILABLE:
        is_verdict = False  # a gateway's, which has no words of the service
    if isinstance(error, ModelScopeFinalError) and not is_verdict:
        error = ServiceUnavailableError(
            f"Unexpected response to a poll: {response.excerpt(secret=account.token)}",
            code=error.code,
            request_id=error.request_id,
            retry_after=error.retry_after,
        )
    error.generation_id = generation_id
    raise error


def running_generation(beginning: bytes, *, generation_id: str) -> Generation | None:
    """Return the generation if the beginning of a response to a poll says that it is still running."""
    found = re.search(rb'"task_status"\s*:\s*"(\w+)"', beginning)
    body = {"task_status": found[1].decode()} if found else {}
    generation = Generation.from_json(body, generation_id=generation_id)
    return generation if generation.status not in ("", SUCCEED, FAILED) else None


# By status. A poll costs no credit, and needs no model.
_FINAL_FOR_A_POLL: Mapping[int, tuple[type[ModelScopeError], ...]] = {
    400: (RequestRejectedError, AuthenticationError, AccountNotReadyError),
    401: (AuthenticationError, AccountNotReadyError),
    403: (AuthenticationError, AccountNotReadyError),
}


def _with_evidence(generation: Generation, response: HttpResponse, *, secret: str) -> Generation:
    """Add the request id from the headers and, if a failure has no reason, the text of the response."""
    message = generation.error.message
    if generation.status == FAILED and not message:
        message = f"no reason given, response: {response.excerpt(secret=secret)}"
    request_id = response.error_detail(secret=secret).request_id
    return replace(generation, error=replace(generation.error, message=message, request_id=request_id))


def error_from(response: HttpResponse, *, account: Account, echoes: Iterable[str] = ()) -> ModelScopeError:
    """Return the error that an unexpected response means. Its class depends on what the caller can do.

    :param echoes: The texts of the request, which the response may repeat.
    """
    status, detail = response.status_code, response.error_detail(secret=account.token)
    excerpt = response.excerpt(secret=account.token)
    is_page = response.body.lstrip()[:1] == b"<"  # of a proxy: its words are not those of the service
    words = "" if is_page else response.text(secret=account.token)
    if 200 <= status < 300 and detail.is_error:
        meaning = meaning_of(status_of(detail.code, default=400), words, echoes=echoes)
        status = status if detail.code is None else detail.code
    elif status >= 400:
        is_proxy = status == 403 and response.json is None
        meaning = _REFUSED_BY_PROXY if is_proxy else meaning_of(status, words, echoes=echoes)
    elif status >= 300:
        target = one_line(response.headers.get("Location") or "", 200, secret=account.token)
        meaning, excerpt = _REDIRECT, target or "(no address)"
    else:
        meaning = _OTHER_SERVICE
    problem, advice = (
        text.format(
            base_url=account.base_url,
            token_url=account.token_url,
            account_url=account.account_url,
            credit_url=account.credit_url,
        )
        for text in (meaning.problem, meaning.advice)
    )
    return meaning.kind(
        f"{problem}: {excerpt.rstrip('.')}. {advice}" if advice else f"{problem}: {excerpt}",
        code=status,
        request_id=detail.request_id,
        retry_after=response.retry_after,
    )


_REDIRECT = Meaning(
    kind=ServiceUnavailableError,
    problem="Redirect from {base_url} not followed",
    advice="Check the connection's host",
)
_REFUSED_BY_PROXY = Meaning(
    kind=RequestRejectedError,
    problem="A proxy or firewall refused the request to {base_url}",
    advice="Check the egress rules and the connection's proxy",
)
_OTHER_SERVICE = Meaning(
    kind=ServiceUnavailableError,
    problem="{base_url} sent a response that is not from ModelScope's API",
    advice="Check the connection's host",
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
