"""Links on a task's page in Airflow's UI: to its images and to its model. They work while the task runs.

Addresses in Airflow's own UI are relative to its base URL, which workers do not know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow import __version__ as AIRFLOW_VERSION
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

HAS_GALLERY = not AIRFLOW_VERSION.startswith("3.0.")  # plugins can add tabs from Airflow 3.1 on
GALLERY = "modelscope"  # the path of the gallery in Airflow's API server

log = logging.getLogger(__name__)


class _PushedLink(BaseOperatorLink):
    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return what :func:`push_links` pushed. Airflow calls this when the task ends."""
        from airflow.sdk.execution_time.xcom import XCom

        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


class ImagesLink(_PushedLink):
    """The gallery of this task instance, or of its run if other tasks store the images."""

    name = "Images"
    xcom_key = "modelscope_images_link"


class ModelLink(_PushedLink):
    """The model's page on ModelScope, with its description and availability."""

    name = "Model on ModelScope"
    xcom_key = "modelscope_model_link"


LINKS: tuple[BaseOperatorLink, ...] = (ImagesLink(), ModelLink()) if HAS_GALLERY else (ModelLink(),)


def push_links(context: Context, *, model_url: str | None, has_images: bool = True) -> None:
    """Push the links now; without this, Airflow shows them only when the task has ended.

    :param model_url: The model's page, if it is known.
    :param has_images: Whether the task stores images itself. If not, the link leads to the run's gallery.
    """
    ti = context["ti"]
    links = {ModelLink.xcom_key: model_url} if model_url else {}
    if HAS_GALLERY:
        query: dict[str, Any] = {"dag_id": ti.dag_id, "run_id": ti.run_id}
        if has_images:
            query |= {"task_id": ti.task_id, "map_index": -1 if ti.map_index is None else ti.map_index}
        # Not the tab in Airflow's UI: only users who may list the plugins can see it.
        links[ImagesLink.xcom_key] = f"{GALLERY}/images?{_encode(query)}"
    try:
        for key, link in links.items():
            ti.xcom_push(key=key, value=link)
    except Exception as error:  # backends raise any type; a missing link must not cost an image
        log.warning("Could not push the task's extra links: %r", error)


def image_query(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 1) -> str:
    """Return the query by which the gallery finds one image of a task instance.

    :param map_index: The index of a mapped task instance, from 0; -1 if the task is not mapped.
    :param number: The position of the image in the XCom ``images`` of that task instance, from 1.
    """
    return _encode(
        {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index, "number": number}
    )


def image_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 1) -> str:
    """Return the path of one image in Airflow's UI, for Markdown texts that Airflow shows.

    :param map_index: The index of a mapped task instance, from 0; -1 if the task is not mapped.
    :param number: The position of the image in the XCom ``images`` of that task instance, from 1.
    """
    return f"{GALLERY}/image?{image_query(dag_id, run_id, task_id, map_index, number)}"


def _encode(query: Mapping[str, Any]) -> str:
    return urlencode(query, quote_via=quote, safe="")
