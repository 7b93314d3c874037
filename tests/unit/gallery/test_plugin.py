"""What Airflow loads of the gallery."""

from __future__ import annotations

import subprocess
import sys

from fastapi.testclient import TestClient

from airflow_provider_modelscope.gallery.plugin import ModelScopePlugin, gallery
from airflow_provider_modelscope.links import HAS_GALLERY
from tests.unit.gallery.conftest import needs_gallery


@needs_gallery
def test_dags_runs_and_task_instances_have_a_tab() -> None:
    assert [
        (view["name"], view["destination"], view["href"]) for view in ModelScopePlugin.external_views
    ] == [
        ("Images", "dag", "modelscope/{DAG_ID}/all-images"),
        ("Images", "dag_run", "modelscope/{DAG_ID}/images?run_id={RUN_ID}"),
        (
            "Images",
            "task_instance",
            "modelscope/{DAG_ID}/images?run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}",
        ),
    ]
    assert [app["url_prefix"] for app in ModelScopePlugin.fastapi_apps] == ["/modelscope"]


def test_airflow_3_0_gets_no_tab() -> None:
    assert bool(ModelScopePlugin.external_views) is bool(ModelScopePlugin.fastapi_apps) is HAS_GALLERY


@needs_gallery
def test_requests_reach_the_app() -> None:
    with TestClient(gallery) as client:
        assert client.get("/a_dag/images").status_code == 401


def test_the_app_is_imported_with_the_first_request() -> None:
    program = (
        "import sys; import airflow_provider_modelscope.gallery.plugin; "
        "print(*(name for name in sys.modules if name.startswith('airflow_provider_modelscope.gallery.')))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == ["airflow_provider_modelscope.gallery.plugin"]
