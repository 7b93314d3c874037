"""The events of the triggers: every value survives the database, and no other payload is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import ModelScopeFinalError, QueueFullError
from airflow_provider_modelscope.triggers.events import (
    GenerationFinished,
    SlotFree,
    WaitFailed,
    read_event,
)

FINISHED = GenerationFinished(generation_id="42")
SLOT = SlotFree(queued_at=3.5, end_time=12.25, granted_at=7.0)
ERROR = QueueFullError("full", code=500, request_id="r", generation_id="42", retry_after=2.5)


def stored(event: GenerationFinished | SlotFree | WaitFailed) -> Any:
    return json.loads(json.dumps(event.to_json()))


@pytest.mark.parametrize("event", [FINISHED, SLOT], ids=lambda event: type(event).__name__)
def test_event_survives_the_database(event: Any) -> None:
    assert read_event(stored(event), type(event)) == event


def test_names_in_the_database() -> None:
    assert FINISHED.to_json() == {"status": "finished", "generation_id": "42"}
    assert SLOT.to_json() == {
        "status": "slot_free",
        "queued_at": 3.5,
        "end_time": 12.25,
        "granted_at": 7.0,
    }
    assert WaitFailed(error=ERROR).to_json() == {"status": "error", "error": ERROR.to_json()}


@pytest.mark.parametrize("expected", [GenerationFinished, SlotFree])
def test_error_is_raised_with_all_its_details(expected: Any) -> None:
    with pytest.raises(QueueFullError) as caught:
        read_event(stored(WaitFailed(error=ERROR)), expected)
    assert vars(caught.value) == vars(ERROR)


def test_error_of_an_unknown_kind_is_raised() -> None:
    payload = {"status": "error", "error": {"kind": "NewerError", "message": "from a newer version"}}
    with pytest.raises(Exception, match="from a newer version"):
        read_event(payload, SlotFree)


@pytest.mark.parametrize("expected", [GenerationFinished, SlotFree])
@pytest.mark.parametrize(
    "payload",
    [
        None,
        "finished",
        {},
        {"status": "finished"},
        {"status": "finished", "generation_id": 42},
        {"status": "x", "generation_id": "1"},
        {"generation_id": "1"},
        {"status": "slot_free"},
        {"status": "slot_free", "queued_at": 1.0},
        {"status": "slot_free", "queued_at": 1.0, "end_time": 2.0},
        {"status": "slot_free", "queued_at": 1.0, "end_time": 2.0, "granted_at": "3"},
        {"status": "slot_free", "queued_at": "1", "end_time": "2", "granted_at": 3.0},
        {"status": "x", "queued_at": 1.0, "end_time": 2.0},
        {"status": "error"},
        {"status": "error", "error": "no"},
        {"status": "error", "error": {"message": "no kind"}},
    ],
    ids=str,
)
def test_unexpected_payload_is_a_final_error(payload: Any, expected: Any) -> None:
    with pytest.raises(ModelScopeFinalError, match=r"^Unexpected trigger event"):
        read_event(payload, expected)


@pytest.mark.parametrize(("event", "expected"), [(FINISHED, SlotFree), (SLOT, GenerationFinished)])
def test_event_of_the_other_trigger_is_a_final_error(event: Any, expected: Any) -> None:
    with pytest.raises(ModelScopeFinalError, match=r"^Unexpected trigger event"):
        read_event(stored(event), expected)
