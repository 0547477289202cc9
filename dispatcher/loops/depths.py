"""Keeps the board of regional depths fresh, and the gauges of the other queues."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random

import structlog

from dispatcher.board import READINGS_PER_TTL, Board
from dispatcher.clock import Clock
from dispatcher.errors import AwsError, Stage
from dispatcher.model import Depth, Region
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

OUT_OF_PLAY_S = 4.0  # a Region that gets nothing is read this often, jitter and all within 5 s
LOOK_S = 0.25
STUCK_S = 60.0


@dataclass(frozen=True, slots=True)
class DepthRefresher:
    """Reads each Region on a beat of its own, so that a slow Region delays no other."""

    board: Board
    read: Mapping[Region, Callable[[], Awaitable[Depth]]]
    metrics: Metrics
    heartbeats: Heartbeats
    clock: Clock
    random: Random
    ttl_s: float

    async def run(self) -> None:
        """Run until cancelled. A Region that cannot be read keeps its last depth and goes stale, then unknown."""
        async with asyncio.TaskGroup() as group:
            for region, read in self.read.items():
                group.create_task(self._watch(region, read), name=f"depth:{region}")

    async def _watch(self, region: Region, read: Callable[[], Awaitable[Depth]]) -> None:
        interval_s = self.ttl_s / READINGS_PER_TTL
        name = f"depth:{region}"
        self.heartbeats.expect(name, interval_s + STUCK_S)
        loop = asyncio.get_running_loop()
        while True:
            self.heartbeats.beat(name)
            begun = self.board.begin_reading(region)
            try:
                depth = await read()
            except AwsError as fault:
                self.metrics.error(Stage.DEPTH, fault.cause)
                log.warning("depth.unread", region=region, fault=str(fault))
            else:
                self.board.post(region, depth, begun)
                self.metrics.depth_read_at.labels(region).set(self.clock.local())
                show_depth(self.metrics, "regional", region, depth)
            jitter = self.random.uniform(0.8, 1.2)
            asked_at = loop.time()
            while loop.time() < asked_at + interval_s * jitter:
                sooner = loop.time() >= asked_at + OUT_OF_PLAY_S * jitter and self.board.out_of_play(region)
                if sooner:
                    break
                await asyncio.sleep(min(LOOK_S, interval_s / 10))


@dataclass(frozen=True, slots=True)
class QueueGauges:
    """Reads the queues that no choice depends on: the master and the dead-letter queues."""

    read: Mapping[tuple[str, Region], Callable[[], Awaitable[Depth | None]]]
    metrics: Metrics
    heartbeats: Heartbeats
    random: Random
    interval_s: float

    async def run(self) -> None:
        """Run until cancelled. A queue that cannot be read keeps its last value."""
        self.heartbeats.expect("gauges", self.interval_s + STUCK_S)
        while True:
            self.heartbeats.beat("gauges")
            await asyncio.gather(*(self._show(*queue, read) for queue, read in self.read.items()))
            await asyncio.sleep(self.interval_s * self.random.uniform(0.8, 1.2))

    async def _show(self, queue: str, region: Region, read: Callable[[], Awaitable[Depth | None]]) -> None:
        try:
            depth = await read()
        except AwsError as fault:
            self.metrics.error(Stage.DEPTH, fault.cause)
            log.warning("gauge.unread", queue=queue, region=region, fault=str(fault))
        else:
            if depth is not None:
                show_depth(self.metrics, queue, region, depth)


def show_depth(metrics: Metrics, queue: str, region: Region, depth: Depth) -> None:
    for state, count in (("visible", depth.visible), ("in_flight", depth.in_flight), ("delayed", depth.delayed)):
        metrics.queue_messages.labels(queue, region, state).set(count)
