"""``max_credit``: what all attempts of a task instance may spend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import (
    CreditLimitError,
    GenerationFailedError,
    GenerationRejectedError,
    ImageGoneError,
    InvalidRequestError,
    PriceUnknownError,
    SubmissionLostError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.tasks import submission_record
from tests.unit.builders import one_step, rendered, submitter
from tests.unit.tasks.conftest import RealTaskInstance, Store

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")

CHEAP = "Tongyi-MAI/Z-Image-Turbo"  # costs 0.2; the model of the builders costs 1


def submit(store: Store, seed: int, *, max_tries: int = 3, **arguments: Any) -> str:
    """Submit one of several generations of a task instance."""
    task = submitter(seed=seed, size="512x512", **arguments)
    return str(task.execute(store.attempt(RealTaskInstance(max_tries))))


@pytest.mark.parametrize(("model", "most", "count"), [(CHEAP, 0.6, 3), (CHEAP, "0.59", 2), ("a/b", 2, 2)])
def test_a_task_spends_no_more_over_all_attempts(
    emulator: Emulator,
    store: Store,
    model: str,
    most: Any,
    count: int,
) -> None:
    for _attempt in range(4):
        for seed in range(count):
            submit(store, seed, model=model, max_credit=most)
        with pytest.raises(CreditLimitError, match=r"max_credit = .*has spent .*costs.*Nothing was sent"):
            submit(store, count, model=model, max_credit=most)
        assert emulator.accepted == count
    submit(store, count, model=model, max_credit=5)
    assert emulator.accepted == count + 1


def test_a_limit_of_0_sends_nothing(emulator: Emulator, store: Store) -> None:
    with pytest.raises(CreditLimitError, match="has spent 0, and one more generation costs 1"):
        submit(store, 1, max_credit=0)
    assert emulator.accepted == 0
    assert store.text is None


def test_a_generation_that_failed_was_refunded(emulator: Emulator, store: Store, tmp_path: Path) -> None:
    for _ in range(3):
        emulator.fail("poll:failed")
        with pytest.raises(GenerationFailedError):
            one_step(tmp_path, max_credit=1).execute(store.attempt())
    assert one_step(tmp_path, max_credit=1).execute(store.attempt())
    assert emulator.accepted == 4


@pytest.mark.parametrize("fault", ["moderated", "filtered", "moderated-40301"])
def test_a_prompt_that_was_rejected_was_not_refunded(
    emulator: Emulator,
    store: Store,
    tmp_path: Path,
    fault: str,
) -> None:
    emulator.fail(f"poll:{fault}")
    with pytest.raises(GenerationRejectedError):
        one_step(tmp_path, max_credit=1).execute(store.attempt())
    with pytest.raises(CreditLimitError):
        one_step(tmp_path, max_credit=1).execute(store.attempt())
    assert emulator.accepted == 1


def test_a_replacement_counts_with_what_it_replaces(
    emulator: Emulator,
    store: Store,
    tmp_path: Path,
) -> None:
    emulator.fail("image:404:4")
    with pytest.raises(ImageGoneError):
        one_step(tmp_path, max_credit=1.5).execute(store.attempt())
    with pytest.raises(CreditLimitError, match="has spent 1, and"):
        one_step(tmp_path, max_credit=1.5).execute(store.attempt())
    for _ in range(2):
        with pytest.raises(CreditLimitError, match="has spent 1, and"):
            one_step(tmp_path, max_credit=1.5).execute(store.attempt())
    assert emulator.accepted == 1
    assert one_step(tmp_path, max_credit=2).execute(store.attempt())
    assert emulator.accepted == 2


@pytest.mark.parametrize("fault", ["lost", "no-id", "504"])
def test_a_submission_without_response_counts(emulator: Emulator, store: Store, fault: str) -> None:
    for _ in range(2):
        emulator.fail(f"submit:{fault}")
        with pytest.raises(SubmissionLostError):
            submit(store, 1, max_credit=2)
    with pytest.raises(CreditLimitError, match="has spent 2"):
        submit(store, 1, max_credit=2)
    submit(store, 1, max_credit=3)
    with pytest.raises(CreditLimitError, match="has spent 3"):
        submit(store, 2, max_credit=3)


def test_an_unresolved_submission_counts_after_a_clear(emulator: Emulator, store: Store) -> None:
    arguments: dict[str, Any] = {"max_credit": 1, "on_lost_response": "fail"}
    emulator.fail("submit:lost")
    with pytest.raises(SubmissionUnresolvedError):
        submit(store, 1, **arguments)
    with pytest.raises(CreditLimitError, match="has spent 1"):
        submit(store, 1, max_tries=7, **arguments)
    assert emulator.accepted == 1


@pytest.mark.parametrize("fault", ["quota", "401", "moderated", "unknown-model"])
def test_a_submission_that_was_refused_costs_nothing(
    emulator: Emulator,
    store: Store,
    fault: str,
) -> None:
    emulator.fail(f"submit:{fault}")
    with pytest.raises(Exception, match=r"ModelScope|quota"):
        submit(store, 1, max_credit=1)
    assert submit(store, 1, max_credit=1)


def test_clear_after_a_success_starts_at_0(emulator: Emulator, store: Store) -> None:
    for max_tries in (3, 7):
        assert submit(store, 1, max_tries=max_tries, max_credit=1)
    assert emulator.accepted == 2


def test_a_full_record_keeps_the_sum(
    emulator: Emulator,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission_record, "MAX_ENTRIES", 2)
    for seed in range(4):
        submit(store, seed, max_credit=4)
    with pytest.raises(CreditLimitError, match="has spent 4"):
        submit(store, 5, max_credit=4)
    assert emulator.accepted == 4


def test_without_a_record_nothing_is_sent(emulator: Emulator, store: Store) -> None:
    with pytest.raises(InvalidRequestError, match=r"durable=True.*\[modelscope\] submission_records"):
        submitter(max_credit=9, durable=False).execute(store.attempt())
    assert emulator.accepted == 0


def test_a_fallback_with_a_price_replaces_a_model_without(emulator: Emulator, store: Store) -> None:
    arguments: dict[str, Any] = {"fallback_models": [CHEAP], "max_credit": 0.5}
    for seed in (1, 2):
        assert submit(store, seed, model="nobody/no-such-model", **arguments)
    with pytest.raises(CreditLimitError, match=r"has spent 0\.4, and one more generation costs 0\.2"):
        submit(store, 3, model="nobody/no-such-model", **arguments)
    assert emulator.accepted == 2


def test_an_unknown_price_is_an_error(store: Store, emulator: Emulator) -> None:
    with pytest.raises(PriceUnknownError, match="does not say what a generation of nobody/no-such-model"):
        submit(store, 1, model="nobody/no-such-model", max_credit=9)
    assert [request.method for request in emulator.requests].count("POST") == 0


@pytest.mark.parametrize(
    "value", [-1, "-0.1", "much", "", True, [], {}, float("nan"), "inf", "1e999", "{{ x }}"]
)
def test_a_limit_that_is_no_number_is_an_error(value: Any, store: Store, emulator: Emulator) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_credit = .*must be a number from 0"):
        rendered(submitter(), max_credit=value).execute(store.attempt())
    assert emulator.accepted == 0
