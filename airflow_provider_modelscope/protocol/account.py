"""The account: service, token and limits, as an immutable value."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

DEFAULT_BASE_URL = "https://api-inference.modelscope.cn"
DEFAULT_HUB_URL = "https://modelscope.cn"

# The site with the accounts, tokens and model pages of each API.
_HUBS = {DEFAULT_BASE_URL: DEFAULT_HUB_URL, "https://api-inference.modelscope.ai": "https://modelscope.ai"}
BASE_URLS = tuple(_HUBS)


@dataclass(frozen=True, kw_only=True)
class Account:
    """One account at one service, and how to reach that service.

    :param token: The API token, without ``Bearer``.
    :param base_url: URL of the service up to ``/v1``, without a trailing slash.
    :param request_timeout: Timeout of one HTTP request in seconds, from 1 to 600.
    :param verify: Whether to verify TLS certificates, or the path of a CA bundle.
    :param proxy: URL of an HTTP proxy, in place of the environment's.
    :param max_image_bytes: Size limit of an output image, in bytes.
    :param allowed_image_hosts: Hosts that images may come from even if their address is not public;
        ``*.example.com`` matches every subdomain.
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
        """The site with this service's accounts and tokens; None if the service is not ModelScope's own."""
        return _HUBS.get(self.base_url)

    @property
    def site_url(self) -> str:
        """The site to ask about the account and its credit. A gateway to the service may have it as well."""
        return self.hub_url or self.base_url

    @property
    def token_url(self) -> str:
        """The page where users create tokens."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/my/myaccesstoken"

    @property
    def account_url(self) -> str:
        """The page where users bind or verify their account."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/my/accountsettings"

    @property
    def credit_url(self) -> str:
        """The page that shows the account's credit."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/magicube/usage"

    def model_url(self, model: str) -> str:
        """Return the page of a model; it shows whether the API serves the model."""
        return f"{self.hub_url or DEFAULT_HUB_URL}/models/{quote(model)}"
