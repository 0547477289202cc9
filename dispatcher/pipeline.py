"""The path of one message: decode → route → claim → send → confirm → acknowledge.

Messages that came together go together, for as long as all goes well: `carry_together`, one call a step. Whoever a step
does not go well for goes on alone from there: `carry`. The order of their lines is the guarantee, and only these two
write it. AWS's faults are met where they happen, by trying again while the delivery stays ours; what ends a delivery
early is an exception with a name.
"""

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import count
from random import Random
from typing import NamedTuple, Protocol

import structlog

from dispatcher.board import Board
from dispatcher.clock import Clock
from dispatcher.errors import (
    AmbiguousError,
    AwsError,
    Cause,
    HeldOffError,
    LeaseLostError,
    LeaseTooShortError,
    PoisonError,
    RefusedError,
    Stage,
)
from dispatcher.inflight import Flight, Step
from dispatcher.model import (
    Attribute,
    Choice,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Delivery,
    DifferentWork,
    Duplicate,
    Held,
    Lapsed,
    Message,
    Outcome,
    Outgoing,
    Priority,
    Region,
    bytes_of,
)
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.decode import decode
from dispatcher.policy.envelope import BYTES_MAX, OURS_BYTES_MAX, forwarded, group, rejected
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

LOST_ANSWERS_MAX = 3
"""Sends under one claim whose answers were lost. Each may have gone through; more would buy copies, not certainty."""
RECEIVE_MAX_S = 43200
"""SQS: the longest that one receive can keep a message, extensions included (ChangeMessageVisibility reference)."""
JUST_PAST_S = 0.1
NAME_SHOWN = 200  # characters of somebody's name for a model; a body has room for a million
SECOND_LOOK_S = 1.0
"""A twin's claim is usually confirmed within a moment: look once more before one of its three receives is spent."""


class Ledger(Protocol):
    async def claim(self, request: ClaimRequest) -> ClaimAnswer: ...
    async def claim_all(self, requests: Sequence[ClaimRequest]) -> Sequence[bool | Exception]: ...
    async def look(self, request: ClaimRequest) -> ClaimAnswer | None: ...
    async def take_over(self, old: Lapsed, request: ClaimRequest) -> Claimed | None: ...
    async def confirm(self, claim: Claimed, sqs_message_id: str) -> None: ...
    async def confirm_all(self, confirmations: Sequence[tuple[Claimed, str]]) -> Sequence[Exception | None]: ...
    async def retarget(self, claim: Claimed, choice: Choice) -> Claimed: ...
    async def renew(self, claim: Claimed, lease_end: float) -> Claimed: ...
    async def release(self, claim: Claimed, *, rejected: bool = False) -> None: ...


class Master(Protocol):
    async def acknowledge(self, delivery: Delivery) -> None: ...
    async def acknowledge_all(self, deliveries: Sequence[Delivery]) -> Sequence[Exception | None]: ...
    async def keep_invisible(self, delivery: Delivery, seconds: int) -> None: ...


class Queue(Protocol):
    async def send(self, out: Outgoing) -> str: ...


class RegionalQueue(Queue, Protocol):
    async def send_all(self, outs: Sequence[Outgoing]) -> Sequence[str | Exception]: ...


class Taken(NamedTuple):
    """A first claim, made together with others', was refused."""

    choice: Choice


class Unsent(NamedTuple):
    """A first send, made together with others', met a fault."""

    claim: Claimed
    fault: Exception


class Sent(NamedTuple):
    """A Region accepted the message."""

    claim: Claimed
    sqs_message_id: str


class Confirmed(NamedTuple):
    """The ledger knows that."""


class Again(NamedTuple):
    """A call made together with others' failed: it is made again, after a moment."""

    state: "Choice | Sent | Confirmed"


State = Choice | Taken | Claimed | Unsent | Sent | Confirmed | Again | Duplicate | Held | None
"""What the last step found, and the next one goes by; None: it is to be routed."""
Part = Callable[[Flight, State], None]
Chosen = tuple[Message, Choice]
type Going[S] = tuple[Flight, Message, S]
"""One of those that go together, and how far it has come: a plain tuple, since each message is in three."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long things last, in seconds."""

    visibility_s: int
    lease_s: float

    margin_s: float = field(init=False)
    """A lease ends this much before the visibility."""
    send_timeout_s: float = field(init=False)
    """Most time for a send; a lease must outlast it when the send starts."""
    lease_min_s: float = field(init=False)
    """A shorter lease is not worth claiming: the visibility is extended first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin_s", min(5.0, self.visibility_s / 10))
        object.__setattr__(self, "send_timeout_s", min(10.0, self.lease_s / 3))
        object.__setattr__(self, "lease_min_s", self.send_timeout_s * 2)


@dataclass(frozen=True, slots=True)
class Pipeline:
    ledger: Ledger
    master: Master
    regional: Callable[[Region, Priority], RegionalQueue]
    dead_letters: Queue | None
    board: Board
    terms: Terms
    clock: Clock
    metrics: Metrics
    random: Random
    fair: bool = False  # a tenant's messages form an SQS message group
    bytes_max: int = BYTES_MAX  # of a message, that every queue takes
    tokens: Iterator[str] = field(default_factory=lambda: _tokens())  # of claims: no two deliveries anywhere share one
    gives_way: Callable[[], bool] = lambda: False  # nothing is kept here only to wait: a drain, or no slots for others
    chose: Callable[[Sequence[Chosen]], None] = lambda _: None  # is told of each choice

    def sort(self, flights: Sequence[Flight]) -> tuple[Sequence[Sequence[Going[Choice]]], Sequence[Flight]]:
        """Decode and route deliveries that came together. Return those that go on together, each lot to one queue, and
        those that go on alone: nobody may get them now, something is wrong, too little of their visibility is left, or
        their twin is among the others.
        """
        if flights and self._lease_left(flights[0]) < self.terms.lease_min_s:  # of all: they came together
            return [], flights
        alike: dict[tuple[Collection[Region], Priority], list[tuple[Flight, Message]]] = {}  # what a choice goes by
        alone: list[Flight] = []
        known: set[str] = set()
        for flight in flights:
            try:
                message = self._decode(flight)
            except Exception:  # poison, or a bug: `carry` meets it again, and tells
                alone.append(flight)
                continue
            if message.request_id in known:
                alone.append(flight)
                continue
            known.add(message.request_id)
            alike.setdefault((self.board.serving(message.model_name), message.priority), []).append((flight, message))
        lots: list[list[Going[Choice]]] = []
        filling: dict[tuple[Region, Priority], tuple[list[Going[Choice]], int]] = {}  # and how many bytes are in it
        for (_, priority), some in alike.items():
            for (flight, message), choice in zip(some, self._book_all(some), strict=True):
                if choice is None:
                    alone.append(flight)
                    continue
                queue, own = (choice.region, priority), bytes_of(flight.delivery.body) + OURS_BYTES_MAX
                lot, size = filling.get(queue, ([], BYTES_MAX))
                if size + own > BYTES_MAX:  # of one call
                    lot, size = [], 0
                    lots.append(lot)
                lot.append((flight, message, choice))
                filling[queue] = lot, size + own
        return lots, alone

    async def carry_together(self, lot: Sequence[Going[Choice]], part: Part) -> None:
        """Dispatch messages to one queue. `part` hears of whoever does not stay to the end, and how far it came.

        A cancellation leaves each one's `flight.step` saying how far it came.
        """
        claimed = await self._claim_all(lot, part)
        sent = await self._send_all(claimed, part)
        confirmed = await self._confirm_all(sent, part)
        await self._acknowledge_all(confirmed, part)

    async def carry(self, flight: Flight, state: State = None) -> Outcome:
        """Return how the delivery ended; it goes on from `state`. A cancellation leaves `flight.step` as above."""
        try:
            message = self._decode(flight)
            pauses = count()
            while True:
                match state:
                    case None:
                        state = await self._route(flight, message)
                    case Choice():
                        state = await self._claim(flight, message, state)
                    case Taken(choice):
                        state = await self._claim(flight, message, choice, taken=True)
                    case Claimed():
                        await self._check_deadline(flight, message, state)
                        state = await self._send(flight, message, state)
                    case Unsent(claim, fault):
                        state = await self._send(flight, message, claim, fault)
                    case Sent():
                        await self._confirm(flight, state)
                        await self._acknowledge(flight)
                        return Outcome.DISPATCHED
                    case Confirmed():
                        await self._acknowledge(flight)
                        return Outcome.DISPATCHED
                    case Again(before):
                        await self._pause(flight, 0)
                        state = before
                    case Duplicate():
                        await self._acknowledge(flight)
                        return Outcome.DUPLICATE
                    case Held(until):
                        if flight.delivery.receives == 1 or not await self._outlast(flight, until, self.gives_way):
                            await self._hide(flight, until)
                            return Outcome.HELD
                        state = None
                if state is None:
                    # certainly no Region has it and the claim is released, or one may have it and the claim lapsed, or
                    # another's claim did: what the next delivery would do is done now, and no receive is spent
                    await asyncio.sleep(backoff_s(next(pauses), self.random))
        except PoisonError as poison:
            return await self._reject(flight, poison.reason)
        except LeaseLostError as fault:  # whoever has it now will finish it
            self.metrics.error(Stage.LEDGER, Cause.LEASE_LOST)
            log.warning("message.left", message_id=flight.delivery.message_id, step=flight.step.name, fault=str(fault))
            return Outcome.FAILED

    # --- the steps, together ------------------------------------------------------------------------------------

    async def _claim_all(self, lot: Sequence[Going[Choice]], part: Part) -> Sequence[Going[Claimed]]:
        lease_end = self.clock.now() + self._lease_left(lot[0][0])
        requests, claims = [], []
        for flight, message, choice in lot:
            token = next(self.tokens)
            requests.append(ClaimRequest(message, token, choice, lease_end, flight.delivery.message_id))
            flight.step = Step.CLAIMING
            flight.claim = claim = Claimed(message.request_id, token, choice.region, lease_end)
            claims.append(claim)
        claimed = []
        answers = await self.ledger.claim_all(requests)
        for (flight, message, choice), claim, answer in zip(lot, claims, answers, strict=True):
            if isinstance(answer, Exception):
                self._call_failed(flight, Stage.LEDGER, answer)
                part(flight, Again(choice))
            elif not answer:
                part(flight, Taken(choice))
            elif self._too_late(message):
                part(flight, claim)
            else:
                claimed.append((flight, message, claim))
        return claimed

    async def _send_all(self, claimed: Sequence[Going[Claimed]], part: Part) -> Sequence[Going[Sent]]:
        going, outs, now = [], [], self.clock.now()
        for flight, message, claim in claimed:
            try:
                outs.append(self._outgoing(flight, message, claim, now))
            except Exception:  # a bug: `carry` meets it again, and tells
                part(flight, claim)
            else:
                going.append((flight, message, claim))
        if not going:
            return []
        _, message, claim = going[0]
        sent = []
        answers = await self.regional(claim.region, message.priority).send_all(outs)
        for (flight, message, claim), answer in zip(going, answers, strict=True):
            if isinstance(answer, str):
                sent.append((flight, message, Sent(claim, answer)))
            else:
                part(flight, Unsent(claim, answer))
        self._accepted(claim.region, message.priority, [flight for flight, _, _ in sent])
        return sent

    async def _confirm_all(self, sent: Sequence[Going[Sent]], part: Part) -> Sequence[Flight]:
        confirmed = []
        faults = await self.ledger.confirm_all([state for _, _, state in sent])
        told = log.is_enabled_for(logging.DEBUG)  # asked once, since as a rule they are not
        for (flight, _, state), fault in zip(sent, faults, strict=True):
            if fault is None:
                confirmed.append(flight)
                if told:
                    _tell(flight, state)
            else:
                self._call_failed(flight, Stage.LEDGER, fault)
                part(flight, Again(state))
        return confirmed

    async def _acknowledge_all(self, confirmed: Sequence[Flight], part: Part) -> None:
        faults = await self.master.acknowledge_all([flight.delivery for flight in confirmed])
        for flight, fault in zip(confirmed, faults, strict=True):
            if fault is None:
                flight.step = Step.ENDED
            elif isinstance(fault, RefusedError) and fault.cause is Cause.INVALID:
                self._call_failed(flight, Stage.DELETE, fault)
                self._not_acknowledged(flight, fault)
            else:
                self._call_failed(flight, Stage.DELETE, fault)
                part(flight, Again(Confirmed()))

    # --- the steps, alone ---------------------------------------------------------------------------------------

    def _decode(self, flight: Flight) -> Message:
        message = decode(flight.delivery.body, flight.delivery.attributes)
        if not self.board.serves(message.model_name):
            raise PoisonError(f"model_name: no Region serves {message.model_name[:NAME_SHOWN]!r}")
        return message

    async def _route(self, flight: Flight, message: Message) -> Choice:
        """Return the choice of the Region where a place is booked; wait, unclaimed, while nobody may get this message.

        Raises PoisonError once every Region that could get it has refused its contents.
        """
        if flight.refused_by and self._refused_by_all(flight, message):
            raise PoisonError("; ".join(f"{region}: {said}" for region, said in sorted(flight.refused_by.items())))
        try:
            while (choice := self._book(flight, message, without=flight.refused_by)) is None:
                flight.park(True)
                await self.board.change()
                _still_ours(flight)
        finally:
            flight.park(False)
        return choice

    def _book(self, flight: Flight, message: Message, without: Collection[Region]) -> Choice | None:
        choice = self.board.book(flight, message.model_name, message.priority, without)
        if choice:
            self._chosen([(message, choice)])
        return choice

    def _book_all(self, alike: Sequence[tuple[Flight, Message]]) -> Sequence[Choice | None]:
        _, message = alike[0]
        try:
            choices = self.board.book_all([flight for flight, _ in alike], message.model_name, message.priority)
            self._chosen([(message, choice) for (_, message), choice in zip(alike, choices, strict=True) if choice])
        except Exception:  # a bug: `carry` meets it again, and tells; no place is kept, or it would find none left
            self.board.unbook(*[flight for flight, _ in alike])
            return [None] * len(alike)
        return choices

    def _chosen(self, found: Sequence[Chosen]) -> None:
        for _, choice in found:
            if choice.shadow:
                self.metrics.shadow(choice.region, choice.shadow)
        self.chose(found)

    async def _claim(
        self, flight: Flight, message: Message, choice: Choice, *, taken: bool = False
    ) -> Claimed | Duplicate | Held:
        """Return a claim of ours, or why there is none. Raises PoisonError when the id stands for other work.

        `taken`: the first try was refused already, and it is to be seen what by.
        """
        token = flight.claim.token if flight.claim else next(self.tokens)
        looked_once = False
        copy_in: Region | None = None  # where the claim that we take over may have put one
        while True:
            lease_end = await self._next_lease_end(flight)
            request = ClaimRequest(message, token, choice, lease_end, flight.delivery.message_id)
            flight.step = Step.CLAIMING
            flight.claim = Claimed(message.request_id, token, choice.region, lease_end)
            ask = self.ledger.look if taken else self.ledger.claim
            taken = False
            match await self._until_answered(flight, Stage.LEDGER, ask, request):
                case None:
                    pass  # what refused it is gone: claim
                case Claimed() as claim:
                    flight.claim = claim
                    if claim.region == copy_in:
                        flight.step = Step.SENDING
                    return claim
                case Lapsed() as old:
                    if old.region is not None:
                        flight.sent_perhaps = True
                        choice = self.board.follow(flight, message.model_name, old.region)
                        self.chose([(message, choice)])
                        if choice.region == old.region:
                            copy_in = old.region
                            flight.step = Step.SENDING  # from here on it is never released: a copy may be there
                    taking = request._replace(choice=choice)
                    ours = await self._until_answered(flight, Stage.LEDGER, self.ledger.take_over, old, taking)
                    if ours is not None:
                        log.info(
                            "claim.taken_over", request_id=message.request_id, region=choice.region, state=old.state
                        )
                        flight.claim = ours
                        return ours
                    # somebody was quicker, or it was us and the answer was lost: ask again
                case DifferentWork():
                    flight.step, flight.claim = Step.RECEIVED, None
                    raise PoisonError("request_id: was used before for different work")
                case Held() if not looked_once:
                    looked_once = True
                    await asyncio.sleep(SECOND_LOOK_S)
                case (Duplicate() | Held()) as answer:
                    flight.step, flight.claim = Step.RECEIVED, None
                    return answer

    async def _send(
        self, flight: Flight, message: Message, claim: Claimed, fault: Exception | None = None
    ) -> Sent | Held | None:
        """Return which Region accepted it; None when nobody did for certain, or the claim has lapsed and is ours no
        more; or until when it is to lapse elsewhere.

        `fault`: what the first try met, if that was made already.

        A definite refusal goes on to another Region, in the ledger first; with none left the claim is released. After
        a lost answer only the same Region is tried again, a few times, for what is left of the lease; then the claim
        lapses.
        """
        tried = set(flight.refused_by)
        # perhaps the claim that this one took over lost one
        lost_answers = int(flight.step is Step.SENDING and fault is None)
        while True:
            if fault is None and claim.lease_end - self.clock.now() <= self.terms.send_timeout_s:
                if lost_answers:
                    return await self._lapse(flight, message, claim)
                lease_end = await self._next_lease_end(flight)
                claim = await self._until_answered(flight, Stage.LEDGER, self.ledger.renew, claim, lease_end)
            flight.claim = claim
            try:
                if fault is not None:
                    try:
                        raise fault
                    finally:
                        fault = None  # it is met once, and its own traceback must not hold it
                queue = self.regional(claim.region, message.priority)
                sqs_message_id = await queue.send(self._outgoing(flight, message, claim, self.clock.now()))
            except LeaseTooShortError:
                continue
            except AmbiguousError as lost:
                self._send_failed(message, claim.region, lost)
                lost_answers += 1
                if lost_answers == LOST_ANSWERS_MAX:
                    return await self._lapse(flight, message, claim)
                await asyncio.sleep(backoff_s(lost_answers, self.random))
                continue
            except (HeldOffError, RefusedError) as no:
                if isinstance(no, RefusedError):
                    self._send_failed(message, claim.region, no)
                    if no.cause is Cause.INVALID:
                        flight.refused_by = {**flight.refused_by, claim.region: str(no)}
                if lost_answers:  # a copy may be there, so no other Region may get one yet: wait for this one
                    if claim.region in flight.refused_by:
                        return await self._lapse(flight, message, claim)
                    await self.board.change()
                    await asyncio.sleep(backoff_s(lost_answers, self.random))
                    continue
                flight.step = Step.CLAIMING
                tried.add(claim.region)
                choice = self._book(flight, message, without=tried)
                if choice is None and flight.sent_perhaps:  # nobody may read in the ledger that no Region has it
                    return await self._lapse(flight, message, claim)
                if choice is None:
                    await self._release(flight, claim, rejected=self._refused_by_all(flight, message))
                    return None
                claim = await self._until_answered(flight, Stage.LEDGER, self.ledger.retarget, claim, choice)
                continue
            self._accepted(claim.region, message.priority, [flight])
            return Sent(claim, sqs_message_id)

    def _accepted(self, region: Region, priority: Priority, flights: Sequence[Flight]) -> None:
        for flight in flights:
            flight.step = Step.ACCEPTED
        self.board.accepted(*flights)
        self.metrics.dispatched.labels(region, priority).inc(len(flights))
        now = self.clock.now()
        self.metrics.message_age.observe_all([max(0.0, now - flight.delivery.sent_at) for flight in flights])

    async def _check_deadline(self, flight: Flight, message: Message, claim: Claimed) -> None:
        """Raise PoisonError once nobody wants the result any more, unless a Region may already have the request.

        Only a claim tells that it was not dispatched before: then a late redelivery is a duplicate, not a reject.
        """
        if message.deadline is None or not self._too_late(message) or flight.sent_perhaps:
            return
        await self._release(flight, claim, rejected=True)
        raise PoisonError(f"metadata.deadline: {_rfc_3339(message.deadline)} has passed")

    def _too_late(self, message: Message) -> bool:
        return message.deadline is not None and message.deadline <= self.clock.now()

    async def _release(self, flight: Flight, claim: Claimed, *, rejected: bool) -> None:
        """Release the claim of a message that nobody takes now, and that certainly no Region has."""
        await self._until_answered(flight, Stage.LEDGER, partial(self.ledger.release, claim, rejected=rejected))
        flight.step, flight.claim = Step.RECEIVED, None
        self.board.unbook(flight)

    def _refused_by_all(self, flight: Flight, message: Message) -> bool:
        return self.board.serving(message.model_name) <= flight.refused_by.keys()

    async def _lapse(self, flight: Flight, message: Message, claim: Claimed) -> Held | None:
        """Let the claim of a message that a Region may have run out, before anyone may send it again.

        The visibility is kept, since letting that lapse too would only spend a receive, unless it is the first one and
        others need the slot, and have where to go: then return until when nobody may have it. The place is given up:
        the Region is free to get other messages, which show whether it works again.
        """

        def yields() -> bool:
            return flight.delivery.receives == 1 and self.gives_way() and self.board.works_somewhere()

        log.warning("claim.lapsing", request_id=message.request_id, region=claim.region, until=claim.lease_end)
        flight.sent_perhaps = True
        self.board.accepted(flight)  # perhaps it was: the budget must not be spent twice
        if not await self._outlast(flight, claim.lease_end, yields):
            return Held(claim.lease_end)
        flight.step, flight.claim = Step.RECEIVED, None
        return None

    async def _confirm(self, flight: Flight, sent: Sent) -> None:
        await self._until_answered(flight, Stage.LEDGER, self.ledger.confirm, sent.claim, sent.sqs_message_id)
        _tell(flight, sent)

    async def _acknowledge(self, flight: Flight) -> None:
        """Delete the message. If its receipt is too old it comes again, and is a duplicate then."""
        try:
            await self._until_answered(flight, Stage.DELETE, self.master.acknowledge, flight.delivery)
        except (RefusedError, LeaseLostError) as fault:
            self._not_acknowledged(flight, fault)
        else:
            flight.step = Step.ENDED

    def _not_acknowledged(self, flight: Flight, fault: Exception) -> None:
        log.warning("message.not_acknowledged", message_id=flight.delivery.message_id, fault=str(fault))
        flight.step = Step.ENDED

    async def _hide(self, flight: Flight, until: float) -> None:
        """Make the message visible again when the other claim's lease ends, not before."""
        log.info("message.held", message_id=flight.delivery.message_id, until=until)
        await self._until(flight, until)

    async def _outlast(self, flight: Flight, until: float, yields: Callable[[], bool]) -> bool:
        """Keep a message here while the other claim lives: it came back for that once, and has few receives left.

        False once it is in others' way: then it does come back.
        """
        log.info("message.kept", message_id=flight.delivery.message_id, until=until)
        self.board.unbook(flight)
        flight.park(True)
        try:
            until = min(until, self.clock.now() + self.terms.lease_s)
            while self.clock.now() < until + JUST_PAST_S:
                if yields():
                    return False
                await asyncio.sleep(min(SECOND_LOOK_S, max(0.0, until - self.clock.now()) + JUST_PAST_S))
                _still_ours(flight)
            return True
        finally:
            flight.park(False)

    async def _reject(self, flight: Flight, reason: str) -> Outcome:
        """Put the message, body untouched, on the dead-letter queue with the reason; then it leaves the master."""
        delivery = flight.delivery
        log.warning("message.rejected", message_id=delivery.message_id, reason=reason, receives=delivery.receives)
        self.metrics.error(Stage.DECODE, Cause.INVALID)
        if self.dead_letters is None:
            log.error("message.no_dead_letter_queue", hint="set DISPATCHER_DEAD_LETTER_QUEUE_URL or a redrive policy")
            return Outcome.FAILED
        attributes = rejected(delivery.body, delivery.attributes, reason, bytes_max=self.bytes_max)
        out = Outgoing(delivery.body, attributes, delivery.trace_header)
        try:
            await self._until_answered(flight, Stage.SEND, self.dead_letters.send, out)
        except (RefusedError, LeaseLostError) as fault:
            log.error("message.not_rejected", message_id=delivery.message_id, fault=str(fault))
            return Outcome.FAILED
        await self._acknowledge(flight)
        return Outcome.REJECTED

    # --- time ---------------------------------------------------------------------------------------------------

    async def extend(self, flight: Flight) -> None:
        """Hide the message from others for the whole visibility again. Raises AwsError; sets `flight.lost`."""
        async with flight.changing:
            if flight.step is Step.ENDED or flight.lost:
                return
            asked_at = _now()
            if asked_at + self.terms.visibility_s - flight.received_at >= RECEIVE_MAX_S:
                flight.lost = True  # SQS would refuse: a receive lasts twelve hours at most
                return
            try:
                await self.master.keep_invisible(flight.delivery, self.terms.visibility_s)
            except RefusedError as fault:
                flight.lost = fault.cause is Cause.INVALID
                raise
            flight.visible_until = asked_at + self.terms.visibility_s
        if flight.step is Step.ACCEPTED and flight.claim is not None:
            # its confirmation is late: a twin must not take it for dead meanwhile. Visibility first, then lease
            try:
                flight.claim = await self.ledger.renew(flight.claim, self.clock.now() + self._lease_left(flight))
            except LeaseLostError:
                pass  # the confirmation will hear of it, or was written meanwhile
            except AwsError as fault:
                self.metrics.error(Stage.LEDGER, fault.cause)

    async def hand_back(self, flight: Flight) -> Outcome:
        """Do what can be done for a delivery whose carrying was cut off; say how it ended."""
        try:
            if flight.step is Step.ACCEPTED:
                await self.master.acknowledge(flight.delivery)
                return Outcome.DISPATCHED
            if flight.step in (Step.SENDING, Step.ENDED) or (flight.sent_perhaps and flight.claim):
                return Outcome.FAILED  # a Region may have it, or the last word on it was given: all lapses by itself
            if flight.claim is not None:
                with suppress(LeaseLostError):  # the claim was not written, or is another's by now
                    await self.ledger.release(flight.claim)
            await self._end_visibility(flight, 0)
        except AwsError as fault:
            log.warning("message.not_handed_back", message_id=flight.delivery.message_id, fault=str(fault))
            return Outcome.FAILED
        return Outcome.RELEASED

    async def _end_visibility(self, flight: Flight, seconds: int) -> None:
        """The last word on the delivery's visibility: no extension comes after it. Raises AwsError."""
        async with flight.changing:
            flight.step = Step.ENDED
            await self.master.keep_invisible(flight.delivery, seconds)

    async def _until(self, flight: Flight, lease_end: float) -> None:
        """Make the message visible just after a lease ends; if that fails, it is when its visibility ends."""
        try:
            await self._end_visibility(flight, max(0, math.ceil(lease_end - self.clock.now())) + 1)
        except AwsError as fault:
            self.metrics.error(Stage.EXTEND, fault.cause)

    async def _next_lease_end(self, flight: Flight) -> float:
        """Return the end (epoch seconds) of a lease that starts now: always before the visibility's end."""
        if self._lease_left(flight) < self.terms.lease_min_s:
            try:
                await self._until_answered(flight, Stage.EXTEND, self.extend, flight)
            except RefusedError as fault:
                raise LeaseLostError("SQS no longer lets us keep the delivery") from fault
            _still_ours(flight)
        return self.clock.now() + self._lease_left(flight)

    def _lease_left(self, flight: Flight) -> float:
        """Return for how long (seconds) a lease may last that starts now."""
        return min(self.terms.lease_s, flight.visible_until - _now() - self.terms.margin_s)

    def _outgoing(self, flight: Flight, message: Message, claim: Claimed, now: float) -> Outgoing:
        delivery, departs = flight.delivery, partial(self._departs, flight, claim)
        ours = attributes_of(message, claim.region, delivery.message_id, now, delivery.receives)
        return outgoing(message, delivery, ours, departs, fair=self.fair, bytes_max=self.bytes_max)

    def _departs(self, flight: Flight, claim: Claimed) -> None:
        if claim.lease_end - self.clock.now() <= self.terms.send_timeout_s:
            raise LeaseTooShortError("the lease would not outlast the send")
        flight.step = Step.SENDING

    async def _until_answered[*Ts, T](
        self, flight: Flight, stage: Stage, call: Callable[[*Ts], Awaitable[T]], *args: *Ts
    ) -> T:
        """Return the call's answer: AWS's faults pass, and the delivery stays ours by extension meanwhile.

        For calls that are safe to repeat. Raises LeaseLostError once SQS no longer leaves the delivery to us, and
        RefusedError when it is this very delivery that was refused (Cause.INVALID).
        """
        try:
            for attempt in count():
                try:
                    return await call(*args)
                except AwsError as fault:
                    self._call_failed(flight, stage, fault)
                    if fault.cause is Cause.INVALID:
                        raise
                _still_ours(flight)
                await self._pause(flight, attempt)
            raise AssertionError("count() does not end")
        finally:
            if flight.parked:
                flight.park(False)

    async def _pause(self, flight: Flight, attempt: int) -> None:
        flight.park(True)  # it only waits now, and must not take the room of those that can go on
        await asyncio.sleep(backoff_s(attempt, self.random))

    def _call_failed(self, flight: Flight, stage: Stage, fault: Exception) -> None:
        if isinstance(fault, AwsError):  # whatever else it is comes up again, and has its own word there
            self.metrics.error(stage, fault.cause)
            log.warning("call.failed", stage=stage, message_id=flight.delivery.message_id, fault=str(fault))

    def _send_failed(self, message: Message, region: Region, fault: AwsError) -> None:
        self.metrics.error(Stage.SEND, fault.cause)
        log.warning("send.failed", request_id=message.request_id, region=region, fault=str(fault))


def attributes_of(
    message: Message, region: Region, source_message_id: str, now: float, attempt: int
) -> dict[str, Attribute]:
    """Return our own attributes, the most useful first; `now` in epoch seconds."""
    return {
        "dispatcher.request_id": Attribute("String", message.request_id),
        "dispatcher.region": _alike("String", region),
        "dispatcher.source_message_id": Attribute("String", source_message_id),
        "dispatcher.dispatched_at": _at_ms(int(now * 1000)),
        "dispatcher.attempt": _alike("Number", str(attempt)),
    }


@lru_cache(maxsize=100)
def _alike(data_type: str, value: str) -> Attribute:
    """Of the messages of a batch, as a rule."""
    return Attribute(data_type, value)


@lru_cache(maxsize=8)
def _at_ms(epoch_ms: int) -> Attribute:
    """The messages of a lot depart within one or two of them."""
    return Attribute("String", _rfc_3339(epoch_ms / 1000))


def outgoing(
    message: Message,
    delivery: Delivery,
    ours: dict[str, Attribute],
    departs: Callable[[], None],
    *,
    fair: bool,
    bytes_max: int,
) -> Outgoing:
    """Return the message as it goes to a Region: the body as it came, the client's attributes, and ours."""
    attributes = forwarded(delivery.body, delivery.attributes, ours, bytes_max=bytes_max)
    tenant = group(message.tenant) if fair and message.tenant else None
    return Outgoing(delivery.body, attributes, delivery.trace_header, departs, tenant)


def _tell(flight: Flight, sent: Sent) -> None:
    log.debug(  # the ledger tells it too (`dispatcher status ID`); a line for each costs more than the calls
        "message.dispatched",
        request_id=sent.claim.request_id,
        region=sent.claim.region,
        sqs_message_id=sent.sqs_message_id,
        receives=flight.delivery.receives,
    )


def _tokens() -> Iterator[str]:
    """Chance tells processes apart; asking the system for it each time would cost as much as a send."""
    process = os.urandom(12).hex()
    return (f"{process}-{number:x}" for number in count())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _still_ours(flight: Flight) -> None:
    if flight.lost:
        raise LeaseLostError("SQS no longer lets us keep the delivery")


def _rfc_3339(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
