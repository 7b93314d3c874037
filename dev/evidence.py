"""``make evidence``: puts the figures that the benches and suites wrote on the page of evidence.

Each table stands between two comments. One that has no file yet stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from operator import itemgetter
from typing import Any

from dev.figures import FOLDER

PAGE = FOLDER.parent / "evidence.md"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)

Results = Mapping[str, Mapping[str, Any]]


def render(page: str, results: Results) -> str:
    """Return a page with the figures of these results.

    :param results: What the benches and suites wrote, by the names of their files.
    """

    def fill(block: re.Match[str]) -> str:
        start, name, end = block.groups()
        if name == "misses":
            return f"{start}{_misses(results)}{end}"
        if name not in results:
            return block[0]
        return f"{start}{_origin(results[name])}{TABLES[name](results[name])}{end}"

    return BLOCK.sub(fill, page)


def _origin(result: Mapping[str, Any]) -> str:
    day = date.fromisoformat(result["date"])
    return f"`{result['command']}`, {day.day} {day:%B %Y}, {result['cores']} cores.\n\n"


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def _misses(results: Results) -> str:
    rows = [
        (*_target(one), f"`{result['command']}`")
        for result in results.values()
        for one in result["targets"]
        if not one["is_met"]
    ]
    return _table(("what", "result", "target", "command"), rows) if rows else "None.\n"


def _target(one: Mapping[str, Any]) -> tuple[str, str, str]:
    return one["what"], f"{one['value']:.3g}", f"{one['limit']} {one['target']:.3g}"


def _waiting(result: Mapping[str, Any]) -> str:
    rows = [
        (way, f"{one['cpu']:.3g}", f"{one['lag_ms']:.0f} ms", f"{one['connections']:.0f}")
        for way, one in result["figures"].items()
    ]
    header = ("way to wait", "CPU, of a bare loop's", "longest delay of the event loop", "connections")
    return _table(header, rows)


def _intervals(result: Mapping[str, Any]) -> str:
    figures = {name.split(",")[0].strip(): one for name, one in result["figures"].items() if "polls" in name}
    rows = [
        (title, *(f"{one[key]:.2f}" for one in figures.values()))
        for title, key in (("polls", "polls"), ("time until the end is found", "late"))
    ]
    names = ["a third of each" if name == "mixed" else name for name in figures]
    return _table(("generations of about", *names), rows)


def _slots(result: Mapping[str, Any]) -> str:
    def busy(case: str, triggerers: int) -> str:
        return f"{result['figures'][f'{case}, {triggerers} triggerer(s)']['busy']:.0%}".replace("%", " %")

    starts = {"2 to 5 s": "", **{start: f", workers start in {start}" for start in ("15 s", "40 s", "90 s")}}
    rows = [
        (start, busy(f"10 s{case}", 1), busy(f"10 s{case}", 2), busy(f"30 s{case}", 1))
        for start, case in starts.items()
    ]
    images = ("images of 10 s, one triggerer", "two triggerers", "images of 30 s, one triggerer")
    return _table(("workers start in", *images), rows)


def _batch(result: Mapping[str, Any]) -> str:
    ways = {
        "batch": "batch",
        "mapped": "mapped tasks",
        "sample": "a loop as in ModelScope's sample",
        "bare": "the least possible",
    }
    rows = [
        (f"{one['images']} of {load}", ways[way], f"{100 * one['busy']:.1f} %", f"{one['cpu']:.3f} s",
         f"{one['refused']:.2f}")
        for load, way, one in sorted(
            ((*name.split(", "), one) for name, one in result["figures"].items() if "busy" in one),
            key=itemgetter(0),
        )
    ]  # fmt: skip
    memory = [
        f"A batch of {name} needs {one['memory_mb']:.0f} MB of memory."
        for name, one in result["figures"].items()
        if "memory_mb" in one
    ]
    header = ("images", "way", "account busy", "CPU for each image", "refused submissions for each image")
    return f"{_table(header, rows)}\n{' '.join(memory)}\n"


def _storing(result: Mapping[str, Any]) -> str:
    rows = [
        (name, *("" if one[way] is None else f"{one[way]:.2f}" for way in ("plain", "embedding")))
        for name, one in result["figures"].items()
    ]
    header = ("store, image", "CPU, of the least possible", "with `embed_metadata`, of that without")
    return _table(header, rows)


def _faults(result: Mapping[str, Any]) -> str:
    figures = result["figures"]
    rows = [(fault, one["expected"], one["result"]) for fault, one in figures.items()]
    header = ("Fault", "Expected", "Result, images compared byte by byte")
    summary = f"{len(figures)} faults: what was expected, and what happened"
    return f"<details>\n<summary>{summary}</summary>\n\n{_table(header, rows)}\n</details>\n"


def _cluster(result: Mapping[str, Any]) -> str:
    return _table(("what", "result"), result["figures"].items())


def _gallery(result: Mapping[str, Any]) -> str:
    return _table(("what", "result", "limit"), map(_target, result["targets"]))


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "waiting": _waiting,
    "intervals": _intervals,
    "slots": _slots,
    "batch": _batch,
    "storing": _storing,
    "faults": _faults,
    "cluster": _cluster,
    "gallery": _gallery,
}


def read_results() -> Results:
    """Return what the benches and suites wrote last."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(), read_results()))
    sys.exit()
