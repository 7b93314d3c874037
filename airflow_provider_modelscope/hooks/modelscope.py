"""ModelScope from a worker: the credentials of an Airflow connection, blocking calls, and their retries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_modelscope.compat import BaseHook
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    BrokenImageError,
    ImageError,
    ImageGoneError,
    ImageStorageError,
    InvalidConnectionError,
    ModelScopeError,
    ModelScopeRetryableError,
    RateLimitedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.waiting.backoff import (
    MAX_ATTEMPTS,
    RETRY_DELAY,
    SubmitBackoff,
    why_rejected,
)

if TYPE_CHECKING:
    import re

    from airflow.sdk import Connection

    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.credit import Credit
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.messages import HttpRequest, HttpResponse
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.waiting.poll import PollSchedule

DOWNLOAD_ATTEMPTS = 5  # more than of other requests, as the image is paid for; the pauses between them double
DOWNLOADS_AT_ONCE = 4
MAX_READING_SECONDS = 5.0  # for a reading of the credit or of a price
UNUSABLE_TOKEN = (401, 402, 403, 429)  # statuses of a response to a token that does not work now

Found = TypeVar("Found")


class ModelScopeHook(BaseHook):
    """Talk to ModelScope with the credentials of an Airflow connection.

    :param modelscope_conn_id: Id of a connection of type ``modelscope``. Its password is the API token. Its
        host is the base URL, by default the service's own. Its extra may contain the fields of
        :data:`~airflow_provider_modelscope.hooks.connection.CONNECTION_FIELDS`.
    """

    conn_name_attr = "modelscope_conn_id"
    default_conn_name = "modelscope_default"
    conn_type = "modelscope"
    hook_name = "ModelScope"

    def __init__(self, modelscope_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.modelscope_conn_id = modelscope_conn_id
        self._finished: dict[str, Generation] = {}  # at once, so that the service has no id to poll
        self._prices: dict[str, float | None] = {}
        self._unreadable: set[str] = set()  # readings that failed; "" stands for all

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's inputs for Airflow 3.0 and 3.1; later versions read the provider info."""
        from wtforms import BooleanField, IntegerField, PasswordField, StringField

        from airflow_provider_modelscope.hooks.connection import CONNECTION_FIELDS

        inputs = {"integer": IntegerField, "boolean": BooleanField, "string": StringField}
        return {
            field.name: (PasswordField if field.is_secret else inputs[field.type])(
                field.form_input["label"], description=field.form_input["description"]
            )
            for field in CONNECTION_FIELDS
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form's labels for Airflow 3.0 and 3.1; later versions read the provider info."""
        from airflow_provider_modelscope.hooks.connection import UI_FIELD_BEHAVIOUR

        return {key.replace("-", "_"): value for key, value in UI_FIELD_BEHAVIOUR.items()}

    @cached_property
    def account(self) -> Account:
        """The account that the connection describes, read once.

        :raises InvalidConnectionError: if the connection cannot be used.
        """
        from airflow.sdk.log import mask_secret

        from airflow_provider_modelscope.hooks.connection import account_from_connection

        account = account_from_connection(self._connection)
        # Airflow masks the password as it was pasted, which may differ from the bare token.
        mask_secret(account.token)
        return account

    @cached_property
    def _connection(self) -> Connection:
        return self.get_connection(self.modelscope_conn_id)

    @cached_property
    def _secrets(self) -> list[re.Pattern[str]]:
        from airflow_provider_modelscope.hooks.connection import secrets_of

        return secrets_of(self._connection)

    def refuse_secrets(self, **parameters: Any) -> None:
        """Raise an error if a parameter contains a secret of the connection, rendered by a template.

        The connection must exist, but need not be valid.

        :raises InvalidRequestError: with the names of the parameters, without their values.
        """
        from airflow_provider_modelscope.validation import raise_invalid

        raise_invalid(
            f"{name}: must not contain the token or another secret of connection "
            f"{self.modelscope_conn_id!r}, which a template such as {{{{ conn... }}}} may have put there"
            for name, value in parameters.items()
            if any(secret.search(text) for text in _texts(value) for secret in self._secrets)
        )

    def can_defer(self) -> bool:
        """Return whether a triggerer with the environment of this machine can poll; if not, log why."""
        from airflow_provider_modelscope.transport.egress import NO_SOCKS_IN_TRIGGERER, proxy_for

        try:
            proxy_for(self.account.base_url, self.account, no_socks=NO_SOCKS_IN_TRIGGERER)
        except InvalidConnectionError as error:
            self.log.warning("Waiting on the worker instead of deferring: %s", error)
            return False
        return True

    def submit_generation(self, request: GenerationRequest, *, queue_timeout: float = 60.0) -> str:
        """Submit a generation and return its id.

        Retries only if no generation can have been created: no connection, a rate limit, a full queue.

        :param queue_timeout: Seconds to retry in those cases.
        :raises InvalidRequestError: if the request contains a secret of the connection.
        :raises SubmissionLostError: if the request was sent, and a generation may have been created.
        :raises ModelScopeError: if the service rejects the request.
        """
        self.refuse_secrets(**vars(request))
        now = time.time()
        return self.submit_with_backoff(request, SubmitBackoff(queued_at=now, end_time=now + queue_timeout))

    def submit_with_backoff(
        self,
        request: GenerationRequest,
        backoff: SubmitBackoff,
        *,
        sending: Callable[[], AbstractContextManager[object]] = nullcontext,
        on_wait: Callable[[], object] = lambda: None,
        log_level: int = logging.INFO,
    ) -> str:
        """Submit a generation and return its id, as :meth:`submit_generation` does.

        :param backoff: Decides when to submit again, and when to give up.
        :param sending: Makes a new context for each attempt, which is entered while it is sent.
        :param on_wait: Called once, when it begins to wait for the account.
        :param log_level: Level to log at why it waits: each reason once, not each attempt.
        """
        from airflow_provider_modelscope.protocol.messages import submission_request
        from airflow_provider_modelscope.waiting.progress import utc

        call = submission_request(self.account, request)
        logged: set[str] = set()
        is_waiting = False
        while True:
            try:
                with sending():
                    generation = self._submit(call, request)
            except (RateLimitedError, ServiceUnreachableError) as error:
                delay = backoff.next_delay(error, now=time.time())
                if (reason := why_rejected(error)) not in logged:
                    logged.add(reason)
                    is_unreachable = isinstance(error, ServiceUnreachableError)  # for a few attempts only
                    when = f"in {delay:.0f} s" if is_unreachable else f"until {utc(backoff.end_time)}"
                    self.log.log(log_level, "%s. Submitting again %s", reason, when)
                if isinstance(error, RateLimitedError) and not is_waiting:
                    is_waiting = True
                    on_wait()
                self.sleep_before_retry(delay)
            else:
                if generation.is_finished:
                    self.log.info("The response contains the images, and no id to poll")
                    self._finished[generation.generation_id] = generation
                return generation.generation_id

    def _submit(self, call: HttpRequest, request: GenerationRequest) -> Generation:
        from airflow_provider_modelscope.metrics import counted_submission
        from airflow_provider_modelscope.protocol.messages import lost_submission, read_submission

        with counted_submission(modelscope_conn_id=self.modelscope_conn_id, model=request.model):
            try:
                response = self._send(call)
            except ServiceUnreachableError:
                raise
            except ServiceUnavailableError as error:
                raise lost_submission(error.message) from error
            if limits := response.rate_limits:
                self.log.info("Rate limits: %s", limits)
            return read_submission(response, account=self.account, request=request)

    def finished_at_once(self, generation_id: str) -> Generation | None:
        """Return the generation if the response to its submission contained its images, and no id to poll.

        Only this hook knows them: no other process can fetch them.
        """
        return self._finished.get(generation_id)

    def get_generation(self, generation_id: str) -> Generation:
        """Return the generation as the service describes it now. Retries on errors that may pass.

        :raises ModelScopeError: if the service does not return the generation.
        """
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.protocol.messages import read_status, status_request

        generation_id = checked_id(generation_id)
        if generation_id in self._finished:
            return self._finished[generation_id]
        call = status_request(self.account, generation_id)
        attempts = 0
        while True:
            try:
                return read_status(self._send(call), account=self.account, generation_id=generation_id)
            except ModelScopeRetryableError as error:
                attempts += 1
                if attempts == MAX_ATTEMPTS:
                    error.generation_id = generation_id
                    raise
                # The caller logs or raises the last one. A line for each poll would hide the others.
                self._wait_to_retry(error, RETRY_DELAY, log_level=logging.DEBUG)

    def poll(self, generation_id: str) -> Generation | ModelScopeError:
        """Return what :meth:`get_generation` returns, or the error that it raises."""
        try:
            return self.get_generation(generation_id)
        except ModelScopeError as error:
            return error

    def poll_until(self, schedule: PollSchedule, deadline: float) -> Generation | None:
        """Poll until the generation is finished, and return it; None if the deadline comes first.

        :param schedule: Decides when to poll again, and when to give up.
        :param deadline: In epoch seconds. No poll is later.
        :raises ModelScopeError: if the schedule gives up.
        """
        while True:
            outcome = schedule.observe(self.poll(schedule.generation_id), now=time.time())
            if not isinstance(outcome, float):
                return outcome
            if time.time() + outcome > deadline:
                return None
            time.sleep(outcome)

    def download_image(self, url: str) -> Image:
        """Return an output image, complete and decodable. The token is not sent to its host.

        The image is a temporary file that is deleted when the image is closed: use it in a ``with``.
        Retries on errors that may pass, an incomplete image included, until the same bytes come twice.

        :param url: One of a generation's ``output_images``.
        :raises ImageGoneError: if the URL no longer works.
        :raises ImageNotAllowedError: if the image is too large, or its host is not allowed.
        :raises ImageStorageError: if the temporary folder has no room for the image.
        :raises ImageError: if the image cannot be downloaded completely.
        """
        return self._download(url, Event())

    def download_images(self, urls: Sequence[str]) -> list[Image]:
        """Return output images in the order of their URLs, as :meth:`download_image` does, several at once.

        Close each. The first error ends all downloads, and closes the images that are here already.
        """
        from airflow_provider_modelscope.images.image import Image
        from airflow_provider_modelscope.transport.blocking import run_side_by_side

        _ = self.account  # read here: Airflow before 3.2 must not be asked from several threads
        stop = Event()
        return run_side_by_side(
            lambda url: self._download(url, stop),
            urls,
            at_once=DOWNLOADS_AT_ONCE,
            stop=stop,
            discard=Image.close,
        )

    def _download(self, url: str, stop: Event) -> Image:
        from airflow_provider_modelscope.transport.download import download, time_limit

        last_attempt = time.monotonic() + time_limit(self.account)
        attempts = 0
        refused: set[str] = set()
        while True:
            try:
                return download(url, self.account, stop=stop)
            except (ImageGoneError, ImageStorageError):
                raise
            except ImageError as error:
                if isinstance(error, BrokenImageError) and error.sha256:
                    if error.sha256 in refused:
                        error.message += ". The host sent the same bytes twice, so they are not fetched again"
                        raise
                    refused.add(error.sha256)
                attempts += 1
                if attempts == DOWNLOAD_ATTEMPTS or time.monotonic() > last_attempt or stop.is_set():
                    raise
                self._wait_to_retry(error, RETRY_DELAY * 2 ** (attempts - 1))
                if stop.is_set():
                    raise

    def get_credit(self) -> Credit:
        """Return the account's credit as the service reports it now. One request, without retries.

        Running generations have frozen a part of it.

        :raises ModelScopeError: if the service does not return it. That is no reason to fail a task.
        """
        from airflow_provider_modelscope.metrics import show_credit
        from airflow_provider_modelscope.protocol.credit import credit_request, read_credit

        credit = read_credit(self._ask(credit_request(self.account)), account=self.account)
        show_credit(credit, modelscope_conn_id=self.modelscope_conn_id)
        return credit

    def find_credit(self) -> Credit | None:
        """Return the account's credit, or None if it cannot be read."""
        return self._find("credit", self.get_credit)

    def get_price(self, model: str) -> float | None:
        """Return the credit that a generation of a model costs, or None if the service does not say it.

        It is asked once for each model, without retries.
        """
        from airflow_provider_modelscope.protocol.credit import price_request, read_price

        if model not in self._prices:
            call = price_request(self.account, model)
            self._prices[model] = self._find(f"price of {model}", lambda: read_price(self._ask(call)))
        return self._prices[model]

    def _find(self, what: str, read: Callable[[], Found | None]) -> Found | None:
        """Return what a reading returns, or None if it fails; then it is not tried again.

        After one without a response, no other is tried either: a firewall may delay each of them.
        """
        if self._unreadable.isdisjoint((what, "")):
            try:
                return read()
            except ModelScopeError as error:
                self.log.info("The %s is unknown: %s", what, error)
                self._unreadable.add("" if error.code is None else what)
        return None

    def _ask(self, call: HttpRequest) -> HttpResponse:
        """Return the response to a request that nothing depends on, so that it must not take long."""
        seconds = min(self.account.request_timeout, MAX_READING_SECONDS)
        return self._exchange(call, replace(self.account, request_timeout=seconds))

    def test_connection(self) -> tuple[bool, str]:
        """Return whether the service accepts the connection's token, and what to do if it does not."""
        from airflow_provider_modelscope.protocol import messages

        try:
            account = self.account
            # Undocumented: the API may reject a bad token before it searches the generation.
            status = self._send(messages.status_request(account, "0"))
            refusal = messages.error_from(status, account=account)
            is_refused = status.status_code in UNUSABLE_TOKEN
            if is_refused and isinstance(refusal, AuthenticationError) and refusal.code == 401:
                raise refusal
            # The website is known to reject a bad token.
            try:
                user = self._send(messages.user_request(account, account.site_url))
            except ModelScopeError as error:
                raise (refusal if is_refused else error) from None
            if user.status_code == 200:
                if is_refused:
                    return False, f"The token is valid, but {account.base_url} refuses inference. {refusal}"
                credit = self.find_credit()
                available = f", {credit.available:.10g} credit available" if credit else ""
                return True, f"Connected to {account.base_url}: the token is valid{available}."
            if is_refused:
                raise refusal
            if user.status_code in UNUSABLE_TOKEN or account.hub_url:
                raise messages.error_from(user, account=account)
            if status.status_code >= 500:
                raise refusal
        except ModelScopeError as error:
            return False, str(error)
        return True, f"Connected to {account.base_url}: it does not reject the token."

    def _send(self, call: HttpRequest) -> HttpResponse:
        try:
            return self._exchange(call, self.account)
        except ServiceUnreachableError as error:
            connection = f"connection {self.modelscope_conn_id!r}"
            error.message += f". Check host, proxy and verify of {connection}, and this machine's network"
            raise

    def _exchange(self, call: HttpRequest, account: Account) -> HttpResponse:
        from airflow_provider_modelscope.metrics import count_too_many_requests
        from airflow_provider_modelscope.transport.blocking import send

        response = send(call, account)
        if response.status_code == 429:
            count_too_many_requests(modelscope_conn_id=self.modelscope_conn_id)
        return response

    def _wait_to_retry(
        self, error: ModelScopeError, seconds: float, *, log_level: int = logging.INFO
    ) -> None:
        self.log.log(log_level, "Retrying in %.0f s: %s", seconds, error)
        self.sleep_before_retry(seconds)

    @staticmethod
    def sleep_before_retry(seconds: float) -> None:
        """Sleep between two attempts. Tests replace it."""
        time.sleep(seconds)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value of any type, with the names in its mappings."""
    rest, seen = [value], set()
    while rest:
        one = rest.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            rest += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            rest += one
        else:
            with suppress(ValueError, RecursionError):  # of an integer of thousands of digits
                yield str(one)
