"""Simulated Spot GPU workers: each Region's really drain its queue, over the same protocol as real ones."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from random import Random

from dispatcher.aws.clients import Clients
from dispatcher.aws.master import MasterQueue
from dispatcher.errors import AwsError
from dispatcher.model import Delivery, Region


async def consumer(clients: Clients, region: Region, url: str, stack: AsyncExitStack) -> MasterQueue:
    """Return a queue as an ordinary consumer sees it, open until `stack` closes."""
    receiving = await clients.open("sqs", region, pool=2, attempts=1, read_timeout_s=15.0)
    caller = await clients.open("sqs", region, pool=10, attempts=3)
    return await stack.enter_async_context(MasterQueue(url, receiving, caller, wait_s=1, visibility_s=60))


@dataclass(slots=True, eq=False)
class Gpus:
    """One Region's workers. `served` hears of each delivery that a worker has served, and when it began."""

    region: Region
    queue: MasterQueue  # an ordinary consumer of any queue
    workers: int
    service_s: float
    random: Random
    served: Callable[[Region, Delivery, float], None]
    _busy: dict[asyncio.Task[None], Delivery] = field(default_factory=dict)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                idle = self.workers - len(self._busy)
                if idle <= 0:
                    await self._room()
                    continue
                try:
                    deliveries = await self.queue.receive(min(10, idle))
                except AwsError:
                    await asyncio.sleep(0.5)  # the emulator is ending, or busy; a worker just asks again
                    continue
                gone = len(deliveries) - max(0, self.workers - len(self._busy))  # taken back while they polled
                for delivery in deliveries[:gone] if gone > 0 else ():
                    await self._hand_back(delivery)
                for delivery in deliveries[max(0, gone) :]:
                    task = group.create_task(self._serve(delivery))
                    self._busy[task] = delivery
                    task.add_done_callback(self._idle)

    async def _room(self) -> None:
        """Return when a worker may be idle."""
        if self._busy:
            await asyncio.wait(self._busy, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(0.1)  # there is none at all

    async def interrupt(self, left: int) -> int:
        """Spot takes GPUs back until `left` are there: what they work on goes back to the queue. Return how many."""
        busy = list(self._busy.items())
        victims = self.random.sample(busy, round(len(busy) * (self.workers - left) / self.workers))
        self.workers = left
        for task, _ in victims:  # all of them before the first await, or one may finish in between
            task.cancel()
        for _, delivery in victims:
            await self._hand_back(delivery)
        return len(victims)

    async def _hand_back(self, delivery: Delivery) -> None:
        with suppress(AwsError):  # it returns when its visibility ends
            await self.queue.keep_invisible(delivery, 0)

    async def _serve(self, delivery: Delivery) -> None:
        began = time.time()
        await asyncio.sleep(self.service_s * self.random.uniform(0.7, 1.3))
        task = asyncio.current_task()
        if task is not None:
            self._idle(task)  # too late for an interruption to hand it back
        self.served(self.region, delivery, began)
        with suppress(AwsError):  # it comes again then, as to any worker
            await self.queue.acknowledge(delivery)

    def _idle(self, task: asyncio.Task[None]) -> None:
        self._busy.pop(task, None)
