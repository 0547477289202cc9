"""What every call of a client promises, on a real emulator."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from dispatcher.aws.clients import Clients
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud, free_port
from dispatcher.errors import AmbiguousError, Cause, RefusedError
from dispatcher.model import AwsClient, Region
from dispatcher.telemetry.metrics import Metrics

HOME = Region("us-east-1")


@pytest.fixture(params=AwsClient)
def kind(request: pytest.FixtureRequest) -> AwsClient:
    return AwsClient(request.param)


@pytest.mark.parametrize("skew_s", [-300.0, 300.0])
async def test_a_clock_that_is_five_minutes_off_is_put_right_by_any_answer(
    ministack: Cloud, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    """A refusal's `Date` is as good as any other: the first call of a process already corrects it."""
    for name, value in ministack.environment.items():
        monkeypatch.setenv(name, value)
    clock = Clock(local=lambda: time.time() + skew_s)
    async with Clients(clock, Metrics.unread()) as clients:
        call = await clients.open("sqs", HOME, pool=1, attempts=1)
        with pytest.raises(RefusedError):
            await call("get_queue_url", QueueName="no-such-queue")
    assert abs(clock.now() - time.time()) < 2.0  # `Date` has whole seconds


async def test_a_connection_that_is_never_made_is_a_definite_failure_and_counted(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    for name, value in Cloud("ministack", f"http://127.0.0.1:{free_port()}").environment.items():
        monkeypatch.setenv(name, value)
    metrics = Metrics.unread()
    async with Clients(Clock(), metrics, kind=kind) as clients:
        call = await clients.open("sqs", HOME, pool=1, attempts=1)
        with pytest.raises(RefusedError) as refused:
            await call("receive_message", QueueUrl="any")
    assert refused.value.cause is Cause.UNREACHABLE
    counted = metrics.aws_requests.labels("sqs", "receive_message", HOME, Cause.UNREACHABLE)
    assert counted._value.get() == 1


async def test_without_credentials_every_call_is_refused_as_denied(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
        call = await clients.open("dynamodb", HOME, pool=1, attempts=1)
        with pytest.raises(RefusedError) as refused:
            await call("batch_execute_statement", Statements=[])
    assert refused.value.cause is Cause.DENIED


async def test_a_server_that_takes_the_call_and_never_answers_ends_it_at_its_time_limit(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name, value in Cloud("ministack", endpoint).environment.items():
        monkeypatch.setenv(name, value)
    async with server, Clients(Clock(), Metrics.unread(), kind=kind) as clients:
        once = await clients.open("sqs", HOME, pool=1, attempts=1, read_timeout_s=0.3, total_timeout_s=0.6)
        with pytest.raises(AmbiguousError, match="Timeout"):
            await once("receive_message", QueueUrl=f"{endpoint}/1/master", WaitTimeSeconds=20)
        twice = await clients.open("sqs", HOME, pool=1, attempts=2, read_timeout_s=0.3)
        with pytest.raises(AmbiguousError, match=r"ReadTimeout|SocketTimeout"):
            await twice("receive_message", QueueUrl=f"{endpoint}/1/master", WaitTimeSeconds=20)
        slow = await clients.open("sqs", HOME, pool=1, attempts=3, read_timeout_s=60.0, total_timeout_s=0.3)
        with pytest.raises(AmbiguousError):  # nor does the SDK's trying again go past the whole's limit
            await slow("delete_message_batch", QueueUrl=f"{endpoint}/1/master", Entries=[])


async def test_credentials_that_expire_are_fetched_anew_by_the_same_client(
    monkeypatch: pytest.MonkeyPatch, kind: AwsClient
) -> None:
    """A task lives longer than its role's credentials: each call is signed with those that are valid then."""
    given, shown = 0, []

    async def credentials(_: web.Request) -> web.Response:
        nonlocal given
        given += 1
        expires = datetime.now(UTC) + timedelta(seconds=1)
        return web.json_response(
            {
                "AccessKeyId": f"key-{given}",
                "SecretAccessKey": "secret",
                "Token": "token",
                "Expiration": expires.isoformat(),
            }
        )

    async def sqs(request: web.Request) -> web.Response:
        shown.append(request.headers["Authorization"].split("Credential=")[1].split("/")[0])
        return web.json_response({}, content_type="application/x-amz-json-1.0")

    app = web.Application()
    app.router.add_get("/credentials", credentials)
    app.router.add_post("/{path:.*}", sqs)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint}/credentials")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    try:
        async with Clients(Clock(), Metrics.unread(), kind=kind) as clients:
            call = await clients.open("sqs", HOME, pool=1, attempts=1)
            for _ in range(3):
                await call("receive_message", QueueUrl=f"{endpoint}/1/master")
                await asyncio.sleep(1.1)
    finally:
        await runner.cleanup()
    assert len(set(shown)) == 3, shown
