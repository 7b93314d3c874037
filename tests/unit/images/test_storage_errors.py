"""The errors of each store: whether a retry may help, and the advice that fits."""

from __future__ import annotations

import errno

import pytest

from airflow_provider_modelscope.images.storage_errors import advice_for, is_forbidden, is_permanent
from tests.unit.images.conftest import AzureError, GoogleError, translated

EXPIRED = "The credentials have expired, or this machine's clock is wrong"
SAS = "Server failed to authenticate the request. AuthenticationFailed. Signature not valid in the specified"


@pytest.mark.parametrize(
    ("error", "is_final", "advice"),
    [
        (translated("ExpiredToken"), False, EXPIRED),
        (translated("RequestTimeTooSkewed"), False, EXPIRED),
        (translated("SecurityTokenExpired", OSError), False, EXPIRED),
        (translated("TokenRefreshRequired", OSError), False, EXPIRED),
        (AzureError(f"{SAS} time frame: Start - Expiry", 403), False, EXPIRED),
        (AzureError("Request date header too old: 'Sat, 28 Nov 2026'", 403), False, EXPIRED),
        (AzureError("Lifetime validation failed. The token is expired.", 401), False, EXPIRED),
        (GoogleError("Invalid Credentials, 401", 401), False, EXPIRED),
        (RuntimeError("invalid_grant: Token must be in a reasonable timeframe"), False, EXPIRED),
        (translated("SlowDown", OSError), False, None),
        (translated("BadDigest", OSError), False, None),
        (translated("400", OSError), False, None),
        (translated("PermanentRedirect", OSError), True, "Correct region_name or endpoint_url"),
        (translated("301", OSError), True, "Correct region_name or endpoint_url"),
        (translated("AuthorizationHeaderMalformed", OSError), True, "Correct region_name or endpoint_url"),
        (translated("PublicEndpointForbidden", OSError), True, "Correct region_name or endpoint_url"),
        (translated("InvalidArgument", OSError), True, "the store will never accept this"),
        (translated("InvalidRequest", OSError), True, "the store will never accept this"),
        (translated("AccessDenied"), True, None),
        (AzureError("Server failed to authenticate the request. Make sure", 403), True, None),
        (OSError(errno.EINVAL, "Invalid argument"), False, None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_error_is_final_if_it_never_changes(error: Exception, is_final: bool, advice: str | None) -> None:
    assert is_permanent(error) is is_final
    given = advice_for(error)
    assert given is None if advice is None else advice in str(given)


def test_expired_credentials_are_not_forbidden() -> None:
    assert not is_forbidden(translated("ExpiredToken"))
    assert is_forbidden(translated("AccessDenied"))
