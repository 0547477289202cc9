"""Polls the master queue for as many messages as there is room for, and carries each delivery.

Nobody polls while nothing could be done with what comes: then messages stay in the master, unreceived, and none of
their receives is spent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import structlog

from dispatcher.board import Board
from dispatcher.clock import Clock
from dispatcher.errors import AwsError, Cause, Stage
from dispatcher.gate import Gate
from dispatcher.inflight import Flight, InFlight, Step
from dispatcher.lifecycle import Lifecycle
from dispatcher.model import Choice, Delivery, Outcome
from dispatcher.pipeline import Going, Pipeline, State
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.receives import RECEIVE_MAX, Receives
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

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
                polls = _Polls(group, Receives(self.pollers), partial(self._poll, carriers=carriers))
                polls.open()
                await self.lifecycle.until_draining()
                deadline = asyncio.get_running_loop().time() + self.drain_s
                await _wait_until(deadline, polls.tasks)  # an open poll is never cancelled while there is time
                while carriers and await _wait_until(deadline, carriers):
                    pass
                for poll in polls.tasks:
                    poll.cancel()
        finally:  # also when another loop's fault ends the process: what can be handed back is
            await self._cut_off(carriers)

    async def _poll(self, name: str, polls: "_Polls", carriers: set[asyncio.Task[None]]) -> None:
        self.heartbeats.expect(name, self.poll_limit_s)
        failures = 0
        while not (self.lifecycle.draining or polls.dismisses(name)):
            self.heartbeats.beat(name)
            most = min(RECEIVE_MAX, self.gate.room())
            if most == 0:
                await self.board.change()
                await asyncio.sleep(0)  # what is parked here was woken too: it takes its places first
                continue
            self.in_flight.ask(most)
            asked_at = asyncio.get_running_loop().time()
            try:
                deliveries = await self.receive(most)
            except AwsError as fault:
                self.metrics.error(Stage.RECEIVE, fault.cause)
                log.warning("poll.failed", fault=str(fault))
                deliveries = []
                failures += 1
            else:
                failures = 0
                self.metrics.last_poll.set(self.clock.local())
            finally:
                self.in_flight.answered(most)
            self.metrics.received.inc(len(deliveries))
            self._take(deliveries, asked_at, carriers)
            pause_s = polls.receives.came(len(deliveries))
            if not self.lifecycle.draining:
                polls.open()
            if failures:
                await asyncio.sleep(backoff_s(failures - 1, self.random))
            elif pause_s:
                await asyncio.sleep(pause_s)
            elif not deliveries and asyncio.get_running_loop().time() < asked_at + EMPTY_POLL_S:
                # no long poll: it was set to 0, or SQS has 120,000 of the queue's messages in flight
                await asyncio.sleep(EMPTY_POLL_S * self.random.uniform(0.8, 1.2))
        self.heartbeats.forget(name)

    def _take(self, deliveries: Sequence[Delivery], asked_at: float, carriers: set[asyncio.Task[None]]) -> None:
        # SQS counts from when it handed the messages out, which may be any moment since the poll was opened
        visible_until = asked_at + self.pipeline.terms.visibility_s
        now = asyncio.get_running_loop().time()
        flights = [Flight(delivery, received_at=now, visible_until=visible_until) for delivery in deliveries]
        for flight in flights:
            self.in_flight.add(flight)
        lots, alone = self.pipeline.sort(flights)
        for lot in lots:
            _start(self._carry_together(lot, carriers), carriers)
        for flight in alone:
            _start(self._carry(flight), carriers)

    async def _carry_together(self, lot: Sequence[Going[Choice]], carriers: set[asyncio.Task[None]]) -> None:
        staying = [flight for flight, _, _ in lot]

        def part(flight: Flight, state: State) -> None:
            staying.remove(flight)
            _start(self._carry(flight, state), carriers)

        try:
            await self.pipeline.carry_together(lot, part)
        except asyncio.CancelledError:
            await asyncio.gather(*map(self._hand_back, staying))
        except Exception:
            for flight in staying:
                self._failed(flight)
        else:
            self._ended(staying, Outcome.DISPATCHED)

    async def _carry(self, flight: Flight, state: State = None) -> None:
        """Carry one delivery to its end. A bug met on the way costs this delivery alone: it is left to redrive."""
        try:
            outcome = await self.pipeline.carry(flight, state)
        except asyncio.CancelledError:
            await self._hand_back(flight)
        except Exception:
            self._failed(flight)
        else:
            self._ended([flight], outcome)

    async def _hand_back(self, flight: Flight) -> None:
        try:
            outcome = await self.pipeline.hand_back(flight)
        except Exception:
            self._failed(flight)
        else:
            self._ended([flight], outcome)

    def _failed(self, flight: Flight) -> None:
        self.metrics.error(Stage.ROUTE, Cause.UNEXPECTED)
        log.exception("message.failed", message_id=flight.delivery.message_id, step=flight.step.name)
        self._ended([flight], Outcome.FAILED)

    def _ended(self, flights: Sequence[Flight], outcome: Outcome) -> None:
        self.board.unbook(*flights)
        for flight in flights:
            flight.step = Step.ENDED
            self.in_flight.remove(flight)
        self.metrics.messages.labels(outcome).inc(len(flights))
        if outcome is Outcome.DISPATCHED:
            now = asyncio.get_running_loop().time()
            self.metrics.dispatch_duration.observe_all([now - flight.received_at for flight in flights])

    async def _cut_off(self, carriers: set[asyncio.Task[None]]) -> None:
        """At the deadline: cut off what is under way; each hands back what it can."""
        if not carriers:
            return
        log.warning("intake.cut_off", unfinished=len(self.in_flight))
        for carrier in carriers:
            carrier.cancel()
        await asyncio.wait(set(carriers), timeout=HAND_BACK_S)
        if not carriers:  # whose carrier had not taken its first step is still here
            await asyncio.gather(*map(self._hand_back, self.in_flight))
        if left := len(self.in_flight):
            log.error("intake.not_handed_back", count=left, hint="they return when their visibility ends")


class _Polls:
    """The pollers at work: as many as `receives` wants."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        receives: Receives,
        poll: Callable[[str, "_Polls"], Coroutine[Any, Any, None]],
    ) -> None:
        self._group = group
        self.receives = receives
        self._poll = poll
        self._at_work: dict[str, asyncio.Task[None]] = {}

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        return set(self._at_work.values())

    def open(self) -> None:
        """Start what is wanted and not there."""
        for name in (f"poller-{n}" for n in range(self.receives.wanted)):
            if name not in self._at_work and len(self._at_work) < self.receives.wanted:
                self._at_work[name] = self._group.create_task(self._poll(name, self), name=name)

    def dismisses(self, name: str) -> bool:
        """Whether there are more than are wanted: then whoever asks has to go."""
        if len(self._at_work) <= self.receives.wanted:
            return False
        del self._at_work[name]
        return True


def _start(carrying: Coroutine[Any, Any, None], carriers: set[asyncio.Task[None]]) -> None:
    carrier = asyncio.get_running_loop().create_task(carrying)
    carriers.add(carrier)
    carrier.add_done_callback(carriers.discard)


async def _wait_until(deadline: float, tasks: set[asyncio.Task[None]]) -> bool:
    """Wait for the tasks there are now; return False once the deadline (loop time) has passed."""
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        return False
    if tasks:
        await asyncio.wait(set(tasks), timeout=left)
    return True
