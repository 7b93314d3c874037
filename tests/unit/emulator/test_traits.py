"""The traits that the emulator can do without. What each changes is tested where it is checked."""

from __future__ import annotations

import pytest

from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.__main__ import main
from airflow_provider_modelscope.emulator.service import INVALID_TOKEN, Service
from airflow_provider_modelscope.emulator.traits import TRAITS
from tests.unit.emulator.api import accepted_id, get, poll, submit


def test_help_lists_every_trait(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {trait} " in text and effect in text for trait, effect in TRAITS.items())


def test_an_unknown_trait_is_rejected_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"Unknown trait 'magic'\. Allowed: models, user, "):
        Service(without=["seed", "magic"])
    with pytest.raises(SystemExit):
        main(["--without", "magic"])
    assert "Unknown trait 'magic'. Allowed: models, user, " in capsys.readouterr().err


def test_several_traits_can_be_missing() -> None:
    with Emulator(without=["one-at-a-time", "status", "no-quota-headers"], duration=60) as emulator:
        ids = [accepted_id(emulator) for _ in range(3)]
        assert {poll(emulator, one).json()["task_status"] for one in ids} == {"RUNNING"}
        assert get(emulator, "/nothing").headers["modelscope-ratelimit-requests-remaining"] == "1999"


def test_one_token_is_valid_nowhere(emulator: Emulator) -> None:
    headers = {"Authorization": f"Bearer {INVALID_TOKEN}"}
    assert submit(emulator, headers).status_code == 401
    assert get(emulator, "/openapi/v1/users/me", headers).status_code == 401
