"""The behaviour that ``airflow_provider_modelscope.check`` expects, and what can replace it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TRAITS = {
    "models": "`/v1/models` needs a token",
    "user": "`users/me` does not know a valid token",
    "balance": "the total credit is 1 more than its parts",
    "price": "the price of a model has another name",
    "task": "a poll of an unknown id gets status 404",
    "task-without-header": "a poll without its header gets status 400",
    "bad-token-site": "`users/me` responds to a bad token with status 403",
    "bad-token-api": "the API responds to a bad token with status 403",
    "unknown-model": "an unknown model gets status 404",
    "no-quota-headers": "each response has a header `modelscope-ratelimit-requests-remaining`",
    "accepted": "the response to a submission contains the URL of the image too",
    "one-at-a-time": "an account may run any number of generations",
    "frozen": "credit is spent at once, and never frozen",
    "status": "a generation that runs is RUNNING",
    "time-taken": "`time_taken` is in seconds",
    "input": "the parameters that were used are not reported",
    "seed": "another seed is used",
    "no-redirect": "the URL of an image redirects to another one",
    "content-type": "an image is sent as `application/octet-stream`",
    "label": "an image has no label in its metadata",
    "url-stays": "the URL of an image works for 30 seconds",
    "spent": "a generation costs twice its price",
}
"""The names of the traits, and how the service behaves without each."""


def read_traits(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of traits in the order of the table.

    :raises ValueError: if there is no trait of a name.
    """
    found = frozenset(names)
    for unknown in sorted(found - TRAITS.keys()):
        raise ValueError(f"Unknown trait {unknown!r}. Allowed: {', '.join(TRAITS)}")
    return tuple(name for name in TRAITS if name in found)


def altered(
    trait: str, path: str, headers: Mapping[str, str], status: int, content: Any
) -> tuple[int, Any] | None:
    """Return the status and the JSON of a response without a trait; None if it is the same.

    The traits that are not in the JSON of a single response are in ``service``.
    """
    message = _message(content)
    match trait:
        case "models" if path == "/v1/models" and "Authorization" not in headers:
            return 401, {"errors": {"code": 401, "message": "Authentication failed"}}
        case "user" if path.endswith("/users/me") and status == 200:
            return 200, {"success": False, "code": "NotFound", "message": "There is no such user"}
        case "balance" if "total_balance" in content.get("data", ()):
            data = content["data"]
            return status, {**content, "data": {**data, "total_balance": data["total_balance"] + 1}}
        case "price" if content.get("Data", {}).get("Providers"):
            providers = [{"Name": "ModelScope", "Cost": 1}]
            return status, {**content, "Data": {"Providers": providers, "TotalCount": 1}}
        case "task" if message == "task not found" and "X-ModelScope-Task-Type" in headers:
            return 404, {"errors": {"code": 404, "message": "Not found"}}
        case "task-without-header" if message == "task not found" and "X-ModelScope-Task-Type" not in headers:
            return 400, {"errors": {"code": 400, "message": "X-ModelScope-Task-Type is required"}}
        case "bad-token-site" if path.endswith("/users/me") and status == 401:
            return 403, {"success": False, "code": "Forbidden", "message": "Forbidden"}
        case "bad-token-api" if path.startswith("/v1/") and status == 401:
            return 403, {"errors": {"code": 403, "message": "Forbidden"}}
        case "unknown-model" if "no provider supported" in message:
            return 404, {"errors": {"code": 404, "message": "Model not found"}}
        case "accepted" if path == "/v1/images/generations" and "task_id" in content:
            host = headers.get("Host", "localhost")
            return status, {**content, "output_images": [f"http://{host}/images/early.png"]}
        case "status" if content.get("task_status") in ("PENDING", "PROCESSING"):
            return status, {**content, "task_status": "RUNNING"}
        case "time-taken" if "time_taken" in content:
            return status, {**content, "time_taken": content["time_taken"] / 1000}
        case "input" if "input" in content:
            return status, {name: value for name, value in content.items() if name != "input"}
        case "seed" if "input" in content:
            used = content["input"]
            return status, {**content, "input": {**used, "seed": used["seed"] ^ 1}}
        case "no-redirect" if "output_images" in content:
            urls = [url.replace("/images/", "/moved/") for url in content["output_images"]]
            return status, {**content, "output_images": urls}
    return None


def _message(content: Mapping[str, Any]) -> str:
    errors = content.get("errors")
    return str(errors.get("message", "")) if isinstance(errors, dict) else ""


def describe_traits() -> str:
    """Return the table of all traits, as ``--help`` shows it."""
    lines = ["--without TRAIT lets the service behave in another way:", ""]
    return "\n".join(lines + [f"  {name:<26} {effect}" for name, effect in TRAITS.items()])
