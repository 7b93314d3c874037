"""Every example Dag runs in a real Airflow and stores its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_modelscope.compat import AIRFLOW_VERSION
from airflow_provider_modelscope.emulator import Emulator
from tests.support.real_airflow import EXAMPLE_DAGS, RealAirflow

# The tasks that store images, and the format of each image.
# test_batch.py tests the batch. tests/browser/test_downstream.py tests the approval, which needs a person,
# and the Dag that an asset starts.
EXAMPLES: dict[str, dict[str, Any]] = {
    "example_asset_producer": {"stored_by": ["hero"], "formats": ["image/png"], "is_unchanged": False},
    "example_text_to_image": {"stored_by": ["store"], "formats": ["image/png"]},
    "example_scheduled_content": {"stored_by": ["draw"], "formats": ["image/png"] * 3},
    "example_edit_image": {"stored_by": ["draw", "edit"], "formats": ["image/png", "image/jpeg"]},
    "example_params_form": {"stored_by": ["draw"], "formats": ["image/png"]},
}


def test_every_example_is_tested() -> None:
    files = {path.stem for path in EXAMPLE_DAGS.glob("*.py")} - {"example_approval", "example_batch"}
    assert {"example_assets" if "asset" in dag_id else dag_id for dag_id in EXAMPLES} == files


@pytest.mark.parametrize("dag_id", EXAMPLES)
def test_an_example_stores_its_images(
    airflow_for: Callable[[Emulator], RealAirflow], tmp_path: Path, dag_id: str
) -> None:
    if "asset" in dag_id and AIRFLOW_VERSION == (3, 0):
        pytest.skip("airflow dags test of Airflow 3.0 rejects an asset that no scheduler has seen yet")
    with Emulator(duration=1.0) as emulator:
        airflow = airflow_for(emulator)
        airflow.test_dag(dag_id, {"destination": f"file://{tmp_path}/images/"})
        stored = [
            image
            for task in EXAMPLES[dag_id]["stored_by"]
            for images in airflow.xcoms(dag_id, task, "images")
            for image in images
        ]
        assert [image["content_type"] for image in stored] == EXAMPLES[dag_id]["formats"]
        assert emulator.accepted == len(stored)
        served = list(emulator.served.values())
    for image in stored:
        assert image["model"]
        content = Path(image["uri"].removeprefix("file://")).read_bytes()
        assert len(content) == image["size_bytes"]
        is_unchanged = EXAMPLES[dag_id].get("is_unchanged", image["content_type"] == "image/png")
        assert (content in served) == is_unchanged
