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
from dispatcher.demo.gpus import GPUS_EACH, Gpus, NoTopicError, make_topic
from dispatcher.demo.traffic import traffic
from dispatcher.demo.worker import Callbacks, Job
from dispatcher.errors import AwsError, DispatcherError
from dispatcher.model import Outgoing, Region
from dispatcher.settings import Settings, is_aws

WORKERS = (24, 12, 8)
"""Of the first Region, the second, …, and again: some Regions have more than others."""
SERVICE_S = 0.5
INTERRUPTION_S = 120.0  # mean time between two
OUTAGE_S = 60.0  # how long the GPUs stay away
LEFT = GPUS_EACH  # of a Region's GPUs
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
    async with AsyncExitStack() as stack:
        regions: list[Gpus] = []
        for (region, rules), gpus in zip(settings.regions.items(), itertools.cycle(WORKERS), strict=False):
            results = _Results(region, served)
            there = Gpus(region, rules.queue_url, SERVICE_S, random, results, Callbacks())
            regions.append(await stack.enter_async_context(there))
            there.add(gpus)
        async with asyncio.TaskGroup() as group:
            group.create_task(_interrupt(regions, random, say))
            group.create_task(_report(served, say))


class _Results:
    """What one Region's workers served, for as long as they run."""

    def __init__(self, region: Region, served: Counter[Region]) -> None:
        self._region = region
        self._served = served
        self._kept: dict[str, str] = {}

    def find(self, job: Job) -> str | None:
        return self._kept.get(job.request_id)

    def keep(self, job: Job, result: str) -> str:
        self._served[self._region] += 1
        return self._kept.setdefault(job.request_id, result)


async def _interrupt(regions: list[Gpus], random: Random, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(random.expovariate(1 / INTERRUPTION_S))
        gpus = random.choice(regions)
        usual = len(gpus)
        gpus.interrupt(LEFT)
        say(f"Spot takes GPUs back: {len(gpus)} of {usual} are left in {gpus.region}")
        await asyncio.sleep(OUTAGE_S)
        gpus.add(usual - len(gpus))
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
    topic: str | None = None
    try:
        topic = await asyncio.to_thread(make_topic, Region(settings.home_region))
    except NoTopicError as fault:
        say(f"the requests name no callback_sns_topic: {fault}")
    sent = failed = 0
    why = ""

    async def send(body: str) -> None:
        nonlocal sent, failed, why
        try:
            await queue.send(Outgoing(body, {}, None))
            sent += 1
        except AwsError as fault:  # said below: a producer goes on
            failed += 1
            why = str(fault)

    async with SendingQueue(settings.master_queue_url, caller) as queue, asyncio.TaskGroup() as group:
        began = said = time.monotonic()
        for number, submission in enumerate(s for n in itertools.count(seed) for s in traffic(1000, n, topic)):
            group.create_task(send(submission.body))
            now = time.monotonic()
            if now - said >= SAY_S:
                said = now
                say(f"messages sent: {sent}" + (f", not sent: {failed} ({why})" if failed else ""))
            await asyncio.sleep(max(0.0, began + (number + 1) / per_second - now))
