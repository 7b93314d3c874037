"""The mapping, the alert rules and the dashboard in ``docs/monitoring`` name what the code sends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml  # type: ignore[import-untyped]

from airflow_provider_modelscope import metrics
from tests.unit.contract.test_docs import ERRORS, section, table, words

FOLDER = Path(__file__).parents[3] / "docs" / "monitoring"
MAPPINGS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "statsd-mapping.yaml").read_text())["mappings"]
[GROUP] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
RULES: list[dict[str, Any]] = GROUP["rules"]
PROMTOOL = shutil.which("promtool")
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

KINDS = {words(row[0])[0]: row[1] for row in table("docs/reference/metrics.md", "All metrics")}
TAGS = {tag for row in table("docs/reference/metrics.md", "Tags") for tag in words(row[0])}
VALUES = {
    "cause": set(get_args(metrics.Cause)),
    "status": {"stored", "rejected", "failed"},
    "reason": {metrics.reason_of(error("")) for error in ERRORS},
}


class Mapped(NamedTuple):
    """What a statsd_exporter makes of a metric."""

    name: str
    labels: dict[str, str]
    rule: dict[str, Any]


def mapped(metric: str) -> Mapped | None:
    """Return what a statsd_exporter makes of a metric, or None if it drops it. The first rule decides."""
    for rule in MAPPINGS:
        pattern = re.escape(rule["match"]).replace(r"\*", "([^.]+)")
        if found := re.fullmatch(pattern, f"airflow.{metric}"):
            if rule.get("action") == "drop":
                return None

            def filled(template: str, parts: tuple[str, ...] = found.groups()) -> str:
                return re.sub(r"\$\{?(\d)\}?", lambda number: parts[int(number[1]) - 1], template)

            labels = {label: filled(value) for label, value in rule.get("labels", {}).items()}
            return Mapped(filled(rule["name"]), labels, rule)
    return None


def expressions() -> Iterator[tuple[str, str]]:
    """Yield the expression of each rule and panel, with its name."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression names, as the code names them."""
    found = set()
    for name in re.findall(r"\bairflow_\w+", expression):
        series = name
        if KINDS.get(metric_of(name.removesuffix("_bucket"))) == "timer":
            series = name.removesuffix("_bucket")
            assert series != name, f"{name} is a histogram: only its buckets are series"
        found.add(metric_of(series))
    return found


def metric_of(name: str) -> str:
    """Return the metric that Prometheus has under a name; the name itself if there is none."""
    return next((metric for metric in KINDS if f"airflow_{metric.replace('.', '_')}" == name), name)


@pytest.mark.parametrize("metric", sorted(KINDS))
def test_each_metric_is_mapped_to_its_name_once(metric: str) -> None:
    sent = {
        metrics.FAILED: f"{metric}.service.image_gone",
        metrics.BATCH_ROW: f"{metric}.stored",
        metrics.REJECTED: f"{metric}.queue_full",
        metrics.FALLBACK: f"{metric}.unknown_model",
    }.get(metric, metric)
    found = mapped(sent)
    assert found
    assert found.name == f"airflow_{metric.replace('.', '_')}"
    assert (found.rule.get("observer_type") == "histogram") == (KINDS[metric] == "timer")
    if sent != metric:
        assert mapped(metric) is None  # else it would count twice
        assert list(found.labels.values()) == sent.removeprefix(f"{metric}.").split(".")
        assert set(found.labels) <= set(VALUES)


def test_only_the_gauges_of_triggerers_expire() -> None:
    expiring = {mapping["name"] for mapping in MAPPINGS if "ttl" in mapping}
    assert {metric_of(name) for name in expiring} == {metrics.QUEUE_WAITING, metrics.RUNNING}


@pytest.mark.parametrize(("place", "expression"), sorted(expressions()))
def test_an_expression_names_only_what_exists(place: str, expression: str) -> None:
    named = names_in(expression)
    assert named
    assert named <= set(KINDS)
    if named & {name for name, kind in KINDS.items() if kind == "counter"}:
        assert "increase(" in expression  # the value of a counter alone means nothing
    labels = set(re.findall(r"(\w+)=", expression))
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        labels |= set(group.split(", "))
    assert labels <= TAGS | {"le"}
    for label, values in re.findall(r'(\w+)(?:=~?|!~)"([\w|]+)"', expression):
        assert set(values.split("|")) <= VALUES[label]
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for panel in PANELS for target in panel["targets"] for name in names_in(target["expr"])}
    assert shown == set(KINDS)


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_asks_for_its_data_source() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "account"}
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'modelscope_conn_id=~"$account"' in target["expr"]
    assert names_in(variables["account"]["query"]["query"]) <= set(KINDS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_and_what_it_means(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    kept = {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in group.split(", ")}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= kept


@pytest.mark.skipif(not PROMTOOL, reason="promtool checks the rules: Debian has it in the package prometheus")
def test_the_alerts_ring_when_they_should() -> None:
    subprocess.run(
        [str(PROMTOOL), "test", "rules", "alerts_test.yaml"], cwd=Path(__file__).parent, check=True
    )


def test_there_is_an_alert_for_each_cause() -> None:
    causes = {cause: rule for rule in RULES for cause in re.findall(r'cause="(\w+)"', rule["expr"])}
    assert {cause: rule["labels"]["severity"] for cause, rule in causes.items()} == {
        "account": "page",
        "storage": "page",
        "service": "warning",
        "input": "info",
    }


def test_every_error_is_listed_by_its_cause() -> None:
    rows = table("docs/reference/metrics.md", "Causes")
    assert {words(cause)[0]: set(words(errors)) for cause, _, errors in rows} == {
        cause: {error.__name__ for error in ERRORS if metrics.cause_of(error("")) == cause}
        for cause in VALUES["cause"]
    }


def test_the_files_are_linked_from_the_page() -> None:
    linked = re.findall(
        r"\]\(\.\./monitoring/([^)]+)\)", section("docs/operate/monitoring.md", "Dashboard and alerts")
    )
    assert sorted(linked) == sorted(file.name for file in FOLDER.iterdir())
