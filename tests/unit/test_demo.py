"""What the demo shows, and what its example worker says."""

import asyncio
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from botocore.exceptions import ClientError
from rich.console import Console

from dispatcher.aws.clients import Clients
from dispatcher.clock import Clock
from dispatcher.demo import dev
from dispatcher.demo.show import GPUS, _View
from dispatcher.demo.worker import Worker
from dispatcher.settings import load
from dispatcher.telemetry.metrics import Metrics
from tests.unit.test_cli import SETTINGS


def test_a_region_takes_one_line_of_the_picture_on_a_narrow_terminal() -> None:
    regions = {r: {"depth": 400, "share": 1.0, "projected_wait_seconds": 12.3, "health": "unreadable"} for r in GPUS}
    stage: Any = SimpleNamespace(
        console=Console(width=80),
        submissions=range(2000),
        valid=range(1832),
        status={"regions": regions},
        gpus=[MagicMock(region=region) for region in GPUS],
        tally=SimpleNamespace(served_in=Counter(GPUS)),
    )
    with stage.console.capture() as shown:
        stage.console.print(_View(stage)._regions())
    assert len(shown.get().splitlines()) == 1 + len(GPUS)


def test_a_topic_that_is_not_there_is_one_line_of_the_worker_s_log(caplog: pytest.LogCaptureFixture) -> None:
    missing = ClientError({"Error": {"Code": "NotFound", "Message": "no topic"}}, "Publish")
    results = MagicMock(find=lambda job: "served before")
    worker = Worker(MagicMock(), "queue", MagicMock(), results, MagicMock(side_effect=missing))
    body = json.dumps({"request_id": "r-1", "callback_sns_topic": "arn:t"})
    worker._carry({"Body": body, "MessageId": "m", "ReceiptHandle": "h"})
    (record,) = caplog.records
    assert record.getMessage().startswith("request r-1 comes again; its topic is arn:t: ")
    assert not record.exc_info


async def test_a_producer_that_cannot_send_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SETTINGS | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dev, "SAY_S", 0.5)
    said: asyncio.Queue[str] = asyncio.Queue()
    async with Clients(Clock(), Metrics.unread()) as clients:
        producing = asyncio.create_task(dev.produce(load(), clients, 10, 1, said.put_nowait))
        async with asyncio.timeout(30):
            topic = await said.get()
            while "not sent" not in (line := await said.get()):
                pass
        producing.cancel()
        await asyncio.wait([producing])
    assert "callback_sns_topic: no topic could be made: Could not connect" in topic
    assert "not sent: " in line
    assert "(unreachable: " in line
