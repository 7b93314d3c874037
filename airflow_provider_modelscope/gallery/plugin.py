"""What Airflow loads: the tab "Images" of a Dag, of a Dag run and of a task instance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow_provider_modelscope.compat import AirflowPlugin
from airflow_provider_modelscope.links import GALLERY, HAS_GALLERY, RUN_TAB


async def gallery(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Run the app. It is made on the first request, so an error in it cannot break other pages."""
    from airflow_provider_modelscope.gallery.app import make_app

    await make_app()(scope, receive, send)


# Relative addresses work below any base URL. Airflow replaces the names in braces, but leaves {MAP_INDEX} as
# it is if the task is not mapped.
_IMAGES_OF_RUN = f"{GALLERY}/{{DAG_ID}}/images?run_id={{RUN_ID}}"
_VIEWS = [
    {
        "name": "Images",
        "href": f"{GALLERY}/{{DAG_ID}}/all-images",
        "destination": "dag",
        "url_route": "modelscope-dag-images",
    },
    {
        "name": "Images",
        "href": _IMAGES_OF_RUN,
        "destination": "dag_run",
        "url_route": RUN_TAB,
    },
    {
        "name": "Images",
        "href": f"{_IMAGES_OF_RUN}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
        "destination": "task_instance",
        "url_route": "modelscope-task-images",
    },
]


class ModelScopePlugin(AirflowPlugin):
    """The gallery; empty on Airflow 3.0, whose UI has no tabs for plugins."""

    name = "modelscope"
    fastapi_apps = (
        [{"app": gallery, "url_prefix": f"/{GALLERY}", "name": "ModelScope images"}] if HAS_GALLERY else []
    )
    external_views = _VIEWS if HAS_GALLERY else []
