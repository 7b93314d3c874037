"""Calls of the emulated API, as a client sends them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import requests

from airflow_provider_modelscope.emulator.parameters import Parameters

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator


TOKEN = "ms-11111111-aaaa"


AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


SUBMIT = {**AUTHORIZED, "X-ModelScope-Async-Mode": "true", "Content-Type": "application/json"}


POLL = {**AUTHORIZED, "X-ModelScope-Task-Type": "image_generation"}


REQUEST: dict[str, Any] = {
    "model": "black-forest-labs/FLUX.1-Krea-dev",
    "prompt": "A golden cat",
    "size": "64x64",
}


CHEAP = {"model": "Tongyi-MAI/Z-Image-Turbo", "prompt": "A golden cat"}


def submit(emulator: Emulator, headers: dict[str, str] = SUBMIT, **changes: Any) -> requests.Response:
    body = json.dumps({**REQUEST, **changes}, ensure_ascii=False).encode()
    return requests.post(f"{emulator.base_url}/v1/images/generations", body, headers=headers, timeout=5)


def poll(emulator: Emulator, generation_id: str, headers: dict[str, str] = POLL) -> requests.Response:
    return get(emulator, f"/v1/tasks/{generation_id}", headers)


def get(emulator: Emulator, path: str, headers: dict[str, str] | None = None) -> requests.Response:
    return requests.get(emulator.base_url + path, headers=headers, timeout=5)


def accepted_id(emulator: Emulator, **changes: Any) -> str:
    return str(submit(emulator, **changes).json()["task_id"])


def image_url(emulator: Emulator, **changes: Any) -> str:
    return str(poll(emulator, accepted_id(emulator, **changes)).json()["output_images"][0])


def message(response: requests.Response) -> str:
    content = response.json()
    return str((content.get("errors") or content.get("error") or content)["message"])


def parameters(**changes: Any) -> Parameters:
    return Parameters.from_body(json.dumps({**REQUEST, **changes}).encode())
