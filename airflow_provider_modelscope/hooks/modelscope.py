"""ModelScope from a worker: the connection's credentials, and the protocol over requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_modelscope.exceptions import (
    ImageError,
    ImageGoneError,
    ImageStorageError,
    ModelScopeError,
    ModelScopeRetryableError,
    QueueFullError,
    RateLimitedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from airflow_provider_modelscope.get_provider_info import CONNECTION_TYPE
from airflow_provider_modelscope.waiting.backoff import PAUSE, TRIES, SubmitBackoff

if TYPE_CHECKING:
    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.protocol.account import Account
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.protocol.messages import HttpRequest, HttpResponse
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.waiting.poll import PollSchedule

IMAGE_TRIES = 5  # of a download, for what it fetches is paid for; the pauses between them double
VERDICTS = (401, 402, 403, 429)  # what the service answers to a token that is of no use now


class ModelScopeHook(BaseHook):
    """Talk to ModelScope with the credentials of an Airflow connection.

    :param modelscope_conn_id: A connection of type ``modelscope``. Its password is the API token, its host
        the base URL (the service's own by default); its extra may hold ``request_timeout`` (seconds, 30),
        ``verify`` (true, false, or the path of a CA bundle), ``proxy`` (URL), ``max_image_bytes`` (64 MiB),
        ``allowed_image_hosts`` (none: hosts that images may come from although their address is not public) and
        ``allow_http`` (false: plain http only to this machine).
    """

    conn_name_attr = "modelscope_conn_id"
    default_conn_name = "modelscope_default"
    conn_type = "modelscope"
    hook_name = "ModelScope"

    def __init__(self, modelscope_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.modelscope_conn_id = modelscope_conn_id

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's fields for Airflow 3.0 and 3.1; later ones read them from the provider's info."""
        from wtforms import BooleanField, IntegerField, PasswordField, StringField

        kinds = {"integer": IntegerField, "boolean": BooleanField, "string": StringField}
        return {
            name: (
                PasswordField
                if entry["schema"].get("format") == "password"
                else kinds[entry["schema"]["type"][0]]
            )(entry["label"], description=entry["description"])
            for name, entry in CONNECTION_TYPE["conn-fields"].items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form's labels for Airflow 3.0 and 3.1; later ones read them from the provider's info."""
        behaviour = CONNECTION_TYPE["ui-field-behaviour"]
        return {key.replace("-", "_"): value for key, value in behaviour.items()}

    @cached_property
    def account(self) -> Account:
        """What the connection says, read once.

        :raises InvalidConnectionError: where it cannot be used.
        """
        from airflow.sdk.log import mask_secret

        from airflow_provider_modelscope.hooks.connection import account_from_connection

        account = account_from_connection(self.get_connection(self.modelscope_conn_id))
        # Airflow masks the password as it was pasted, which need not be the bare token.
        mask_secret(account.token)
        return account

    def submit_generation(self, request: GenerationRequest, *, queue_timeout: float = 60.0) -> str:
        """Start a generation and return its id.

        It is sent again only where nothing can have been created: no connection, too fast, a full queue.

        :param queue_timeout: Seconds to go on trying in those cases.
        :raises SubmissionLostError: where it was sent, and nobody can tell whether a generation was made.
        :raises ModelScopeError: whatever else the service answers.
        """
        now = time.time()
        return self.submit_with_backoff(request, SubmitBackoff(since=now, end_time=now + queue_timeout))

    def submit_with_backoff(
        self,
        request: GenerationRequest,
        queue: SubmitBackoff,
        *,
        sending: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> str:
        """Start a generation as :meth:`submit_generation` does.

        :param queue: The wait for room.
        :param sending: Makes the context in which it is sent, anew for each time.
        """
        from airflow_provider_modelscope.protocol.messages import submission_request

        call = submission_request(self.account, request)
        while True:
            try:
                with sending():
                    return self._submit(call, model=request.model)
            except (RateLimitedError, ServiceUnreachableError) as error:
                self._pause(error, queue.after(error, now=time.time()))

    def _submit(self, call: HttpRequest, *, model: str) -> str:
        from airflow_provider_modelscope.metrics import counted_submission, show_quota
        from airflow_provider_modelscope.protocol.messages import lost_submission, read_submission

        with counted_submission(modelscope_conn_id=self.modelscope_conn_id, model=model):
            try:
                answer = self._send(call)
            except ServiceUnreachableError:
                raise
            except ServiceUnavailableError as error:
                raise lost_submission(error.message) from error
            if said := str(quota := answer.quota):
                self.log.info("ModelScope's quota for today: %s", said)
                show_quota(quota, modelscope_conn_id=self.modelscope_conn_id, model=model)
            return read_submission(answer, account=self.account, model=model)

    def get_generation(self, generation_id: str) -> Generation:
        """Return what the service says of a generation now. Passing faults are tried again.

        :raises ModelScopeError: where it does not say.
        """
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.protocol.messages import read_status, status_request

        generation_id = checked_id(generation_id)
        call = status_request(self.account, generation_id)
        failed = 0
        while True:
            try:
                return read_status(self._send(call), account=self.account, generation_id=generation_id)
            except ModelScopeRetryableError as error:
                failed += 1
                if failed == TRIES:
                    error.generation_id = generation_id
                    raise
                self._pause(error, PAUSE)

    def _pause(self, error: ModelScopeError, seconds: float) -> None:
        what = "Waiting for room" if isinstance(error, QueueFullError) else "Trying again"
        self.log.info("%s: next try in %.0f s. %s", what, seconds, error)
        time.sleep(seconds)

    def poll(self, generation_id: str) -> Generation | ModelScopeError:
        """Return what :meth:`get_generation` returns, or the error that it raises."""
        try:
            return self.get_generation(generation_id)
        except ModelScopeError as error:
            return error

    def poll_until(self, wait: PollSchedule, until: float) -> Generation | None:
        """Return the generation once it is finished, or None where it is not by then (epoch seconds).

        :raises ModelScopeError: where the wait ends without a finished generation.
        """
        while True:
            outcome = wait.after(self.poll(wait.generation_id), now=time.time())
            if not isinstance(outcome, float):
                return outcome
            if time.time() + outcome > until:
                return None
            time.sleep(outcome)

    def download_image(self, url: str) -> Image:
        """Return an output image, whole and decodable. The token is not sent to its host.

        It stands in a temporary file that goes when the image is closed: use it in a ``with``. What fails in
        passing, half an image included, is tried again.

        :param url: One of a generation's ``output_images``.
        :raises ImageGoneError: where the URL works no longer.
        :raises ImageNotAllowedError: where it is too large, or where images may not come from.
        :raises ImageStorageError: where the temporary folder has no room for it.
        :raises ImageError: where it cannot be had whole.
        """
        from airflow_provider_modelscope.transport.download import download

        failed = 0
        while True:
            try:
                return download(url, self.account)
            except (ImageGoneError, ImageStorageError):
                raise
            except ImageError as error:
                failed += 1
                if failed == IMAGE_TRIES:
                    raise
                self._pause(error, PAUSE * 2 ** (failed - 1))

    def test_connection(self) -> tuple[bool, str]:
        """Tell whether the service takes this token, and what to do where it does not."""
        from airflow_provider_modelscope.protocol import messages

        try:
            account = self.account
            # Asked for a generation that cannot be, the API should refuse a bad token: but that is a guess.
            look = self._send(messages.status_request(account, "0"))
            if look.status_code in VERDICTS:
                raise messages.error_from(look, account=account)
            # So the site is asked, which is known to tell a good token from a bad one.
            user = self._send(messages.user_request(account, account.hub_url or account.base_url))
            if user.status_code == 200:
                return True, f"{account.base_url} answers, and the token is valid."
            if user.status_code in VERDICTS or account.hub_url:
                raise messages.error_from(user, account=account)
            if look.status_code >= 500:
                raise messages.error_from(look, account=account)
        except ModelScopeError as error:
            return False, str(error)
        return True, f"{account.base_url} answers and does not refuse the token."

    def _send(self, call: HttpRequest) -> HttpResponse:
        from airflow_provider_modelscope.transport.blocking import send

        try:
            return send(call, self.account)
        except ServiceUnreachableError as error:
            connection = f"connection {self.modelscope_conn_id!r}"
            error.message += f". Check host, proxy and verify of {connection}, and this machine's network"
            raise
