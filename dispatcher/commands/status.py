"""What every Region looks like now, or where one request is: read from AWS, with no daemon needed."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dispatcher.aws.clients import Clients
from dispatcher.aws.ledger import read_item
from dispatcher.aws.queues import read_depth
from dispatcher.errors import AwsError
from dispatcher.model import Depth, Region
from dispatcher.policy.breaker import BreakerState
from dispatcher.policy.routing import RegionView, shares
from dispatcher.settings import Settings

POOL = 4
ATTEMPTS = 2
_TIMES = ("claimed_at", "dispatched_at", "lease_end", "expires_at")


async def regions(settings: Settings, clients: Clients) -> dict[str, dict[str, Any]]:
    """Return, by Region, depth, weight, share and health, as a dispatcher that starts now would see them."""
    read = await asyncio.gather(
        *(_depth(clients, region, rules.queue_url) for region, rules in settings.regions.items())
    )
    views = {
        region: RegionView(
            depth=depth if isinstance(depth, Depth) else None,
            age_s=0.0,
            sent_since=0,
            under_way=0,
            breaker=BreakerState.CLOSED,
            weight=settings.regions[region].weight,
            threshold=settings.threshold(region),
            ttl_s=settings.depth_ttl_seconds,
            under_way_max=settings.max_in_flight,
        )
        for region, depth in zip(settings.regions, read, strict=True)
    }
    split = shares(views)
    return {
        region: {
            "depth": view.depth.visible if view.depth else None,
            "in_flight": view.depth.in_flight if view.depth else None,
            "delayed": view.depth.delayed if view.depth else None,
            "threshold": view.threshold,
            "weight": view.weight,
            "share": round(split.get(region, 0.0), 4),
            "health": view.health if isinstance(depth, Depth) else f"unreadable: {depth}",
        }
        for (region, view), depth in zip(views.items(), read, strict=True)
    }


async def request(settings: Settings, clients: Clients, request_id: str) -> Mapping[str, Any] | None:
    """Return what the ledger knows of a request, times in RFC 3339; None if it knows nothing. Raises AwsError."""
    table = await clients.open("dynamodb", Region(settings.home_region), pool=POOL, attempts=ATTEMPTS)
    item = await read_item(table, settings.ledger_table, request_id)
    if item is None:
        return None
    return {name: _readable(name, value) for name, value in sorted(item.items())}


async def _depth(clients: Clients, region: Region, url: str) -> Depth | AwsError:
    caller = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
    try:
        return await read_depth(caller, url)
    except AwsError as fault:
        return fault


def _readable(name: str, value: str) -> str:
    if name in _TIMES and float(value) > 0:
        return datetime.fromtimestamp(float(value), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
