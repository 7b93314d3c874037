"""Whatever ends a try, the next one pays for nothing that is paid for already."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ImageGoneError,
    ModelScopeError,
    ModelScopeFinalError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.operators.image_generation import (
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.tasks.submission_record import KEY
from tests.unit.conftest import TOKEN, TaskInstance, connect

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator

ASKED: dict[str, Any] = {"model": "Qwen/Qwen-Image", "prompt": "A cat", "size": "64x64"}

pytestmark = pytest.mark.usefixtures("no_pauses")


class RealTaskInstance(TaskInstance):
    """A task instance that says, as Airflow's do, how often it may be tried: more after a Clear."""

    def __init__(self, max_tries: int) -> None:
        super().__init__()
        self.max_tries = max_tries


class Store:
    """Airflow's task state store as a task sees it, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.broken: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self._fail("get")
        return json.loads(self.kept[key]) if key in self.kept else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._fail("set")
        self.kept[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self._fail("delete")
        self.kept.pop(key, None)

    def _fail(self, what: str) -> None:
        if what in self.broken:
            raise RuntimeError(f"{what} failed")


class MortalTaskInstance(TaskInstance):
    """A task whose process ends when it pushes the XCom ``request``, right after the answer was recorded."""

    def xcom_push(self, key: str, value: Any) -> None:
        if key == "request":
            raise KeyboardInterrupt


@pytest.fixture
def store() -> Store:
    return Store()


def a_try(store: Store | None, ti: TaskInstance | None = None) -> Any:
    """Return the context of one try: XCom starts empty, the store is kept."""
    return {"ti": ti or TaskInstance(), **({} if store is None else {"task_state_store": store})}


def submitter(**parameters: Any) -> ModelScopeSubmitImageGenerationOperator:
    return ModelScopeSubmitImageGenerationOperator(task_id="submit", **{**ASKED, **parameters})


def one_step(folder: Path, **parameters: Any) -> ModelScopeImageGenerationOperator:
    asked = {**ASKED, "destination": f"file://{folder}/", **parameters}
    return ModelScopeImageGenerationOperator(task_id="draw", **asked)


def die(task: Any, store: Store) -> str:
    """Let a try end right after its submission was recorded; return the generation's id."""
    with pytest.raises(KeyboardInterrupt):
        task.execute(a_try(store, MortalTaskInstance()))
    return str(json.loads(store.kept[KEY])["generation_id"])


class TestARetry:
    def test_takes_up_what_was_submitted(self, emulator: Emulator, store: Store, tmp_path: Path) -> None:
        generation_id = die(one_step(tmp_path), store)
        context = a_try(store)
        [uri] = one_step(tmp_path).execute(context)
        assert uri == f"file://{tmp_path}/{generation_id}-1.png"
        assert context["ti"].pushed["request"]["generation_id"] == generation_id
        assert emulator.accepted == 1

    def test_of_the_submit_operator_returns_the_same_id(self, emulator: Emulator, store: Store) -> None:
        generation_id = die(submitter(), store)
        assert submitter().execute(a_try(store)) == generation_id
        assert emulator.accepted == 1

    def test_waits_in_the_triggerer_for_what_still_runs(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("poll:stall")
        task = one_step(tmp_path, deferrable=True, defer_after=0)
        generation_id = die(task, store)
        with pytest.raises(TaskDeferred) as raised:
            one_step(tmp_path, deferrable=True, defer_after=0).execute(a_try(store))
        assert raised.value.trigger.serialize()[1]["generation_id"] == generation_id
        assert emulator.accepted == 1

    def test_has_the_whole_timeout_again(self, emulator: Emulator, store: Store, tmp_path: Path) -> None:
        emulator.fail("poll:stall")
        die(one_step(tmp_path), store)
        record = json.loads(store.kept[KEY])
        store.kept[KEY] = json.dumps({**record, "submitted_at": record["submitted_at"] - 5000})
        with pytest.raises(TaskDeferred) as raised:
            one_step(tmp_path, deferrable=True, timeout=100).execute(a_try(store))
        kwargs = raised.value.trigger.serialize()[1]
        assert kwargs["end_time"] - kwargs["submitted_at"] > 5000

    def test_after_a_failure_while_storing_pays_nothing(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:500:5")
        with pytest.raises(Exception, match="Cannot download"):
            one_step(tmp_path).execute(a_try(store))
        assert one_step(tmp_path).execute(a_try(store))
        assert emulator.accepted == 1

    def test_may_store_elsewhere_and_use_other_settings_of_the_connection(
        self, emulator: Emulator, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        connect(monkeypatch, f"{emulator.base_url}/v1/", request_timeout=7)
        [uri] = one_step(tmp_path / "other").execute(a_try(store))
        assert uri == f"file://{tmp_path}/other/{generation_id}-1.png"
        assert emulator.accepted == 1

    @pytest.mark.parametrize("fault", ["failed", "rejected"])
    def test_submits_anew_where_the_generation_failed(
        self, emulator: Emulator, store: Store, tmp_path: Path, fault: str
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        emulator.fail(f"poll:{fault}")
        [uri] = one_step(tmp_path).execute(a_try(store))
        assert generation_id not in uri
        assert emulator.accepted == 2

    def test_submits_anew_after_one_that_saw_it_fail(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("poll:failed")
        with pytest.raises(GenerationFailedError):
            one_step(tmp_path).execute(a_try(store))
        assert one_step(tmp_path).execute(a_try(store))
        assert emulator.accepted == 2

    def test_does_not_take_not_found_for_an_end_right_after_the_submission(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        emulator.fail("poll:not-found")
        [uri] = one_step(tmp_path, poll_interval=1).execute(a_try(store))
        assert generation_id in uri

    def test_submits_anew_where_the_service_no_longer_knows_it(
        self, emulator: Emulator, store: Store
    ) -> None:
        die(submitter(), store)
        record = json.loads(store.kept[KEY])
        store.kept[KEY] = json.dumps({**record, "generation_id": "1", "submitted_at": 1.0})
        assert submitter().execute(a_try(store)) != "1"
        assert emulator.accepted == 2

    @pytest.mark.parametrize(
        "changed", [{"prompt": "A dog"}, {"seed": 1}, {"extra_parameters": {"a": 1}}], ids=str
    )
    def test_with_another_request_submits_anew(
        self, emulator: Emulator, store: Store, changed: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        generation_id = die(submitter(), store)
        assert submitter(**changed).execute(a_try(store)) != generation_id
        assert f"Its generation was {generation_id}" in caplog.text

    def test_as_another_account_submits_anew(
        self, emulator: Emulator, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generation_id = die(submitter(), store)
        other = {"conn_type": "modelscope", "password": "ms-another", "host": emulator.base_url}
        monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(other))
        assert submitter().execute(a_try(store)) != generation_id

    def test_with_a_token_that_is_refused_pays_nothing_and_keeps_the_record(
        self, emulator: Emulator, store: Store
    ) -> None:
        die(submitter(), store)
        emulator.fail("poll:401")
        with pytest.raises(ModelScopeFinalError):
            submitter().execute(a_try(store))
        assert submitter().execute(a_try(store))
        assert emulator.accepted == 1

    def test_goes_on_though_the_service_is_away_for_the_first_look(
        self, emulator: Emulator, store: Store
    ) -> None:
        generation_id = die(submitter(), store)
        emulator.fail("poll:503:3")
        assert submitter().execute(a_try(store)) == generation_id

    def test_that_had_no_luck_with_it_either_lets_the_next_submit_anew(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("poll:stall")
        for _ in range(2):
            with pytest.raises(GenerationTimeoutError):
                one_step(tmp_path, timeout=0).execute(a_try(store))
            assert emulator.accepted == 1
        assert "paid anew" in caplog.text
        assert one_step(tmp_path).execute(a_try(store))
        assert emulator.accepted == 2

    def test_makes_images_again_that_are_gone_for_good(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("image:404:4")
        with pytest.raises(ImageGoneError):
            one_step(tmp_path).execute(a_try(store))
        assert emulator.accepted == 1
        assert one_step(tmp_path).execute(a_try(store))
        assert emulator.accepted == 2
        assert "paid anew" in caplog.text
        assert not store.kept


class TestTheRecord:
    def test_goes_when_the_work_is_done_so_that_clear_means_a_new_image(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        first, second = (one_step(tmp_path).execute(a_try(store)) for _ in range(2))
        assert first != second
        assert not store.kept

    def test_of_the_submit_operator_goes_as_well(self, emulator: Emulator, store: Store) -> None:
        first, second = (submitter().execute(a_try(store)) for _ in range(2))
        assert first != second
        assert not store.kept

    def test_stays_until_airflow_has_noted_the_success_so_that_a_retry_pays_nothing(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        for make in (submitter, partial(one_step, tmp_path)):
            store.kept.clear()
            first = make().execute(a_try(store, RealTaskInstance(2)))
            assert make().execute(a_try(store, RealTaskInstance(2))) == first  # the success was not noted
            task, cleared = make(), a_try(store, RealTaskInstance(5))
            assert task.execute(cleared) != first
            for callback in task.on_success_callback:
                callback(cleared)
            assert not store.kept

    def test_leaves_the_tasks_own_callbacks_in_place(self) -> None:
        def own(context: Any) -> None: ...

        for given, kept in ((None, []), (own, [own]), ([own, own], [own, own])):
            assert submitter(on_success_callback=given).on_success_callback[:-1] == kept

    def test_holds_no_token_and_nothing_of_the_request_but_its_model(
        self, emulator: Emulator, store: Store
    ) -> None:
        die(submitter(prompt="a secret plan"), store)
        assert TOKEN not in str(store.kept)
        assert "secret plan" not in str(store.kept)

    @pytest.mark.parametrize("fault", ["queue-full", "429", "401", "unknown-model", "balance"])
    def test_is_not_left_by_a_submission_that_created_nothing(
        self, emulator: Emulator, store: Store, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(ModelScopeError):
            submitter(queue_timeout=0).execute(a_try(store))
        assert not store.kept

    def test_is_not_left_by_one_that_waits_in_line(self, emulator: Emulator, store: Store) -> None:
        emulator.fail("submit:queue-full")
        with pytest.raises(TaskDeferred):
            submitter(deferrable=True).execute(a_try(store))
        assert not store.kept

    def test_is_not_kept_where_that_is_not_wanted_or_not_possible(
        self, emulator: Emulator, store: Store
    ) -> None:
        store.broken = {"get", "set", "delete"}
        assert submitter(durable=False).execute(a_try(store))
        assert submitter().execute(a_try(None))

    @pytest.mark.parametrize(
        ("durable", "max_tries", "is_said"), [(True, 2, True), (True, 0, False), (False, 2, False)]
    )
    def test_that_this_airflow_does_not_have_is_told_where_a_retry_would_pay_again(
        self,
        emulator: Emulator,
        caplog: pytest.LogCaptureFixture,
        durable: bool,
        max_tries: int,
        is_said: bool,
    ) -> None:
        generation_id = submitter(durable=durable).execute(a_try(None, RealTaskInstance(max_tries)))
        told = f"A retry would submit generation {generation_id} again: only Airflow 3.3 and later keep it"
        assert (told in caplog.text) == is_said

    @pytest.mark.parametrize("broken", ["get", "set"])
    def test_that_cannot_be_read_or_written_stops_the_task_before_anything_is_sent(
        self, emulator: Emulator, store: Store, broken: str
    ) -> None:
        store.broken = {broken}
        with pytest.raises(SubmissionRecordError, match=f"state store cannot .*{broken} failed"):
            submitter().execute(a_try(store))
        assert not emulator.requests

    @pytest.mark.parametrize("record", ["42", "[]", "{}", '{"fingerprint": 1}', '"text"'])
    def test_that_is_none_of_ours_stops_the_task_too(
        self, emulator: Emulator, store: Store, record: str
    ) -> None:
        store.kept[KEY] = record
        with pytest.raises(SubmissionRecordError, match=r"no record of ours.*durable=False"):
            submitter().execute(a_try(store))
        assert not emulator.requests

    def test_that_cannot_be_written_after_the_answer_does_not_lose_what_is_paid_for(
        self, emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class FullStore(Store):
            def set(self, key: str, value: Any, *, retention: Any = None) -> None:
                self.broken = {"set"} if self.kept else set()
                super().set(key, value)

        assert one_step(tmp_path).execute(a_try(FullStore()))
        assert "A retry would submit generation" in caplog.text

    def test_that_cannot_be_deleted_does_not_undo_what_is_done(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.broken = {"delete"}
        assert one_step(tmp_path).execute(a_try(store))
        assert "could not be deleted" in caplog.text

    def test_of_a_generation_that_could_not_be_asked_for_is_kept(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        for _ in range(2):
            emulator.fail("poll:503:6")
            with pytest.raises(GenerationStatusUnknownError):
                one_step(tmp_path, timeout=0).execute(a_try(store))
        [uri] = one_step(tmp_path).execute(a_try(store))
        assert generation_id in uri
        assert emulator.accepted == 1

    def test_of_an_id_that_the_service_takes_no_longer_lets_the_task_through(
        self, emulator: Emulator, store: Store
    ) -> None:
        generation_id = die(submitter(), store)
        emulator.fail("poll:410")
        assert submitter().execute(a_try(store)) != generation_id


class TestALostAnswer:
    @pytest.mark.parametrize("fault", ["lost", "reset", "500", "no-id", "html"])
    def test_is_submitted_again_by_the_retry_which_says_what_that_may_cost(
        self, emulator: Emulator, store: Store, caplog: pytest.LogCaptureFixture, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(SubmissionLostError):
            submitter().execute(a_try(store))
        assert "paid twice" not in caplog.text
        assert submitter().execute(a_try(store))
        assert "may be paid twice" in caplog.text

    def test_can_end_the_task_instead_until_a_person_clears_it(
        self, emulator: Emulator, store: Store
    ) -> None:
        emulator.fail("submit:lost")
        with pytest.raises(
            SubmissionUnresolvedError, match=r"on_lost_response='fail' .*clear the task"
        ) as raised:
            submitter(on_lost_response="fail").execute(a_try(store))
        assert isinstance(raised.value, ModelScopeFinalError)
        assert emulator.accepted == 1
        assert submitter(on_lost_response="fail").execute(a_try(store))

    def test_of_a_worker_that_died_is_treated_alike(
        self, emulator: Emulator, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        die(submitter(), store)
        record = json.loads(store.kept[KEY])
        intent = json.dumps({"fingerprint": record["fingerprint"], "sent_at": 1.5})
        store.kept[KEY] = intent
        with pytest.raises(SubmissionUnresolvedError, match="ended while it was submitting"):
            submitter(on_lost_response="fail").execute(a_try(store))
        store.kept[KEY] = intent
        assert submitter().execute(a_try(store))
        assert "may be paid twice" in caplog.text

    def test_of_another_request_is_no_reason_to_stop(self, emulator: Emulator, store: Store) -> None:
        emulator.fail("submit:lost")
        with pytest.raises(SubmissionLostError):
            submitter().execute(a_try(store))
        assert submitter(prompt="A dog", on_lost_response="fail").execute(a_try(store))

    def test_is_kept_in_mind_while_the_process_is_killed_in_it(
        self, emulator: Emulator, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import requests

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(requests.Session, "request", killed)
            with pytest.raises(KeyboardInterrupt):
                submitter().execute(a_try(store))
        assert "sent_at" in store.kept[KEY]
