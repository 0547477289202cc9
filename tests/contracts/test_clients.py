"""What every call of a client promises, on a real emulator."""

import time

import pytest

from dispatcher.aws.clients import Clients
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud, free_port
from dispatcher.errors import Cause, RefusedError
from dispatcher.model import Region
from dispatcher.telemetry.metrics import Metrics

HOME = Region("us-east-1")


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in Cloud("ministack", f"http://127.0.0.1:{free_port()}").environment.items():
        monkeypatch.setenv(name, value)
    metrics = Metrics.unread()
    async with Clients(Clock(), metrics) as clients:
        call = await clients.open("sqs", HOME, pool=1, attempts=1)
        with pytest.raises(RefusedError) as refused:
            await call("get_queue_url", QueueName="any")
    assert refused.value.cause is Cause.UNREACHABLE
    counted = metrics.aws_requests.labels("sqs", "get_queue_url", HOME, Cause.UNREACHABLE)
    assert counted._value.get() == 1


async def test_without_credentials_every_call_is_refused_as_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    async with Clients(Clock(), Metrics.unread()) as clients:
        call = await clients.open("dynamodb", HOME, pool=1, attempts=1)
        with pytest.raises(RefusedError) as refused:
            await call("get_item", TableName="any", Key={"request_id": {"S": "a"}})
    assert refused.value.cause is Cause.DENIED
