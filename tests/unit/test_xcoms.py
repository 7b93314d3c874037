"""The XComs that tasks leave: written as JSON, read back as values, found by downstream tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.operators.image_generation import ModelScopeSubmitImageGenerationOperator
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.xcoms import (
    BATCHES,
    STATE_FOLDER,
    SUBMITTERS,
    BatchLocation,
    StoredImage,
    Submission,
    name_of,
    own_xcom,
)
from tests.unit.builders import IMAGE
from tests.unit.conftest import TaskInstance

RECORDED = {"generation_id": "42", "model": "a/b", "submitted_at": 5.0, "credit": 0.5, "prompt": "A cat"}
OTHER = {"generation_id": "41", "model": "c/d", "submitted_at": 4.0, "prompt": "A dog"}
SUBMISSION = Submission(
    generation_id="42",
    model="a/b",
    submitted_at=5.0,
    request={"model": "a/b", "prompt": "A cat"},
    credit=0.5,
)
REQUIRED = {name: IMAGE.to_json()[name] for name in ("uri", "size_bytes", "sha256")}


class TestStoredImage:
    def test_it_survives_json(self) -> None:
        assert StoredImage.from_json(json.loads(json.dumps(IMAGE.to_json()))) == IMAGE

    def test_other_tasks_may_leave_out_what_they_do_not_know(self) -> None:
        unknown: dict[str, Any] = dict.fromkeys(set(IMAGE.to_json()) - set(REQUIRED))
        expected = replace(IMAGE, **unknown | {"parameters": {}})
        assert StoredImage.from_json(REQUIRED) == expected
        assert StoredImage.from_json(REQUIRED | {"note": "moved"}) == expected

    @pytest.mark.parametrize("name", REQUIRED)
    def test_an_entry_without_its_location_is_none(self, name: str) -> None:
        assert StoredImage.from_json({key: REQUIRED[key] for key in REQUIRED if key != name}) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            {"uri": None},
            {"uri": 5},
            {"storage_conn_id": 5},
            {"storage_conn_id": ["my_s3"]},
            {"sha256": None},
            {"sha256": "x"},
            {"sha256": "AB" * 32},
            {"sha256": "ab" * 31 + "\r\n"},
            {"sha256": "ab" * 32 + "\n"},
            {"size_bytes": None},
            {"size_bytes": "5"},
            {"size_bytes": True},
            {"size_bytes": 5.0},
            {"size_bytes": float("nan")},
            {"size_bytes": 0},
            {"size_bytes": -1},
            {"size_bytes": 10**400},
        ],
        ids=str,
    )
    def test_an_entry_with_a_wrong_location_is_none(self, wrong: dict[str, Any]) -> None:
        assert StoredImage.from_json(IMAGE.to_json() | wrong) is None

    @pytest.mark.parametrize("value", [None, 5, "x", [], [IMAGE.to_json()], {}], ids=str)
    def test_values_of_other_types_are_none(self, value: Any) -> None:
        assert StoredImage.from_json(value) is None

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("content_type", 5),
            ("width", "64"),
            ("width", True),
            ("height", -1),
            ("height", 10**400),
            ("seed", 1.5),
            ("model", ["a/b"]),
            ("asked_model", 5),
            ("generation_id", 42),
            ("duration_ms", "x"),
            ("duration_ms", float("nan")),
            ("duration_ms", float("inf")),
            ("duration_ms", -1),
            ("duration_ms", 10**400),
            ("sidecar_uri", {}),
            ("credit", "0.5"),
            ("credit", True),
            ("credit", float("nan")),
            ("credit", -1),
        ],
    )
    def test_a_wrong_optional_fact_becomes_none(self, name: str, wrong: Any) -> None:
        without: dict[str, Any] = {name: None}
        assert StoredImage.from_json(IMAGE.to_json() | {name: wrong}) == replace(IMAGE, **without)

    @pytest.mark.parametrize("wrong", [None, [1], "x", 5], ids=str)
    def test_wrong_parameters_become_empty(self, wrong: Any) -> None:
        assert StoredImage.from_json(IMAGE.to_json() | {"parameters": wrong}) == replace(IMAGE, parameters={})

    def test_lone_surrogates_are_replaced(self) -> None:
        names = (
            "uri",
            "storage_conn_id",
            "content_type",
            "model",
            "asked_model",
            "generation_id",
            "sidecar_uri",
        )
        image = StoredImage.from_json(IMAGE.to_json() | dict.fromkeys(names, "a\ud800b\udfff猫😀"))
        assert image
        assert {getattr(image, name) for name in names} == {"a\ufffdb\ufffd猫😀"}

    @pytest.mark.parametrize(
        ("odd", "expected"),
        [
            ("a\ud800", "a\ufffd"),
            (["\udfff", 1], ["\ufffd", 1]),
            ({"\ud800": {"a": "\ud800"}}, {"\ufffd": {"a": "\ufffd"}}),
            (float("nan"), None),
            ([float("-inf"), -1.5], [None, -1.5]),
            (10**5000, None),
            (2**64, 2**64),
            ((1, 2), [1, 2]),
            ({1: 2}, {"1": 2}),
            (object(), None),
            (True, True),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_odd_parameters_can_be_printed(self, odd: Any, expected: Any) -> None:
        image = StoredImage.from_json(IMAGE.to_json() | {"parameters": {"prompt": odd}})
        assert image == replace(IMAGE, parameters={"prompt": expected})
        submission = Submission.from_json(RECORDED | {"prompt": odd})
        assert submission == replace(SUBMISSION, request={"model": "a/b", "prompt": expected})

    def test_deep_parameters_are_cut(self) -> None:
        deep: Any = "?"
        for _ in range(5000):
            deep = [deep]
        image = StoredImage.from_json(IMAGE.to_json() | {"parameters": {"prompt": deep}})
        assert image
        assert 5 < len(str(image.parameters)) < 100


class TestSubmission:
    def test_it_survives_json(self) -> None:
        assert Submission.from_json(json.loads(json.dumps(SUBMISSION.to_json()))) == SUBMISSION
        assert SUBMISSION.to_json() == RECORDED

    def test_the_asked_model_survives_json(self) -> None:
        fallback = replace(SUBMISSION, asked_model="c/d")
        assert Submission.from_json(json.loads(json.dumps(fallback.to_json()))) == fallback
        assert Submission.from_json(RECORDED | {"asked_model": 5}) == SUBMISSION

    @pytest.mark.parametrize(
        "wrong",
        [
            {"generation_id": 42},
            {"model": None},
            {"submitted_at": "5"},
            {"submitted_at": True},
            {"submitted_at": -1},
            {"submitted_at": float("nan")},
            {"submitted_at": 10**400},
        ],
        ids=str,
    )
    def test_a_value_with_a_wrong_fact_is_none(self, wrong: dict[str, Any]) -> None:
        assert Submission.from_json(RECORDED | wrong) is None

    @pytest.mark.parametrize("wrong", [None, "0.5", True, -1, float("nan"), 10**400, [0.5]], ids=str)
    def test_a_wrong_credit_becomes_none(self, wrong: Any) -> None:
        assert Submission.from_json(RECORDED | {"credit": wrong}) == replace(SUBMISSION, credit=None)

    @pytest.mark.parametrize("value", [None, 5, "x", [], [RECORDED], {}], ids=str)
    def test_values_of_other_types_are_none(self, value: Any) -> None:
        assert Submission.from_json(value) is None

    @pytest.mark.parametrize(("size", "expected"), [("8x8", "8x8"), ([8], None), (None, None)])
    def test_its_size_is_that_of_the_request(self, size: Any, expected: str | None) -> None:
        submission = Submission.from_json(RECORDED | {"size": size})
        assert submission
        assert (submission.size, SUBMISSION.size) == (expected, None)

    def test_it_records_the_parameters_of_the_request(self, context: Any) -> None:
        request = GenerationRequest(model="a/b", prompt="A cat", seed=3).summary()
        replace(SUBMISSION, request=request).record(context)
        assert context["ti"].pushed == {"request": {**RECORDED, "seed": 3}}
        assert Submission.own(context) == replace(SUBMISSION, request=request)

    def test_a_failing_backend_costs_no_image(self, caplog: pytest.LogCaptureFixture) -> None:
        class Failing(TaskInstance):
            def xcom_push(self, key: str, value: Any) -> None:
                raise OSError("disk full")

            def xcom_pull(self, *args: Any, **kwargs: Any) -> Any:
                raise OSError("backend down")

        context: Any = {"ti": Failing()}
        SUBMISSION.record(context)
        assert Submission.own(context) is None
        assert "Could not push XCom 'request': OSError('disk full')" in caplog.text
        assert "Could not read XCom 'request' of this task: OSError('backend down')" in caplog.text


def test_a_task_reads_only_the_xcom_of_its_own_instance() -> None:
    class Mapped(TaskInstance):
        map_index = 3

    ti = Mapped()
    ti.upstream = "another instance's"
    assert own_xcom({"ti": ti}, "request") is None  # type: ignore[typeddict-item]
    ti.xcom_push("request", "own")
    assert own_xcom({"ti": ti}, "request") == "own"  # type: ignore[typeddict-item]


@pytest.fixture(params=[False, True], ids=["one submit task", "a mapped submit task"])
def task(request: pytest.FixtureRequest) -> Any:
    """A sensor below a submit task, with a task between them."""
    submitter = ModelScopeSubmitImageGenerationOperator
    with DAG("chain", schedule=None):
        if request.param:
            submit: Any = submitter.partial(task_id="submit", model="a/b").expand(prompt=["A dog", "A cat"])
        else:
            submit = submitter(task_id="submit", model="a/b", prompt="A cat")
        wait = ModelScopeImageGenerationSensor(task_id="wait", generation_id="42")
        later = ModelScopeImageGenerationSensor(task_id="later", generation_id="42")
        submit >> wait >> later
    return later


class TestFind:
    @pytest.mark.parametrize("found", [RECORDED, [OTHER, RECORDED], [None, RECORDED]], ids=str)
    def test_the_record_of_an_upstream_task_is_found(self, task: Any, context: Any, found: Any) -> None:
        context["ti"].upstream = found
        assert Submission.find("42", task=task, context=context) == SUBMISSION

    @pytest.mark.parametrize("found", [None, [], [None], OTHER, [OTHER, OTHER]], ids=str)
    def test_a_generation_submitted_elsewhere_is_not_found(self, task: Any, context: Any, found: Any) -> None:
        context["ti"].upstream = found
        assert Submission.find("42", task=task, context=context) is None

    @pytest.mark.parametrize(
        ("own", "pulls"),
        [(RECORDED, [1]), (OTHER, [1, None]), (None, [1, None])],
        ids=["same index", "another order", "not mapped"],
    )
    def test_a_mapped_task_reads_the_record_of_its_own_index_first(
        self, task: Any, context: Any, own: Any, pulls: list[int | None]
    ) -> None:
        pulled: list[int | None] = []

        def xcom_pull(task_ids: str, key: str, map_indexes: int | None = None) -> Any:
            pulled.append(map_indexes)
            return [OTHER, RECORDED] if map_indexes is None else own

        context["ti"].map_index = 1
        context["ti"].xcom_pull = xcom_pull
        assert Submission.find("42", task=task, context=context) == SUBMISSION
        assert pulled == pulls

    def test_without_an_upstream_submit_task_no_xcom_is_read(self, context: Any) -> None:
        context["ti"].upstream = RECORDED
        with DAG("alone", schedule=None):
            alone = ModelScopeImageGenerationSensor(task_id="wait", generation_id="42")
        assert Submission.find("42", task=alone, context=context) is None


def test_submitters_are_all_tasks_that_record_submissions() -> None:
    package = "airflow_provider_modelscope"
    modules = [
        import_module(f"{package}.{name}")
        for name in (
            "operators.image_generation",
            "sensors.credit",
            "sensors.image_generation",
            "transfers.image_to_object_storage",
            "decorators.image_generation",
        )
    ]
    recording = {
        kind.__name__
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, BaseOperator)
        and kind.__module__.startswith(package)
        and getattr(kind, "records_submission", False)
    }
    assert recording == set(SUBMITTERS)


class TestBatchLocation:
    VALUE: ClassVar[dict[str, Any]] = {
        "state": "s3://bucket/cats/.modelscope/x/",
        "storage_conn_id": "my_s3",
        "manifest": "s3://bucket/cats/manifest.jsonl",
        "total": 5,
    }

    def test_it_is_what_the_task_pushed(self) -> None:
        assert BatchLocation.from_json(self.VALUE) == BatchLocation(**self.VALUE)
        without = {name: self.VALUE[name] for name in ("state", "manifest", "total")}
        assert BatchLocation.from_json(without) == BatchLocation(**self.VALUE | {"storage_conn_id": None})

    @pytest.mark.parametrize(
        "wrong",
        [
            {"state": None},
            {"manifest": 5},
            {"total": "5"},
            {"total": -1},
            {"total": True},
            {"storage_conn_id": 5},
        ],
        ids=str,
    )
    def test_other_values_are_none(self, wrong: dict[str, Any]) -> None:
        assert BatchLocation.from_json(self.VALUE | wrong) is None
        assert BatchLocation.from_json(wrong) is None
        assert BatchLocation.from_json([wrong]) is None

    def test_it_belongs_to_one_task_instance(self) -> None:
        ids = ("a_dag", "a run/with signs", "draw", 2)
        state = f"s3://bucket/cats/{STATE_FOLDER}/{name_of(*ids)}/"
        location = BatchLocation(**self.VALUE | {"state": state})
        assert location.is_of(*ids)
        for position, other in enumerate(("b_dag", "another run", "other", 3)):
            assert not location.is_of(*(other if n == position else one for n, one in enumerate(ids)))  # type: ignore[arg-type]
        for elsewhere in (state + "x/", state[:-1], state.replace(STATE_FOLDER, "other")):
            assert not BatchLocation(**self.VALUE | {"state": elsewhere}).is_of(*ids)

    def test_its_tasks_are_known_by_their_class(self) -> None:
        assert ModelScopeImageBatchOperator.__name__ in BATCHES
