"""The Chinese README: the same code as the English one, and what it adds is true as well."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pendulum
import pytest

from airflow_provider_modelscope.compat import BaseHook
from airflow_provider_modelscope.hooks.connection import CONNECTION_FIELDS
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator
from tests.unit.contract.test_docs import parameters_of

ROOT = Path(__file__).parents[3]
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README_zh-CN.md").read_text()
MOVED = [ROOT / "docs" / page for page in ("tutorial/first-image.md", "how-to/many-prompts.md")]
STORES = "\n".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the code blocks with their languages. Comments may be in another language."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(language, re.sub(r" +# .*", "", code)) for language, code in found]


def loaded(code: str) -> Any:
    """Return the Dag that a block defines and calls in its last line."""
    names: dict[str, Any] = {}
    exec(compile(code, "README_zh-CN.md", "exec"), names)  # noqa: S102 - our own page
    return names[code.strip().splitlines()[-1].removesuffix("()")]()


ADDED = [block for block in blocks(CHINESE) if block not in blocks(ENGLISH)]


def test_the_chinese_readme_has_at_most_150_lines() -> None:
    assert len(CHINESE.splitlines()) <= 150


def test_the_first_line_switches_the_language() -> None:
    switch = "[English](README.md) | [中文](README_zh-CN.md)"
    assert ENGLISH.splitlines()[0] == CHINESE.splitlines()[0] == switch


def test_the_code_is_that_of_the_english_readme_in_its_order() -> None:
    assert [block for block in blocks(CHINESE) if block not in ADDED] == blocks(ENGLISH)
    assert [language for language, _ in ADDED] == ["bash", "python"]


def test_both_readmes_name_the_same_versions() -> None:
    versions = [
        re.findall(r"\b\d\.\d+(?:\.\d+)?(?:b\d)?\b", text.split("\n## ")[0]) for text in (ENGLISH, CHINESE)
    ]
    assert versions[0] == versions[1]


def test_the_connection_to_oss_is_the_documented_one_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    [(_, code), _] = ADDED
    assert code.replace("-internal.aliyuncs", ".aliyuncs") in STORES
    [(conn_id, value)] = re.findall(r"export AIRFLOW_CONN_(\w+)='(.*)'", code)
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", value)
    extra = BaseHook.get_connection(conn_id.lower()).extra_dejson
    assert extra["endpoint_url"] == f"https://s3.{extra['region_name']}-internal.aliyuncs.com"


@pytest.mark.parametrize(
    "credentials",
    [
        {"login": "STS.id", "password": "secret", "extra": {"aws_session_token": "token"}},
        {"extra": {"profile_name": "oss"}},
    ],
)
def test_airflow_reads_the_temporary_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, credentials: dict[str, Any]
) -> None:
    s3 = pytest.importorskip("airflow.providers.amazon.aws.hooks.s3", reason="needs the extra s3")
    answer = {"Version": 1, "AccessKeyId": "STS.id", "SecretAccessKey": "secret", "SessionToken": "token"}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    (tmp_path / "config").write_text(f"[profile oss]\ncredential_process = cat {tmp_path / 'answer.json'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AIRFLOW_CONN_MY_OSS", json.dumps({"conn_type": "aws", **credentials}))
    assert tuple(s3.S3Hook("my_oss").get_credentials())[:3] == ("STS.id", "secret", "token")


@pytest.mark.parametrize(
    ("logical_date", "day"),
    [("2026-11-28T23:00:00Z", "2026-11-29"), ("2026-11-29T15:59:59Z", "2026-11-29")],
)
def test_the_folder_of_the_scheduled_dag_is_the_day_in_china(logical_date: str, day: str) -> None:
    dag = loaded(ADDED[1][1])
    template = dag.get_task("draw").partial_kwargs["destination"]
    moment = pendulum.parse(logical_date)
    folder = dag.get_template_env().from_string(template).render(logical_date=moment)
    assert folder == f"s3://my_oss@my-bucket/posters/{day}/"


def test_the_parameters_and_the_site_named_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    named = set(re.findall(r"`(\w+)(?:=[^`]*)?`", CHINESE))
    known = {*parameters_of(ModelScopeImageGenerationOperator), *(field.name for field in CONNECTION_FIELDS)}
    others = {"MODELSCOPE_API_TOKEN", "images", "aws", "s3", "gcs", "azure", "login", "password"}
    others |= {"modelscope", "credential_process", "logical_date"}
    assert named - others <= known
    [host] = re.findall(r"`(https://api-inference[^`]+)`", CHINESE)
    connection = {"conn_type": "modelscope", "password": "ms-0123456789", "host": host}
    monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(connection))
    assert ModelScopeHook().account.base_url == host


def test_no_paragraph_is_broken_into_lines() -> None:
    prose = re.sub(r"^```.*?^```", "", CHINESE, flags=re.DOTALL | re.MULTILINE)
    # A line break would be shown as a space between two Chinese characters.
    assert not re.findall(r"[\u4e00-\u9fff，。：；）]\n[\u4e00-\u9fff`\[*]", prose)


@pytest.mark.skipif(not all(page.exists() for page in MOVED), reason="the pages have not moved yet")
@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", CHINESE))))
def test_each_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()
