"""A form for an image: fill it in, and the Dag generates what it describes.

Airflow shows the form when the Dag is triggered in the UI. Empty fields are not sent, and ModelScope uses its
defaults. Add the models and sizes that you use to the lists in the Dag file.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

MODELS = {
    "Qwen/Qwen-Image": "Qwen-Image: text in images, posters",
    "Tongyi-MAI/Z-Image-Turbo": "Z-Image-Turbo: fast, photos",
    "black-forest-labs/FLUX.1-Krea-dev": "FLUX.1 Krea: natural light, portraits",
}
SIZES = {
    "1024x1024": "1024x1024, square",
    "1024x768": "1024x768, landscape",
    "768x1024": "768x1024, portrait",
    "1024x576": "1024x576, wide",
}
MORE = "More parameters"


@dag(
    schedule=None,
    description="Generate the image that a form describes",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "prompt": Param(
            "A red bicycle in the rain",
            type="string",
            format="multiline",
            minLength=1,
            maxLength=1999,
            title="Prompt",
            description="What the image shows, in English or Chinese",
        ),
        "model": Param(
            "Qwen/Qwen-Image",
            type="string",
            enum=list(MODELS),
            values_display=MODELS,
            title="Model",
            description="Each model has a style and a price of its own",
        ),
        "size": Param(
            "1024x1024",
            type="string",
            enum=list(SIZES),
            values_display=SIZES,
            title="Size",
            description="Width x height in pixels",
        ),
        "destination": Param(
            "file:///tmp/modelscope-images/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder of the image: a URI that ends in /, such as s3://bucket/folder/",
        ),
        "negative_prompt": Param(
            None,
            type=["null", "string"],
            format="multiline",
            maxLength=1999,
            section=MORE,
            title="Negative prompt",
            description="What the image does not show, such as: text, watermark",
        ),
        "seed": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            maximum=2147483647,
            section=MORE,
            title="Seed",
            description="The same seed gives the same image. Empty: a random one",
        ),
        "steps": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=100,
            section=MORE,
            title="Steps",
            description="More steps give more detail and take longer, 1 to 100. Empty: as the model needs",
        ),
        "guidance": Param(
            None,
            type=["null", "number"],
            minimum=1.5,
            maximum=20,
            section=MORE,
            title="Guidance",
            description="How closely the image follows the prompt, 1.5 to 20. Empty: as the model needs",
        ),
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
