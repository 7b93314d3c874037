"""One output image: from where the service put it into a temporary file, over requests.

Here stands where images may come from. Nothing here tries again, and nothing is stored.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from airflow_provider_modelscope.exceptions import (
    ImageError,
    ImageGoneError,
    ImageNotAllowedError,
)
from airflow_provider_modelscope.redaction import without_query
from airflow_provider_modelscope.transport.blocking import CHUNK, SLOWEST, new_session
from airflow_provider_modelscope.transport.egress import checked_url, checking_adapter, proxies_for

if TYPE_CHECKING:
    import requests

    from airflow_provider_modelscope.images.image import Image
    from airflow_provider_modelscope.protocol.account import Account

MAX_REDIRECTS = 3


def download(url: str, account: Account) -> Image:
    """Return an output image, whole and decodable, in a temporary file that goes when it is closed.

    :raises ImageGoneError: where the URL works no longer.
    :raises ImageNotAllowedError: where the image is too large, or where images may not come from.
    :raises ImageStorageError: where the temporary folder has no room for it.
    :raises ImageError: where it cannot be had whole.
    """
    from airflow_provider_modelscope.images.image import Image

    with new_session() as session, _follow(session, url, account) as response:
        try:
            return Image.from_chunks(_chunks(response, account))
        except (ImageError, ImageNotAllowedError) as error:
            answer = (
                f"{response.status_code}, content type {response.headers.get('Content-Type', '')[:100]!r}"
            )
            error.message = f"{without_query(url)} (answer {answer}): {error.message}"
            raise


def _follow(session: requests.Session, url: str, account: Account) -> requests.Response:
    """Return the open answer behind at most three redirects, each to where images may come from."""
    given = url
    for _ in range(MAX_REDIRECTS + 1):
        url = checked_url(url, account)
        for scheme in ("https://", "http://"):
            session.mount(scheme, checking_adapter(url, account))
        response = _get(session, url, account)
        if response.ok and not response.is_redirect:
            return response
        response.close()
        if not response.is_redirect:
            gone = response.status_code in (403, 404, 410)
            kind = ImageGoneError if gone else ImageError
            problem = "works no longer" if gone else "cannot be had now"
            raise kind(f"The image's URL {problem}: {without_query(url)}", code=response.status_code)
        try:
            url = urljoin(url, response.headers["Location"])
        except ValueError:  # such as an unclosed [ of an IPv6 address
            raise ImageNotAllowedError(f"{without_query(url)} redirects to what is no URL") from None
    raise ImageNotAllowedError(
        f"{without_query(given)} is behind more than {MAX_REDIRECTS} redirects: no more are followed"
    )


def _get(session: requests.Session, url: str, account: Account) -> requests.Response:
    """Return the open answer of one host."""
    from urllib3.exceptions import HTTPError

    try:
        return session.get(
            url,
            headers={"Accept-Encoding": "identity"},
            timeout=account.request_timeout,
            verify=account.verify,  # set on the session, the environment's bundle would win
            allow_redirects=False,
            stream=True,
            proxies=proxies_for(url, account),
        )
    except (OSError, HTTPError, ValueError) as error:  # all that requests raises is an OSError
        reason = _reason(error)
    # Raised here, without its cause, which holds the URL whole.
    raise ImageError(f"{without_query(url)} cannot be downloaded: {reason}")


def _chunks(response: requests.Response, account: Account) -> Iterator[bytes]:
    """Yield what comes, as long as it is not too much, and see that it is all that was promised."""
    import requests

    most = account.max_image_bytes
    end = time.monotonic() + most / SLOWEST + account.request_timeout
    promised = response.headers.get("Content-Length", "")
    expected = int(promised) if re.fullmatch("[0-9]{1,18}", promised) else None
    if expected is not None and expected > most:
        raise ImageNotAllowedError(
            f"Its {expected} bytes are more than the connection's max_image_bytes, {most}"
        )
    size = 0
    try:
        for chunk in response.iter_content(CHUNK):
            size += len(chunk)
            if size > most:
                raise ImageNotAllowedError(f"It is larger than the connection's max_image_bytes, {most}")
            if time.monotonic() > end:
                raise ImageError(f"It came too slowly: {size} bytes are here when all should be")
            yield chunk
    except requests.RequestException as error:
        raise ImageError(f"It broke off: {_reason(error)}") from None
    # Counted as they came over the wire: a server may compress though it was asked not to.
    if expected is not None and response.raw.tell() != expected:
        raise ImageError(f"It broke off: {response.raw.tell()} of {expected} bytes came")


def _reason(error: Exception) -> str:
    """Return what requests says without the URL's query, which may be a signature."""
    return re.sub(r"\?\S+", "?...", str(error))
