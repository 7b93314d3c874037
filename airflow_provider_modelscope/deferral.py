"""A task's wait: first on its worker, then in the triggerer, then on a worker again.

The trigger itself stands in ``triggers``; it is imported when a task defers, not when a Dag file is read.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_modelscope.exceptions import ModelScopeError, ModelScopeFinalError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_modelscope.generation import Generation
    from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
    from airflow_provider_modelscope.waiting import GenerationWait

DEFER_AFTER = 8.0  # seconds to look from a worker first; fast models need 1 to 6


def wait_or_defer(
    task: BaseOperator, wait: GenerationWait, hook: ModelScopeHook, *, defer_after: float | None
) -> Generation:
    """Return the generation once it is finished; a deferrable task looks for some seconds, then defers.

    A deferral costs some 3 s, and its trigger may not fire within 5: what is faster is not worth one. The
    task goes on in its method ``execute_complete``.

    :param defer_after: How many seconds to look first, 0 for one look; None never defers.
    :raises ModelScopeError: where the wait ends without a finished generation.
    """
    from airflow_provider_modelscope.triggers.image_generation import ModelScopeImageGenerationTrigger

    until = math.inf if defer_after is None else time.time() + defer_after
    generation = hook.look_until(wait, until)
    if generation is not None:
        return generation
    task.log.info("Leaving generation %s (%s) to the triggerer", wait.generation_id, wait.last_seen)
    trigger = ModelScopeImageGenerationTrigger(
        generation_id=wait.generation_id,
        modelscope_conn_id=hook.modelscope_conn_id,
        poll_interval=wait.poll_interval,
        end_time=wait.end_time,
        submitted_at=wait.submitted_at,
    )
    # Airflow's own limit on the deferral is a little later, so that the trigger's message, which says more,
    # comes first.
    seconds = max(0.0, wait.end_time - time.time()) + hook.account.request_timeout + 60
    task.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=seconds))


def generation_id_of(event: Any) -> str:
    """Return the id of the generation that a trigger saw finish.

    :raises ModelScopeError: the error that the trigger met instead. An event of an unknown shape is one
        too, and never passes for success.
    """
    match event:
        case {"status": "finished", "generation_id": str(generation_id)}:
            return generation_id
        case {"status": "error", "error": {"kind": str(), "message": str()} as error}:
            raise ModelScopeError.from_json(error)
        case _:
            raise ModelScopeFinalError(f"The trigger's event is not understood: {event!r}")
