"""The events of the triggers: values, and how a task reads them."""

from __future__ import annotations

from typing import Any

from airflow_provider_modelscope.exceptions import ModelScopeError, ModelScopeFinalError


def generation_id_of(event: Any) -> str:
    """Return the id of the generation that a trigger saw finish.

    :raises ModelScopeError: the error that the trigger met instead. An event of an unknown shape is one
        too, and never passes for success.
    """
    match event:
        case {"status": "finished", "generation_id": str(generation_id)}:
            return generation_id
    raise error_of_event(event)


def error_of_event(event: Any) -> ModelScopeError:
    """Return the error that a trigger met, or that nobody understands what it met."""
    match event:
        case {"status": "error", "error": {"kind": str(), "message": str()} as error}:
            return ModelScopeError.from_json(error)
    return ModelScopeFinalError(f"The trigger's event is not understood: {event!r}")
