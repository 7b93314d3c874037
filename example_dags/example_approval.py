"""Approval by a person: generate three posters, show them in a form of Airflow, and publish the chosen one.

The form is on the tab *Required Actions* of the task `choose`. Its images come from the gallery: only
users who may read the XComs of this Dag see them. If nobody chooses within 12 hours, nothing is published.
Needs Airflow 3.1 or later, and apache-airflow-providers-standard 1.12.2 or later.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators import hitl  # the error in Airflow 3.0 names 3.1
from airflow.sdk import ObjectStoragePath, Param, XComArg, dag, task

from airflow_provider_modelscope.compat import AirflowSkipException
from airflow_provider_modelscope.links import image_path
from airflow_provider_modelscope.operators.image_generation import ModelScopeImageGenerationOperator

SEEDS = [1, 2, 3]
NONE = "None of them"
TIME_LIMIT = timedelta(hours=12)
BODY = """\
|{% for seed in seeds %} {{ loop.index }} |{% endfor %}
|{% for seed in seeds %} --- |{% endfor %}
|{% for seed in seeds %} ![Poster {{ loop.index }}]({{
image_path(dag.dag_id, run_id, "draw", loop.index0) }}) |{% endfor %}
"""


@dag(
    schedule=None,
    description="Generate three posters, let a person choose one, and publish it",
    doc_md=__doc__,
    tags=["modelscope", "example"],
    params={
        "prompt": Param(
            "A poster for a jazz festival, linocut",
            type="string",
            format="multiline",
            minLength=1,
            maxLength=1999,
            title="Prompt",
            description="What the posters show. They differ by their seed",
        ),
        "destination": Param(
            "file:///tmp/modelscope-images/posters/",
            type="string",
            pattern="/$",
            title="Destination",
            description="Folder of the posters: a URI that ends in /, such as s3://bucket/folder/",
        ),
    },
    user_defined_macros={"image_path": image_path, "seeds": SEEDS},
)
def example_approval() -> None:
    """Generate three posters, ask which one to publish, and move it."""
    draw = ModelScopeImageGenerationOperator.partial(
        task_id="draw",
        model="Qwen/Qwen-Image",
        prompt="{{ params.prompt }}",
        size="768x1024",
        destination="{{ params.destination }}candidates/",
        deferrable=True,
    ).expand(seed=SEEDS)

    choose = hitl.HITLOperator(
        task_id="choose",
        subject="Which poster should be published?",
        body=BODY,
        options=[*(str(number) for number, _ in enumerate(SEEDS, start=1)), NONE],
        defaults=NONE,
        response_timeout=TIME_LIMIT,
        doc_md="Waits for a person. The form is on the tab *Required Actions*.",
    )

    @task
    def publish(candidates: Any, chosen: Any, ti: Any = None, params: Any = None) -> str:
        """Move the chosen poster to the published folder. The gallery reads its new place from the XCom."""
        [choice] = chosen["chosen_options"]
        if choice == NONE:
            raise AirflowSkipException("No poster was approved")
        [image] = candidates[int(choice) - 1]
        source = ObjectStoragePath(image["uri"], conn_id=image["storage_conn_id"])
        uri = f"{params['destination']}published/{source.name}"
        target = ObjectStoragePath(uri, conn_id=image["storage_conn_id"])
        if not target.exists():  # otherwise an earlier attempt has moved it
            target.parent.mkdir(parents=True, exist_ok=True)
            source.move(target)
        ti.xcom_push(key="images", value=[{**image, "uri": uri}])
        return uri

    draw >> choose
    publish(XComArg(draw, "images"), choose.output)


example_approval()
