"""What the errors of S3, Azure, Google and disks mean: whether a retry may help, and what to do.

Each store's library has errors of its own, and may not be installed: an error is known by its code or text.
"""

from __future__ import annotations

import errno
import re

_PERMANENT_ERRORS = (
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError,
)  # fmt: skip
_PERMANENT_ERRNOS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
# Errors of botocore, google.auth and azure.identity.
_CREDENTIAL_ERRORS = {
    "ClientAuthenticationError", "DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError",
    "ProfileNotFound",
}  # fmt: skip
# What stores call credentials that they do not accept, and those that only time has made invalid.
_REJECTED_CREDENTIALS = {
    "AuthenticationFailed", "InvalidAccessKeyId", "InvalidToken", "NoAuthenticationInformation",
    "PublicAccessNotPermitted", "SignatureDoesNotMatch",
}  # fmt: skip
_STALE_CREDENTIALS = {
    "ExpiredAuthenticationToken", "ExpiredToken", "ExpiredTokenException", "RequestExpired",
    "RequestTimeTooSkewed", "SecurityTokenExpired", "TokenRefreshRequired",
}  # fmt: skip
# The same in texts: Azure and Google have one code for all credentials that they reject.
_STALE_TEXTS = re.compile(
    "not valid in the specified time frame|date header too old|token is expired|Lifetime validation failed|"
    "Token has been expired|in a reasonable timeframe|^Invalid Credentials"
)
# What a store says of a request that it will never accept, and of one for another region or endpoint.
_WRONG_REQUEST = {
    "EntityTooLarge", "InvalidArgument", "InvalidBucketName", "InvalidRequest", "InvalidStorageClass",
    "InvalidURI",
}  # fmt: skip
# The last is what OSS says of its public endpoint to users for whom it is closed.
_WRONG_ENDPOINT = {"301", "AuthorizationHeaderMalformed", "PermanentRedirect", "PublicEndpointForbidden"}
_AWS_CHUNKED = "aws-chunked"


def is_permanent(error: Exception) -> bool:
    """Return whether a store would raise the same error for the same call again."""
    if is_stale(error):
        return False
    if isinstance(error, _PERMANENT_ERRORS) or getattr(error, "errno", None) in _PERMANENT_ERRNOS:
        return True
    if _code_of(error) in _WRONG_REQUEST | _WRONG_ENDPOINT:
        return True
    return is_missing(error) or is_forbidden(error) or _rejects_credentials(error)


def is_missing(error: Exception) -> bool:
    """Return whether an object, a folder or its bucket does not exist."""
    return isinstance(error, FileNotFoundError) or _status_of(error) == "404"


def is_forbidden(error: Exception) -> bool:
    """Return whether a store accepts the credentials, but does not allow the call."""
    if is_stale(error) or _rejects_credentials(error):
        return False
    if isinstance(error, PermissionError) or _status_of(error) == "403":
        return True
    return str(error).startswith("Forbidden: ")  # Google's, which has no number


def is_unsupported(error: Exception) -> bool:
    """Return whether a store does not have the call at all."""
    return (
        isinstance(error, NotImplementedError)
        or getattr(error, "errno", None) == errno.ENOSYS
        or _code_of(error) in ("NotImplemented", "MethodNotAllowed")
        or _status_of(error) in ("405", "501")
    )


def is_stale(error: Exception) -> bool:
    """Return whether a store rejects credentials because of the time: a token's, or this machine's clock."""
    return _code_of(error) in _STALE_CREDENTIALS or bool(_STALE_TEXTS.search(str(error)))


def rejects_checksum(error: Exception) -> bool:
    """Return whether a server with an interface of S3 may have rejected a header that it does not know."""
    return is_unsupported(error) or _code_of(error) in ("400", "InvalidArgument", "InvalidRequest")


def advice_for(error: Exception) -> str | None:
    """Return what to do about a store's error, or None if it is nothing special."""
    if is_stale(error):
        return (
            "The credentials have expired, or this machine's clock is wrong: renew them in the connection, "
            "or set the clock"
        )
    if _AWS_CHUNKED in str(error):
        return (
            'Add "config_kwargs": {"request_checksum_calculation": "when_required"} to the extra of the '
            "connection, as docs/how-to/stores.md shows for Alibaba Cloud OSS"
        )
    if _code_of(error) in _WRONG_ENDPOINT:
        return "Correct region_name or endpoint_url in the extra of the connection"
    if _code_of(error) in _WRONG_REQUEST:
        return "Correct the destination or the connection: the store will never accept this"
    return None


def _rejects_credentials(error: Exception) -> bool:
    if is_stale(error):
        return False
    if _status_of(error) == "401" or _code_of(error) in _REJECTED_CREDENTIALS:
        return True
    if "Server failed to authenticate the request" in str(error):  # Azurite has another code for it
        return True
    return not _CREDENTIAL_ERRORS.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _status_of(error: Exception) -> str:
    """Return the HTTP status of Azure's and Google's errors, which have classes of their own."""
    return str(getattr(error, "status_code", None) or getattr(error, "code", None))


def _code_of(error: Exception) -> str:
    """Return the word of S3 or Azure for an error, such as ``NoSuchBucket``."""
    response = getattr(error.__cause__, "response", None)  # s3fs raises its errors from those of botocore
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code"))
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code))
