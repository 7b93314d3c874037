"""What publishes a release, and what registries of providers read."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.get_provider_info import get_provider_info

ROOT = Path(__file__).parents[3]
INFO = get_provider_info()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REGISTRY = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())
WORKFLOWS = {
    file.name: yaml.safe_load(file.read_text()) for file in (ROOT / ".github" / "workflows").glob("*.yml")
}
JOBS = [
    pytest.param(job, id=f"{name}-{job_id}")
    for name, workflow in WORKFLOWS.items()
    for job_id, job in workflow["jobs"].items()
]
RELEASE = WORKFLOWS["release.yml"]
TRIGGERS = RELEASE[True]  # YAML 1.1 reads "on" as a boolean
BUILD, PUBLISH = RELEASE["jobs"]["build"], RELEASE["jobs"]["publish"]
DEPLOY = WORKFLOWS["site.yml"]["jobs"]["deploy"]


# Workflows


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("job", JOBS)
def test_only_the_jobs_that_publish_have_other_permissions(job: dict[str, Any]) -> None:
    match job.get("permissions"):
        case {"id-token": "write", **others}:
            assert (job is PUBLISH and others == {}) or (job is DEPLOY and others == {"pages": "write"})
        case other:
            assert other is None


@pytest.mark.parametrize("job", JOBS)
def test_a_job_ends_and_leaves_no_credentials(job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= 120
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("job", JOBS)
def test_actions_of_others_are_pinned_to_a_commit(job: dict[str, Any]) -> None:
    for used in [step["uses"] for step in job["steps"] if "uses" in step]:
        pin = "v[0-9]+" if used.startswith("actions/") else "[0-9a-f]{40}"
        assert re.fullmatch(rf"[\w-]+/[\w-]+@{pin}", used)


def test_only_a_tag_of_a_version_publishes() -> None:
    assert TRIGGERS == {"push": {"tags": ["v*"]}}


def test_what_deploys_the_site_runs_no_code_of_the_repository() -> None:
    assert [step["uses"].partition("@")[0] for step in DEPLOY["steps"]] == ["actions/deploy-pages"]


def test_what_publishes_runs_no_code_of_the_repository() -> None:
    assert PUBLISH["needs"] == "build"
    assert PUBLISH["environment"]["name"] == "pypi"
    assert [step["uses"].partition("@")[0] for step in PUBLISH["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert PUBLISH["steps"][-1]["with"] == {"attestations": True}
    [uploaded] = [step for step in BUILD["steps"] if "upload-artifact" in step.get("uses", "")]
    assert uploaded["with"]["name"] == PUBLISH["steps"][0]["with"]["name"]


def test_the_wheel_is_tested_in_a_cell_that_exists() -> None:
    pytest.importorskip("nox", reason="a cell has no nox")
    [named] = [found for step in BUILD["steps"] for found in re.findall(r"cell\(.*?\)", step.get("run", ""))]
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert named in listed.stdout


@pytest.mark.parametrize(
    ("tag", "heading", "is_accepted"),
    [
        (f"v{__version__}", f"## [{__version__}] - 2026-12-01", True),
        (f"v{__version__}", "## [Unreleased]", False),
        (f"v{__version__}", f"## [{__version__}1] - 2026-12-01", False),
        (f"v{__version__}.1", f"## [{__version__}.1] - 2026-12-01", False),
        (__version__, f"## [{__version__}] - 2026-12-01", False),
        ("v", f"## [{__version__}] - 2026-12-01", False),
        ("v$(touch hacked)", f"## [{__version__}] - 2026-12-01", False),
    ],
)
def test_the_tag_must_be_the_version(tmp_path: Path, tag: str, heading: str, is_accepted: bool) -> None:
    (package := tmp_path / "airflow_provider_modelscope").mkdir()
    (package / "__init__.py").write_text(f'"""A package."""\n\n__version__ = "{__version__}"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    [step] = [step for step in BUILD["steps"] if step.get("name", "").startswith("Compare the tag")]
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],  # noqa: S607
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "GITHUB_REF_NAME": tag},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is is_accepted, done.stdout
    assert bool(done.stdout) is not is_accepted
    assert not (tmp_path / "hacked").exists()


# Registries


def test_the_registry_lists_what_users_use() -> None:
    modules = [
        module for kind in ("operators", "sensors", "hooks") for module in INFO[kind][0]["python-modules"]
    ]
    modules += [transfer["python-module"] for transfer in INFO["transfers"]]
    public = {
        f"{module}.{name}"
        for module in modules
        for name, kind in vars(import_module(module)).items()
        if inspect.isclass(kind) and kind.__module__ == module and not name.startswith("_")
    }
    public |= {decorator["class-name"] for decorator in INFO["task-decorators"]}
    listed = [
        entry["module"] for section in REGISTRY.values() if isinstance(section, list) for entry in section
    ]
    assert sorted(listed) == sorted(public)


def test_the_registry_describes_each_as_its_docstring_does() -> None:
    for section in filter(lambda one: isinstance(one, list), REGISTRY.values()):
        for entry in section:
            module, _, name = entry["module"].rpartition(".")
            first = (inspect.getdoc(getattr(import_module(module), name)) or "").split("\n\n")[0]
            assert entry["description"] == " ".join(first.split()).rstrip(".").replace("``", "`")


def test_the_registry_names_the_package_as_its_metadata_does() -> None:
    assert (REGISTRY["package-name"], REGISTRY["display-name"]) == (PROJECT["name"], INFO["name"])
    assert REGISTRY["source-url"] == PROJECT["urls"]["Source"] == PROJECT["urls"]["Homepage"]
    for name in ("Changelog", "Issues", "Source"):
        assert PROJECT["urls"][name].startswith(REGISTRY["source-url"])
