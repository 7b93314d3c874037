"""The pytest fixture ``modelscope_emulator``, for tests of Dags. pytest finds it by an entry point.

pytest imports this module in every run where the package is installed, so it imports nothing but pytest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_modelscope.emulator import Emulator


@pytest.fixture
def modelscope_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Run the emulator of ModelScope for one test, as the connection ``modelscope_default``.

    Generations finish at once. Inject faults with ``fail``, and inspect ``accepted`` and ``requests``.
    """
    from airflow_provider_modelscope.emulator import Emulator

    with Emulator() as emulator:
        connection = {"conn_type": "modelscope", "password": "any-token", "host": emulator.base_url}
        monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(connection))
        yield emulator
