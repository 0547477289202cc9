"""What every Region looks like now, or where one request is: read from AWS, with no daemon needed."""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from dispatcher.aws.clients import Clients
from dispatcher.aws.fleet import FleetItem
from dispatcher.aws.ledger import read_item
from dispatcher.aws.queues import lag_s, read_depths
from dispatcher.board import Board
from dispatcher.errors import AwsError
from dispatcher.model import Depth, Region
from dispatcher.settings import Settings

POOL = 4
ATTEMPTS = 2


async def regions(settings: Settings, clients: Clients) -> dict[str, dict[str, Any]]:
    """Return what a dispatcher that starts now would know of each Region, with what the others tell it."""
    loop, home = asyncio.get_running_loop(), Region(settings.home_region)
    read = await asyncio.gather(
        *(_depth(clients, region, rules.queue_urls) for region, rules in settings.regions.items())
    )
    table = await clients.open("dynamodb", home, pool=POOL, attempts=ATTEMPTS)
    try:
        reports = await FleetItem(settings.ledger_table, table, clients.clock).look()
    except AwsError:
        reports = {}
    late_s = max(lag_s(rules.queue_url) for rules in settings.regions.values())
    board = Board.of(settings, lag_s=late_s, now=loop.time, random=Random(0))
    for region, depth in zip(settings.regions, read, strict=True):
        if isinstance(depth, Depth):
            board.post(region, depth, board.begin_reading(region))
    board.report()  # told to nobody
    board.learn_fleet(reports)
    explained = {str(region): values for region, values in board.explain().items()}
    for values, depth in zip(explained.values(), read, strict=True):
        if not isinstance(depth, Depth):
            values["health"], values["reason"] = "unreadable", str(depth)
    return explained


async def request(settings: Settings, clients: Clients, request_id: str) -> Mapping[str, Any] | None:
    """Return what the ledger knows of a request; None if it knows nothing. Raises AwsError."""
    table = await clients.open("dynamodb", Region(settings.home_region), pool=POOL, attempts=ATTEMPTS)
    return await read_item(table, settings.ledger_table, request_id)


async def _depth(clients: Clients, region: Region, urls: Sequence[str]) -> Depth | AwsError:
    caller = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
    try:
        return await read_depths(caller, urls)
    except AwsError as fault:
        return fault
