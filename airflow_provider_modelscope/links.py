"""Links on a task's page in Airflow's UI: to its images and to its model. They work while the task runs.

Addresses in Airflow's own UI are relative to its base URL, which workers do not know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode
from uuid import UUID

from airflow.sdk import BaseOperatorLink

from airflow_provider_modelscope.compat import AIRFLOW_VERSION

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

HAS_GALLERY = AIRFLOW_VERSION >= (3, 1)  # plugins can add tabs from Airflow 3.1 on
GALLERY = "modelscope"  # the path of the gallery in Airflow's API server
RUN_TAB = "modelscope-images"  # the gallery's tab on the page of a run, in the path of Airflow's UI

_NO_REGION = str(UUID(int=0))

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Instance:
    """What tells a task instance apart from all others of its run.

    From Airflow 3.4 on, each execution of a loop and of a mapped task is a region with an id of its own, and
    the index counts the iterations or the mapped task instances in it.

    :param region_id: Empty before Airflow 3.4, and if the task is neither mapped nor in a loop.
    :param map_index: -1 if the task is neither mapped nor in a loop.
    """

    task_id: str
    region_id: str
    map_index: int

    @classmethod
    def make(cls, task_id: str, map_index: int | None, region_id: object = None) -> Self:
        """Return the task instance with these values, as Airflow keeps them."""
        region = "" if region_id is None or str(region_id) == _NO_REGION else str(region_id)
        return cls(task_id, region, -1 if map_index is None else map_index)

    @classmethod
    def of(cls, ti: Any) -> Self:
        """Return the task instance that runs."""
        # In a loop, Airflow's map_index is -1 unless the task is mapped.
        index = getattr(ti, "region_index", None)
        return cls.make(ti.task_id, ti.map_index if index is None else index, getattr(ti, "region_id", None))

    def includes(self, other: Instance) -> bool:
        """Whether the other one is this task instance, as far as this one names its index and region.

        Airflow's tab names neither in a loop, so it shows every iteration.
        """
        return (
            other.task_id == self.task_id
            and self.map_index in (-1, other.map_index)
            and self.region_id in ("", other.region_id)
        )

    def query(self, run_id: str, **others: Any) -> str:
        """Return the query by which the gallery finds this task instance."""
        region = {"region_id": self.region_id} if self.region_id else {}
        ids = {"run_id": run_id, "task_id": self.task_id, "map_index": self.map_index}
        return _encode({**ids, **region, **others})


class ImagesLink(BaseOperatorLink):
    """The gallery of this task instance, or of its run if other tasks store the images."""

    name = "Images"
    xcom_key = "modelscope_images_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address. Airflow calls this when the task ends, with the task instance as the key."""
        task: Any = operator
        run_id = ti_key.run_id
        query = Instance.of(ti_key).query(run_id) if task.has_images else _encode({"run_id": run_id})
        # Not the tab in Airflow's UI: only users who may list the plugins can see it.
        return f"{GALLERY}/{quote(ti_key.dag_id, safe='')}/images?{query}"


class ModelLink(BaseOperatorLink):
    """The model's page on ModelScope, with its description and availability."""

    name = "Model on ModelScope"
    xcom_key = "modelscope_model_link"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty text if the task does not know its model or account."""
        task: Any = operator
        try:
            if not task.model or "{" in task.model:  # unknown, or a template that was not rendered
                return ""
            return str(task.hook.account.model_url(task.model))
        except Exception:  # of any type; the task itself reports a wrong connection or model
            return ""


LINKS: tuple[BaseOperatorLink, ...] = (ImagesLink(), ModelLink()) if HAS_GALLERY else (ModelLink(),)


def push_links(operator: BaseOperator, context: Context) -> None:
    """Push the links now; without this, Airflow shows them only when the task has ended."""
    from airflow.sdk.bases.xcom import BaseXCom

    ti: Any = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    ids = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": map_index}
    try:
        for link in LINKS:
            # Not by the XCom backend, as Airflow does at the end: links are read from the database.
            BaseXCom.set(link.xcom_key, link.get_link(operator, ti_key=ti), **ids)
    except Exception as error:  # of any type; a missing link must not cost an image
        log.warning("Could not push the task's extra links: %r", error)


def image_path(
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int = -1,
    number: int = 1,
    *,
    region_id: UUID | str | None = None,
) -> str:
    """Return the path of one image in Airflow's UI, for Markdown texts that Airflow shows.

    :param map_index: The index of a mapped task instance, from 0; -1 if the task is not mapped. For a task of
        the same iteration of a loop, ``ti.region_index``.
    :param number: The position of the image in the XCom ``images`` of that task instance, from 1.
    :param region_id: For a task of the same iteration of a loop, ``ti.region_id``.
    """
    instance = Instance.make(task_id, map_index, region_id)
    return f"{GALLERY}/{quote(dag_id, safe='')}/image?{instance.query(run_id, number=number)}"


def _encode(query: Mapping[str, Any]) -> str:
    return urlencode(query, quote_via=quote, safe="")
