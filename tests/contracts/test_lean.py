"""The lean client against the SDK's, call by call: the same requests, the same answers, faults and repeats.

Whatever both sides do alike is asked of the SDK first, so that no expectation here is our own invention.
"""

import asyncio
import json
import shutil
import socket
import struct
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from botocore.httpsession import get_cert_path

from dispatcher.aws.clients import Clients
from dispatcher.aws.lean import OPERATIONS, LeanClient
from dispatcher.aws.posts import trusting
from dispatcher.clock import Clock
from dispatcher.errors import AmbiguousError, AwsError, Cause, RefusedError
from dispatcher.model import AwsClient, Region
from dispatcher.telemetry.metrics import Metrics

HOME = Region("us-east-1")
BOTH = [AwsClient.SDK, AwsClient.LEAN]
Service = Literal["sqs", "dynamodb"]

CALLS: dict[str, tuple[Service, dict[str, Any]]] = {
    "receive_message": (
        "sqs",
        {
            "QueueUrl": "http://queue",
            "MaxNumberOfMessages": 10,
            "WaitTimeSeconds": 20,
            "VisibilityTimeout": 120,
            "MessageAttributeNames": ["All"],
            "MessageSystemAttributeNames": ["SentTimestamp", "AWSTraceHeader"],
        },
    ),
    "send_message_batch": (
        "sqs",
        {
            "QueueUrl": "http://queue",
            "Entries": [
                {
                    "Id": "0",
                    "MessageBody": 'žluťoučký "kůň" \\u0000 🙂',
                    "MessageAttributes": {
                        "binary": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
                        "text": {"DataType": "String", "StringValue": "ž"},
                    },
                    "MessageGroupId": "tenant",
                    "MessageSystemAttributes": {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1"}},
                }
            ],
        },
    ),
    "delete_message_batch": ("sqs", {"QueueUrl": "http://queue", "Entries": [{"Id": "0", "ReceiptHandle": "r/+="}]}),
    "change_message_visibility_batch": (
        "sqs",
        {"QueueUrl": "http://queue", "Entries": [{"Id": "0", "ReceiptHandle": "r", "VisibilityTimeout": 0}]},
    ),
    "batch_execute_statement": (
        "dynamodb",
        {"Statements": [{"Statement": "INSERT …", "Parameters": [{"S": "ž"}, {"N": "1.5"}]}]},
    ),
    "batch_get_item": (
        "dynamodb",
        {"RequestItems": {"t": {"Keys": [{"request_id": {"S": "a"}}], "ConsistentRead": True}}},
    ),
}


@dataclass
class Far:
    """A server that notes what comes and answers as it is told; by default with an empty object."""

    endpoint: str = ""
    came: list[tuple[Mapping[str, str], Any]] = field(default_factory=list)
    answer: Callable[[], web.Response] = lambda: web.json_response({}, content_type="application/x-amz-json-1.0")
    slow_s: float = 0.0
    open: int = 0
    open_most: int = 0

    async def take(self, request: web.Request) -> web.Response:
        self.came.append((request.headers, json.loads(await request.read())))
        self.open += 1
        self.open_most = max(self.open_most, self.open)
        await asyncio.sleep(self.slow_s)
        self.open -= 1
        return self.answer()


@pytest.fixture
async def far(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Far]:
    far = Far()
    app = web.Application()
    app.router.add_post("/{path:.*}", far.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    far.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for name, value in {
        "AWS_ENDPOINT_URL": far.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield far
    finally:
        await runner.cleanup()


@asynccontextmanager
async def calling(
    kind: AwsClient, operation: str, *, attempts: int = 1, clock: Clock | None = None
) -> AsyncIterator[Any]:
    """Yield what makes the call."""
    service, parameters = CALLS[operation]
    async with Clients(clock or Clock(), Metrics.unread(), kind=kind) as clients:
        caller = await clients.open(service, HOME, pool=3, attempts=attempts)
        assert isinstance(caller._client, LeanClient) is (kind is AwsClient.LEAN)
        yield lambda: caller(operation, **parameters)


async def outcome(kind: AwsClient, operation: str, attempts: int = 1) -> Any:
    """Return an answer without its metadata, or the fault's class, cause and code."""
    async with calling(kind, operation, attempts=attempts) as call:
        try:
            answer = dict(await call())
        except AwsError as fault:
            return type(fault), fault.cause, fault.code
        metadata = answer.pop("ResponseMetadata")
        return answer, metadata["HTTPStatusCode"], metadata["HTTPHeaders"].get("date")


def test_the_calls_below_are_all_that_it_makes() -> None:
    assert CALLS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("operation", CALLS)
async def test_a_request_is_the_sdk_s(far: Far, operation: str) -> None:
    for kind in BOTH:
        await outcome(kind, operation)
    (sdk, sdk_body), (lean, lean_body) = far.came
    assert lean_body == sdk_body
    for name in ("X-Amz-Target", "Content-Type", "X-Amz-Security-Token", "X-Amzn-Query-Mode", "Accept-Encoding"):
        assert lean.get(name) == sdk.get(name), name
    assert {name.lower() for name in sdk} >= {name.lower() for name in lean}, "it says nothing that the SDK does not"
    assert lean["User-Agent"] == sdk["User-Agent"]
    assert "regional-dispatcher/" in lean["User-Agent"]
    signed = {side["Authorization"].split("SignedHeaders=")[1].split(",")[0] for side in (sdk, lean)}
    assert len(signed) == 1, signed


async def test_half_a_character_is_written_as_the_sdk_writes_it(far: Far) -> None:
    """AWS refuses it; what must not happen is that a batch fails here, with nine others in it."""
    entries = [{"Id": "0", "MessageBody": "\ud800"}]
    for kind in BOTH:
        async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
            caller = await clients.open("sqs", HOME, pool=1, attempts=1)
            await caller("send_message_batch", QueueUrl="q", Entries=entries)
    (_, sdk), (_, lean) = far.came
    assert lean == sdk


ANSWERS: dict[str, dict[str, Any]] = {
    "receive_message": {
        "Messages": [
            {
                "MessageId": "m",
                "ReceiptHandle": "r",
                "Body": "ž",
                "MD5OfBody": "x",
                "Attributes": {"SentTimestamp": "1"},
                "MessageAttributes": {
                    "b": {"DataType": "Binary", "BinaryValue": "AP8="},
                    "s": {"DataType": "String", "StringValue": "ž"},
                },
            },
            {"MessageId": "n", "ReceiptHandle": "r", "Body": ""},
        ]
    },
    "send_message_batch": {
        "Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "x"}],
        "Failed": [{"Id": "1", "Code": "InternalError", "SenderFault": False, "Message": "text"}],
    },
    "delete_message_batch": {"Successful": [{"Id": "0"}]},
    "change_message_visibility_batch": {"Failed": [{"Id": "0", "Code": "ReceiptHandleIsInvalid", "SenderFault": True}]},
    "batch_execute_statement": {
        "Responses": [{"TableName": "t"}, {"Error": {"Code": "DuplicateItem", "Message": "text"}, "TableName": "t"}]
    },
    "batch_get_item": {"Responses": {"t": [{"request_id": {"S": "a"}, "n": {"N": "1"}}]}},
}


@pytest.mark.parametrize("operation", CALLS)
async def test_an_answer_reads_as_the_sdk_reads_it(far: Far, operation: str) -> None:
    far.answer = lambda: web.json_response(ANSWERS[operation], content_type="application/x-amz-json-1.0")
    sdk, lean = [await outcome(kind, operation) for kind in BOTH]
    assert lean[0] == sdk[0]
    assert lean[1] == sdk[1] == 200
    assert sdk[2]
    assert lean[2]


def refusal(code: str, status: int = 400, query: str = "", **more: Any) -> Callable[[], web.Response]:
    headers = {"x-amzn-query-error": f"{query};Sender"} if query else {}
    return lambda: web.json_response(
        {"__type": f"com.amazonaws#{code}", "message": "text", **more},
        status=status,
        headers=headers,
        content_type="application/x-amz-json-1.0",
    )


def closing() -> web.Response:
    raise asyncio.CancelledError  # aiohttp closes the connection without a word


FAULTS: dict[str, Callable[[], web.Response]] = {
    "throttled": refusal("RequestThrottled", 403, "RequestThrottled"),
    "throttling exception": refusal("ThrottlingException"),
    "table throttled": refusal("ProvisionedThroughputExceededException"),
    "no such queue": refusal("QueueDoesNotExist", 400, "AWS.SimpleQueueService.NonExistentQueue"),
    "stale receipt": refusal("ReceiptHandleIsInvalid", 404, "ReceiptHandleIsInvalid"),
    "too long": refusal("BatchRequestTooLong", 400, "AWS.SimpleQueueService.BatchRequestTooLong"),
    "denied": refusal("AccessDeniedException"),
    "expired": refusal("ExpiredTokenException"),
    "never heard of": refusal("SomethingNew"),
    "500": refusal("InternalServerError", 500),
    "502 in HTML": lambda: web.Response(status=502, text="<html>bad gateway</html>"),
    "503": refusal("ServiceUnavailable", 503),
    "503 without a word": lambda: web.Response(status=503),
    "504": lambda: web.Response(status=504, text="upstream timed out"),
    "connection closed": closing,
}


@pytest.mark.parametrize("operation", ["send_message_batch", "batch_execute_statement"])
@pytest.mark.parametrize("what", FAULTS)
async def test_a_fault_means_what_it_means_by_the_sdk(far: Far, operation: str, what: str) -> None:
    far.answer = FAULTS[what]
    sdk, lean = [await outcome(kind, operation) for kind in BOTH]
    assert lean == sdk


@pytest.mark.parametrize("what", FAULTS)
async def test_what_the_sdk_tries_again_is_tried_again_as_often(
    far: Far, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard mode, three attempts in all (aws.md's classes): throttles, 5xx and broken connections, nothing else."""
    monkeypatch.setattr("dispatcher.aws.lean.backoff_s", lambda *_: 0.0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    far.answer = FAULTS[what]
    tries = []
    for kind in BOTH:
        far.came.clear()
        await outcome(kind, "batch_execute_statement", attempts=3)
        tries.append(len(far.came))
    assert tries[0] == tries[1], tries
    assert tries[0] in (1, 3)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
@pytest.mark.parametrize("operation", CALLS)
async def test_any_success_is_one(far: Far, operation: str, status: int) -> None:
    """A gateway's 202 must not look like a no: the message would go to another Region too."""
    empty = status == 204
    said = {} if empty else ANSWERS[operation]
    far.answer = lambda: web.Response(
        status=status, body=b"" if empty else json.dumps(said).encode(), content_type="application/x-amz-json-1.0"
    )
    sdk, lean = [await outcome(kind, operation) for kind in BOTH]
    assert lean[:2] == sdk[:2]
    assert lean[1] == status


@pytest.mark.parametrize("said", [[], 5, "text", {"Successful": {"0": {}}}, {"Successful": ["0"]}, {"Failed": 1}])
async def test_json_that_is_no_answer_is_an_answer_lost(far: Far, said: Any) -> None:
    far.answer = lambda: web.json_response(said, content_type="application/x-amz-json-1.0")
    assert (await outcome(AwsClient.LEAN, "send_message_batch"))[1] is Cause.AMBIGUOUS


async def test_an_answer_that_is_no_json_is_an_answer_lost(far: Far) -> None:
    """The call may have been done. The SDK takes it for an answer without entries, which comes to the same."""
    far.answer = lambda: web.Response(text="{", content_type="application/x-amz-json-1.0")
    assert (await outcome(AwsClient.SDK, "send_message_batch"))[0] == {}
    assert (await outcome(AwsClient.LEAN, "send_message_batch"))[1] is Cause.AMBIGUOUS


async def test_a_signed_call_is_taken_nowhere_else(far: Far) -> None:
    """AWS does not redirect; whoever does is not AWS, and gets no second request."""
    far.answer = lambda: web.Response(status=307, headers={"Location": f"{far.endpoint}/elsewhere"})
    _, cause, _ = await outcome(AwsClient.LEAN, "send_message_batch")
    assert cause is Cause.REFUSED
    assert len(far.came) == 1


async def test_repeats_are_counted(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatcher.aws.lean.backoff_s", lambda *_: 0.0)
    answers = iter([FAULTS["503"], FAULTS["throttled"], Far().answer])

    def one_after_another() -> web.Response:
        return next(answers)()

    far.answer = one_after_another
    async with calling(AwsClient.LEAN, "delete_message_batch", attempts=3) as call:
        assert (await call())["ResponseMetadata"]["RetryAttempts"] == 2


async def test_when_all_fails_the_quota_ends_the_repeats(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the SDK: 500 tokens, five for a repeat; a service that is down is not asked three times for each call."""
    monkeypatch.setattr("dispatcher.aws.lean.backoff_s", lambda *_: 0.0)
    far.answer = FAULTS["503"]
    async with calling(AwsClient.LEAN, "delete_message_batch", attempts=3) as call:
        for _ in range(150):
            with pytest.raises(AwsError):
                await call()
    assert len(far.came) == 150 + 500 // 5


@asynccontextmanager
async def cut_off(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A server that takes a whole request, and then resets the connection."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server:
        yield


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("kind", BOTH)
async def test_a_connection_reset_after_the_request_was_read_leaves_its_end_unknown(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    """Taken for a refusal, the message would go to another Region too."""
    async with cut_off(monkeypatch), calling(kind, "send_message_batch") as call:
        with pytest.raises(AmbiguousError):
            await call()


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("kind", BOTH)
async def test_a_connection_that_nobody_accepts_in_time_was_not_made(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    monkeypatch.setattr("dispatcher.aws.clients.CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as full, socket.socket() as queued:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued.connect(full.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{full.getsockname()[1]}")
        async with calling(kind, "send_message_batch") as call:
            with pytest.raises(RefusedError) as refused:
                await call()
    assert refused.value.cause is Cause.UNREACHABLE


async def test_no_more_connections_than_the_pool_has(far: Far) -> None:
    far.slow_s = 0.05
    async with calling(AwsClient.LEAN, "delete_message_batch") as call:
        await asyncio.gather(*(call() for _ in range(12)))
    assert far.open_most == 3
    assert len(far.came) == 12


async def test_a_clock_that_is_wrong_signs_with_aws_s_time_after_the_first_answer(far: Far) -> None:
    """Better than the SDK, which signs with the machine's clock however often it is told."""
    clock = Clock(lambda: time.time() - 900)
    far.answer = refusal("InvalidSignatureException")
    async with calling(AwsClient.LEAN, "receive_message", clock=clock) as call:
        for _ in range(2):
            with pytest.raises(AwsError) as refused:
                await call()
            assert refused.value.cause is Cause.DENIED
    first, second = (headers["X-Amz-Date"] for headers, _ in far.came)
    today = time.strftime("%Y%m%dT%H", time.gmtime())
    assert second > first
    assert second >= today


async def test_parameters_that_aws_does_not_take_fail_loudly(far: Far) -> None:
    async with Clients(Clock(), Metrics.unread(), kind=AwsClient.LEAN) as clients:
        caller = await clients.open("sqs", HOME, pool=1, attempts=1)
        with pytest.raises(AwsError, match="nothing that AWS takes"):
            await caller("receive_message", QueueUrl=object())
    assert not far.came


async def test_a_proxy_of_the_environment_is_asked(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://sqs.elsewhere.example")
    monkeypatch.setenv("HTTP_PROXY", far.endpoint)
    monkeypatch.setenv("NO_PROXY", "")
    for kind in BOTH:
        assert (await outcome(kind, "delete_message_batch"))[0] == {}
    assert [headers["Host"] for headers, _ in far.came] == ["sqs.elsewhere.example"] * 2


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("kind", BOTH)
async def test_a_proxy_s_password_is_in_no_fault(monkeypatch: pytest.MonkeyPatch, kind: AwsClient) -> None:
    """Faults go to the log, to /status and to the page."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(refuses, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://sqs.elsewhere.example")
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:SECRET@127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "")
    async with proxy, calling(kind, "delete_message_batch") as call:
        with pytest.raises(AwsError) as refused:
            await call()
    assert refused.value.cause is Cause.UNREACHABLE
    assert "SECRET" not in "".join(traceback.format_exception(refused.value))


async def test_authorities_are_read_once(far: Far, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hundred and forty certificates for every client would hold the loop up for a second at thirty Regions."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", far.endpoint.replace("http://", "https://"))
    bundle = str(shutil.copy(str(get_cert_path(True)), tmp_path))
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)  # which the SDK goes by then
    trusting.cache_clear()
    for kind in BOTH:
        async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
            for _ in range(2):
                caller = await clients.open("sqs", HOME, pool=1, attempts=1)
                with pytest.raises(RefusedError):  # nobody speaks TLS there
                    await caller("receive_message", QueueUrl="q")
    assert trusting.cache_info().misses == 1


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
async def test_authorities_that_cannot_be_read_end_the_start(
    kind: AwsClient, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not each call, for ever; an empty setting, as compose makes of one that is not set, is none."""
    for variable in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "")
    async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
        await clients.open("sqs", HOME, pool=1, attempts=1)
    monkeypatch.setenv(name, str(tmp_path / "nowhere.pem"))
    async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
        with pytest.raises(RefusedError, match=r"no certificate authorities in .*nowhere\.pem"):
            await clients.open("sqs", HOME, pool=1, attempts=1)
