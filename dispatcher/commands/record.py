"""Writes down what a live system does, for `dispatcher simulate recorded`: depths, and what all dispatchers sent."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from dispatcher.aws.clients import Clients
from dispatcher.aws.fleet import FleetItem
from dispatcher.aws.queues import read_depths
from dispatcher.commands.advice import explained, naming
from dispatcher.errors import AwsError
from dispatcher.model import Depth, Region
from dispatcher.policy.fleet import Report
from dispatcher.settings import Settings

POOL = 4
ATTEMPTS = 2


async def record(
    settings: Settings,
    clients: Clients,
    out: TextIO,
    *,
    seconds: float,
    every_s: float,
    wrote: Callable[[bool], None],
    say: Callable[[str], None],
) -> None:
    """Write a line of JSON every so often; `wrote` hears whether a Region is missing in it.

    `say` is told, once for each such Region, why. Raises UnusableError if the fleet's reports cannot be read at all.
    """
    table = await clients.open("dynamodb", Region(settings.home_region), pool=POOL, attempts=ATTEMPTS)
    fleet = FleetItem(settings.ledger_table, table, clients.clock)
    callers = {region: await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS) for region in settings.regions}
    sent = dict.fromkeys(settings.regions, 0)
    with naming(f"the table {settings.ledger_table}", "DISPATCHER_LEDGER_TABLE"):
        seen: Mapping[str, Report] = await fleet.look()
    said: set[Region] = set()
    began = time.monotonic()
    for number in range(int(seconds / every_s) + 1):
        await asyncio.sleep(max(0.0, began + number * every_s - time.monotonic()))
        *depths, reports = await asyncio.gather(
            *(read_depths(callers[region], rules.queue_urls) for region, rules in settings.regions.items()),
            fleet.look(),
            return_exceptions=True,
        )
        if isinstance(reports, dict):
            for region in sent:
                sent[region] += sum(_more(seen.get(name), report, region) for name, report in reports.items())
            seen = reports
        regions = {}
        for region, depth in zip(settings.regions, depths, strict=True):
            if isinstance(depth, Depth):
                regions[region] = {"visible": depth.visible, "in_flight": depth.in_flight, "sent": sent[region]}
            elif not isinstance(depth, AwsError):
                raise TypeError(f"no depth and no fault of AWS: {depth!r}")
            elif region not in said:
                said.add(region)
                say(explained(depth, f"{region} cannot be read", f"DISPATCHER_REGIONS[{region}]"))
        out.write(json.dumps({"at": round(time.time(), 3), "regions": regions}) + "\n")
        out.flush()
        wrote(len(regions) < len(settings.regions))


def _more(before: Report | None, now: Report, region: Region) -> int:
    """What a dispatcher sent since the last look; one that is new began at nothing."""
    return now.now.sent.get(region, 0) - (before.now.sent.get(region, 0) if before else 0)
