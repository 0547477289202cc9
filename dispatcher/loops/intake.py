"""Polls the master queue for as many messages as there is room for, and carries each delivery.

Nobody polls while nothing could be done with what comes: then messages stay in the master, unreceived, and none of
their receives is spent.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import structlog

from dispatcher.board import Board
from dispatcher.clock import Clock
from dispatcher.errors import AwsError, Cause, Stage
from dispatcher.gate import Gate
from dispatcher.inflight import Flight, InFlight, Step
from dispatcher.lifecycle import Lifecycle
from dispatcher.model import Delivery, Outcome
from dispatcher.pipeline import Pipeline
from dispatcher.policy.backoff import backoff_s
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

RECEIVE_MAX = 10  # SQS: messages a receive (ReceiveMessage reference)
EMPTY_POLL_S = 0.9  # an empty answer that comes sooner is no reason to ask again at once
HAND_BACK_S = 8.0  # for what the drain's deadline cuts off; the orchestrator kills soon after it


@dataclass(frozen=True, slots=True)
class Intake:
    receive: Callable[[int], Awaitable[list[Delivery]]]
    pipeline: Pipeline
    board: Board
    gate: Gate
    in_flight: InFlight
    lifecycle: Lifecycle
    heartbeats: Heartbeats
    metrics: Metrics
    clock: Clock
    random: Random
    pollers: int
    poll_limit_s: float  # a poll that takes longer than this is stuck
    drain_s: float

    async def run(self) -> None:
        """Poll until draining, carry what came, and return when every delivery has ended or was handed back."""
        carriers: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                names = [f"poller-{n}" for n in range(self.pollers)]
                polls = {group.create_task(self._poll(name, carriers), name=name) for name in names}
                await self.lifecycle.until_draining()
                deadline = asyncio.get_running_loop().time() + self.drain_s
                await _wait_until(deadline, polls)  # an open poll is never cancelled while there is time
                while carriers and await _wait_until(deadline, carriers):
                    pass
                for poll in polls:
                    poll.cancel()
        finally:  # also when another loop's fault ends the process: what can be handed back is
            await self._cut_off(carriers)

    async def _poll(self, name: str, carriers: set[asyncio.Task[None]]) -> None:
        self.heartbeats.expect(name, self.poll_limit_s)
        failures = 0
        while not self.lifecycle.draining:
            self.heartbeats.beat(name)
            count = min(RECEIVE_MAX, self.gate.room())
            if count == 0:
                await self.board.change()
                await asyncio.sleep(0)  # what is parked here was woken too: it takes its places first
                continue
            self.in_flight.ask(count)
            asked_at = asyncio.get_running_loop().time()
            try:
                deliveries = await self.receive(count)
            except AwsError as fault:
                self.metrics.error(Stage.RECEIVE, fault.cause)
                log.warning("poll.failed", fault=str(fault))
                deliveries = []
                failures += 1
            else:
                failures = 0
                self.metrics.last_poll.set(self.clock.local())
            finally:
                self.in_flight.answered(count)
            self.metrics.received.inc(len(deliveries))
            for delivery in deliveries:
                self._take(delivery, asked_at, carriers)
            if failures:
                await asyncio.sleep(backoff_s(failures - 1, self.random))
            elif not deliveries and asyncio.get_running_loop().time() < asked_at + EMPTY_POLL_S:
                # no long poll: it was set to 0, or SQS has 120,000 of the queue's messages in flight
                await asyncio.sleep(EMPTY_POLL_S * self.random.uniform(0.8, 1.2))
        self.heartbeats.forget(name)

    def _take(self, delivery: Delivery, asked_at: float, carriers: set[asyncio.Task[None]]) -> None:
        # SQS counts from when it handed the message out, which may be any moment since the poll was opened
        visible_until = asked_at + self.pipeline.terms.visibility_s
        flight = Flight(delivery, received_at=asyncio.get_running_loop().time(), visible_until=visible_until)
        self.in_flight.add(flight)
        carrier = asyncio.create_task(self._carry(flight), name=f"carry:{delivery.message_id}")
        carriers.add(carrier)
        carrier.add_done_callback(carriers.discard)

    async def _carry(self, flight: Flight) -> None:
        """Carry one delivery to its end. A bug met on the way costs this delivery alone: it is left to redrive."""
        try:
            outcome = await self.pipeline.carry(flight)
        except asyncio.CancelledError:
            outcome = await self.pipeline.hand_back(flight)
        except Exception:
            self.metrics.error(Stage.ROUTE, Cause.UNEXPECTED)
            log.exception("message.failed", message_id=flight.delivery.message_id, step=flight.step.name)
            outcome = Outcome.FAILED
        finally:
            flight.step = Step.ENDED
            self.in_flight.remove(flight)
            self.board.notify()
        self.metrics.messages.labels(outcome).inc()
        if outcome is Outcome.DISPATCHED:
            self.metrics.dispatch_duration.observe(asyncio.get_running_loop().time() - flight.received_at)

    async def _cut_off(self, carriers: set[asyncio.Task[None]]) -> None:
        """At the deadline: cut off what is under way; each hands back what it can."""
        if not carriers:
            return
        log.warning("intake.cut_off", unfinished=len(carriers))
        for carrier in carriers:
            carrier.cancel()
        await asyncio.wait(set(carriers), timeout=HAND_BACK_S)
        if carriers:
            log.error("intake.not_handed_back", count=len(carriers), hint="they return when their visibility ends")


async def _wait_until(deadline: float, tasks: set[asyncio.Task[None]]) -> bool:
    """Wait for the tasks there are now; return False once the deadline (loop time) has passed."""
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        return False
    if tasks:
        await asyncio.wait(set(tasks), timeout=left)
    return True
