"""The fixture ``modelscope_emulator``, in runs of pytest outside of this repository."""

from __future__ import annotations

import pytest

from tests.support.entry_point import NAME, path_with_entry_point

pytest_plugins = ["pytester"]

# pytest warns if our package was imported before pytest could rewrite its assertions. Others may warn.
STRICT = ("-W", "error::pytest.PytestAssertRewriteWarning")
CONNECTED = """
import json, os, urllib.request

def connection():
    return json.loads(os.environ["AIRFLOW_CONN_MODELSCOPE_DEFAULT"])

def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as response:
        return response.status
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project that has the package installed, with the entry point of the sources."""
    monkeypatch.setenv("PYTHONPATH", path_with_entry_point(pytester.mkdir("site")))
    pytester.makepyfile(connected=CONNECTED)
    return pytester


def test_the_fixture_connects_a_test_with_an_emulator(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        from connected import connection, get

        def test_it(modelscope_emulator):
            assert connection()["host"] == modelscope_emulator.base_url
            assert connection()["conn_type"] == "modelscope"
            assert get(f"{modelscope_emulator.base_url}/v1/models") == 200
            assert [one.path for one in modelscope_emulator.requests] == ["/v1/models"]
        """
    )
    project.runpytest_subprocess(*STRICT).assert_outcomes(passed=1)


def test_the_emulator_stops_when_its_test_has_failed(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os
        import threading
        import pytest
        from connected import get

        urls = []

        def test_that_fails(modelscope_emulator):
            urls.append(modelscope_emulator.base_url)
            raise ValueError("as expected")

        def test_nothing_is_left():
            assert "AIRFLOW_CONN_MODELSCOPE_DEFAULT" not in os.environ
            assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
            with pytest.raises(OSError, match="refused"):
                get(urls[0])
        """
    )
    result = project.runpytest_subprocess(*STRICT)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("*ValueError: as expected")


def test_each_test_has_an_emulator_of_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from connected import get

        @pytest.mark.parametrize("number", range(4))
        def test_it(modelscope_emulator, number):
            get(f"{modelscope_emulator.base_url}/v1/models")
            assert len(modelscope_emulator.requests) == 1
        """
    )
    project.runpytest_subprocess("-n", "2").assert_outcomes(passed=4)


def test_a_run_without_the_fixture_imports_only_its_module(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import sys

        def test_it():
            ours = {name for name in sys.modules if name.startswith("airflow_provider_modelscope")}
            assert ours == {"airflow_provider_modelscope", "airflow_provider_modelscope.pytest_plugin"}
            assert not {"aiohttp", "airflow", "PIL"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess(*STRICT).assert_outcomes(passed=1)


def test_the_fixture_can_be_switched_off(project: pytest.Pytester) -> None:
    project.makepyfile("def test_it(modelscope_emulator): pass")
    project.runpytest_subprocess("-p", f"no:{NAME}").assert_outcomes(errors=1)
