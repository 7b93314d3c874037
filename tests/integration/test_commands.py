"""Airflow's commands show the provider, and ``make demo`` works as documented."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dev import demo

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow


def test_airflow_lists_the_provider_and_its_connection_type(migrated: RealAirflow) -> None:
    [provider] = json.loads(
        _last_line(migrated.run("providers", "get", "airflow-provider-modelscope", "-o", "json"))
    )
    assert provider["Provider"] == "airflow-provider-modelscope"
    hooks = json.loads(_last_line(migrated.run("providers", "hooks", "-o", "json")))
    [hook] = [hook for hook in hooks if hook["connection_type"] == "modelscope"]
    assert hook["class"] == "airflow_provider_modelscope.hooks.modelscope.ModelScopeHook"


def test_the_demo_stores_an_image_and_says_how_to_open_it(tmp_path: Path) -> None:
    (opener := tmp_path / "xdg-open").touch(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "MODELSCOPE_API_TOKEN"}
    environment |= {"DISPLAY": ":0", "PATH": f"{opener.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=Path(demo.__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    [path] = re.findall(r"^Image: +(.*)$", done.stdout, re.MULTILINE)
    with Image.open(path) as image:
        image.load()
        assert image.size == (1024, 768)
    viewer = "open" if sys.platform == "darwin" else "xdg-open"
    assert f"\nOpen it:  {viewer} {shlex.quote(path)}\n" in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == len(set(lines)), "a line is printed twice"
    assert "1024x768 image/png" in done.stdout
    assert "Deferring: generation " in (demo.FOLDER / "demo.log").read_text()


def _last_line(output: str) -> str:
    return output.strip().splitlines()[-1]
