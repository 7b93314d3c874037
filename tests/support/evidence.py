"""Prints the figures of a suite at its end. With ``EVIDENCE=1``, it writes them for the page of evidence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dev.evidence import TABLES

if TYPE_CHECKING:
    import pytest

    from dev.figures import Bench


def report(bench: Bench, reporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Print the figures. Write them if asked for, and if all tests of the suite ran and passed."""
    if bench.result["figures"] or bench.result["targets"]:
        reporter.write_line(TABLES[bench.name](bench.result))
    if not os.environ.get("EVIDENCE"):
        return
    is_whole = all(Path(arg).is_dir() for arg in reporter.config.args) and "deselected" not in reporter.stats
    if is_whole and exitstatus == 0:
        bench.write()
    else:
        reporter.write_line("No figures written: all tests of the suite have to run, and to pass.")
