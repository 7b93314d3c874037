"""A request goes to its fallback models only if its model is the reason, and the error names them all."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    CreditExhaustedError,
    ModelRetiredError,
    ModelScopeError,
    PriceUnknownError,
    QueueFullError,
    QuotaExhaustedError,
    RequestRejectedError,
    SubmissionLostError,
    UnknownModelError,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.tasks.fallbacks import submit_to_first
from airflow_provider_modelscope.xcoms import Submission

MODELS = ("a/first", "a/second", "a/third")


def submitted(*refusals: ModelScopeError | None, waits_for_credit: bool = False) -> tuple[str, list[str]]:
    """Submit to three models, of which these refuse; return the one that accepted, and those asked."""
    asked = []

    def submit(request: GenerationRequest) -> Submission:
        asked.append(request.model)
        if refusal := dict(zip(MODELS, refusals, strict=False)).get(request.model):
            raise refusal
        return Submission(generation_id="42", model=request.model, submitted_at=1.0)

    submission = submit_to_first(
        [GenerationRequest(model=model, prompt="A cat") for model in MODELS],
        submit,
        modelscope_conn_id="modelscope_default",
        waits_for_credit=waits_for_credit,
    )
    return submission.model, asked


def test_a_model_that_accepts_is_the_only_one_asked() -> None:
    assert submitted() == ("a/first", ["a/first"])


@pytest.mark.parametrize(
    "refusal", [UnknownModelError, QuotaExhaustedError, ModelRetiredError, PriceUnknownError], ids=str
)
def test_a_refusal_because_of_the_model_goes_to_the_next(refusal: Any) -> None:
    assert submitted(refusal("no")) == ("a/second", ["a/first", "a/second"])


@pytest.mark.parametrize(
    "error",
    [CreditExhaustedError, RequestRejectedError, AuthenticationError, QueueFullError, SubmissionLostError],
    ids=str,
)
def test_any_other_error_ends_the_search(error: Any) -> None:
    with pytest.raises(error, match=r"^no$"):
        submitted(error("no"))


def test_an_error_of_a_fallback_names_its_model() -> None:
    with pytest.raises(QueueFullError, match=r"^full\. The model is a/second, a fallback$"):
        submitted(UnknownModelError("no"), QueueFullError("full"))


def test_if_all_refuse_the_error_of_the_first_names_the_others() -> None:
    with pytest.raises(UnknownModelError) as raised:
        submitted(UnknownModelError("gone."), QuotaExhaustedError("spent"), PriceUnknownError("?"))
    assert raised.value.message == (
        "gone. The model is a/first; others were refused as well: a/second: spent; a/third: ?"
    )


def test_a_task_that_waits_gets_the_error_that_may_pass() -> None:
    refusals = [UnknownModelError("gone"), PriceUnknownError("?"), QuotaExhaustedError("spent")]
    with pytest.raises(QuotaExhaustedError, match=r"^spent. The model is a/third"):
        submitted(*refusals, waits_for_credit=True)
