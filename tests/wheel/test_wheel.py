"""The wheel contains the package and nothing else, with the metadata that registries show.

``make test-matrix`` builds it and passes its path in ``WHEEL``.
"""

from __future__ import annotations

import os
import re
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.specifiers import SpecifierSet

from airflow_provider_modelscope import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = "airflow_provider_modelscope"
INFO = f"{PACKAGE}-{__version__}.dist-info"
WHEEL = ZipFile(os.environ["WHEEL"])
METADATA = HeaderParser().parsestr(WHEEL.read(f"{INFO}/METADATA").decode())


def test_the_wheel_contains_only_the_files_of_the_package() -> None:
    files = [path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    packages = [path.relative_to(ROOT).as_posix() for path in files]
    metadata = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert sorted(WHEEL.namelist()) == sorted([*packages, *(f"{INFO}/{name}" for name in metadata)])
    for name in ("py.typed", "gallery/layout.html", "gallery/page.css", "gallery/page.js"):
        assert f"{PACKAGE}/{name}" in WHEEL.namelist()


def test_each_file_is_the_same_as_in_the_sources() -> None:
    for name in WHEEL.namelist():
        if name.startswith(f"{PACKAGE}/"):
            assert WHEEL.read(name) == (ROOT / name).read_bytes(), name


def test_airflow_and_pytest_find_their_plugins() -> None:
    assert WHEEL.read(f"{INFO}/entry_points.txt").decode().split("\n\n") == [
        "[airflow.plugins]\nmodelscope = airflow_provider_modelscope.gallery.plugin:ModelScopePlugin",
        "[apache_airflow_provider]\n"
        "provider_info = airflow_provider_modelscope.get_provider_info:get_provider_info",
        "[pytest11]\nmodelscope = airflow_provider_modelscope.pytest_plugin\n",
    ]


def test_the_metadata_is_what_registries_show() -> None:
    assert (METADATA["Name"], METADATA["Version"]) == ("airflow-provider-modelscope", __version__)
    assert METADATA["License-Expression"] == "Apache-2.0"
    assert METADATA["Description-Content-Type"] == "text/markdown"
    assert METADATA["Summary"]
    assert "airflow-provider" in METADATA["Keywords"].split(",")
    classifiers = METADATA.get_all("Classifier", [])
    assert {"Framework :: Apache Airflow", "Framework :: Apache Airflow :: Provider"} <= set(classifiers)
    assert {"s3", "gcs", "azure", "parquet"} <= set(METADATA.get_all("Provides-Extra", []))


def test_links_and_images_of_the_description_work_outside_the_repository() -> None:
    description = str(METADATA.get_payload())
    targets = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', description)
    assert len(targets) > 20
    assert [one for pair in targets for one in pair if one and not one.startswith(("https://", "#"))] == []


def test_the_classifiers_name_the_supported_versions_of_python() -> None:
    pythons = SpecifierSet(METADATA["Requires-Python"])
    supported = [f"3.{minor}" for minor in range(6, 20) if f"3.{minor}.5" in pythons]
    classifiers = METADATA.get_all("Classifier", [])
    assert [
        classifier.rpartition(" ")[2] for classifier in classifiers if ":: Python :: 3." in classifier
    ] == supported
