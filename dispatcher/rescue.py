"""Moves messages out of a Region that serves none: receive → claim the move → send → confirm it → delete.

The same order as the main path, for the same reasons: a message leaves a Region's queue only after another Region has
accepted it and the ledger says so, or after the ledger said that its request is dispatched elsewhere. A crash anywhere
loses nothing; it can duplicate only what was between its send and the end of its move, or between that and its delete.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol
from uuid import uuid4

import structlog

from dispatcher.board import Board
from dispatcher.clock import Clock
from dispatcher.errors import (
    AmbiguousError,
    AwsError,
    HeldOffError,
    LeaseLostError,
    LeaseTooShortError,
    PoisonError,
    Stage,
)
from dispatcher.inflight import Flight
from dispatcher.lifecycle import Lifecycle
from dispatcher.model import (
    Delivery,
    Elsewhere,
    LapsedMove,
    Message,
    Move,
    MoveAnswer,
    Outgoing,
    Priority,
    Region,
    Unmovable,
)
from dispatcher.pipeline import Queue, Terms, attributes_of, outgoing
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.decode import decode
from dispatcher.policy.envelope import BYTES_MAX
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

NAME = "rescue"
VISIBILITY_S = 60  # most, of what is received to be moved: workers see it again soon if we die
BATCH = 10  # messages a second and Region, so that a rescue never floods the others
BEAT_S = 1.0
STUCK_S = 4 * VISIBILITY_S
HIDDEN_S, HIDDEN_MAX_S = {1: 900, 2: 14400}, 43200 - VISIBILITY_S
"""Seconds that what was not moved is hidden, by its receives so far. SQS: twelve hours from the receive at most, and
after three receives the next one sends it to the dead-letter queue.
"""
PAUSE_MAX_S = 300.0  # after nothing could be moved: every receive is one of few
FINISH_S = 8.0  # for moves under way when the process ends


def visibility_s(terms: Terms) -> int:
    """Return how long consumers must hide what they receive for a rescue."""
    return min(VISIBILITY_S, terms.visibility_s)


class MoveLedger(Protocol):
    async def begin_move(self, move: Move, over: LapsedMove | None = None) -> MoveAnswer: ...
    async def end_move(self, move: Move, sqs_message_id: str) -> None: ...
    async def abandon_move(self, move: Move) -> None: ...


class Consumer(Protocol):
    async def receive(self, count: int) -> list[Delivery]: ...
    async def acknowledge(self, delivery: Delivery) -> None: ...
    async def keep_invisible(self, delivery: Delivery, seconds: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Rescue:
    ledger: MoveLedger
    consumers: Callable[[Region], Sequence[Consumer]]
    regional: Callable[[Region, Priority], Queue]
    board: Board
    lifecycle: Lifecycle
    terms: Terms
    clock: Clock
    metrics: Metrics
    heartbeats: Heartbeats
    random: Random
    bytes_max: int = BYTES_MAX
    fair: bool = False
    _pauses: dict[Region, tuple[float, float]] = field(default_factory=dict)  # until when (loop time), how long

    async def run(self) -> None:
        """Run until cancelled; what is under way then is finished. A process that drains begins nothing new."""
        self.heartbeats.expect(NAME, STUCK_S)
        while True:
            self.heartbeats.beat(NAME)
            for region in [] if self.lifecycle.draining else self.board.rescuable():
                self.heartbeats.beat(NAME)
                batch = asyncio.create_task(self._rescue(region), name=f"rescue:{region}")
                try:
                    await asyncio.shield(batch)
                except asyncio.CancelledError:
                    await asyncio.wait([batch], timeout=FINISH_S)
                    raise
            await asyncio.sleep(BEAT_S)

    async def _rescue(self, region: Region) -> None:
        """Move up to a batch out of a Region, as far as others have room."""
        until, pause_s = self._pauses.get(region, (0.0, BEAT_S))
        if _now() < until:
            return
        tried = moved = 0
        for consumer in self.consumers(region):
            room, _ = self.board.rescue_room(region)
            count = min(BATCH - tried, room)
            if count <= 0:
                break
            try:
                received_at = _now()
                deliveries = await consumer.receive(count)
            except AwsError as fault:
                self.metrics.error(Stage.RECEIVE, fault.cause)
                log.warning("rescue.unread", region=region, fault=str(fault))
                continue
            visible_until = received_at + visibility_s(self.terms)
            flights = [Flight(delivery, received_at, visible_until) for delivery in deliveries]
            outcomes = await asyncio.gather(*(self._carry(region, consumer, flight) for flight in flights))
            tried += len(outcomes)
            moved += sum(outcome != "left" for outcome in outcomes)
        if tried and not moved:
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            self._pauses[region] = (_now() + pause_s, pause_s)
            log.warning("rescue.paused", region=region, seconds=pause_s, left=tried)
        elif moved:
            self._pauses.pop(region, None)

    async def _carry(self, source: Region, consumer: Consumer, flight: Flight) -> str:
        try:
            outcome = await self._move(source, consumer, flight)
        except (AwsError, LeaseLostError) as fault:  # its visibility and the move's lease end soon
            log.warning("rescue.left", region=source, message_id=flight.delivery.message_id, fault=str(fault))
            outcome = "left"
        except Exception:  # a bug met with one message is that message's
            log.exception("rescue.failed", region=source, message_id=flight.delivery.message_id)
            outcome = "left"
        finally:
            self.board.unbook(flight)
        self.metrics.rescued.labels(source, outcome).inc()
        return outcome

    async def _move(self, source: Region, consumer: Consumer, flight: Flight) -> str:
        """Return how it ended: moved, copy_deleted or left. Raises AwsError, LeaseLostError: left, too."""
        try:
            message = decode(flight.delivery.body, flight.delivery.attributes)
        except PoisonError:
            return await self._leave(consumer, flight)
        _, out = self.board.rescue_room(source)
        choice = self.board.book(flight, message.model_name, message.priority, without=out)
        if choice is None:
            return await self._leave(consumer, flight)
        lease_end = self.clock.now() + flight.visible_until - _now() - self.terms.margin_s
        move = Move(message.request_id, message.work, uuid4().hex, source, choice, lease_end)
        try:
            answer = await self.ledger.begin_move(move)
        except AwsError as fault:
            self.metrics.error(Stage.LEDGER, fault.cause)
            return await self._leave(consumer, flight)
        if isinstance(answer, LapsedMove):  # a copy may be where the last one was going: then there once more
            choice = self.board.follow(flight, message.model_name, answer.region, without=out)
            move = replace(move, token=uuid4().hex, choice=choice)  # the first one may still be on its way
            answer = await self.ledger.begin_move(move, answer)
        match answer:
            case Elsewhere():
                await self._delete(source, consumer, flight)
                return "copy_deleted"
            case Move():
                return await self._send(message, move, consumer, flight)
            case Unmovable(why):
                log.info("rescue.not_moved", request_id=message.request_id, region=source, why=why)
        return await self._leave(consumer, flight)

    async def _leave(self, consumer: Consumer, flight: Flight) -> str:
        """Hide what cannot be moved for long, and longer each time: every receive is one of few."""
        seconds = HIDDEN_S.get(flight.delivery.receives, HIDDEN_MAX_S)
        await consumer.keep_invisible(flight.delivery, seconds)
        return "left"

    async def _send(self, message: Message, move: Move, consumer: Consumer, flight: Flight) -> str:
        try:
            sqs_message_id = await self.regional(move.choice.region, message.priority).send(
                self._outgoing(message, move, flight)
            )
        except AmbiguousError as fault:
            self.metrics.error(Stage.SEND, fault.cause)  # what is counted here bounds the copies (docs/operations.md)
            self.board.accepted(flight)  # perhaps it was
            raise
        except (AwsError, HeldOffError, LeaseTooShortError) as fault:
            if isinstance(fault, AwsError):
                self.metrics.error(Stage.SEND, fault.cause)
            log.info("rescue.not_sent", request_id=message.request_id, region=move.choice.region, fault=str(fault))
            await self.ledger.abandon_move(move)
            return await self._leave(consumer, flight)
        self.board.accepted(flight)
        await self._until_visible(flight, lambda: self.ledger.end_move(move, sqs_message_id))
        log.info(
            "message.rescued",
            request_id=message.request_id,
            source=move.source,
            region=move.choice.region,
            sqs_message_id=sqs_message_id,
        )
        await self._delete(move.source, consumer, flight)
        return "moved"

    async def _delete(self, source: Region, consumer: Consumer, flight: Flight) -> None:
        await self._until_visible(flight, lambda: consumer.acknowledge(flight.delivery))
        self.board.count(source, -1)

    async def _until_visible(self, flight: Flight, call: Callable[[], Awaitable[None]]) -> None:
        """Try a call that is safe to repeat until it is done, or until workers may see the message again."""
        attempt = 0
        while True:
            try:
                return await call()
            except AwsError:
                wait_s = backoff_s(attempt, self.random)
                if _now() + wait_s >= flight.visible_until:
                    raise
            await asyncio.sleep(wait_s)
            attempt += 1

    def _outgoing(self, message: Message, move: Move, flight: Flight) -> Outgoing:
        def departs() -> None:
            if move.lease_end - self.clock.now() <= self.terms.send_timeout_s:
                raise LeaseTooShortError("the move's lease would not outlast the send")

        delivery = flight.delivery
        source_id = delivery.attributes.get("dispatcher.source_message_id")
        attempt = delivery.attributes.get("dispatcher.attempt")
        ours = attributes_of(
            message,
            move.choice.region,
            str(source_id.value) if source_id else delivery.message_id,
            self.clock.now(),
            int(attempt.value) if attempt and str(attempt.value).isdigit() else 1,
        )
        return outgoing(message, delivery, ours, departs, fair=self.fair, bytes_max=self.bytes_max)


def _now() -> float:
    return asyncio.get_running_loop().time()
