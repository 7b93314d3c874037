"""What every task of ours has: a hook, links, a colour; and what the two that store images do alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import LINKS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperatorLink, Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.xcoms import StoredImage, Submission


class ModelScopeTask:
    """A task that talks to ModelScope through a connection."""

    modelscope_conn_id: str
    operator_extra_links: Collection[BaseOperatorLink] = LINKS
    ui_color = "#e9e5ff"

    @cached_property
    def hook(self) -> ModelScopeHook:
        """The hook that this task talks through."""
        return ModelScopeHook(modelscope_conn_id=self.modelscope_conn_id)


class StoringTask(ModelScopeTask):
    """A task that stores the images of a generation."""

    destination: str
    storage_conn_id: str | None
    sidecar: bool
    embed_metadata: bool
    _stored: Sequence[StoredImage] = ()

    def _parsed_destination(self) -> Destination:
        """Return where the images go.

        :raises InvalidDestinationError: where they cannot.
        """
        from airflow_provider_modelscope.images.object_storage import Destination

        return Destination.parse(self.destination, storage_conn_id=self.storage_conn_id, sidecar=self.sidecar)

    def _store(self, generation: Generation, submission: Submission | None, context: Context) -> list[str]:
        """Store the images of a generation that succeeded, and return their URIs."""
        from airflow_provider_modelscope.tasks.storing import store_images

        self._stored = store_images(
            generation,
            self._parsed_destination(),
            hook=self.hook,
            context=context,
            submission=submission,
            sidecar=self.sidecar,
            embed_metadata=self.embed_metadata,
        )
        return [image.uri for image in self._stored]

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return what OpenLineage is told: the model and the pictures to edit, and what was stored."""
        from airflow_provider_modelscope.tasks.lineage import lineage_of

        return lineage_of(self._stored)
