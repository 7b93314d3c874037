"""The command line of the check: what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING

import airflow
import pytest
from packaging.version import Version

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.check.__main__ import main
from airflow_provider_modelscope.check.airflow_command import commands
from airflow_provider_modelscope.check.assumptions import ASSUMPTIONS, FREE
from airflow_provider_modelscope.check.options import OPTIONS
from airflow_provider_modelscope.check.service import PRICES
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.credit import PRICES as EMULATED
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.check.conftest import Wire


def test_each_line_is_an_assumption_and_what_came(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    *printed, counts, credit = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("ok ")]  # Airflow 3.0 logs between them
    assert len(lines) == len(FREE) + 1
    for line, assumption in zip(lines, [*FREE.values(), ASSUMPTIONS["no-quota-headers"]], strict=True):
        assert line.startswith(f"ok        {assumption} -> ")
    assert (counts, credit) == ("11 ok, 0 differs, 0 not told", "Credit used: 0")


def test_json_is_all_that_is_on_stdout(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    wire.instead = lambda method, path: print("a line of Airflow's log")
    assert main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["version", "service", "model", "findings", "credit_used", "error"]
    assert (report["version"], report["service"]) == (__version__, "https://api.example")
    assert report["error"] is None
    assert list(report["findings"][0]) == ["name", "assumption", "came", "verdict"]


def test_a_difference_is_exit_code_1() -> None:
    with Emulator(without=["price"]) as emulator, pytest.MonkeyPatch.context() as monkeypatch:
        connect(monkeypatch, emulator.base_url)
        assert main([]) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_a_refused_token_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    with Emulator(tokens=["ms-other-token"]) as emulator:
        connect(monkeypatch, emulator.base_url)
        for options in ([], ["--spend"]):
            assert main([*options, *(["--json"] if as_json else [])]) == 2
        assert emulator.accepted == 0
    out, err = capsys.readouterr()
    assert (out if as_json else err).count("ModelScope rejected the token") == 2
    assert TOKEN not in out + err


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        (None, "Cannot read the Airflow connection 'modelscope_default'"),
        ("{}", "password is empty"),
        ('{"conn_type": "modelscope", "password": "ms-..."}', "password is a placeholder"),
        ('{"conn_type": "modelscope", "password": "ms-0123456789", "host": "ftp://x"}', "host must be a URL"),
        (
            '{"conn_type": "modelscope", "password": "ms-0123456789", "host": "http://127.0.0.1:9"}',
            "Cannot reach http://127.0.0.1:9",
        ),
    ],
)
def test_a_service_that_cannot_be_asked_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    connection: str | None,
    message: str,
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", raising=False)
    if connection is not None:
        monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", connection)
    assert main([]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Cannot check the service: ")
    assert message in err
    assert "Traceback" not in err
    assert "ms-0123456789" not in err


def test_a_model_that_is_none_is_exit_code_2(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", " "]) == 2
    assert "model = ' '" in capsys.readouterr().err
    assert wire.sent == []


def test_the_default_model_is_a_cheap_one() -> None:
    assert EMULATED[OPTIONS["--model"]["default"]] == min(EMULATED.values())
    assert set(map(float, EMULATED.values())) == set(PRICES)


def test_the_command_of_airflow_is_the_same(
    wire: Wire, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [group] = commands()
    [check] = group.subcommands  # type: ignore[union-attr]
    assert (group.name, check.name) == ("modelscope", "check")
    parser = ArgumentParser()
    for argument in check.args:
        argument.add_to_parser(parser)
    connect(monkeypatch, "https://api.example", "another")
    with pytest.raises(SystemExit) as end:
        check.func(parser.parse_args(["--conn-id", "another", "--json"]))
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["error"] is None


def test_the_module_of_the_command_is_light() -> None:
    code = """if True:
        import sys
        import airflow_provider_modelscope.check.airflow_command
        loaded = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
        print(*sorted(loaded & {"airflow", "requests", "aiohttp", "PIL"}))
        print(*sorted(name for name in sys.modules if name.startswith("airflow_provider_modelscope")))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages, ours = done.stdout.splitlines()
    assert packages == ""
    package = "airflow_provider_modelscope"
    assert ours == f"{package} {package}.check {package}.check.airflow_command {package}.check.options"


@pytest.mark.skipif(Version(airflow.__version__) < Version("3.2"), reason="Airflow 3.2 is the first")
def test_airflow_shows_the_command(tmp_path: Path) -> None:
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    for arguments, expected in ((["--help"], "check"), (["check", "--help"], "--spend")):
        command = [sys.executable, "-m", "airflow", "modelscope", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert "Traceback" not in done.stderr
