"""The parameters of a submission: reads the body and checks each parameter against its range."""

from __future__ import annotations

import hashlib
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILIES = {
    "high-res": (64, 4096),
    "z-image": (512, 2048),
    "qwen-image": (64, 1664),
    "flux": (64, 1024),
    "stable-diffusion": (64, 2048),
    "sdxl": (64, 2048),
}
"""Smallest and largest side in pixels, by a part of the model's name."""

ANY_FAMILY = (64, 4096)
"""The sides of other models. ModelScope has no such limit; here it keeps the image small enough to draw."""

NO_SUCH_MODEL = "nobody/no-such-model"


class BadRequestError(ValueError):
    """The body cannot be read, or a parameter is out of range. Its text is the message of the response."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of a generation, with defaults filled in."""

    model: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    loras: str
    edited_from: str
    """The origin of the input images, for the label: a host or a media type. Empty if there are none."""
    seed: int
    digest: str
    """SHA-256 (hex) of all of the above: the same parameters give the same image."""

    @classmethod
    def from_body(cls, body: bytes | None) -> Parameters:
        """Read and check the body of a submission.

        If there is no seed, it is derived from the other parameters: the same request gets the same seed.

        :param body: None if it could not be read.
        :raises BadRequestError: if ModelScope would respond with status 400.
        """
        content = read_body(body)
        model = _model(content)
        width, height = _size(content, model)
        least_guidance = 0 if "turbo" in model.lower() else 1.5
        images = _images(content, model)
        origins = [_origin(url) for url in images]
        more = f" and {len(origins) - 1} more" if len(origins) > 1 else ""
        used: dict[str, Any] = {
            "model": model,
            "prompt": _text(content, "prompt"),
            "negative_prompt": _text(content, "negative_prompt"),
            "width": width,
            "height": height,
            "steps": _number(content, "steps", 30, 1, 100, int),
            "guidance": float(_number(content, "guidance", 7.5, least_guidance, 20, int, float)),
            "loras": _loras(content),
            "edited_from": "".join(origins[:1]) + more,
        }
        if not used["prompt"].strip():
            raise BadRequestError("prompt is required")
        seed = _number(content, "seed", int(_digest(used, images)[:7], 16), 0, 2**31 - 1, int)
        return cls(**used, seed=seed, digest=_digest(used, images, seed))


def read_body(body: bytes | None) -> dict[str, Any]:
    """Read a JSON object.

    :param body: None if it could not be read.
    :raises BadRequestError: if it is not one.
    """
    if body is None:
        raise BadRequestError("The request body cannot be read")
    try:
        content = json.loads(body.decode("utf-8"))
        # Rejects NaN and lone surrogates.
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise BadRequestError("The request body is not valid JSON in UTF-8") from None
    if not isinstance(content, dict):
        raise BadRequestError("The request body must be a JSON object")
    return content


def _model(content: Mapping[str, Any]) -> str:
    model = content.get("model")
    model = model if isinstance(model, str) else ""
    if not model_exists(model):
        raise BadRequestError(f"Model id : {model[:200]} , has no provider supported")
    return model


def model_exists(model: str) -> bool:
    """Whether there is such a model: any ``owner/name`` but ``NO_SUCH_MODEL``."""
    return re.fullmatch(r"[\w.-]{1,100}/[\w.-]{1,100}", model) is not None and model != NO_SUCH_MODEL


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name, "")
    if not isinstance(value, str) or len(value) >= 2000:
        raise BadRequestError(f"{name} must be a string shorter than 2000 characters")
    return value


def _number(
    content: Mapping[str, Any], name: str, default: float, low: float, high: float, *kinds: type
) -> Any:
    value = content.get(name, default)
    if type(value) not in kinds or not low <= value <= high:  # type, because bool is a subclass of int
        raise BadRequestError(
            f"{name} must be {'a number' if float in kinds else 'an integer'} from {low} to {high}"
        )
    return value


def _size(content: Mapping[str, Any], model: str) -> tuple[int, int]:
    low, high = next((sides for word, sides in FAMILIES.items() if word in model.lower()), ANY_FAMILY)
    size = content.get("size", "1024x1024")
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size) if isinstance(size, str) else None
    if not match or not all(low <= int(side) <= high for side in match.groups()):
        raise BadRequestError(f"size must be WxH, from {low}x{low} to {high}x{high} for this model")
    return int(match[1]), int(match[2])


def _loras(content: Mapping[str, Any]) -> str:
    match content.get("loras", ""):
        case str(lora) if lora.strip() or "loras" not in content:
            return lora
        case dict(loras) if 1 <= len(loras) <= 6 and all(
            type(weight) in (int, float) and abs(weight) < 1e6 for weight in loras.values()
        ):
            if math.isclose(math.fsum(loras.values()), 1.0, abs_tol=1e-6):
                return ", ".join(f"{lora} {weight}" for lora, weight in sorted(loras.items()))
    raise BadRequestError("loras must be one LoRA id, or up to 6 LoRA ids with weights that sum to 1.0")


def _images(content: Mapping[str, Any], model: str) -> list[str]:
    urls = content.get("image_url", [])
    urls = [urls] if isinstance(urls, str) else urls
    if urls in ([], [""]) and "edit" in model.lower():
        raise BadRequestError("image_url is required")
    if not isinstance(urls, list) or (not urls and "image_url" in content):
        raise BadRequestError("image_url must be a string or a list of strings")
    return urls


def _origin(url: object) -> str:
    if isinstance(url, str):
        if inline := re.match(r"data:([\w.+-]+/[\w.+-]+);base64,", url):
            return f"inline {inline[1]}"
        with suppress(ValueError):
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname:
                return parts.hostname
    raise BadRequestError("image_url must be a publicly reachable http(s) URL, or data:<mime>;base64,...")


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
