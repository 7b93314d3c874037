"""The HTTP messages: what to send to ModelScope, and what each response means.

Pure functions without a clock or a network, so that the transport on workers (requests) and the one in the
triggerer (aiohttp) cannot differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from codecs import BOM_UTF8
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
from airflow_provider_modelscope.protocol.body import Body, ErrorDetail
from airflow_provider_modelscope.protocol.errors import REFUSED, Meaning, meaning_of, status_of
from airflow_provider_modelscope.protocol.generation import FAILED, SUCCEED, Generation, checked_id
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

    def parsed(self, *, secret: str) -> Body:
        """Return the JSON object in the body; an empty one if there is none."""
        return Body(self.json or {}, secret=secret)

    @property
    def is_page(self) -> bool:
        """Whether it is HTML: of a proxy, whose words are not those of the service."""
        return self.body.removeprefix(BOM_UTF8).lstrip()[:1] == b"<"

    def error_detail(self, *, secret: str) -> ErrorDetail:
        """Return what the response reports about an error; empty if nothing."""
        detail = self.parsed(secret=secret).error
        if detail.request_id:
            return detail
        header = next(filter(None, map(self.headers.get, REQUEST_ID_HEADERS)), "")
        return replace(detail, request_id=one_line(header, MAX_NAME, secret=secret) or None)

    def text(self, *, secret: str) -> str:
        """Return the service's message if there is one, else the body as text."""
        body = self.body[: 4 * MAX_MESSAGE].decode("utf-8-sig", errors="replace")
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
    def rate_limits(self) -> str:
        """The headers ``modelscope-ratelimit-*``; empty if there are none. Today's service sends none."""
        lines = (f"{name.lower()}: {value}" for name, value in self.headers.items())
        pattern = r"modelscope-ratelimit-([a-z-]{1,40}): (-?[0-9]{1,12})"
        found = filter(None, (re.fullmatch(pattern, line) for line in lines))
        return ", ".join(f"{limit[1]} {limit[2]}" for limit in found)


def submission_request(account: Account, request: GenerationRequest) -> HttpRequest:
    """Return the HTTP request that starts a generation."""
    return HttpRequest(
        method="POST",
        url=f"{account.base_url}/v1/images/generations",
        headers={
            **authorization(account),
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
        headers={**authorization(account), "X-ModelScope-Task-Type": "image_generation"},
    )


def user_request(account: Account, site: str) -> HttpRequest:
    """Return the HTTP request that verifies a token at a site; ``/v1/models`` accepts any token."""
    return HttpRequest(method="GET", url=f"{site}/openapi/v1/users/me", headers=authorization(account))


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
    body, status = response.parsed(secret=account.token), response.status_code
    echoes = (request.prompt, request.negative_prompt or "") if request else ()
    error = error_from(response, account=account, echoes=echoes)
    if 200 <= status < 300:
        if accepted := _accepted(body, secret=account.token):
            return accepted
        if body.error.is_error and body.first("task_id") is None:
            raise error
        excerpt = response.excerpt(secret=account.token)
        error.message = f"ModelScope's response contains no generation id: {excerpt}"
    else:
        accepted = _with_id(body.first("task_id"), secret=account.token)
        if accepted and status >= 400 and isinstance(error, ModelScopeRetryableError):
            return accepted
        if not isinstance(error, ServiceUnavailableError):
            raise error
    raise lost_submission(error.message, error.code, error.request_id)


def _accepted(body: Body, *, secret: str) -> Generation | None:
    """Return the generation that a successful response to a submission describes."""
    if (task_id := body.first("task_id")) is not None:
        return _with_id(task_id, secret=secret)
    if images := body.images:  # finished: it has no id to poll
        generation_id = hashlib.sha256("\n".join(images).encode()).hexdigest()[:32]
        return Generation.from_body(body, generation_id=generation_id).with_images_as_success()
    return None if body.error.is_error else _with_id(body.first("id"), secret=secret)


def _with_id(given: Any, *, secret: str) -> Generation | None:
    """Return a generation that runs, unless what was given as its id is unusable."""
    if isinstance(given, float) and given.is_integer() and abs(given) < 2**53:
        given = int(given)
    try:
        generation_id = checked_id(given)
    except InvalidRequestError:
        return None
    is_secret = redacted(generation_id, secret) != generation_id  # logs show the id
    return None if is_secret else Generation(generation_id=generation_id, status="")


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
    itself knows those. So does JSON with status 400, 404 or 410 that says that the task does not exist. Few
    other errors are final, and only as JSON of the API: a gateway's 404, a proxy's page or any 5xx may be
    temporary, and the running generation is paid for.

    :raises ServiceUnavailableError: if a later poll may succeed.
    :raises ModelScopeError: the error that any other response means.
    """
    for step in (_reported, _unknown_id):
        if generation := step(response, generation_id, secret=account.token):
            return generation
    raise _error_of_poll(response, generation_id, account=account)


def _reported(response: HttpResponse, generation_id: str, *, secret: str) -> Generation | None:
    """Return the generation if the response describes it, at a status at which that counts."""
    status, body = response.status_code, response.parsed(secret=secret)
    is_success = 200 <= status < 300
    if not body.has_status and not (is_success and body.images):
        return None
    generation = Generation.from_body(body, generation_id=generation_id)
    if generation.output_images:
        counts = is_success or (status >= 400 and generation.is_finished)
    else:
        has_reason = generation.status == FAILED and bool(generation.error.message)
        counts = is_success or (has_reason and (status == 400 or status >= 500))
    return _with_evidence(generation, response, secret=secret) if counts else None


def _unknown_id(response: HttpResponse, generation_id: str, *, secret: str) -> Generation | None:
    if response.status_code not in (400, 404, 410) or not response.json:
        return None
    error = response.error_detail(secret=secret)
    generation = Generation(generation_id=generation_id, status=FAILED, error=error)
    return generation if generation.is_not_found else None


def _error_of_poll(response: HttpResponse, generation_id: str, *, account: Account) -> ModelScopeError:
    error = error_from(response, account=account)
    verdicts = _FINAL_FOR_A_POLL.get(response.status_code, ()) if response.json is not None else ()
    if isinstance(error, ModelScopeFinalError) and not isinstance(error, verdicts):
        error = ServiceUnavailableError(
            f"Unexpected response to a poll: {response.excerpt(secret=account.token)}",
            code=error.code,
            request_id=error.request_id,
            retry_after=error.retry_after,
        )
    error.generation_id = generation_id
    return error


def running_generation(beginning: bytes, *, generation_id: str) -> Generation | None:
    """Return the generation if the beginning of a response to a poll says that it is still running."""
    found = re.search(rb'"task_status"\s*:\s*"(\w+)"', beginning)
    body = Body({"task_status": found[1].decode()} if found else {})
    generation = Generation.from_body(body, generation_id=generation_id)
    return generation if generation.status not in ("", SUCCEED, FAILED) else None


# By status. A poll costs no credit, and needs no model.
_FINAL_FOR_A_POLL: Mapping[int, tuple[type[ModelScopeError], ...]] = {
    400: (RequestRejectedError, AuthenticationError, AccountNotReadyError),
    401: (AuthenticationError, AccountNotReadyError),
    403: (AuthenticationError, AccountNotReadyError),
}


def _with_evidence(generation: Generation, response: HttpResponse, *, secret: str) -> Generation:
    """Add the request id from the headers and, if an end has no images and no reason, the response's text."""
    if generation.status not in (SUCCEED, FAILED):
        return generation
    message = generation.error.message
    if not message and not generation.output_images:
        reason = "no reason given, response" if generation.status == FAILED else "response"
        message = f"{reason}: {response.excerpt(secret=secret)}"
    request_id = response.error_detail(secret=secret).request_id
    return replace(generation, error=replace(generation.error, message=message, request_id=request_id))


def error_from(response: HttpResponse, *, account: Account, echoes: Iterable[str] = ()) -> ModelScopeError:
    """Return the error that an unexpected response means. Its class depends on what the caller can do.

    :param echoes: The texts of the request, which the response may repeat.
    """
    status, detail = response.status_code, response.error_detail(secret=account.token)
    excerpt = response.excerpt(secret=account.token)
    words = "" if response.is_page else response.text(secret=account.token)
    if 200 <= status < 300 and detail.is_error:
        meaning = meaning_of(status_of(detail.code, default=400), words, echoes=echoes)
        status = status if detail.code is None else detail.code
    elif status in (401, 403) and response.is_page:
        meaning = REFUSED
    elif status >= 400:
        meaning = meaning_of(status, words, echoes=echoes)
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
_OTHER_SERVICE = Meaning(
    kind=ServiceUnavailableError,
    problem="{base_url} sent a response that is not from ModelScope's API",
    advice="Check the connection's host",
)


def authorization(account: Account) -> dict[str, str]:
    """Return the headers that say whose request it is."""
    return {"Authorization": f"Bearer {account.token}"}
