"""The records of submissions in object storage, for Airflow 3.0 to 3.2, which have no task state store."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import SubmissionRecordError
from airflow_provider_modelscope.images.object_storage import (
    LOCAL,
    open_folder,
    read_latest,
    remove_object,
    write_object,
)
from airflow_provider_modelscope.resuming import SETTING
from airflow_provider_modelscope.xcoms import name_of

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


class RecordStore:
    """The object with the record of one task instance. It has the methods of Airflow's task state store.

    :param folder: The setting ``[modelscope] submission_records``, opened when it is first used.
    :param ti: The task instance. No two have the same object.
    """

    def __init__(self, folder: str, ti: Any) -> None:
        self._folder = folder
        self._name = f"{name_of(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)}.json"

    def __str__(self) -> str:
        return f"{self._folder}{self._name}"

    def check(self) -> None:
        """Open the folder.

        :raises InvalidDestinationError: if the setting is invalid.
        :raises SubmissionRecordError: if its folder is a local one and missing, perhaps not mounted.
        """
        _ = self._object

    @cached_property
    def _object(self) -> ObjectStoragePath:
        from airflow.sdk import ObjectStoragePath

        folder = open_folder(self._folder, parameter=SETTING)
        if folder.protocol in LOCAL and not Path(folder.path).is_dir():
            raise SubmissionRecordError(
                f"{SETTING} = {self._folder!r}: the folder does not exist on this worker, nothing was sent. "
                "Mount or create it"
            )
        return ObjectStoragePath(str(self))  # folder / name warns with Airflow 3.0

    def get(self, key: str) -> Any:
        """Return the record, or None if there is none; the text of the object if it holds no record."""
        record = self._object
        try:
            content = read_latest(record)
        except FileNotFoundError:
            return None
        try:
            document = json.loads(content)
        except ValueError:  # damaged
            document = None
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            return document[key]
        return content.decode(errors="replace")

    def set(self, key: str, value: Any) -> None:
        """Replace the record, as a whole or not at all."""
        write_object(self._object, json.dumps({key: value}).encode(), "application/json")

    def delete(self, key: str) -> None:
        """Delete the record, if there is one."""
        record = self._object
        try:
            remove_object(record)
        except FileNotFoundError:
            return
