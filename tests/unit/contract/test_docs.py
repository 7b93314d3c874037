"""What the README shows is so."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseHook

import airflow_provider_modelscope
from airflow_provider_modelscope import exceptions, metrics
from airflow_provider_modelscope.emulator.__main__ import main as emulator
from airflow_provider_modelscope.get_provider_info import get_provider_info
from airflow_provider_modelscope.hooks.connection import account_from_connection
from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.request import _SIZES, GenerationRequest
from airflow_provider_modelscope.tasks.deferral import DEFER_AFTER
from tests.support.real_airflow import EXAMPLE_DAGS

ROOT = EXAMPLE_DAGS.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (kind, code) for kind, code in re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
]
CONNECTIONS = re.findall(r"export AIRFLOW_CONN_(\w+)='(.*)'", README)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """Return the cells of the section's table, without its head."""
    rows = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def test_every_parameter_of_the_request_is_described_with_its_range() -> None:
    rows = table("The request")
    assert [row[0] for row in rows] == [f"`{field.name}`" for field in fields(GenerationRequest)]
    [size] = [row for row in rows if row[0] == "`size`"]
    for family, (_, least, most) in _SIZES.items():
        assert f"{family} {least}x{least} to {most}x{most}" in size[2]


def test_every_error_is_described_with_what_a_retry_does() -> None:
    kinds = [kind for kind in vars(exceptions).values() if inspect.isclass(kind)]
    ours = {
        kind.__name__: "no" if issubclass(kind, AirflowFailException) else "yes"
        for kind in kinds
        if issubclass(kind, exceptions.ModelScopeError)
    }
    for parent in ("ModelScopeError", "ModelScopeFinalError", "ModelScopeRetryableError"):
        del ours[parent]
    assert {row[0].strip("`"): row[1] for row in table("When it fails")} == ours


def test_every_metric_is_described() -> None:
    ours = {value for value in vars(metrics).values() if str(value).startswith("modelscope.")}
    described = {row[0].strip("`") for row in table("What it tells: logs and metrics")}
    assert described == ours
    kinds = [kind for kind in vars(exceptions).values() if inspect.isclass(kind)]
    reasons = {metrics.reason_of(kind("")) for kind in kinds if issubclass(kind, exceptions.ModelScopeError)}
    for _, kind, says in table("What it tells: logs and metrics"):
        assert kind in ("counter", "timer", "gauge")
        assert set(re.findall(r"`(\w+)`", says)) <= reasons


def test_every_class_takes_what_its_row_says() -> None:
    for path, takes, _ in table("Use it"):
        module, _, name = path.strip("`").rpartition(".")
        parameters: dict[str, inspect.Parameter] = {}
        for kind in reversed(getattr(import_module(f"airflow_provider_modelscope.{module}"), name).__mro__):
            parameters |= inspect.signature(kind.__init__).parameters
        for parameter, default in re.findall(r"`(\w+)(?:=(\d+))?`", takes):
            assert parameter in parameters
            if default:
                assert parameters[parameter].default == int(default)


def test_every_field_of_the_connection_is_described_and_those_of_the_form() -> None:
    described = {row[0].removeprefix("extra ").strip("`") for row in table("The connection")}
    [connection_type] = get_provider_info()["connection-types"]
    assert described == {"password", "host", *connection_type["conn-fields"]}
    defaults = {field.name: field.default for field in fields(Account)}
    assert f"| {defaults['max_image_bytes']} (64 MiB) |" in section("The connection")
    assert f"at most 600 | {defaults['request_timeout']:.0f} |" in section("The connection")


@pytest.mark.parametrize(("connection_id", "value"), CONNECTIONS)
def test_every_connection_shown_is_one_that_airflow_reads(
    monkeypatch: pytest.MonkeyPatch, connection_id: str, value: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{connection_id}", value)
    connection = BaseHook.get_connection(connection_id.lower())
    if connection_id == "MODELSCOPE_DEFAULT":
        account = account_from_connection(connection)
        assert (account.token, account.request_timeout) == ("ms-...", 60)
    else:
        assert connection.conn_type in ("aws", "google_cloud_platform", "wasb")
        assert connection.extra_dejson is not None


@pytest.mark.parametrize("code", [code for kind, code in BLOCKS if kind == "python"])
def test_every_dag_shown_can_be_read(code: str) -> None:
    made: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), made)  # noqa: S102 - it is our own
    name = code.strip().splitlines()[-1].removesuffix("()")
    assert [task.task_id for task in made[name]().tasks] == ["draw"]


def test_the_first_dag_has_ten_lines() -> None:
    code = next(code for kind, code in BLOCKS if kind == "python")
    body = code.split("\n\n\n")[1]
    assert len(body.splitlines()) <= 10


def test_every_command_shown_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"`make ([\w-]+)`", README)) | set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
        <= targets
    )


def test_the_emulators_options_shown_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        emulator(["--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in re.findall(r"--[a-z-]+", section("The emulator")))


def test_the_table_of_versions_is_of_a_run_of_every_cell_without_failure() -> None:
    pytest.importorskip("nox", reason="a cell has no nox")
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list", "--json"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    cells = {one["session"] for one in json.loads(listed.stdout) if one["name"] == "cell"}
    shown = {}
    for python, dependencies, airflow, *others in table("Versions"):
        if dependencies in ("newest", "lowest") and len(others) > 1:  # not a Python that Airflow is not for
            minors = (".".join(version.split(".")[:2]) for version in (airflow, python))
            shown[f"cell({'-'.join([*minors, dependencies])})"] = others[-2]
    assert shown == dict.fromkeys(cells, "0")


def test_every_link_into_the_repository_leads_somewhere() -> None:
    headings = {
        heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        found = (ROOT / target, Path(airflow_provider_modelscope.__file__).parent.parent / target)
        assert target.removeprefix("#") in headings or any(path.exists() for path in found), target


def test_the_defaults_named_in_the_text_are_the_defaults() -> None:
    assert f"`defer_after={DEFER_AFTER:.0f}`" in README
    queue_timeout = inspect.signature(ModelScopeSubmitImageGenerationOperator).parameters["queue_timeout"]
    assert f"`queue_timeout={queue_timeout.default}`" in README
