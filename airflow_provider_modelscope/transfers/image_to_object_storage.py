"""Store the images of a finished generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.metrics import count_failure
from airflow_provider_modelscope.tasks.task import StoringTask
from airflow_provider_modelscope.validation import check_all

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg


class ModelScopeImageToObjectStorageOperator(StoringTask, BaseOperator):
    """Store every image of a finished generation, and return the list of their URIs.

    A retry overwrites the same objects. Writes are atomic: readers never see a partial object. The XCom
    ``images`` describes each image, see :class:`~airflow_provider_modelscope.xcoms.StoredImage`. It contains
    the request if a submit task is upstream in the same Dag run. Assets in ``outlets`` get the images as
    extra, asset aliases get them as assets.

    :param generation_id: The id that the sensor returned.
    :param destination: Where to store the images. If it ends with ``/``, it is a folder, in which an image is
        named ``<generation_id>-<n>.<suffix>``. Otherwise it is one object, and further images get ``-<n>``
        before the suffix. The suffixes ``.png``, ``.jpg`` and ``.webp`` convert images of other formats.
    :param storage_conn_id: The connection to object storage.
    :param modelscope_conn_id: The connection that submitted the generation.
    :param sidecar: Store a JSON file beside each image, such as ``hero.png.json``, which says how the image
        was made.
    :param embed_metadata: Write the same, in short, into PNG, JPEG and WebP images, with the IPTC's mark for
        AI-generated images. Pixels and the service's own label stay unchanged.
    """

    template_fields: Sequence[str] = ("generation_id", "destination", "storage_conn_id", "modelscope_conn_id")

    def __init__(
        self,
        *,
        generation_id: str | XComArg,
        destination: str,
        storage_conn_id: str | None = None,
        modelscope_conn_id: str = ModelScopeHook.default_conn_name,
        sidecar: bool = False,
        embed_metadata: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.generation_id = generation_id
        self.destination = destination
        self.storage_conn_id = storage_conn_id
        self.modelscope_conn_id = modelscope_conn_id
        self.sidecar = sidecar
        self.embed_metadata = embed_metadata
        self._check_constants(ModelScopeImageToObjectStorageOperator)

    def _constant_checks(self) -> list[Callable[[], object]]:
        from airflow_provider_modelscope.images.object_storage import check_destination
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.tasks.parse_time import constant_checks

        return [
            *constant_checks(self, "generation_id", checked_id),
            *constant_checks(self, "destination", check_destination),
        ]

    @property
    def _content(self) -> object:
        return self.generation_id

    def execute(self, context: Context) -> list[str]:
        """Download and store the images, and return their URIs."""
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.tasks.storing import fetch_finished_generation

        with count_failure(self):
            check_connection = self._refuse_secrets("generation_id", "destination", "storage_conn_id")
            generation_id, destination, _ = check_all(
                partial(checked_id, self.generation_id), self._parse_destination, check_connection
            )
            submission = self._find_submission(generation_id, context)
            generation = fetch_finished_generation(self.hook, generation_id)
            generation.raise_for_failure(retry_resubmits=False)
            self._check_own_destination(context)
            return self._store(generation, destination, submission, context)
