"""Where a task's images and its model can be looked at: links on the task's page, there while it still waits.

All addresses in Airflow's own UI are relative to its base URL, which a worker need not know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow import __version__ as AIRFLOW_VERSION
from airflow.providers.common.compat.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

# The first Airflow whose UI has tabs for plugins.
HAS_GALLERY = not AIRFLOW_VERSION.startswith("3.0.")
GALLERY = "modelscope"  # where the gallery's pages are mounted

log = logging.getLogger(__name__)


class _PushedLink(BaseOperatorLink):
    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return what :func:`push_links` pushed: Airflow asks once more when the task ends."""
        from airflow.providers.common.compat.sdk import XCom

        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


class ImagesLink(_PushedLink):
    """The gallery of this task instance, or of its run where the images are another task's."""

    name = "Images"
    xcom_key = "modelscope_images_link"


class ModelLink(_PushedLink):
    """The model's page, which says what it is for and whether it can be asked."""

    name = "Model on ModelScope"
    xcom_key = "modelscope_model_link"


LINKS: tuple[BaseOperatorLink, ...] = (ImagesLink(), ModelLink()) if HAS_GALLERY else (ModelLink(),)


def push_links(context: Context, *, model_url: str | None, has_images: bool = True) -> None:
    """Let the links show from now on; Airflow itself would do so when the task ends.

    :param model_url: The page of the model, where that is known.
    :param has_images: Whether the images are this task's own; else the gallery of the run is linked.
    """
    ti = context["ti"]
    links = {ModelLink.xcom_key: model_url} if model_url else {}
    if HAS_GALLERY:
        shown: dict[str, Any] = {"dag_id": ti.dag_id, "run_id": ti.run_id}
        if has_images:
            shown |= {"task_id": ti.task_id, "map_index": -1 if ti.map_index is None else ti.map_index}
        # Not the tab in Airflow's UI, which that shows only to those who may read its list of plugins.
        links[ImagesLink.xcom_key] = f"{GALLERY}/images?{_query(shown)}"
    try:
        for key, link in links.items():
            ti.xcom_push(key=key, value=link)
    except Exception as error:  # whatever its backend raises; no image is worth less without a link
        log.warning("The links of this task do not show: %r", error)


def image_query(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 1) -> str:
    """Return the query that names one image of a task instance to the gallery.

    :param number: Which of its images, from 1.
    """
    return _query(
        {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index, "number": number}
    )


def image_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1, number: int = 1) -> str:
    """Return where Airflow's UI finds an image of a task instance, as a Markdown text there can show it.

    :param number: Which of its images, from 1.
    """
    return f"{GALLERY}/image?{image_query(dag_id, run_id, task_id, map_index, number)}"


def _query(named: Mapping[str, Any]) -> str:
    return urlencode(named, quote_via=quote, safe="")
