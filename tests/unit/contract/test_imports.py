"""Imports point one way: the package's layers, read from the syntax trees of all modules.

Imports inside functions and under ``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import airflow_provider_modelscope

NAME = "airflow_provider_modelscope"
ROOT = Path(airflow_provider_modelscope.__file__).parent

# Each layer may import the layers below it. Parts of one layer do not import each other.
LAYERS = (
    ("get_provider_info",),
    ("decorators", "check"),
    ("operators", "sensors", "transfers"),
    ("batch",),
    ("tasks",),
    ("hooks", "triggers"),
    ("transport", "provenance", "manifest"),
    ("waiting", "images", "metrics"),
    ("xcoms", "links", "resuming"),
    ("protocol",),
    ("validation",),
    ("exceptions",),
    ("redaction", "json_values", "compat"),
    ("",),  # the package itself: its version
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Beside the layers: the gallery runs in Airflow's API server, the emulator is a program of its own,
# and pytest imports its plugin in every run.
OWN_RULES = {
    "gallery": {
        "manifest",
        "images",
        "xcoms",
        "links",
        "protocol",
        "validation",
        "exceptions",
        "redaction",
        "json_values",
        "compat",
    },
    "emulator": set[str](),
    "pytest_plugin": {"emulator"},
}
ALSO_ALLOWED = {("triggers", "hooks.connection")}

# Packages that only these parts may import.
ONLY_IN = {
    "requests": {"transport"},
    "urllib3": {"transport"},
    "aiohttp": {"transport", "emulator"},
    "yarl": {"transport"},
    "PIL": {"images", "emulator"},
    "pytest": {"pytest_plugin"},
}
WITHOUT_AIRFLOW = {"protocol", "waiting", "transport", "redaction", "emulator", "pytest_plugin"}


def imports(source: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("relative imports are not read here: write the full path")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    """Return the layer's part that a module of the package belongs to: its folder, or its own name."""
    return module.partition(".")[0]


def violations(module: str, source: str, modules: set[str]) -> list[str]:
    """Return the imports of a module that the rules forbid.

    :param module: Its path inside the package, such as ``waiting.poll``.
    :param modules: All modules of the package.
    """
    own, found = part_of(module), []
    for name in imports(source):
        package, _, rest = name.partition(".")
        if package == NAME:
            target = owner_of(rest, modules)
            other = part_of(target)
            if own in OWN_RULES:
                is_allowed = other in OWN_RULES[own] | {own}
            else:
                is_allowed = other == own or (own, target) in ALSO_ALLOWED or LEVEL[own] < LEVEL[other]
            is_of_airflow = other == "compat"
        else:
            is_allowed = own in ONLY_IN.get(package, {own})
            is_of_airflow = package == "airflow"
        if not is_allowed or (is_of_airflow and own in WITHOUT_AIRFLOW):
            found.append(f"{module} imports {name}")
    return found


def owner_of(path: str, modules: set[str]) -> str:
    """Return the module that an imported path belongs to: the path itself, or without the name at its end."""
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path


def sources() -> dict[str, str]:
    """Return the source of each module by its path inside the package."""
    found = {}
    for file in ROOT.rglob("*.py"):
        path = file.relative_to(ROOT).with_suffix("")
        parts = path.parts[:-1] if path.name == "__init__" else path.parts
        found[".".join(parts)] = file.read_text()
    return found


def test_every_import_follows_the_layers() -> None:
    found = sources()
    assert [line for module, source in found.items() for line in violations(module, source, set(found))] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = sources()
    graph = {
        module: {
            owner_of(name.removeprefix(f"{NAME}."), set(found))
            for name in imports(source)
            if name.startswith(f"{NAME}.")
        }
        - {"", module}
        for module, source in found.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"These modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_every_part_of_the_package_has_a_rule() -> None:
    assert {part_of(module) for module in sources()} == LEVEL.keys() | OWN_RULES.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("waiting.poll", f"from {NAME}.tasks.storing import store_images"),
        ("waiting.poll", f"def late():\n    import {NAME}.tasks.storing"),
        ("protocol.request", f"if TYPE_CHECKING:\n    from {NAME}.hooks.modelscope import ModelScopeHook"),
        ("operators.image_generation", f"from {NAME}.sensors import image_generation"),
        ("triggers.queue", f"from {NAME}.hooks.modelscope import ModelScopeHook"),
        ("gallery.app", f"from {NAME}.tasks.task import ModelScopeTask"),
        ("emulator.service", f"from {NAME}.redaction import redacted"),
        ("transport.blocking", "from airflow.sdk import BaseHook"),
        ("transport.blocking", f"from {NAME}.compat import BaseHook"),
        ("hooks.modelscope", "import requests"),
        ("triggers.clients", "def late():\n    from aiohttp import ClientSession"),
        ("provenance.record", "from PIL import Image"),
        ("emulator.server", "import pytest"),
        ("pytest_plugin", f"from {NAME}.hooks.modelscope import ModelScopeHook"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source, set(sources()))) == 1
