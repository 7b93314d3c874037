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

# The variables of a template that have the same value in all tasks of a run.
_SAME_IN_A_RUN = {
    "conn", "conf", "dag", "dag_run", "data_interval_end", "data_interval_start", "ds", "ds_nodash",
    "logical_date", "params", "prev_data_interval_end_success", "prev_data_interval_start_success", "run_id",
    "start_date", "ts", "ts_nodash", "ts_nodash_with_tz", "var",
}  # fmt: skip
_contents: dict[
    tuple[object, ...], object
] = {}  # stored by this process: a task may call operators in a loop


class ModelScopeTask:
    """A task that calls ModelScope through a connection.

    :param model: The model, None as long as the task does not know it.
    :param has_images: Whether the task submits or stores images.
    """

    modelscope_conn_id: str
    model: str | None = None
    has_images = True
    _returns_mapping = False
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
        if (
            not self._returns_mapping
            and getattr(self, "multiple_outputs", False)
            and type(self).execute is own_class.execute  # type: ignore[attr-defined]
        ):
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

    @property
    def _content(self) -> object:
        """What the task stores. Two calls within one task may store the same or different things."""
        raise NotImplementedError

    def _check_own_destination(self, context: Context) -> None:
        """Check that no other image is stored as the same object, before anything is charged.

        :raises InvalidDestinationError: if all mapped tasks store one object, or a task does in a loop.
        """
        if self.destination.endswith("/"):
            return
        problem = ""
        if _contents.get(self._place(context), self._content) != self._content:
            problem = "is one object, and this task has stored another image as it"
        elif context["ti"].map_index not in (None, -1) and self._is_same_for_all(context):
            problem = "is one object that each mapped task overwrites"
        if problem:
            raise InvalidDestinationError(
                f"destination = {preview(self.destination)}: {problem}. End it with '/' to store into a "
                "folder, or name each object differently, in mapped tasks with {{ ti.map_index }}"
            )

    def _place(self, context: Context) -> tuple[object, ...]:
        ti = context["ti"]
        return ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number, self.destination

    def _is_same_for_all(self, context: Context, name: str = "destination") -> bool:
        """Return whether the Dag file gives the same value of a parameter to all mapped tasks of a run."""
        from jinja2 import Environment, nodes

        dag: Any = context.get("dag")
        definition: Any = dag.task_dict.get(cast("BaseOperator", self).task_id) if dag else None
        # In a mapped group, the task itself is not mapped.
        given = getattr(definition, "partial_kwargs", vars(definition) if definition else {})
        template = given.get(name)
        if hasattr(definition, "expand_input") and name not in given:
            mapped = definition.expand_input.value
            is_mapped = not isinstance(mapped, dict) or name in mapped
            template = None if is_mapped else dag.default_args.get(name)
        if not isinstance(template, str):
            return False
        used = Environment().parse(template).find_all(nodes.Name)  # noqa: S701 - no HTML
        return template == getattr(self, name) or {name.name for name in used} <= _SAME_IN_A_RUN

    def _store(
        self,
        generation: Generation,
        destination: Destination,
        submission: Submission | None,
        context: Context,
    ) -> list[str]:
        """Store the images of a generation that succeeded, and return their URIs."""
        from airflow_provider_modelscope.tasks.storing import store_images
        from airflow_provider_modelscope.xcoms import Progress

        Progress.record(context, "storing", generation.generation_id)
        self._stored = store_images(
            generation,
            destination,
            hook=self.hook,
            context=context,
            submission=submission,
            sidecar=self.sidecar,
            embed_metadata=self.embed_metadata,
        )
        _contents[self._place(context)] = self._content
        return [image.uri for image in self._stored]

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the lineage for OpenLineage: the model and the source images, and the stored images."""
        from airflow_provider_modelscope.tasks.lineage import lineage_of

        return lineage_of(self._stored)
