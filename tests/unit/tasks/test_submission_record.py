"""The record of a submission: no attempt pays for what an earlier one has paid for."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import airflow.sdk
import pytest

from airflow_provider_modelscope.compat import TaskDeferred
from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationStatusUnknownError,
    GenerationTimeoutError,
    ImageError,
    ImageGoneError,
    ImageUnavailableError,
    InvalidDestinationError,
    ModelScopeError,
    ModelScopeFinalError,
    ServiceUnreachableError,
    SubmissionLostError,
    SubmissionRecordError,
    SubmissionUnresolvedError,
)
from airflow_provider_modelscope.images.object_storage import open_folder
from airflow_provider_modelscope.resuming import how_to_submit_again
from airflow_provider_modelscope.tasks import storing, submission_record
from airflow_provider_modelscope.tasks.submission_record import SubmissionRecord
from airflow_provider_modelscope.xcoms import Submission
from tests.unit.builders import Context, one_step, overdue, submissions, submitter
from tests.unit.conftest import TOKEN, connect
from tests.unit.images.conftest import encoded
from tests.unit.tasks.conftest import (
    ObjectStorage,
    RealTaskInstance,
    Store,
    TaskStateStore,
    die,
)

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator
    from tests.unit.images.conftest import Register

pytestmark = pytest.mark.usefixtures("no_pauses")


class TestRetry:
    def test_it_resumes_the_generation(self, emulator: Emulator, store: Store, tmp_path: Path) -> None:
        generation_id = die(one_step(tmp_path), store)
        context = store.attempt()
        [uri] = one_step(tmp_path).execute(context)
        assert uri == f"file://{tmp_path}/{generation_id}-1.png"
        assert context["ti"].pushed["request"]["generation_id"] == generation_id
        assert emulator.accepted == 1

    def test_the_submit_operator_returns_the_same_id(self, emulator: Emulator, store: Store) -> None:
        generation_id = die(submitter(), store)
        assert submitter().execute(store.attempt()) == generation_id
        assert emulator.accepted == 1

    def test_a_running_generation_is_waited_for_in_the_triggerer(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("poll:stall")
        task = one_step(tmp_path, deferrable=True, defer_after=0)
        generation_id = die(task, store)
        with pytest.raises(TaskDeferred) as raised:
            one_step(tmp_path, deferrable=True, defer_after=0).execute(store.attempt())
        assert raised.value.trigger.serialize()[1]["generation_id"] == generation_id
        assert emulator.accepted == 1

    def test_the_timeout_starts_again(self, emulator: Emulator, store: Store, tmp_path: Path) -> None:
        emulator.fail("poll:stall")
        die(one_step(tmp_path), store)
        store.change(submitted_at=store.record["submitted_at"] - 5000)
        with pytest.raises(TaskDeferred) as raised:
            one_step(tmp_path, deferrable=True, timeout=100).execute(store.attempt())
        kwargs = raised.value.trigger.serialize()[1]
        assert kwargs["end_time"] - kwargs["submitted_at"] > 5000

    def test_a_failure_while_storing_costs_nothing(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:500:5")
        with pytest.raises(Exception, match="Cannot download"):
            one_step(tmp_path).execute(store.attempt())
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 1

    def test_destination_and_connection_settings_may_change(
        self, emulator: Emulator, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        connect(monkeypatch, f"{emulator.base_url}/v1/", request_timeout=7)
        [uri] = one_step(tmp_path / "other").execute(store.attempt())
        assert uri == f"file://{tmp_path}/other/{generation_id}-1.png"
        assert emulator.accepted == 1

    @pytest.mark.parametrize("fault", ["failed", "rejected"])
    def test_a_failed_generation_is_submitted_again(
        self, emulator: Emulator, store: Store, tmp_path: Path, fault: str
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        emulator.fail(f"poll:{fault}")
        [uri] = one_step(tmp_path).execute(store.attempt())
        assert generation_id not in uri
        assert emulator.accepted == 2

    def test_a_generation_that_an_attempt_saw_fail_is_replaced(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("poll:failed")
        with pytest.raises(GenerationFailedError):
            one_step(tmp_path).execute(store.attempt())
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 2

    def test_not_found_right_after_the_submission_is_not_final(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        emulator.fail("poll:not-found")
        [uri] = one_step(tmp_path, poll_interval=1).execute(store.attempt())
        assert generation_id in uri

    def test_a_generation_that_is_gone_is_submitted_again(self, emulator: Emulator, store: Store) -> None:
        die(submitter(), store)
        store.change(generation_id="1", submitted_at=1.0)
        assert submitter().execute(store.attempt()) != "1"
        assert emulator.accepted == 2

    @pytest.mark.parametrize(
        "changed", [{"prompt": "A dog"}, {"seed": 1}, {"extra_parameters": {"a": 1}}], ids=str
    )
    def test_another_request_is_submitted(
        self, emulator: Emulator, store: Store, changed: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        generation_id = die(submitter(), store)
        assert submitter(**changed).execute(store.attempt()) != generation_id
        assert f"which submitted generation {generation_id}" in caplog.text

    def test_another_account_submits_again(
        self, emulator: Emulator, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generation_id = die(submitter(), store)
        other = {"conn_type": "modelscope", "password": "ms-another", "host": emulator.base_url}
        monkeypatch.setenv("AIRFLOW_CONN_MODELSCOPE_DEFAULT", json.dumps(other))
        assert submitter().execute(store.attempt()) != generation_id

    def test_a_rejected_token_keeps_the_record(self, emulator: Emulator, store: Store) -> None:
        die(submitter(), store)
        emulator.fail("poll:401")
        with pytest.raises(ModelScopeFinalError):
            submitter().execute(store.attempt())
        assert submitter().execute(store.attempt())
        assert emulator.accepted == 1

    def test_an_unavailable_service_does_not_prevent_resuming(self, emulator: Emulator, store: Store) -> None:
        generation_id = die(submitter(), store)
        emulator.fail("poll:503:3")
        assert submitter().execute(store.attempt()) == generation_id

    def test_after_two_timeouts_the_next_attempt_submits_again(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("poll:stall")
        for _ in range(2):
            with pytest.raises(GenerationTimeoutError):
                one_step(tmp_path, execution_timeout=timedelta(minutes=1)).execute(overdue(store.attempt()))
            assert emulator.accepted == 1
        assert "Giving up generation" in caplog.text
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 2

    def test_a_generation_that_finished_after_two_timeouts_is_used(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("poll:no-images")
        with pytest.raises(GenerationTimeoutError):
            one_step(tmp_path, execution_timeout=timedelta(minutes=1)).execute(overdue(store.attempt()))
        emulator.fail("poll:no-images:2")  # as it resumes, and at the deadline
        with pytest.raises(GenerationTimeoutError):
            one_step(tmp_path, execution_timeout=timedelta(minutes=1)).execute(overdue(store.attempt()))
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 1

    def test_images_that_are_gone_are_generated_again(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("image:404:4")
        with pytest.raises(ImageGoneError):
            one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 1
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 2
        assert "Giving up generation" in caplog.text
        assert store.text is None


class TestRecord:
    def test_it_is_deleted_when_the_task_is_done(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        first, second = (one_step(tmp_path).execute(store.attempt()) for _ in range(2))
        assert first != second
        assert store.text is None

    def test_the_submit_operator_deletes_it_as_well(self, emulator: Emulator, store: Store) -> None:
        first, second = (submitter().execute(store.attempt()) for _ in range(2))
        assert first != second
        assert store.text is None

    def test_it_is_kept_until_airflow_has_recorded_the_success(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        for make in (submitter, partial(one_step, tmp_path)):
            first = make().execute(store.attempt(RealTaskInstance(2)))
            # The success was not recorded.
            assert make().execute(store.attempt(RealTaskInstance(2))) == first
            task, cleared = make(), store.attempt(RealTaskInstance(5))
            assert task.execute(cleared) != first
            for callback in task.on_success_callback:
                callback(cleared)
            assert store.text is None

    @pytest.mark.parametrize("state", ["running", "up_for_retry", None], ids=str)
    def test_a_success_that_airflow_did_not_record_keeps_it(
        self, emulator: Emulator, store: Store, state: str | None
    ) -> None:
        task, ti = submitter(), RealTaskInstance(2)
        generation_id = task.execute(store.attempt(ti))
        ti.recorded_state = state
        for callback in task.on_success_callback:
            callback(store.attempt(ti))
        assert submitter().execute(store.attempt(RealTaskInstance(2))) == generation_id
        assert emulator.accepted == 1

    def test_the_callbacks_of_the_task_are_kept(self) -> None:
        def own(context: Any) -> None: ...

        for given, kept in ((None, []), (own, [own]), ([own, own], [own, own])):
            assert submitter(on_success_callback=given).on_success_callback[:-1] == kept

    @pytest.mark.parametrize("store", ["task state store"], indirect=True)
    def test_it_never_expires(self, emulator: Emulator, store: TaskStateStore) -> None:
        die(submitter(), store)
        assert store.retention is getattr(airflow.sdk, "NEVER_EXPIRE", None)

    def test_it_contains_neither_the_token_nor_the_prompt(self, emulator: Emulator, store: Store) -> None:
        die(submitter(prompt="a secret plan"), store)
        assert TOKEN not in str(store.text)
        assert "secret plan" not in str(store.text)

    @pytest.mark.parametrize("fault", ["queue-full", "429", "401", "unknown-model", "balance"])
    def test_a_rejected_submission_leaves_no_record(
        self, emulator: Emulator, store: Store, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(ModelScopeError):
            submitter(execution_timeout=timedelta(minutes=1)).execute(overdue(store.attempt()))
        assert store.text is None

    def test_a_queued_submission_leaves_no_record(self, emulator: Emulator, store: Store) -> None:
        emulator.fail("submit:queue-full")
        with pytest.raises(TaskDeferred):
            submitter(deferrable=True).execute(store.attempt())
        assert store.text is None

    def test_it_is_optional(self, emulator: Emulator, store: Store) -> None:
        task, context = submitter(durable=False), store.attempt()
        assert task.execute(context)
        for callback in task.on_success_callback or ():
            callback(context)
        assert not store.calls

    @pytest.mark.parametrize(
        ("durable", "max_tries", "is_logged"), [(True, 2, True), (True, 0, False), (False, 2, False)]
    )
    def test_a_missing_store_is_logged_if_a_retry_would_pay_again(
        self,
        emulator: Emulator,
        caplog: pytest.LogCaptureFixture,
        durable: bool,
        max_tries: int,
        is_logged: bool,
    ) -> None:
        context: Context = {"ti": RealTaskInstance(max_tries)}
        generation_id = submitter(durable=durable).execute(context)
        warning = (
            f"A retry would submit generation {generation_id} again: set [modelscope] submission_records"
        )
        assert (warning in caplog.text) == is_logged

    @pytest.mark.parametrize("broken", ["get", "set"])
    def test_a_broken_store_stops_the_task_before_it_submits(
        self, emulator: Emulator, store: Store, broken: str
    ) -> None:
        store.broken = {broken}
        with pytest.raises(SubmissionRecordError, match=f"The record .* cannot .*{broken} failed"):
            submitter().execute(store.attempt())
        assert not submissions(emulator)

    @pytest.mark.parametrize("record", ["42", "[]", "{}", '{"fingerprint": 1}', '"text"'])
    def test_an_invalid_record_stops_the_task(self, emulator: Emulator, store: Store, record: str) -> None:
        die(submitter(), store)
        store.text, requests = record, len(emulator.requests)
        with pytest.raises(SubmissionRecordError, match=r"^Invalid record.*durable=False"):
            submitter().execute(store.attempt())
        assert len(emulator.requests) == requests

    def test_a_store_that_fails_after_the_response_costs_nothing(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.broken = {"set 2"}
        assert one_step(tmp_path).execute(store.attempt())
        assert "A retry would submit generation" in caplog.text

    @pytest.mark.parametrize(("cause", "is_kept"), [(ServiceUnreachableError, False), (None, True)])
    def test_an_end_of_the_task_before_anything_was_sent_leaves_none(
        self, emulator: Emulator, store: Store, cause: type[ModelScopeError] | None, is_kept: bool
    ) -> None:
        record = SubmissionRecord(store.attempt())
        with pytest.raises(KeyboardInterrupt), record.sending("a"):
            raise KeyboardInterrupt from cause and cause("No connection")
        assert bool(store.entries) is is_kept

    def test_a_failed_write_of_a_paid_generation_is_repeated(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        store.broken = {"set 2"}
        emulator.fail("image:reset:5")
        with pytest.raises(ImageError):
            one_step(tmp_path).execute(store.attempt())
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 1

    @pytest.mark.parametrize("change", ["source image", "destination"])
    def test_an_error_that_prevents_resuming_names_the_generation(
        self, emulator: Emulator, store: Store, tmp_path: Path, change: str
    ) -> None:
        (tmp_path / "cat.png").write_bytes(encoded())
        given = {"image_url": f"file://{tmp_path}/cat.png", "model": "Qwen/Qwen-Image-Edit"}
        generation_id = die(one_step(tmp_path / "cats", **given), store)
        if change == "source image":
            (tmp_path / "cat.png").unlink()
        else:
            (tmp_path / "cats").write_text("a file")
        with pytest.raises(ModelScopeFinalError, match=f"submitted generation {generation_id}, which is"):
            one_step(tmp_path / "cats", **given).execute(store.attempt())

    def test_a_record_that_cannot_be_deleted_does_no_harm(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.broken = {"delete"}
        assert one_step(tmp_path).execute(store.attempt())
        assert "cannot be written: RuntimeError('delete failed')" in caplog.text

    def test_a_record_that_cannot_be_changed_ends_the_attempt(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:404:always")
        for _ in range(2):
            with pytest.raises(ImageGoneError):
                one_step(tmp_path).execute(store.attempt())
            store.broken = {"set"}
        assert emulator.accepted == 1

    def test_the_store_is_opened_once_in_each_attempt(
        self, emulator: Emulator, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, opened = ObjectStorage(register, monkeypatch), []

        def count(*args: Any, **kwargs: Any) -> Any:
            opened.append(args)
            return open_folder(*args, **kwargs)

        monkeypatch.setattr("airflow_provider_modelscope.tasks.record_store.open_folder", count)
        one_step(tmp_path).execute(store.attempt())
        assert len(opened) == 1

    def test_an_unknown_status_keeps_the_record(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        generation_id = die(one_step(tmp_path), store)
        for _ in range(2):
            emulator.fail("poll:503:6")
            with pytest.raises(GenerationStatusUnknownError):
                one_step(tmp_path, execution_timeout=timedelta(minutes=1)).execute(overdue(store.attempt()))
        [uri] = one_step(tmp_path).execute(store.attempt())
        assert generation_id in uri
        assert emulator.accepted == 1

    def test_an_id_that_the_service_rejects_is_replaced(self, emulator: Emulator, store: Store) -> None:
        generation_id = die(submitter(), store)
        store.change(submitted_at=time.time() - 60)
        emulator.fail("poll:not-found-400:*")
        assert submitter().execute(store.attempt()) != generation_id


class TestSeveralRequests:
    """A task may call several operators, each with a request of its own."""

    PROMPTS = ("A cat", "A dog", "A bird")

    def draw_all(self, folder: Path, store: Store, *, max_tries: int = 2) -> list[str]:
        uris = []
        for prompt in self.PROMPTS:
            context = store.attempt(RealTaskInstance(max_tries))
            uris += one_step(folder, prompt=prompt).execute(context)
            submitter(prompt=prompt, seed=6).execute(context)
        return uris

    def test_a_retry_pays_for_none_again(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = self.draw_all(tmp_path, store)
        assert self.draw_all(tmp_path, store) == first
        assert emulator.accepted == 6
        assert "Submitting again" not in caplog.text

    def test_a_retry_resumes_what_an_error_interrupted(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        first = one_step(tmp_path, prompt=self.PROMPTS[0]).execute(store.attempt(RealTaskInstance(2)))
        emulator.fail("image:500:5")
        with pytest.raises(ImageError):
            one_step(tmp_path, prompt=self.PROMPTS[1]).execute(store.attempt(RealTaskInstance(2)))
        assert self.draw_all(tmp_path, store)[:1] == first
        assert emulator.accepted == 6

    def test_operators_in_threads_keep_each_others_entries(self, emulator: Emulator, store: Store) -> None:
        first, second = (SubmissionRecord(store.attempt()) for _ in range(2))
        paid = Submission(generation_id="1", model="a/b", submitted_at=1.0)
        assert (first.recall("a"), second.recall("b")) == ([], [])
        with first.sending("a"), second.sending("b"):
            pass
        first.save("a", paid)
        second.save("b", replace(paid, generation_id="2"))
        assert [entry["generation_id"] for entry in store.entries.values()] == ["1", "2"]

    def test_one_object_for_several_images_is_an_error(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        context, to = store.attempt(RealTaskInstance(2)), f"file://{tmp_path}/cat.png"
        with pytest.raises(ModelScopeFinalError):
            one_step(destination=to, size="1x1").execute(context)  # nothing was stored
        assert one_step(destination=to).execute(context) == [to]
        assert one_step(destination=to).execute(context) == [to]
        with pytest.raises(InvalidDestinationError, match="this task has stored another image as it"):
            one_step(destination=to, prompt="A dog").execute(context)
        assert emulator.accepted == 1

    def test_equal_requests_are_one_generation_with_a_warning(
        self, emulator: Emulator, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        context = store.attempt(RealTaskInstance(1))
        first = one_step(tmp_path).execute(context)
        assert "different seeds" not in caplog.text
        assert one_step(tmp_path).execute(context) == first
        assert caplog.text.count("Give equal requests different seeds") == 1
        assert emulator.accepted == 1

    def test_clear_pays_for_all_again(self, emulator: Emulator, store: Store, tmp_path: Path) -> None:
        first = self.draw_all(tmp_path, store)
        assert not {*self.draw_all(tmp_path, store, max_tries=5)} & {*first}
        assert emulator.accepted == 12
        assert len(store.entries) == 6
        submitter(prompt="A horse").execute(store.attempt(RealTaskInstance(8)))
        assert len(store.entries) == 1

    def test_the_record_has_a_limit(
        self,
        emulator: Emulator,
        store: Store,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(submission_record, "MAX_ENTRIES", 2)
        for _ in range(2):
            for seed in (1, 2, 3):
                submitter(seed=seed).execute(store.attempt(RealTaskInstance(2)))
        assert len(store.entries) == 2
        assert "is full" in caplog.text


class TestDeadEnd:
    """A generation that never gives an image: what retries and a person who clears the task get."""

    def ends(self, store: Store, folder: Path, *, clears: int, retries: int = 1, **given: Any) -> list[str]:
        """Run the task, clear it so many times, and return the errors of all attempts."""
        errors = []
        for clear in range(clears + 1):
            for _ in range(retries + 1):
                context = store.attempt(RealTaskInstance(retries + clear * (retries + 1)))
                try:
                    one_step(folder, **given).execute(overdue(context))
                except ModelScopeError as error:
                    errors.append(error)
                    if isinstance(error, ModelScopeFinalError):
                        break
                else:
                    return [*map(str, errors), "success"]
        return [*map(str, errors)]

    @pytest.mark.parametrize("status", [404, 410])
    def test_urls_that_never_work_cost_one_more_generation(
        self, emulator: Emulator, store: Store, tmp_path: Path, status: int
    ) -> None:
        emulator.fail(f"image:{status}:always")
        errors = self.ends(store, tmp_path, clears=0, retries=6)
        assert len(errors) == 3
        assert "and its replacement gave no image, and no third one was submitted" in errors[-1]
        assert f"To go on, {how_to_submit_again()}" in errors[-1]
        assert emulator.accepted == 2

    @pytest.mark.parametrize(("durable", "status"), [(True, 404), (False, 404), (True, 403)])
    def test_without_a_record_images_that_are_gone_are_not_replaced(
        self, emulator: Emulator, tmp_path: Path, durable: bool, status: int
    ) -> None:
        emulator.fail(f"image:{status}:always")
        context: Context = {"ti": RealTaskInstance(3)}
        with pytest.raises(ImageUnavailableError, match=r"only pay for another .*ToObjectStorageOperator"):
            one_step(tmp_path, durable=durable).execute(context)
        assert emulator.accepted == 1

    def test_clear_after_that_pays_for_one_more(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:404:10")
        assert self.ends(store, tmp_path, clears=1, retries=6)[3:] == ["success"]
        assert emulator.accepted == 3

    def test_a_new_image_that_is_forbidden_is_blocked_not_gone(
        self, emulator: Emulator, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emulator.fail("image:403:always")
        errors = self.ends(store, tmp_path, clears=0, retries=3)
        assert all("Blocked, not expired" in error and "egress rules" in error for error in errors)
        monkeypatch.setattr(storing, "NEW_SECONDS", 0.0)  # the next attempts are later
        errors = self.ends(store, tmp_path, clears=0, retries=3)
        assert all("blocked from the start" in error and "clear the task" in error for error in errors)
        assert (len(errors), emulator.accepted) == (4, 1)

    def test_each_clear_of_a_blocked_image_submits_once(
        self, emulator: Emulator, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emulator.fail("image:403:always")
        for clear in range(3):
            for new_seconds in (60.0, 0.0):  # the second attempt is later
                monkeypatch.setattr(storing, "NEW_SECONDS", new_seconds)
                with pytest.raises(ImageError):
                    one_step(tmp_path).execute(store.attempt(RealTaskInstance(clear)))
        assert emulator.accepted == 3

    def test_an_old_image_that_is_forbidden_is_gone(
        self, emulator: Emulator, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storing, "NEW_SECONDS", 0.0)
        emulator.fail("image:403:4")
        assert len(self.ends(store, tmp_path, clears=0)) == 2
        assert emulator.accepted == 2

    @pytest.mark.parametrize("fault", ["image:garbage:always", "poll:404:always", "poll:500:always"])
    def test_retries_submit_nothing_and_say_what_clear_does(
        self, emulator: Emulator, store: Store, tmp_path: Path, fault: str
    ) -> None:
        emulator.fail(fault)
        given: dict[str, Any] = (
            {"execution_timeout": timedelta(minutes=1)} if fault.startswith("poll") else {}
        )
        errors = self.ends(store, tmp_path, clears=0, retries=3, **given)
        assert (len(errors), emulator.accepted) == (4, 1)
        assert all(f"If this persists, {how_to_submit_again()}" in error for error in errors)

    @pytest.mark.parametrize("fault", ["image:garbage:always", "poll:404:always", "poll:500:always"])
    @pytest.mark.parametrize("retries", [0, 1])
    def test_each_clear_submits_once(
        self,
        emulator: Emulator,
        store: Store,
        tmp_path: Path,
        retries: int,
        fault: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        emulator.fail(fault)
        given: dict[str, Any] = (
            {"execution_timeout": timedelta(minutes=1)} if fault.startswith("poll") else {}
        )
        self.ends(store, tmp_path, clears=2, retries=retries, **given)
        assert emulator.accepted == 3
        assert caplog.text.count("Giving up generation") == 2

    @pytest.mark.parametrize("retries", [0, 1])
    def test_clear_replaces_a_generation_whose_polls_are_rejected(
        self, emulator: Emulator, store: Store, tmp_path: Path, retries: int
    ) -> None:
        emulator.fail("poll:bad-request:always")
        errors = self.ends(store, tmp_path, clears=2, retries=retries)
        assert (len(errors), emulator.accepted) == (3, 3)
        assert f"If this persists, {how_to_submit_again()}" in errors[0]

    def test_clear_resumes_a_generation_that_is_well_again(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:garbage:4")
        assert len(self.ends(store, tmp_path, clears=1)) == 3
        assert emulator.accepted == 1

    @pytest.mark.parametrize("answer", ["submit:429", "submit:quota"])
    def test_clear_while_nothing_is_accepted_keeps_the_generation(
        self, emulator: Emulator, store: Store, tmp_path: Path, answer: str
    ) -> None:
        late: dict[str, Any] = {"execution_timeout": timedelta(minutes=1)}
        emulator.fail("poll:503:6")
        with pytest.raises(GenerationStatusUnknownError):
            one_step(tmp_path, **late).execute(overdue(store.attempt(RealTaskInstance(1))))
        emulator.fail(answer)
        with pytest.raises(ModelScopeError):
            one_step(tmp_path, **late).execute(overdue(store.attempt(RealTaskInstance(3))))
        assert one_step(tmp_path).execute(store.attempt(RealTaskInstance(3)))
        assert emulator.accepted == 1

    def test_clear_after_a_broken_network_resumes(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:reset:always")
        assert len(self.ends(store, tmp_path, clears=2)) == 6
        assert emulator.accepted == 1

    def test_timeouts_and_dead_urls_are_counted_apart(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("poll:no-images")
        with pytest.raises(GenerationTimeoutError):
            one_step(tmp_path, execution_timeout=timedelta(minutes=1)).execute(overdue(store.attempt()))
        emulator.fail("image:404:2")
        with pytest.raises(ImageGoneError):
            one_step(tmp_path).execute(store.attempt())
        assert one_step(tmp_path).execute(store.attempt())
        assert emulator.accepted == 1

    def test_clear_after_a_success_may_replace_once_more(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        for max_tries in (3, 7):
            emulator.fail("image:404:4")
            with pytest.raises(ImageGoneError):
                one_step(tmp_path).execute(store.attempt(RealTaskInstance(max_tries)))
            assert one_step(tmp_path).execute(store.attempt(RealTaskInstance(max_tries)))
        emulator.fail("image:404:4")
        with pytest.raises(ImageGoneError):
            one_step(tmp_path).execute(store.attempt(RealTaskInstance(9)))
        assert one_step(tmp_path).execute(store.attempt(RealTaskInstance(9)))
        assert emulator.accepted == 6

    def test_a_replacement_outlasts_a_full_queue(
        self, emulator: Emulator, store: Store, tmp_path: Path
    ) -> None:
        emulator.fail("image:404:always")
        ti = RealTaskInstance(9)
        with pytest.raises(ImageGoneError):
            one_step(tmp_path).execute(store.attempt(ti))
        emulator.fail("submit:queue-full")
        with pytest.raises(TaskDeferred):
            one_step(tmp_path, deferrable=True).execute(store.attempt(ti))
        with pytest.raises(ImageGoneError):
            one_step(tmp_path).execute(store.attempt(ti))
        with pytest.raises(ImageUnavailableError):
            one_step(tmp_path).execute(store.attempt(ti))
        assert emulator.accepted == 2


class TestImagesAtOnce:
    """The response to the submission contains the images and no id, so that only this process knows them."""

    def test_the_submit_operator_refers_to_the_other_one(self, emulator: Emulator, store: Store) -> None:
        emulator.fail("submit:images:*")
        url = rf"{emulator.base_url}/images/\w+\.png"
        with pytest.raises(
            ImageUnavailableError, match=rf"{url}\. Use ModelScopeImageGenerationOperator"
        ) as raised:
            submitter().execute(store.attempt(RealTaskInstance(1)))
        assert isinstance(raised.value, ModelScopeFinalError)

    @pytest.mark.parametrize("fault", ["image:500:5", "image:404:2", "image:garbage:2"])
    def test_a_failure_to_store_is_final_until_a_clear(
        self, emulator: Emulator, store: Store, tmp_path: Path, fault: str
    ) -> None:
        emulator.fail("submit:images")
        emulator.fail(fault)
        with pytest.raises(ImageUnavailableError, match=r"no retry can fetch them.*Clear the task to pay"):
            one_step(tmp_path).execute(store.attempt(RealTaskInstance(1)))
        assert one_step(tmp_path).execute(store.attempt(RealTaskInstance(3)))
        assert emulator.accepted == 2


class TestLostResponse:
    @pytest.mark.parametrize("fault", ["lost", "reset", "500", "no-id", "html"])
    def test_a_retry_submits_again_and_warns_of_the_cost(
        self, emulator: Emulator, store: Store, caplog: pytest.LogCaptureFixture, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}")
        with pytest.raises(SubmissionLostError):
            submitter().execute(store.attempt())
        assert "charged twice" not in caplog.text
        assert submitter().execute(store.attempt())
        assert "may be charged twice" in caplog.text

    def test_it_can_fail_the_task_until_it_is_cleared(self, emulator: Emulator, store: Store) -> None:
        emulator.fail("submit:lost")
        with pytest.raises(
            SubmissionUnresolvedError, match=r"on_lost_response='fail' .*clear the task"
        ) as raised:
            submitter(on_lost_response="fail").execute(store.attempt())
        assert isinstance(raised.value, ModelScopeFinalError)
        assert emulator.accepted == 1
        assert submitter(on_lost_response="fail").execute(store.attempt())

    def test_a_worker_that_dies_while_submitting_counts_as_one(
        self, emulator: Emulator, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        die(submitter(), store)
        [fingerprint] = store.entries
        intent = json.dumps({fingerprint: {"sent_at": 1.5}})
        store.text = intent
        with pytest.raises(SubmissionUnresolvedError, match="ended while submitting"):
            submitter(on_lost_response="fail").execute(store.attempt())
        die(submitter(), store)
        store.text = intent
        assert submitter().execute(store.attempt())
        assert "may be charged twice" in caplog.text

    def test_a_lost_response_to_another_request_does_not_matter(
        self, emulator: Emulator, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:lost")
        with pytest.raises(SubmissionLostError):
            submitter().execute(store.attempt())
        assert submitter(prompt="A dog", on_lost_response="fail").execute(store.attempt())
        assert "an earlier attempt, which submitted generation (unknown)" in caplog.text

    def test_a_killed_process_leaves_the_intent_in_the_record(
        self, emulator: Emulator, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import requests

        send = requests.Session.request

        def killed(session: requests.Session, method: str, *args: Any, **kwargs: Any) -> Any:
            response = send(session, method, *args, **kwargs)
            if method == "POST":
                response.close()
                raise KeyboardInterrupt
            return response

        with monkeypatch.context() as patch:
            patch.setattr(requests.Session, "request", killed)
            with pytest.raises(KeyboardInterrupt):
                submitter().execute(store.attempt())
        assert "sent_at" in store.record
