"""What is known of a call that failed. Definite: nothing was done. Ambiguous: it may have been."""

from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.aws.faults import answers_by_entry, cause_of, classify
from dispatcher.errors import AmbiguousError, Cause, RefusedError

URL = "https://sqs.us-east-1.amazonaws.com/"
KEY = cast(Any, SimpleNamespace(host="host", port=443, ssl=True, is_ssl=True))


def answered(code: str, status: int, **error: str) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "…", **error}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "SendMessageBatch")


def broken(fault: Exception) -> EndpointConnectionError:
    """aiobotocore wraps in this one whatever broke a connection, before or after the request was written."""
    return EndpointConnectionError(endpoint_url=URL, error=fault)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (answered("RequestThrottled", 403), Cause.THROTTLED),
        (answered("ThrottlingException", 400), Cause.THROTTLED),
        (answered("ProvisionedThroughputExceededException", 400), Cause.THROTTLED),
        (answered("AccessDenied", 403), Cause.DENIED),
        (answered("AccessDeniedException", 400), Cause.DENIED),
        (answered("ExpiredTokenException", 400), Cause.DENIED),
        (answered("InvalidClientTokenId", 403), Cause.DENIED),
        (answered("AWS.SimpleQueueService.NonExistentQueue", 400), Cause.MISSING),
        (answered("QueueDoesNotExist", 400), Cause.MISSING),
        (answered("QueueDoesNotExist", 400, QueryErrorCode="AWS.SimpleQueueService.NonExistentQueue"), Cause.MISSING),
        (answered("ResourceNotFoundException", 400), Cause.MISSING),
        (answered("InvalidMessageContents", 400), Cause.INVALID),
        (answered("ReceiptHandleIsInvalid", 404), Cause.INVALID),
        (answered("ConditionalCheckFailedException", 400), Cause.REFUSED),
        (answered("SomethingNew", 400), Cause.REFUSED),
        (answered("SomethingNew", 499), Cause.REFUSED),
        (ConnectTimeoutError(endpoint_url=URL), Cause.UNREACHABLE),
        (ProxyConnectionError(proxy_url="http://proxy"), Cause.UNREACHABLE),
        (SSLError(endpoint_url=URL, error=OSError("bad certificate")), Cause.UNREACHABLE),
        (broken(aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "refused"))), Cause.UNREACHABLE),
        (broken(aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "no such name"))), Cause.UNREACHABLE),
        (NoCredentialsError(), Cause.DENIED),
        (ParamValidationError(report="bad"), Cause.REFUSED),
    ],
)
def test_what_was_refused_or_never_left_is_definite(fault: Exception, cause: Cause) -> None:
    known = classify(fault)
    assert isinstance(known, RefusedError)
    assert known.cause is cause


@pytest.mark.parametrize(
    "fault",
    [
        answered("InternalFailure", 500),
        answered("InternalError", 500),
        answered("ServiceUnavailable", 503),
        answered("503", 503),
        answered("", 0),
        ReadTimeoutError(endpoint_url=URL),
        ConnectionClosedError(endpoint_url=URL),
        HTTPClientError(error=ValueError("?")),
        broken(aiohttp.ClientOSError(104, "reset by peer")),
        broken(aiohttp.ClientConnectionResetError("cannot write to closing transport")),
        broken(aiohttp.ClientConnectionError("Connection closed")),
        TimeoutError(),
        ConnectionResetError(),
        OSError("?"),
        ValueError("an answer that cannot be read"),
        KeyError("Body"),
    ],
)
def test_what_may_have_been_done_is_ambiguous(fault: Exception) -> None:
    known = classify(fault)
    assert isinstance(known, AmbiguousError)
    assert known.cause is Cause.AMBIGUOUS


def test_a_fault_without_a_word_gets_one() -> None:
    assert str(classify(TimeoutError())) == "ambiguous: TimeoutError: no answer in time"


def test_the_answer_and_its_code_are_kept_for_who_asks() -> None:
    fault = answered("ConditionalCheckFailedException", 400)
    known = classify(fault)
    assert known.code == "ConditionalCheckFailedException"
    assert known.answer == fault.response


@pytest.mark.parametrize("response", [{}, {"Error": {}}, {"Error": {"Code": None}}, {"ResponseMetadata": {}}])
def test_an_answer_without_a_code_or_status_proves_nothing(response: Any) -> None:
    assert isinstance(classify(ClientError(response, "SendMessageBatch")), AmbiguousError)


@pytest.mark.parametrize("code", ["", ".", "no such code", "a.b.c"])
def test_a_code_nobody_knows_has_no_cause(code: str) -> None:
    assert cause_of(code) is None


def by_entry(answer: Any, count: int) -> list[Any]:
    return answers_by_entry(answer, count, lambda entry: entry.get("MessageId"))


def failed(index: object, code: str, *, sender: bool) -> dict[str, object]:
    return {"Id": index, "Code": code, "SenderFault": sender, "Message": "…"}


@pytest.mark.parametrize("empty", [{}, {"Successful": None, "Failed": None}, {"Successful": [], "Failed": []}])
def test_an_answer_that_mentions_no_entry_leaves_each_ambiguous(empty: Any) -> None:
    answers = by_entry(empty, 3)
    assert len(answers) == 3
    assert all(isinstance(answer, AmbiguousError) for answer in answers)


def test_each_entry_gets_its_own_answer_in_any_order() -> None:
    answer = {
        "Successful": [{"Id": "2", "MessageId": "m2"}, {"Id": "0", "MessageId": "m0"}],
        "Failed": [failed("1", "InvalidMessageContents", sender=True)],
    }
    m0, refused, m2 = by_entry(answer, 3)
    assert (m0, m2) == ("m0", "m2")
    assert isinstance(refused, RefusedError)
    assert refused.cause is Cause.INVALID


@pytest.mark.parametrize("index", ["3", "-1", "x", "", None, "²", "٢", "1e0", "9" * 30])
@pytest.mark.parametrize("which", ["Successful", "Failed"])
def test_an_entry_that_was_never_sent_is_ignored(index: object, which: str) -> None:
    answers = by_entry({which: [{"Id": index, "MessageId": "m"}, {"MessageId": "without an id"}]}, 3)
    assert all(isinstance(answer, AmbiguousError) for answer in answers)


@pytest.mark.parametrize(
    ("code", "sender", "cause"),
    [
        ("InvalidMessageContents", True, Cause.INVALID),
        ("ReceiptHandleIsInvalid", True, Cause.INVALID),
        ("SomethingNew", True, Cause.INVALID),
        ("RequestThrottled", False, Cause.THROTTLED),
        ("ThrottlingException", False, Cause.THROTTLED),
        ("AccessDenied", True, Cause.DENIED),
        ("KmsThrottled", False, Cause.THROTTLED),
    ],
)
def test_an_entry_that_was_turned_down_is_definite(code: str, sender: bool, cause: Cause) -> None:
    (answer,) = by_entry({"Failed": [failed("0", code, sender=sender)]}, 1)
    assert isinstance(answer, RefusedError)
    assert (answer.cause, answer.code) == (cause, code)


@pytest.mark.parametrize("code", ["InternalError", "InternalFailure", "ServiceUnavailable"])
def test_an_entry_at_which_the_service_itself_failed_is_ambiguous_as_a_5xx_is(code: str) -> None:
    """A definite failure goes on to another Region at once; this message may be in the first one already."""
    (answer,) = by_entry({"Failed": [failed("0", code, sender=False)]}, 1)
    assert isinstance(answer, AmbiguousError)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "Id": st.none() | st.integers(0, 9).map(str) | st.text(),
        "Code": st.text(),
        "SenderFault": st.booleans(),
    },
)
ENTRIES = st.none() | st.lists(ENTRY, max_size=5)


@given(st.fixed_dictionaries({}, optional={"Successful": ENTRIES, "Failed": ENTRIES}), st.integers(0, 10))
def test_whatever_is_answered_each_entry_gets_exactly_one_answer(answer: Any, count: int) -> None:
    answers = by_entry(answer, count)
    assert len(answers) == count
    ids = {entry.get("Id") or "" for entries in answer.values() for entry in entries or ()}
    mentioned = {int(index) for index in ids if index.isascii() and index.isdigit()}
    assert all(n in mentioned or isinstance(one, AmbiguousError) for n, one in enumerate(answers))
