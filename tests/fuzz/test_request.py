"""Any parameters make a request in the documented ranges, or an error that names the invalid ones."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import given, settings, strategies as st

from airflow_provider_modelscope.exceptions import InvalidRequestError
from airflow_provider_modelscope.protocol.request import GenerationRequest

NAMES = [field.name for field in fields(GenerationRequest)]

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

texts = st.text(st.characters(exclude_categories=()), max_size=20)
odd = st.sampled_from(
    [
        "None", "null", "[]", "{}", "[", "{", "nan", "1e3", "９", "x" * 2000, "9" * 5000, "\ud800", "\0", " ",
        b"42", 10**400, float("nan"), float("-inf"), 1j, Decimal("7.5"), Fraction(15, 2),
        Fraction(10**400, 3), datetime(2026, 1, 1), object(), ENDLESS, {1, 2}, {1: 2}, {None: []}, ("a",),
        "[" * 100_000, "data:image/png;base64,AAAA", "s3://bucket/key.png", "https://a.example/1.png?sign=1",
        {"a": {"b": float("nan")}}, {"model": "x"}, {"n": "\udfff"}, {"n": object()},
    ]
)  # fmt: skip
huge = st.just(5000).map(lambda digits: 10**digits)  # more digits than Python converts to text
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=5), odd, huge
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
models = st.sampled_from(
    [
        "Qwen/Qwen-Image",
        "Qwen/Qwen-Image-Edit",
        "black-forest-labs/FLUX.1-Krea-dev",
        "a/b",
        "Tongyi-MAI/Z-Image-Turbo",
    ]
)
images = st.sampled_from(
    [
        "https://a.example/1.png",
        "http://a.example",
        "data:image/png;base64,AAAA",
        "s3://b/k",
        "https://a.example/?s",
    ]
)
good: dict[str, st.SearchStrategy[Any]] = {
    "model": models,
    "prompt": st.text(min_size=1, max_size=30),
    "negative_prompt": st.text(max_size=30) | st.none(),
    "size": st.builds("{}x{}".format, st.integers(1, 3000), st.integers(1, 3000)) | st.none(),
    "seed": st.integers(-1, 2**31) | st.integers(0, 99).map(str),
    "steps": st.integers(0, 101),
    "guidance": st.floats(1, 21) | st.integers(1, 21),
    "image_url": images | st.lists(images, max_size=3) | st.lists(images, max_size=3).map(json.dumps),
    "loras": st.sampled_from(["a/b", {"a/b": 1}, {"a/b": 0.3, "c/d": "0.7"}, '{"a/b": 1.0}', {"a/b": 0.5}]),
    "extra_parameters": st.dictionaries(texts, leaves, max_size=2) | st.just({"n": 1}),
}
# Mostly valid values with up to two arbitrary ones: nearly all requests would be invalid otherwise.
arguments = st.fixed_dictionaries(
    {name: good[name] if name in ("model", "prompt") else st.none() | good[name] for name in NAMES}
).flatmap(
    lambda right: st.dictionaries(st.sampled_from(NAMES), anything, max_size=2).map(
        lambda wrong: right | wrong
    )
)


def check_documented(sent: dict[str, Any]) -> None:
    assert isinstance(sent["model"], str)
    assert sent["model"].strip()
    assert 1 <= len(sent["prompt"]) < 2000
    assert len(sent.get("negative_prompt", "")) < 2000
    if "size" in sent:
        assert re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", sent["size"])
    for name, least, most in (("seed", 0, 2**31 - 1), ("steps", 1, 100)):
        assert type(sent.get(name, least)) is int
        assert least <= sent.get(name, least) <= most
    assert 1.5 <= sent.get("guidance", 2) <= 20
    for url in (
        [sent.get("image_url", [])] if isinstance(sent.get("image_url"), str) else sent.get("image_url", [])
    ):
        assert url.lower().startswith(("http://", "https://", "data:image/"))
    loras = sent.get("loras", "a/b")
    if isinstance(loras, str):
        assert loras.strip()
    else:
        assert 1 <= len(loras) <= 6
        assert abs(sum(loras.values()) - 1) < 1e-5


def test_request_is_valid_or_reports_every_invalid_field() -> None:
    accepted = rejected = 0

    @given(arguments)
    def try_one(parameters: dict[str, Any]) -> None:
        nonlocal accepted, rejected
        try:
            request = GenerationRequest(**parameters)
            sent = request.to_json()
        except InvalidRequestError as error:
            rejected += 1
            assert re.search(rf"\b({'|'.join(NAMES)}) = ", str(error)), str(error)
            assert str(error).isprintable()
            return
        accepted += 1
        text = json.dumps(sent, allow_nan=False, ensure_ascii=False)
        text.encode()
        extra = request.extra_parameters or {}
        check_documented({name: value for name, value in sent.items() if name not in extra})
        json.dumps(request.summary(), allow_nan=False).encode()

    try_one()
    print(f"{accepted} requests accepted, {rejected} rejected")
    assert min(accepted, rejected) >= settings().max_examples / 30, "too few to show anything"


def test_a_single_invalid_value_is_the_one_reported() -> None:
    @given(st.sampled_from(NAMES), anything)
    def try_one(name: str, value: Any) -> None:
        try:
            GenerationRequest(**{"model": "a/b", "prompt": "a cat", name: value})
        except InvalidRequestError as error:
            assert str(error).startswith(f"Invalid parameters, nothing was sent: {name} = ")
            assert len(str(error)) < 600

    try_one()
