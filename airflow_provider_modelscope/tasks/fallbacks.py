"""Ask the fallback models of a request, one after the other, as long as each refuses because of its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from airflow_provider_modelscope.exceptions import (
    CreditExhaustedError,
    ModelRetiredError,
    ModelScopeError,
    PriceUnknownError,
    QuotaExhaustedError,
    UnknownModelError,
)
from airflow_provider_modelscope.metrics import count_fallback
from airflow_provider_modelscope.redaction import truncated

if TYPE_CHECKING:
    from airflow_provider_modelscope.protocol.request import GenerationRequest
    from airflow_provider_modelscope.xcoms import Submission

log = logging.getLogger(__name__)


def submit_to_first(
    requests: Iterable[GenerationRequest],
    submit: Callable[[GenerationRequest], Submission],
    *,
    modelscope_conn_id: str,
    waits_for_credit: bool,
) -> Submission:
    """Submit to the first model that is served and has quota.

    :param requests: The request of the task and those to its fallback models, in this order.
    :param submit: Submits one of them.
    :param waits_for_credit: Whether the task waits for what may pass.
    :raises ModelScopeError: if all refuse, the error of the first model, or the one that may pass if the task
        waits for it.
    """
    refusals: list[tuple[str, ModelScopeError]] = []
    for request in requests:
        if refusals:
            model, refusal = refusals[-1]
            log.warning("Asking %s instead of %s: %s", request.model, model, refusal)
            count_fallback(refusal, modelscope_conn_id=modelscope_conn_id, model=model)
        try:
            return submit(request)
        except ModelScopeError as error:
            if not _is_about_model(error):
                if refusals:
                    error.message = f"{error.message.rstrip('.')}. The model is {request.model}, a fallback"
                raise
            refusals.append((request.model, error))
    if waits_for_credit:  # a quota comes back, and credit may; an unknown model does not
        kinds = (QuotaExhaustedError, ModelRetiredError, UnknownModelError, PriceUnknownError)
        refusals.sort(key=lambda refusal: kinds.index(type(refusal[1])))
    raise _first_of(refusals)


def _is_about_model(error: ModelScopeError) -> bool:
    """Whether the model of a request cannot be used, while another one may."""
    if isinstance(error, CreditExhaustedError):
        return False
    return isinstance(error, UnknownModelError | QuotaExhaustedError | PriceUnknownError)


def _first_of(refusals: Sequence[tuple[str, ModelScopeError]]) -> ModelScopeError:
    """Return the error of the first model, with those of the fallback models in its message."""
    (model, first), *others = refusals
    if others:
        reasons = "; ".join(f"{other}: {truncated(error.message, 300)}" for other, error in others)
        first.message = (
            f"{first.message.rstrip('.')}. The model is {model}; others were refused as well: {reasons}"
        )
    return first
