"""A translated page of the site says all that its English page says now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("sphinx", reason="a cell has no sphinx")
from babel.messages.pofile import read_po

if TYPE_CHECKING:
    from babel.messages.catalog import Catalog

DOCS = Path(__file__).parents[3] / "docs"
TRANSLATED = sorted((DOCS / "locale").glob("*/LC_MESSAGES/**/*.po"))
CHINESE = [*sorted((DOCS / "locale" / "zh_CN").rglob("*.po")), DOCS.parent / "README_zh-CN.md"]
# Other names of one thing, with the name that these texts use: as on modelscope.cn, and in Airflow's UI.
OTHER_NAMES = {
    "付费": "扣魔粒", "扣费": "扣魔粒", "生成任务": "生图任务", "次生成": "生图任务", "图像生成": "生图",
    "Dag 运行": "Dag 执行", "这次运行": "这次执行", "审批": "审核", "遮盖": "遮蔽",
    "任务状态存储": "任务存储",
}  # fmt: skip
SPACE_AT_PUNCTUATION = re.compile(r"[，。；：、！？] [\w`*\[]|[\w`*)] [，。；：、！？]")


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract the texts of the English pages, into one file for each page."""
    folder = tmp_path_factory.mktemp("gettext")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "gettext", "-d", str(folder / "doctrees")]
    subprocess.run([*command, str(DOCS), str(folder / "messages")], cwd=DOCS.parent, check=True)
    return folder / "messages"


def catalog(file: Path) -> Catalog:
    """Read the messages of a page."""
    with file.open("rb") as opened:
        return read_po(opened)


def texts(messages: Catalog) -> set[str]:
    """Return the English texts of a page."""
    return {str(message.id) for message in messages if message.id}


@pytest.mark.parametrize("file", TRANSLATED, ids=lambda file: file.relative_to(DOCS / "locale").as_posix())
def test_a_translated_page_has_every_text_of_its_english_page(file: Path, english: Path) -> None:
    page = Path(*file.relative_to(DOCS / "locale").parts[2:])
    expected, translation = texts(catalog((english / page).with_suffix(".pot"))), catalog(file)
    assert expected - texts(translation) == set(), "missing or changed"
    assert texts(translation) - expected == set(), "no longer in the English page"
    assert [one.id for one in translation if one.id and (not one.string or one.fuzzy)] == [], "not translated"


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_the_chinese_texts_have_one_name_for_each_thing(file: Path) -> None:
    text = file.read_text()
    assert {other: name for other, name in OTHER_NAMES.items() if other in text} == {}


@pytest.mark.parametrize("file", CHINESE, ids=lambda file: file.name)
def test_chinese_punctuation_has_no_space_beside_it(file: Path) -> None:
    assert SPACE_AT_PUNCTUATION.findall(file.read_text()) == []
