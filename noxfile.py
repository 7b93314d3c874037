"""``make test-matrix``: tests the built wheel with each Airflow and Python, and different dependencies.

``wheel`` builds the wheel and checks its contents, ``cell(...)`` runs the tests in one environment,
``resolve(...)`` has pip choose the versions of one extra, and ``table`` prints the results as
docs/reference/compatibility.md shows them. ``nox --list`` lists all of them.

``records`` is ``make test-records`` and ``form`` is ``make test-form``: other suites, each on one Airflow.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

import nox

ROOT = Path(__file__).parent
DIST = ROOT / ".nox" / "dist"
RESULTS = ROOT / ".nox" / "results"
PINS = ROOT / "tests" / "pins"

AIRFLOWS = ("3.0", "3.1", "3.2", "3.3", "3.4")
CONSTRAINED = ("3.0.6", "3.1.6", "3.2.1", "3.2.2")  # with Airflow's own constraints, in tests/pins
PYTHONS = ("3.11", "3.12", "3.13")
LEFT_OUT = {("3.0", "3.13")}  # not supported by Airflow; the cells compare this with its metadata
CELLS = [
    *((airflow, python, "newest") for airflow in AIRFLOWS for python in PYTHONS),
    *((airflow, PYTHONS[0], "lowest") for airflow in AIRFLOWS),
    *((airflow, "3.12", "constraints") for airflow in CONSTRAINED),
]
TESTED = [cell for cell in CELLS if cell[:2] not in LEFT_OUT]

INTEGRATION_PYTHON = "3.12"  # runs all integration tests with each Airflow; the others run:
ONE_GENERATION = (
    "tests/integration/test_commands.py::test_airflow_lists_the_provider_and_its_connection_type",
    "tests/integration/test_deferral.py",
)
PROBE = "import airflow_provider_modelscope as it, platform; print(platform.python_version(), it.__file__)"

PYPROJECT = nox.project.load_toml("pyproject.toml")
DEPENDENCIES = [re.split("[^a-z-]", dependency)[0] for dependency in PYPROJECT["project"]["dependencies"]]

EXTRAS = tuple(PYPROJECT["project"]["optional-dependencies"])
PIPS = {"23.2.1": "pip==23.2.1", "newest": "pip"}  # the oldest comes with Python 3.12
UNCONSTRAINED = ("3.2.2", "3.3.2")
REJECTED = {("azure", "3.0.6")}  # its constraints pin an msal older than their azure-kusto-data requires
STEP_LIMIT = 600  # seconds, for a pip that searches without end

nox.options.error_on_missing_interpreters = True
if pyenv := shutil.which("pyenv"):
    # Its commands on PATH work only for the versions in PYENV_VERSION.
    installed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=True)
    os.environ["PYENV_VERSION"] = ":".join(installed.stdout.split())


@nox.session(python=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel and the source distribution, and check their contents."""
    for folder in (DIST, RESULTS):
        shutil.rmtree(folder, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    python = (sys.executable, "-m")
    session.run(*python, "uv", "build", "--quiet", "--out-dir", str(DIST))
    session.run(*python, "twine", "check", "--strict", str(_built("whl")), str(_built("tar.gz")))
    session.run(*python, "pytest", "tests/wheel", env={"WHEEL": str(_built("whl"))})


@nox.session(venv_backend="uv", requires=["wheel"], allow_parallel=True)
@nox.parametrize("airflow, python, dependencies", TESTED, ids=["-".join(cell) for cell in TESTED])
def cell(session: nox.Session, airflow: str, dependencies: str) -> None:
    """Run the tests on the installed wheel, in a copy of the sources without the package."""
    started_at = time.monotonic()
    python = str(session.python)
    environment = Path(session.virtualenv.location)
    constraints = [f"--constraint={pins}" for pins in _pins(airflow, dependencies)]
    if dependencies == "constraints":
        session.install("pip")  # uv creates environments without it
        session.run("python", "-m", "pip", "install", "--quiet", *_command(airflow), *constraints)
    else:
        session.install(
            f"apache-airflow=={airflow}.*",
            str(_built("whl")),
            "--requirement=pyproject.toml",  # makes the dependencies direct ones, for --resolution
            f"--resolution={'lowest-direct' if dependencies == 'lowest' else 'highest'}",
            *constraints,
        )
    # What the tests need must not change what they test.
    frozen = str(session.run("uv", "pip", "freeze", silent=True)).splitlines()
    tested = environment / "tested.txt"
    tested.write_text("\n".join(line for line in frozen if line.partition("==")[0] in DEPENDENCIES))
    test_group = nox.project.dependency_groups(PYPROJECT, "test")
    session.install(*test_group, f"--constraint={tested}", *constraints)
    shutil.unpack_archive(_built("tar.gz"), environment, filter="data")
    [sources] = environment.glob("airflow_provider_modelscope-*")
    shutil.rmtree(sources / "airflow_provider_modelscope")
    session.chdir(sources)
    session.env["PYTHONPATH"] = ""

    exact_python, file = str(session.run("python", "-c", PROBE, silent=True)).split()[-2:]
    site_packages = Path(file).parent.parent
    if site_packages.name != "site-packages" or environment not in site_packages.parents:
        session.error(f"The tests import {file}, which is not from the wheel")
    installed = {one.name: one for one in distributions(path=[str(site_packages)])}
    classifiers = installed["apache-airflow"].metadata.get_all("Classifier") or []
    for version in PYTHONS:
        is_supported = f"Programming Language :: Python :: {version}" in classifiers
        if is_supported == ((airflow[:3], version) in LEFT_OUT):
            session.error(
                f"LEFT_OUT is wrong for Airflow {airflow} and Python {version}: compare its metadata"
            )

    runs_all = (python, dependencies) == (INTEGRATION_PYTHON, "newest")
    tests = ("tests/unit", "tests/fuzz", *(("tests/integration",) if runs_all else ONE_GENERATION))
    report = environment / "report.xml"
    try:
        session.run("python", "-m", "pytest", "--quiet", f"--junitxml={report}", *tests)
    finally:
        counts = ElementTree.parse(report).getroot()[0].attrib  # noqa: S314 - written by pytest
        skipped, failed = int(counts["skipped"]), int(counts["failures"]) + int(counts["errors"])
        result = {
            "Python": exact_python,
            "dependencies": dependencies,
            **{name: installed[name].version for name in DEPENDENCIES},
            "passed": int(counts["tests"]) - skipped - failed,
            "skipped": skipped,
            "failed": failed,
            "minutes": round((time.monotonic() - started_at) / 60, 1),
        }
        _result(airflow, python, dependencies).write_text(json.dumps(result))


@nox.session(python=INTEGRATION_PYTHON, venv_backend="uv", requires=["wheel"], allow_parallel=True)
@nox.parametrize("pip", list(PIPS), ids=list(PIPS))
@nox.parametrize("extra", EXTRAS, ids=EXTRAS)
def resolve(session: nox.Session, extra: str, pip: str) -> None:
    """Have pip choose the versions of an extra and everything below it, without installing them."""
    oldest, existing = CONSTRAINED[0], CONSTRAINED[-1]
    pins = {airflow: f"--constraint={_pins(airflow, 'constraints')[0]}" for airflow in (oldest, existing)}
    session.install(PIPS[pip])
    times = {f"{airflow}, no constraints": _resolve(session, airflow, extra) for airflow in UNCONSTRAINED}
    for airflow, constraint in pins.items():
        times[f"{airflow}, constraints"] = _resolve(session, airflow, extra, constraint)
    session.install(f"apache-airflow=={existing}", pins[existing])
    times[f"{existing}, installed before"] = _resolve(session, existing, extra)
    version = str(session.run("python", "-m", "pip", "--version", silent=True)).split()[1]
    _resolved(extra, pip).write_text(json.dumps({"extra": f"`{extra}`", "pip": version, **times}))


@nox.session(venv_backend="uv", default=False)
def records(session: nox.Session) -> None:
    """Kill parts of an Airflow without a task state store, which keeps its records in object storage."""
    _install_sources(session, CONSTRAINED[-1], "constraints", "faults")
    session.run("python", "-m", "pytest", "tests/faults", "-m", "kill")


@nox.session(venv_backend="uv", default=False)
def form(session: nox.Session) -> None:
    """Use the connection form of the newest Airflow."""
    _install_sources(session, AIRFLOWS[-1], "newest", "browser")
    session.run("python", "-m", "pytest", "tests/browser/test_connection_form.py")


@nox.session(python=False)
def table(session: nox.Session) -> None:
    """Print the results of the cells, and the times of pip. It is the last session."""
    versions = [
        name.removeprefix("apache-airflow-providers-").replace("apache-airflow", "Airflow")
        for name in DEPENDENCIES
    ]
    columns = ("Python", "dependencies", *versions, "passed", "skipped", "failed", "minutes")
    _print(columns, [_row(*cell) for cell in CELLS])
    files = [_resolved(extra, pip) for extra in EXTRAS for pip in PIPS]
    if times := [json.loads(file.read_text()) for file in files if file.exists()]:
        print()
        _print(list(times[0]), [[str(value) for value in row.values()] for row in times])


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def _row(airflow: str, python: str, dependencies: str) -> Sequence[str]:
    if (airflow, python) in LEFT_OUT:
        return python, dependencies, airflow, f"Airflow {airflow} does not support Python {python}"
    result = _result(airflow, python, dependencies)
    if not result.exists():
        return python, dependencies, airflow, "no result"
    return [str(value) for value in json.loads(result.read_text()).values()]


def _install_sources(session: nox.Session, airflow: str, dependencies: str, group: str) -> None:
    """Install the sources, beside one Airflow and what a group of tests needs."""
    session.install(
        f"apache-airflow=={airflow}.*",
        "--editable=.",
        *nox.project.dependency_groups(PYPROJECT, group),
        *(f"--constraint={pins}" for pins in _pins(airflow, dependencies)),
    )


def _command(airflow: str, extra: str = "") -> tuple[str, str]:
    """Return what the documentation tells to install beside each other."""
    return f"apache-airflow=={airflow}", f"{_built('whl')}{extra and f'[{extra}]'}"


def _resolve(session: nox.Session, airflow: str, extra: str, *constraints: str) -> str:
    """Return the seconds that pip needs, and in brackets those of the processor, whatever else runs."""
    if constraints and (extra, airflow) in REJECTED:
        return "rejected"
    python = Path(session.bin) / "python"
    pip = (python, "-m", "pip", "install", "--dry-run", "--quiet", "--no-cache-dir")
    before, started_at = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run((*pip, *_command(airflow, extra), *constraints), check=True, timeout=STEP_LIMIT)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started_at
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{seconds:.0f} ({processor:.0f})"


def _built(suffix: str) -> Path:
    [built] = DIST.glob(f"*.{suffix}")
    return built


def _pins(airflow: str, dependencies: str) -> list[Path]:
    """Return the files that pin packages which do not work with this environment."""
    names = (f"airflow-{airflow}", f"airflow-{airflow}-{dependencies}")
    return [pins for name in names if (pins := PINS / f"{name}.txt").exists()]


def _result(airflow: str, python: str, dependencies: str) -> Path:
    return RESULTS / f"{airflow}-{python}-{dependencies}.json"


def _resolved(extra: str, pip: str) -> Path:
    return RESULTS / f"resolve-{extra}-{pip}.json"
