"""What Airflow's provider manager reads: what is in this distribution, and the connection's form."""

from __future__ import annotations

from typing import Any

# Airflow 3.2 and later render the form from this; the hook turns it into what 3.0 and 3.1 ask for.
CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "modelscope",
    "hook-class-name": "airflow_provider_modelscope.hooks.modelscope.ModelScopeHook",
    "hook-name": "ModelScope",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "port", "schema"],
        "relabeling": {"password": "API token", "host": "Base URL"},
        "placeholders": {"host": "https://api-inference.modelscope.cn", "password": "ms-..."},
    },
    "conn-fields": {
        "request_timeout": {
            "label": "Request timeout",
            "description": "Seconds that one HTTP request may take, at most 600. Default 30.",
            "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 600},
        },
        "verify": {
            "label": "Verify TLS",
            "description": "true (default), false, or the path of a bundle of certificate authorities.",
            "schema": {"type": ["string", "null"]},
        },
        "proxy": {
            "label": "Proxy",
            "description": "URL of an HTTP proxy, in place of the environment's.",
            "schema": {"type": ["string", "null"], "format": "password"},
        },
        "max_image_bytes": {
            "label": "Largest image",
            "description": "Largest image to accept, in bytes. Default 67108864 (64 MiB).",
            "schema": {"type": ["integer", "null"], "minimum": 1},
        },
        "allowed_image_hosts": {
            "label": "Image hosts",
            "description": "Hosts that images may come from though their address is not public; with commas.",
            "schema": {"type": ["string", "null"]},
        },
        "allow_http": {
            "label": "Allow http",
            "description": "Let the token go unencrypted to another machine. Never needed for 127.0.0.1.",
            "schema": {"type": ["boolean", "null"]},
        },
    },
}

_MODULES = {
    "operators": ["airflow_provider_modelscope.operators.image_generation"],
    "sensors": ["airflow_provider_modelscope.sensors.image_generation"],
    "triggers": [
        "airflow_provider_modelscope.triggers.image_generation",
        "airflow_provider_modelscope.triggers.queue",
    ],
    "hooks": ["airflow_provider_modelscope.hooks.modelscope"],
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, valid against Airflow's ``provider_info.schema.json``."""
    return {
        # Equals the distribution's name, or Airflow finds no provider at all.
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
                "class-name": "airflow_provider_modelscope.decorators.image_generation.modelscope_image_task",
                "name": "modelscope_image",
            }
        ],
        "extra-links": [f"airflow_provider_modelscope.links.{name}" for name in ("ImagesLink", "ModelLink")],
        "connection-types": [CONNECTION_TYPE],
    }
