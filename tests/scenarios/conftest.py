from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from dispatcher.aws.clients import Clients
from dispatcher.aws.provision import Resources, provision
from dispatcher.clock import Clock
from dispatcher.demo.cloud import Cloud
from dispatcher.model import Region
from dispatcher.telemetry.metrics import Metrics
from tests.scenarios.proxy import Proxy
from tests.scenarios.world import HOME, REGIONS, World


@pytest.fixture
async def world(ministack: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with monkeypatch.context() as patch:
        for name, value in ministack.environment.items():
            patch.setenv(name, value)
        async with Clients(Clock(), Metrics.unread()) as clients:
            steps = provision(
                clients, name=f"t{uuid4().hex[:12]}", home=Region(HOME), regions=[Region(r) for r in REGIONS]
            )
            made = [step async for step in steps]
    resources = made[-1]
    assert isinstance(resources, Resources)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(ministack.endpoint))
        world = World(ministack, resources, proxy, tmp_path, stack)
        await world.open()
        try:
            yield world
        finally:
            world.end()
