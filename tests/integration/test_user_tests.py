"""The page "Test your Dag": its files pass their tests, and each fault does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_modelscope.compat import AIRFLOW_VERSION
from tests.support.entry_point import path_with_entry_point

if TYPE_CHECKING:
    import pytest

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "test-your-dag.md").read_text()
FILES = dict(re.findall(r"`([\w/]+\.(?:py|ini))`[^`]*```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
# Each fault of the table: the state of the task, its attempts, and the generations that were created.
RESULTS = {
    "poll:failed": ("success", 2, 2),
    "submit:moderated": ("failed", 1, 0),
    "submit:no-credit": ("failed", 1, 0),
    "submit:queue-full": ("success", 1, 1),
    "submit:lost": ("success", 2, 2),
    "image:garbage:2": ("success", 2, 1 if AIRFLOW_VERSION >= (3, 3) else 2),
}
FAULTS = f"""
from datetime import timedelta

import pytest
from postcard import postcard

@pytest.mark.parametrize(("fault", "expected"), {list(RESULTS.items())})
def test_fault(modelscope_emulator, tmp_path, fault, expected):
    modelscope_emulator.fail(fault)
    dag = postcard()
    dag.get_task("draw").retry_delay = timedelta(0)
    run = dag.test(run_conf={{"destination": f"{{tmp_path.as_uri()}}/"}})
    [task] = run.get_task_instances()
    assert (task.state, task.try_number, modelscope_emulator.accepted) == expected
"""


def test_a_project_as_on_the_page_passes_its_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", path_with_entry_point(pytester.mkdir("site")))
    for name, content in {**FILES, "tests/test_faults.py": FAULTS}.items():
        file = pytester.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    pytester.runpytest_subprocess("-n", "2").assert_outcomes(passed=4 + len(RESULTS))


def test_the_results_are_those_of_the_faults_on_the_page() -> None:
    assert re.findall(r"^\| `(\w+:[\w:-]+)` \|", PAGE, re.MULTILINE) == list(RESULTS)
