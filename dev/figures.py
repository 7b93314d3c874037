"""Prints the figures and targets of a bench or suite, and writes a whole run's to ``docs/evidence/``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"


class Bench:
    """The figures of one run.

    :param name: Of its file, without the suffix.
    :param command: How to run it again.
    """

    def __init__(self, name: str, command: str) -> None:
        self.missed = 0
        self.name = name
        self._command = command
        self._figures: dict[str, Any] = {}
        self._targets: list[dict[str, Any]] = []

    def add(self, what: str, figures: Any) -> None:
        """Keep figures that were printed elsewhere."""
        self._figures[what] = figures

    def at_least(self, what: str, value: float, target: float) -> bool:
        """Print a target that a value has to reach, and return whether it does."""
        return self._target(what, value, target, "at least", is_met=value >= target)

    def at_most(self, what: str, value: float, target: float) -> bool:
        """Print a target that a value must not exceed, and return whether it does not."""
        return self._target(what, value, target, "at most", is_met=value <= target)

    def _target(self, what: str, value: float, target: float, limit: str, *, is_met: bool) -> bool:
        self.missed += not is_met
        print(
            f"{what:64} {value:8.3f}   {limit:8} {target:7.3f}   {'met' if is_met else 'MISSED'}", flush=True
        )
        self._targets.append(
            {"what": what, "value": round(value, 4), "limit": limit, "target": target, "is_met": is_met}
        )
        return is_met

    @property
    def result(self) -> dict[str, Any]:
        """What the file contains."""
        return {
            "command": self._command,
            "date": time.strftime("%Y-%m-%d"),
            "cores": os.cpu_count(),
            "figures": self._figures,
            "targets": self._targets,
        }

    def write(self) -> None:
        """Write the file. Call it only for a whole run, with the default arguments."""
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{self.name}.json"
        path.write_text(json.dumps(self.result, indent=1, ensure_ascii=False) + "\n")
        print(f"\nWritten to docs/evidence/{path.name}; make evidence puts it on the page")
