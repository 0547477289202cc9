"""Where the contract suites run: on fakes, on emulators that the tests start, and on others that are named to them.

`TEST_DYNAMODB_LOCAL` and `TEST_LOCALSTACK` name the endpoints of two more opinions on AWS; `make conformance` starts
both.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from contextvars import copy_context
from random import Random

import pytest
import uvloop

from dispatcher.aws.clients import Clients
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud
from dispatcher.model import AwsClient
from dispatcher.telemetry.metrics import Metrics
from tests.fakes.aws import FakeAws
from tests.world.wire import FakeClients, Wire

OTHERS = {"dynamodb-local": "TEST_DYNAMODB_LOCAL", "localstack": "TEST_LOCALSTACK"}


def kinds(*always: str, others: tuple[str, ...]) -> list[str]:
    """Return the parameters of a contract suite: `others` only where the environment names them."""
    return [*always, *(kind for kind in others if os.environ.get(OTHERS[_service(kind)]))]


def _service(kind: str) -> str:
    return kind.removesuffix("-batched").removesuffix("-single").removesuffix("-lean")


async def clients_on(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, stack: AsyncExitStack
) -> Clients:
    """Return clients of what `kind` names."""
    if kind.startswith("fake-aws"):
        loop = asyncio.get_running_loop()
        aws = FakeAws(loop.time, time.time() - loop.time())
        aws.tables["fake-ledger"] = {}

        def heard(*_: object) -> None:
            pass

        wire = Wire(aws, Random(1), copy_context(), heard, heard, heard, heard)
        return FakeClients(wire, Clock(), Metrics.unread())
    service = _service(kind)
    if service in OTHERS:
        endpoint = os.environ[OTHERS[service]]
        keys = {"AWS_ACCESS_KEY_ID": "emulator", "AWS_SECRET_ACCESS_KEY": "emulator"}
        environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true", **keys}
    else:
        cloud: Cloud = request.getfixturevalue(service)
        environment = cloud.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    by = AwsClient.LEAN if "-lean" in kind else AwsClient.SDK
    return await stack.enter_async_context(Clients(Clock(), Metrics.unread(), kind=by, validates=True))


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name == "test_posts.py" else loops
