"""The command line of the emulator."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_modelscope.emulator.__main__ import main
from airflow_provider_modelscope.emulator.faults import FAULTS
from tests.unit.emulator.api import CHEAP, POLL, SUBMIT, TOKEN

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator


def test_help_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{where}:{what} " in text for where, names in FAULTS.items() for what in names)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--port", "65536"], "0 to 65535"),
        (["--port", "http"], "0 to 65535"),
        (["--duration", "-1"], "0 to 86400"),
        (["--duration", "nan"], "0 to 86400"),
        (["--max-running", "0"], "1 to 1000"),
        (["--credit", "-0.1"], "0 to 1000000000"),
        (["--credit", "nan"], "0 to 1000000000"),
        (["--credit", "1e10"], "0 to 1000000000"),
        (["--credit", "much"], "0 to 1000000000"),
        (["--retired-model", "Qwen-Image"], "such as Qwen/Qwen-Image"),
        (["--retired-model", ""], "such as Qwen/Qwen-Image"),
        (["--token", "two words"], "must not be empty or contain spaces"),
        (["--fault", "submit:sometimes"], "400 to 599"),
    ],
)
def test_the_error_for_an_argument_names_what_is_allowed(
    arguments: list[str], allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert allowed in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence_and_exit_status_1(
    emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    port = emulator.base_url.rpartition(":")[2]
    assert main(["--port", port]) == 1
    assert capsys.readouterr() == ("", f"Cannot listen on 127.0.0.1 port {port}: Address already in use.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_logs_without_tokens_and_stops(number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "airflow_provider_modelscope.emulator",
        "--port=0",
        "--duration=0",
        "--credit=0.3",
        "--retired-model=a/retired",
        "--token=it's-first",
        f"--token={TOKEN}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        match = re.match(r"ModelScope emulator on (http://127\.0\.0\.1:\d+) ", process.stdout.readline())
        assert match
        export = process.stdout.readline()
        base_url = match[1]
        response = requests.post(
            f"{base_url}/v1/images/generations", json.dumps(CHEAP), headers=SUBMIT, timeout=5
        )
        generation_id = response.json()["task_id"]
        requests.get(f"{base_url}/v1/tasks/{generation_id}?token={TOKEN}", headers=POLL, timeout=5)
        balance = requests.get(f"{base_url}/openapi/v1/magicubes/balance", headers=POLL, timeout=5)
        retired = requests.post(
            f"{base_url}/v1/images/generations",
            json.dumps({**CHEAP, "model": "a/retired"}),
            headers=SUBMIT,
            timeout=5,
        )
        process.send_signal(number)
        out, log = process.communicate(timeout=5)
    assert (process.returncode, out) == (0, "")
    assert balance.json()["data"]["available_balance"] == 0.1
    assert retired.status_code == 429
    command_word, variable = shlex.split(export)
    name, _, connection = variable.partition("=")
    assert (command_word, name) == ("export", "AIRFLOW_CONN_MODELSCOPE_DEFAULT")
    assert json.loads(connection) == {
        "conn_type": "modelscope",
        "password": "it's-first",
        "host": base_url,
    }
    assert [line.partition(" ")[2] for line in log.splitlines()] == [
        f"POST /v1/images/generations -> 200 generation {generation_id} accepted",
        f"GET /v1/tasks/{generation_id} -> 200 generation {generation_id} SUCCEED",
        "GET /openapi/v1/magicubes/balance -> 200",
        "POST /v1/images/generations -> 429 insufficient balance (1008)",
    ]
