"""Both ends of the system for whoever tries it out: a producer, and workers that lose their Spot GPUs now and then.

On an emulator only: these workers throw away what they take.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from random import Random

from dispatcher.aws.clients import Caller, Clients
from dispatcher.aws.regional import SendingQueue
from dispatcher.demo.gpus import Gpus, consumer
from dispatcher.demo.traffic import traffic
from dispatcher.errors import AwsError, DispatcherError
from dispatcher.model import Delivery, Outgoing, Region
from dispatcher.settings import Settings, is_aws

WORKERS = (24, 14, 8)
"""Of the first Region, the second, …, and again: some Regions have more than others."""
SERVICE_S = 0.5
INTERRUPTION_S = 120.0  # mean time between two
OUTAGE_S = 60.0  # how long the GPUs stay away
LEFT = 0.25  # of a Region's workers
SAY_S = 10.0


class OnAwsError(DispatcherError):
    """The endpoint is AWS itself."""


async def _home(settings: Settings, clients: Clients) -> Caller:
    """Return a client of the home Region's SQS; raise OnAwsError."""
    caller = await clients.open("sqs", Region(settings.home_region), pool=10, attempts=3)
    if is_aws(caller.endpoint):
        raise OnAwsError(f"{caller.endpoint} is AWS itself: this is for emulators; set AWS_ENDPOINT_URL to one")
    return caller


async def work(settings: Settings, clients: Clients, seed: int, say: Callable[[str], None]) -> None:
    """Serve every Region's queue until cancelled; say every ten seconds what was done. Raises OnAwsError, AwsError."""
    await _home(settings, clients)
    random = Random(seed)
    served: Counter[Region] = Counter()

    def count(region: Region, _: Delivery, __: float) -> None:
        served[region] += 1

    async with AsyncExitStack() as stack:
        regions: list[Gpus] = []
        for (region, rules), workers in zip(settings.regions.items(), itertools.cycle(WORKERS), strict=False):
            queue = await consumer(clients, region, rules.queue_url, stack)
            regions.append(Gpus(region, queue, workers, SERVICE_S, random, count))
        async with asyncio.TaskGroup() as group:
            for gpus in regions:
                group.create_task(gpus.run())
            group.create_task(_interrupt(regions, random, say))
            group.create_task(_report(served, say))


async def _interrupt(regions: list[Gpus], random: Random, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(random.expovariate(1 / INTERRUPTION_S))
        gpus = random.choice(regions)
        usual = gpus.workers
        await gpus.interrupt(round(usual * LEFT))
        say(f"Spot takes GPUs back: {gpus.workers} of {usual} are left in {gpus.region}")
        await asyncio.sleep(OUTAGE_S)
        gpus.workers = usual
        say(f"{usual} GPUs again in {gpus.region}")


async def _report(served: Mapping[Region, int], say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(SAY_S)
        say("served: " + (", ".join(f"{count} in {region}" for region, count in served.items()) or "nothing yet"))


async def produce(
    settings: Settings, clients: Clients, per_second: float, seed: int, say: Callable[[str], None]
) -> None:
    """Send requests at a steady rate until cancelled, duplicates and bad ones among them. Raises OnAwsError."""
    caller = await _home(settings, clients)
    sent = failed = 0

    async def send(body: str) -> None:
        nonlocal sent, failed
        try:
            await queue.send(Outgoing(body, {}, None))
            sent += 1
        except AwsError:
            failed += 1  # said below: a producer goes on

    async with SendingQueue(settings.master_queue_url, caller) as queue, asyncio.TaskGroup() as group:
        began = said = time.monotonic()
        for number, submission in enumerate(s for n in itertools.count(seed) for s in traffic(1000, n)):
            group.create_task(send(submission.body))
            now = time.monotonic()
            if now - said >= SAY_S:
                said = now
                say(f"sent {sent} messages" + (f", {failed} were not" if failed else ""))
            await asyncio.sleep(max(0.0, began + (number + 1) / per_second - now))
