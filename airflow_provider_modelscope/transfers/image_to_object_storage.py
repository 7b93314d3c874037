"""Store the images of a generation that has finished."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import LINKS, push_links
from airflow_provider_modelscope.metrics import counting_failures
from airflow_provider_modelscope.mistakes import check_all

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_modelscope.landing import StoredImage


class ModelScopeImageToObjectStorageOperator(BaseOperator):
    """Store every image of a finished generation, as it came, and return the list of their URIs.

    A retry writes the same objects again, and nothing half-written ever stands under their names. The XCom
    ``images`` describes each, see :class:`~airflow_provider_modelscope.landing.StoredImage`; what was asked
    for is known where the generation was submitted upstream in the same Dag run. Assets in ``outlets`` get
    the images as extra, aliases get them as assets.

    :param generation_id: What the sensor returned.
    :param destination: With a ``/`` at its end a folder, in which an image is named
        ``<generation_id>-<n>.<suffix>``; else that very object (from the second image on with ``-<n>``). A
        suffix ``.png``, ``.jpg`` or ``.webp`` converts where the image is of another format.
    :param storage_conn_id: The connection to object storage.
    :param modelscope_conn_id: The connection that submitted it.
    :param sidecar: Store beside each image ``<name>.json``, which tells how it was made.
    :param embed_metadata: Write that, in short, into PNG, JPEG and WebP images, with the IPTC's marker of
        pictures made by AI. Pixels and the service's own label stay as they are.
    """

    template_fields: Sequence[str] = ("generation_id", "destination", "storage_conn_id", "modelscope_conn_id")
    operator_extra_links = LINKS
    ui_color = "#e9e5ff"
    _stored: Sequence[StoredImage] = ()

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

    @cached_property
    def hook(self) -> ModelScopeHook:
        """The hook that this task talks through."""
        return ModelScopeHook(modelscope_conn_id=self.modelscope_conn_id)

    @counting_failures
    def execute(self, context: Context) -> list[str]:
        """Download, store, and return the URIs."""
        from airflow_provider_modelscope.generation import checked_id
        from airflow_provider_modelscope.landing import finished_generation, land
        from airflow_provider_modelscope.object_storage import Destination
        from airflow_provider_modelscope.upstream import Submission

        def parsed() -> Destination:
            return Destination.parse(
                self.destination, storage_conn_id=self.storage_conn_id, sidecar=self.sidecar
            )

        check_all(lambda: checked_id(self.generation_id), parsed, lambda: self.hook.account)
        generation_id, destination = checked_id(self.generation_id), parsed()
        submission = Submission.find(generation_id, task=self, context=context)
        push_links(context, model_url=self.hook.account.model_url(submission.model) if submission else None)
        generation = finished_generation(self.hook, generation_id)
        generation.raise_for_failure(retry_submits=False)
        self._stored = land(
            generation,
            destination,
            hook=self.hook,
            context=context,
            submission=submission,
            sidecar=self.sidecar,
            embed_metadata=self.embed_metadata,
        )
        return [image.uri for image in self._stored]

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return what OpenLineage is told: the model and the pictures to edit, and what was stored."""
        from airflow_provider_modelscope.lineage import lineage_of

        return lineage_of(self._stored)
