"""Validates requests and sends them to the master queue."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from random import SystemRandom

from dispatcher.aws.clients import Clients
from dispatcher.aws.regional import SendingQueue
from dispatcher.errors import AwsError, LeaseTooShortError, PoisonError
from dispatcher.model import Attribute, Outgoing, Region
from dispatcher.policy.decode import GENERATION, decode
from dispatcher.settings import Settings

POOL = 10
ATTEMPTS = 3
IN_HAND = 200  # sends under way at once


def validated(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the bodies, one per line that is not blank, and the faults: line number and reason."""
    bodies, faults = [], []
    for number, line in enumerate(lines, 1):
        body = line.strip()
        if not body:
            continue
        try:
            decode(body, {})
        except PoisonError as poison:
            faults.append(f"line {number}: {poison.reason}")
        bodies.append(body)
    return bodies, faults


def made_up(count: int) -> list[str]:
    """Return `count` valid requests, for trying things out."""
    random = SystemRandom()
    numbers = (f"{random.getrandbits(64):016x}" for _ in range(count))
    return [
        json.dumps(
            {"request_id": f"req-{n}", "model_name": "gpt-l-7b", "input_data_url": f"s3://inference-inputs/{n}.json"}
        )
        for n in numbers
    ]


async def submit(
    settings: Settings, clients: Clients, bodies: Sequence[str], *, again: bool, sent: Callable[[], None]
) -> list[str]:
    """Send them all; return the faults of those that were not, with the place of each. `sent` hears of each that was.

    `again`: dispatch requests that were dispatched before once more, on purpose.
    """
    region = Region(settings.home_region)
    caller = await clients.open("sqs", region, pool=POOL, attempts=ATTEMPTS)
    # any later number is higher than any earlier one, and every generation is higher than none
    attributes = {GENERATION: Attribute("Number", str(int(time.time())))} if again else {}
    room = asyncio.Semaphore(IN_HAND)
    faults: list[str] = []

    async def one(queue: SendingQueue, number: int, body: str) -> None:
        try:
            await queue.send(Outgoing(body, attributes, None))
            sent()
        except (AwsError, LeaseTooShortError) as fault:
            faults.append(f"request {number}: {fault}")
        finally:
            room.release()

    async with SendingQueue(settings.master_queue_url, caller) as queue, asyncio.TaskGroup() as group:
        for number, body in enumerate(bodies, 1):
            await room.acquire()
            group.create_task(one(queue, number, body))
    return faults
