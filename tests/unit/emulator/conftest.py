"""An emulator that finishes each generation immediately."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_modelscope.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator
