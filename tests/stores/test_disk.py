"""A disk that cannot store an image keeps its files; known obstacles are found before anything is charged."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_modelscope.exceptions import (
    ImageStorageError,
    InvalidDestinationError,
    InvalidRequestError,
)
from airflow_provider_modelscope.gallery.files import ImageUnavailableError, find_object, read_image
from airflow_provider_modelscope.xcoms import StoredImage
from tests.stores.conftest import attempt, one_step
from tests.stores.test_storing import png

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_modelscope.emulator import Emulator
    from tests.stores.conftest import Record


# The capabilities of root that bypass permissions, as bits.
RIGHTS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
CAPABILITY_VERSION = 0x20080522


def as_ordinary_user(do: Callable[[], Any]) -> Any:
    """Call it in a thread without root's capabilities."""
    with ThreadPoolExecutor(1, initializer=_give_up_rights) as thread:
        return thread.submit(do).result()


def _give_up_rights() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inherited; twice, for bits from 32 on
    libc.capget(header, sets)
    for number in (0, 1):
        sets[number] &= ~RIGHTS
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no small disk: {mounted.stderr.strip()}")
    yield tmp_path
    assert run("umount", tmp_path).returncode == 0


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_read_only_folder_is_found_before_anything_is_charged(
    emulator: Emulator, tmp_path: Path, record: Record
) -> None:
    (closed := tmp_path / "closed").mkdir(mode=0o555)
    task = one_step(f"file://{closed}/cats/", None, sidecar=True)
    with pytest.raises(InvalidDestinationError, match=f"may not write to '{closed}': allow"):
        as_ordinary_user(lambda: task.execute(attempt(record)))
    assert emulator.requests == []
    assert files(tmp_path) == {}
    closed.chmod(0o755)
    [uri] = as_ordinary_user(lambda: task.execute(attempt(record)))
    [served] = emulator.served.values()
    assert files(tmp_path)[uri.removeprefix(f"file://{tmp_path}/")] == served


def test_a_file_as_folder_is_found_before_anything_is_charged(
    emulator: Emulator, tmp_path: Path, record: Record
) -> None:
    (file := tmp_path / "cats").write_bytes(b"a file")
    task = one_step(f"file://{file}/", None)
    with pytest.raises(InvalidDestinationError, match=f"'{file}' is a file: name a folder"):
        task.execute(attempt(record))
    assert emulator.requests == []
    assert files(tmp_path) == {"cats": b"a file"}
    file.unlink()
    [uri] = task.execute(attempt(record))
    assert files(tmp_path) == {uri.removeprefix(f"file://{tmp_path}/"): next(iter(emulator.served.values()))}


def test_a_full_disk_keeps_its_file_and_a_retry_stores_the_image(
    emulator: Emulator, small_disk: Path, record: Record
) -> None:
    (cat := small_disk / "cat.png").write_bytes(b"an older file")
    (big := small_disk / "big").write_bytes(bytes(240 * 1024))
    before = files(small_disk)
    task = one_step(f"file://{cat}", None)
    with pytest.raises(ImageStorageError, match=r"No space left on device.*clear the task") as raised:
        task.execute(attempt(record))
    assert f"file://{cat}" in raised.value.message
    assert files(small_disk) == before
    big.unlink()
    task.execute(attempt(record))
    assert cat.read_bytes() == [*emulator.served.values()][-1]
    assert emulator.accepted == 1


def test_a_read_only_disk_is_found_before_anything_is_charged(emulator: Emulator, small_disk: Path) -> None:
    assert run("mount", "-o", "remount,ro", small_disk).returncode == 0
    with pytest.raises(InvalidDestinationError, match=f"may not write to '{small_disk}'"):
        one_step(f"file://{small_disk}/cats/", None).execute(attempt())
    assert emulator.requests == []


def test_an_unreadable_image_is_neither_sent_nor_shown(emulator: Emulator, tmp_path: Path) -> None:
    content = png()
    (secret := tmp_path / "secret.png").write_bytes(content)
    secret.chmod(0)
    checksum = sha256(content).hexdigest()
    stored = StoredImage.from_json(
        {"uri": f"file://{secret}", "sha256": checksum, "size_bytes": len(content)}
    )
    assert stored
    task = one_step(f"file://{tmp_path}/", None, image_url=stored.uri)
    with pytest.raises(InvalidRequestError, match=r"cannot be read \(PermissionError"):
        as_ordinary_user(lambda: task.execute(attempt()))
    with pytest.raises(ImageUnavailableError, match="does not contain this image"):
        as_ordinary_user(lambda: read_image(find_object(stored)))
    assert emulator.requests == []
