"""What every Region looks like now, or where one request is: read from AWS, with no daemon needed."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
_TIMES = ("claimed_at", "dispatched_at", "moved_at", "moving_until", "lease_end", "expires_at")


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
            values["health"] = f"unreadable: {depth}"
    return explained


async def request(settings: Settings, clients: Clients, request_id: str) -> Mapping[str, Any] | None:
    """Return what the ledger knows of a request, times in RFC 3339; None if it knows nothing. Raises AwsError."""
    table = await clients.open("dynamodb", Region(settings.home_region), pool=POOL, attempts=ATTEMPTS)
    item = await read_item(table, settings.ledger_table, request_id)
    if item is None:
        return None
    return {name: _readable(name, value) for name, value in sorted(item.items())}


async def _depth(clients: Clients, region: Region, urls: Sequence[str]) -> Depth | AwsError:
    caller = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
    try:
        return await read_depths(caller, urls)
    except AwsError as fault:
        return fault


def life(item: Mapping[str, Any]) -> list[str]:
    """Return what happened to a request, a line for each thing, from what `request` returned."""
    lines = []
    wait = (
        f", where {float(item['projected_wait_s']):.1f} s of wait were projected" if "projected_wait_s" in item else ""
    )
    if "claimed_at" in item:
        whose = f"for message {item.get('source_message_id', '?')} of the master queue"
        lines.append(f"{item['claimed_at']}  claimed {whose}")
    region = item.get("region")
    if region:
        lines.append(f"{'':24}  {region} chosen by {item.get('policy', 'an older version')}{wait}")
    if "dispatched_at" in item:
        lines.append(f"{item['dispatched_at']}  dispatched, as SQS message {item.get('sqs_message_id', '?')}")
    if "moved_at" in item:
        lines.append(
            f"{item['moved_at']}  rescued from {item.get('moved_from', '?')}: the lines above name the new Region"
        )
    if "mover" in item:
        lines.append(f"{item['moving_until']}  until then it is being moved to {item.get('moving_to', '?')}")
    match item.get("state"):
        case "claimed":
            lines.append(f"{item['lease_end']}  until then a dispatcher has it; after that the next one takes over")
        case "released":
            lines.append(f"{'now':24}  released: no Region has it, its message is in the master queue")
        case "rejected":
            lines.append(f"{'now':24}  rejected: its message is in the dead-letter queue")
    if "expires_at" in item:
        lines.append(f"{item['expires_at']}  until then a duplicate is known as one")
    return lines


def _readable(name: str, value: str) -> str:
    if name in _TIMES and float(value) > 0:
        return datetime.fromtimestamp(float(value), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
