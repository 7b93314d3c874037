"""Tutorial, how-to, security and runbook: their code runs, their lists and limits are true."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from airflow_provider_modelscope import __version__, exceptions, metrics
from airflow_provider_modelscope.compat import AirflowFailException
from airflow_provider_modelscope.gallery.files import MAX_BYTES
from airflow_provider_modelscope.images.sources import MAX_SOURCE_BYTES
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.transport.download import MAX_REDIRECTS
from tests.support.forms import HAS_FORMS, NO_FORMS, STANDARD
from tests.unit.contract.test_docs import DAG_BLOCKS, ERRORS, PAGES, PROJECT, names_in, parameters_of, section
from tests.unit.contract.test_monitoring import DASHBOARD, RULES

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

OTHER_BLOCKS = [  # test_docs.py tests those of Python
    pytest.param(language, code, id=f"{page}-{number}")
    for page, text in sorted(PAGES.items())
    for number, (language, code) in enumerate(
        re.findall(r"^ *```(bash|console|dockerfile|yaml)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    )
]
RUNBOOK = "docs/operate/runbook.md"
CAUSES = {"Account": "account", "Storage": "storage", "Service": "service", "Input": "input"}
# These are raised themselves, not only the classes below them.
ALONE: set[type[exceptions.ModelScopeError]] = {
    exceptions.ModelScopeFinalError,
    exceptions.ModelScopeRetryableError,
}
MEBI = 1024**2
RUNBOOK_PAGE = f"{PROJECT['urls']['Documentation']}/operate/runbook.html"


def dags_of(page: str) -> list[str]:
    """Return the blocks of a page that are a Dag file."""
    return [str(block.values[0]) for block in DAG_BLOCKS if str(block.id).startswith(f"{page}-")]


def entries(text: str) -> dict[str, str]:
    """Return what stands below each heading of the third level, by heading."""
    parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# Code


@pytest.mark.parametrize(("language", "code"), OTHER_BLOCKS)
def test_every_block_of_code_can_be_parsed(language: str, code: str) -> None:
    if language == "yaml":
        assert isinstance(yaml.safe_load(code), dict)
        return
    for line in filter(str.strip, code.splitlines()):
        words = shlex.split(line, comments=True)
        assert language != "dockerfile" or words[0] in ("FROM", "COPY", "RUN")


def test_mapped_tasks_and_the_batch_have_ten_lines_each() -> None:
    shown = dags_of("docs/how-to/many-prompts.md")
    assert len(shown) == 2
    for code in shown:
        body = code.partition("@dag(schedule=None)\n")[2].rpartition("\n\n\n")[0]
        assert 0 < len(body.splitlines()) <= 10


@pytest.mark.parametrize("page", ["docs/tutorial/content-pipeline.md", "docs/how-to/approve.md"])
def test_pages_with_a_form_say_what_it_needs(page: str) -> None:
    assert "response_timeout" in PAGES[page]
    assert f"`apache-airflow-providers-standard` {STANDARD}" in " ".join(PAGES[page].split())


@pytest.mark.skipif(not HAS_FORMS, reason=NO_FORMS)
def test_the_pipeline_publishes_what_a_person_chooses(
    emulator: Emulator, context: dict[str, Any], tmp_path: Path
) -> None:
    [code] = dags_of("docs/tutorial/content-pipeline.md")
    dag = names_in(code)["content_pipeline"]()
    values: Any = {
        "dag": dag,
        "run_id": "a_run",
        "dag_run": SimpleNamespace(run_after=datetime(2026, 11, 29, 6, tzinfo=UTC)),
        "params": {"folder": f"{tmp_path.as_uri()}/"},
    }
    drawn = []
    for prompt in dag.get_task("write_prompts").python_callable(values["dag_run"]):
        ti = type(context["ti"])()
        draw = dag.get_task("draw").unmap({"prompt": prompt})
        draw.render_template_fields({**values, "ti": ti})
        draw.execute({**values, "ti": ti})
        drawn.append(ti.pushed["images"])
    assert emulator.accepted == len(drawn) == 3

    choose = dag.get_task("choose")
    choose.render_template_fields(values)
    shown = re.findall(r"!\[(\w+)\]\((\S+)\)", choose.body)
    assert [place for place, _ in shown] == choose.options[:-1]
    for index, (_, path) in enumerate(shown):
        assert re.match(r"modelscope/content_pipeline/image\?.*task_id=draw&", path)
        assert f"map_index={index}&" in path

    publish = dag.get_task("publish").python_callable
    nothing = publish(drawn, {"chosen_options": choose.defaults}, values["dag_run"], values["params"])
    folder = tmp_path / "2026-11-29" / "published"
    assert nothing == []
    assert not folder.exists()
    for _ in range(2):  # a retry writes the same again
        uris = publish(drawn, {"chosen_options": ["harbour", "city"]}, values["dag_run"], values["params"])
    feed = json.loads((folder / "feed.json").read_text())
    assert [entry["uri"] for entry in feed] == uris
    assert [entry["alt"] for entry in feed] == [drawn[n][0]["parameters"]["prompt"] for n in (0, 2)]
    published = sorted(file.name for file in folder.iterdir())
    assert published == ["city.png", "feed.json", "harbour.png"]
    assert (folder / "city.png").read_bytes() in emulator.served.values()


# Platforms


def test_every_requirement_names_this_version_and_an_extra() -> None:
    page = PAGES["docs/how-to/platforms.md"]
    found = re.findall(r"airflow-provider-modelscope\[[^\]]+\](?: @ [^\s\"]+|==[^\s\"]+)", page)
    assert len(found) >= 5
    for line in map(Requirement, found):
        assert line.extras <= set(PROJECT["optional-dependencies"])
        assert line.extras
        assert __version__ in (line.url or str(line.specifier))
    for wheel in re.findall(r"[\w.-]+\.whl", page):
        assert wheel == f"airflow_provider_modelscope-{__version__}-py3-none-any.whl"


# The runbook


def test_the_runbook_has_an_entry_for_each_error_by_cause() -> None:
    for heading, cause in CAUSES.items():
        expected = {error.__name__ for error in ERRORS | ALONE if metrics.cause_of(error("")) == cause}
        assert set(entries(section(RUNBOOK, heading))) == expected


@pytest.mark.parametrize("error", sorted(ERRORS | ALONE, key=str))
def test_an_entry_says_what_to_do_and_what_it_costs(error: type[exceptions.ModelScopeError]) -> None:
    entry = entries(PAGES[RUNBOOK])[error.__name__]
    is_final = issubclass(error, AirflowFailException)
    assert entry.strip().startswith("Not retried. " if is_final else "Retried. ")
    assert re.findall(r"^- \*\*(\w+)\*\*: ", entry, re.MULTILINE) == ["Symptom", "Now", "Costs", "Escalate"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_its_entry(rule: dict[str, Any]) -> None:
    entry = entries(section(RUNBOOK, "Alerts"))[rule["alert"]]
    severity = rule["labels"]["severity"]
    assert entry.strip().lower().startswith(severity)
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == RUNBOOK_PAGE
    assert anchor == rule["alert"].lower()  # that of the heading of its entry


def test_the_dashboard_links_to_the_runbook() -> None:
    assert [link["url"] for link in DASHBOARD["links"]] == [RUNBOOK_PAGE]


def test_the_runbook_has_no_entry_for_an_alert_that_is_gone() -> None:
    assert set(entries(section(RUNBOOK, "Alerts"))) == {rule["alert"] for rule in RULES}


# Figures


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("docs/concepts/security.md", f"at most {MAX_REDIRECTS} redirects"),
        ("docs/concepts/security.md", f"{Account(token='').max_image_bytes // MEBI} MiB by default"),
        ("docs/concepts/security.md", f"at most {MAX_SOURCE_BYTES // MEBI} MiB is sent"),
        ("docs/concepts/security.md", f"are served, at most {MAX_BYTES // MEBI} MiB"),
        ("docs/how-to/edit-images.md", f"at most {MAX_SOURCE_BYTES // MEBI} MiB large"),
        (
            "docs/how-to/many-prompts.md",
            f"{parameters_of(ModelScopeImageBatchOperator)['max_requests'].default}, `max_requests`",
        ),
    ],
)
def test_a_limit_in_the_text_is_that_of_the_code(page: str, text: str) -> None:
    assert text in " ".join(PAGES[page].split())
