"""Faults: their syntax, their order and their number."""

from __future__ import annotations

import re

import pytest

from airflow_provider_modelscope.emulator.faults import Fault, Faults


def test_faults_happen_in_order_and_as_often_as_given() -> None:
    faults = Faults(["submit:429:2", "poll:500", "submit:quota"])
    assert [faults.take("submit") for _ in range(4)] == ["429", "429", "quota", ""]
    assert [faults.take("poll"), faults.take("poll"), faults.take("image")] == ["500", "", ""]


@pytest.mark.parametrize("always", ["*", "always"])
def test_a_fault_can_stay_active(always: str) -> None:
    faults = Faults([f"image:404:{always}"])
    assert {faults.take("image") for _ in range(99)} == {"404"}


@pytest.mark.parametrize(
    ("fault", "allowed"),
    [
        ("", "submit, poll, image"),
        ("upload:500", "submit, poll, image"),
        ("submit", "400 to 599"),
        ("submit:200", "at submit: an HTTP status from 400 to 599"),
        ("submit:0429", "400 to 599"),
        ("submit:truncated", "queue-full, image-queue-full"),
        ("poll:lost", "failed, rejected"),
        ("image:stall", "truncated, garbage"),
        ("submit:429:", "from 1"),
        ("submit:429:0", "from 1"),
        ("submit:429:-1", "from 1"),
        ("submit:429:2:3", "from 1"),
        ("submit:429:often", "always"),
    ],
)
def test_the_error_for_a_fault_names_it_and_what_is_allowed(fault: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the fault {fault!r}. Allowed")) as error:
        Fault.parse(fault)
    assert allowed in str(error.value)
