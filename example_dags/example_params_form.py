"""A form for the request, which opens when the Dag is triggered in the UI.

Empty fields are not sent, and ModelScope uses its defaults.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator


@dag(
    schedule=None,
    tags=["modelscope", "example"],
    params={
        "model": Param(
            "Qwen/Qwen-Image",
            type="string",
            examples=["Qwen/Qwen-Image", "Tongyi-MAI/Z-Image-Turbo", "black-forest-labs/FLUX.1-Krea-dev"],
            title="Model",
        ),
        "prompt": Param("A red bicycle in the rain", type="string", maxLength=1999, title="Prompt"),
        "negative_prompt": Param(None, type=["null", "string"], maxLength=1999, title="Negative prompt"),
        "size": Param("1024x1024", type="string", pattern="^[0-9]+x[0-9]+$", title="Size"),
        "seed": Param(None, type=["null", "integer"], minimum=0, maximum=2147483647, title="Seed"),
        "steps": Param(None, type=["null", "integer"], minimum=1, maximum=100, title="Steps"),
        "guidance": Param(None, type=["null", "number"], minimum=1.5, maximum=20, title="Guidance"),
        "destination": Param("file:///tmp/modelscope-images/", type="string", title="Destination"),
    },
)
def example_params_form() -> None:
    """Generate the image that the form describes."""
    ModelScopeImageGenerationOperator(
        task_id="draw",
        model="{{ params.model }}",
        prompt="{{ params.prompt }}",
        negative_prompt="{{ params.negative_prompt or '' }}",
        size="{{ params.size }}",
        seed="{{ params.seed }}",
        steps="{{ params.steps }}",
        guidance="{{ params.guidance }}",
        destination="{{ params.destination }}",
        deferrable=True,
    )


example_params_form()
