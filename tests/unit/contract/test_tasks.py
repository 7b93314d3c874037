"""The operators, the sensor and the transfer, run as Airflow runs them, against the emulator."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationRejectedError,
    GenerationTimeoutError,
    ImageGoneError,
    InvalidDestinationError,
    InvalidRequestError,
    ServiceUnavailableError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.operators.image_generation import (
    REQUEST_PARAMETERS,
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest
from airflow_provider_modelscope.sensors.image_generation import ModelScopeImageGenerationSensor
from airflow_provider_modelscope.tasks.storing import fetch_finished_generation
from airflow_provider_modelscope.transfers.image_to_object_storage import (
    ModelScopeImageToObjectStorageOperator,
)
from tests.unit.conftest import TOKEN, TaskInstance, connect

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

Context = Any  # a mapping with a stand-in for the task instance
ASKED: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "一只猫", "size": "64x64", "seed": "5"}


pytestmark = pytest.mark.usefixtures("no_pauses")


def submitter(**parameters: Any) -> ModelScopeSubmitImageGenerationOperator:
    return ModelScopeSubmitImageGenerationOperator(task_id="submit", **{**ASKED, **parameters})


def sensor(generation_id: Any, **parameters: Any) -> ModelScopeImageGenerationSensor:
    return ModelScopeImageGenerationSensor(task_id="wait", generation_id=generation_id, **parameters)


def one_step(folder: Path, **parameters: Any) -> ModelScopeImageGenerationOperator:
    asked = {**ASKED, "destination": f"file://{folder}/", **parameters}
    return ModelScopeImageGenerationOperator(task_id="draw", **asked)


def run(task: Any, context: Context) -> Any:
    """Run a task to its end as worker, triggerer and worker do, and return its result."""
    try:
        return task.execute(context)
    except TaskDeferred as raised:
        deferral = raised
    _, kwargs = deferral.trigger.serialize()
    assert TOKEN not in json.dumps(kwargs)
    trigger = type(deferral.trigger)(**{**kwargs, "min_deferral_seconds": 0.0})

    async def events() -> Any:
        return [event.payload async for event in trigger.run()]

    [event] = json.loads(json.dumps(asyncio.run(events())))
    for name in ("hook", "_wait"):  # a new process: what execute() kept is gone
        task.__dict__.pop(name, None)
    return task.resume_execution(deferral.method_name, {"event": event}, context)


class TestSubmit:
    def test_it_returns_the_id_and_keeps_what_was_asked_for(
        self, emulator: Emulator, context: Context
    ) -> None:
        before = time.time()
        generation_id = submitter().execute(context)
        assert emulator.requests[0].json == {**ASKED, "seed": 5}
        assert emulator.requests[0].generation_id == generation_id
        kept = context["ti"].pushed["request"]
        assert before <= kept.pop("submitted_at") <= time.time()
        assert kept == {"generation_id": generation_id, **ASKED, "seed": 5}

    def test_every_parameter_of_the_api_reaches_it(self, emulator: Emulator, context: Context) -> None:
        parameters = {
            "negative_prompt": "模糊",
            "steps": "30",
            "guidance": "7.5",
            "image_url": "https://images.example/a.png",
            "loras": {"a/b": "0.4", "c/d": 0.6},
            "extra_parameters": {"sampler": "Euler a"},
        }
        submitter(**parameters).execute(context)
        numbers = {"seed": 5, "steps": 30, "guidance": 7.5, "loras": {"a/b": 0.4, "c/d": 0.6}}
        expected = {**ASKED, **parameters, **numbers, "sampler": "Euler a"}
        del expected["extra_parameters"]
        assert emulator.requests[0].json == expected

    def test_mistakes_end_the_task_and_send_nothing(self, emulator: Emulator, context: Context) -> None:
        with pytest.raises(InvalidRequestError, match=r"steps = '0'.*guidance = 99") as raised:
            submitter(steps="0", guidance=99).execute(context)
        assert isinstance(raised.value, AirflowFailException)
        assert not emulator.requests

    def test_a_picture_in_object_storage_is_sent_along_but_kept_out_of_xcom(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        [source] = run(one_step(tmp_path), context)
        submitter(image_url=source, model="Qwen/Qwen-Image-Edit").execute(context)
        assert emulator.requests[-1].json["image_url"].startswith("data:image/png;base64,")
        assert context["ti"].pushed["request"]["image_url"] == source

    def test_its_parameters_are_those_of_the_request_and_all_are_templated(self) -> None:
        assert set(REQUEST_PARAMETERS) == GenerationRequest.__dataclass_fields__.keys()
        for operator in (ModelScopeSubmitImageGenerationOperator, ModelScopeImageGenerationOperator):
            assert {*REQUEST_PARAMETERS, "storage_conn_id", "modelscope_conn_id"} <= set(
                operator.template_fields
            )


@pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])
class TestWaiting:
    def test_the_sensor_returns_the_id_that_it_waited_for(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        generation_id = submitter().execute(context)
        assert run(sensor(generation_id, deferrable=deferrable), context) == generation_id

    def test_one_task_does_what_the_chain_does(
        self, emulator: Emulator, context: Context, deferrable: bool, tmp_path: Path
    ) -> None:
        chained: Any = {"ti": TaskInstance()}
        generation_id = submitter().execute(chained)
        run(sensor(generation_id, deferrable=deferrable), chained)
        transfer = ModelScopeImageToObjectStorageOperator(
            task_id="store", generation_id=generation_id, destination=f"file://{tmp_path}/chain/"
        )
        [chain_uri] = run(transfer, chained)
        [uri] = run(one_step(tmp_path, deferrable=deferrable), context)
        [image], [chain_image] = context["ti"].pushed["images"], chained["ti"].pushed["images"]
        assert Path(uri.removeprefix("file://")).read_bytes() in emulator.served.values()
        assert uri == f"file://{tmp_path}/{context['ti'].pushed['request']['generation_id']}-1.png"
        # Only a Dag knows which submit task stands upstream, so the model is not known here.
        assert image["parameters"].pop("model") == "Qwen/Qwen-Image"
        own = {name: chain_image[name] for name in ("generation_id", "duration_ms")}
        assert chain_image == {**image, **own, "uri": chain_uri, "model": None}
        assert chain_image["generation_id"] == generation_id
        assert image["seed"] == 5
        assert image["model"] == "Qwen/Qwen-Image"

    @pytest.mark.parametrize(
        "recorded",
        [
            None,
            "s3://xcom/1.json",
            [],
            {},
            {"generation_id": "1"},
            {"generation_id": 1, "model": "a/b"},
            OSError,
        ],
        ids=str,
    )
    def test_what_is_paid_for_is_stored_whatever_became_of_the_xcom_request(
        self, emulator: Emulator, deferrable: bool, tmp_path: Path, recorded: Any
    ) -> None:
        class Forgetful(TaskInstance):
            def xcom_pull(self, task_ids: str, key: str, map_indexes: int | None = None) -> Any:
                if recorded is OSError:
                    raise OSError("the XCom backend is away")
                return recorded

        ti = Forgetful()
        [uri] = run(one_step(tmp_path, deferrable=deferrable, defer_after=0), {"ti": ti})
        assert Path(uri.removeprefix("file://")).read_bytes() in emulator.served.values()
        assert ti.pushed["images"][0]["uri"] == uri

    @pytest.mark.parametrize("fault", ["failed", "rejected"])
    def test_a_failed_generation_ends_the_sensor_for_good_with_the_services_words(
        self, emulator: Emulator, context: Context, deferrable: bool, fault: str
    ) -> None:
        generation_id = submitter().execute(context)
        emulator.fail(f"poll:{fault}")
        with pytest.raises(GenerationRejectedError, match=f"FAILED: .*generation {generation_id}") as raised:
            run(sensor(generation_id, deferrable=deferrable), context)
        assert raised.value.request_id

    @pytest.mark.parametrize(
        ("fault", "error"), [("failed", GenerationFailedError), ("rejected", GenerationRejectedError)]
    )
    def test_in_one_task_a_failed_generation_is_retried_unless_the_request_is_at_fault(
        self,
        emulator: Emulator,
        context: Context,
        deferrable: bool,
        fault: str,
        error: type[Exception],
        tmp_path: Path,
    ) -> None:
        emulator.fail(f"poll:{fault}")
        with pytest.raises(error):
            run(one_step(tmp_path, deferrable=deferrable), context)
        assert not list(tmp_path.iterdir())

    def test_a_wait_that_is_too_long_says_what_was_last_seen(
        self, emulator: Emulator, context: Context, deferrable: bool, tmp_path: Path
    ) -> None:
        emulator.fail("poll:stall:2")
        generation_id = submitter().execute(context)
        says = f"PROCESSING at its deadline.*generation {generation_id}"
        with pytest.raises(AirflowSensorTimeout, match=says):
            run(sensor(generation_id, timeout=0, deferrable=deferrable), context)
        with pytest.raises(GenerationTimeoutError, match="PROCESSING at its deadline"):
            run(one_step(tmp_path, timeout=0, deferrable=deferrable), context)

    @pytest.mark.parametrize("soft", ["soft_fail", "never_fail"])
    @pytest.mark.parametrize(("fault", "timeout"), [("failed", 60), ("stall", 0), ("401", 60)])
    def test_a_sensor_that_shall_not_fail_skips(
        self, emulator: Emulator, context: Context, deferrable: bool, soft: str, fault: str, timeout: int
    ) -> None:
        emulator.fail(f"poll:{fault}:always")
        generation_id = submitter().execute(context)
        with pytest.raises(AirflowSkipException):
            run(sensor(generation_id, timeout=timeout, deferrable=deferrable, **{soft: True}), context)


class TestDeferring:
    def deferred(self, task: Any, context: Context) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as raised:
            task.execute(context)
        return raised.value

    def test_what_finishes_in_the_first_seconds_needs_no_triggerer(
        self, emulator: Emulator, context: Context
    ) -> None:
        generation_id = submitter().execute(context)
        assert sensor(generation_id, deferrable=True, defer_after=0).execute(context) == generation_id

    def test_what_lasts_longer_leaves_the_worker_with_all_that_the_trigger_needs(
        self, emulator: Emulator, context: Context
    ) -> None:
        generation_id = submitter().execute(context)
        emulator.fail("poll:stall:always")
        task = sensor(generation_id, deferrable=True, defer_after=0, poke_interval=7, timeout=100)
        deferral = self.deferred(task, context)
        kwargs = deferral.trigger.serialize()[1]
        assert kwargs["generation_id"] == generation_id
        assert kwargs["modelscope_conn_id"] == "modelscope_default"
        assert kwargs["poll_interval"] == 7
        assert kwargs["min_deferral_seconds"] == 8
        # Airflow's own limit leaves the trigger the time for a last look, so that its message comes first.
        assert deferral.timeout is not None
        assert deferral.timeout.total_seconds() > 100 + 30

    def test_the_trigger_gets_the_model_and_size_of_the_request(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("poll:stall")
        task = one_step(tmp_path, deferrable=True, defer_after=0)
        kwargs = self.deferred(task, context).trigger.serialize()[1]
        assert (kwargs["model"], kwargs["size"]) == (ASKED["model"], ASKED["size"])

    def test_no_trigger_fires_while_a_worker_may_still_be_about_to_report_the_deferral(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "20")
        generation_id = submitter().execute(context)
        emulator.fail("poll:stall:always")
        emulator.fail("submit:queue-full:always")
        for task in (sensor(generation_id, deferrable=True, defer_after=0), submitter(deferrable=True)):
            assert self.deferred(task, context).trigger.serialize()[1]["min_deferral_seconds"] == 23

    def test_a_shorter_execution_timeout_ends_the_wait(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("poll:stall:always")
        limits = {"deferrable": True, "defer_after": 0, "execution_timeout": timedelta(seconds=50)}
        for task in (one_step(tmp_path, **limits), sensor(submitter().execute(context), **limits)):
            deferral = self.deferred(task, context)
            assert deferral.timeout is not None
            assert deferral.timeout.total_seconds() < 50 + 30 + 61

    def test_the_rest_of_the_way_is_seen_by_the_trigger(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("poll:no-images")  # the first look sees no end, the second does
        [uri] = run(one_step(tmp_path, deferrable=True, defer_after=0), context)
        assert Path(uri.removeprefix("file://")).exists()
        looks = [exchange for exchange in emulator.requests if exchange.path.startswith("/v1/tasks/")]
        assert len(looks) == 3  # the worker's, the trigger's, and the worker's for a fresh list


class TestSensor:
    def test_its_defaults_are_those_of_the_service(self) -> None:
        waiting = sensor("42")
        assert (waiting.poke_interval, waiting.timeout) == (15, 900)

    @pytest.mark.parametrize("generation_id", ["", " ", "None", None, ["42"], True, 4.2])
    def test_what_is_no_id_is_refused_without_a_look(
        self, emulator: Emulator, context: Context, generation_id: Any
    ) -> None:
        with pytest.raises(InvalidRequestError, match="generation_id = "):
            sensor(generation_id).execute(context)
        assert not emulator.requests

    def test_an_id_may_be_a_number(self, emulator: Emulator, context: Context) -> None:
        generation_id = submitter().execute(context)
        assert sensor(int(generation_id)).execute(context) == generation_id

    def below_a_submit_task(self, context: Context, *, age: float, **parameters: Any) -> Any:
        """Return a sensor whose generation was submitted upstream, so many seconds ago."""
        generation_id = submitter().execute(context)
        context["ti"].upstream = {
            "generation_id": generation_id,
            "model": ASKED["model"],
            "submitted_at": time.time() - age,
            "size": ASKED["size"],
        }
        with DAG("chain", schedule=None):
            submit, wait = submitter(), sensor(generation_id, **parameters)
            submit >> wait
        return wait

    @pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])
    def test_its_timeout_counts_from_the_submission_upstream(
        self, emulator: Emulator, context: Context, deferrable: bool
    ) -> None:
        emulator.fail("poll:stall:2")
        for age, timeout in ((100, 90), (100, 100)):
            late = self.below_a_submit_task(context, age=age, timeout=timeout, deferrable=deferrable)
            with pytest.raises(AirflowSensorTimeout, match="PROCESSING at its deadline"):
                run(late, context)
        # What has finished in spite of that is found all the same.
        done = self.below_a_submit_task(context, age=1000, timeout=90, deferrable=deferrable)
        assert run(done, context) == done.generation_id

    def test_in_mode_reschedule_it_skips_where_it_shall_not_fail(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("poll:failed")
        generation_id = submitter().execute(context)
        context["ti"].get_first_reschedule_date = lambda context: None
        with pytest.raises(AirflowSkipException):
            sensor(generation_id, mode="reschedule", soft_fail=True).execute(context)

    def test_the_trigger_gets_what_was_recorded_upstream(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("poll:stall")
        with pytest.raises(TaskDeferred) as raised:
            self.below_a_submit_task(context, age=100, deferrable=True).execute(context)
        kwargs = raised.value.trigger.serialize()[1]
        submitted_at = context["ti"].upstream["submitted_at"]
        assert (kwargs["model"], kwargs["size"]) == (ASKED["model"], ASKED["size"])
        assert kwargs["submitted_at"] == submitted_at
        assert kwargs["end_time"] == submitted_at + 900

    @pytest.mark.parametrize("soft_fail", [False, True])
    def test_in_mode_reschedule_it_gives_its_worker_back_between_looks(
        self, emulator: Emulator, context: Context, soft_fail: bool
    ) -> None:
        emulator.fail("poll:no-images")
        generation_id = submitter().execute(context)
        waiting = sensor(generation_id, mode="reschedule", poke_interval=60, soft_fail=soft_fail)
        context["ti"].get_first_reschedule_date = lambda context: None
        with pytest.raises(AirflowException) as raised:
            waiting.execute(context)
        assert type(raised.value).__name__ == "AirflowRescheduleException"  # its module moves about
        assert waiting.execute(context) == generation_id

    def test_a_passing_fault_does_not_end_it(self, emulator: Emulator, context: Context) -> None:
        generation_id = submitter().execute(context)
        emulator.fail("poll:503:6")  # two looks of three tries each
        assert sensor(generation_id, poke_interval=0).execute(context) == generation_id


class TestStoring:
    def store(self, generation_id: Any, destination: str, context: Context) -> Any:
        return ModelScopeImageToObjectStorageOperator(
            task_id="store", generation_id=generation_id, destination=destination
        ).execute(context)

    def test_a_destination_that_cannot_be_written_to_is_found_before_anything_is_paid_for(
        self, emulator: Emulator, context: Context
    ) -> None:
        with pytest.raises(InvalidDestinationError, match="no-such-store"):
            ModelScopeImageGenerationOperator(
                task_id="draw", destination="no-such-store://bucket/", **ASKED
            ).execute(context)
        assert not emulator.requests

    def test_a_retry_writes_the_same_objects_again(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation_id = submitter().execute(context)
        first = self.store(generation_id, f"file://{tmp_path}/", context)
        assert self.store(generation_id, f"file://{tmp_path}/", context) == first
        assert len(list(tmp_path.iterdir())) == 1

    def test_the_destinations_suffix_asks_for_a_format(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation_id = submitter().execute(context)
        [uri] = self.store(generation_id, f"file://{tmp_path}/cat.JPG", context)
        assert uri.endswith("/cat.JPG")
        [image] = context["ti"].pushed["images"]
        assert image["content_type"] == "image/jpeg"
        assert image["size_bytes"] == (tmp_path / "cat.JPG").stat().st_size

    def test_a_url_that_works_no_longer_is_asked_for_again_once(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation_id = submitter().execute(context)
        emulator.fail("image:404")
        assert self.store(generation_id, f"file://{tmp_path}/", context)
        emulator.fail("image:404:2")
        with pytest.raises(ImageGoneError):
            self.store(generation_id, f"file://{tmp_path}/", context)

    def test_nothing_is_stored_where_the_image_cannot_be_had(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        generation_id = submitter().execute(context)
        emulator.fail("image:truncated:always")
        with pytest.raises(Exception, match=r"^Cannot download"):
            self.store(generation_id, f"file://{tmp_path}/", context)
        assert not list(tmp_path.iterdir())

    def test_the_service_being_down_is_left_to_the_retries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")
        with pytest.raises((GenerationTimeoutError, ServiceUnavailableError), match="Cannot reach"):
            fetch_finished_generation(ModelScopeHook(), "42", recheck_seconds=0)
