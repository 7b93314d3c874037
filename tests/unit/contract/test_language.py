"""Plain English: words that this project does not use, because its readers would not search for them.

Each has a plain word instead: *poll*, *queue*, *slot*, *response*, *error*, *image*, *store*, *contains*.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATHS = [
    "airflow_provider_modelscope", "dev", "docs", "example_dags", "tests", "*.md", ".github", "Makefile",
    "noxfile.py", "pyproject.toml",
]  # fmt: skip
WORDS = (
    r"mistakes?|pictures?|whoever|be had|that very|taken up|takes? up|told|tells? (of|what|which|how)|"
    r"land(s|ed|ing)?|looks? (at|for|again)|had (its|their) turn|picture_\w+"
)
# HTML's element of that name, a command, and a verdict of the check.
NOT_ENGLISH = re.compile("</?picture>|bench-landing|not told")


def lines() -> list[tuple[str, str]]:
    """Return the lines of the project's text files, each with its place."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *PATHS],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.splitlines() if not name.endswith((".png", ".txt"))]
    files = [ROOT / name for name in names if Path(name).name != Path(__file__).name]
    return [
        (f"{file.relative_to(ROOT)}:{number}", line)
        for file in files
        if file.exists()
        for number, line in enumerate(file.read_text().splitlines(), start=1)
    ]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="lists the files with git")
def test_no_text_uses_the_private_words() -> None:
    found = [
        f"{place}: {match[0]}"
        for place, line in lines()
        if (match := re.search(rf"\b({WORDS})\b", NOT_ENGLISH.sub("", line), re.IGNORECASE))
    ]
    assert found == []


@pytest.mark.parametrize("text", ["One mistake", "a picture", "It is told of", "Whoever has a turn"])
def test_a_private_word_is_found(text: str) -> None:
    assert re.search(rf"\b({WORDS})\b", text, re.IGNORECASE)
