"""Whatever the service answers: how often a task with five retries submits, pays and stores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    CreditExhaustedError,
    GenerationFailedError,
    GenerationRejectedError,
    ModelRetiredError,
    ModelScopeError,
    ModelScopeFinalError,
    QuotaExhaustedError,
    RequestRejectedError,
    SubmissionLostError,
    SubmissionUnresolvedError,
    UnknownModelError,
)
from tests.unit.builders import one_step, submissions, submitter
from tests.unit.tasks.conftest import TaskStateStore, die

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")

ATTEMPTS = 6
CREDIT = "https://modelscope.cn/magicube/usage"

# The fault; submissions sent, generations accepted (charged), images stored; how the last attempt ended,
# and a part of that error's text.
ANSWERS: list[tuple[str, int, int, int, type[ModelScopeError] | None, str]] = [
    # waits in the queue, and submits again within the attempt
    ("submit:queue-full:2", 3, 1, 1, None, ""),
    ("submit:image-queue-full:2", 3, 1, 1, None, ""),
    ("submit:busy:2", 3, 1, 1, None, ""),
    ("submit:busy-200:2", 3, 1, 1, None, ""),
    ("submit:busy-400:2", 3, 1, 1, None, ""),
    ("submit:too-many:2", 3, 1, 1, None, ""),
    ("submit:too-fast:2", 3, 1, 1, None, ""),
    # refused for good, with the place to go
    ("submit:quota:*", 1, 0, 0, QuotaExhaustedError, "tomorrow"),
    ("submit:quota-200:*", 1, 0, 0, QuotaExhaustedError, "tomorrow"),
    ("submit:quota-chinese:*", 1, 0, 0, QuotaExhaustedError, "tomorrow"),
    ("submit:balance:*", 1, 0, 0, CreditExhaustedError, CREDIT),
    ("submit:no-credit:*", 1, 0, 0, CreditExhaustedError, CREDIT),
    ("submit:no-credit-chinese:*", 1, 0, 0, CreditExhaustedError, CREDIT),
    ("submit:retired-model:*", 1, 0, 0, ModelRetiredError, "model is no longer served"),
    ("submit:forbidden:*", 1, 0, 0, AuthenticationError, "lacks a permission"),
    ("submit:model-not-found:*", 1, 0, 0, UnknownModelError, "Model not found"),
    ("submit:moderated:*", 1, 0, 0, RequestRejectedError, "inappropriate content"),
    # accepted in another shape
    ("submit:nested-id", 1, 1, 1, None, ""),
    ("submit:images", 1, 1, 1, None, ""),
    ("submit:no-end", 1, 1, 1, None, ""),
    ("poll:other-words", 1, 1, 1, None, ""),
    ("poll:busy:3", 1, 1, 1, None, ""),
    # an odd answer to a poll is no verdict
    ("poll:unlucky:3", 1, 1, 1, None, ""),
    ("poll:not-found-400:3", 1, 1, 1, None, ""),
    ("poll:409:3", 1, 1, 1, None, ""),
    ("poll:413:3", 1, 1, 1, None, ""),
    ("poll:forbidden:3", 1, 1, 1, None, ""),
    # ended without images: final if the same request would fail again
    ("poll:rejected:*", 1, 1, 0, GenerationRejectedError, "inappropriate content"),
    ("poll:moderated:*", 1, 1, 0, GenerationRejectedError, "DataInspectionFailed"),
    ("poll:moderated-nested:*", 1, 1, 0, GenerationRejectedError, "DataInspectionFailed"),
    ("poll:moderated-40301:*", 1, 1, 0, GenerationRejectedError, "the prompt was rejected"),
    ("poll:moderated-chinese:*", 1, 1, 0, GenerationRejectedError, "敏感"),
    ("poll:filtered:*", 1, 1, 0, GenerationRejectedError, "filtered by safety checker"),
    ("poll:canceled", 2, 2, 1, None, ""),
    ("poll:canceled:*", 6, 6, 0, GenerationFailedError, "CANCELED: task was cancelled by the system"),
    ("poll:expired", 2, 2, 1, None, ""),
    # not confirmed: nothing in the answer says whether a generation was created
    ("submit:no-id", 2, 1, 1, None, ""),
    ("submit:lost", 2, 2, 1, None, ""),
    ("submit:504:*", 6, 0, 0, SubmissionLostError, "may have started and charged"),
]


@pytest.mark.parametrize(
    ("fault", "sent", "accepted", "images", "error", "text"), ANSWERS, ids=[row[0] for row in ANSWERS]
)
def test_each_answer_has_its_number_of_charges(
    emulator: Emulator,
    tmp_path: Path,
    fault: str,
    sent: int,
    accepted: int,
    images: int,
    error: type[ModelScopeError] | None,
    text: str,
) -> None:
    emulator.fail(fault)
    ended = attempts(tmp_path)
    posts = submissions(emulator)
    assert (len(posts), emulator.accepted, len(list(tmp_path.iterdir()))) == (
        sent,
        accepted,
        images,
    )
    assert type(ended) is (error or type(None))
    assert text in str(ended)


def resume_after(fault: str, emulator: Emulator) -> None:
    """Submit, lose the worker, and resume a minute later with a fault of the polls."""
    store = TaskStateStore()
    die(submitter(), store)
    store.change(submitted_at=time.time() - 60)
    emulator.fail(fault)
    submitter().execute(store.attempt())


@pytest.mark.parametrize(
    "fault", ["unlucky", "bad-request", "forbidden", "not-found", "not-found-400", "409", "413", "421", "503"]
)
def test_one_odd_answer_does_not_pay_for_another_generation(emulator: Emulator, fault: str) -> None:
    resume_after(f"poll:{fault}", emulator)
    assert emulator.accepted == 1


@pytest.mark.parametrize("fault", ["not-found", "not-found-400"])
def test_a_generation_that_stays_unknown_is_replaced(emulator: Emulator, fault: str) -> None:
    resume_after(f"poll:{fault}:*", emulator)
    assert emulator.accepted == 2


def test_a_prompt_that_a_5xx_repeats_is_no_full_queue(emulator: Emulator, tmp_path: Path) -> None:
    emulator.fail("submit:echo")
    ended = attempts(tmp_path, on_lost_response="fail", prompt="Queue is full, the server is busy")
    assert type(ended) is SubmissionUnresolvedError
    assert len(submissions(emulator)) == 1


@pytest.mark.parametrize("fault", ["submit:lost", "submit:504", "submit:no-id", "submit:html"])
def test_no_second_submission_if_an_unconfirmed_one_fails(
    emulator: Emulator, tmp_path: Path, fault: str
) -> None:
    emulator.fail(fault)
    ended = attempts(tmp_path, on_lost_response="fail")
    assert type(ended) is SubmissionUnresolvedError
    assert len(submissions(emulator)) == 1


def attempts(folder: Path, **arguments: Any) -> ModelScopeError | None:
    """Run a task until it succeeds, fails for good or has no retries left; return its last error."""
    store = TaskStateStore()
    for _ in range(ATTEMPTS):
        try:
            one_step(folder, deferrable=False, **arguments).execute(store.attempt())
        except ModelScopeError as error:
            last = error
            if isinstance(error, ModelScopeFinalError):
                break
        else:
            return None
    return last
