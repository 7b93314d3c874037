"""Names that moved between Airflow's versions come from the home that this Airflow has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_provider_modelscope import compat


@pytest.mark.parametrize("name", sorted(compat._HOMES))
def test_every_name_is_found_without_a_warning(name: str) -> None:
    assert getattr(compat, name) is not None  # warnings are errors in these tests


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(compat, "AirflowTeapotException")


def test_nothing_of_airflow_is_imported_before_it_is_used() -> None:
    code = "import sys, airflow_provider_modelscope.compat; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "airflow" not in {name.partition(".")[0] for name in done.stdout.split()}


def test_the_package_does_not_need_the_provider_common_compat() -> None:
    code = """if True:
    import sys
    sys.modules["airflow.providers.common.compat.sdk"] = None  # importing it fails
    import airflow_provider_modelscope.decorators.image_generation
    import airflow_provider_modelscope.gallery.plugin
    import airflow_provider_modelscope.hooks.modelscope
    import airflow_provider_modelscope.operators.image_generation
    import airflow_provider_modelscope.sensors.credit
    import airflow_provider_modelscope.sensors.image_generation
    import airflow_provider_modelscope.transfers.image_to_object_storage
    """
    subprocess.run([sys.executable, "-c", code], check=True)
