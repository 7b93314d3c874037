"""Store the images of a generation that has finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import push_links
from airflow_provider_modelscope.metrics import counts_failures
from airflow_provider_modelscope.tasks.task import StoringTask
from airflow_provider_modelscope.validation import check_all

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg


class ModelScopeImageToObjectStorageOperator(StoringTask, BaseOperator):
    """Store every image of a finished generation, as it came, and return the list of their URIs.

    A retry writes the same objects again, and nothing half-written ever stands under their names. The XCom
    ``images`` describes each, see :class:`~airflow_provider_modelscope.tasks.storing.StoredImage`; what was asked
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

    @counts_failures
    def execute(self, context: Context) -> list[str]:
        """Download, store, and return the URIs."""
        from airflow_provider_modelscope.protocol.generation import checked_id
        from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
        from airflow_provider_modelscope.xcoms import Submission

        check_all(lambda: checked_id(self.generation_id), self._parsed_destination, lambda: self.hook.account)
        generation_id = checked_id(self.generation_id)
        submission = Submission.find(generation_id, task=self, context=context)
        push_links(context, model_url=self.hook.account.model_url(submission.model) if submission else None)
        generation = fetch_finished_generation(self.hook, generation_id)
        generation.raise_for_failure(retry_resubmits=False)
        return self._store(generation, submission, context)
