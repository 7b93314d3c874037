"""The batch: every row once, whatever happens, and what its state, manifest and summary say of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_modelscope import manifest
from airflow_provider_modelscope.batch import run as run_module, share as share_module
from airflow_provider_modelscope.compat import AirflowSkipException, TaskDeferred
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    BatchFailedError,
    BatchRejectedError,
    CreditExhaustedError,
    CreditLimitError,
    ImageError,
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeFinalError,
    PriceUnknownError,
    QueueFullError,
    SubmissionRecordError,
)
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.waiting import backoff, intervals
from tests.unit.builders import Context, batch, event_of, rendered, resume, submissions
from tests.unit.conftest import TOKEN, TaskInstance, connect
from tests.unit.images.conftest import Store, encoded, filesystems, register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.images.conftest import Register

__all__ = ["filesystems", "register"]

pytestmark = pytest.mark.usefixtures("no_pauses", "short_intervals")

CATS = ["A cat", "A dog", "A cow", "A fox"]
ON_WORKER = {"deferrable": False}
SEEDED = [{"prompt": prompt, "seed": 5} for prompt in CATS]


class Attempts(TaskInstance):
    """A task instance that Airflow can retry, and a person can clear."""

    max_tries = 3

    def retry(self) -> None:
        self.try_number += 1
        self.pushed = {}

    def clear(self) -> None:
        self.max_tries += 4
        self.retry()


@pytest.fixture
def ti() -> Attempts:
    return Attempts()


@pytest.fixture
def context(ti: Attempts) -> Context:
    return {"ti": ti}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing take the time that a real service needs."""
    monkeypatch.setattr(intervals, "MIN_CLOSE_INTERVAL", 0.002)
    monkeypatch.setattr(share_module, "SOON", 0.002)
    monkeypatch.setattr(share_module, "DEFAULT_COOLDOWN", 0.002)
    monkeypatch.setattr(backoff, "MIN_QUEUE_DELAY", 0.002)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A service that runs one generation at once, until the test finishes it."""
    with Emulator(duration=1000) as emulator:
        connect(monkeypatch, emulator.base_url)
        yield emulator


def rows_of(summary: Any) -> list[manifest.ManifestRow]:
    return list(manifest.read(summary))


def statuses(summary: Any) -> list[str]:
    return [row.status for row in rows_of(summary)]


def images_in(folder: Path) -> dict[str, bytes]:
    """Return the images in a folder by their names, without the state and the manifest."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def prompts(emulator: Emulator) -> list[str]:
    """Return the prompts of the generations that were created, in their order."""
    return [one.json["prompt"] for one in submissions(emulator) if one.generation_id]


def state_in(folder: Path) -> Path:
    [state] = (folder / ".modelscope").iterdir()
    return state


def running_in(folder: Path) -> dict[str, Any]:
    """Return what ``running.json`` says."""
    document: dict[str, Any] = json.loads((state_in(folder) / "running.json").read_text())["modelscope_batch"]
    return document


def deferral_of(task: Any, context: Context) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        task.execute(context)
    return raised.value


def failed(task: Any, context: Context, error: type[ModelScopeError], match: str = "") -> dict[str, Any]:
    """Run a task that fails, and return its XCom ``summary``."""
    with pytest.raises(error, match=match):
        task.execute(context)
    summary: dict[str, Any] = context["ti"].pushed["summary"]
    return summary


class TestSuccess:
    def test_every_row_has_its_image_and_the_summary_counts(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        summary = batch(tmp_path, requests=CATS).execute(context)
        assert summary == {
            "manifest": f"file://{tmp_path}/manifest.jsonl",
            "counts": {"stored": 4, "rejected": 0, "failed": 0, "skipped": 0},
            "credit": 4 * 0.5 if summary["credit"] == 2 else summary["credit"],
            "stopped_by": None,
        }
        assert prompts(emulator) == CATS
        assert sorted(images_in(tmp_path)) == [f"{number:06}.png" for number in range(1, 5)]
        assert set(images_in(tmp_path).values()) <= set(emulator.served.values())
        for number, row in enumerate(rows_of(summary), start=1):
            assert (row.row, row.key, row.status) == (number, f"{number:06}", "stored")
            assert row.uri == f"file://{tmp_path}/{number:06}.png"
            assert (row.model, row.error, row.width) == ("a/b", None, 64)
        assert "summary" not in context["ti"].pushed

    def test_credit_is_the_sum_of_the_prices(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        summary = batch(tmp_path, requests=CATS).execute(context)
        assert summary["credit"] == sum(row.credit or 0 for row in rows_of(summary)) > 0

    def test_rows_name_their_images_and_pass_on_data(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        source = tmp_path / "rows.jsonl"
        source.write_text('{"prompt": "A cat", "key": "cat", "data": {"id": [7]}, "model": "c/d", "seed": 3}\n')
        [row] = rows_of(batch(tmp_path / "out", requests=f"file://{source}").execute(context))
        assert (row.key, row.data, row.model, row.seed) == ("cat", {"id": [7]}, "c/d", 3)
        assert list(images_in(tmp_path / "out")) == ["cat.png"]

    def test_the_xcom_batch_says_where_the_state_is(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        batch(tmp_path).execute(context)
        assert context["ti"].pushed["batch"] == {
            "state": f"file://{state_in(tmp_path)}/",
            "storage_conn_id": None,
            "manifest": f"file://{tmp_path}/manifest.jsonl",
            "total": 2,
        }
        assert running_in(tmp_path)["is_finished"] is True

    def test_sidecars_and_parquet_come_if_asked_for(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        pytest.importorskip("pyarrow")
        summary = batch(tmp_path, sidecar=True, manifest_format="parquet").execute(context)
        assert summary["manifest"] == f"file://{tmp_path}/manifest.parquet"
        assert statuses(summary) == ["stored", "stored"]
        assert (tmp_path / "000001.png.json").exists()

    def test_images_that_come_at_once_are_stored(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:images:2")
        task = batch(tmp_path, deferrable=True, defer_after=0)
        assert statuses(task.execute(context)) == ["stored", "stored"]

    @pytest.mark.parametrize("concurrency", [1, 3])
    def test_no_more_run_at_once_than_concurrency_says(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int
    ) -> None:
        with Emulator(duration=0.05, max_running=5) as emulator:
            connect(monkeypatch, emulator.base_url)
            batch(tmp_path, requests=["A cat"] * 6, concurrency=concurrency).execute(context)
            changes = sorted(change for start, end in emulator.spans for change in ((start, 1), (end, -1)))
            running = [sum(change for _, change in changes[: count + 1]) for count in range(len(changes))]
            assert max(running) <= concurrency
            assert len(submissions(emulator)) == emulator.accepted == 6

    def test_the_next_row_is_submitted_before_the_last_is_stored(
        self, emulator: Emulator, context: Context, register: Register, tmp_path: Path
    ) -> None:
        seen: list[int] = []

        class Slow(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                if path.endswith("000001.png"):
                    while emulator.accepted < 2:  # with a deadlock, the test never ends
                        pass
                    seen.append(emulator.accepted)
                super().pipe_file(path, value, mode, **options)

        register("memory", Slow())
        batch(destination="memory://bucket/out/").execute(context)
        assert seen == [2]

    def test_a_slow_store_holds_up_the_submissions(
        self, emulator: Emulator, context: Context, register: Register
    ) -> None:
        most: list[int] = []

        class Slow(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                super().pipe_file(path, value, mode, **options)
                if path.endswith(".png"):
                    stored = sum(name.endswith(".png") for name in self.objects)
                    most.append(emulator.accepted - stored)

        register("memory", Slow())
        batch(destination="memory://bucket/out/", requests=["A cat"] * 12).execute(context)
        assert max(most) <= 3  # two that wait, and one that runs


class TestInput:
    def test_nothing_is_sent_if_any_row_is_invalid(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidRequestError, match=r"requests\[1\]: steps = 0"):
            batch(tmp_path, requests=["A cat", {"prompt": "A dog", "steps": 0}]).execute(context)
        assert not emulator.requests
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_an_empty_list_fails_or_skips_the_task(
        self, emulator: Emulator, context: Context, tmp_path: Path, deferrable: bool
    ) -> None:
        with pytest.raises(InvalidRequestError, match=r"no requests\. With on_empty='skip'"):
            batch(tmp_path, requests=[], deferrable=deferrable).execute(context)
        with pytest.raises(AirflowSkipException):
            batch(tmp_path, requests=[], on_empty="skip", deferrable=deferrable).execute(context)
        assert not emulator.requests
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("timeout", 0, "must be a number of seconds"),
            ("queue_timeout", 0.5, "must be a number of seconds"),
            ("exhausted_timeout", None, "must be a number of seconds"),
            ("poll_interval", "5", "must be a number of seconds"),
            ("defer_after", -1, "must be a number of seconds"),
            ("on_lost_response", "again", "must be 'resubmit' or 'fail'"),
            ("on_exhausted", "retry", "must be 'fail' or 'wait' or 'stop'"),
            ("on_empty", True, "must be 'fail' or 'skip'"),
            ("manifest_format", "csv", "must be 'jsonl' or 'parquet'"),
            ("item_attempts", 0, "must be an integer from 1 to 10"),
            ("item_attempts", True, "must be an integer from 1 to 10"),
            ("max_requests", 0, "must be an integer from 1 to 1000000"),
            ("concurrency", 0, 'must be an integer from 1 to 100, or "auto"'),
            ("concurrency", "3", 'must be an integer from 1 to 100, or "auto"'),
            ("max_failures", -1, "must be an integer from 0, or such as '5%'"),
            ("max_failures", "5", "must be an integer from 0, or such as '5%'"),
            ("max_failures", "101%", "must be an integer from 0, or such as '5%'"),
            ("max_failures", None, "must be an integer from 0, or such as '5%'"),
            ("max_credit", "much", "must be a number"),
            ("shard", "3/3", "must be text such as '0/3'"),
            ("shard", "first", "must be text such as '0/3'"),
            ("destination", "file:///folder", "names an object without the suffix"),
            ("destination", "file:///folder/cat.png", "must be a folder"),
            ("fallback_models", "a/b", "must be a list of at most 10 model ids"),
            ("steps", 0, "must be an integer from 1 to 100"),
        ],
    )
    def test_an_invalid_option_is_named_at_parse_time_and_at_run_time(
        self, emulator: Emulator, context: Context, name: str, value: Any, problem: str
    ) -> None:
        with DAG("a_dag", schedule=None), pytest.raises(ModelScopeFinalError, match=f"{name} = ") as parsed:
            batch(**{name: value})
        with pytest.raises(ModelScopeFinalError, match=f"{name} = ") as ran:
            rendered(batch(), **{name: value}).execute(context)
        assert problem in str(parsed.value)
        assert problem in str(ran.value)
        assert not emulator.requests

    def test_waiting_for_credit_on_a_worker_is_an_error(self, emulator: Emulator) -> None:
        with pytest.raises(InvalidRequestError, match="on_exhausted = 'wait': needs deferrable=True"):
            batch(on_exhausted="wait", deferrable=False)

    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": f"tell {TOKEN}"},
            {"prompt": "A cat", "key": TOKEN},
            {"prompt": "A cat", "key": f"{TOKEN}/x"},
            {"prompt": "A cat", "data": {"a": [TOKEN]}},
            {"prompt": "A cat", "steps": TOKEN},
            {"prompt": "A cat", TOKEN: 1},
            TOKEN,
        ],
        ids=["prompt", "key", "invalid key", "data", "steps", "unknown name", "text"],
    )
    @pytest.mark.parametrize("is_file", [False, True], ids=["list", "file"])
    def test_a_secret_in_a_row_is_refused_and_never_quoted(
        self, emulator: Emulator, context: Context, tmp_path: Path, row: Any, is_file: bool
    ) -> None:
        requests: Any = ["A dog", row]
        if is_file:
            if isinstance(row, str):
                row = {"prompt": row}
            (tmp_path / "rows.jsonl").write_text('{"prompt": "A dog"}\n' + json.dumps(row))
            requests = f"file://{tmp_path}/rows.jsonl"
        with pytest.raises(InvalidRequestError, match="must not contain the token or another secret") as raised:
            batch(tmp_path / "out", requests=requests).execute(context)
        assert TOKEN not in str(raised.value)
        assert not emulator.requests
        assert not (tmp_path / "out").exists()
        assert TOKEN not in json.dumps(context["ti"].pushed)

    @pytest.mark.parametrize("name", ["requests", "model", "destination", "shard", "max_credit"])
    def test_a_secret_in_a_parameter_is_refused_and_never_quoted(
        self, emulator: Emulator, context: Context, name: str
    ) -> None:
        for value in (TOKEN, [TOKEN], f"s3://{TOKEN}/"):
            with pytest.raises(InvalidRequestError, match="must not contain the token") as raised:
                rendered(batch(), **{name: value}).execute(context)
            assert TOKEN not in str(raised.value)


class TestDryRun:
    def test_it_counts_and_prices_and_sends_nothing(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        requests = [*CATS, {"prompt": "An owl", "model": "c/d"}, {"prompt": "An owl", "model": "c/d"}]
        estimate = batch(tmp_path, requests=requests, dry_run=True).execute(context)
        assert estimate["rows"] == estimate["to_generate"] == 6
        assert estimate["by_model"] == {"a/b": 4, "c/d": 2}
        assert estimate["credit"] > 0
        assert estimate["days"] == 1
        assert estimate["models_without_price"] == []
        assert not submissions(emulator)
        assert not list(tmp_path.iterdir())
        assert not context["ti"].pushed.keys() & {"batch", "summary"}

    def test_it_counts_what_a_clear_would_generate(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        batch(tmp_path, requests=CATS).execute(context)
        ti.clear()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        estimate = batch(tmp_path, requests=[*CATS, "An owl"], dry_run=True).execute(context)
        assert (estimate["rows"], estimate["to_generate"]) == (5, 1)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def test_unknown_prices_are_named(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(retired_models=["a/retired"], credit=0) as emulator:
            connect(monkeypatch, emulator.base_url)
            estimate = batch(tmp_path, model="a/retired", dry_run=True).execute(context)
        assert estimate["models_without_price"] == ["a/retired"]
        assert estimate["credit"] is estimate["days"] is None


class TestShard:
    def test_each_row_is_in_exactly_one_shard_with_its_manifest(
        self, emulator: Emulator, tmp_path: Path
    ) -> None:
        for index in range(3):
            ti = Attempts()
            ti.map_index = index
            task = batch(tmp_path, requests=[*CATS, "An owl"], shard=f"{index}/3")
            summary = task.execute({"ti": ti})
            assert summary["manifest"] == f"file://{tmp_path}/manifest-{index}-of-3.jsonl"
            assert [row.row for row in rows_of(summary)] == [[1, 4], [2, 5], [3]][index]
        assert sorted(row.row for row in manifest.read(f"file://{tmp_path}/")) == [1, 2, 3, 4, 5]
        assert emulator.accepted == 5

    def test_a_shard_without_rows_has_an_empty_manifest(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        summary = batch(tmp_path, requests=["A cat"], shard="2/3").execute(context)
        assert rows_of(summary) == []
        assert sum(summary["counts"].values()) == emulator.accepted == 0

    def test_all_rows_are_validated_by_each_shard(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        with pytest.raises(InvalidRequestError, match=r"requests\[1\]: prompt = "):
            batch(tmp_path, requests=["A cat", " "], shard="0/2").execute(context)
        assert not emulator.requests

    @pytest.mark.parametrize(
        ("given", "is_allowed"),
        [
            ({}, False),
            ({"shard": "0/3"}, False),
            ({"shard": "{{ ti.map_index }}/3"}, True),
            ({"destination": "file://{folder}/{{ ti.map_index }}/"}, True),
            ({"destination": "file://{folder}/{{ ds }}/"}, False),
        ],
        ids=str,
    )
    def test_mapped_tasks_need_shards_or_folders_of_their_own(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path, given: Any, is_allowed: bool
    ) -> None:
        ti.map_index = 1
        context["ds"] = "2026-11-29"
        given = {"destination": "file://{folder}/"} | given
        given["destination"] = given["destination"].replace("{folder}", str(tmp_path))
        connections = ["modelscope_default"]
        with DAG("a_dag", schedule=None) as context["dag"]:
            partial: Any = ModelScopeImageBatchOperator.partial(
                task_id="draw_all", model="a/b", requests=CATS, **given
            )
            task = partial.expand(modelscope_conn_id=connections)
        task = task.unmap({"modelscope_conn_id": connections[0]})
        task.render_template_fields(context)
        if is_allowed:
            assert task.execute(context)["counts"]["stored"]
        else:
            with pytest.raises(InvalidDestinationError, match="each mapped task would store the same images"):
                task.execute(context)
            assert not emulator.requests


class TestRejectedRows:
    def test_a_rejected_prompt_does_not_stop_the_others(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("submit:moderated")
        emulator.fail("poll:rejected")
        summary = failed(
            batch(tmp_path, requests=CATS),
            context,
            BatchRejectedError,
            match=r"2 of 4 rows have no image: 2 rejected, 0 failed\. max_failures = 0 allows 0\. Correct them"
            r".*first is row 1 \(000001\): RequestRejectedError: ",
        )
        assert summary["counts"] == {"stored": 2, "rejected": 2, "failed": 0, "skipped": 0}
        first, second, *others = rows_of(summary)
        assert [row.status for row in (first, second)] == ["rejected", "rejected"]
        assert first.error and second.error
        assert first.error.type == "RequestRejectedError"
        assert second.error.type == "GenerationRejectedError"
        assert first.error.request_id
        assert [row.status for row in others] == ["stored", "stored"]

    @pytest.mark.parametrize("again", ["retry", "clear"])
    def test_a_rejected_prompt_is_never_sent_again(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path, again: str
    ) -> None:
        emulator.fail("submit:moderated")
        emulator.fail("poll:rejected")
        failed(batch(tmp_path, requests=CATS), context, BatchRejectedError)
        sent = len(submissions(emulator))
        getattr(ti, again)()
        summary = failed(batch(tmp_path, requests=CATS), context, BatchRejectedError)
        assert summary["counts"]["rejected"] == 2
        assert len(submissions(emulator)) == sent

    def test_a_corrected_prompt_is_sent(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("submit:moderated")
        failed(batch(tmp_path, requests=CATS), context, BatchRejectedError)
        ti.clear()
        summary = batch(tmp_path, requests=["A kind cat", *CATS[1:]]).execute(context)
        assert summary["counts"]["stored"] == 4
        assert prompts(emulator)[-1] == "A kind cat"
        assert emulator.accepted == 4

    @pytest.mark.parametrize(
        ("max_failures", "is_allowed"),
        [(0, False), (1, False), (2, True), ("49%", False), ("50%", True), (" 62.5 % ", True), ("100%", True)],
    )
    def test_max_failures_is_a_number_or_a_share(
        self, emulator: Emulator, context: Context, tmp_path: Path, max_failures: Any, is_allowed: bool
    ) -> None:
        emulator.fail("submit:moderated:2")
        task = batch(tmp_path, requests=CATS, max_failures=max_failures)
        if is_allowed:
            assert task.execute(context)["counts"]["rejected"] == 2
        else:
            failed(task, context, BatchRejectedError)

    def test_one_failure_that_may_pass_makes_the_task_retryable(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:moderated")
        emulator.fail("poll:failed:2")
        failed(batch(tmp_path, requests=CATS), context, BatchFailedError, match="A retry does only these")


class TestFailedRows:
    @pytest.mark.parametrize("item_attempts", [1, 2, 3])
    def test_a_failed_generation_is_submitted_again_so_often(
        self, emulator: Emulator, context: Context, tmp_path: Path, item_attempts: int
    ) -> None:
        emulator.fail(f"poll:failed:{item_attempts}")
        task = batch(tmp_path, requests=["A cat", "A dog"], item_attempts=item_attempts)
        summary = failed(task, context, BatchFailedError, match="GenerationFailedError: Generation FAILED")
        assert prompts(emulator).count("A cat") == item_attempts
        assert statuses(summary) == ["failed", "stored"]

    def test_the_next_generation_may_succeed(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("poll:failed")
        summary = batch(tmp_path, requests=["A cat", "A dog"]).execute(context)
        assert statuses(summary) == ["stored", "stored"]
        assert emulator.accepted == 3

    def test_what_the_service_gives_back_is_not_spent(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("poll:failed")
        summary = batch(tmp_path, requests=["A cat", "A dog"]).execute(context)
        assert summary["credit"] == sum(row.credit or 0 for row in rows_of(summary))

    @pytest.mark.parametrize("fault", ["image:garbage:10", "image:404:10"])
    def test_a_broken_or_lost_image_is_generated_again(
        self, emulator: Emulator, context: Context, tmp_path: Path, fault: str
    ) -> None:
        emulator.fail(fault.replace("10", "2"))
        summary = batch(tmp_path, requests=["A cat"]).execute(context)
        assert statuses(summary) == ["stored"]
        assert emulator.accepted == 2

    def test_a_retry_does_only_the_rows_that_failed(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("poll:failed:2")
        failed(batch(tmp_path, requests=CATS), context, BatchFailedError)
        ti.retry()
        summary = batch(tmp_path, requests=CATS).execute(context)
        assert statuses(summary) == ["stored"] * 4
        assert prompts(emulator) == ["A cat", "A cat", *CATS[1:], "A cat"]

    def test_a_final_failure_waits_for_a_clear(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("submit:unknown-model")
        requests = [{"prompt": "A cat", "model": "no/such"}, *CATS[1:]]
        failed(batch(tmp_path, requests=requests), context, BatchRejectedError, match="UnknownModelError")
        ti.retry()
        failed(batch(tmp_path, requests=requests), context, BatchRejectedError, match="UnknownModelError")
        sent = len(submissions(emulator))
        ti.clear()
        assert statuses(batch(tmp_path, requests=requests).execute(context)) == ["stored"] * 4
        assert len(submissions(emulator)) == sent + 1

    def test_a_source_image_that_is_gone_fails_its_row_alone(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        requests = [{"prompt": "A cat", "image_url": f"file://{tmp_path}/cat.png"}, "A dog"]
        model = "Qwen/Qwen-Image-Edit"
        summary = failed(
            batch(tmp_path / "out", requests=requests, model=model, max_failures=0),
            context,
            BatchRejectedError,
            match="cat.png: cannot be read",
        )
        assert summary["counts"]["failed"] >= 1
        assert "A cat" not in prompts(emulator)
        (tmp_path / "cat.png").write_bytes(encoded())
        ti.clear()
        batch(tmp_path / "out", requests=requests[:1], model=model).execute(context)
        assert submissions(emulator)[-1].json["image_url"].startswith("data:image/png;base64,")
        assert "base64" not in "".join(path.read_text() for path in state_in(tmp_path / "out").iterdir())


class TestModels:
    def test_an_unknown_model_is_asked_once_not_once_a_row(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:unknown-model")
        summary = failed(batch(tmp_path, requests=CATS), context, BatchRejectedError)
        assert summary["counts"]["failed"] == 4
        assert len(submissions(emulator)) == 1

    def test_a_retired_model_is_asked_once_and_the_fallback_draws(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(retired_models=["a/retired"], max_running=9) as emulator:
            connect(monkeypatch, emulator.base_url)
            task = batch(tmp_path, requests=CATS, model="a/retired", fallback_models=["c/d"])
            rows = rows_of(task.execute(context))
            assert [(row.model, row.asked_model) for row in rows] == [("c/d", "a/retired")] * 4
            assert [one.json["model"] for one in submissions(emulator)] == ["a/retired", *["c/d"] * 4]

    def test_a_retired_model_without_fallback_fails_its_rows(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(retired_models=["a/retired"], max_running=9) as emulator:
            connect(monkeypatch, emulator.base_url)
            requests = [{"prompt": "A cat", "model": "a/retired"}, *CATS[1:]]
            summary = failed(
                batch(tmp_path, requests=requests), context, BatchRejectedError, match="no longer served"
            )
            assert statuses(summary) == ["failed", "stored", "stored", "stored"]

    def test_a_model_without_quota_is_asked_once_and_the_fallback_draws(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:quota")
        rows = rows_of(batch(tmp_path, requests=CATS, fallback_models=["c/d"]).execute(context))
        assert {row.model for row in rows} == {"c/d"}
        assert len(submissions(emulator)) == 5


class TestCredit:
    @pytest.fixture
    def two(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
        """A service with credit for two images."""
        with Emulator(credit=2, max_running=9) as emulator:
            connect(monkeypatch, emulator.base_url)
            yield emulator

    def test_stop_ends_as_a_success_and_skips_the_rest(
        self, two: Emulator, context: Context, tmp_path: Path
    ) -> None:
        summary = batch(tmp_path, requests=CATS, on_exhausted="stop").execute(context)
        assert summary["stopped_by"] == "credit"
        assert statuses(summary) == ["stored", "stored", "skipped", "skipped"]
        assert summary["counts"]["skipped"] == 2
        assert running_in(tmp_path)["counts"]["skipped"] == 2

    def test_a_clear_after_stop_does_the_rest(
        self, two: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        batch(tmp_path, requests=CATS, on_exhausted="stop").execute(context)
        two.grant(TOKEN, 2)
        ti.clear()
        summary = batch(tmp_path, requests=CATS, on_exhausted="stop").execute(context)
        assert (statuses(summary), summary["stopped_by"]) == (["stored"] * 4, None)
        assert prompts(two) == CATS

    def test_fail_fails_with_the_error_and_a_summary(
        self, two: Emulator, context: Context, tmp_path: Path
    ) -> None:
        summary = failed(batch(tmp_path, requests=CATS), context, CreditExhaustedError)
        assert summary["counts"] == {"stored": 2, "rejected": 0, "failed": 0, "skipped": 2}
        assert statuses(summary) == ["stored", "stored", "skipped", "skipped"]
        assert summary["stopped_by"] == "credit"

    def test_wait_defers_and_does_the_rest(
        self, two: Emulator, context: Context, tmp_path: Path
    ) -> None:
        task = batch(tmp_path, requests=CATS, on_exhausted="wait", deferrable=True)
        deferral = deferral_of(task, context)
        assert deferral.method_name == "execute_with_credit"
        assert len(images_in(tmp_path)) == 2
        two.grant(TOKEN, 2)
        summary = resume(batch(tmp_path, requests=[], deferrable=True, on_exhausted="wait"), deferral, context)
        assert statuses(summary) == ["stored"] * 4
        assert prompts(two) == CATS

    def test_the_time_to_wait_begins_again_after_a_row(
        self, two: Emulator, context: Context, tmp_path: Path
    ) -> None:
        task = batch(tmp_path, requests=CATS, on_exhausted="wait", deferrable=True, exhausted_timeout=100)
        first = deferral_of(task, context)
        first.trigger.deferred_task["parameters"]["exhausted_end"] -= 90
        two.grant(TOKEN, 1)
        with pytest.raises(TaskDeferred) as second:
            resume(task, first, context)
        assert second.value.trigger.end_time > first.trigger.end_time - 10

    def test_the_time_to_wait_goes_on_if_there_was_no_credit(
        self, two: Emulator, context: Context, tmp_path: Path
    ) -> None:
        task = batch(tmp_path, requests=CATS, on_exhausted="wait", deferrable=True)
        first = deferral_of(task, context)
        first.trigger.needed = 0.0
        with pytest.raises(TaskDeferred) as second:
            resume(task, first, context)
        assert second.value.trigger.end_time == first.trigger.end_time

    def test_a_task_that_cannot_defer_fails_and_says_why(
        self, two: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        ti.task = object()  # type: ignore[attr-defined] # another task called execute()
        task = batch(tmp_path, requests=CATS, on_exhausted="wait", deferrable=True)
        failed(task, context, CreditExhaustedError, match="cannot wait for credit in the triggerer")

    @pytest.mark.parametrize("on_exhausted", ["fail", "wait"])
    def test_max_credit_is_never_exceeded(
        self, emulator: Emulator, context: Context, tmp_path: Path, on_exhausted: str
    ) -> None:
        task = batch(tmp_path, requests=CATS, max_credit=2, on_exhausted=on_exhausted, deferrable=True)
        summary = failed(task, context, CreditLimitError, match="max_credit = 2 would be exceeded")
        assert summary["stopped_by"] == "max_credit"
        assert summary["credit"] == emulator.accepted == 2
        assert statuses(summary) == ["stored", "stored", "skipped", "skipped"]

    def test_max_credit_with_stop_is_a_success(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        summary = batch(tmp_path, requests=CATS, max_credit=2, on_exhausted="stop").execute(context)
        assert summary["stopped_by"] == "max_credit"
        assert emulator.accepted == 2

    def test_max_credit_counts_all_attempts_until_a_success(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        for _ in range(2):
            failed(batch(tmp_path, requests=CATS, max_credit=2), context, CreditLimitError)
            ti.clear()
        assert emulator.accepted == 2
        batch(tmp_path, requests=CATS, max_credit=4).execute(context)
        ti.clear()
        batch(tmp_path, requests=[*CATS, "An owl"], max_credit=1).execute(context)
        assert emulator.accepted == 5

    def test_an_unknown_price_is_an_error_with_max_credit(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(retired_models=["a/retired"]) as emulator:
            connect(monkeypatch, emulator.base_url)
            failed(batch(tmp_path, model="a/retired", max_credit=5), context, PriceUnknownError)
            assert not submissions(emulator)


class TestLostResponse:
    def test_by_default_the_row_is_submitted_again(
        self, emulator: Emulator, context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        emulator.fail("submit:lost")
        summary = batch(tmp_path, requests=["A cat", "A dog"]).execute(context)
        assert statuses(summary) == ["stored", "stored"]
        assert emulator.accepted == 3
        assert summary["credit"] == 3
        assert "Submitting again, which may be charged twice: row 1 (000001)" in caplog.text

    def test_fail_lets_the_row_fail_until_a_clear(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("submit:lost")
        task = batch(tmp_path, requests=["A cat", "A dog"], on_lost_response="fail")
        summary = failed(task, context, BatchRejectedError, match="SubmissionUnresolvedError")
        assert statuses(summary) == ["failed", "stored"]
        ti.retry()
        failed(task, context, BatchRejectedError)
        assert emulator.accepted == 2
        ti.clear()
        assert statuses(task.execute(context)) == ["stored", "stored"]
        assert emulator.accepted == 3

    @pytest.mark.parametrize("on_lost_response", ["resubmit", "fail"])
    def test_a_worker_killed_while_submitting_is_a_lost_response(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        on_lost_response: str,
    ) -> None:
        batch(tmp_path, requests=["A cow"]).execute(context)
        running = state_in(tmp_path) / "running.json"
        document = json.loads(running.read_text())
        task = batch(tmp_path, requests=["A cow", "A cat"], on_lost_response=on_lost_response, max_failures=1)
        ti.retry()
        emulator.fail("submit:moderated")
        task.execute(context)  # for the fingerprint
        result = running_in(tmp_path)["results"][-1]
        sent = {"key": result["key"], "number": 2, "fingerprint": result["fingerprint"], "sent_at": 1.0}
        document["modelscope_batch"] |= {"running": [{**sent, "credit": 1}], "has_succeeded": False}
        running.write_text(json.dumps(document))
        ti.retry()
        summary = task.execute(context)
        assert "An earlier attempt ended while submitting row 2 (000002)" in caplog.text
        assert statuses(summary)[1] == ("stored" if on_lost_response == "resubmit" else "failed")
        assert summary["credit"] == (3 if on_lost_response == "resubmit" else 2)
