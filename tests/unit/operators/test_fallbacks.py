"""Fallback models: who is asked, what is sent and charged, and what says which model made the image."""

from __future__ import annotations

import json
import re
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope import compat, metrics
from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AccountNotReadyError,
    AuthenticationError,
    CreditExhaustedError,
    GenerationFailedError,
    ImageError,
    ImageGoneError,
    ImageUnavailableError,
    InvalidRequestError,
    ModelRetiredError,
    ModelScopeError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitedError,
    RequestRejectedError,
    SubmissionLostError,
    SubmissionUnresolvedError,
    UnknownModelError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.provenance.xmp import packet_of, properties_of
from airflow_provider_modelscope.tasks import deferral as deferral_module
from airflow_provider_modelscope.xcoms import Submission
from tests.unit.builders import (
    DEFERRED,
    REQUEST,
    Context,
    one_step,
    overdue,
    rendered,
    resume,
    submissions,
    submitter,
)
from tests.unit.conftest import TOKEN, TaskInstance, connect
from tests.unit.decorators.test_image_generation import drawing, execute
from tests.unit.tasks.conftest import MortalTaskInstance, RealTaskInstance, TaskStateStore, die
from tests.unit.test_metrics import Stats

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_pauses")

FIRST, SECOND, THIRD = REQUEST["model"], "c/second", "e/third"
FALLBACKS = [{"model": SECOND, "steps": 7, "seed": None}, THIRD]
submitting = partial(submitter, fallback_models=FALLBACKS)
drawing_one = partial(one_step, fallback_models=FALLBACKS)


def asked(emulator: Emulator) -> list[str]:
    """Return the models of all submissions."""
    return [sent.json["model"] for sent in submissions(emulator)]


class TestRefusal:
    @pytest.mark.parametrize(
        "fault",
        ["unknown-model", "model-not-found", "retired-model", "quota", "quota-200", "quota-chinese"],
    )
    def test_the_next_model_is_asked(self, emulator: Emulator, context: Context, fault: str) -> None:
        emulator.fail(f"submit:{fault}")
        submitting().execute(context)
        assert asked(emulator) == [FIRST, SECOND]
        assert emulator.accepted == 1
        assert submissions(emulator)[1].json == {
            "model": SECOND, "prompt": REQUEST["prompt"], "size": "64x64", "steps": 7,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("balance", CreditExhaustedError),
            ("no-credit", CreditExhaustedError),
            ("no-credit-chinese", CreditExhaustedError),
            ("401", AuthenticationError),
            ("forbidden", AuthenticationError),
            ("unbound", AccountNotReadyError),
            ("moderated", RequestRejectedError),
            ("400", RequestRejectedError),
            ("queue-full", QueueFullError),
            ("image-queue-full", QueueFullError),
            ("busy", RateLimitedError),
            ("too-fast", RateLimitedError),
            ("too-many", RateLimitedError),
            ("429", RateLimitedError),
            ("500", SubmissionLostError),
            ("lost", SubmissionLostError),
            ("reset", SubmissionLostError),
            ("no-id", SubmissionLostError),
            ("html", SubmissionLostError),
        ],
    )
    def test_nothing_else_asks_another_model(
        self, emulator: Emulator, context: Context, fault: str, error: type[ModelScopeError]
    ) -> None:
        emulator.fail(f"submit:{fault}")
        task = submitting(execution_timeout=timedelta(minutes=1))
        with pytest.raises(error):
            task.execute(overdue(context))
        assert asked(emulator) == [FIRST]

    def test_models_are_asked_in_order(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:unknown-model")
        emulator.fail("submit:quota")
        submitting().execute(context)
        assert asked(emulator) == [FIRST, SECOND, THIRD]
        assert emulator.accepted == 1

    def test_the_error_of_the_first_model_names_all(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:unknown-model")
        emulator.fail("submit:quota:2")
        with pytest.raises(UnknownModelError) as raised:
            submitting().execute(context)
        message = str(raised.value)
        assert re.match(
            rf"ModelScope does not serve this model: .*The model is {FIRST}; others were refused as "
            rf"well: {SECOND}: The daily quota is used up: .*; {THIRD}: The daily quota is used up: ",
            message,
        )
        assert message.isprintable()
        assert (len(asked(emulator)), emulator.accepted) == (3, 0)

    def test_without_fallbacks_the_error_is_that_of_the_model(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("submit:quota")
        with pytest.raises(QuotaExhaustedError) as raised:
            submitter().execute(context)
        assert "fallback" not in str(raised.value)

    def test_credit_that_is_used_up_ends_the_search(self, emulator: Emulator, context: Context) -> None:
        """The words of a retired model can also mean that there is no credit."""
        emulator.fail("submit:retired-model")
        emulator.fail("submit:balance")
        with pytest.raises(CreditExhaustedError, match=f"The model is {SECOND}, a fallback"):
            submitting().execute(context)
        assert asked(emulator) == [FIRST, SECOND]

    def test_the_model_of_the_task_is_not_asked_again(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:quota:2")
        with pytest.raises(QuotaExhaustedError):
            submitter(fallback_models=[FIRST, SECOND, {"model": SECOND, "steps": 9}]).execute(context)
        assert asked(emulator) == [FIRST, SECOND]

    def test_source_images_are_sent_to_each_model(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        [source] = one_step(tmp_path).execute(context)
        emulator.fail("submit:unknown-model")
        submitter(model="Qwen/Qwen-Image-Edit", fallback_models=["c/edit"], image_url=source).execute(context)
        first, second = (sent.json for sent in submissions(emulator)[-2:])
        assert first["image_url"].startswith("data:image/png;base64,")
        assert second == {**first, "model": "c/edit"}
        assert context["ti"].pushed["request"]["image_url"] == source


class TestRecorded:
    def test_the_model_that_was_asked_is_recorded(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:unknown-model")
        emulator.fail("submit:quota")
        drawing_one(tmp_path, sidecar=True, embed_metadata=True).execute(context)
        recorded, [image] = (context["ti"].pushed[key] for key in ("request", "images"))
        made_by = {"model": THIRD, "asked_model": FIRST}
        assert recorded.items() >= made_by.items()
        assert image.items() >= made_by.items()
        assert image["parameters"]["model"] == THIRD
        [sidecar], [file] = tmp_path.glob("*.json"), tmp_path.glob("*.png")
        facts = json.loads(sidecar.read_text())
        assert facts.items() >= made_by.items()
        assert facts["request"] == {**REQUEST, "model": THIRD}
        with file.open("rb") as content:
            embedded = properties_of(packet_of(content) or "")
        assert THIRD in embedded.values()
        assert FIRST not in embedded.values()

    def test_each_fallback_is_a_warning(
        self,
        emulator: Emulator,
        context: Context,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        emulator.fail("submit:unknown-model")
        emulator.fail("submit:quota")
        submitting().execute(context)
        logged = caplog.text + capsys.readouterr().out  # by the versions of Airflow
        assert re.search(rf"(?i)warning.* Asking {SECOND} instead of {FIRST}: ModelScope does not", logged)
        assert re.search(rf"(?i)warning.* Asking {THIRD} instead of {SECOND}: The daily quota", logged)

    def test_the_request_is_that_of_the_model_that_accepted(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("submit:unknown-model")
        generation_id = submitting().execute(context)
        recorded = context["ti"].pushed["request"]
        del recorded["submitted_at"]
        assert recorded == {
            "model": SECOND, "asked_model": FIRST, "prompt": REQUEST["prompt"], "size": "64x64", "steps": 7,
            "generation_id": generation_id, "credit": 1,
        }  # fmt: skip

    def test_without_a_refusal_no_other_model_is_named(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        drawing_one(tmp_path).execute(context)
        assert "asked_model" not in context["ti"].pushed["request"]
        assert context["ti"].pushed["images"][0]["asked_model"] is None

    def test_each_fallback_is_counted(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stats = Stats()
        monkeypatch.setattr(compat, "Stats", stats, raising=False)
        emulator.fail("submit:unknown-model")
        emulator.fail("submit:quota")
        submitting().execute(context)
        name = metrics.FALLBACK
        assert (stats.counts[name], stats.counts[f"{name}.unknown_model"]) == (2, 1)
        tags = {"modelscope_conn_id": "modelscope_default", "model": SECOND}
        assert stats.tags[f"{name}.quota_exhausted"] == tags


class TestRetry:
    def test_it_resumes_the_generation_of_a_fallback(
        self, emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = TaskStateStore()
        emulator.fail("submit:unknown-model:2")
        generation_id = die(drawing_one(tmp_path), store)
        context = store.attempt()
        [uri] = drawing_one(tmp_path).execute(context)
        assert generation_id in uri
        assert (asked(emulator), emulator.accepted) == ([FIRST, SECOND, THIRD], 1)
        assert context["ti"].pushed["images"][0].items() >= {"model": THIRD, "asked_model": FIRST}.items()
        assert "Submitting again" not in caplog.text

    def test_it_resumes_that_of_the_model_itself(self, emulator: Emulator, tmp_path: Path) -> None:
        store = TaskStateStore()
        generation_id = die(one_step(tmp_path), store)
        context = store.attempt()
        [uri] = drawing_one(tmp_path).execute(context)  # the fallbacks are new
        assert generation_id in uri
        assert emulator.accepted == 1
        assert "asked_model" not in context["ti"].pushed["request"]

    def test_it_resumes_a_former_fallback_as_the_model(self, emulator: Emulator) -> None:
        store = TaskStateStore()
        emulator.fail("submit:unknown-model")
        generation_id = die(submitter(fallback_models=[SECOND]), store)
        context = store.attempt()
        assert submitter(model=SECOND).execute(context) == generation_id
        assert "asked_model" not in context["ti"].pushed["request"]

    def test_a_failed_generation_asks_the_first_model_again(self, emulator: Emulator, tmp_path: Path) -> None:
        store = TaskStateStore()
        emulator.fail("submit:quota")
        emulator.fail("poll:failed")
        with pytest.raises(GenerationFailedError):
            drawing_one(tmp_path).execute(store.attempt())
        assert drawing_one(tmp_path).execute(store.attempt())
        assert asked(emulator) == [FIRST, SECOND, FIRST]

    def test_an_image_that_was_not_stored_is_not_paid_for_again(
        self, emulator: Emulator, tmp_path: Path
    ) -> None:
        store = TaskStateStore()
        emulator.fail("submit:quota")
        emulator.fail("image:500:5")
        with pytest.raises(ImageError):
            drawing_one(tmp_path).execute(store.attempt())
        assert drawing_one(tmp_path).execute(store.attempt())
        assert (asked(emulator), emulator.accepted) == ([FIRST, SECOND], 1)

    def test_a_success_that_was_not_recorded_is_resumed(self, emulator: Emulator, tmp_path: Path) -> None:
        store = TaskStateStore()
        emulator.fail("submit:quota")
        first = drawing_one(tmp_path).execute(store.attempt(RealTaskInstance(2)))
        assert drawing_one(tmp_path).execute(store.attempt(RealTaskInstance(2))) == first
        assert emulator.accepted == 1
        assert drawing_one(tmp_path).execute(store.attempt(RealTaskInstance(5))) != first
        assert asked(emulator) == [FIRST, SECOND, FIRST]

    def test_images_that_are_gone_are_replaced_once_for_each_model(
        self, emulator: Emulator, tmp_path: Path
    ) -> None:
        store = TaskStateStore()
        emulator.fail("image:404:always")
        with pytest.raises(ImageGoneError):
            drawing_one(tmp_path).execute(store.attempt())
        for error in (ImageGoneError, ImageGoneError, ImageUnavailableError):
            emulator.fail("submit:quota")  # of the first model, now
            with pytest.raises(error):
                drawing_one(tmp_path).execute(store.attempt())
        assert asked(emulator) == [FIRST, FIRST, SECOND, FIRST, SECOND]
        assert emulator.accepted == 3

    def test_the_newest_generation_is_resumed(self, emulator: Emulator) -> None:
        store, ti = TaskStateStore(), MortalTaskInstance()
        emulator.fail("poll:no-images")
        given_up = die(submitting(), store)
        store.change(given_up=True, submitted_at=1.0)
        emulator.fail("submit:quota")
        with pytest.raises(KeyboardInterrupt):
            submitting().execute(store.attempt(ti))
        context = store.attempt()
        assert submitting().execute(context) != given_up
        assert context["ti"].pushed["request"]["model"] == SECOND
        assert emulator.accepted == 2

    def test_a_refusal_by_all_keeps_the_generation_given_up(self, emulator: Emulator) -> None:
        store = TaskStateStore()
        emulator.fail("poll:no-images")
        given_up = die(submitting(), store)
        store.change(given_up=True)
        emulator.fail("submit:quota:3")
        with pytest.raises(QuotaExhaustedError):
            submitting().execute(store.attempt())
        assert submitting().execute(store.attempt()) == given_up

    def test_a_refusal_by_all_leaves_no_record(self, emulator: Emulator) -> None:
        store = TaskStateStore()
        emulator.fail("submit:quota:3")
        with pytest.raises(QuotaExhaustedError):
            submitting().execute(store.attempt())
        assert store.text is None

    def test_a_lost_submission_to_a_fallback_asks_no_other_model(self, emulator: Emulator) -> None:
        store, task = TaskStateStore(), partial(submitting, on_lost_response="fail")
        emulator.fail("submit:quota")
        emulator.fail("submit:lost")
        with pytest.raises(SubmissionUnresolvedError, match=f"The model is {SECOND}, a fallback"):
            task().execute(store.attempt())
        assert asked(emulator) == [FIRST, SECOND]

    def test_an_attempt_that_died_while_submitting_is_noticed(self, emulator: Emulator) -> None:
        store = TaskStateStore()
        emulator.fail("submit:quota")
        die(submitting(), store)
        [(fingerprint, _)] = store.entries.items()
        store.text = json.dumps({fingerprint: {"sent_at": time.time()}})
        with pytest.raises(SubmissionUnresolvedError):
            submitting(on_lost_response="fail").execute(store.attempt())
        assert asked(emulator) == [FIRST, SECOND]

    def test_errors_of_the_input_name_the_generation(self, emulator: Emulator) -> None:
        store = TaskStateStore()
        emulator.fail("submit:quota")
        generation_id = die(submitting(), store)
        with pytest.raises(InvalidRequestError, match=f"submitted generation {generation_id}"):
            rendered(submitting(), fallback_models=["c/d", 5]).execute(store.attempt())


class TestDeferral:
    def deferred(self, task: Any, context: Context) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as raised:
            task.execute(context)
        return raised.value

    def test_a_full_queue_of_a_fallback_frees_the_worker(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:unknown-model")
        emulator.fail("submit:queue-full")
        make = partial(drawing_one, tmp_path, deferrable=True)
        deferral = self.deferred(make(), context)
        emulator.fail("submit:unknown-model")
        assert resume(make(), deferral, context)
        assert asked(emulator) == [FIRST, SECOND, FIRST, SECOND]
        assert emulator.accepted == 1
        assert context["ti"].pushed["images"][0]["asked_model"] == FIRST

    def test_a_model_that_is_back_is_preferred(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:quota")
        emulator.fail("submit:queue-full")
        make = partial(submitting, deferrable=True)
        resume(make(), self.deferred(make(), context), context)
        assert asked(emulator) == [FIRST, SECOND, FIRST]
        assert "asked_model" not in context["ti"].pushed["request"]

    def test_a_retry_after_a_deferral_resumes_the_fallback(self, emulator: Emulator) -> None:
        store, make = TaskStateStore(), partial(submitting, deferrable=True)
        emulator.fail("submit:quota")
        emulator.fail("submit:queue-full")
        context = store.attempt()
        deferral = self.deferred(make(), context)
        assert store.text is None
        emulator.fail("submit:quota")
        generation_id = resume(make(), deferral, context)
        assert make().execute(store.attempt(TaskInstance())) != generation_id  # done, so a new one
        emulator.fail("submit:quota")
        generation_id = die(make(), store)
        assert make().execute(store.attempt()) == generation_id

    def test_the_fallbacks_of_the_deferred_task_are_kept(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deferral_module, "EARLY_SLOT_RETRY", 0.0)
        emulator.fail("submit:queue-full")
        templated = submitter(deferrable=True, fallback_models="{{ params.others | tojson }}")
        others = {"params": {"others": [{"model": SECOND, "steps": "7"}]}}
        templated.render_template_fields(context | others)
        deferral = self.deferred(templated, context)
        emulator.fail("submit:unknown-model")
        resume(submitter(deferrable=True, fallback_models=[THIRD]), deferral, context)
        assert asked(emulator) == [FIRST, FIRST, SECOND]
        assert submissions(emulator)[-1].json["steps"] == 7

    def test_a_signed_url_of_a_fallback_is_not_stored(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:queue-full")
        url = "https://bucket.example/pose.png?Signature=s3cret"
        own = ({"model": SECOND, "extra_parameters": {"pose": url}},)
        make = partial(submitter, deferrable=True, fallback_models=own)
        deferral = self.deferred(make(), context)
        assert "s3cret" not in json.dumps(deferral.trigger.serialize())
        emulator.fail("submit:unknown-model")
        resume(make(), deferral, context)
        assert submissions(emulator)[-1].json["pose"] == url

    def test_a_generation_of_a_fallback_is_waited_for(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:quota")
        emulator.fail("poll:no-images")
        make = partial(drawing_one, tmp_path, deferrable=True, defer_after=0)
        deferral = self.deferred(make(), context)
        assert deferral.trigger.serialize()[1]["model"] == SECOND
        resume(make(), deferral, context)
        image = context["ti"].pushed["images"][0]
        assert (image["model"], image["asked_model"]) == (SECOND, FIRST)


class TestRetiredModel:
    @pytest.fixture
    def emulator(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
        with Emulator(max_running=10, retired_models=[FIRST]) as emulator:
            connect(monkeypatch, emulator.base_url)
            yield emulator

    def test_three_attempts_and_a_deferral_pay_for_one_image(
        self, emulator: Emulator, tmp_path: Path
    ) -> None:
        store, hook = TaskStateStore(), ModelScopeHook()
        before, price = hook.get_credit().total, hook.get_price(SECOND)
        make = partial(drawing_one, tmp_path, deferrable=True)
        emulator.fail("submit:queue-full")
        context = store.attempt()
        with pytest.raises(TaskDeferred) as deferral:
            make().execute(context)
        emulator.fail("image:500:10")
        with pytest.raises(ImageError):
            resume(make(), deferral.value, context)
        with pytest.raises(ImageError):
            make().execute(store.attempt())
        context = store.attempt()
        [uri] = make().execute(context)
        assert asked(emulator) == [FIRST, SECOND, FIRST, SECOND]
        assert (emulator.accepted, before - hook.get_credit().total) == (1, price)
        assert uri.startswith(f"file://{tmp_path}/")
        assert context["ti"].pushed["images"][0].items() >= {"model": SECOND, "asked_model": FIRST}.items()

    def test_max_credit_does_not_prevent_a_fallback(self, emulator: Emulator) -> None:
        """The price of a retired model is unknown, so nothing is sent to it."""
        submitting(max_credit=1).execute(TaskStateStore().attempt())
        assert asked(emulator) == [SECOND]

    @pytest.mark.parametrize(
        ("faults", "day"), [(["quota:2"], True), (["unknown-model", "quota"], True), (["no-credit"], False)]
    )
    def test_a_task_waits_for_what_may_come_back(
        self, emulator: Emulator, context: Context, faults: list[str], day: bool
    ) -> None:
        """A quota comes back the next day, credit when somebody gets some."""
        for fault in faults:
            emulator.fail(f"submit:{fault}")
        with pytest.raises(TaskDeferred) as deferral:
            submitting(on_exhausted="wait", deferrable=True).execute(context)
        assert deferral.value.method_name == "execute_with_credit"
        assert (deferral.value.trigger.serialize()[1]["needed"] is None) is day
        assert resume_with_credit(context)
        assert context["ti"].pushed["request"]["model"] == SECOND

    def test_a_task_does_not_wait_for_models_that_are_gone(
        self, emulator: Emulator, context: Context
    ) -> None:
        emulator.fail("submit:unknown-model:2")
        with pytest.raises(ModelRetiredError, match="The account has credit"):
            submitting(on_exhausted="wait", deferrable=True).execute(context)


def resume_with_credit(context: Context) -> Any:
    """Run the part of a task that follows the wait for credit."""
    task = submitting(on_exhausted="wait", deferrable=True)
    event = {"status": "credit_available", "deferred_task": DEFERRED}
    return task.execute_with_credit(context, event)


class TestInput:
    INVALID = [{"model": "c/d", "steps": 0}, 5]
    PROBLEM = r"steps = '0': .*fallback_models\[0\].steps = 0: .*fallback_models\[1\] = 5: .*timeout = "

    def test_all_errors_come_in_one_sentence(self, emulator: Emulator, context: Context) -> None:
        task = rendered(one_step(), steps="0", fallback_models=self.INVALID, timeout=-1)
        with pytest.raises(InvalidRequestError, match=self.PROBLEM):
            task.execute(context)
        assert not emulator.requests

    @pytest.mark.parametrize("task", [submitter, one_step])
    def test_an_invalid_constant_is_an_import_error(self, task: Any) -> None:
        with DAG("a_dag", schedule=None), pytest.raises(InvalidRequestError, match=self.PROBLEM):
            task(steps="0", fallback_models=self.INVALID, queue_timeout=0)

    def test_the_constant_size_of_the_task_must_suit_its_fallbacks(self) -> None:
        with DAG("a_dag", schedule=None), pytest.raises(InvalidRequestError, match=r"It is the task's"):
            submitter(size="2000x64", model="a/b", fallback_models=["FLUX.1-dev"])

    def test_templates_are_checked_when_the_task_runs(self, emulator: Emulator, context: Context) -> None:
        with DAG("a_dag", schedule=None):
            task = submitter(fallback_models=["{{ params.other }}", {"model": "c/d", "steps": "{{ 0 }}"}])
        task.render_template_fields(context | {"params": {"other": SECOND}})
        with pytest.raises(InvalidRequestError, match=r"fallback_models\[1\].steps = '0'"):
            task.execute(context)
        task.fallback_models = [SECOND, {"model": "c/d", "steps": "9"}]
        emulator.fail("submit:quota")
        task.execute(context)
        assert asked(emulator) == [FIRST, SECOND]

    def test_a_token_that_json_hides_is_not_sent(self, emulator: Emulator, context: Context) -> None:
        hidden = TOKEN.replace("m", "\\u006d")
        with pytest.raises(InvalidRequestError, match="fallback_models: must not contain the token"):
            rendered(submitter(), fallback_models=f'["a/{hidden}"]').execute(context)
        assert not emulator.requests

    def test_a_chain_passes_the_asked_model_on(self, emulator: Emulator, context: Context) -> None:
        emulator.fail("submit:quota")
        submitting().execute(context)
        submission = Submission.from_json(context["ti"].pushed["request"])
        assert submission
        assert (submission.model, submission.asked_model) == (SECOND, FIRST)


class TestDecorator:
    def test_the_prompt_of_the_function_is_sent_to_the_fallback(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:unknown-model")
        execute(drawing(lambda: {"prompt": "A dog", "seed": 3}, tmp_path, fallback_models=FALLBACKS), context)
        assert submissions(emulator)[1].json == {
            "model": SECOND, "prompt": "A dog", "size": "64x64", "steps": 7,
        }  # fmt: skip
        assert context["ti"].pushed["images"][0]["asked_model"] == FIRST

    def test_a_size_of_the_function_may_suit_the_fallback(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        flux = ["FLUX.1-dev"]
        task = drawing(
            lambda: {"prompt": "A", "size": "64x64"}, tmp_path, size="1664x64", fallback_models=flux
        )
        assert execute(task, context)
        task = drawing(lambda: "A dog", tmp_path, size="1664x64", fallback_models=flux)
        with pytest.raises(InvalidRequestError, match=r"fallback_models\[0\].size = '1664x64'"):
            execute(task, context)

    def test_the_function_may_not_return_fallbacks(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        task = drawing(lambda: {"prompt": "A dog", "fallback_models": []}, tmp_path)
        with pytest.raises(InvalidRequestError, match="function result contains 'fallback_models'"):
            execute(task, context)

    def test_an_invalid_constant_is_an_import_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequestError, match=r"fallback_models\[1\] = 5"):
            drawing(lambda: "A dog", tmp_path, fallback_models=["c/d", 5])
