"""The short form; `make chaos` is the long one."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from dispatcher.demo.cloud import Cloud
from tests.chaos.run import Books, chaos
from tests.scenarios.world import provisioned, world_of


@pytest.mark.timeout(300)
async def test_killed_and_cut_off_at_random_three_dispatchers_lose_nothing(
    ministack: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TEST_CHAOS_SEED asks for another run."""
    with monkeypatch.context() as patch:
        for name, value in ministack.environment.items():
            patch.setenv(name, value)
        resources = await provisioned()
    books = Books()
    seed = int(os.environ.get("TEST_CHAOS_SEED", "1"))
    async with world_of(ministack, resources, tmp_path, books.hear) as world:
        summary = await chaos(world, books, seed=seed, seconds=25, rate=20)
    print("\n".join(summary.lines()))
    assert not summary.faults_found, summary.faults_found
    assert json.loads(json.dumps(asdict(summary)))["faults"] == summary.faults
    assert summary.kills + summary.drains >= 1
    assert sum(summary.faults.values()) >= 10
    assert summary.requests >= 300
