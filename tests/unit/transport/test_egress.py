"""Connections go only where they may: the right proxy, trusted certificates, allowed image addresses."""

from __future__ import annotations

import ssl
import sys
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest
from PIL import Image as Pillow

from airflow_provider_modelscope.exceptions import (
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
    InvalidConnectionError,
)
from airflow_provider_modelscope.protocol.account import Account
from airflow_provider_modelscope.redaction import without_query
from airflow_provider_modelscope.transport.download import download
from airflow_provider_modelscope.transport.egress import (
    checked_urls,
    is_allowed_host,
    literal_address,
    non_public_kind,
    proxy_for,
    request_options,
    tls_trust,
)
from tests.support.raw_server import RawServer, http_with_length
from tests.support.tls import HOST, server_context, write_certificate
from tests.unit.conftest import TOKEN
from tests.unit.transport.conftest import PUBLIC, Resolve

if TYPE_CHECKING:
    import socket


def png() -> bytes:
    file = BytesIO()
    Pillow.new("L", (1, 1)).save(file, "PNG")
    return file.getvalue()


IMAGE = png()
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")  # in this order


def account(base_url: str = "http://api.example", **given: Any) -> Account:
    return Account(token=TOKEN, base_url=base_url, request_timeout=5, **given)


def rejection(url: str, for_account: Account) -> str:
    with pytest.raises(ImageNotAllowedError) as raised:
        download(url, for_account)
    assert "signature" not in str(raised.value)
    assert "secret" not in str(raised.value)
    return str(raised.value)


class TestProxies:
    @pytest.mark.parametrize(
        ("variables", "url", "proxy"),
        [
            ({}, "https://api.example/v1", None),
            ({"https_proxy": "http://p:1"}, "https://api.example/v1", "http://p:1"),
            ({"HTTPS_PROXY": "http://p:1"}, "HTTPS://api.example/v1", "http://p:1"),
            ({"http_proxy": "http://p:1"}, "https://api.example/v1", None),
            ({"http_proxy": "http://p:1"}, "http://api.example/v1", "http://p:1"),
            ({"all_proxy": "http://p:1"}, "https://api.example/v1", "http://p:1"),
            (
                {"all_proxy": "http://p:1", "https_proxy": "http://p:2"},
                "https://api.example/v1",
                "http://p:2",
            ),
            ({"https_proxy": "http://p:1", "no_proxy": "api.example"}, "https://api.example/v1", None),
            ({"https_proxy": "http://p:1", "no_proxy": ".example"}, "https://api.example:8443/v1", None),
            ({"https_proxy": "http://p:1", "no_proxy": "*"}, "https://api.example/v1", None),
            ({"https_proxy": "http://p:1", "no_proxy": "a.example"}, "/images/1.png", None),
            ({"https_proxy": "http://p:1", "no_proxy": "b.example"}, "https://api.example/v1", "http://p:1"),
        ],
        ids=str,
    )
    def test_the_connections_proxy_wins_over_the_environments(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert proxy_for(url, account(), no_socks="") == proxy
        assert proxy_for(url, account(proxy="http://own:1"), no_socks="") == "http://own:1"

    @pytest.mark.parametrize(
        ("variables", "named"),
        [
            ({"ALL_PROXY": "socks5://bob:secret@p:1"}, "ALL_PROXY, socks5://p:1: no SOCKS. Set ALL_PROXY"),
            ({"https_proxy": "socks4a://p:1"}, "https_proxy, socks4a://p:1: no SOCKS"),
            ({"HTTPS_PROXY": "ftp://p:1"}, "HTTPS_PROXY, ftp://p:1: not the URL of a proxy"),
            ({"https_proxy": "http://p:0"}, "https_proxy, http://p:0: not the URL of a proxy"),
            *(
                (
                    {"https_proxy": f"{scheme}me:{password}@p:1"},
                    "https_proxy, http://p:1: not the URL of a proxy. Percent-encode / ? # in its password.",
                )
                for scheme in ("http://", "")
                for password in (
                    "se/secret",
                    "se?secret",
                    "se#secret",
                    "12/secret",
                    "secret://a",
                    "se@/secret",
                    "/secret",
                )
            ),
            ({"https_proxy": "socks5://me:se@secret@p:1"}, "https_proxy, socks5://p:1: no SOCKS"),
            ({"https_proxy": "ftp://me:a@p:1/?secret"}, "https_proxy, ftp://p:1/: not the URL of a proxy"),
        ],
        ids=str,
    )
    def test_an_unusable_proxy_is_an_error_that_names_its_variable(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InvalidConnectionError) as raised:
            proxy_for("https://api.example/v1", account(), no_socks="no SOCKS")
        assert str(raised.value).startswith(f"Cannot use the proxy of {named}")
        assert "secret" not in str(raised.value)
        assert "add api.example to NO_PROXY" in str(raised.value)

    @pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
    def test_a_socks_proxy_is_used_if_it_can_be(self, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://p:1")
        assert proxy_for("https://api.example", account(), no_socks="") == f"{scheme}://p:1"

    def test_a_worker_without_pysocks_rejects_a_socks_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks5://p:1")
        monkeypatch.setitem(sys.modules, "socks", None)
        with pytest.raises(InvalidConnectionError, match=r"^Cannot .* ALL_PROXY, .*: SOCKS needs"):
            request_options("https://api.example", account())

    def test_a_download_goes_through_the_connections_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        with RawServer(http_with_length(IMAGE)) as proxy:  # its own address is not the image's
            download("http://images.example:81/a.png", account(proxy=f"http://{proxy.host}")).close()
        assert proxy.heads[0].startswith("GET http://images.example:81/a.png HTTP/1.1\r\n")

    def test_a_download_goes_through_the_environments_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with RawServer(http_with_length(IMAGE)) as proxy:
            monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
            download("http://images.example:81/a.png", account()).close()
        assert len(proxy.heads) == 1


class TestTlsTrust:
    @pytest.fixture(autouse=True)
    def no_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CA_VARIABLES:
            monkeypatch.delenv(name, raising=False)

    def test_without_verification_nothing_is_trusted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
        assert tls_trust(account(verify=False)) is False
        assert request_options("https://api.example", account(verify=False))["verify"] is False

    @pytest.mark.parametrize("in_front", range(len(CA_VARIABLES) + 1))
    def test_workers_and_triggerers_trust_the_same(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_front: int
    ) -> None:
        for variable in CA_VARIABLES[in_front:]:
            (tmp_path / variable).mkdir()
            monkeypatch.setenv(variable, str(tmp_path / variable))
        bundle = str(tmp_path / CA_VARIABLES[in_front]) if in_front < len(CA_VARIABLES) else certifi.where()
        assert request_options("https://api.example", account())["verify"] == bundle
        trust = tls_trust(account())
        assert isinstance(trust, ssl.SSLContext)
        assert trust.check_hostname
        assert trust.verify_mode is ssl.CERT_REQUIRED
        assert bool(trust.cert_store_stats()["x509_ca"]) is (bundle == certifi.where())

    @pytest.mark.parametrize("variable", CA_VARIABLES)
    def test_a_missing_bundle_is_an_error_that_names_its_variable(
        self, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "/no/such/bundle.pem")
        for use in (tls_trust, lambda for_account: request_options("https://api.example", for_account)):
            with pytest.raises(InvalidConnectionError, match=f"{variable}, '/no/such/bundle.pem'"):
                use(account())

    def test_a_bundle_is_a_file_with_all_that_is_trusted(self) -> None:
        trust = tls_trust(account(verify=certifi.where()))
        assert isinstance(trust, ssl.SSLContext)
        assert trust.verify_mode is ssl.CERT_REQUIRED
        assert trust.cert_store_stats()["x509_ca"] == Path(certifi.where()).read_text().count("BEGIN CERT")

    def test_a_bundle_may_be_a_folder(self, tmp_path: Path) -> None:
        trust = tls_trust(account(verify=str(tmp_path)))
        assert isinstance(trust, ssl.SSLContext)
        assert trust.cert_store_stats()["x509"] == 0

    def test_an_unreadable_bundle_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        (empty := tmp_path / "empty.pem").touch()
        for path in (tmp_path / "missing.pem", empty):
            with pytest.raises(InvalidConnectionError, match=f"CA bundle .*verify, '{path}'"):
                tls_trust(account(verify=str(path)))


class TestImageAddresses:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_name_of_this_machine_is_rejected_before_sending(self, scheme: str, resolve: Resolve) -> None:
        resolve("images.example", "127.0.0.1")
        with RawServer(http_with_length(IMAGE)) as host:
            url = f"{scheme}://images.example:{host.port}/a.png?signature=1"
            message = rejection(url, account(f"{scheme}://api.example"))
        assert message.startswith(
            "Image host not allowed: images.example has the address 127.0.0.1 (loopback, not public). "
        )
        assert message.endswith("add it to allowed_image_hosts in the connection's extra: images.example")
        assert host.heads == [""]

    def test_the_address_connected_to_counts_not_a_second_lookup(self, resolve: Resolve) -> None:
        resolve("images.example", "127.0.0.1", PUBLIC)
        with RawServer(http_with_length(IMAGE)) as host:
            assert "127.0.0.1" in rejection(f"http://images.example:{host.port}/a.png", account())
        assert host.heads == [""]

    @pytest.mark.parametrize("names", [("images.example",), ("other", "*.example"), ("127.0.0.1",)])
    def test_an_allowed_host_may_have_any_address(self, names: tuple[str, ...], resolve: Resolve) -> None:
        resolve("images.example", "127.0.0.1")
        name = names[0] if names[0][0] == "1" else "images.example"
        with (
            RawServer(http_with_length(IMAGE)) as host,
            download(f"http://{name}:{host.port}/a.png", account(allowed_image_hosts=names)) as image,
        ):
            assert image.content == IMAGE

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1"])
    def test_a_local_api_may_have_local_images(self, name: str) -> None:
        for base_url in ("http://127.0.0.1:1", "http://localhost:1"):
            with (
                RawServer(http_with_length(IMAGE)) as host,
                download(f"http://{name}:{host.port}/a.png", account(base_url)) as image,
            ):
                assert image.content == IMAGE

    def test_an_api_that_resolves_to_a_local_address_is_local(self, resolve: Resolve) -> None:
        resolve("api.example", "127.0.0.1")
        with RawServer(http_with_length(IMAGE)) as host:
            download(f"http://127.0.0.1:{host.port}/a.png", account()).close()

    @pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "http://10.0.0.5", "http://nowhere.example"])
    def test_an_api_allows_only_its_own_kind_of_address(self, base_url: str, resolve: Resolve) -> None:
        message = rejection("http://169.254.169.254/latest/meta-data/", account(base_url))
        assert "169.254.169.254 (link-local, not public)" in message

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
    def test_a_literal_address_is_checked_even_behind_a_proxy(
        self, host: str, address: str, resolve: Resolve
    ) -> None:
        for for_account in (account(), account(proxy="http://127.0.0.1:1")):
            message = rejection(f"http://{host}:81/a.png", for_account)
            assert f" has the address {ip_address(address)} (" in message

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
    def test_each_non_public_address_is_recognized(self, address: str, kind: str) -> None:
        assert non_public_kind(ip_address(address)) == kind

    @pytest.mark.parametrize("host", ["images.example", "1.2.3.4.example", "", "0x.example", "a1", "."])
    def test_a_name_is_not_an_address(self, host: str) -> None:
        assert literal_address(host) is None

    @pytest.mark.parametrize(
        ("host", "is_allowed"),
        [
            ("minio", True),
            ("minio.", True),
            ("a.images.example", True),
            ("a.b.images.example", True),
            ("images.example", False),
            ("notimages.example", False),
            ("a.images.example.evil.example", False),
            ("minio.evil.example", False),
            ("", False),
        ],
    )
    def test_a_star_allows_the_hosts_below_a_domain(self, host: str, is_allowed: bool) -> None:
        for_account = account(allowed_image_hosts=("minio", "*.images.example"))
        assert is_allowed_host(host, for_account) is is_allowed


def without_tls(connection: socket.socket) -> None:
    """Answer the handshake of a TLS client as servers of plain http do."""
    connection.sendall(http_with_length(b"", status="400 Bad Request"))


class TestHttpsFirst:
    URL = f"http://{HOST}/a.png?signature=1"

    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        return write_certificate(tmp_path / "certificate.pem")

    def account(self, scheme: str, certificate: Path) -> Account:
        return account(f"{scheme}://{HOST}", verify=str(certificate))

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_an_http_url_is_fetched_over_https(
        self, scheme: str, certificate: Path, resolve: Resolve
    ) -> None:
        with (
            RawServer(http_with_length(IMAGE), tls=server_context(certificate)) as secure,
            RawServer(http_with_length(IMAGE)) as plain,
        ):
            resolve(HOST, "127.0.0.1", ports={443: secure.port, 80: plain.port})
            download(self.URL, self.account(scheme, certificate)).close()
        [head] = secure.heads
        assert head.startswith("GET /a.png?signature=1 HTTP/1.1\r\n")
        assert TOKEN not in head
        assert plain.heads == []

    def test_a_redirect_to_http_is_followed_over_https(self, certificate: Path, resolve: Resolve) -> None:
        moved = http_with_length(b"", f"Location: http://{HOST}/b.png", status="302 Found")
        with RawServer(moved, http_with_length(IMAGE), tls=server_context(certificate)) as secure:
            resolve(HOST, "127.0.0.1", ports={443: secure.port})
            download(self.URL, self.account("https", certificate)).close()
        assert [head.split()[1] for head in secure.heads] == ["/a.png?signature=1", "/b.png"]

    def test_a_host_without_tls_is_reached_over_http_if_allowed(
        self, certificate: Path, resolve: Resolve
    ) -> None:
        with (
            RawServer(without_tls, reads_request=False) as not_tls,
            RawServer(http_with_length(IMAGE)) as plain,
        ):
            resolve(HOST, "127.0.0.1", ports={443: not_tls.port, 80: plain.port})
            download(self.URL, self.account("http", certificate)).close()
        [head] = plain.heads
        assert head.startswith("GET /a.png?signature=1 HTTP/1.1\r\n")
        assert TOKEN not in head

    def test_a_host_without_tls_is_an_error_otherwise(self, certificate: Path, resolve: Resolve) -> None:
        with (
            RawServer(without_tls, reads_request=False) as not_tls,
            RawServer(http_with_length(IMAGE)) as plain,
        ):
            resolve(HOST, "127.0.0.1", ports={443: not_tls.port, 80: plain.port})
            with pytest.raises(ImageError) as raised:
                download(self.URL, self.account("https", certificate))
        assert plain.heads == []
        message = str(raised.value)
        assert message.startswith(f"Cannot download https://{HOST}/a.png: ")
        assert message.endswith(
            f". The service named http://{HOST}/a.png. Plain http is allowed only if the connection's host "
            "uses it too"
        )
        assert "signature=1" not in message

    def test_an_error_names_both_urls_that_were_tried(self, certificate: Path, resolve: Resolve) -> None:
        with RawServer(without_tls, reads_request=False) as not_tls, RawServer(b"") as closing:
            resolve(HOST, "127.0.0.1", ports={443: not_tls.port, 80: closing.port})
            with pytest.raises(ImageError) as raised:
                download(self.URL, self.account("http", certificate))
        message = str(raised.value)
        assert message.startswith(f"Cannot download https://{HOST}/a.png: ")
        assert f". http://{HOST}/a.png: " in message
        assert "signature=1" not in message

    def test_an_error_response_over_https_decides(self, certificate: Path, resolve: Resolve) -> None:
        refused = http_with_length(b"no", status="403 No")
        with (
            RawServer(refused, tls=server_context(certificate)) as secure,
            RawServer(http_with_length(IMAGE)) as plain,
        ):
            resolve(HOST, "127.0.0.1", ports={443: secure.port, 80: plain.port})
            with pytest.raises(ImageGoneError, match=f"no longer works: https://{HOST}/a.png"):
                download(self.URL, self.account("http", certificate))
        assert plain.heads == []


class TestImageUrls:
    @pytest.mark.parametrize(
        ("url", "from_https", "from_http"),
        [
            ("https://images.example/1.png", ["https"], ["https"]),
            ("HTTPS://images.example:8443/1.png", ["https"], ["https"]),
            ("http://images.example/1.png", ["https"], ["https", "http"]),
            ("HTTP://images.example:8080/1.png", [], ["http"]),
            ("file:///etc/passwd", [], []),
            ("ftp://images.example/1.png", [], []),
            ("//images.example/1.png", [], []),
            ("/1.png", [], []),
            ("httpsx://images.example/1.png", [], []),
            ("https://[::1", [], []),
            ("", [], []),
        ],
    )
    def test_http_is_tried_only_if_the_api_uses_it(
        self, url: str, from_https: list[str], from_http: list[str]
    ) -> None:
        for base_url, schemes in (("https://api.example", from_https), ("http://127.0.0.1:1", from_http)):
            if schemes:
                urls = checked_urls(url, account(base_url))
                assert [one.partition(":")[0] for one in urls] == schemes
            else:
                with pytest.raises(ImageNotAllowedError, match="is not https"):
                    checked_urls(url, account(base_url))

    @pytest.mark.parametrize(
        ("url", "secure"),
        [
            ("http://images.example/a%20b.png?c=d&e=80", "https://images.example/a%20b.png?c=d&e=80"),
            ("http://images.example:80/1.png", "https://images.example/1.png"),
            ("http://images.example:/1.png", "https://images.example/1.png"),
            ("http://images.example:0080/1.png", "https://images.example/1.png"),
            ("http://[2606:4700:4700::80]/1.png", "https://[2606:4700:4700::80]/1.png"),
            ("http://[2606:4700:4700::80]:80/1.png", "https://[2606:4700:4700::80]/1.png"),
            ("http://images.example", "https://images.example/"),
        ],
    )
    def test_the_https_url_has_the_same_host_and_path(self, url: str, secure: str) -> None:
        assert checked_urls(url, account("https://api.example")) == [secure]

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("ftp://images.example/a.png", "ftp://images.example/a.png"),
            ("file:///etc/passwd", "file:///etc/passwd"),
            ("//images.example/a.png", "//images.example/a.png"),
            ("http://images.example:81/a.png?signature=1", "http://images.example:81/a.png"),
            ("https://[::1/a.png?signature=1", "https://[::1/a.png"),
        ],
    )
    def test_another_scheme_is_rejected(self, url: str, shown: str) -> None:
        message = rejection(url, account("https://api.example"))
        assert message.startswith(f"Image URL not allowed: {shown} is not https. ")

    @pytest.mark.parametrize("url", ["https://", "https:///a.png", "https://images.example:x/"])
    def test_an_invalid_url_is_rejected(self, url: str) -> None:
        assert rejection(url, account("https://api.example")).startswith("Image URL not valid: https:")

    @pytest.mark.parametrize("user", ["me:secret@", "me@", ":secret@", "%6de:secret@"])
    def test_a_url_with_a_user_is_rejected(self, user: str) -> None:
        message = rejection(f"https://{user}images.example/a.png", account("https://api.example"))
        assert message.startswith(
            "Image URL not allowed: https://images.example/a.png contains a user or password."
        )

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("https://a.example/b?c=d#e", "https://a.example/b"),
            ("https://me:secret@a.example:1/b", "https://a.example:1/b"),
            ("https://me:secret@[::1/b?c", "[::1/b"),
        ],
    )
    def test_a_url_is_shown_without_login_and_query(self, url: str, shown: str) -> None:
        assert without_query(url) == shown

    def test_a_backslash_hides_no_host(self) -> None:
        message = rejection("http://10.0.0.1\\@images.example/a.png", account())
        assert "10.0.0.1 (private, not public)" in message
