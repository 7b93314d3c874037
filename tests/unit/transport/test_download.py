"""An output image is downloaded completely and in time, or not at all."""

from __future__ import annotations

import gzip
import os
import socket
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.exceptions import (
    BrokenImageError,
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
    ImageStorageError,
    ModelScopeError,
)
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook
from airflow_provider_modelscope.images.object_storage import Destination
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.protocol.generation import Generation
from airflow_provider_modelscope.tasks.storing import store_images
from airflow_provider_modelscope.transport.download import (
    ImageHeaders,
    download,
    image_headers,
    time_limit,
)
from tests.support.disk import full_disk
from tests.support.raw_server import RawServer, http_with_length
from tests.unit.conftest import TOKEN, connect

if TYPE_CHECKING:
    from tests.unit.transport.conftest import Resolve


def image_bytes(side: int = 16, format_: str = "PNG") -> bytes:
    file = BytesIO()
    Pillow.effect_noise((side, side), 60).save(file, format_)
    return file.getvalue()


IMAGE = image_bytes()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which every test must leave empty."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def open_files() -> int:
    """Return how many temporary files this process has open; sockets may be another test's."""
    count = 0
    for file in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # the folder's own, closed by now
            count += "(deleted)" in str(file.readlink())
    return count


def account(base_url: str = "http://api.example", **given: Any) -> Account:
    return Account(token=TOKEN, base_url=base_url, request_timeout=5, **given)


LOCAL = account("http://127.0.0.1:1")  # an API on this machine, as the emulator is


class TestRedirects:
    @pytest.mark.parametrize(
        ("location", "message"),
        [
            ("http://inner.example:{port}/b.png?signature=1", "inner.example has the address 127.0.0.1"),
            ("http://10.0.0.1/b.png", "10.0.0.1 has the address 10.0.0.1 (private, not public)"),
            ("//169.254.169.254/", "(link-local, not public)"),
            ("ftp://images.example/b.png", "is not https"),
            ("http://me:secret@images.example/", "contains a user or password"),
            ("http://[::1", "Image URL not valid: the target of the redirect from http://images.example"),
            ("/a.png", "redirects more than 3 times"),
        ],
    )
    def test_a_redirect_to_a_disallowed_url_is_rejected(
        self, location: str, message: str, resolve: Resolve
    ) -> None:
        for name in ("images.example", "inner.example"):
            resolve(name, "127.0.0.1")
        with RawServer() as host:
            header = f"Location: {location.format(port=host.port)}"
            host.replies = [http_with_length(b"", header, status="302 Found")]
            for_account = account(allowed_image_hosts=("images.example",))
            with pytest.raises(ImageNotAllowedError) as raised:
                download(f"http://images.example:{host.port}/a.png", for_account)
        assert message in str(raised.value)
        assert "signature" not in str(raised.value)
        assert "secret" not in str(raised.value)
        assert not any("b.png" in head for head in host.heads)

    def test_the_body_of_a_redirect_is_not_read(self) -> None:
        endless = http_with_length(bytes(1000), "Location: /b.png", status="302 Found", length=10**12)
        with (
            RawServer(endless, http_with_length(IMAGE)) as host,
            download(f"http://127.0.0.1:{host.port}/a", LOCAL) as image,
        ):
            assert image.content == IMAGE

    @pytest.mark.parametrize("name", ["图 片", "%E5%9B%BE%20%E7%89%87"], ids=["as it is", "encoded"])
    def test_a_redirect_may_name_a_file_in_any_script(self, name: str) -> None:
        moved = http_with_length(b"", f"Location: /{name}.png?a=b&c", status="302 Found")
        with RawServer(moved, http_with_length(IMAGE)) as host:
            download(f"http://127.0.0.1:{host.port}/a", LOCAL).close()
        assert host.heads[1].split()[1] == "/%E5%9B%BE%20%E7%89%87.png?a=b&c"

    def test_redirects_are_followed_without_cookies_and_logins(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret")
        monkeypatch.setenv("NETRC", str(netrc))
        moved = [
            http_with_length(bytes(10), f"Location: /{name}", "Set-Cookie: session=1", status="307 Moved")
            for name in "bcd"
        ]
        with RawServer(*moved, http_with_length(IMAGE)) as host:
            download(f"http://127.0.0.1:{host.port}/a", LOCAL).close()
        assert [head.split()[1] for head in host.heads] == ["/a", "/b", "/c", "/d"]
        for head in host.heads:
            assert "cookie" not in head.lower()
            assert "authorization" not in head.lower()


class TestHeaders:
    def test_the_redirects_are_counted_and_the_image_is_not_read(self) -> None:
        moved = http_with_length(b"", "Location: /b", status="302 Found")
        endless = http_with_length(bytes(1000), "Content-Type: image/png", length=10**12)
        with RawServer(moved, moved, endless) as host:
            found = image_headers(f"http://{host.host}/a", LOCAL)
        assert found == ImageHeaders(redirects=2, content_type="image/png")

    def test_a_host_that_says_nothing_has_no_type(self) -> None:
        with RawServer(http_with_length(b"")) as host:
            found = image_headers(f"http://{host.host}/a", LOCAL)
        assert found == ImageHeaders(redirects=0, content_type="")

    @pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "410 Gone"])
    def test_a_url_that_has_gone_is_an_error(self, status: str) -> None:
        with RawServer(http_with_length(b"", status=status)) as host, pytest.raises(ImageGoneError):
            image_headers(f"http://{host.host}/a", LOCAL)

    def test_headers_that_do_not_end_are_cut_off(self) -> None:
        def drip(connection: socket.socket) -> None:
            with suppress(OSError):
                while not host.closing.wait(0.01):
                    connection.sendall(b"X")

        with (
            RawServer(drip) as host,
            pytest.raises(ImageError, match=r"Cannot open http://127\.0\.0\.1:\d+/a: timed out after 0\.2 s"),
        ):
            image_headers(f"http://{host.host}/a?signature=1", replace(LOCAL, request_timeout=0.2))


def failed(*replies: bytes, for_account: Account = LOCAL) -> ModelScopeError:
    with RawServer(*replies) as host:
        before = open_files()
        with pytest.raises((ImageError, ImageNotAllowedError)) as raised:
            download(f"http://127.0.0.1:{host.port}/a.png?signature=1", for_account)
        assert open_files() <= before
    assert "signature=1" not in "".join(map(str, chained(raised.value)))
    assert f"http://127.0.0.1:{host.port}/a.png" in str(raised.value)
    return raised.value


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the errors that a traceback shows."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class TestBody:
    @pytest.mark.parametrize(
        ("content", "content_type", "evidence"),
        [
            (b"<!DOCTYPE html><title>Login</title>", "text/html", r"b'<!DOCTYPE html><'"),
            (b"", "image/png", "0 bytes that start with b''"),
            (IMAGE[: len(IMAGE) // 2], "image/png", r"that start with b'\x89PNG"),
            (image_bytes(format_="JPEG")[:-100], "image/jpeg", r"that start with b'\xff\xd8"),
            (b'{"errors": {}}', "application/json", "14 bytes"),
        ],
        ids=["HTML", "nothing", "half a PNG", "half a JPEG", "JSON"],
    )
    def test_an_incomplete_image_is_an_error_with_evidence(
        self, content: bytes, content_type: str, evidence: str
    ) -> None:
        error = failed(http_with_length(content, f"Content-Type: {content_type}"))
        assert type(error) is BrokenImageError
        assert f"(HTTP 200, content type {content_type!r}): Not a complete image" in str(error)
        assert evidence in str(error)

    def test_a_decompression_bomb_is_an_error(self) -> None:
        file = BytesIO()
        Pillow.new("1", (9000, 9000)).save(file, "PNG")
        error = failed(http_with_length(file.getvalue(), "Content-Type: image/png"))
        assert type(error) is BrokenImageError
        assert "(HTTP 200, content type 'image/png'): The image has 9000x9000 pixels, more than" in str(error)

    def test_a_broken_connection_is_an_error(self) -> None:
        error = failed(http_with_length(IMAGE[:100], length=len(IMAGE)))
        assert type(error) is ImageError
        assert "the connection broke: " in str(error)

    def test_a_compressed_body_is_unpacked(self) -> None:
        packed = http_with_length(gzip.compress(IMAGE), "Content-Encoding: gzip")
        with RawServer(packed) as host, download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image:
            assert image.content == IMAGE

    @pytest.mark.parametrize("length", [1, len(IMAGE), 10**12])
    def test_the_length_of_a_body_in_chunks_is_ignored(self, length: int) -> None:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
        chunked = http_with_length(body, "Transfer-Encoding: chunked", length=length)
        with RawServer(chunked) as host, download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image:
            assert image.content == IMAGE

    def test_a_length_above_the_limit_is_not_downloaded(self) -> None:
        for_account = replace(LOCAL, max_image_bytes=1000)
        error = failed(http_with_length(b"", length=1001), for_account=for_account)
        assert type(error) is ImageNotAllowedError
        assert "its 1001 bytes are larger than the connection's max_image_bytes, 1000" in str(error)

    @pytest.mark.parametrize(
        "sent",
        [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(1001),
            http_with_length(gzip.compress(bytes(100_000)), "Content-Encoding: gzip"),
        ],
        ids=["unknown length", "compressed"],
    )
    def test_a_body_that_exceeds_the_limit_is_not_kept(self, sent: bytes) -> None:
        error = failed(sent, for_account=replace(LOCAL, max_image_bytes=1000))
        assert type(error) is ImageNotAllowedError
        assert "it is larger than the connection's max_image_bytes, 1000" in str(error)

    @pytest.mark.parametrize(
        ("status", "kind"), [(403, ImageGoneError), (404, ImageGoneError), (500, ImageError)]
    )
    def test_an_error_response_gives_its_status(self, status: int, kind: type[ImageError]) -> None:
        error = failed(http_with_length(b"no", status=f"{status} No"))
        assert (type(error), error.code) == (kind, status)

    def test_a_host_that_is_down_is_an_error_without_signature(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(ImageError, match=f"^Cannot download http://127.0.0.1:{port}/a.png") as raised:
            download(f"http://127.0.0.1:{port}/a.png?signature=1", LOCAL)
        assert not any("signature=1" in str(error) for error in chained(raised.value))


DRIPS = {
    "status": b"HTTP/1.1 200 " + b"O" * 200,
    "headers": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 200,
    "body": http_with_length(bytes(200)),
}


class TestDeadline:
    @pytest.mark.parametrize("max_image_bytes", [1000, 2**40])
    def test_any_image_may_take_minutes_but_not_hours(self, max_image_bytes: int) -> None:
        assert time_limit(replace(LOCAL, max_image_bytes=max_image_bytes)) == 305

    @pytest.mark.parametrize("size", [0, 1_000_000, 30_000_000, 64 * 1024**2, 2**40])
    def test_the_lowest_allowed_speed_is_always_fast_enough(self, size: int) -> None:
        assert time_limit(LOCAL, size) >= LOCAL.request_timeout + size / 100_000

    def test_bytes_that_come_extend_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.transport.download.SECONDS", 0.0)
        content = image_bytes(400)
        assert len(content) > 2 * 65536  # read at a time

        def reply(connection: socket.socket) -> None:
            connection.sendall(http_with_length(content)[:-6])
            for byte in content[-6:]:  # together longer than one request timeout
                host.closing.wait(0.2)
                connection.sendall(bytes([byte]))

        impatient = replace(LOCAL, request_timeout=1)
        with RawServer(reply) as host, download(f"http://127.0.0.1:{host.port}/a.png", impatient) as image:
            assert image.content == content

    @pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
    def test_a_server_that_drips_is_cut_off(self, drip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.transport.download.SECONDS", 0.0)

        def reply(connection: socket.socket) -> None:
            for byte in drip:
                connection.sendall(bytes([byte]))
                if host.closing.wait(0.05):
                    return

        hook = ModelScopeHook()
        hook.account = replace(LOCAL, request_timeout=0.2, max_image_bytes=2**40)
        with RawServer(reply) as host:
            url = f"http://127.0.0.1:{host.port}/a.png"
            with pytest.raises(ImageError, match=r"timed out after 0\.2 s. Only a .* 100000 bytes") as raised:
                hook.download_image(f"{url}?signature=1")
        assert len(host.heads) == 1  # another attempt would begin too late
        assert str(raised.value).startswith(f"Cannot download {url}: ")
        assert not any("signature=1" in str(error) for error in chained(raised.value))


@pytest.mark.usefixtures("no_pauses")
class TestAttempts:
    BROKEN = http_with_length(b"<svg/>", "Content-Type: image/svg+xml")

    def attempts(self, *replies: bytes) -> tuple[ModelScopeHook, RawServer, str]:
        hook, host = ModelScopeHook(), RawServer(*replies)
        hook.account = LOCAL
        return hook, host, f"http://{host.host}/a.png"

    @pytest.mark.parametrize("between", [[], [http_with_length(b"no", status="500 No")]], ids=len)
    def test_the_same_broken_bytes_are_fetched_twice_at_most(self, between: list[bytes]) -> None:
        hook, host, url = self.attempts(self.BROKEN, *between, self.BROKEN, http_with_length(IMAGE))
        with host, pytest.raises(BrokenImageError) as raised:
            hook.download_image(url)
        assert len(host.heads) == 2 + len(between)
        assert "that start with b'<svg/>'. The host sent the same bytes twice" in str(raised.value)
        assert raised.value.sha256 == sha256(b"<svg/>").hexdigest()

    def test_an_image_that_breaks_differently_is_fetched_again(self) -> None:
        replies = [http_with_length(IMAGE[:length]) for length in (0, 100, 150, 200)]
        hook, host, url = self.attempts(*replies, http_with_length(IMAGE))
        with host, hook.download_image(url) as image:
            assert image.content == IMAGE
        assert len(host.heads) == 5

    def test_an_image_whose_rest_is_missing_is_fetched_again(self) -> None:
        replies = [http_with_length(IMAGE[:100], length=len(IMAGE))] * 4
        hook, host, url = self.attempts(*replies, http_with_length(IMAGE))
        with host, hook.download_image(url) as image:
            assert image.content == IMAGE


class TestSideBySide:
    def test_four_images_at_most_are_fetched_at_once(self) -> None:
        four = threading.Barrier(4, timeout=5)
        lock = threading.Lock()
        running = highest = 0

        def reply(connection: socket.socket) -> None:
            nonlocal running, highest
            with lock:
                running += 1
                highest = max(highest, running)
            four.wait()  # no response begins before there are four requests
            with lock:
                running -= 1
            connection.sendall(http_with_length(IMAGE))

        hook = ModelScopeHook()
        hook.account = LOCAL
        with RawServer(reply) as host:
            images = hook.download_images([f"http://{host.host}/a.png"] * 12)
        assert highest == 4
        for image in images:
            with image:
                assert image.content == IMAGE

    def test_an_error_closes_the_images_before_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("airflow_provider_modelscope.hooks.modelscope.DOWNLOADS_AT_ONCE", 1)
        hook = ModelScopeHook()
        hook.account = LOCAL
        gone = http_with_length(b"no", status="404 No")
        with RawServer(http_with_length(IMAGE), gone) as host:
            before = open_files()
            with pytest.raises(ImageGoneError) as raised:
                hook.download_images([f"http://{host.host}/a.png"] * 2)
            assert open_files() == before
        assert raised.value.code == 404

    def test_an_error_ends_the_other_downloads(self, no_pauses: None) -> None:
        size = 60 * 1024**2
        was_raised, was_closed = threading.Event(), threading.Event()

        def large(connection: socket.socket) -> None:
            connection.sendall(http_with_length(bytes(100), length=size))
            was_raised.wait(5)
            try:
                connection.sendall(bytes(size - 100))
            except OSError:
                was_closed.set()

        hook = ModelScopeHook()
        hook.account = LOCAL
        with RawServer(large, http_with_length(b"no", status="404 No")) as host:
            with pytest.raises(ImageGoneError):
                hook.download_images([f"http://{host.host}/a.png"] * 2)
            was_raised.set()
            assert was_closed.wait(5)
            assert len(host.heads) == 2


class TestTemporaryFiles:
    def test_an_image_file_has_no_name_and_is_closed_with_it(self, temporary: Path) -> None:
        with (
            RawServer(http_with_length(IMAGE)) as host,
            download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image,
        ):
            assert not list(temporary.iterdir())
            assert os.fstat(image.file.fileno()).st_size == image.length == len(IMAGE)
            with image.converted("JPEG") as jpeg:
                assert not list(temporary.iterdir())
                assert os.fstat(jpeg.file.fileno()).st_size == jpeg.length
        assert image.file.closed
        assert jpeg.file.closed

    @pytest.mark.parametrize("room", [0, 100, len(IMAGE) - 1])
    def test_a_full_disk_is_an_error_that_is_not_retried(
        self, room: int, monkeypatch: pytest.MonkeyPatch, no_pauses: None
    ) -> None:
        with RawServer(http_with_length(IMAGE)) as host:
            connect(monkeypatch, f"http://127.0.0.1:{host.port}")
            with full_disk(room), pytest.raises(ImageStorageError, match=r"temporary folder.*TMPDIR"):
                ModelScopeHook().download_image(f"http://127.0.0.1:{host.port}/a.png")
        assert len(host.heads) == 1

    def test_a_full_disk_is_an_error_of_a_conversion(self) -> None:
        with (
            RawServer(http_with_length(IMAGE)) as host,
            download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image,
        ):
            with full_disk(100), pytest.raises(ImageStorageError, match="temporary folder"):
                image.converted("JPEG")
            assert image.content == IMAGE

    def test_a_missing_temporary_folder_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        assert "temporary folder" in str(failed(http_with_length(IMAGE)))

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_memory_holds_one_image_however_many_there_are(
        self, suffix: str, tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noise = Pillow.frombytes("RGB", (600, 600), Random(5).randbytes(600 * 600 * 3))  # noqa: S311
        file = BytesIO()
        noise.save(file, "PNG", compress_level=0)
        content = file.getvalue()
        with RawServer(http_with_length(content)) as host:
            connect(monkeypatch, f"http://127.0.0.1:{host.port}")
            url = f"http://127.0.0.1:{host.port}/a.png"
            hook, destination = ModelScopeHook(), Destination.parse(f"file://{tmp_path}/cat.{suffix}")

            def store(count: int) -> int:
                generation = Generation(generation_id="42", status="SUCCEED", output_images=(url,) * count)
                tracemalloc.start()
                stored = store_images(generation, destination, hook=hook, context=context, submission=None)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert len(stored) == count
                return peak

            store(1)  # imports cost memory once
            assert store(8) < store(1) + len(content)

    def test_every_file_is_closed_if_storing_fails(
        self, tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cat-2.jpg").mkdir()
        with RawServer(http_with_length(IMAGE)) as host:
            connect(monkeypatch, f"http://127.0.0.1:{host.port}")
            urls = (f"http://127.0.0.1:{host.port}/a.png",) * 3
            generation = Generation(generation_id="42", status="SUCCEED", output_images=urls)
            before = open_files()
            with pytest.raises(ModelScopeError, match="IsADirectoryError"):
                store_images(
                    generation,
                    Destination.parse(f"file://{tmp_path}/cat.jpg"),
                    hook=ModelScopeHook(),
                    context=context,
                    submission=None,
                )
            assert open_files() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-2.jpg", "cat.jpg"]
