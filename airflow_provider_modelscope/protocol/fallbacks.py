"""The fallback models of a request: other models to ask, each with parameters of its own, validated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from airflow_provider_modelscope.protocol.request import (
    GenerationRequest,
    check_parameters,
    from_json,
    read_parameters,
)
from airflow_provider_modelscope.redaction import preview
from airflow_provider_modelscope.validation import raise_invalid, unknown_names

MAX_FALLBACKS = 10
SHARED = ("prompt", "image_url")  # the parameters in which all requests are equal
OWN = tuple(field.name for field in fields(GenerationRequest) if field.name not in SHARED)


def read_fallbacks(given: Any, *, size: Any = None, check_ranges: bool = True) -> list[dict[str, Any]]:
    """Return the parameters in which the request to each fallback model differs, ``model`` among them.

    :param given: A list of model ids and of such mappings, as a Dag gives it; or as JSON text, as a template
        does. Empty values and ``None`` are no fallback models.
    :param size: The size in the task, which a model without a size of its own must allow.
    :param check_ranges: As for :class:`GenerationRequest`.
    :raises InvalidRequestError: with the place, the value and the range of every invalid parameter.
    """
    try:
        entries = _entries(given)
    except ValueError as error:
        raise_invalid([f"fallback_models = {preview(given)}: {error}"])
    of_task = {} if check_parameters({"size": size}) else {"size": size}
    fallbacks, errors = [], []
    for number, entry in enumerate(entries):
        place = f"fallback_models[{number}]"
        own = _parameters_of(entry)
        if own is None:
            errors.append(f"{place} = {preview(entry)}: must be a model id, or a mapping with 'model'")
            continue
        errors += [f"{place}: {problem}" for problem in _forbidden(own)]
        checked = {name: value for name, value in own.items() if name in OWN}
        values, found = read_parameters(of_task | checked, check_ranges=check_ranges)
        hint = "" if "size" in own else ". It is the task's: give this model a size of its own"
        errors += [f"{place}.{one}{hint if one.startswith('size = ') else ''}" for one in found]
        fallbacks.append({name: values.get(name) for name in checked})
    raise_invalid(errors)
    return fallbacks


def requests_by_model(
    request: GenerationRequest, fallbacks: Sequence[Mapping[str, Any]]
) -> dict[str, GenerationRequest]:
    """Return a request and those to its fallback models, in the order in which to ask, each model once.

    :param fallbacks: What :func:`read_fallbacks` returned.
    """
    requests = {request.model: request}
    for own in fallbacks:
        if own["model"] not in requests:  # it would refuse again
            requests[own["model"]] = replace(request, **own, check_ranges=False)  # done already
    return requests


def _entries(given: Any) -> Sequence[Any]:
    given = from_json(given, "[")
    if given is None or (isinstance(given, str) and given.strip() in ("", "None", "null")):
        return []
    if not isinstance(given, list | tuple) or len(given) > MAX_FALLBACKS:
        raise ValueError(
            f"must be a list of at most {MAX_FALLBACKS} model ids, or mappings with 'model' and parameters "
            "of its own"
        )
    return given


def _parameters_of(entry: Any) -> Mapping[Any, Any] | None:
    """Return the parameters that an entry names, or None if it names no model."""
    if isinstance(entry, str) and not entry.lstrip().startswith("{"):
        return {"model": entry}
    with suppress(ValueError):
        entry = from_json(entry, "{")
    return entry if isinstance(entry, Mapping) and "model" in entry else None


def _forbidden(names: Iterable[Any]) -> Iterator[str]:
    """Yield an error for each name that an entry must not contain."""
    for name in names:
        if name in SHARED:
            yield f"must not contain {name}, which is the task's for every model"
        else:
            yield from unknown_names([name], OWN, kind="parameter")
