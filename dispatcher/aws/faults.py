"""AWS's errors to ours, in one place: by class and code, never by text.

The one question is whether the call may have been done. It was not when AWS said no (4xx) or no connection was made;
anything else after the request may have left is ambiguous.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSLError,
    TokenRetrievalError,
)

from dispatcher.errors import AmbiguousError, AwsError, Cause, RefusedError

# SQS's and DynamoDB's codes, in both of SQS's spellings, and those of BatchStatementError (without "Exception").
_CAUSES: Mapping[str, Cause] = {
    **dict.fromkeys(
        [
            "RequestThrottled", "Throttling", "ThrottlingException", "ThrottledException", "ThrottlingError",
            "RequestThrottledException", "TooManyRequestsException", "ProvisionedThroughputExceeded",
            "ProvisionedThroughputExceededException", "RequestLimitExceeded", "LimitExceededException", "OverLimit",
            "TransactionConflict", "TransactionConflictException", "KmsThrottled", "KMS.ThrottlingException",
            "SlowDown", "PriorRequestNotComplete", "BandwidthLimitExceeded",
        ],
        Cause.THROTTLED,
    ),
    **dict.fromkeys(
        [
            "AccessDenied", "AccessDeniedException", "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId",
            "UnrecognizedClientException", "InvalidSecurity", "InvalidSignatureException", "SignatureDoesNotMatch",
            "IncompleteSignature", "MissingAuthenticationToken", "OptInRequired", "InvalidAccessKeyId",
            "KmsAccessDenied", "KmsDisabled", "KmsInvalidKeyUsage", "KmsInvalidState", "KmsNotFound",
            "KmsOptInRequired",
            "KMS.AccessDeniedException", "KMS.DisabledException", "KMS.InvalidStateException", "KMS.NotFoundException",
        ],
        Cause.DENIED,
    ),
    **dict.fromkeys(
        [
            "QueueDoesNotExist", "NonExistentQueue", "QueueDeletedRecently", "ResourceNotFound",
            "ResourceNotFoundException", "InvalidAddress",
        ],
        Cause.MISSING,
    ),
    **dict.fromkeys(
        [
            "ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidMessageContents", "InvalidParameterValue",
            "InvalidParameterValueException",
            "InvalidAttributeValue", "InvalidAttributeName", "InvalidIdFormat",
        ],
        Cause.INVALID,
    ),
}  # fmt: skip


# An entry at which the service itself failed: what a 5xx is for a whole call.
_SERVICE_FAILED = {"InternalError", "InternalFailure", "InternalServerError", "ServiceUnavailable"}


# The SDK's errors, and those of the client below it, which the lean one shows as they are.
_NO_CONNECTION = (
    ConnectTimeoutError,
    ProxyConnectionError,
    SSLError,
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
)


def classify(fault: BaseException) -> AwsError:
    """Return what became of a call that raised `fault`."""
    if isinstance(fault, ClientError):
        return _answered(fault.response)
    said = str(fault) or ("no answer in time" if isinstance(fault, TimeoutError) else "it says no more")
    detail = f"{type(fault).__name__}: {said}"
    if isinstance(fault, aiohttp.ClientResponseError):  # a proxy's; in full it names the proxy, password and all
        detail = f"{type(fault).__name__}: {fault.status} {fault.message}"
    if isinstance(fault, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        return RefusedError(Cause.DENIED, detail)
    if isinstance(fault, _NO_CONNECTION):
        return RefusedError(Cause.UNREACHABLE, detail)
    # aiobotocore wraps any broken connection in this one, also one that broke after the request was written
    if isinstance(fault, EndpointConnectionError):
        if isinstance(fault.kwargs.get("error"), aiohttp.ClientConnectorError):
            return RefusedError(Cause.UNREACHABLE, detail)
        return AmbiguousError(detail)
    if isinstance(fault, ParamValidationError):
        return RefusedError(Cause.REFUSED, detail)  # the SDK itself refused; a bug of ours
    return AmbiguousError(detail)


def _answered(response: Mapping[str, Any]) -> AwsError:
    error = response.get("Error") or {}
    code = str(error.get("QueryErrorCode") or error.get("Code") or "")
    status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    detail = f"{code} ({status}): {error.get('Message', '')}"
    if cause := cause_of(code):
        return RefusedError(cause, detail, code, response)
    if status >= 500 or status == 0:
        return AmbiguousError(detail, code, response)
    return RefusedError(Cause.REFUSED, detail, code, response)


def cause_of(code: str) -> Cause | None:
    """Return what an error code means, None if it is not one we know."""
    return _CAUSES.get(code) or _CAUSES.get(code.rpartition(".")[2])


def answers_by_entry[T](answer: Mapping[str, Any], count: int, success: Any) -> list[T | Exception]:
    """Return, for entries whose ids are "0" … `count - 1`, what an SQS batch call said of each.

    `success` makes the result from an entry of `Successful`. An entry that the answer does not mention is ambiguous;
    one that it mentions and we never sent is ignored. Both lists may be absent.
    """
    done = [*filter(None, answer.get("Successful") or [])]
    if [entry.get("Id") for entry in done] == _IDS[:count]:  # as a rule: all of them, in order
        return [success(entry) for entry in done]
    answers: list[Any] = [_UNMENTIONED] * count
    for entry in filter(None, answer.get("Failed") or []):
        code = str(entry.get("Code") or "")
        detail = f"{code}: {entry.get('Message') or ''}"
        if code.rpartition(".")[2] in _SERVICE_FAILED:
            _put(answers, entry, AmbiguousError(detail, code))
            continue
        cause = cause_of(code) or (Cause.INVALID if entry.get("SenderFault") else Cause.REFUSED)
        _put(answers, entry, RefusedError(cause, detail, code))
    for entry in done:
        _put(answers, entry, success(entry))
    if _UNMENTIONED in answers:
        unmentioned = AmbiguousError("the answer does not mention this entry")
        return [unmentioned if answer is _UNMENTIONED else answer for answer in answers]
    return answers


_UNMENTIONED = object()
_IDS = [str(index) for index in range(100)]
_INDICES = {name: index for index, name in enumerate(_IDS)}


def _put(answers: list[Any], entry: Mapping[str, Any], value: Any) -> None:
    index = _INDICES.get(str(entry.get("Id")))
    if index is not None and index < len(answers):
        answers[index] = value
