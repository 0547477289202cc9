"""Lowers a Region's capacity when Spot says that it takes instances back, two minutes before the drain shows it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import structlog

from dispatcher.board import Board
from dispatcher.errors import AwsError, Stage
from dispatcher.model import Delivery, Region
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.interruption import interruption
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

NAME = "interruptions"
BATCH = 10  # SQS: messages a receive
PAUSE_S = 1.0  # after an empty answer, which comes at once where long polls are off
REMEMBERED = 1000  # instances: an event may come twice


@dataclass(frozen=True, slots=True)
class InterruptionWatch:
    """`instances`: how many each Region has as a rule. One dispatcher hears of an event, and tells the others."""

    receive: Callable[[int], Awaitable[list[Delivery]]]
    acknowledge: Callable[[Delivery], Awaitable[None]]
    instances: Mapping[Region, int]
    board: Board
    heartbeats: Heartbeats
    metrics: Metrics
    random: Random
    poll_limit_s: float  # a poll that takes longer than this is stuck
    now: Callable[[], float]  # loop time
    _seen: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    async def run(self) -> None:
        """Run until cancelled. While the queue does not answer, capacity is what the drain shows."""
        self.heartbeats.expect(NAME, self.poll_limit_s)
        failures = 0
        while True:
            self.heartbeats.beat(NAME)
            try:
                deliveries = await self.receive(BATCH)
                for delivery in deliveries:
                    if self._take(delivery):
                        await self.acknowledge(delivery)
                failures = 0
                if not deliveries:
                    await asyncio.sleep(PAUSE_S)
            except AwsError as fault:
                self.metrics.error(Stage.RECEIVE, fault.cause)
                log.warning("interruptions.unread", fault=str(fault))
                await asyncio.sleep(backoff_s(failures, self.random))
                failures += 1

    def _take(self, delivery: Delivery) -> bool:
        """Return whether it was one of EventBridge's events; anything else is not ours to delete."""
        told = interruption(delivery.body)
        if told is None:
            log.warning(
                "interruption.unknown", message_id=delivery.message_id, hint="send only such events to this queue"
            )
            return False
        if told.region not in self.instances:
            log.info("interruption.ignored", region=told.region)
        elif told.instance not in self._seen:
            self._seen.append(told.instance)
            capacity = self.board.capacity(told.region)
            capacity.lose(1 / self.instances[told.region], self.now())
            log.warning(
                "interruption.coming", region=told.region, instance=told.instance, capacity=capacity.now(self.now())
            )
        return True
