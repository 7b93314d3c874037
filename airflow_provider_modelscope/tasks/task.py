"""What all our tasks share: a hook, links, a colour, checks at parse time; and storing images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airflow_provider_modelscope.exceptions import InvalidDestinationError, ModelScopeError
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.links import LINKS, push_links
from airflow_provider_modelscope.redaction import preview
from airflow_provider_modelscope.validation import check_all, raise_invalid

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseOperator, BaseOperatorLink, Context

    from airflow_provider_modelscope.images.object_storage import Destination
    from airflow_provider_modelscope.protocol.generation import Generation
    from airflow_provider_modelscope.xcoms import StoredImage, Submission


class ModelScopeTask:
    """A task that calls ModelScope through a connection.

    :param model: The model, None as long as the task does not know it.
    :param has_images: Whether the task submits or stores images.
    """

    modelscope_conn_id: str
    model: str | None = None
    has_images = True
    operator_extra_links: Collection[BaseOperatorLink] = LINKS
    ui_color = "#e9e5ff"

    @cached_property
    def hook(self) -> ModelScopeHook:
        """The hook of the task's connection."""
        return ModelScopeHook(modelscope_conn_id=self.modelscope_conn_id)

    def _refuse_secrets(self, *names: str) -> Callable[[], object]:
        """Check that parameters contain no secret of the connection, before other checks quote their values.

        Returns the check of the connection itself, to report it with the other errors.

        :raises InvalidRequestError: with the names of those that do.
        """
        try:
            self.hook.refuse_secrets(**{name: getattr(self, name) for name in names})
        except ModelScopeError:
            raise
        except Exception as error:  # of any secrets backend: the connection is missing or cannot be read
            return partial(_raise, error)
        return lambda: self.hook.account

    def _find_submission(self, generation_id: str, context: Context) -> Submission | None:
        """Return what an upstream submit task recorded, and link to its model."""
        from airflow_provider_modelscope.xcoms import Submission

        submission = Submission.find(generation_id, task=cast("BaseOperator", self), context=context)
        self.model = submission.model if submission else None
        push_links(cast("BaseOperator", self), context)
        return submission

    def _check_constants(self, own_class: type) -> None:
        """Raise an error for a constant argument that can never be valid: an import error of the Dag file.

        Not in a subclass, which may set attributes later, and not in a mapped task, which is created when
        it runs. Both are checked when they run, as is everything that is not constant. ``multiple_outputs``
        would fail a task after its images are stored, so it is an error wherever our ``execute`` runs.

        :param own_class: The class whose ``__init__`` calls this as its last statement.
        """
        if getattr(self, "multiple_outputs", False) and type(self).execute is own_class.execute:  # type: ignore[attr-defined]
            raise_invalid(["multiple_outputs = True: must be False, because the task returns no mapping"])
        if type(self) is own_class and not getattr(self, "_BaseOperator__from_mapped", False):
            check_all(*self._constant_checks())

    def _constant_checks(self) -> list[Callable[[], object]]:
        """Return the checks of constant arguments: without network, filesystem or connection."""
        raise NotImplementedError


def _raise(error: Exception) -> NoReturn:
    raise error


class StoringTask(ModelScopeTask):
    """A task that stores the images of a generation."""

    destination: str
    storage_conn_id: str | None
    sidecar: bool
    embed_metadata: bool
    _stored: Sequence[StoredImage] = ()

    def _parse_destination(self) -> Destination:
        """Return the destination of the images.

        :raises InvalidDestinationError: if they cannot be stored there.
        """
        from airflow_provider_modelscope.images.object_storage import Destination

        return Destination.parse(self.destination, storage_conn_id=self.storage_conn_id, sidecar=self.sidecar)

    def _check_own_destination(self, context: Context) -> None:
        """Check that mapped tasks do not all store the same object, before anything is charged.

        :raises InvalidDestinationError: if the Dag file gives each of them the name of one object.
        """
        if context["ti"].map_index in (None, -1) or self.destination.endswith("/"):
            return
        dag, task_id = context.get("dag"), cast("BaseOperator", self).task_id
        definition: Any = dag.task_dict.get(task_id) if dag else None
        given = getattr(definition, "partial_kwargs", vars(definition) if definition else {})
        if given.get("destination") == self.destination:  # so it contains no template, and is not mapped
            raise InvalidDestinationError(
                f"destination = {preview(self.destination)}: is one object that each mapped task overwrites. "
                "End it with '/' to store into a folder, or write {{ ti.map_index }} into its name"
            )

    def _store(
        self,
        generation: Generation,
        destination: Destination,
        submission: Submission | None,
        context: Context,
    ) -> list[str]:
        """Store the images of a generation that succeeded, and return their URIs."""
        from airflow_provider_modelscope.tasks.storing import store_images

        self._stored = store_images(
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
        """Return the lineage for OpenLineage: the model and the source images, and the stored images."""
        from airflow_provider_modelscope.tasks.lineage import lineage_of

        return lineage_of(self._stored)
