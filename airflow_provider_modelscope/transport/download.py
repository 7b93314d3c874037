"""Download of one output image into a temporary file, over requests. Nothing is retried or stored here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import punctuation
from threading import Event
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_modelscope.exceptions import (
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
)
from airflow_provider_modelscope.redaction import without_query
from airflow_provider_modelscope.transport.blocking import CHUNK, MIN_SPEED, run_within
from airflow_provider_modelscope.transport.egress import (
    HTTP_RULE,
    checked_urls,
    checking_adapter,
    new_session,
    request_options,
)

if TYPE_CHECKING:
    import requests

    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.protocol.account import Account

MAX_REDIRECTS = 3
SECONDS = 300.0  # for an image that is small enough for any network; larger ones get more as they come


def time_limit(account: Account, received: int = 0) -> float:
    """Return how many seconds one download may take, from the name lookup to the check of the image.

    Five minutes and one request timeout. That is enough for 30 MB at the lowest allowed speed; a larger image
    may take longer, as long as its bytes keep coming at that speed. A download that fails is not repeated
    later than this after the first one began.

    :param received: How many bytes have come so far.
    """
    return account.request_timeout + max(SECONDS, received / MIN_SPEED)


@dataclass(kw_only=True)
class _Progress:
    """How far a download is, and whether anything still waits for it."""

    stop: Event
    received: int = 0
    is_cut_off: bool = False

    def check(self) -> None:
        """Raise an error if nothing waits for the image any more."""
        if self.is_cut_off or self.stop.is_set():
            raise ImageError("the download was canceled")


def download(url: str, account: Account, *, stop: Event | None = None) -> Image:
    """Return an output image, complete and decodable, in a temporary file that is deleted when it is closed.

    :param stop: When it is set, the download ends with an error as soon as more bytes come.
    :raises ImageGoneError: if the URL no longer works.
    :raises ImageNotAllowedError: if the image is too large, or its host is not allowed.
    :raises ImageStorageError: if the temporary folder has no room for the image.
    :raises ImageError: if the image cannot be downloaded completely.
    """
    progress = _Progress(stop=stop or Event())
    try:
        return run_within(
            lambda: time_limit(account, progress.received), lambda: _download(url, account, progress)
        )
    except TimeoutError as error:
        progress.is_cut_off = True
        raise ImageError(
            f"Cannot download {without_query(url)}: {error}. Only a download of at least {MIN_SPEED} bytes "
            "per second may take longer. Check the network between this worker and the image's host"
        ) from None
    except OSError as error:
        raise ImageError(f"Cannot download {without_query(url)}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class ImageHeaders:
    """What the host of an image says about it.

    :param redirects: How many redirects lead to it.
    """

    redirects: int
    content_type: str


def image_headers(url: str, account: Account) -> ImageHeaders:
    """Return what the host of an output image says about it, without the image itself.

    :raises ImageGoneError: if the URL no longer works.
    :raises ImageNotAllowedError: if its host is not allowed.
    :raises ImageError: if there is no response within the timeout of a request.
    """

    def read() -> ImageHeaders:
        with new_session() as session, _open(session, url, account) as response:
            content_type = response.headers.get("Content-Type", "")
            return ImageHeaders(redirects=len(response.history), content_type=content_type)

    try:
        return run_within(lambda: account.request_timeout, read)
    except OSError as error:
        raise ImageError(f"Cannot open {without_query(url)}: {error}") from None


def _download(url: str, account: Account, progress: _Progress) -> Image:
    from airflow_provider_modelscope.images.image import Image

    with new_session() as session, _open(session, url, account) as response:
        try:
            return Image.from_chunks(_chunks(response, account.max_image_bytes, progress))
        except (ImageError, ImageNotAllowedError) as error:
            content_type = response.headers.get("Content-Type", "")[:100]
            error.message = (
                f"Cannot download {without_query(response.url)} (HTTP {response.status_code}, content type "
                f"{content_type!r}): {error.message}"
            )
            raise


def _open(session: requests.Session, url: str, account: Account) -> requests.Response:
    """Return the open response at the end of at most three redirects, each to an allowed address.

    Its ``history`` contains the redirects.
    """
    adapter = checking_adapter(account)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    first = url
    redirects: list[requests.Response] = []
    for _ in range(MAX_REDIRECTS + 1):
        response = _get(session, url, account)
        url = response.url
        if response.ok and not response.is_redirect:
            response.history = redirects
            return response
        response.close()
        code = response.status_code
        if not response.is_redirect:
            if code in (403, 404, 410):
                raise ImageGoneError(f"The image URL no longer works: {without_query(url)}", code=code)
            raise ImageError(f"Cannot download {without_query(url)}: the server returned an error", code=code)
        redirects.append(response)
        try:
            # Encoded as browsers do it: http.client reads a name in any character set as Latin-1.
            location = quote(response.headers["Location"].encode("latin-1"), safe=punctuation)
            url = urljoin(url, location)
        except ValueError:  # such as an unclosed [ of an IPv6 address
            raise ImageNotAllowedError(
                f"Image URL not valid: the target of the redirect from {without_query(url)}"
            ) from None
    raise ImageNotAllowedError(
        f"Too many redirects: {without_query(first)} redirects more than {MAX_REDIRECTS} times"
    )


def _get(session: requests.Session, url: str, account: Account) -> requests.Response:
    """Return the open response of one host; over plain http only if https gives no response."""
    from urllib3.exceptions import HTTPError

    urls = checked_urls(url, account)
    failures = []
    for one in urls:
        try:
            return session.get(
                one,
                headers={"Accept-Encoding": "identity"},
                timeout=account.request_timeout,
                stream=True,
                **request_options(one, account),
            )
        except (OSError, HTTPError, ValueError) as error:  # every error of requests is an OSError
            failures.append(f"{without_query(one)}: {_without_queries(error)}")
    if urlsplit(url).scheme != urlsplit(urls[-1]).scheme:
        failures.append(f"The service named {without_query(url)}. {HTTP_RULE}")
    # Raised here, without its cause, which holds the complete URL.
    raise ImageError(f"Cannot download {'. '.join(failures)}")


def _chunks(response: requests.Response, max_bytes: int, progress: _Progress) -> Iterator[bytes]:
    """Yield the body while it is small enough, and check that it is complete."""
    import requests

    length = response.headers.get("Content-Length", "")
    # With a Transfer-Encoding a length means nothing, by HTTP's rules.
    is_length = re.fullmatch("[0-9]{1,18}", length) and "Transfer-Encoding" not in response.headers
    expected = int(length) if is_length else None
    too_large = f"larger than the connection's max_image_bytes, {max_bytes}"
    if expected is not None and expected > max_bytes:
        raise ImageNotAllowedError(f"its {expected} bytes are {too_large}")
    try:
        for chunk in response.iter_content(CHUNK):
            progress.received += len(chunk)
            if progress.received > max_bytes:
                raise ImageNotAllowedError(f"it is {too_large}")
            progress.check()
            yield chunk
    except requests.RequestException as error:
        raise ImageError(f"the connection broke: {_without_queries(error)}") from None
    # Counted on the wire: a server may compress although it was asked not to.
    if expected is not None and response.raw.tell() != expected:
        raise ImageError(f"the connection broke: received {response.raw.tell()} of {expected} bytes")


def _without_queries(error: Exception) -> str:
    """Return an error's text without the queries of URLs in it, which may be signatures."""
    return re.sub(r"\?\S+", "?...", str(error))
