"""The fallback models of a request: what a Dag may give, and the requests that follow."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from airflow_provider_modelscope.exceptions import InvalidRequestError
from airflow_provider_modelscope.protocol.fallbacks import OWN, SHARED, read_fallbacks, requests_by_model
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.validation import INVALID

LIST = "must be a list of at most 10 model ids, or mappings with 'model' and parameters of its own"
ENTRY = "must be a model id, or a mapping with 'model'"
REQUEST = GenerationRequest(model="a/b", prompt="A cat", size="64x64", seed=5, loras="l/m")


def rejection(given: Any, **options: Any) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        read_fallbacks(given, **options)
    return str(raised.value)


@pytest.mark.parametrize("empty", [None, "", " \n", "None", "null", "[]", [], ()], ids=repr)
def test_an_empty_value_is_no_fallback(empty: Any) -> None:
    assert read_fallbacks(empty) == []


@pytest.mark.parametrize(
    "given",
    [
        ["c/d", {"model": "e/f", "steps": "30", "loras": None}],
        ("c/d", {"model": " e/f ", "steps": 30.0, "loras": ""}),
        '["c/d", {"model": "e/f", "steps": 30, "loras": null}]',
        ["c/d", '{"model": "e/f", "steps": "30", "loras": {}}'],
    ],
    ids=["list", "tuple", "text", "an entry as text"],
)
def test_ids_mappings_and_json_text_are_read(given: Any) -> None:
    read = [{"model": "c/d"}, {"model": "e/f", "steps": 30, "loras": None}]
    assert read_fallbacks(given) == read
    assert read_fallbacks(read) == read


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("c/d", f"fallback_models = 'c/d': {LIST}"),
        ({"model": "c/d"}, f"fallback_models = {{'model': 'c/d'}}: {LIST}"),
        ({"c/d"}, LIST),
        (b"c/d", LIST),
        (5, LIST),
        (True, LIST),
        (["c/d"] * 11, LIST),
        ('["c/d"', "in a template, end it with '| tojson'"),
        ("['c/d']", "in a template, end it with '| tojson'"),
        (["c/d", 5], f"fallback_models[1] = 5: {ENTRY}"),
        ([None], f"fallback_models[0] = None: {ENTRY}"),
        ([["c/d"]], f"fallback_models[0] = ['c/d']: {ENTRY}"),
        ([{"size": "64x64"}], f"fallback_models[0] = {{'size': '64x64'}}: {ENTRY}"),
        (["{'model': 'c/d'}"], ENTRY),
        ([""], "fallback_models[0].model = '': must be a ModelScope model id"),
        ([{"model": None}], "fallback_models[0].model = None: must be text"),
        ([{"model": "c/d", "stepz": 5}], "[0]: unknown parameter 'stepz' (did you mean steps?)"),
        ([{"model": "c/d", "Seed": 5}], "unknown parameter 'Seed' (did you mean seed?)"),
        ([{"model": "c/d", 5: 5}], f"unknown parameter 5 (allowed are {', '.join(OWN)})"),
        ([{"model": "c/d", "fallback_models": []}], "unknown parameter 'fallback_models'"),
        ([{"model": "c/d", "prompt": "A dog"}], "fallback_models[0]: must not contain prompt, which is the"),
        ([{"model": "c/d", "image_url": None}], "must not contain image_url, which is the task's"),
        ([{"model": "c/d", "extra_parameters": {"seed": 1}}], "[0].extra_parameters = {'seed': 1}: must not"),
    ],
    ids=lambda part: repr(part)[:40],
)  # fmt: skip
def test_an_invalid_value_is_named_with_its_place(given: Any, problem: str) -> None:
    message = rejection(given)
    assert message.startswith(f"{INVALID}fallback_models")
    assert problem in message


def test_all_errors_come_at_once() -> None:
    message = rejection(["c/d", 5, {"model": "e/f", "steps": 0, "sed": 1, "seed": -1}, {"model": ""}])
    assert [error.partition(" =")[0] for error in message.removeprefix(INVALID).split("; ")] == [
        "fallback_models[1]",
        "fallback_models[2]: unknown parameter 'sed' (did you mean seed?)",
        "fallback_models[2].steps",
        "fallback_models[2].seed",
        "fallback_models[3].model",
    ]


def test_a_list_that_contains_itself_is_an_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert ENTRY in rejection(endless)


class TestSize:
    FLUX = "black-forest-labs/FLUX.1-Krea-dev"
    RANGE = "must be from 64x64 to 1024x1024 for FLUX models, or any size with check_ranges=False"

    def test_its_own_size_must_suit_the_model(self) -> None:
        given = [{"model": self.FLUX, "size": "2000x64"}]
        assert rejection(given) == f"{INVALID}fallback_models[0].size = '2000x64': {self.RANGE}."
        assert read_fallbacks(given, check_ranges=False) == given

    def test_the_size_of_the_task_must_suit_the_model(self) -> None:
        message = rejection([self.FLUX], size="2000x64")
        assert f"fallback_models[0].size = '2000x64': {self.RANGE}. It is the task's" in message
        assert read_fallbacks([self.FLUX], size="2000x64", check_ranges=False)

    @pytest.mark.parametrize("own", ["64x64", None, ""])
    def test_a_size_of_its_own_replaces_that_of_the_task(self, own: Any) -> None:
        assert read_fallbacks([{"model": self.FLUX, "size": own}], size="2000x64")

    def test_an_invalid_size_of_the_task_is_not_reported_again(self) -> None:
        assert read_fallbacks(["c/d"], size="huge") == [{"model": "c/d"}]


class TestRequests:
    def test_what_an_entry_does_not_name_is_the_tasks(self) -> None:
        fallbacks = read_fallbacks(["c/d", {"model": "e/f", "seed": "7", "loras": None, "steps": 9}])
        assert [request.to_json() for request in requests_by_model(REQUEST, fallbacks).values()] == [
            REQUEST.to_json(),
            {**REQUEST.to_json(), "model": "c/d"},
            {"model": "e/f", "prompt": "A cat", "size": "64x64", "seed": 7, "steps": 9},
        ]

    def test_each_model_is_asked_once(self) -> None:
        fallbacks = read_fallbacks(["a/b", "c/d", {"model": "a/b", "seed": 1}, {"model": "c/d", "seed": 1}])
        assert list(requests_by_model(REQUEST, fallbacks)) == ["a/b", "c/d"]
        assert requests_by_model(REQUEST, fallbacks)["c/d"].seed == 5

    def test_every_parameter_is_shared_or_may_be_its_own(self) -> None:
        assert {*SHARED, *OWN} == {field.name for field in fields(GenerationRequest)}
