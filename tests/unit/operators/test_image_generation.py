"""The operators that submit: what is sent, what is recorded, and how they end."""

from __future__ import annotations

import time
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope.compat import AirflowFailException, TaskDeferred
from airflow_provider_modelscope.exceptions import (
    GenerationFailedError,
    GenerationRejectedError,
    GenerationTimeoutError,
    InvalidDestinationError,
    InvalidRequestError,
    RequestRejectedError,
)
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.operators.image_generation import (
    REQUEST_PARAMETERS,
    ModelScopeImageGenerationOperator,
    ModelScopeSubmitImageGenerationOperator,
)
from airflow_provider_modelscope.protocol.request import GenerationRequest
from tests.unit.builders import (
    DEFERRED,
    REQUEST,
    SLOT_FREE,
    Context,
    one_step,
    overdue,
    rendered,
    run,
    submissions,
    submitter,
)
from tests.unit.conftest import TOKEN, TaskInstance, connect
from tests.unit.images.conftest import encoded

if TYPE_CHECKING:
    from airflow_provider_modelscope.emulator import Emulator

pytestmark = pytest.mark.usefixtures("no_pauses")

WAYS = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferrable"])


class TestSubmit:
    def test_it_returns_the_id_and_records_the_request(self, emulator: Emulator, context: Context) -> None:
        before = time.time()
        generation_id = submitter().execute(context)
        [sent] = submissions(emulator)
        assert (sent.json, sent.generation_id) == (REQUEST, generation_id)
        recorded = context["ti"].pushed["request"]
        assert before <= recorded.pop("submitted_at") <= time.time()
        assert recorded == {"generation_id": generation_id, "credit": recorded["credit"], **REQUEST}

    def test_every_parameter_of_the_api_is_sent(self, emulator: Emulator, context: Context) -> None:
        given = {
            "seed": "5",
            "negative_prompt": "模糊",
            "steps": "30",
            "guidance": "7.5",
            "image_url": "https://images.example/a.png",
            "loras": {"a/b": "0.4", "c/d": 0.6},
            "extra_parameters": {"sampler": "Euler a"},
        }
        submitter(**given).execute(context)
        numbers = {"seed": 5, "steps": 30, "guidance": 7.5, "loras": {"a/b": 0.4, "c/d": 0.6}}
        expected = {**REQUEST, **given, **numbers, "sampler": "Euler a"}
        del expected["extra_parameters"]
        assert submissions(emulator)[0].json == expected

    def test_invalid_parameters_fail_the_task_and_send_nothing(
        self, emulator: Emulator, context: Context
    ) -> None:
        task = rendered(submitter(), steps="0", guidance=99)
        with pytest.raises(InvalidRequestError, match=r"steps = '0'.*guidance = 99") as raised:
            task.execute(context)
        assert isinstance(raised.value, AirflowFailException)
        assert not emulator.requests

    @pytest.mark.parametrize(
        "leaking",
        [
            {"prompt": f"tell {TOKEN}"},
            {"model": f"a/{TOKEN}"},
            {"negative_prompt": f"Bearer {TOKEN}"},
            {"image_url": f"https://images.example/a.png?token={TOKEN}"},
            {"loras": {TOKEN: 1}},
            {"extra_parameters": {"a": [{"b": f"{TOKEN}!"}]}},
            {"prompt": "my pass%40word"},
            {"prompt": "my pass@word"},
        ],
        ids=str,
    )
    def test_a_secret_of_the_connection_is_neither_sent_nor_pushed(
        self, emulator: Emulator, context: Context, monkeypatch: pytest.MonkeyPatch, leaking: dict[str, Any]
    ) -> None:
        connect(monkeypatch, emulator.base_url, proxy="http://user:pass%40word@127.0.0.1:9")
        for deferrable in (False, True):
            with pytest.raises(
                InvalidRequestError, match="must not contain the token or another secret"
            ) as e:
                rendered(submitter(deferrable=deferrable), **leaking).execute(context)
            assert str(e.value).startswith(f"Invalid parameters, nothing was sent: {next(iter(leaking))}: ")
            assert not any(secret in str(e.value) for secret in (TOKEN, "word"))
        assert not emulator.requests
        assert not context["ti"].pushed

    def test_images_in_object_storage_are_sent_but_not_in_xcom(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        [source] = run(one_step(tmp_path), context)
        submitter(image_url=source, model="Qwen/Qwen-Image-Edit").execute(context)
        assert submissions(emulator)[-1].json["image_url"].startswith("data:image/png;base64,")
        assert context["ti"].pushed["request"]["image_url"] == source

    @pytest.mark.parametrize("task", [submitter, one_step])
    def test_without_check_ranges_the_service_decides(
        self, task: Any, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        (tmp_path / "cat.png").write_bytes(encoded())
        given = {"size": "2560*1440", "guidance": 0, "image_url": f"file://{tmp_path}/cat.png"}
        with DAG("a_dag", schedule=None), pytest.raises(InvalidRequestError, match="check_ranges=False"):
            task(**given)
        with DAG("a_dag", schedule=None):
            unchecked = task(**given, check_ranges=False)
        with pytest.raises(RequestRejectedError):  # as the emulator does
            unchecked.execute(context)
        [sent] = submissions(emulator)
        assert (sent.json["size"], sent.json["guidance"]) == ("2560x1440", 0)

    def test_all_parameters_of_the_request_are_templated(self) -> None:
        assert list(REQUEST_PARAMETERS) == [field.name for field in fields(GenerationRequest)]
        templated = {*REQUEST_PARAMETERS, "storage_conn_id", "modelscope_conn_id"}
        for operator in (ModelScopeSubmitImageGenerationOperator, ModelScopeImageGenerationOperator):
            assert templated <= set(operator.template_fields)


class TestOneStep:
    @WAYS
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
    def test_images_are_stored_even_if_xcom_request_is_lost(
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

    @WAYS
    @pytest.mark.parametrize(
        ("fault", "error"), [("failed", GenerationFailedError), ("rejected", GenerationRejectedError)]
    )
    def test_a_failure_is_retried_unless_the_request_caused_it(
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

    @WAYS
    def test_a_timeout_reports_the_last_status(
        self, emulator: Emulator, context: Context, deferrable: bool, tmp_path: Path
    ) -> None:
        emulator.fail("poll:stall")
        task = one_step(tmp_path, deferrable=deferrable, execution_timeout=timedelta(minutes=1))
        with pytest.raises(GenerationTimeoutError, match="PROCESSING at its deadline"):
            run(task, overdue(context))

    def test_a_destination_is_checked_before_the_submission(
        self, emulator: Emulator, context: Context
    ) -> None:
        with pytest.raises(InvalidDestinationError, match="no-such-store"):
            one_step(destination="no-such-store://bucket/").execute(context)
        assert not emulator.requests


class TestMapped:
    """The destination of mapped tasks and of tasks in a mapped group."""

    @pytest.fixture
    def context(self) -> Context:
        ti = TaskInstance()
        ti.map_index = 2
        return {"ti": ti}

    @staticmethod
    def mapped(context: Context, destination: str, *, by: str = "prompt") -> Any:
        """Return a task that is mapped by one parameter, before its templates are rendered."""
        given = {"task_id": "draw", **REQUEST, "destination": destination}
        own = given.pop(by)
        with DAG("a_dag", schedule=None) as context["dag"]:
            partial: Any = ModelScopeImageGenerationOperator.partial(**given)
            task = partial.expand(**{by: [own]})
        return task.unmap({by: own})

    def test_one_object_for_all_is_an_error(self, emulator: Emulator, context: Context) -> None:
        task = self.mapped(context, "file:///data/cat.png")
        with pytest.raises(InvalidDestinationError, match=r"End it with '/' .*{{ ti.map_index }}"):
            task.execute(context)
        assert not emulator.requests

    def test_one_object_for_all_of_a_group_is_an_error(self, emulator: Emulator, context: Context) -> None:
        with DAG("a_dag", schedule=None) as context["dag"]:
            task = one_step(destination="file:///data/cat.png")
        with pytest.raises(InvalidDestinationError, match="each mapped task overwrites"):
            task.prepare_for_execution().execute(context)
        assert not emulator.requests

    @pytest.mark.parametrize("name", ["{{ ds }}", "{{ run_id }}-{{ params.x }}", "{{ logical_date | ds }}"])
    def test_a_template_without_the_index_is_an_error(
        self, emulator: Emulator, context: Context, tmp_path: Path, name: str
    ) -> None:
        task = self.mapped(context, f"file://{tmp_path}/{name}.png")
        with pytest.raises(InvalidDestinationError, match="each mapped task overwrites"):
            rendered(task, destination=f"file://{tmp_path}/2026-11-29.png").execute(context)
        assert not emulator.requests

    def test_a_default_argument_is_one_object_for_all(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        default = {"destination": f"file://{tmp_path}/cat.png"}
        given = {"task_id": "draw", "model": "a/b"}
        with DAG("a_dag", schedule=None, default_args=default) as context["dag"]:
            shared: Any = ModelScopeImageGenerationOperator.partial(**given).expand(prompt=["A cat"])
            own: Any = ModelScopeImageGenerationOperator.partial(**{**given, "task_id": "own"}).expand(
                prompt=["A cat"], destination=[f"file://{tmp_path}/2.png"]
            )
        with pytest.raises(InvalidDestinationError, match="each mapped task overwrites"):
            shared.unmap({"prompt": "A cat"}).execute(context)
        assert own.unmap({"prompt": "A cat", "destination": f"file://{tmp_path}/2.png"}).execute(context)

    @pytest.mark.parametrize("name", ["", "2.png"])
    def test_each_may_have_its_own(
        self, emulator: Emulator, context: Context, tmp_path: Path, name: str
    ) -> None:
        assert self.mapped(context, f"file://{tmp_path}/{name}", by="destination").execute(context)

    @pytest.mark.parametrize("is_group", [False, True], ids=["mapped task", "mapped group"])
    def test_a_template_is_not_refused(
        self, emulator: Emulator, context: Context, tmp_path: Path, is_group: bool
    ) -> None:
        destination = f"file://{tmp_path}/{{{{ ds }}}}-{{{{ ti.map_index }}}}.png"
        if is_group:
            with DAG("a_dag", schedule=None) as context["dag"]:
                task = one_step(destination=destination).prepare_for_execution()
        else:
            task = self.mapped(context, destination)
        context["ds"] = "2026-11-29"
        task.render_template_fields(context)
        assert task.execute(context) == [f"file://{tmp_path}/2026-11-29-2.png"]

    def test_a_folder_suits_all(self, emulator: Emulator, context: Context, tmp_path: Path) -> None:
        assert self.mapped(context, f"file://{tmp_path}/").execute(context)


class TestParts:
    """A part of a task runs in one process."""

    @pytest.fixture
    def parsed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The requests and destinations in the order in which they are parsed."""
        parsed = []
        build, parse = GenerationRequest.__post_init__, Destination.parse

        def count_request(self: GenerationRequest, *args: Any) -> None:
            parsed.append("request")
            build(self, *args)

        def count_destination(*args: Any, **kwargs: Any) -> Destination:
            parsed.append("destination")
            return parse(*args, **kwargs)

        monkeypatch.setattr(GenerationRequest, "__post_init__", count_request)
        monkeypatch.setattr(Destination, "parse", count_destination)
        return parsed

    def test_the_request_and_the_destination_are_parsed_once(
        self, emulator: Emulator, context: Context, tmp_path: Path, parsed: list[str]
    ) -> None:
        one_step(tmp_path).execute(context)
        assert parsed == ["request", "destination"]

    def test_each_part_of_a_deferred_task_parses_once(
        self, emulator: Emulator, context: Context, tmp_path: Path, parsed: list[str]
    ) -> None:
        emulator.fail("submit:queue-full")
        emulator.fail("poll:no-images")  # not finished at the first poll
        task = one_step(tmp_path, deferrable=True, defer_after=0)
        with pytest.raises(TaskDeferred):
            task.execute(context)
        assert parsed == ["request", "destination"]
        with pytest.raises(TaskDeferred) as deferred:
            task.resume_execution("execute_queued", {"event": SLOT_FREE}, context)
        assert parsed == ["request", "destination"] * 2
        generation_id = deferred.value.trigger.serialize()[1]["generation_id"]
        event = {"status": "finished", "generation_id": generation_id, "deferred_task": DEFERRED}
        task.resume_execution("execute_complete", {"event": event}, context)
        assert parsed == ["request", "destination"] * 2 + ["destination"]

    def test_a_resumed_part_checks_the_destination_before_it_submits(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        (tmp_path / "cats").touch()
        with pytest.raises(InvalidDestinationError, match="is a file"):
            one_step(tmp_path / "cats").resume_execution("execute_queued", {"event": SLOT_FREE}, context)
        assert not emulator.requests
