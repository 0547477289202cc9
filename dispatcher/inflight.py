"""The deliveries that this process holds: how far each has come, how long it is ours, how many slots are free."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from dispatcher.model import Claimed, Delivery, Region
from dispatcher.policy.receives import RECEIVE_MAX


class Step(IntEnum):
    """How far a delivery has come; it decides what becomes of it when there is no more time."""

    RECEIVED = 0  # nothing of it is anywhere else
    CLAIMING = 1  # the ledger may know it as ours; certainly no Region has it
    SENDING = 2  # a send has started and was not definitely refused: a Region may have it
    ACCEPTED = 3  # a Region has it
    ENDED = 4


NOBODY: Mapping[Region, str] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Flight:
    """One delivery in flight. Times are loop time, in seconds."""

    delivery: Delivery
    received_at: float
    visible_until: float  # until then SQS hides the message from others
    step: Step = Step.RECEIVED
    claim: Claimed | None = None
    region: Region | None = None  # where a place is booked for it
    parked: bool = False  # only waits: for a Region, or for a call that fails and is tried again
    refused_by: Mapping[Region, str] = NOBODY  # the Regions that cannot take it, and what they said
    sent_perhaps: bool = False  # a send of it, ours or of a claim that we took over, may have gone through
    lost: bool = False  # SQS no longer lets us extend it: whoever receives it next will finish it
    held_by: "InFlight | None" = None
    _changing: asyncio.Lock | None = None

    @property
    def changing(self) -> asyncio.Lock:
        """One change of its visibility at a time; few ever see one."""
        self._changing = self._changing or asyncio.Lock()
        return self._changing

    def place(self, region: Region | None) -> None:
        """From now on a place is booked for it there, or nowhere."""
        if self.held_by is not None:
            self.held_by.placed += (region is not None) - (self.region is not None)
        self.region = region

    def park(self, parked: bool) -> None:
        """From now on it only waits, or does no more."""
        if self.parked != parked:
            self.parked = parked
            if self.held_by is not None:
                self.held_by.count_parked(self)


BODY_BYTES_MAX = 128 * 1024 * 1024
"""Bodies held, in memory; a few more may come with the polls that are open. A thousand bodies of 1 MiB, each copied
while it is sent, would not fit into the 512 MiB of the smallest task."""


class InFlight:
    """`limit` bounds the deliveries held and those that open polls may still bring, together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._flights: dict[Flight, int] = {}  # and the memory of each one's body
        self._body_bytes = 0
        self._parked = 0
        self._parked_bytes = 0
        self.placed = 0  # deliveries with a place in a Region
        self.asked = 0  # slots kept for what open polls may bring

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights))

    @property
    def free(self) -> int:
        """Deliveries that may be asked for now; the last few slots are not worth a receive of their own."""
        if self._body_bytes >= BODY_BYTES_MAX:
            return 0
        free = self.limit - len(self._flights) - self.asked
        return free if free >= min(RECEIVE_MAX, self.limit // 10) else 0

    @property
    def parking_full(self) -> bool:
        """Half of what may be held only waits: the other half is for messages that can go on."""
        return 2 * self._parked >= max(2, self.limit) or 2 * self._parked_bytes >= BODY_BYTES_MAX

    def count_parked(self, flight: Flight) -> None:
        """A flight that is here begins or ceases to wait."""
        sign = 1 if flight.parked else -1
        self._parked += sign
        self._parked_bytes += sign * self._flights[flight]

    @property
    def unrouted(self) -> int:
        """Deliveries, here or on their way here, that will look for a Region now; parked ones looked already."""
        looking = (f for f in self._flights if f.region is None and not f.parked and f.step < Step.SENDING)
        return self.asked + sum(1 for _ in looking)

    def ask(self, count: int) -> None:
        """Keep `count` slots for a poll; give all of them back with `answered` when it ends, however it ends."""
        self.asked += count

    def answered(self, count: int) -> None:
        self.asked -= count

    def add(self, flight: Flight) -> None:
        flight.held_by = self
        self._flights[flight] = sys.getsizeof(flight.delivery.body)
        self._body_bytes += self._flights[flight]
        self.placed += flight.region is not None
        if flight.parked:
            self.count_parked(flight)

    def remove(self, flight: Flight) -> None:
        flight.park(False)
        flight.held_by = None
        self.placed -= flight.region is not None
        self._body_bytes -= self._flights.pop(flight)
