"""Asks the service, and compares what comes with what is assumed. Any response gets a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_modelscope.check.assumptions import NO_QUOTA_HEADERS, SPENDING
from airflow_provider_modelscope.check.report import DIFFERS, NOT_TOLD, OK, PROMPT, Finding, Report, amount
from airflow_provider_modelscope.exceptions import (
    BrokenImageError,
    ImageGoneError,
    ImageNotAllowedError,
    ModelScopeError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.protocol.body import ErrorDetail, finite
from airflow_provider_modelscope.protocol.credit import (
    Credit,
    credit_request,
    price_request,
    read_credit,
    read_price,
)
from airflow_provider_modelscope.protocol.messages import (
    HttpRequest,
    HttpResponse,
    error_from,
    read_status,
    read_submission,
    status_request,
    submission_request,
    user_request,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.provenance.record import LABEL, MADE_BY_AI
from airflow_provider_modelscope.provenance.xmp import packet_of, properties_of
from airflow_provider_modelscope.transport.blocking import send
from airflow_provider_modelscope.transport.download import download, image_headers
from airflow_provider_modelscope.transport.egress import is_loopback, request_options

if TYPE_CHECKING:
    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.generation import Generation

UNKNOWN_MODEL = "nobody/no-such-model"
BAD_TOKEN = "ms-00000000-0000-0000-0000-000000000000"  # noqa: S105 - of no account
PRICES = (0.2, 0.5, 1, 2)
SIZE, SEED = "1024x1024", 20251101
POLL_INTERVAL = 5.0
MAX_WAIT = 600.0  # seconds for the image
URL_AGE = 60.0  # seconds after which its URL is opened again

_PASSING = (408, 429, 502, 503, 504)  # statuses that say nothing about what is assumed
_NO_PERMISSION = (403,)
_RUNNING = {"PENDING", "PROCESSING"}
_MAX_WORDS = 10

Judge = Callable[[HttpResponse], tuple[bool, str]]


class ServiceCheck:
    """One check of one service.

    :param report: Gets the findings, and what they cost.
    :param sleep: Waits for some seconds.
    :param clock: Returns seconds, and does not go back.
    :raises InvalidRequestError: if the model is not the id of one.
    """

    def __init__(
        self,
        account: Account,
        model: str,
        report: Report,
        *,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._account = account
        self._request = GenerationRequest(model=model, prompt=PROMPT, size=SIZE, seed=SEED)
        self._report = report
        self._sleep = sleep
        self._clock = clock
        self._quota_headers: set[str] = set()
        self._words: list[str] = []
        self._price: float | None = None
        self._credit_before: Credit | None = None
        self._accepted = 0
        self._may_have_cost = False

    def run(self, *, spend: bool) -> Iterator[Finding]:
        """Yield each line as soon as it is known.

        :param spend: Whether to pay for an image.
        :raises InvalidConnectionError: if the proxy or the CA bundle cannot be used.
        :raises ServiceUnreachableError: if the API cannot be reached.
        :raises ServiceUnavailableError: if it does not respond.
        :raises AuthenticationError: if it rejects the token.
        """
        for finding in chain(self._free(), self._spending() if spend else (), self._last()):
            self._report.findings.append(finding)
            yield finding

    def _free(self) -> Iterator[Finding]:
        account = self._account
        bad = replace(account, token=BAD_TOKEN)
        # A gateway in front of the API need not have the site, and a token may be for the API only.
        site_untold = (*_PASSING, *(() if account.hub_url else (404,)))
        account_untold = (*site_untold, *_NO_PERMISSION)
        poll = status_request(account, "0")
        without_header = replace(poll, headers={"Authorization": poll.headers["Authorization"]})

        yield self._connection()
        models = self._send(HttpRequest(method="GET", url=f"{account.base_url}/v1/models", headers={}))
        yield self._compared("models", lambda: models, self._is_list_of_models)
        user = partial(self._send, user_request(account, account.site_url))
        yield self._compared("user", user, self._is_user, untold=account_untold)
        credit = partial(self._send, credit_request(account))
        yield self._compared("balance", credit, self._is_balance, untold=account_untold)
        price = partial(self._send, price_request(account, self._request.model))
        yield self._compared("price", price, self._is_price, untold=site_untold)
        yield self._compared("task", partial(self._send, poll), self._is_not_found)
        yield self._compared("task-without-header", partial(self._send, without_header), self._is_not_found)
        yield self._compared(
            "bad-token-site",
            partial(self._send, user_request(bad, account.site_url)),
            self._is_rejected(401, "InvalidAuthentication"),
            untold=site_untold,
        )
        unknown = replace(self._request, model=UNKNOWN_MODEL)
        yield self._compared(
            "bad-token-api",
            lambda: self._submit(unknown, bad)[0],
            self._is_rejected(401, "Authentication failed"),
        )
        yield self._compared(
            "unknown-model",
            lambda: self._submit(unknown, account)[0],
            self._is_rejected(400, "has no provider supported"),
        )

    def _last(self) -> Iterator[Finding]:
        if self._accepted or self._may_have_cost:
            self._report.credit_used = self._credit_used()
        names = ", ".join(sorted(self._quota_headers)[:_MAX_WORDS])
        yield self._finding(NO_QUOTA_HEADERS, DIFFERS if names else OK, names or "none")

    # What is free

    def _connection(self) -> Finding:
        url = self._account.base_url
        options = request_options(url, self._account)
        proxy = "no proxy"
        if options["proxies"]["https"]:
            proxy = "proxy of the connection" if self._account.proxy else "proxy of the environment"
        if is_loopback(urlsplit(url).hostname or ""):
            return self._finding("connection", OK, f"this machine, {proxy}")
        if not url.startswith("https:"):
            return self._finding("connection", DIFFERS, f"not encrypted, {proxy}")
        is_verified = bool(options["verify"])
        tls = "TLS, verified" if is_verified else "TLS, not verified"
        return self._finding("connection", OK if is_verified else DIFFERS, f"{tls}, {proxy}")

    def _is_list_of_models(self, response: HttpResponse) -> tuple[bool, str]:
        models = (response.json or {}).get("data")
        is_list = isinstance(models, list) and all(isinstance(one, dict) and "id" in one for one in models)
        return response.status_code == 200 and is_list, self._described(response)

    def _is_user(self, response: HttpResponse) -> tuple[bool, str]:
        if response.status_code == 401:
            raise error_from(response, account=self._account)
        content = response.json or {}
        is_user = content.get("success") is True and isinstance(content.get("data"), dict)
        return response.status_code == 200 and is_user, self._described(response)

    def _is_balance(self, response: HttpResponse) -> tuple[bool, str]:
        with suppress(ModelScopeError):
            self._credit_before = read_credit(response, account=self._account)
        data = (response.json or {}).get("data")
        names = ("total_balance", "available_balance", "frozen_amount")
        numbers = [finite(data.get(name)) if isinstance(data, dict) else None for name in names]
        match numbers:
            case [float(total), float(available), float(frozen)] if response.status_code == 200:
                came = f"{amount(total)} = {amount(available)} + {amount(frozen)}"
                return _is_close(total, available + frozen), came
        return False, self._described(response)

    def _is_price(self, response: HttpResponse) -> tuple[bool, str]:
        self._price = read_price(response)
        if self._price is None:
            return False, f"no price: {self._described(response)}"
        return any(_is_close(self._price, known) for known in PRICES), amount(self._price)

    def _is_not_found(self, response: HttpResponse) -> tuple[bool, str]:
        body = response.parsed(secret=self._account.token)
        is_failed = response.status_code == 200 and body.status_word == "FAILED"
        came = f"{body.status_word}: {body.error.message}" if body.has_status else self._described(response)
        return is_failed and "task not found" in body.error.message.lower(), came

    def _is_rejected(self, status: int, words: str) -> Judge:
        def judge(response: HttpResponse) -> tuple[bool, str]:
            said = self._detail(response).message
            return response.status_code == status and words in said, self._described(response)

        return judge

    # What is paid for

    def _spending(self) -> Iterator[Finding]:
        submitted_at = self._clock()
        try:
            response, generation = self._submit(self._request, self._account)
        except ModelScopeError as error:
            yield self._finding("accepted", NOT_TOLD, error.message)
            yield from self._untold("accepted", "nothing was accepted")
            return
        if response.status_code == 401:
            raise error_from(response, account=self._account)
        yield self._acceptance(response, generation)
        if generation is None:
            yield from self._untold("accepted", "nothing was accepted")
            return
        second = self._second_submission()
        held = self._credit()
        is_running = False
        with suppress(ModelScopeError):
            generation = self._poll(generation)
            is_running = not self._is_over(generation, submitted_at)
        yield self._one_at_a_time(second, is_running=is_running)
        yield self._frozen(held, is_running=is_running)
        while not self._is_over(generation, submitted_at) and self._age(submitted_at) < MAX_WAIT:
            self._sleep(POLL_INTERVAL)
            with suppress(ModelScopeError):
                generation = self._poll(generation)
        yield self._status(generation)
        if not generation.output_images:
            yield from self._untold("status", "no image")
            return
        yield self._time_taken(generation.duration_ms, self._age(submitted_at))
        yield from self._parameters(generation)
        yield from self._image(generation.output_images[0])
        yield self._spent()

    def _acceptance(self, response: HttpResponse, generation: Generation | None) -> Finding:
        body = response.parsed(secret=self._account.token)
        if generation is None:
            verdict = NOT_TOLD if response.status_code in _PASSING else DIFFERS
            return self._finding("accepted", verdict, self._described(response))
        is_ok = isinstance((response.json or {}).get("task_id"), str) and not body.images
        came = f"{response.status_code}, id {generation.generation_id}"
        return self._finding(
            "accepted", OK if is_ok else DIFFERS, f"{came}, with an image" if body.images else came
        )

    def _second_submission(self) -> tuple[HttpResponse, Generation | None] | ModelScopeError:
        try:
            return self._submit(self._request, self._account)
        except ModelScopeError as error:
            return error

    def _one_at_a_time(
        self, second: tuple[HttpResponse, Generation | None] | ModelScopeError, *, is_running: bool
    ) -> Finding:
        name = "one-at-a-time"
        if isinstance(second, ModelScopeError):
            return self._finding(name, NOT_TOLD, second.message)
        response, generation = second
        if generation is None:
            return self._compared(name, lambda: response, self._is_rejected(500, "queue is full"))
        if is_running:
            return self._finding(name, DIFFERS, f"{response.status_code}, accepted: this costs credit too")
        return self._finding(name, NOT_TOLD, "accepted, but the first one may have finished before")

    def _frozen(self, held: Credit | None, *, is_running: bool) -> Finding:
        before, price = self._credit_before, self._price
        if before is None or held is None or price is None:
            return self._finding("frozen", NOT_TOLD, "the balance or the price is not told")
        if not is_running:
            return self._finding("frozen", NOT_TOLD, "it may have finished before")
        is_ok = _is_close(held.frozen - before.frozen, price * self._accepted)
        came = f"{amount(before.frozen)} before, {amount(held.frozen)} while it runs"
        return self._finding("frozen", OK if is_ok else DIFFERS, came)

    def _status(self, generation: Generation) -> Finding:
        words = list(dict.fromkeys(self._words))[:_MAX_WORDS]
        came = ", ".join(word or "(empty)" for word in words) or "no status"
        if not generation.is_finished:
            verdict = NOT_TOLD if _RUNNING.issuperset(words) else DIFFERS
            return self._finding("status", verdict, f"{came} for {MAX_WAIT:g} s")
        if not generation.output_images:
            return self._finding("status", DIFFERS, f"{came}: {generation.error.message}")
        is_ok = words[-1:] == ["SUCCEED"] and _RUNNING.issuperset(words[:-1])
        return self._finding("status", OK if is_ok else DIFFERS if words else NOT_TOLD, came)

    def _time_taken(self, time_taken: float | None, waited: float) -> Finding:
        if time_taken is None:
            return self._finding("time-taken", NOT_TOLD, "no time_taken")
        # In seconds it would be at most what was waited.
        is_ok = 2 * waited <= time_taken <= 1000 * (waited + 1)
        came = f"{amount(time_taken)} after {waited:.1f} s"
        return self._finding("time-taken", OK if is_ok else DIFFERS, came)

    def _parameters(self, generation: Generation) -> Iterator[Finding]:
        used = generation.effective_parameters()
        others = [name for name, sent in (("prompt", PROMPT), ("size", SIZE)) if used.get(name) != sent]
        came = f"not as sent: {', '.join(others)}" if others else "prompt and size as sent"
        yield self._finding(
            "input", DIFFERS if others else OK, came if generation.parameters else "no parameters"
        )
        seed = generation.seed
        if seed is None:
            yield self._finding("seed", NOT_TOLD, "no seed")
        else:
            yield self._finding("seed", OK if seed == SEED else DIFFERS, f"sent {SEED}, used {seed}")

    def _image(self, url: str) -> Iterator[Finding]:
        try:
            headers = image_headers(url, self._account)
        except ModelScopeError as error:
            is_verdict = isinstance(error, ImageGoneError | ImageNotAllowedError)
            yield self._finding("no-redirect", DIFFERS if is_verdict else NOT_TOLD, error.message)
            for name in ("content-type", "label", "url-stays"):
                yield self._finding(name, NOT_TOLD, "the image cannot be opened")
            return
        came = f"{headers.redirects or 'no'} redirect, host {urlsplit(url).hostname}"
        yield self._finding("no-redirect", DIFFERS if headers.redirects else OK, came)
        try:
            with download(url, self._account) as image:
                sent = headers.content_type.partition(";")[0].strip().lower()
                came = f"{sent or 'no content type'}, the bytes are {image.content_type}"
                yield self._finding("content-type", OK if sent == image.content_type else DIFFERS, came)
                label = _label_of(image)
                yield self._finding("label", OK if label else DIFFERS, label or "none")
        except ModelScopeError as error:
            is_verdict = isinstance(error, BrokenImageError)
            yield self._finding("content-type", DIFFERS if is_verdict else NOT_TOLD, error.message)
            yield self._finding("label", NOT_TOLD, "no whole image")
        self._sleep(URL_AGE)
        yield self._later(url)

    def _later(self, url: str) -> Finding:
        try:
            image_headers(url, self._account)
        except ImageGoneError as error:
            return self._finding("url-stays", DIFFERS, error.message)
        except ModelScopeError as error:
            return self._finding("url-stays", NOT_TOLD, error.message)
        return self._finding("url-stays", OK, f"after {URL_AGE:g} s")

    def _spent(self) -> Finding:
        used = self._credit_used()
        if used is None or self._price is None:
            return self._finding("spent", NOT_TOLD, "the balance or the price is not told")
        expected = self._price * self._accepted
        came = f"{amount(used)} for {self._accepted} at {amount(self._price)}"
        return self._finding("spent", OK if _is_close(used, expected) else DIFFERS, came)

    # How to ask

    def _send(self, call: HttpRequest) -> HttpResponse:
        response = send(call, self._account)
        self._quota_headers.update(
            name for name in response.headers if name.lower().startswith("modelscope-ratelimit-")
        )
        return response

    def _submit(self, request: GenerationRequest, account: Account) -> tuple[HttpResponse, Generation | None]:
        """Submit once, and return the response and what it accepts."""
        try:
            response = self._send(submission_request(account, request))
            try:
                generation = read_submission(response, account=account, request=request)
            except ServiceUnavailableError:
                self._may_have_cost = True
                return response, None
            except ModelScopeError:
                return response, None
        except ServiceUnavailableError:
            self._may_have_cost = True
            raise
        self._accepted += 1
        return response, generation

    def _poll(self, generation: Generation) -> Generation:
        if generation.is_finished:  # the response to the submission contained its images, and maybe no id
            return generation
        generation_id = generation.generation_id
        response = self._send(status_request(self._account, generation_id))
        body = response.parsed(secret=self._account.token)
        if body.has_status:
            self._words.append(body.status_word)
        return read_status(response, account=self._account, generation_id=generation_id)

    def _credit(self) -> Credit | None:
        try:
            return read_credit(self._send(credit_request(self._account)), account=self._account)
        except ModelScopeError:
            return None

    def _credit_used(self) -> float | None:
        before, after = self._credit_before, self._credit()
        return None if before is None or after is None else round(before.available - after.available, 6)

    def _is_over(self, generation: Generation, submitted_at: float) -> bool:
        if generation.output_images:
            return generation.is_finished
        return generation.has_failed(age=self._age(submitted_at))

    def _age(self, submitted_at: float) -> float:
        return self._clock() - submitted_at

    # What to say

    def _compared(
        self, name: str, ask: Callable[[], HttpResponse], judge: Judge, *, untold: Iterable[int] = _PASSING
    ) -> Finding:
        """Return what a response says about an assumption.

        :param untold: Statuses that say nothing.
        """
        try:
            response = ask()
        except ModelScopeError as error:
            return self._finding(name, NOT_TOLD, error.message)
        is_ok, came = judge(response)
        if response.status_code in untold:
            return self._finding(name, NOT_TOLD, came)
        return self._finding(name, OK if is_ok else DIFFERS, came)

    def _untold(self, last: str, reason: str) -> Iterator[Finding]:
        """Yield the lines of ``SPENDING`` that come after one."""
        names = list(SPENDING)
        for name in names[names.index(last) + 1 :]:
            yield self._finding(name, NOT_TOLD, reason)

    def _finding(self, name: str, verdict: str, came: str) -> Finding:
        return Finding(name=name, came=self._report.shown(came), verdict=verdict)

    def _detail(self, response: HttpResponse) -> ErrorDetail:
        return response.error_detail(secret=self._account.token)

    def _described(self, response: HttpResponse) -> str:
        """Return the status and the error of a response, or what it is: its other content may be personal."""
        detail = self._detail(response)
        if detail.is_error and detail.message:
            what = detail.message
        elif not response.body:
            what = "empty"
        elif response.is_page:
            what = "a page of HTML"
        else:
            what = "no JSON object" if response.json is None else "a JSON object"
        return f"{response.status_code}, {what}"


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=1e-6)


def _label_of(image: Image) -> str:
    """Return which label of content made by AI an image has; nothing if it has none."""
    properties = properties_of(packet_of(image.file) or "")
    if LABEL in properties:
        return "TC260:AIGC in its XMP"
    content = image.content
    if b"ContentProducer" in content or b"ContentProducer" in content.replace(b"\0", b""):
        return "AIGC in its metadata"
    return "trainedAlgorithmicMedia in its metadata" if MADE_BY_AI.encode() in content else ""
