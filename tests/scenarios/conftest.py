import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from dispatcher.demo.cloud import Cloud
from tests.scenarios.world import World, provisioned, world_of

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(ministack: Cloud) -> Run:
    """Run `dispatcher …` on the emulator, with `settings` besides."""

    def command(
        *arguments: str, settings: Mapping[str, str] = {}, text: str = "", on: Cloud | None = ministack
    ) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, **(on.environment if on else {}), **settings}
        argv = [sys.executable, "-m", "dispatcher", *arguments]
        return subprocess.run(argv, env=environment, input=text, capture_output=True, text=True, timeout=100)

    return command


@pytest.fixture
async def world(ministack: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    with monkeypatch.context() as patch:
        for name, value in ministack.environment.items():
            patch.setenv(name, value)
        resources = await provisioned()
    async with world_of(ministack, resources, tmp_path) as world:
        yield world
