"""The README and the pages under ``docs/``: what they say is what the code does."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import airflow_provider_modelscope
from airflow_provider_modelscope import exceptions, metrics
from airflow_provider_modelscope.check.assumptions import ASSUMPTIONS, SPENDING
from airflow_provider_modelscope.check.options import OPTIONS
from airflow_provider_modelscope.compat import AirflowFailException, BaseHook
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.emulator.__main__ import main as run_emulator
from airflow_provider_modelscope.emulator.credit import PRICES, price_of
from airflow_provider_modelscope.emulator.faults import FAULTS
from airflow_provider_modelscope.emulator.traits import TRAITS
from airflow_provider_modelscope.get_provider_info import get_provider_info
from airflow_provider_modelscope.hooks.connection import CONNECTION_FIELDS, PORT
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.images import blocks, formats, parts
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator
from airflow_provider_modelscope.protocol.request import _SIZES, GenerationRequest
from tests.support.forms import HAS_FORMS, NO_FORMS
from tests.unit.builders import batch

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
INSTALLED = Path(airflow_provider_modelscope.__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text()
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts
}
PAGES |= {page: (ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONNECTIONS = sorted(
    {found for page in PAGES.values() for found in re.findall(r"export AIRFLOW_CONN_(\w+)='(.*)'", page)}
)


def python_blocks(text: str) -> list[str]:
    """Return the Python blocks of a text, in their order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


PYTHON_BLOCKS = [
    pytest.param(code, id=f"{page}-{number}")
    for page, text in sorted(PAGES.items())
    for number, code in enumerate(python_blocks(text))
]
DAG_BLOCKS = [block for block in PYTHON_BLOCKS if "\n@dag(" in str(block.values[0])]
LIMITS = {
    "pixels of a frame": [formats.MAX_PIXELS],
    "pixels of all frames": [formats.MAX_PIXELS_OF_ALL_FRAMES],
    "frames": [formats.MAX_FRAMES],
    "chunks of a PNG": [parts.MAX_PARTS],
    "scans, segments of a JPEG": [blocks.MAX_SCANS, blocks.MAX_SEGMENTS],
    "bytes of EXIF in a JPEG": [blocks.MAX_EXIF],
    "bytes in the tags of a TIFF, or of EXIF in a JPEG": [blocks.MAX_TAGS],
    "blocks of a GIF": [blocks.MAX_BLOCKS],
}
ERRORS = {
    kind
    for kind in vars(exceptions).values()
    if inspect.isclass(kind)
    and issubclass(kind, exceptions.ModelScopeError)
    and kind
    not in (
        exceptions.ModelScopeError,
        exceptions.ModelScopeFinalError,
        exceptions.ModelScopeRetryableError,
    )
}


def prose(page: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def section(page: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    marks, _, rest = re.split(
        rf"^(#+) ({re.escape(heading)})\n", PAGES[page], maxsplit=1, flags=re.MULTILINE
    )[1:]
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the rows of each table, without its head."""
    for table in re.findall(r"^\|.*\n(?:\|.*\n)+", text, re.MULTILINE):
        yield [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in table.splitlines()[2:]]


def table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading."""
    return next(tables(section(page, heading)))


def words(cell: str) -> list[str]:
    """Return what stands between backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parameters_of(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class of ours, without those of Airflow's own classes."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("airflow_provider_modelscope") and "__init__" in vars(base):
            parameters |= inspect.signature(vars(base)["__init__"]).parameters
    return {name: value for name, value in parameters.items() if name not in ("self", "kwargs")}


def names_in(code: str) -> dict[str, Any]:
    """Run a Python block of a page, and return the names that it defines."""
    names: dict[str, Any] = {}
    exec(compile(code, "docs", "exec"), names)  # noqa: S102 - our own pages
    return names


# The pages


def test_readme_has_at_most_150_lines() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("folder", sorted({Path(page).parent for page in PAGES if page.count("/") > 1}))
def test_the_index_of_a_folder_links_each_of_its_pages(folder: Path) -> None:
    index = PAGES[f"{folder}/index.md"]
    pages = {Path(page).stem for page in PAGES if Path(page).parent == folder} - {"index"}
    assert set(re.findall(r"^\| .*?\]\(([\w-]+)\.md\)", index, re.MULTILINE)) == pages
    [entries] = re.findall(r"^```{toctree}\n:hidden:\n\n(.*?)^```", index, re.DOTALL | re.MULTILINE)
    assert set(entries.split()) == pages


def test_each_common_question_has_a_link() -> None:
    for _, answer in table("docs/index.md", "Common questions"):
        assert "](" in answer


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_relative_link_and_anchor_resolves(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page))
    links += re.findall(r"(?:src|srcset|href)=\"(?!https?:)([^\"]+)\"", prose(page))
    for link in links:
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        name = target.relative_to(ROOT.resolve()).as_posix() if path else page
        # The package is not beside the pages if the wheel is tested.
        assert target.exists() or (INSTALLED / name).exists(), link
        if anchor:
            assert anchor in anchors(name), link


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_every_python_block_compiles(code: str) -> None:
    compile(code, "docs", "exec")


@pytest.mark.parametrize("code", DAG_BLOCKS)
def test_every_dag_shown_can_be_loaded(code: str) -> None:
    if ".hitl import" in code and not HAS_FORMS:
        pytest.skip(NO_FORMS)
    dag = names_in(code)[code.strip().splitlines()[-1].removesuffix("()")]()
    assert dag.tasks


def test_the_first_dag_has_at_most_ten_lines() -> None:
    first = section("README.md", "A first Dag")
    body = re.findall(r"^```python\n.*?\n\n\n(.*?)\n\n\n", first, re.DOTALL | re.MULTILINE)[0]
    assert len(body.splitlines()) <= 10
    assert body in section("docs/tutorial/first-image.md", "Step 3: Write a Dag")


def test_the_test_shown_for_the_emulator_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_in(python_blocks(section("docs/reference/emulator.md", "Use it in tests"))[0])
    names["test_a_generation_succeeds"](monkeypatch)


@pytest.mark.parametrize(("conn_id", "value"), CONNECTIONS)
def test_every_connection_shown_can_be_read(
    monkeypatch: pytest.MonkeyPatch, conn_id: str, value: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", value)
    if conn_id == "MODELSCOPE_DEFAULT":
        with pytest.raises(exceptions.InvalidConnectionError, match="password is a placeholder"):
            _ = ModelScopeHook(conn_id.lower()).account
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", value.replace("ms-...", "ms-0123456789"))
        account = ModelScopeHook(conn_id.lower()).account
        assert (account.token, account.request_timeout) == ("ms-0123456789", 60)
    else:
        connection = BaseHook.get_connection(conn_id.lower())
        assert connection.conn_type in ("aws", "google_cloud_platform", "wasb")
        assert connection.extra_dejson


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES.values():
        named = re.findall(r"`make ([\w-]+)`", page) + re.findall(r"^make ([\w-]+)", page, re.MULTILINE)
        assert set(named) <= targets
    listed = {words(row[0])[0].removeprefix("make ") for row in table("CONTRIBUTING.md", "Commands")}
    assert listed == targets - {"help", "clean"}


def test_the_documented_limits_of_an_image_are_those_of_its_check() -> None:
    rows = table("docs/reference/destination.md", "Which images are stored")
    assert {row[0]: [int(limit) for limit in re.findall("[0-9]+", row[1])] for row in rows} == LIMITS


def test_every_module_run_from_the_command_line_exists() -> None:
    for page in PAGES.values():
        for module in re.findall(r"python -m (?!pytest)([\w.]+)", page):
            found = [base / module.replace(".", "/") for base in (ROOT, INSTALLED)]
            assert any(
                path.with_suffix(".py").exists() or (path / "__main__.py").exists() for path in found
            ), module


# The reference


def test_every_request_parameter_is_listed() -> None:
    listed = [row[0] for row in table("docs/reference/request.md", "Request")]
    assert listed == [f"`{field.name}`" for field in fields(GenerationRequest)]


@pytest.mark.parametrize("name", ["seed", "steps", "guidance"])
def test_the_documented_range_is_the_accepted_range(name: str) -> None:
    [row] = [row for row in table("docs/reference/request.md", "Request") if row[0] == f"`{name}`"]
    least, most = (float(number) for number in row[2].split(" to "))
    for value in (least, most):
        GenerationRequest(model="Qwen/Qwen-Image", prompt="a", **{name: value})  # type: ignore[arg-type]
    for value in (least - 1, most + 1):
        with pytest.raises(exceptions.InvalidRequestError):
            GenerationRequest(model="Qwen/Qwen-Image", prompt="a", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_the_documented_length_is_the_accepted_length(name: str) -> None:
    [row] = [row for row in table("docs/reference/request.md", "Request") if row[0] == f"`{name}`"]
    most = int(re.findall(r"(\d+) characters", row[2])[0])
    given = {"model": "Qwen/Qwen-Image", "prompt": "a"}
    GenerationRequest(**{**given, name: "a" * most})  # type: ignore[arg-type]
    with pytest.raises(exceptions.InvalidRequestError):
        GenerationRequest(**{**given, name: "a" * (most + 1)})  # type: ignore[arg-type]


def test_the_sizes_of_every_family_are_listed() -> None:
    assert table("docs/reference/request.md", "Sizes") == [
        [family, f"{least}x{least}", f"{most}x{most}"] for family, (_, least, most) in _SIZES.items()
    ]


@pytest.mark.parametrize(
    "row", table("docs/reference/operators.md", "Operators"), ids=lambda row: row[0][2:30]
)
def test_a_section_shows_the_docstring_of_its_class(row: list[str]) -> None:
    name, module = words(row[0])[0], words(row[1])[0]
    kind = getattr(import_module(f"airflow_provider_modelscope.{module}"), name)
    shown = section("docs/reference/operators.md", name)
    assert f".. autoclass:: airflow_provider_modelscope.{module}.{name}\n" in shown
    if "prompt" in parameters_of(kind):
        assert {field.name for field in fields(GenerationRequest)} <= set(kind.template_fields)
        assert "[parameters of the request](request.md)" in shown


def test_every_task_of_the_provider_has_a_section() -> None:
    listed = {
        f"airflow_provider_modelscope.{words(row[1])[0]}"
        for row in table("docs/reference/operators.md", "Operators")
    }
    info = get_provider_info()
    modules = {one["python-module"] for one in info["transfers"]}
    for kind in ("operators", "sensors"):
        modules |= {module for one in info[kind] for module in one["python-modules"]}
    assert listed == modules


@pytest.mark.parametrize(
    "name", re.findall(r"^\.\. auto\w+:: (\S+)$", PAGES["docs/reference/api.md"], re.MULTILINE)
)
def test_every_name_of_the_api_exists_and_is_documented(name: str) -> None:
    module, _, member = name.rpartition(".")
    assert inspect.getdoc(getattr(import_module(module), member))


def test_the_function_shown_for_the_hook_draws_an_image(emulator: Emulator, tmp_path: Path) -> None:
    names = names_in(python_blocks(section("docs/reference/api.md", "ModelScopeHook"))[0])
    names["draw"](tmp_path)
    [image] = tmp_path.iterdir()
    assert image.read_bytes() in emulator.served.values()
    emulator.fail("poll:failed")
    with pytest.raises(RuntimeError, match="internal error"):
        names["draw"](tmp_path)


def test_every_key_that_a_task_writes_is_listed(emulator: Emulator, tmp_path: Path, context: Any) -> None:
    emulator.fail("submit:unknown-model")
    task = ModelScopeImageGenerationOperator(
        task_id="draw",
        model="Qwen/Qwen-Image",
        prompt="a",
        fallback_models=["a/b"],
        destination=tmp_path.as_uri() + "/",
        sidecar=True,
        deferrable=False,
    )
    task.execute(context)
    [image] = context["ti"].pushed["images"]
    assert list(image) == [words(row[0])[0] for row in table("docs/reference/xcoms.md", "XCom `images`")]
    requested = context["ti"].pushed["request"]
    assert set(requested) == {
        word for row in table("docs/reference/xcoms.md", "XCom `request`") for word in words(row[0])
    }
    said = context["ti"].pushed["progress"]
    assert list(said) == [words(row[0])[0] for row in table("docs/reference/xcoms.md", "XCom `progress`")]
    [sidecar] = tmp_path.glob("*.json")
    assert set(json.loads(sidecar.read_text())) == {
        word for row in table("docs/how-to/provenance.md", "Sidecar files") for word in words(row[0])
    }


def test_every_key_that_a_batch_writes_is_listed(emulator: Emulator, tmp_path: Path, context: Any) -> None:
    for heading, dry_run in (("Policy", True), ("Output", False)):
        text = section("docs/reference/batch.md", heading)
        [shown] = re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        summary = batch(tmp_path, requests=["a"], dry_run=dry_run).execute(context)
        assert list(summary) == list(json.loads(shown))
        assert emulator.accepted == (not dry_run)
    rows = table("docs/reference/xcoms.md", "XCom `batch`")
    assert list(context["ti"].pushed["batch"]) == [words(row[0])[0] for row in rows]


def test_every_field_of_the_connection_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        words(row[0])[0] if "`" in row[0] else row[0]: row
        for row in table("docs/reference/connection.md", "Fields")
    }
    assert set(rows) == {"password", "host", *(field.name for field in (PORT, *CONNECTION_FIELDS))}
    for field in (PORT, *CONNECTION_FIELDS):
        default = "" if field.default is None else f"`{json.dumps(field.default)}`"
        assert rows[field.name][1:] == [field.description, field.allowed, default]
    monkeypatch.setenv(
        "AIRFLOW_CONN_MODELSCOPE_DEFAULT", '{"conn_type": "modelscope", "password": "ms-0123456789"}'
    )
    assert rows["host"][3] == f"`{ModelScopeHook().account.base_url}`"


@pytest.mark.parametrize("heading", ["Not retried", "Retried"])
def test_every_error_is_listed_by_what_a_retry_does(heading: str) -> None:
    expected = {
        error.__name__
        for error in ERRORS | {exceptions.ModelScopeFinalError, exceptions.ModelScopeRetryableError}
        if issubclass(error, AirflowFailException) == (heading == "Not retried")
    }
    group = section("docs/reference/errors.md", heading)
    assert set(re.findall(r"^### (.*)$", group, re.MULTILINE)) == expected
    assert group.count("**What to do:**") == len(expected)


def test_every_error_named_in_the_pages_exists() -> None:
    known = {error.__name__ for error in ERRORS} | {"ModelScopeFinalError", "ModelScopeRetryableError"}
    for page in PAGES.values():
        assert set(re.findall(r"`(\w+Error)`", page)) <= known


def test_every_metric_is_listed() -> None:
    listed = {words(row[0])[0]: row for row in table("docs/reference/metrics.md", "All metrics")}
    assert set(listed) == {value for value in vars(metrics).values() if str(value).startswith("modelscope.")}
    reasons = {metrics.reason_of(error("")) for error in ERRORS}
    for _, kind, meaning in listed.values():
        assert kind in ("counter", "timer", "gauge")
        assert set(words(meaning)) <= reasons
    for page in PAGES.values():
        for named in re.findall(r"`(modelscope\.[a-z_]+\.[a-z_]+)", page):
            assert named in listed


def test_every_option_of_the_emulator_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_emulator(["--help"])
    help_text = capsys.readouterr().out
    rows = table("docs/reference/emulator.md", "Start it")
    assert {words(row[0])[0] for row in rows} == set(re.findall(r"^  (--[a-z-]+)", help_text, re.MULTILINE))
    for row in rows:
        for default in words(row[1]):
            assert f"(default: {default})" in " ".join(help_text.split())


def test_every_price_of_the_emulator_is_listed() -> None:
    *known, other = table("docs/reference/emulator.md", "Credit")
    assert {words(model)[0]: price for model, price in known} == {m: str(p) for m, p in PRICES.items()}
    assert other == ["any other model", str(price_of("a/b"))]


def test_every_fault_of_the_emulator_is_listed() -> None:
    listed: dict[str, dict[str, str]] = {}
    where = ""
    for place, fault, effect in table("docs/reference/emulator.md", "Faults"):
        where = words(place)[0] if place else where  # an empty cell repeats the one above it
        listed.setdefault(where, {})[words(fault)[0]] = effect
    assert listed == FAULTS


def test_every_trait_of_the_emulator_is_listed() -> None:
    assert {
        words(name)[0]: effect for name, effect in table("docs/reference/emulator.md", "Traits")
    } == TRAITS


def test_every_option_of_the_check_is_listed() -> None:
    rows = table("docs/reference/cli.md", "Check the service")
    assert [words(option)[0] for option, _, _ in rows] == list(OPTIONS)
    for option, default, meaning in rows:
        settings = OPTIONS[words(option)[0]]
        assert words(default) == list(filter(None, [settings.get("default")]))
        assert settings["help"].partition(" (default")[0] == meaning.partition(", a cheap")[0]


def test_every_assumption_of_the_check_is_listed() -> None:
    rows = table("docs/reference/cli.md", "Assumptions")
    assert {words(name)[0]: assumption for name, assumption, _, _ in rows} == ASSUMPTIONS
    assert {words(name)[0] for name, _, is_paid, _ in rows if is_paid == "yes"} == SPENDING.keys()


def test_the_output_of_the_check_shown_has_every_line() -> None:
    [shown] = re.findall(
        r"^```text\n(.*?)^```", section("docs/reference/cli.md", "Example"), re.DOTALL | re.MULTILINE
    )
    *lines, counts, _ = shown.splitlines()
    assert [line.partition(" -> ")[0] for line in lines] == [f"{'ok':<9} {a}" for a in ASSUMPTIONS.values()]
    assert counts == f"{len(ASSUMPTIONS)} ok, 0 differs, 0 not told"


def test_parameters_and_attributes_of_the_emulator_are_listed() -> None:
    parameters, attributes = tables(section("docs/reference/emulator.md", "Use it in tests"))
    signature = inspect.signature(Emulator).parameters
    assert {words(row[0])[0]: ast.literal_eval(words(row[1])[0]) for row in parameters} == {
        name: parameter.default for name, parameter in signature.items()
    }
    with Emulator() as emulator:
        assert all(hasattr(emulator, re.findall(r"\w+", row[0])[0]) for row in attributes)


def test_defaults_named_in_the_text_are_the_defaults() -> None:
    parameters = parameters_of(ModelScopeImageGenerationOperator)
    for page in PAGES.values():
        for name, shown in re.findall(r"`(defer_after|queue_timeout|timeout|poll_interval)=(\d+)`", page):
            assert float(shown) in (0, parameters[name].default), name
    limits = {row[0]: row[1] for row in table("docs/concepts/waiting.md", "Timeouts")}
    assert limits["`timeout`"] == f"{parameters['timeout'].default:.0f} s"
    assert limits["`queue_timeout`"] == f"{parameters['queue_timeout'].default:.0f} s"


# Versions


def test_supported_versions_are_those_of_the_package() -> None:
    least, most = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()  # type: ignore[union-attr]
    [floor] = [
        one.partition(">=")[2] for one in PROJECT["dependencies"] if one.startswith("apache-airflow>=")
    ]
    pythons = rf"Python 3\.{least} to 3\.{int(most) - 1}\."
    assert re.search(rf"^Airflow {re.escape(floor)} to 3\.\d+, {pythons}", PAGES["README.md"], re.MULTILINE)
    assert f"from {floor} on" in section("docs/reference/compatibility.md", "Versions")


def test_every_extra_of_the_package_is_listed() -> None:
    [rows] = tables(section("docs/how-to/install.md", "Install"))
    assert {word for row in rows for word in words(row[0])} == set(PROJECT["optional-dependencies"])


def test_the_constraints_shown_are_those_of_a_cell() -> None:
    for page in PAGES.values():
        for airflow, constraints in re.findall(
            r'"apache-airflow==([\d.]+)".* --constraint .*constraints-([\d.]+)/', page
        ):
            assert airflow == constraints
            assert (ROOT / "tests" / "pins" / f"airflow-{airflow}-constraints.txt").exists()


def test_the_table_of_versions_has_every_cell_without_failure() -> None:
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
    for python, dependencies, airflow, *others in table("docs/reference/compatibility.md", "Tested versions"):
        if len(others) > 1:  # not a Python that Airflow does not support
            minors = [".".join(version.split(".")[:2]) for version in (airflow, python)]
            if dependencies == "constraints":  # those of one release
                minors[0] = airflow
            shown[f"cell({'-'.join([*minors, dependencies])})"] = others[-2]
    assert shown == dict.fromkeys(cells, "0")
