"""An output image is fetched only from where images may come from, and comes whole or not at all."""

from __future__ import annotations

import gzip
import os
import resource
import socket
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.exceptions import (
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
from airflow_provider_modelscope.redaction import without_query
from airflow_provider_modelscope.tasks.storing import store_images
from airflow_provider_modelscope.transport.download import download
from airflow_provider_modelscope.transport.egress import _kind, _literal
from tests.unit.conftest import TOKEN, connect

PUBLIC = "8.8.8.8"  # what names resolve to here unless a test says otherwise; nothing connects to it
Resolve = Callable[..., None]


def picture(side: int = 16, format_: str = "PNG") -> bytes:
    file = BytesIO()
    Pillow.effect_noise((side, side), 60).save(file, format_)
    return file.getvalue()


PICTURE = picture()


def answer(content: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + content


class Host:
    """A server on loopback that answers each connection with the next of some bytes, the last for ever."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port: int = self._server.getsockname()[1]
        self.heard: list[str] = []  # what each connection sent, nothing for one that only came

    def _serve(self) -> None:
        while True:
            connection, _ = self._server.accept()
            with connection:
                heard = b""
                while b"\r\n\r\n" not in heard and (part := connection.recv(65536)):
                    heard += part
                if heard == b"end\r\n\r\n":
                    return
                self.heard.append(heard.decode("latin-1"))
                if heard:
                    connection.sendall(self._answers[0] if len(self._answers) == 1 else self._answers.pop(0))

    def __enter__(self) -> Host:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with _connect(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"end\r\n\r\n")
        self._thread.join()
        self._server.close()


_connect = socket.create_connection


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Say which addresses a name has, each time that it is asked for; any other name has a public one."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            ip_address(host)
        except ValueError:
            addresses = known.get(host, [PUBLIC])
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def resolve(host: str, *addresses: str) -> None:
        known[host] = list(addresses)

    return resolve


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which no test may leave anything in."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def open_files() -> int:
    """Return how many temporary files this process holds open; sockets may be another test's."""
    count = 0
    for file in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # the folder's own, closed by now
            count += "(deleted)" in str(file.readlink())
    return count


def account(base_url: str = "http://api.example", **given: Any) -> Account:
    return Account(token=TOKEN, base_url=base_url, request_timeout=5, **given)


LOCAL = account("http://127.0.0.1:1")  # an API on this machine, as the emulator is


def refused(url: str, asking: Account) -> str:
    with pytest.raises(ImageNotAllowedError) as raised:
        download(url, asking)
    assert "signature" not in str(raised.value)
    assert "secret" not in str(raised.value)
    return str(raised.value)


class TestAddresses:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_name_that_leads_to_this_machine_is_refused_before_anything_is_sent(
        self, scheme: str, resolve: Resolve
    ) -> None:
        resolve("images.example", "127.0.0.1")
        with Host(answer(PICTURE)) as host:
            url = f"{scheme}://images.example:{host.port}/a.png"
            says = refused(f"{url}?signature=1", account(f"{scheme}://api.example"))
        assert says.startswith(f"{url} is at 127.0.0.1, which is loopback: images may come from public ")
        assert says.endswith("name it in allowed_image_hosts in the connection's extra: images.example")
        assert host.heard == [""]

    def test_it_is_the_address_connected_to_that_counts_and_not_what_a_second_look_says(
        self, resolve: Resolve
    ) -> None:
        resolve("images.example", "127.0.0.1", PUBLIC)
        with Host(answer(PICTURE)) as host:
            assert "127.0.0.1" in refused(f"http://images.example:{host.port}/a.png", account())
        assert host.heard == [""]

    @pytest.mark.parametrize("names", [("images.example",), ("other", "*.example"), ("127.0.0.1",)])
    def test_a_host_that_the_connection_names_is_taken_from_any_address(
        self, names: tuple[str, ...], resolve: Resolve
    ) -> None:
        resolve("images.example", "127.0.0.1")
        host_name = names[0] if names[0][0] == "1" else "images.example"
        with (
            Host(answer(PICTURE)) as host,
            download(f"http://{host_name}:{host.port}/a.png", account(allowed_image_hosts=names)) as image,
        ):
            assert image.content == PICTURE

    @pytest.mark.parametrize("host_name", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1"])
    def test_where_the_api_is_on_this_machine_images_may_be_too(self, host_name: str) -> None:
        for base_url in ("http://127.0.0.1:1", "http://localhost:1"):
            with (
                Host(answer(PICTURE)) as host,
                download(f"http://{host_name}:{host.port}/a.png", account(base_url)) as image,
            ):
                assert image.content == PICTURE

    def test_where_the_apis_name_leads_to_this_machine_images_may_be_there_too(
        self, resolve: Resolve
    ) -> None:
        resolve("api.example", "127.0.0.1")
        with Host(answer(PICTURE)) as host, download(f"http://127.0.0.1:{host.port}/a.png", account()):
            pass

    @pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "http://10.0.0.5", "http://nowhere.example"])
    def test_an_api_at_one_kind_of_address_opens_no_other(self, base_url: str, resolve: Resolve) -> None:
        says = refused("http://169.254.169.254/latest/meta-data/", account(base_url))
        assert "169.254.169.254, which is link-local" in says

    @pytest.mark.parametrize(
        ("host", "address"),
        [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("127.1", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("0x7f000001", "127.0.0.1"),
            ("0177.0.0.1", "127.0.0.1"),
            ("localhost", "127.0.0.1"),
            ("LOCALHOST.", "127.0.0.1"),
            ("a.localhost", "127.0.0.1"),
            ("127%2e0.0.1", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),  # noqa: S104 - nothing is bound to it
            ("0", "0.0.0.0"),  # noqa: S104
            ("10.1", "10.0.0.1"),
            ("[::1]", "::1"),
            ("[::]", "::"),
            ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
            ("[64:ff9b::10.0.0.1]", "64:ff9b::a00:1"),
            ("[fe80::1]", "fe80::1"),
        ],
    )
    def test_an_address_in_the_url_is_refused_in_every_spelling_and_through_a_proxy_too(
        self, host: str, address: str, resolve: Resolve
    ) -> None:
        for asking in (account(), account(proxy="http://127.0.0.1:1")):
            says = refused(f"http://{host}:81/a.png", asking)
            assert f" is at {ip_address(address)}, which is " in says

    def test_through_a_proxy_its_own_address_is_not_the_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # the connection's own wins
        with Host(answer(PICTURE)) as proxy:
            asking = account(proxy=f"http://127.0.0.1:{proxy.port}")
            download("http://images.example/a.png", asking).close()
        assert proxy.heard[0].startswith("GET http://images.example/a.png HTTP/1.1\r\n")

    def test_the_environments_proxy_is_used_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Host(answer(PICTURE)) as proxy:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            download("http://images.example/a.png", account()).close()
        assert len(proxy.heard) == 1

    @pytest.mark.parametrize(
        ("address", "kind"),
        [
            ("8.8.8.8", ""),
            ("2606:4700:4700::1111", ""),
            ("::ffff:8.8.8.8", ""),
            ("64:ff9b::8.8.8.8", ""),
            ("2002:808:808::", ""),
            ("127.8.9.1", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("64:ff9b::127.0.0.1", "loopback"),
            ("2002:7f00:1::", "loopback"),
            ("0.0.0.0", "unspecified"),  # noqa: S104
            ("::", "unspecified"),
            ("169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("fe80::1%3", "link-local"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("10.0.0.1", "private"),
            ("172.16.0.1", "private"),
            ("192.168.0.1", "private"),
            ("198.18.0.1", "private"),
            ("fd00::1", "private"),
            ("fec0::1", "private"),
            ("0.0.0.1", "private"),
            ("240.0.0.1", "private"),
            ("255.255.255.255", "private"),
            ("100.64.0.1", "reserved"),
            ("100.100.100.200", "reserved"),
            ("::127.0.0.1", "reserved"),
        ],
    )
    def test_each_address_that_is_not_public_is_known(self, address: str, kind: str) -> None:
        assert _kind(ip_address(address)) == kind

    @pytest.mark.parametrize("host", ["images.example", "1.2.3.4.example", "", "0x.example", "a1", "."])
    def test_a_name_is_no_address(self, host: str) -> None:
        assert _literal(host) is None


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("ftp://images.example/a.png", "ftp://images.example/a.png"),
            ("file:///etc/passwd", "file:///etc/passwd"),
            ("//images.example/a.png", "//images.example/a.png"),
            ("http://images.example/a.png?signature=1", "http://images.example/a.png"),
            ("https://[::1/a.png?signature=1", "https://[::1/a.png"),
        ],
    )
    def test_only_https_is_fetched(self, url: str, shown: str) -> None:
        says = refused(url, account("https://api.example"))
        assert says.startswith(f"{shown} is no https address: images are fetched from no other")

    @pytest.mark.parametrize("url", ["https://", "https:///a.png", "https://images.example:x/"])
    def test_what_is_no_url_is_refused(self, url: str) -> None:
        assert "is no URL of an image" in refused(url, account("https://api.example"))

    @pytest.mark.parametrize("user", ["me:secret@", "me@", ":secret@", "%6de:secret@"])
    def test_a_url_with_a_user_is_refused(self, user: str) -> None:
        says = refused(f"https://{user}images.example/a.png", account("https://api.example"))
        assert says.startswith("https://images.example/a.png comes with a user or password")

    def test_a_backslash_hides_no_host(self) -> None:
        assert "10.0.0.1, which is private" in refused("http://10.0.0.1\\@images.example/a.png", account())

    @pytest.mark.parametrize(
        ("location", "says"),
        [
            (
                "http://inner.example:{port}/b.png?signature=1",
                "inner.example:{port}/b.png is at 127.0.0.1, which",
            ),
            ("http://10.0.0.1/b.png", "http://10.0.0.1/b.png is at 10.0.0.1, which is private"),
            ("//169.254.169.254/", "which is link-local"),
            ("ftp://images.example/b.png", "is no https address"),
            ("http://me:secret@images.example/", "comes with a user or password"),
            ("http://[::1", "redirects to what is no URL"),
            ("/a.png", "is behind more than 3 redirects"),
        ],
    )
    def test_a_redirect_leads_nowhere_that_images_may_not_come_from(
        self, location: str, says: str, resolve: Resolve
    ) -> None:
        for name in ("images.example", "inner.example"):
            resolve(name, "127.0.0.1")
        with Host(b"") as host:
            redirect = answer(b"", f"Location: {location.format(port=host.port)}", status="302 Found")
            host._answers = [redirect]
            asking = account(allowed_image_hosts=("images.example",))
            said = refused(f"http://images.example:{host.port}/a.png", asking)
        assert says.format(port=host.port) in said
        assert not any("b.png" in heard for heard in host.heard)

    def test_what_a_redirect_says_besides_is_not_read(self) -> None:
        endless = answer(bytes(1000), "Location: /b.png", status="302 Found", length=10**12)
        with (
            Host(endless, answer(PICTURE)) as host,
            download(f"http://127.0.0.1:{host.port}/a", LOCAL) as image,
        ):
            assert image.content == PICTURE

    def test_three_redirects_are_followed_without_cookies_and_passwords(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret")
        monkeypatch.setenv("NETRC", str(netrc))
        moved = [
            answer(bytes(10), f"Location: /{name}", "Set-Cookie: session=1", status="307 Moved")
            for name in "bcd"
        ]
        with Host(*moved, answer(PICTURE)) as host:
            download(f"http://127.0.0.1:{host.port}/a", LOCAL).close()
        assert [heard.split()[1] for heard in host.heard] == ["/a", "/b", "/c", "/d"]
        for heard in host.heard:
            assert "cookie" not in heard.lower()
            assert "authorization" not in heard.lower()

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://a.example/b?c=d#e", "https://a.example/b"),
            ("https://me:secret@a.example:1/b", "https://a.example:1/b"),
            ("https://me:secret@[::1/b?c", "[::1/b"),
        ],
    )
    def test_a_url_is_shown_without_what_opens_it(self, url: str, shown: str) -> None:
        assert without_query(url) == shown


def failed(*answers: bytes, asking: Account = LOCAL) -> ModelScopeError:
    with Host(*answers) as host:
        before = open_files()
        with pytest.raises((ImageError, ImageNotAllowedError)) as raised:
            download(f"http://127.0.0.1:{host.port}/a.png?signature=1", asking)
        assert open_files() <= before
    assert "signature=1" not in "".join(map(str, chained(raised.value)))
    assert f"http://127.0.0.1:{host.port}/a.png" in str(raised.value)
    return raised.value


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the errors that a traceback shows."""
    while error:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class TestWhatComes:
    @pytest.mark.parametrize(
        ("content", "content_type", "evidence"),
        [
            (b"<!DOCTYPE html><title>Login</title>", "text/html", r"b'<!DOCTYPE html><'"),
            (b"", "image/png", "0 bytes that start with b''"),
            (PICTURE[: len(PICTURE) // 2], "image/png", r"that start with b'\x89PNG"),
            (picture(format_="JPEG")[:-100], "image/jpeg", r"that start with b'\xff\xd8"),
            (b'{"errors": {}}', "application/json", "14 bytes"),
        ],
        ids=["HTML", "nothing", "half a PNG", "half a JPEG", "JSON"],
    )
    def test_what_is_no_whole_picture_is_an_error_with_its_evidence(
        self, content: bytes, content_type: str, evidence: str
    ) -> None:
        error = failed(answer(content, f"Content-Type: {content_type}"))
        assert type(error) is ImageError
        assert f"(answer 200, content type {content_type!r}): Not a complete image" in str(error)
        assert evidence in str(error)

    def test_a_bomb_is_an_error_with_its_evidence(self) -> None:
        file = BytesIO()
        Pillow.new("1", (9000, 9000)).save(file, "PNG")
        error = failed(answer(file.getvalue(), "Content-Type: image/png"))
        assert type(error) is ImageError
        assert "(answer 200, content type 'image/png'): The image has 9000x9000 pixels, more than" in str(
            error
        )

    def test_an_image_that_breaks_off_is_an_error(self) -> None:
        error = failed(answer(PICTURE[:100], length=len(PICTURE)))
        assert type(error) is ImageError
        assert "It broke off: " in str(error)

    def test_what_was_compressed_on_the_way_is_taken(self) -> None:
        packed = answer(gzip.compress(PICTURE), "Content-Encoding: gzip")
        with Host(packed) as host, download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image:
            assert image.content == PICTURE

    def test_an_image_that_promises_to_be_too_large_is_not_waited_for(self) -> None:
        asking = replace(LOCAL, max_image_bytes=1000)
        error = failed(answer(b"", length=1001), asking=asking)
        assert type(error) is ImageNotAllowedError
        assert "Its 1001 bytes are more than the connection's max_image_bytes, 1000" in str(error)

    @pytest.mark.parametrize(
        "sent",
        [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(1001),
            answer(gzip.compress(bytes(100_000)), "Content-Encoding: gzip"),
        ],
        ids=["of no said length", "compressed"],
    )
    def test_an_image_that_grows_too_large_is_not_taken(self, sent: bytes) -> None:
        error = failed(sent, asking=replace(LOCAL, max_image_bytes=1000))
        assert type(error) is ImageNotAllowedError
        assert "It is larger than the connection's max_image_bytes, 1000" in str(error)

    @pytest.mark.parametrize(
        ("status", "kind"), [(403, ImageGoneError), (404, ImageGoneError), (500, ImageError)]
    )
    def test_an_answer_that_is_no_image_says_its_status(self, status: int, kind: type[ImageError]) -> None:
        error = failed(answer(b"no", status=f"{status} No"))
        assert (type(error), error.code) == (kind, status)

    def test_a_bundle_of_authorities_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ImageError, match=r"cannot be downloaded: .*/nowhere\.pem"):
            download("https://images.example/a.png", account(verify="/nowhere.pem"))

    def test_a_host_that_is_not_there_is_an_error_that_shows_no_signature(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(
            ImageError, match=f"^http://127.0.0.1:{port}/a.png cannot be downloaded"
        ) as raised:
            download(f"http://127.0.0.1:{port}/a.png?signature=1", LOCAL)
        assert not any("signature=1" in str(error) for error in chained(raised.value))


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestTemporaryFiles:
    def test_an_image_has_no_name_on_disk_and_goes_with_its_file(self, temporary: Path) -> None:
        with Host(answer(PICTURE)) as host, download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image:
            assert not list(temporary.iterdir())
            assert os.fstat(image.file.fileno()).st_size == image.length == len(PICTURE)
            with image.converted("JPEG") as jpeg:
                assert not list(temporary.iterdir())
                assert os.fstat(jpeg.file.fileno()).st_size == jpeg.length
        assert image.file.closed
        assert jpeg.file.closed

    @pytest.mark.parametrize("room", [0, 100, len(PICTURE) - 1])
    def test_a_full_disk_is_said_so_and_not_tried_again(
        self, room: int, monkeypatch: pytest.MonkeyPatch, no_pauses: None
    ) -> None:
        with Host(answer(PICTURE)) as host:
            connect(monkeypatch, f"http://127.0.0.1:{host.port}")
            with full_disk(room), pytest.raises(ImageStorageError, match=r"temporary folder.*TMPDIR"):
                ModelScopeHook().download_image(f"http://127.0.0.1:{host.port}/a.png")
        assert len(host.heard) == 1

    def test_a_full_disk_is_said_so_of_a_conversion(self) -> None:
        with Host(answer(PICTURE)) as host, download(f"http://127.0.0.1:{host.port}/a.png", LOCAL) as image:
            with full_disk(100), pytest.raises(ImageStorageError, match="temporary folder"):
                image.converted("JPEG")
            assert image.content == PICTURE

    def test_a_temporary_folder_that_is_not_there_is_said_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        assert "temporary folder" in str(failed(answer(PICTURE)))

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_memory_holds_one_picture_however_many_there_are(
        self, suffix: str, tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noise = Pillow.frombytes("RGB", (600, 600), Random(5).randbytes(600 * 600 * 3))  # noqa: S311
        file = BytesIO()
        noise.save(file, "PNG", compress_level=0)
        content = file.getvalue()
        with Host(answer(content)) as host:
            connect(monkeypatch, f"http://127.0.0.1:{host.port}")
            url = f"http://127.0.0.1:{host.port}/a.png"
            hook, destination = ModelScopeHook(), Destination.parse(f"file://{tmp_path}/cat.{suffix}")

            def landed(count: int) -> int:
                generation = Generation(generation_id="42", status="SUCCEED", output_images=(url,) * count)
                tracemalloc.start()
                stored = store_images(generation, destination, hook=hook, context=context, submission=None)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert len(stored) == count
                return peak

            landed(1)  # what is imported on the way costs once
            assert landed(8) < landed(1) + len(content)

    def test_where_storing_fails_every_file_goes(
        self, tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cat-2.jpg").mkdir()
        with Host(answer(PICTURE)) as host:
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
