"""The page of evidence shows what the benches and suites wrote. A suite writes only what it should."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dev.evidence import read_results, render
from tests.faults.rows import ROWS
from tests.unit.contract.test_docs import PAGES, ROOT, section

pytest_plugins = ["pytester"]

EVIDENCE = "docs/evidence.md"
SUITE = """
from pathlib import Path
from dev import figures
from tests.support.evidence import report

figures.FOLDER = Path("written")
FIGURES = figures.Bench("cluster", "make test-cluster")

def pytest_terminal_summary(terminalreporter, exitstatus):
    report(FIGURES, terminalreporter, exitstatus)
"""
TESTS = """
from conftest import FIGURES

def test_that_measures():
    FIGURES.add("images stored", "60 of 60")

def test_that_may_fail():
    assert {passes}
"""


def shown_as(name: str, **result: Any) -> str:
    """Return what the page shows of a result."""
    block = f"<!-- figures: {name} -->\n<!-- end -->\n"
    other = {"command": "make it", "date": "2026-11-05", "cores": 2, "figures": {}, "targets": []}
    return render(block, {name: other | result})


def target(**more: Any) -> dict[str, Any]:
    return {"what": "CPU", "value": 1.52, "limit": "at most", "target": 1.3, "is_met": False} | more


# The page


def test_the_page_shows_what_was_written() -> None:
    results = read_results()
    assert results
    assert render(PAGES[EVIDENCE], results) == PAGES[EVIDENCE]


def test_the_page_has_a_block_for_each_file() -> None:
    assert read_results().keys() <= set(re.findall("<!-- figures: (.*) -->", PAGES[EVIDENCE]))


def test_a_missed_target_is_on_the_page() -> None:
    targets = [target(), target(what="memory", is_met=True)]
    shown = render(PAGES[EVIDENCE], {"other": {"command": "make bench", "targets": targets}})
    assert "| CPU | 1.52 | at most 1.3 | `make bench` |" in shown
    assert "memory |" not in shown


def test_the_page_says_so_if_no_target_is_missed() -> None:
    assert "-->\nNone.\n<!--" in shown_as("misses", targets=[target(is_met=True)])


def test_a_table_has_its_command_and_date() -> None:
    assert "`make it`, 5 November 2026, 2 cores.\n\n|" in shown_as("cluster")


def test_each_fault_is_a_row() -> None:
    shown = shown_as("faults", figures={"worker killed": {"expected": "1 image", "result": "2 images"}})
    assert "<summary>1 faults" in shown
    assert "| worker killed | 1 image | 2 images |" in shown


def test_each_figure_of_the_cluster_is_a_row() -> None:
    figures = {"images stored": "60 of 60", "retried tasks": 2}
    assert "| images stored | 60 of 60 |\n| retried tasks | 2 |" in shown_as("cluster", figures=figures)


def test_each_target_of_the_gallery_is_a_row() -> None:
    shown = shown_as("gallery", targets=[target(what="200 images: seconds", value=0.3412, target=1)])
    assert "| 200 images: seconds | 0.341 | at most 1 |" in shown


def test_the_faults_on_the_page_are_those_of_the_suite() -> None:
    written = {fault: one["expected"] for fault, one in read_results()["faults"]["figures"].items()}
    assert written == {row.fault: str(row.expected) for row in ROWS}


def test_the_versions_on_the_page_are_the_tested_ones() -> None:
    shown = re.sub(r"\d+ \w+ 20\d\d", "", section(EVIDENCE, "Versions").strip().partition("\n\n")[0])
    figures = re.compile(r"\d[\d.,]*\d|\d")
    assert figures.findall(shown)
    assert set(figures.findall(shown)) <= set(figures.findall(PAGES["docs/reference/compatibility.md"]))


# The suites


@pytest.mark.parametrize(
    ("asked", "passes", "arguments", "written"),
    [
        ("1", True, ["suite"], True),
        ("", True, ["suite"], False),
        ("1", False, ["suite"], False),
        ("1", True, ["suite", "-k", "measures"], False),
        ("1", True, ["suite/test_it.py"], False),
    ],
    ids=["asked", "not asked", "failed", "a part", "a file"],
)
def test_a_suite_writes_its_figures_only_if_asked_and_all_passed(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    passes: bool,
    arguments: list[str],
    written: bool,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EVIDENCE", asked)
    suite = pytester.mkdir("suite")
    (suite / "conftest.py").write_text(SUITE)
    (suite / "test_it.py").write_text(TESTS.format(passes=passes))
    result = pytester.runpytest_subprocess(*arguments)
    result.stdout.fnmatch_lines(["| images stored | 60 of 60 |"])
    files = list(pytester.path.glob("written/*"))
    assert [file.name for file in files] == (["cluster.json"] if written else [])
    for file in files:
        assert json.loads(file.read_text())["figures"] == {"images stored": "60 of 60"}
