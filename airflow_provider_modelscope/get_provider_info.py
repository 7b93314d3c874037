"""What Airflow's provider manager reads in every process: modules, settings and the connection's form."""

from __future__ import annotations

from typing import Any

from airflow_provider_modelscope.hooks.connection import CONNECTION_FIELDS, UI_FIELD_BEHAVIOUR
from airflow_provider_modelscope.resuming import OPTION, SECTION

_DECORATORS = "airflow_provider_modelscope.decorators"
_MODULES = {
    "operators": [
        "airflow_provider_modelscope.operators.image_batch",
        "airflow_provider_modelscope.operators.image_generation",
    ],
    "sensors": [
        "airflow_provider_modelscope.sensors.credit",
        "airflow_provider_modelscope.sensors.image_generation",
    ],
    "triggers": [
        "airflow_provider_modelscope.triggers.credit",
        "airflow_provider_modelscope.triggers.image_generation",
        "airflow_provider_modelscope.triggers.queue",
    ],
    "hooks": ["airflow_provider_modelscope.hooks.modelscope"],
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, valid against Airflow's ``provider_info.schema.json``."""
    return {
        # Must equal the distribution's name, or Airflow does not find the provider.
        "package-name": "airflow-provider-modelscope",
        "name": "ModelScope",
        "description": "`ModelScope <https://modelscope.cn>`__: asynchronous image generation.",
        "integrations": [
            {
                "integration-name": "ModelScope",
                "external-doc-url": "https://modelscope.cn/docs/model-service/API-Inference/intro",
                "tags": ["service"],
            }
        ],
        **{
            kind: [{"integration-name": "ModelScope", "python-modules": modules}]
            for kind, modules in _MODULES.items()
        },
        "transfers": [
            {
                "source-integration-name": "ModelScope",
                "target-integration-name": "Common IO",
                "python-module": "airflow_provider_modelscope.transfers.image_to_object_storage",
            }
        ],
        "task-decorators": [
            {
                "class-name": f"{_DECORATORS}.image_generation.modelscope_image_task",
                "name": "modelscope_image",
            },
            {
                "class-name": f"{_DECORATORS}.image_batch.modelscope_image_batch_task",
                "name": "modelscope_image_batch",
            },
        ],
        # Airflow before 3.2 ignores it.
        "cli": ["airflow_provider_modelscope.check.airflow_command.commands"],
        "extra-links": [f"airflow_provider_modelscope.links.{name}" for name in ("ImagesLink", "ModelLink")],
        # Airflow 3.2 and later render the form from this, Airflow 3.0 and 3.1 ask the hook.
        "connection-types": [
            {
                "connection-type": "modelscope",
                "hook-class-name": "airflow_provider_modelscope.hooks.modelscope.ModelScopeHook",
                "hook-name": "ModelScope",
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": {field.name: field.form_input for field in CONNECTION_FIELDS},
            }
        ],
        "config": {
            SECTION: {
                "description": "Settings of the ModelScope provider.\n",
                "options": {
                    OPTION: {
                        "description": (
                            "Folder in object storage, or in a file system that all workers share, where\n"
                            "tasks record what they submitted: a retry resumes it instead of paying again.\n"
                            "Ends with a slash. Not used by Airflow 3.3 and later (task state store).\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://conn_id@bucket/folder/",
                        "default": "",
                    }
                },
            }
        },
    }
