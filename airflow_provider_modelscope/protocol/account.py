"""Where the service is and who asks: what an Airflow connection says, read and checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

DEFAULT_BASE_URL = "https://api-inference.modelscope.cn"
DEFAULT_HUB_URL = "https://modelscope.cn"

# The site behind each API: its accounts, tokens and models.
_HUBS = {DEFAULT_BASE_URL: DEFAULT_HUB_URL, "https://api-inference.modelscope.ai": "https://modelscope.ai"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """One account at one service, and how to reach it.

    :param token: The API token, bare.
    :param base_url: Origin and path before ``/v1``, without a trailing slash.
    :param request_timeout: Seconds that one HTTP request may take, from 1 to 600.
    :param verify: Whether to check TLS certificates, or the path of a bundle of authorities to trust.
    :param proxy: URL of the HTTP proxy to use instead of the environment's.
    :param max_image_bytes: Largest output image to accept, in bytes.
    :param allowed_image_hosts: Names of hosts that images may come from although their address is not public;
        ``*.example.com`` stands for every host below.
    """

    token: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    request_timeout: float = 30.0
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    max_image_bytes: int = 64 * 1024 * 1024
    allowed_image_hosts: tuple[str, ...] = ()

    @property
    def hub_url(self) -> str | None:
        """The site with this service's accounts and tokens, where the service is ModelScope's own."""
        return _HUBS.get(self.base_url)

    @property
    def settings_url(self) -> str:
        """Where a person finds their tokens and binds or verifies the account."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/my/myaccesstoken"

    def model_url(self, model: str) -> str:
        """Return the page of a model, which says what it is for and whether it can be asked."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/models/{quote(model)}"
