"""A store is asked once per process whether it will take images; what it answers decides about a retry."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
)
from airflow_provider_modelscope.images import preflight
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.images.preflight import check_store
from tests.unit.builders import SLOT_FREE, Context, one_step, rendered, run
from tests.unit.images.conftest import AzureError, Store, translated

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator
    from tests.unit.images.conftest import Register


class S3(Store):
    """An object store that answers a listing like s3fs."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.anon = False
        self.listings: list[Any] = []

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        if method == "head_object":
            return super().call_s3(method, **arguments)
        self.listings.append((method, arguments))
        if self.failure:
            raise self.failure
        return {}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if self.failure:
            raise self.failure
        super().pipe_file(path, value, mode, **options)


class NoCredentialsError(Exception):
    """As from botocore."""


@pytest.fixture
def s3(register: Register) -> S3:
    register("s3", opened := S3())
    return opened


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process."""
    monkeypatch.setattr(preflight, "_passed", set())


def parsed(uri: str = "s3://bucket/cats/") -> Destination:
    return Destination.parse(uri)


MISSING = "'bucket' does not exist, or the worker without a storage_conn_id may not see it"
REJECTED = "the worker without a storage_conn_id may not write to it"


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (translated("NoSuchBucket", FileNotFoundError), MISSING),
        (AzureError("ContainerNotFound", 404), MISSING),
        (translated("InvalidAccessKeyId"), REJECTED),
        (translated("SignatureDoesNotMatch"), REJECTED),
        (translated("InvalidToken", OSError), REJECTED),
        (AzureError("Server failed to authenticate the request. Make sure", 403), REJECTED),
        (AzureError("no such account", 401), REJECTED),
        (NoCredentialsError("Unable to locate credentials"), REJECTED),
        (translated("PermanentRedirect", OSError), REJECTED),
    ],
    ids=str,
)
def test_what_stays_wrong_is_a_final_error(failure: Exception, problem: str, mode: str, s3: S3) -> None:
    s3.failure = failure
    with pytest.raises(InvalidDestinationError) as raised:
        check_store(parsed(), mode)
    assert raised.value.message.startswith("destination = 's3://bucket/cats/': ")
    assert f"{problem} ({type(failure).__name__}: {failure}). Nothing was sent" in raised.value.message


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize(
    "failure",
    [
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
        AzureError("busy", 503),
        translated("SlowDown", OSError),
        translated("ExpiredToken"),
        translated("RequestTimeTooSkewed"),
    ],
    ids=str,
)
def test_what_may_pass_is_left_to_retries(failure: Exception, mode: str, s3: S3) -> None:
    s3.failure = failure
    with pytest.raises(
        ImageStorageError, match=r"'s3://bucket/cats/': cannot be .*Nothing was sent.*preflight='off'"
    ):
        check_store(parsed(), mode)


@pytest.mark.parametrize(
    "failure",
    [translated("AccessDenied"), AzureError("AuthorizationFailure", 403), OSError("Forbidden: b/bucket/o")],
    ids=str,
)
def test_a_right_to_write_needs_no_right_to_list(
    failure: Exception, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    s3.failure = failure
    check_store(parsed(), "read")
    assert (
        f"Submitting without a check of s3://bucket/cats/, which cannot be listed: {failure}" in caplog.text
    )
    with pytest.raises(InvalidDestinationError, match="may not write to it"):
        check_store(parsed(), "write")


@pytest.mark.parametrize(
    "failure",
    [
        translated("NotImplemented", OSError),
        translated("MethodNotAllowed"),
        NotImplementedError("list_objects_v2"),
        OSError(errno.ENOSYS, "Function not implemented"),
        AzureError("a header is not supported", 501),
    ],
    ids=str,
)
def test_a_store_need_not_support_a_listing(
    failure: Exception, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    s3.failure = failure
    s3.anon = True
    check_store(parsed(), "read")
    assert (
        f"Submitting without a check of s3://bucket/cats/, which cannot be listed: {failure}" in caplog.text
    )
    with pytest.raises((ImageStorageError, InvalidDestinationError)):
        check_store(parsed(), "write")


def test_a_store_without_credentials_must_be_public(s3: S3) -> None:
    s3.failure = translated("AccessDenied")
    s3.anon = True
    with pytest.raises(InvalidDestinationError, match="check its credentials"):
        check_store(parsed(), "read")
    s3.failure = None
    check_store(parsed(), "read")


def test_a_listing_asks_for_one_key_of_the_folder(s3: S3) -> None:
    check_store(parsed("s3://bucket/cats/white/cat.png"), "read")
    assert s3.listings == [("list_objects_v2", {"Bucket": "bucket", "Prefix": "cats/white/", "MaxKeys": 1})]
    assert not s3.objects


def test_each_bucket_and_mode_is_checked_once(s3: S3) -> None:
    for uri in ("s3://bucket/cats/", "s3://bucket/dogs/", "s3://other/cats/", "s3://bucket/cat.png"):
        check_store(parsed(uri), "read")
    assert [arguments["Bucket"] for _, arguments in s3.listings] == ["bucket", "other"]
    check_store(parsed(), "write")
    assert s3.options  # it was written as well


def test_a_failed_check_is_not_remembered(s3: S3) -> None:
    s3.failure = translated("NoSuchBucket", FileNotFoundError)
    with pytest.raises(InvalidDestinationError):
        check_store(parsed(), "read")
    s3.failure = None
    check_store(parsed(), "read")
    assert len(s3.listings) == 2


def test_off_checks_nothing(s3: S3) -> None:
    s3.failure = ConnectionResetError()
    check_store(parsed(), "off")
    assert not s3.listings


def test_a_store_without_a_known_listing_is_not_checked(
    register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    register("memory")
    check_store(parsed("memory://bucket/cats/"), "read")
    assert "Submitting without a check of memory://bucket/cats/: none is known for this store" in caplog.text


def test_a_write_removes_its_object(memory: Store) -> None:
    memory.pipe_file("bucket/cat.png", b"an older object")
    check_store(parsed("memory://bucket/cats/"), "write")
    assert memory.objects == {"bucket/cat.png": b"an older object"}


def test_a_right_to_write_needs_no_right_to_delete(
    register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    class Kept(Store):
        def rm_file(self, path: str) -> None:
            raise PermissionError("Access Denied")

    memory = register("memory", Kept())
    check_store(parsed("memory://bucket/cats/"), "write")
    [name] = memory.objects
    assert name.startswith("bucket/cats/.preflight-")
    assert f"/{name} was not removed: Access Denied" in caplog.text


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_check_of_a_local_folder_leaves_nothing(mode: str, tmp_path: Path) -> None:
    for uri in (f"file://{tmp_path}/", f"file://{tmp_path}/new/folder/", f"file://{tmp_path}/new/cat.png"):
        check_store(parsed(uri), mode)
    assert not [*tmp_path.iterdir()]


def test_a_write_finds_a_local_folder_that_takes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    to = parsed(f"file://{tmp_path}/new/")
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InvalidDestinationError, match=r"may not write to it \(PermissionError"):
        check_store(to, "write")


class TestOperator:
    @pytest.mark.parametrize("deferrable", [False, True])
    def test_nothing_is_sent_or_recorded_if_the_check_fails(
        self, deferrable: bool, emulator: Emulator, context: Context, s3: S3
    ) -> None:
        s3.failure = translated("NoSuchBucket", FileNotFoundError)
        with pytest.raises(InvalidDestinationError, match="Nothing was sent"):
            run(one_step(destination="s3://bucket/cats/", deferrable=deferrable), context)
        assert not emulator.requests
        assert "request" not in context["ti"].pushed

    def test_a_queued_task_is_checked_where_it_resumes(
        self, emulator: Emulator, context: Context, s3: S3
    ) -> None:
        s3.failure = translated("NoSuchBucket", FileNotFoundError)
        task = one_step(destination="s3://bucket/cats/", deferrable=True)
        with pytest.raises(InvalidDestinationError, match="Nothing was sent"):
            task.resume_execution("execute_queued", {"event": SLOT_FREE}, context)
        assert not emulator.requests

    @pytest.mark.parametrize("value", ["none", "", None, True, "READ", ["read"]])
    def test_another_value_is_an_error(self, value: Any, emulator: Emulator, context: Context) -> None:
        expected = rf"preflight = {value!r}: must be 'read' or 'write' or 'off'".replace("[", r"\[")
        with pytest.raises(InvalidRequestError, match=expected):
            rendered(one_step(), preflight=value).execute(context)
        assert not emulator.requests

    def test_a_template_selects_the_check(self, emulator: Emulator, context: Any, s3: S3) -> None:
        task = one_step(destination="s3://bucket/cats/", preflight="{{ params.check }}")
        context["params"] = {"check": "off"}
        task.render_template_fields(context)
        task.execute(context)
        assert not s3.listings
