"""What every Region looks like now, or where one request is: read from AWS, with no daemon needed."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from dispatcher.aws.clients import Caller, Clients
from dispatcher.aws.fleet import FleetItem
from dispatcher.aws.ledger import read_item
from dispatcher.aws.queues import lag_s, read_depths
from dispatcher.board import Board
from dispatcher.clock import Clock
from dispatcher.errors import AwsError
from dispatcher.model import Depth, Region
from dispatcher.settings import Settings

POOL = 4
ATTEMPTS = 2
_OF_A_READING = (
    "depth", "in_flight", "delayed", "reading_age_seconds", "projected_depth", "projected_wait_seconds", "share",
    "budget",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Clients for looking again and again."""

    settings: Settings
    clock: Clock
    queues: Mapping[Region, Caller]
    table: Caller
    board: Board

    @classmethod
    async def open(cls, settings: Settings, clients: Clients) -> "Look":
        queues = {r: await clients.open("sqs", r, pool=POOL, attempts=ATTEMPTS) for r in settings.regions}
        table = await clients.open("dynamodb", Region(settings.home_region), pool=POOL, attempts=ATTEMPTS)
        late_s = max(lag_s(rules.queue_url) for rules in settings.regions.values())
        board = Board.of(settings, lag_s=late_s, now=asyncio.get_running_loop().time, random=Random(0))
        return cls(settings, clients.clock, queues, table, board)

    async def request(self, request_id: str) -> Mapping[str, Any] | None:
        """Return what the ledger knows of a request; None if it knows nothing. Raises AwsError."""
        return await read_item(self.table, self.settings.ledger_table, request_id)

    async def regions(self) -> dict[str, dict[str, Any]]:
        """Return what a dispatcher that started with this object would know now, with what the others tell it."""
        regions = self.settings.regions
        begun = {region: self.board.begin_reading(region) for region in regions}
        read = await asyncio.gather(*(_depth(self.queues[r], rules.queue_urls) for r, rules in regions.items()))
        for (region, since), depth in zip(begun.items(), read, strict=True):
            if isinstance(depth, Depth):
                self.board.post(region, depth, since)
        self.board.report()  # told to nobody
        with suppress(AwsError):  # then it knows nothing of them
            self.board.learn_fleet(await FleetItem(self.settings.ledger_table, self.table, self.clock).look())
        explained = {str(region): values for region, values in self.board.explain().items()}
        for values, depth in zip(explained.values(), read, strict=True):
            if not isinstance(depth, Depth):
                values |= dict.fromkeys(_OF_A_READING)
                values["health"], values["reason"] = "unreadable", str(depth)
        return explained


async def _depth(caller: Caller, urls: Sequence[str]) -> Depth | AwsError:
    try:
        return await read_depths(caller, urls)
    except AwsError as fault:
        return fault
