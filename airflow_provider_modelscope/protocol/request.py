"""The request: the parameters of one generation, validated before anything is sent.

Names and ranges are those of ModelScope's documentation of image generation. Nothing is read or sent here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from numbers import Integral, Real
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_modelscope.exceptions import InvalidRequestError
from airflow_provider_modelscope.redaction import preview, preview_url, truncated, without_secrets
from airflow_provider_modelscope.validation import raise_invalid

MAX_SEED = 2**31 - 1
MAX_TEXT = 2000  # prompts are shorter than this
MAX_LORAS = 6
MAX_DEPTH, MAX_TEXT_SHOWN = 6, 4000  # levels and characters of a JSON value to keep and show

# Model families with documented sizes: pattern, smallest and largest side in pixels. The pattern is searched
# in the model's name without its owner. Undocumented versions (FLUX.2) do not belong to the family, and a
# name that matches two families belongs to none.
_SIZES: Mapping[str, tuple[str, int, int]] = {
    "Stable Diffusion": (r"stable[-_ ]?diffusion|(?<![a-z])sd[-_. ]?(xl|[123])", 64, 2048),
    "FLUX": (r"(?<![a-z])flux(?![-_. ]?[2-9])", 64, 1024),
    "Qwen-Image": (r"qwen[-_]image(?![-_]?[2-9]\.)", 64, 1664),
    "Z-Image": (r"(?<![a-z])z[-_]image(?![-_]?[2-9]\.)", 512, 2048),
}


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """The parameters of one generation, validated. Numbers may be text, as Jinja renders them.

    Optional parameters that are ``None`` or empty are not sent; the service then uses its own default.

    :param model: A ModelScope model id such as ``Qwen/Qwen-Image``. Any id is valid: models come and go.
    :param prompt: Description of the image, 1 to 1999 characters.
    :param negative_prompt: What the image should not show, at most 1999 characters.
    :param size: Width and height in pixels, ``WxH``, ``W*H`` or ``W×H``. The range is checked if the model's
        family is known. Stable Diffusion: 64x64 to 2048x2048, FLUX: 64x64 to 1024x1024, Qwen-Image: 64x64 to
        1664x1664, Z-Image: 512x512 to 2048x2048.
    :param seed: 0 to 2147483647; the same seed gives the same image. Without it, the seed is random.
    :param steps: Denoising steps, 1 to 100.
    :param guidance: How closely to follow the prompt, 1.5 to 20.
    :param image_url: For models that edit images: one or a list of http(s) URLs that ModelScope can reach,
        ``data:image/...;base64,`` URIs, or object storage paths. Operators read these paths. For the hook,
        :func:`~airflow_provider_modelscope.images.sources.inline_images` does.
    :param loras: The id of a LoRA, or a mapping of 1 to 6 ids to weights that sum to 1.0.
    :param extra_parameters: Further JSON values to send unchanged, for parameters that the service adds
        later. It must not contain any of the parameters above.
    :param check_ranges: Whether ``size`` and ``guidance`` must be in the documented ranges, which do not suit
        every model. It is not sent, and not kept.
    :raises InvalidRequestError: with the name, the value and the range of every invalid parameter.
    """

    model: str
    prompt: str
    negative_prompt: str | None = None
    size: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    image_url: str | Sequence[str] | None = None
    loras: str | Mapping[str, float] | None = None
    extra_parameters: Mapping[str, Any] | None = None
    check_ranges: InitVar[bool] = True

    def __post_init__(self, check_ranges: bool) -> None:
        values, errors = read_parameters(vars(self), check_ranges=check_ranges)
        raise_invalid(errors)
        vars(self).update(values)  # not by assignment: the request is frozen

    def to_json(self) -> dict[str, Any]:
        """Return the JSON body of the submission.

        :raises InvalidRequestError: if an image is still a path in object storage.
        """
        if self.stored_images:
            raise InvalidRequestError(
                f"image_url = {preview_url(self.stored_images[0])}: ModelScope cannot read object storage. "
                "Operators inline such images; elsewhere call images.sources.inline_images first"
            )
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        extra = named.pop("extra_parameters") or {}
        return {name: value for name, value in named.items() if value is not None} | dict(extra)

    def summary(self) -> dict[str, Any]:
        """Return the parameters as they may be stored and shown: without secrets and bytes of images."""
        images = self.image_url
        if isinstance(images, str):
            images = _shown_url(images)
        elif images is not None:
            images = [_shown_url(image) for image in images]
        shown = {name: value for name, value in vars(self).items() if value is not None}
        if images:
            shown["image_url"] = images
        if self.extra_parameters:
            shown["extra_parameters"] = redacted_json(self.extra_parameters)
        return shown

    @property
    def stored_images(self) -> list[str]:
        """The images to edit that are in object storage and not inlined yet."""
        sendable = ("http://", "https://", "data:")
        urls = [self.image_url] if isinstance(self.image_url, str) else self.image_url or []
        return [url for url in urls if not url.lower().startswith(sendable)]


def check_parameters(given: Mapping[str, Any], *, check_ranges: bool = True) -> list[str]:
    """Return the errors of some request parameters, each as ``name = value: must be ...``.

    Parameters that are not given are not checked, required ones included; the range of ``size`` is checked if
    ``model`` is given as well.

    :param given: Names of request parameters with their values, as a Dag gives them.
    :param check_ranges: As for :class:`GenerationRequest`.
    """
    return read_parameters(given, check_ranges=check_ranges)[1]


def read_parameters(given: Mapping[str, Any], *, check_ranges: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the values to send, and an error for each of the others, as :func:`check_parameters` does."""
    checks = _CHECKS if check_ranges else {**_CHECKS, "guidance": _optional(_number)}
    values: dict[str, Any] = {}
    errors = []
    for name, value in given.items():
        try:
            values[name] = checks[name](value)
        except ValueError as error:
            shown = preview_url(value) if name == "image_url" else preview(value)
            errors.append(f"{name} = {shown}: {error}")
    if check_ranges and (size_error := _size_error(values.get("model"), values.get("size"))):
        errors.append(size_error)
    return values, errors


def _size_error(model: str | None, size: str | None) -> str | None:
    family = _family(model)
    if size is None or family is None:
        return None
    _, least, most = _SIZES[family]
    if all(least <= int(side) <= most for side in size.split("x")):
        return None
    limits = f"{least}x{least} to {most}x{most} for {family} models"
    return f"size = {size!r}: must be from {limits}, or any size with check_ranges=False"


def _family(model: str | None) -> str | None:
    name = (model or "").rpartition("/")[2]
    families = [
        family for family, (pattern, _, _) in _SIZES.items() if re.search(pattern, name, re.IGNORECASE)
    ]
    return families[0] if len(families) == 1 else None


def redacted_json(value: Any, depth: int = 0) -> Any:
    """Return a JSON value as it may be stored and shown: without secrets in URLs, and limited in size."""
    if isinstance(value, str):
        return truncated(_shown_url(value) if re.fullmatch(_ANY_URL, value) else value, MAX_TEXT_SHOWN)
    if isinstance(value, Mapping | list) and depth == MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(name): redacted_json(one, depth + 1) for name, one in value.items()}
    if isinstance(value, list):
        return [redacted_json(one, depth + 1) for one in value]
    return value


def _shown_url(url: str) -> str:
    """Return an image URL as it may be stored and shown; ``data:`` URIs are cut."""
    return truncated(url, 300) if url.lower().startswith("data:") else without_secrets(url)


# Each check takes a value from a Dag, returns the value to send, and raises ValueError with what is allowed.


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Treat ``None``, empty values, and the text that Jinja renders for them as "not given"."""

    def checked(value: Any) -> Any:
        empty = value is None or value in ("", "None", "null", "[]", "{}", [], {}, ())
        return None if empty else check(value)

    return checked


def _sendable_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"must be text, not {type(value).__name__}. If a template rendered it, the Dag sets "
            "render_template_as_native_obj=True: end the template with '| pprint', which keeps its text"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    if "\0" in value:
        raise ValueError("must not contain NUL characters: Airflow's database cannot store them")
    return value


def _model(value: Any) -> str:
    text = _sendable_text(value).strip()
    if not _may_be_id(text):
        raise ValueError("must be a ModelScope model id, such as 'Qwen/Qwen-Image'")
    return text


def _may_be_id(text: str) -> bool:
    """Whether a text may be a model id, not the text that Jinja renders for None, a list or a mapping."""
    return text not in ("", "None", "null") and text[0] not in "[{(" and text.isprintable()


def _short_text(value: Any) -> str:
    # render_template_as_native_obj makes numbers. An integer has one usual text, but 3.1 may have been 3.10.
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    text = _sendable_text(str(value) if is_integer else value)
    if len(text) >= MAX_TEXT:
        raise ValueError(f"must be shorter than {MAX_TEXT} characters, not {len(text)}")
    return text


def _prompt(value: Any) -> str:
    text = _short_text(value)
    if text.strip() in ("", "None", "null"):  # as templates render None
        raise ValueError(f"must describe the image, in 1 to {MAX_TEXT - 1} characters")
    return text


def _negative_prompt(value: Any) -> str | None:
    return None if value in (None, "", "None", "null") else _short_text(value)


def _size(value: Any) -> str:
    sides = r"\s*([0-9]{1,5})\s*[xX×*]\s*([0-9]{1,5})\s*"
    matched = re.fullmatch(sides, value) if isinstance(value, str) else None
    if matched is None or not all(map(int, matched.groups())):
        raise ValueError("must be width x height in pixels, such as '1024x768'")
    return "x".join(str(int(side)) for side in matched.groups())


def _integer(least: int, most: int) -> Callable[[Any], int]:
    def checked(value: Any) -> int:
        try:
            number = _number(value)
        except ValueError:
            number = math.nan
        if not least <= number <= most or number != int(number):
            raise ValueError(f"must be an integer from {least} to {most}")
        return int(number)

    return checked


def _seed(value: Any) -> int:
    try:
        return _integer(0, MAX_SEED)(value)
    except ValueError as error:
        raise ValueError(f"{error}: leave seed out for a random one") from None


def _number(value: Any) -> float:
    """Return a finite number from a number or its text."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", value.strip()):
        value = float(value)
    try:
        finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        finite = False
    if not finite:
        raise ValueError("must be a number")
    return int(value) if isinstance(value, Integral) else float(value)


def _guidance(value: Any) -> float:
    try:
        number = _number(value)
    except ValueError:
        number = math.nan
    if not 1.5 <= number <= 20:
        raise ValueError("must be a number from 1.5 to 20, or any number with check_ranges=False")
    return number


def from_json(value: Any, opening: str) -> Any:
    """Parse a value if it is JSON text: Jinja renders lists and mappings as text."""
    if not (isinstance(value, str) and value.strip().startswith(opening)):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(
            f"must be valid JSON if it starts with {opening!r}: in a template, end it with '| tojson'"
        ) from None


def _image_url(value: Any) -> str | list[str]:
    value = from_json(value, "[")
    if isinstance(value, str):
        return _one_image_url(value)
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        raise ValueError(_IMAGE_URL_FORMS)
    return [_one_image_url(url) for url in value]


def _one_image_url(value: Any) -> str:
    if isinstance(value, str):
        url = _sendable_text(value).strip()
        if re.fullmatch(_DATA_URI, url):
            return url
        if re.match(r"(?!data:)[a-z][a-z0-9+.-]*://", url, re.IGNORECASE) and _is_url(url):
            return url
    raise ValueError(_IMAGE_URL_FORMS)


# Compiled on first use: a Dag file may import this module.
_ANY_URL = r"(?i:data:|[a-z][a-z0-9+.-]*://)\S*"
_DATA_URI = r"(?a)(?i:data:image/[\w.+-]+(;[\w=.+-]+)*;base64,)[A-Za-z0-9+/][A-Za-z0-9+/\s]*+[=\s]*+"
_IMAGE_URL_FORMS = (
    "must be one or a list of: an http(s) URL, a 'data:image/...;base64,' URI, "
    "an object storage path such as 's3://bucket/key' or 'file:///folder/name.png'"
)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return bool(parts.hostname if parts.scheme in ("http", "https") else parts.netloc or parts.path)
    except ValueError:  # such as an unclosed [ of an IPv6 address
        return False


def _loras(value: Any) -> str | dict[str, float]:
    value = from_json(value, "{")
    if isinstance(value, str) and _may_be_id(_sendable_text(value).strip()):
        return value.strip()
    rule = f"must be a LoRA id, or a mapping of 1 to {MAX_LORAS} ids to weights that sum to 1.0"
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MAX_LORAS:
        raise ValueError(rule)
    if not all(isinstance(lora, str) and lora.strip() for lora in value):
        raise ValueError(rule)
    try:
        weights = {_sendable_text(lora): _number(weight) for lora, weight in value.items()}
    except ValueError as error:
        raise ValueError(f"{rule}; a weight {error}") from None
    if not math.isclose(total := sum(weights.values(), 0.0), 1.0, abs_tol=1e-6):
        raise ValueError(f"{rule}; these sum to {total:g}")
    return weights


def _extra_parameters(value: Any) -> dict[str, Any]:
    value = from_json(value, "{")
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a mapping of names to JSON values")
    if taken := sorted({name.strip().lower() for name in value} & _CHECKS.keys()):
        raise ValueError(f"must not contain {', '.join(taken)}: use the parameter of that name")
    if not all(map(str.strip, value)):
        raise ValueError("must be a mapping of names to JSON values, without empty names")
    try:
        text = json.dumps(dict(value), allow_nan=False, ensure_ascii=False)
        text.encode()
        if "\\u0000" in text:
            raise ValueError("NUL characters: Airflow's database cannot store them")
        own: dict[str, Any] = json.loads(text)  # a copy: the Dag may change its mapping later
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must be a mapping of names to JSON values ({error})") from None
    return own


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "model": _model,
    "prompt": _prompt,
    "negative_prompt": _negative_prompt,
    "size": _optional(_size),
    "seed": _optional(_seed),
    "steps": _optional(_integer(1, 100)),
    "guidance": _optional(_guidance),
    "image_url": _optional(_image_url),
    "loras": _optional(_loras),
    "extra_parameters": _optional(_extra_parameters),
}
