"""The batch: every row once, whatever happens, and what its state, manifest and summary say of it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_modelscope import manifest, metrics
from airflow_provider_modelscope.batch import run as run_module, share as share_module
from airflow_provider_modelscope.compat import AirflowSkipException, AirflowTaskTimeout, TaskDeferred
from airflow_provider_modelscope.emulator import Emulator
from airflow_provider_modelscope.exceptions import (
    AuthenticationError,
    BatchFailedError,
    BatchRejectedError,
    CreditExhaustedError,
    CreditLimitError,
    ImageError,
    ImageNotAllowedError,
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
    ModelScopeError,
    ModelScopeFinalError,
    PriceUnknownError,
    QueueFullError,
    ServiceUnreachableError,
    SubmissionLostError,
    SubmissionRecordError,
)
from airflow_provider_modelscope.hooks.modelscope import DOWNLOAD_ATTEMPTS
from airflow_provider_modelscope.operators.image_batch import ModelScopeImageBatchOperator
from airflow_provider_modelscope.waiting import backoff, intervals
from tests.unit.builders import Context, batch, rendered, resume, submissions
from tests.unit.conftest import TOKEN, TaskInstance, connect
from tests.unit.images.conftest import Store, encoded, filesystems, register

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.images.conftest import Register

__all__ = ["filesystems", "register"]

pytestmark = pytest.mark.usefixtures("no_pauses", "short_intervals")

CATS = ["A cat", "A dog", "A cow", "A fox"]
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
    monkeypatch.setattr(share_module, "TURN_SECONDS", 0.002)
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


def failed(
    task: Any, context: Context, error: type[ModelScopeError], match: str | None = None
) -> dict[str, Any]:
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
        source.write_text(
            '{"prompt": "A cat", "key": "cat", "data": {"id": [7]}, "model": "c/d", "seed": 3}\n'
        )
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
        self, emulator: Emulator, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intervals, "MIN_CLOSE_INTERVAL", 1000)
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

    def test_nothing_is_sent_if_a_size_does_not_suit_a_fallback_model(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        requests = [{"prompt": "A cat", "size": "2048x2048"}]
        with pytest.raises(InvalidRequestError, match="a/flux is a fallback"):
            batch(tmp_path, requests=requests, fallback_models=["a/flux"]).execute(context)
        assert not emulator.requests

    @pytest.mark.parametrize(
        "requests", [None, "", "A cat", 7, {"prompt": "A cat"}, b"A cat", [None]], ids=str
    )
    def test_what_is_no_list_of_requests_is_an_error_in_each_attempt(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path, requests: Any
    ) -> None:
        batch(tmp_path).execute(context)
        ti.clear()
        with pytest.raises(InvalidRequestError, match="requests"):
            rendered(batch(tmp_path), requests=requests).execute(context)
        assert emulator.accepted == 2

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
            ("destination", "file:///folder", "must be a folder"),
            ("destination", "file:///folder/cat.png", "must be a folder"),
            ("destination", "folder/", "must be a URI such as"),
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

    def test_a_folder_for_each_attempt_is_an_error(self) -> None:
        with DAG("a_dag", schedule=None), pytest.raises(InvalidDestinationError, match="the same in all att"):
            batch(destination="file:///folder/{{ ds }}/{{ ti.try_number }}/")

    @pytest.mark.parametrize("name", ["manifest.jsonl", "/manifest.jsonl"])
    def test_the_manifest_never_replaces_the_file_of_requests(
        self, emulator: Emulator, context: Context, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "manifest.jsonl").write_text('"A cat"\n')
        with pytest.raises(InvalidRequestError, match="the manifest would replace this file"):
            batch(tmp_path, requests=f"file://{tmp_path}/{name}").execute(context)
        assert (tmp_path / "manifest.jsonl").read_text() == '"A cat"\n'
        assert not emulator.accepted

    @pytest.mark.parametrize("is_list", [False, True])
    @pytest.mark.parametrize(("key", "is_allowed"), [("cat", False), ("cat-by-night", True)])
    def test_an_image_never_replaces_the_one_that_it_edits(
        self, emulator: Emulator, context: Context, tmp_path: Path, key: str, is_list: bool, is_allowed: bool
    ) -> None:
        source = encoded()
        (tmp_path / "cat.png").write_bytes(source)
        url: Any = f"file://{tmp_path}//cat.png"
        row = {"key": key, "prompt": "By night", "image_url": [url] if is_list else url}
        task = batch(tmp_path, requests=[row], model="Qwen/Qwen-Image-Edit")
        if is_allowed:
            assert task.execute(context)["counts"]["stored"] == 1
        else:
            with pytest.raises(InvalidRequestError, match=r"row 1 \(cat\): image_url .* would replace this"):
                task.execute(context)
        assert (tmp_path / "cat.png").read_bytes() == source
        assert emulator.accepted == is_allowed

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
        with pytest.raises(
            InvalidRequestError, match="must not contain the token or another secret"
        ) as raised:
            batch(tmp_path / "out", requests=requests).execute(context)
        assert TOKEN not in str(raised.value)
        assert not emulator.requests
        assert not (tmp_path / "out").exists()
        assert TOKEN not in json.dumps(context["ti"].pushed)

    @pytest.mark.parametrize("is_file", [False, True], ids=["list", "file"])
    @pytest.mark.parametrize("length", [48, 53, 58])  # a quotation is cut after 60 characters
    def test_no_part_of_a_secret_is_quoted(
        self, emulator: Emulator, context: Context, tmp_path: Path, length: int, is_file: bool
    ) -> None:
        row = {"prompt": "A cat", "key": f"{'x' * length}{TOKEN}{'x' * 60}/"}
        requests: Any = [row]
        if is_file:
            (tmp_path / "rows.jsonl").write_text(json.dumps(row))
            requests = f"file://{tmp_path}/rows.jsonl"
        with pytest.raises(InvalidRequestError, match="must not contain the token") as raised:
            batch(tmp_path, requests=requests).execute(context)
        assert "ms-" not in str(raised.value)

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


def mapped(index: int) -> Context:
    """Return the context of a mapped task."""
    ti = Attempts()
    ti.map_index = index
    return {"ti": ti}


class TestShard:
    def test_each_row_is_in_exactly_one_shard_with_its_manifest(
        self, emulator: Emulator, tmp_path: Path
    ) -> None:
        for index in range(3):
            task = batch(tmp_path, requests=[*CATS, "An owl"], shard=f"{index}/3")
            summary = task.execute(mapped(index))
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

    @pytest.mark.parametrize("count", [2, 4])
    def test_another_number_of_shards_pays_for_nothing(
        self, emulator: Emulator, tmp_path: Path, count: int
    ) -> None:
        contexts = [mapped(index) for index in range(4)]

        def run(index: int, count: int) -> None:
            batch(tmp_path, requests=CATS, shard=f"{index}/{count}").execute(contexts[index])
            contexts[index]["ti"].clear()

        for index in range(3):
            run(index, 3)
        for index in range(count):
            with pytest.raises(InvalidRequestError, match=rf"shard = '{index}/{count}': .* began with './3'"):
                run(index, count)
        for index in range(3):
            run(index, 3)
        assert emulator.accepted == 4

    @pytest.mark.parametrize("shard", ["0/2", None])
    def test_two_mapped_tasks_never_have_the_same_shard(
        self, emulator: Emulator, tmp_path: Path, shard: str | None
    ) -> None:
        task = batch(tmp_path, requests=CATS, shard=shard)
        stored = task.execute(mapped(0))["counts"]["stored"]
        with pytest.raises(InvalidRequestError, match=rf"shard = {shard!r}: .* began with {shard!r}"):
            task.execute(mapped(1))
        assert emulator.accepted == stored

    def test_the_number_may_change_before_anything_is_paid(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("submit:401")
        failed(batch(tmp_path, requests=CATS, shard="0/2"), context, AuthenticationError)
        ti.clear()
        assert batch(tmp_path, requests=CATS, shard="0/4").execute(context)["counts"]["stored"] == 1

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


class TestFolder:
    """A folder belongs to one batch, so that no image and no manifest is replaced by that of another one."""

    def another(self, **ids: Any) -> Context:
        ti = Attempts()
        vars(ti).update(ids or {"task_id": "another"})
        return {"ti": ti}

    @pytest.mark.parametrize("ids", [{"dag_id": "other"}, {"run_id": "other"}, {"task_id": "other"}], ids=str)
    @pytest.mark.parametrize("is_dry_run", [False, True])
    def test_another_batch_sends_and_replaces_nothing(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path, ids: Any, is_dry_run: bool
    ) -> None:
        batch(tmp_path, requests=CATS).execute(context)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        other = batch(tmp_path, requests=["An owl"], dry_run=is_dry_run)
        with pytest.raises(InvalidDestinationError, match=r"another batch, a_dag\.a_run\.a_task, has"):
            other.execute(self.another(**ids))
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert prompts(emulator) == CATS
        ti.clear()
        assert batch(tmp_path, requests=CATS).execute(context)["counts"]["stored"] == 4

    def test_a_batch_that_runs_keeps_others_out(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        task = batch(tmp_path, deferrable=True, defer_after=0)
        deferral_of(task, context)
        with pytest.raises(InvalidDestinationError, match="another batch"):
            task.execute(self.another())
        assert slow.accepted == 1

    @pytest.mark.parametrize("moment", ["plan.jsonl", "running.json", ".modelscope"])
    def test_of_two_that_start_at_once_one_goes_on(
        self, emulator: Emulator, context: Context, register: Register, moment: str
    ) -> None:
        ends: list[Any] = []
        another = self.another()

        class Shared(Store):
            """The other batch starts and ends when the first one has written or listed something."""

            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                super().pipe_file(path, value, mode, **options)
                self.comes_to(path)

            def ls(self, path: str, *args: Any, **options: Any) -> Any:
                found = super().ls(path, *args, **options)
                self.comes_to(path)
                return found

            def comes_to(self, path: str) -> None:
                nonlocal moment
                if path.rstrip("/").endswith(moment):
                    moment = "never"
                    ends.append(end_of(remote(requests=CATS[:2]), another))

        register("memory", Shared())
        ends.append(end_of(remote(requests=CATS[2:]), context))
        [refused] = [end for end in ends if isinstance(end, InvalidDestinationError)]
        winner, requests = (context, CATS[2:]) if refused is ends[0] else (another, CATS[:2])
        winner["ti"].clear()
        assert statuses(remote(requests=requests).execute(winner)) == ["stored", "stored"]
        assert prompts(emulator) == requests

    def test_a_batch_that_paid_for_nothing_leaves_the_folder_free(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("submit:401")
        failed(batch(tmp_path), context, AuthenticationError)
        assert batch(tmp_path).execute(self.another())["counts"]["stored"] == 2
        ti.clear()
        with pytest.raises(InvalidDestinationError, match="another batch"):
            batch(tmp_path).execute(context)
        assert emulator.accepted == 2

    def test_a_batch_whose_generation_may_still_be_fetched_keeps_the_folder(
        self, emulator: Emulator, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, emulator.base_url, max_image_bytes=1)
        failed(batch(tmp_path, requests=["A cat"]), context, BatchRejectedError)
        with pytest.raises(InvalidDestinationError, match="another batch"):
            batch(tmp_path).execute(self.another())
        assert emulator.accepted == 1

    def test_images_in_segments_keep_the_folder(
        self, emulator: Emulator, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.batch.state.MAX_LATEST", 2)
        batch(tmp_path).execute(context)
        with pytest.raises(InvalidDestinationError, match="another batch"):
            batch(tmp_path).execute(self.another())

    def test_a_second_batch_in_a_loop_replaces_nothing(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        batch(tmp_path, requests=CATS[:2]).execute(context)
        before = images_in(tmp_path), rows_of(f"file://{tmp_path}/")
        with pytest.raises(InvalidDestinationError, match=r"has stored .*/000002\.png for another request"):
            batch(tmp_path, requests=["A cat", "An owl"]).execute(context)
        assert (images_in(tmp_path), rows_of(f"file://{tmp_path}/")) == before
        assert prompts(emulator) == CATS[:2]
        ti.clear()
        assert statuses(batch(tmp_path, requests=["A cat", "An owl"]).execute(context)) == ["stored"] * 2

    def test_a_state_that_cannot_be_read_keeps_others_out(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        batch(tmp_path).execute(context)
        state = state_in(tmp_path)
        (state / "running.json").write_text("{")
        with pytest.raises(SubmissionRecordError, match=f"{state.name}/ cannot be read, nothing was sent"):
            batch(tmp_path).execute(self.another())
        assert emulator.accepted == 2

    def test_other_objects_beside_the_states_are_no_batches(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        (tmp_path / ".modelscope" / "notes").mkdir(parents=True)
        (tmp_path / ".modelscope" / ".DS_Store").touch()
        assert statuses(batch(tmp_path).execute(context)) == ["stored", "stored"]


def end_of(task: Any, context: Context) -> Any:
    """Run a task, and return its summary or its error."""
    try:
        return task.execute(context)
    except ModelScopeError as error:
        return error


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
            match=r"2 of 4 rows have no image: 2 rejected, 0 failed\. max_failures = 0 allows 0\. Correct "
            r"them, .* first is row 1 \(000001\): RequestRejectedError: ",
        )
        assert summary["counts"] == {"stored": 2, "rejected": 2, "failed": 0, "skipped": 0}
        first, second, *others = rows_of(summary)
        assert [row.status for row in (first, second)] == ["rejected", "rejected"]
        assert first.error
        assert second.error
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
        [
            (0, False),
            (1, False),
            (2, True),
            ("49%", False),
            ("50%", True),
            (" 62.5 % ", True),
            ("100%", True),
        ],
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
            match="cat.png': cannot be read",
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

    def test_wait_defers_and_does_the_rest(self, two: Emulator, context: Context, tmp_path: Path) -> None:
        task = batch(tmp_path, requests=CATS, on_exhausted="wait", deferrable=True)
        deferral = deferral_of(task, context)
        assert deferral.method_name == "execute_with_credit"
        assert len(images_in(tmp_path)) == 2
        two.grant(TOKEN, 2)
        summary = resume(
            batch(tmp_path, requests=[], deferrable=True, on_exhausted="wait"), deferral, context
        )
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

    @pytest.mark.parametrize(("on_lost_response", "sent"), [("resubmit", 6), ("fail", 3)])
    def test_three_rows_without_a_response_end_the_batch(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        on_lost_response: str,
        sent: int,
    ) -> None:
        emulator.fail(f"submit:502:{sent}")
        task = batch(tmp_path, requests=CATS, on_lost_response=on_lost_response, max_failures=3)
        summary = failed(task, context, SubmissionLostError, match="^3 rows in a row")
        assert summary["counts"] == {"stored": 0, "rejected": 0, "failed": 3, "skipped": 1}
        assert len(submissions(emulator)) == sent
        ti.retry()
        is_sent_again = on_lost_response == "resubmit"
        assert task.execute(context)["counts"]["stored"] == (4 if is_sent_again else 1)

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

    @pytest.mark.parametrize(
        ("on_lost_response", "again", "is_sent"),
        [("resubmit", "retry", True), ("fail", "retry", False), ("fail", "clear", True)],
    )
    def test_a_worker_killed_while_submitting_is_a_lost_response(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        mortal: Mortal,
        caplog: pytest.LogCaptureFixture,
        on_lost_response: str,
        again: str,
        is_sent: bool,
    ) -> None:
        mortal.dies_at = (3, "after")  # the first two are the plan and the begin
        task = remote(requests=["A cat", "A dog"], on_lost_response=on_lost_response, max_failures=1)
        with pytest.raises(KeyboardInterrupt):
            task.execute(context)
        mortal.dies_at, mortal.is_dead = None, False
        getattr(ti, again)()
        summary = task.execute(context)
        assert "An earlier attempt ended while submitting row 1 (000001)" in caplog.text
        assert statuses(summary) == ["stored" if is_sent else "failed", "stored"]
        assert summary["credit"] == emulator.accepted + 1  # it may have been charged


class TestAgain:
    """A retry or a Clear does only what is missing or has changed."""

    def test_a_clear_after_a_success_pays_nothing(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        first = batch(tmp_path, requests=CATS).execute(context)
        rows = rows_of(first)
        ti.clear()
        second = batch(tmp_path, requests=CATS).execute(context)
        assert (rows_of(second), second["counts"]) == (rows, first["counts"])
        assert second["credit"] == 0
        assert emulator.accepted == 4

    def test_of_edited_and_new_rows_only_these_are_paid(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.batch.state.MAX_LATEST", 5)
        requests = [f"Cat {number}" for number in range(12)]
        batch(tmp_path, requests=requests).execute(context)
        assert len(list(state_in(tmp_path).glob("results-*-5-0-*.jsonl"))) == 2
        ti.clear()
        edited = ["A dog", *requests[1:8], "A cow", *requests[9:], "An owl"]
        summary = batch(tmp_path, requests=edited).execute(context)
        assert summary["counts"]["stored"] == 13
        assert prompts(emulator)[12:] == ["A dog", "A cow", "An owl"]
        assert rows_of(summary)[8].sha256 == sha256_of(tmp_path / "000009.png")

    def test_a_row_that_is_removed_is_not_in_the_manifest(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        keyed = [{"prompt": prompt, "key": prompt} for prompt in CATS]
        batch(tmp_path, requests=keyed).execute(context)
        ti.clear()
        summary = batch(tmp_path, requests=[keyed[3], keyed[0]]).execute(context)
        assert [(row.row, row.key) for row in rows_of(summary)] == [(1, "A fox"), (2, "A cat")]
        assert summary["counts"]["stored"] == 2
        assert emulator.accepted == 4

    def test_an_image_that_was_replaced_is_drawn_again(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        for prompt in ("A cat", "A dog", "A cat"):
            summary = batch(tmp_path, requests=[prompt]).execute(context)
            ti.clear()
            [row] = rows_of(summary)
            assert row.sha256 == sha256_of(tmp_path / "000001.png")
        assert prompts(emulator) == ["A cat", "A dog", "A cat"]

    @pytest.mark.parametrize("has_seed", [False, True])
    def test_rows_that_move_keep_the_images_of_their_keys(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path, has_seed: bool
    ) -> None:
        rows: list[Any] = SEEDED if has_seed else CATS
        batch(tmp_path, requests=rows).execute(context)
        ti.clear()
        first = {"prompt": "An owl", "seed": 5}
        for row in rows_of(batch(tmp_path, requests=[first, *rows]).execute(context)):
            assert row.uri == f"file://{tmp_path}/{row.row:06}.png"
            assert row.sha256 == sha256_of(tmp_path / f"{row.row:06}.png")

    def test_a_renamed_row_with_a_seed_keeps_its_image(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        batch(tmp_path, requests=[{"prompt": "A cat", "seed": 5, "key": "old"}]).execute(context)
        ti.clear()
        renamed = [{"prompt": "A cat", "seed": 5, "key": "new"}]
        [row] = rows_of(batch(tmp_path, requests=renamed).execute(context))
        assert (row.key, row.uri) == ("new", f"file://{tmp_path}/old.png")
        assert emulator.accepted == 1

    def test_a_rotated_token_and_a_url_signed_again_pay_nothing(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def task(signature: str) -> Any:
            url = f"https://images.example/a.png?Signature={signature}"
            return batch(tmp_path, requests=["A cat"], image_url=url, model="Qwen/Qwen-Image-Edit")

        task("earlier").execute(context)
        monkeypatch.setattr("tests.unit.conftest.TOKEN", "ms-another-test")
        connect(monkeypatch, emulator.base_url)
        ti.clear()
        task("later").execute(context)
        assert emulator.accepted == 1
        assert "earlier" not in (state_in(tmp_path) / "running.json").read_text()

    def test_equal_rows_without_a_seed_are_separate_images(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        rows = rows_of(batch(tmp_path, requests=["A cat"] * 3).execute(context))
        assert len({row.uri for row in rows}) == emulator.accepted == 3

    def test_equal_rows_with_a_seed_are_generated_once(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        twins = [{"prompt": "A cat", "seed": 5, "data": number} for number in range(3)]
        summary = batch(tmp_path, requests=twins).execute(context)
        rows = rows_of(summary)
        assert [(row.key, row.data) for row in rows] == [("000001", 0), ("000002", 1), ("000003", 2)]
        assert {row.uri for row in rows} == {f"file://{tmp_path}/000001.png"}
        assert summary["counts"]["stored"] == 3
        assert summary["credit"] == sum(row.credit or 0 for row in rows) == 1
        ti.clear()
        batch(tmp_path, requests=twins).execute(context)
        assert emulator.accepted == 1

    def test_redraw_draws_all_again_after_a_clear(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        task = batch(tmp_path, requests=CATS, redraw=True)
        first = rows_of(task.execute(context))
        ti.clear()
        second = rows_of(task.execute(context))
        assert emulator.accepted == 8
        assert {row.generation_id for row in first}.isdisjoint(row.generation_id for row in second)

    def test_a_retry_of_a_redraw_pays_nothing_twice(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        task = batch(tmp_path, requests=CATS, redraw=True)
        task.execute(context)
        ti.clear()
        emulator.fail("poll:failed:2")
        failed(task, context, BatchFailedError)
        ti.retry()
        assert statuses(task.execute(context)) == ["stored"] * 4
        assert prompts(emulator)[4:] == ["A cat", "A cat", "A dog", "A cow", "A fox", "A cat"]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Mortal(Store):
    """A store whose process dies at a write, or which breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_at: tuple[int, str] | None = None  # which write of the state, "before" or "after"
        self.is_dead = False
        self.writes = 0
        self.failing: dict[str, Exception] = {}  # by a part of "read NAME" or "write NAME"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        is_state = "/.modelscope/" in path
        self.writes += is_state
        if self.dies_at == (self.writes, "before"):
            self.is_dead = True
        if self.is_dead:
            raise KeyboardInterrupt
        self.fail_if_broken(f"write {path.rpartition('/')[2]}")
        super().pipe_file(path, value, mode, **options)
        if is_state and self.dies_at == (self.writes, "after"):
            self.is_dead = True
            raise KeyboardInterrupt

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self.fail_if_broken(f"read {path.rpartition('/')[2]}")
        return super().cat_file(path, *args, **options)

    def fail_if_broken(self, name: str) -> None:
        for part, error in self.failing.items():
            if part in name:
                raise error

    def state(self, name: str) -> str:
        """Return the path of an object of the state."""
        [path] = [path for path in self.objects if path.endswith(f"/{name}")]
        return path


@pytest.fixture
def mortal(register: Register) -> Mortal:
    store = Mortal()
    register("memory", store)
    return store


def remote(**arguments: Any) -> ModelScopeImageBatchOperator:
    return batch(destination="memory://bucket/out/", **{"requests": CATS, **arguments})


class TestPaidOnce:
    """What is paid for is not paid for again, whatever ended the last attempt."""

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("write", range(1, 11))
    def test_a_task_that_is_killed_resumes_each_generation(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        mortal: Mortal,
        caplog: pytest.LogCaptureFixture,
        write: int,
        when: str,
    ) -> None:
        mortal.dies_at = (write, when)
        with pytest.raises(KeyboardInterrupt):
            remote(requests=CATS[:3]).execute(context)
        mortal.dies_at, mortal.is_dead = None, False
        paid = emulator.accepted
        ti.retry()
        assert statuses(remote(requests=CATS[:3]).execute(context)) == ["stored"] * 3
        lost = caplog.text.count("An earlier attempt ended while submitting")
        assert lost <= 1
        assert emulator.accepted <= 3 + lost
        assert emulator.accepted >= max(3, paid)

    def test_nothing_is_submitted_without_a_written_state(
        self, emulator: Emulator, context: Context, mortal: Mortal
    ) -> None:
        mortal.failing["write running.json"] = OSError("the store is away")
        with pytest.raises(SubmissionRecordError, match=r"running.json, cannot be written.*is away"):
            remote().execute(context)
        assert not submissions(emulator)

    def test_a_state_that_cannot_be_written_later_ends_the_batch(
        self, emulator: Emulator, context: Context, ti: Attempts, mortal: Mortal
    ) -> None:
        class Breaking(Mortal):
            def fail_if_broken(self, name: str) -> None:
                super().fail_if_broken(name)
                if name == "write running.json" and emulator.accepted == 2:
                    raise OSError("the store is away")

        mortal.__class__ = Breaking
        with pytest.raises(SubmissionRecordError):
            remote().execute(context)
        assert emulator.accepted == 2
        mortal.__class__ = Mortal
        ti.retry()
        assert statuses(remote().execute(context)) == ["stored"] * 4
        assert emulator.accepted <= 5  # one response could not be recorded

    def test_a_row_whose_intent_was_not_written_is_submitted_later(
        self, emulator: Emulator, context: Context, ti: Attempts, register: Register
    ) -> None:
        class Away(Store):
            """It is away for the write of the first intent."""

            was_away = False

            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                if b'"sent_at": 1' in value and not self.was_away:
                    self.was_away = True
                    raise OSError("the store is away")
                super().pipe_file(path, value, mode, **options)

        register("memory", Away())
        with pytest.raises(SubmissionRecordError):
            remote(on_lost_response="fail").execute(context)
        assert not submissions(emulator)
        ti.retry()
        summary = remote(on_lost_response="fail").execute(context)
        assert statuses(summary) == ["stored"] * 4
        assert summary["credit"] == emulator.accepted == 4

    def test_a_segment_that_cannot_be_written_loses_nothing(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        mortal: Mortal,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.batch.state.MAX_LATEST", 2)
        mortal.failing["write results-"] = OSError("the store is away")
        remote().execute(context)
        mortal.failing.clear()
        ti.clear()
        remote().execute(context)
        assert emulator.accepted == 4

    @pytest.mark.parametrize("name", ["read running.json", "read results-"])
    def test_a_state_that_cannot_be_read_sends_nothing(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        mortal: Mortal,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.batch.state.MAX_LATEST", 2)
        remote().execute(context)
        ti.retry()
        mortal.failing[name] = OSError("the store is away")
        with pytest.raises(SubmissionRecordError, match=r"cannot be read, nothing was sent.*is away"):
            remote(requests=["An owl"]).execute(context)
        assert emulator.accepted == 4

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            '{"modelscope_batch": 5}',
            '{"modelscope_batch": {"total": 1, "counts": {}, "results": 5}}',
            '{"modelscope_batch": {"total": 1, "counts": {}, "results": [7]}}',
            '{"modelscope_batch": {"total": 1, "counts": {}, "next_sequence": "a"}}',
        ],
    )
    def test_a_damaged_state_is_an_error_and_sends_nothing(
        self, emulator: Emulator, context: Context, ti: Attempts, mortal: Mortal, content: str
    ) -> None:
        remote().execute(context)
        mortal.pipe_file(mortal.state("running.json"), content.encode())
        ti.retry()
        with pytest.raises(SubmissionRecordError, match="cannot be read, nothing was sent"):
            remote(requests=["An owl"]).execute(context)
        assert emulator.accepted == 4

    @pytest.mark.parametrize(
        "junk", [{"running": 5}, {"running": [7, {}]}, {"spent": "a", "started_at": [], "durations": 7}]
    )
    def test_facts_of_a_wrong_type_are_left_out(
        self, emulator: Emulator, context: Context, ti: Attempts, mortal: Mortal, junk: dict[str, Any]
    ) -> None:
        remote().execute(context)
        path = mortal.state("running.json")
        document = json.loads(mortal.objects[path])
        document["modelscope_batch"] |= {"has_succeeded": False, **junk}
        mortal.pipe_file(path, json.dumps(document).encode())
        ti.retry()
        remote().execute(context)
        assert emulator.accepted == 4

    def test_a_store_that_is_away_for_a_moment_is_tried_again(
        self, emulator: Emulator, context: Context, register: Register
    ) -> None:
        attempts: list[str] = []

        class Flaky(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                if path.endswith("000001.png"):
                    attempts.append(path)
                    if len(attempts) < run_module.STORE_ATTEMPTS:
                        raise ConnectionError("the store is away")
                super().pipe_file(path, value, mode, **options)

        register("memory", Flaky())
        assert statuses(remote().execute(context)) == ["stored"] * 4
        assert len(attempts) == run_module.STORE_ATTEMPTS
        assert emulator.accepted == 4

    def test_a_full_store_keeps_what_is_paid_for(
        self, emulator: Emulator, context: Context, ti: Attempts, mortal: Mortal
    ) -> None:
        mortal.failing["write 000001.png"] = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(ImageStorageError, match="No space left"):
            remote().execute(context)
        mortal.failing.clear()
        ti.retry()
        assert statuses(remote().execute(context)) == ["stored"] * 4
        assert sorted(prompts(emulator)) == sorted(CATS)

    def test_a_forbidden_store_ends_the_batch_for_good(
        self, emulator: Emulator, context: Context, ti: Attempts, mortal: Mortal
    ) -> None:
        mortal.failing["write 000001.png"] = PermissionError("Forbidden")
        with pytest.raises(InvalidDestinationError, match="Forbidden"):
            remote().execute(context)
        assert emulator.accepted <= 3
        mortal.failing.clear()
        ti.clear()
        assert statuses(remote().execute(context)) == ["stored"] * 4
        assert sorted(prompts(emulator)) == sorted(CATS)

    def test_a_manifest_that_cannot_be_written_is_written_by_a_retry(
        self, emulator: Emulator, context: Context, ti: Attempts, mortal: Mortal
    ) -> None:
        mortal.failing["write manifest"] = OSError("the store is away")
        summary = failed(remote(), context, ModelScopeError, match="The manifest .* was not written.*is away")
        assert summary["manifest"] is None
        mortal.failing.clear()
        ti.retry()
        assert statuses(remote().execute(context)) == ["stored"] * 4
        assert emulator.accepted == 4

    def test_a_timeout_leaves_the_generation_to_the_retry(
        self, slow: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"requests": ["A cat"], "deferrable": True, "defer_after": 0}
        deferral = deferral_of(batch(tmp_path, **given), context)
        age(tmp_path, 1000)
        deferral.trigger.end_time -= 1000
        with pytest.raises(BatchFailedError, match="GenerationTimeoutError: The generation was P"):
            resume(batch(tmp_path, **given), deferral, context)
        slow.finish()
        ti.retry()
        assert statuses(batch(tmp_path, **given).execute(context)) == ["stored"]
        assert slow.accepted == 1

    def test_item_attempts_count_anew_in_another_attempt(
        self, slow: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"requests": ["A cat"], "item_attempts": 1}
        given |= {"deferrable": True, "defer_after": 0}
        deferral_of(batch(tmp_path, **given), context)
        ti.retry()
        slow.fail("poll:failed")
        with pytest.raises(TaskDeferred):
            batch(tmp_path, **given).execute(context)
        assert slow.accepted == 2

    def test_after_a_second_timeout_the_row_is_paid_again(
        self, slow: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"requests": ["A cat"], "deferrable": True, "defer_after": 0}
        for _ in range(2):
            deferral = deferral_of(batch(tmp_path, **given), context)
            assert slow.accepted == 1
            age(tmp_path, 1000)
            with pytest.raises(BatchFailedError, match="GenerationTimeoutError"):
                batch(tmp_path, **given).execute_complete(context, finished(deferral))
            ti.retry()
        slow.finish()
        with pytest.raises(TaskDeferred):
            batch(tmp_path, **given).execute(context)
        assert slow.accepted == 2

    def test_images_that_cannot_be_fetched_end_the_batch(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        connect(monkeypatch, emulator.base_url, max_image_bytes=1)
        requests = [f"Cat {number}" for number in range(9)]
        task = batch(tmp_path, requests=requests)
        summary = failed(task, context, ImageNotAllowedError, match="^3 images in a row")
        assert summary["counts"]["failed"] == 3
        assert emulator.accepted <= 6
        connect(monkeypatch, emulator.base_url)
        ti.clear()
        assert statuses(batch(tmp_path, requests=requests).execute(context)) == ["stored"] * 9
        assert sorted(prompts(emulator)) == requests

    @pytest.mark.parametrize("fault", ["image:html:always", "image:404:always"])
    def test_images_that_are_all_broken_or_gone_end_the_batch(
        self, emulator: Emulator, context: Context, tmp_path: Path, fault: str
    ) -> None:
        emulator.fail(fault)
        requests = [f"Cat {number}" for number in range(9)]
        summary = failed(batch(tmp_path, requests=requests), context, ImageError, match="^3 images in a row")
        assert summary["counts"]["failed"] == 3
        assert emulator.accepted <= 9  # two for each of them, and what runs beside them

    def test_a_retry_fetches_them_without_paying(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail(f"image:reset:{3 * DOWNLOAD_ATTEMPTS}")
        failed(batch(tmp_path, requests=CATS[:3]), context, ImageError, match="^3 images in a row")
        ti.retry()
        assert statuses(batch(tmp_path, requests=CATS[:3]).execute(context)) == ["stored"] * 3
        assert emulator.accepted == 3

    def test_a_poll_that_is_refused_is_no_verdict_on_the_row(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("poll:bad-request")
        task = batch(tmp_path, requests=CATS)
        summary = failed(task, context, BatchFailedError, match="GenerationStatusUnknownError")
        assert summary["counts"] == {"stored": 3, "rejected": 0, "failed": 1, "skipped": 0}
        ti.retry()
        assert statuses(batch(tmp_path, requests=CATS).execute(context)) == ["stored"] * 4
        assert emulator.accepted == 4

    @pytest.mark.parametrize("fault", ["not-found", "not-found-400", "no-images", "unlucky", "empty", "html"])
    def test_an_odd_answer_to_a_poll_changes_nothing(
        self, emulator: Emulator, context: Context, tmp_path: Path, fault: str
    ) -> None:
        emulator.fail(f"poll:{fault}")
        assert statuses(batch(tmp_path).execute(context)) == ["stored", "stored"]
        assert emulator.accepted == 2

    def test_a_revoked_token_keeps_what_is_paid_for(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        emulator.fail("poll:401")
        summary = failed(batch(tmp_path, requests=CATS), context, AuthenticationError)
        assert summary["counts"]["skipped"] == 4
        [running] = running_in(tmp_path)["running"]
        assert running["generation_id"] == submissions(emulator)[0].generation_id
        ti.clear()
        assert statuses(batch(tmp_path, requests=CATS).execute(context)) == ["stored"] * 4
        assert prompts(emulator) == CATS

    def test_a_refused_token_submits_nothing_more(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        emulator.fail("submit:401:always")
        failed(batch(tmp_path, requests=CATS), context, AuthenticationError)
        assert len(submissions(emulator)) == 1

    def test_an_error_of_the_machine_leaves_a_manifest_and_a_summary(
        self, emulator: Emulator, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*given: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(run_module, "land_images", full)
        with pytest.raises(OSError, match="No space left"):
            batch(tmp_path).execute(context)
        summary = context["ti"].pushed["summary"]
        assert summary["counts"]["skipped"] == 2
        assert statuses(summary) == ["skipped", "skipped"]

    def test_images_being_stored_are_kept_when_the_batch_ends(
        self, emulator: Emulator, context: Context, register: Register
    ) -> None:
        def is_refused() -> bool:
            return any(exchange.status == 401 for exchange in emulator.requests)

        class Slow(Store):
            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                if path.endswith("running.json") and b"000002" in value:
                    emulator.fail("poll:401")
                while path.endswith("000001.png") and not is_refused():
                    time.sleep(0.001)
                super().pipe_file(path, value, mode, **options)

        memory = register("memory", Slow())
        summary = failed(remote(), context, AuthenticationError)
        assert "bucket/out/000001.png" in memory.objects
        assert summary["counts"]["stored"] == 1

    def test_an_end_between_a_response_and_its_record_is_a_lost_response(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "count_spent", interrupt)
            with pytest.raises(KeyboardInterrupt):
                batch(tmp_path, requests=CATS).execute(context)
        ti.retry()
        batch(tmp_path, requests=CATS).execute(context)
        assert "An earlier attempt ended while submitting row 1 (000001)" in caplog.text
        assert emulator.accepted == 5

    def test_the_timeout_of_airflow_leaves_a_summary_and_a_manifest(
        self, emulator: Emulator, context: Context, ti: Attempts, register: Register
    ) -> None:
        class Late(Store):
            """Its task times out as soon as an image is stored."""

            is_late = False

            def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
                if path.endswith("running.json") and b'"status": "stored"' in value and not self.is_late:
                    self.is_late = True
                    raise AirflowTaskTimeout("Timeout")
                super().pipe_file(path, value, mode, **options)

        register("memory", Late())
        with pytest.raises(AirflowTaskTimeout):
            remote().execute(context)
        summary = ti.pushed["summary"]
        assert summary["counts"]["stored"] == statuses(summary).count("stored") >= 1
        assert sum(summary["counts"].values()) == len(CATS)
        ti.retry()
        assert statuses(remote().execute(context)) == ["stored"] * 4
        assert emulator.accepted == 4

    def test_an_end_between_an_image_and_its_result_loses_nothing(
        self,
        emulator: Emulator,
        context: Context,
        ti: Attempts,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("airflow_provider_modelscope.batch.state.BatchState.add", interrupt)
            with pytest.raises(KeyboardInterrupt):
                batch(tmp_path, requests=CATS).execute(context)
        ti.retry()
        assert statuses(batch(tmp_path, requests=CATS).execute(context)) == ["stored"] * 4
        assert emulator.accepted == 4


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def age(folder: Path, seconds: float) -> None:
    """Let what a batch is waiting for have begun earlier."""
    path = state_in(folder) / "running.json"
    document = json.loads(path.read_text())
    value = document["modelscope_batch"]
    value["attempt_started_at"] -= seconds
    for row in value["running"]:
        row["submitted_at"] -= seconds
    path.write_text(json.dumps(document))


def finished(deferral: TaskDeferred) -> dict[str, Any]:
    """Return the event that the generation has finished."""
    kwargs = deferral.trigger.serialize()[1]
    given = {name: kwargs[name] for name in ("generation_id", "deferred_task")}
    return {"status": "finished", **given}


class TestDeferral:
    GIVEN: dict[str, Any] = {"deferrable": True, "defer_after": 0, "requests": CATS[:2]}

    def deferred(self, folder: Path, context: Context, **arguments: Any) -> TaskDeferred:
        deferral = deferral_of(batch(folder, **{**self.GIVEN, **arguments}), context)
        assert deferral.method_name == "execute_complete"
        return deferral

    def test_a_long_generation_frees_the_worker(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        deferral = self.deferred(tmp_path, context)
        trigger = deferral.trigger.serialize()[1]
        assert trigger["generation_id"] == submissions(slow)[0].generation_id
        assert trigger["end_time"] == pytest.approx(trigger["submitted_at"] + 900, abs=0.01)
        slow.finish()
        with pytest.raises(TaskDeferred) as second:
            resume(batch(tmp_path, **self.GIVEN), deferral, context)
        assert list(images_in(tmp_path)) == ["000001.png"]
        slow.finish()
        summary = resume(batch(tmp_path, **self.GIVEN), second.value, context)
        assert statuses(summary) == ["stored", "stored"]
        assert prompts(slow) == CATS[:2]
        assert summary["credit"] == 2

    def test_a_deferral_writes_its_state_once(self, slow: Emulator, context: Context, mortal: Mortal) -> None:
        deferral_of(remote(**self.GIVEN), context)
        assert mortal.writes == 5  # the plan, the begin, the intent, the generation and the deferral

    def test_images_that_cannot_be_fetched_are_counted_over_deferrals(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        slow.fail("image:404:always")
        given = {**self.GIVEN, "requests": CATS, "item_attempts": 1}
        deferral = self.deferred(tmp_path, context, **given)
        for _ in range(2):
            slow.finish()
            with pytest.raises(TaskDeferred) as raised:
                resume(batch(tmp_path, **given), deferral, context)
            deferral = raised.value
        slow.finish()
        with pytest.raises(ImageError, match="3 images in a row"):
            resume(batch(tmp_path, **given), deferral, context)
        assert prompts(slow) == CATS

    def test_a_generation_below_defer_after_is_waited_for(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Emulator(duration=0.05) as emulator:
            connect(monkeypatch, emulator.base_url)
            summary = batch(tmp_path, deferrable=True, defer_after=30).execute(context)
            assert statuses(summary) == ["stored", "stored"]

    def test_it_resumes_with_its_plan_not_with_a_changed_file(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        source = tmp_path / "rows.jsonl"
        source.write_text('{"prompt": "A cat", "data": [1]}\n')
        given = {"requests": f"file://{source}"}
        deferral = self.deferred(tmp_path / "out", context, **given)
        source.write_text('{"prompt": "A dog"}\n{"prompt": 5}')
        slow.finish()
        [row] = rows_of(resume(batch(tmp_path / "out", **{**self.GIVEN, **given}), deferral, context))
        assert (row.data, prompts(slow)) == ([1], ["A cat"])

    def test_a_damaged_plan_is_an_error_and_sends_nothing(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        deferral = self.deferred(tmp_path, context)
        for content in ("{", "[1]", '[1, "a", "b", {"prompt": 5}, null]', "[]", "5"):
            (state_in(tmp_path) / "plan.jsonl").write_text(content)
            with pytest.raises(SubmissionRecordError, match="cannot be read, nothing was sent"):
                batch(tmp_path, **self.GIVEN).execute_complete(context, finished(deferral))
        assert len(submissions(slow)) == 1

    def test_the_event_of_an_earlier_attempt_starts_again(
        self, slow: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        deferral = self.deferred(tmp_path, context)
        slow.finish()
        ti.retry()
        event = finished(deferral)
        with pytest.raises(TaskDeferred):
            batch(tmp_path, **{**self.GIVEN, "requests": CATS[:3]}).execute_complete(context, event)
        assert running_in(tmp_path)["total"] == 3
        assert prompts(slow) == CATS[:2]

    @pytest.mark.parametrize("method", ["execute_complete", "execute_queued", "execute_with_credit"])
    def test_an_error_of_the_trigger_fails_the_task_with_a_summary(
        self, slow: Emulator, context: Context, ti: Attempts, tmp_path: Path, method: str
    ) -> None:
        deferral = self.deferred(tmp_path, context)
        event = {
            "status": "error",
            "error": AuthenticationError("The token was revoked").to_json(),
            "deferred_task": finished(deferral)["deferred_task"],
        }
        task = batch(tmp_path, **self.GIVEN)
        with pytest.raises(AuthenticationError, match="The token was revoked"):
            getattr(task, method)(context, event)
        assert context["ti"].pushed["summary"]["counts"]["skipped"] == 2
        slow.finish()
        ti.clear()
        with pytest.raises(TaskDeferred):
            batch(tmp_path, **self.GIVEN).execute(context)
        assert prompts(slow) == CATS[:2]

    @pytest.mark.parametrize("event", [None, {}, {"status": "slot_free"}, "finished"], ids=str)
    @pytest.mark.parametrize("method", ["execute_complete", "execute_queued", "execute_with_credit"])
    def test_an_unknown_event_is_never_a_success(
        self, emulator: Emulator, context: Context, tmp_path: Path, method: str, event: Any
    ) -> None:
        with pytest.raises(ModelScopeFinalError, match="Unexpected trigger event"):
            getattr(batch(tmp_path), method)(context, event)

    def test_a_task_in_a_task_waits_on_the_worker(
        self, context: Context, ti: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ti.task = object()  # type: ignore[attr-defined]
        with Emulator(duration=0.05) as emulator:
            connect(monkeypatch, emulator.base_url)
            assert statuses(batch(tmp_path, **self.GIVEN).execute(context)) == ["stored", "stored"]

    def test_item_attempts_count_over_deferrals(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        given = {"requests": ["A cat"], "item_attempts": 2}
        deferral = self.deferred(tmp_path, context, **given)
        slow.fail("poll:failed:2")
        task = batch(tmp_path, **{**self.GIVEN, **given})
        try:
            task.execute_complete(context, finished(deferral))
        except TaskDeferred as second:
            with pytest.raises(BatchFailedError):
                task.execute_complete(context, finished(second))
        except BatchFailedError:
            pass
        assert slow.accepted == 2

    def test_a_row_that_failed_is_not_done_again_after_a_deferral(
        self, slow: Emulator, context: Context, tmp_path: Path
    ) -> None:
        given = {"requests": CATS[:2], "item_attempts": 1, "max_failures": 1}
        first = self.deferred(tmp_path, context, **given)
        slow.fail("poll:failed")
        with pytest.raises(TaskDeferred) as second:
            batch(tmp_path, **{**self.GIVEN, **given}).execute_complete(context, finished(first))
        slow.finish()
        summary = resume(batch(tmp_path, **{**self.GIVEN, **given}), second.value, context)
        assert statuses(summary) == ["failed", "stored"]
        assert slow.accepted == 2


class TestFullAccount:
    def test_a_full_queue_is_retried(self, emulator: Emulator, context: Context, tmp_path: Path) -> None:
        emulator.fail("submit:queue-full:3")
        assert statuses(batch(tmp_path).execute(context)) == ["stored", "stored"]

    @pytest.mark.parametrize("fault", ["too-fast", "busy", "429", "image-queue-full"])
    def test_a_cooldown_is_waited_for(
        self, emulator: Emulator, context: Context, tmp_path: Path, fault: str
    ) -> None:
        emulator.fail(f"submit:{fault}:2")
        assert statuses(batch(tmp_path).execute(context)) == ["stored", "stored"]

    def test_a_long_wait_for_a_slot_frees_the_worker(
        self, emulator: Emulator, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "MIN_QUEUE_DEFERRAL", 0.0)
        emulator.fail("submit:queue-full")
        task = batch(tmp_path, deferrable=True)
        deferral = deferral_of(task, context)
        assert deferral.method_name == "execute_queued"
        kwargs = deferral.trigger.serialize()[1]
        assert kwargs["end_time"] == pytest.approx(kwargs["queued_at"] + 3600)
        assert statuses(resume(task, deferral, context)) == ["stored", "stored"]

    def test_after_the_queue_timeout_there_is_one_last_attempt(
        self, emulator: Emulator, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "MIN_QUEUE_DEFERRAL", 0.0)
        emulator.fail("submit:queue-full:always")
        task = batch(tmp_path, deferrable=True)
        deferral = deferral_of(task, context)
        sent = len(submissions(emulator))
        deferral.trigger.queued_at -= 7200
        deferral.trigger.end_time -= 7200
        with pytest.raises(QueueFullError, match="Nothing was created within 3600 s"):
            resume(task, deferral, context)
        assert len(submissions(emulator)) == sent + 1

    def test_a_service_that_does_not_exist_is_not_waited_for(
        self, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect(monkeypatch, "http://127.0.0.1:9")  # the discard port
        monkeypatch.setattr(backoff, "RETRY_DELAY", 0.002)
        summary = failed(batch(tmp_path, deferrable=True), context, ServiceUnreachableError)
        assert summary["counts"]["skipped"] == 2


class TestReports:
    def test_the_log_says_how_far_the_batch_is(
        self,
        emulator: Emulator,
        context: Context,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(run_module, "REPORT_ROWS", 2)
        emulator.fail("submit:moderated")
        batch(tmp_path, requests=[*CATS, "An owl"], max_failures=1).execute(context)
        assert re.search(
            r"\d of 5 rows are done: \d stored, 1 rejected, 0 failed, [\d.]+ a minute, about \d+ min left",
            caplog.text,
        )
        assert "5 of 5 rows are done: 4 stored, 1 rejected, 0 failed" in caplog.text
        assert "row 1 (000001) is rejected: " in caplog.text
        assert TOKEN not in caplog.text

    def test_metrics_count_the_rows(
        self,
        emulator: Emulator,
        context: Context,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        sent: list[tuple[str, Any]] = []

        class Stats:
            incr = gauge = timing = staticmethod(lambda name, value, tags: sent.append((name, value)))

        monkeypatch.setattr("airflow_provider_modelscope.compat.Stats", Stats)
        emulator.fail("submit:moderated")
        failed(batch(tmp_path, requests=CATS), context, BatchRejectedError)
        assert sent.count((f"{metrics.BATCH_ROW}.stored", 1)) == 3
        assert sent.count((f"{metrics.BATCH_ROW}.rejected", 1)) == 1
        assert sent.count((metrics.BATCH_ROW, 1)) == 4
        assert (metrics.BATCH_ROWS_LEFT, 0) in sent
        assert (f"{metrics.FAILED}.input.batch_rejected", 1) in sent

    def test_assets_and_aliases_get_the_summary(
        self, emulator: Emulator, context: Context, tmp_path: Path
    ) -> None:
        outlets: list[Any] = [Asset("file:///cats"), AssetAlias("cats")]
        context |= {"outlets": outlets, "outlet_events": OutletEventAccessors()}
        summary = batch(tmp_path).execute(context)
        assert context["outlet_events"][outlets[0]].extra == summary
        [event] = context["outlet_events"][outlets[1]].asset_alias_events
        assert event.dest_asset_key.uri.rstrip("/") == summary["manifest"]
        assert event.extra == summary

    def test_no_event_comes_of_a_failure(self, emulator: Emulator, context: Context, tmp_path: Path) -> None:
        outlet = Asset("file:///cats")
        context |= {"outlets": [outlet], "outlet_events": OutletEventAccessors()}
        emulator.fail("submit:moderated")
        failed(batch(tmp_path), context, BatchRejectedError)
        assert context["outlet_events"][outlet].extra == {}

    def test_lineage_names_the_file_the_model_and_the_manifest(
        self, emulator: Emulator, context: Context, ti: Attempts, tmp_path: Path
    ) -> None:
        pytest.importorskip("airflow.providers.openlineage")
        source = tmp_path / "rows.jsonl"
        source.write_text('{"prompt": "A cat"}')
        task = batch(tmp_path / "out", requests=f"file://{source}")
        task.execute(context)
        lineage = task.get_openlineage_facets_on_complete(ti)
        assert [one.name for one in lineage.inputs] == ["a/b", str(source)]
        assert [one.name for one in lineage.outputs] == [f"{tmp_path}/out/manifest.jsonl"]
