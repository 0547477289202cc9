"""What is known of each Region, and which Region a message goes to: the state around the pure policy.

Everything here happens between two awaits, so a choice and its booking are one step: no two messages of this process
take the same place.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from random import Random

from dispatcher.inflight import Flight
from dispatcher.model import Depth, Region
from dispatcher.policy.breaker import Breaker, BreakerState
from dispatcher.policy.routing import RegionView, pick, shares

LOOK_AGAIN_S = 1.0  # what depends on time alone (a reading's age) is looked at this often


@dataclass(slots=True)
class RegionRules:
    """What the operator says of a Region."""

    weight: float
    threshold: int
    models: frozenset[str] | None

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models


@dataclass(slots=True)
class _Place:
    rules: RegionRules
    known_at: float  # loop time: when the last reading was asked for, or when we started
    depth: Depth | None = None
    accepted: int = 0  # own messages, ever
    accepted_at_reading: int = 0  # the same, when the last reading was asked for
    booked: int = 0  # own messages on their way
    breaker: Breaker = field(default_factory=Breaker)


class Board:
    """`slots`: how many messages the process may hold; one Region of several may hold up half."""

    def __init__(
        self,
        regions: Mapping[Region, RegionRules],
        *,
        ttl_s: float,
        slots: int,
        random: Random,
        now: Callable[[], float],
    ) -> None:
        self._places = {region: _Place(rules, known_at=now()) for region, rules in regions.items()}
        self._ttl_s = ttl_s
        self._under_way_max = max(1, slots // 2) if len(regions) > 1 else slots
        self._now = now
        self._credit = {region: random.random() for region in regions}  # so that dispatchers do not start in step
        self._changed = asyncio.Event()

    # --- readings and what calls tell ---------------------------------------------------------------------------

    def begin_reading(self, region: Region) -> tuple[float, int]:
        """Return what `post` needs: what was accepted before a reading is asked for is in it, the rest is not."""
        return self._now(), self._places[region].accepted

    def post(self, region: Region, depth: Depth, begun: tuple[float, int]) -> None:
        """Take a depth reading. The Region answers, so an open breaker lets one message through to see."""
        place = self._places[region]
        place.depth = depth
        place.known_at, place.accepted_at_reading = begun
        place.breaker.answered()
        self.notify()

    def admits(self, region: Region, count: int) -> int:
        """Return how many of `count` messages may be sent there in a call now; its end goes to `learn`."""
        return self._places[region].breaker.admits(count)

    def withdraw(self, region: Region) -> None:
        """A call that `admits` let through was not made after all."""
        self._places[region].breaker.withdraw()

    def learn(self, region: Region, succeeded: bool) -> None:
        """Take the end of a call that sent messages there."""
        self._places[region].breaker.record(succeeded, self._now())
        self.notify()

    # --- choosing -----------------------------------------------------------------------------------------------

    def serves(self, model: str) -> bool:
        """Whether any Region serves a model, if only a withdrawn one: such a message waits."""
        return any(place.rules.serves(model) for place in self._places.values())

    def serving(self, model: str) -> set[Region]:
        """Return the Regions that serve a model and are not withdrawn, whether or not they may get more now."""
        places = self._places.items()
        return {region for region, place in places if place.rules.weight > 0 and place.rules.serves(model)}

    def book(self, flight: Flight, model: str, without: Collection[Region] = ()) -> Region | None:
        """Choose a Region and book a place there in one step; None: nobody may get this message now.

        A place that the flight had elsewhere is given up only when a new one is found.
        """
        serving = self.serving(model)
        able = {region: view for region, view in self.views().items() if region in serving and region not in without}
        split = shares(able)
        if not split:
            return None
        region = pick(split, self._credit)
        self._move(flight, region)
        return region

    def follow(self, flight: Flight, model: str, region: Region) -> Region:
        """Move a flight, which has a place, to the Region where a copy of its message may be; return where it is now.

        A second copy in the same Region is better than one elsewhere, as long as sends work there: while it may get
        nothing, or its last call failed, any other Region is better, and the flight's own place if there is none.
        """
        here = flight.region
        able = region in self.serving(model) and region not in flight.refused_by
        if able and self._places[region].breaker.trusted and (here == region or region in self.shares()):
            self._move(flight, region)
        else:
            self.book(flight, model, without=[region, *flight.refused_by])
        if flight.region is None:
            raise ValueError("a flight without a place cannot follow")
        return flight.region

    def accepted(self, flight: Flight) -> None:
        """The Region has the message: it counts as sent until a reading that was asked for later shows it."""
        if flight.region is not None:
            self._places[flight.region].accepted += 1
        self.unbook(flight)

    def unbook(self, flight: Flight) -> None:
        """Give the flight's place up, if it has one."""
        if flight.region is not None:
            self._places[flight.region].booked -= 1
            flight.region = None
            self.notify()

    def _move(self, flight: Flight, region: Region) -> None:
        self.unbook(flight)
        self._places[region].booked += 1
        flight.region = region

    # --- looking ------------------------------------------------------------------------------------------------

    def view(self, region: Region) -> RegionView:
        place = self._places[region]
        return RegionView(
            depth=place.depth,
            age_s=self._now() - place.known_at,
            sent_since=place.accepted - place.accepted_at_reading + place.booked,
            under_way=place.booked,
            breaker=place.breaker.state,
            weight=place.rules.weight,
            threshold=place.rules.threshold,
            ttl_s=self._ttl_s,
            under_way_max=self._under_way_max,
        )

    def views(self) -> dict[Region, RegionView]:
        return {region: self.view(region) for region in self._places}

    def shares(self) -> dict[Region, float]:
        return shares(self.views())

    def room(self) -> int:
        """Messages that may be routed now, over all Regions."""
        views = self.views()
        return sum(views[region].budget for region in shares(views))

    def out_of_play(self, region: Region) -> bool:
        """Whether a new reading might put the Region back into play: it is worth asking sooner."""
        view = self.view(region)
        return view.breaker is not BreakerState.CLOSED or not view.budget

    def any_depth_read(self) -> bool:
        return any(place.depth is not None for place in self._places.values())

    # --- waiting ------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Wake whoever waits: something changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Return at the next change, or soon: ages change by themselves."""
        changed = self._changed
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await changed.wait()
        except TimeoutError:
            return
