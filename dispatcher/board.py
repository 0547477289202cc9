"""What is known of each Region, and which Region a message goes to: the state around the pure policy.

Everything here happens between two awaits, so a choice and its booking are one step: no two messages of this process
take the same place. What other processes may take is kept apart by the fleet's reports (`policy/fleet.py`).
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NamedTuple, Self

from dispatcher.inflight import Flight
from dispatcher.model import Choice, Depth, Policy, Priority, Region
from dispatcher.policy.breaker import Breaker, BreakerState
from dispatcher.policy.capacity import Capacity, remaining, together
from dispatcher.policy.drain import Drain, estimates
from dispatcher.policy.fleet import CLOCKS_S, Fleet, Point, Report
from dispatcher.policy.projection import Projection, Sends
from dispatcher.policy.routing import RESUME, SMOOTHING, Freshness, RegionView, allot, shares
from dispatcher.settings import Settings

READINGS_PER_TTL = 4
LOOK_AGAIN_S = 1.0  # what depends on time alone (a reading's age) is looked at this often
ERROR_MAX, ERROR_BACK = 0.5, 0.25
"""Of the projections: above the one they are not believed, below the other they are again (docs/routing.md)."""
NO_LIMIT = 10**9
BATCH = 10  # messages: less than a batch of room is not worth asking for
LOOK_S = 0.05  # choices, runs and polls go by a look at the Regions that is no older; what comes later looks again
LOOK_PART = 5  # nor by one since when more than a fifth of what is on its way came or went
MODELS_REMEMBERED, NAME_REMEMBERED = 1000, 200  # clients name them, and a name has room for a million characters


@dataclass(slots=True)
class RegionRules:
    """What the operator says of a Region."""

    weight: float
    threshold: int
    models: frozenset[str] | None
    drain: float | None = None  # messages per second that its workers take, until that was observed

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models


class _Split(NamedTuple):
    """What some Regions get of the messages of a priority."""

    shares: Mapping[Region, float]
    upto: Mapping[Region, int]  # messages that this process may have sent or booked there, ever


@dataclass(slots=True)
class _Run:
    """Messages that follow one another to one Region: a batch for its lane. `split`: when it began."""

    choice: Choice
    priority: Priority
    serving: frozenset[Region]  # that its messages may go to
    split: _Split
    looked_at: float
    length: int  # messages, at most; its `upto` holds as long as the look is young
    receive: float  # which one its messages came with: those of one are claimed, and so sent, together
    count: int = 1


@dataclass(slots=True)
class _Look:
    """The Regions as they were a moment ago: what choices go by."""

    at: float  # none of the views is older
    views: dict[Region, RegionView]
    given: dict[Region, int]  # own messages, ever, that were sent or booked there when its view was taken
    splits: dict[tuple[frozenset[Region], Priority], _Split] = field(default_factory=dict)
    changed: list[Region] = field(default_factory=list)  # one for each message that came or went since


@dataclass(slots=True)
class _Place:
    rules: RegionRules
    known_at: float  # when the last reading was asked for, or when we started
    own: Sends
    projection: Projection
    own_shown: int = 0  # own messages, ever, at the moment that the last reading shows
    booked: int = 0  # own messages on their way
    breaker: Breaker = field(default_factory=Breaker)
    capacity: Capacity = field(default_factory=Capacity)
    own_reading: tuple[float, Depth] | None = None  # the last one that we took, and when it was asked for
    overloaded: bool = False  # until it is down to where it resumes
    upto: int = 0  # own messages, ever: the total that the fleet leaves to us
    answered: int = 0  # what we asked for in the last report that was answered
    asked: int = 0  # what we said in our last report that it might become
    rescuing_since: float | None = None  # when we first wished to move its waiting messages elsewhere
    at_report: int = 0  # own messages, ever, at our last report

    @property
    def drain(self) -> Drain:
        return self.projection.drain

    @property
    def given(self) -> int:
        """Own messages, ever, that were sent there or have a place booked."""
        return self.own.total + self.booked


class Board:
    """`slots`: how many messages the process may hold; one Region of several may hold up half.

    `lag_s`: how late the counts of a reading are. `fleet`: the other dispatchers; None: there is no other. `drain`
    makes a Region's estimator.
    """

    def __init__(
        self,
        regions: Mapping[Region, RegionRules],
        *,
        ttl_s: float,
        slots: int,
        random: Random,
        now: Callable[[], float],
        policy: Policy = Policy.PROJECTED_WAIT,
        shadow: Policy | None = None,
        lag_s: float = 0.0,
        fleet: Fleet | None = None,
        drain: Callable[[Region, float | None], Drain] = lambda _, prior: Drain(prior),
    ) -> None:
        self.started_at = now()
        self.readings = 0  # taken so far, of any Region
        self._ttl_s = ttl_s
        self._lag_s = lag_s
        self._under_way_max = max(1, slots // 2) if len(regions) > 1 else slots
        self._now = now
        self._policy = policy
        self._shadow = shadow
        self._fleet = fleet
        self._places: dict[Region, _Place] = {}
        for region, rules in regions.items():
            own = Sends(now())
            others = partial(fleet.total, region) if fleet else lambda _: 0.0
            projection = Projection(
                drain(region, rules.drain), own, others, lag_s=lag_s, interval_s=ttl_s / READINGS_PER_TTL
            )
            self._places[region] = _Place(rules, now(), own, projection)
        self._random = random
        self._reported_at = now()
        self._credit = {region: random.random() for region in regions}  # so that dispatchers do not start in step
        self._shadow_credit = dict(self._credit)
        self._booked = 0  # messages on their way to any Region
        self._run: _Run | None = None
        self._looked_at = -math.inf  # for `has_room`
        self._seen = _Look(-math.inf, {}, {})
        self._room_upto = 0  # messages that this process may have sent or booked anywhere, ever, as seen then
        self._serving: dict[str, frozenset[Region]] = {}
        self._k = SMOOTHING[0]
        self._believed = True  # the projections were right of late
        self._changed: asyncio.Event | None = None  # while somebody waits for it

    @classmethod
    def of(cls, settings: Settings, *, lag_s: float, now: Callable[[], float], random: Random) -> Self:
        """Return the board of a dispatcher that shares its Regions with others."""
        rules = {
            region: RegionRules(said.weight, settings.threshold(region), said.models, said.drain_per_second)
            for region, said in settings.regions.items()
        }
        return cls(
            rules,
            ttl_s=settings.depth_ttl_seconds,
            slots=settings.max_in_flight,
            random=random,
            now=now,
            policy=settings.routing_policy,
            shadow=settings.shadow_policy,
            lag_s=lag_s,
            fleet=Fleet(settings.depth_ttl_seconds / READINGS_PER_TTL, lag_s=lag_s),
        )

    # --- readings and what calls tell ---------------------------------------------------------------------------

    def begin_reading(self, region: Region) -> tuple[float, int]:
        """Return what `post` needs: what was accepted before a reading is asked for is in it, the rest is not."""
        own, now = self._places[region].own, self._now()
        own.cut()
        return now, own.at(now - self._lag_s)

    def post(self, region: Region, depth: Depth, begun: tuple[float, int]) -> None:
        """Take a depth reading. The Region answers, so an open breaker lets one message through to see."""
        place = self._places[region]
        self.readings += 1
        place.own_reading = begun[0], depth
        place.breaker.answered()
        self._take(region, place, depth, begun)
        self.notify()

    def _take(self, region: Region, place: _Place, depth: Depth, begun: tuple[float, int]) -> None:
        self._look_again()
        place.known_at, place.own_shown = begun
        disturbed = place.rescuing_since is not None or (self._fleet is not None and region in self._fleet.rescuing)
        place.projection.post(depth, place.known_at, disturbed=disturbed)
        place.projection.learn(self._known_until())
        place.own.forget(place.projection.needs_since - self._ttl_s)
        self._reckon([place])
        threshold = place.rules.threshold
        if max(depth.visible, place.projection.level(self._now())) >= threshold:
            place.overloaded = True
        elif depth.visible <= RESUME * threshold:
            place.overloaded = False
        self._take_room(region, place)

    def _known_until(self) -> float:
        """Until when it is known what the others sent; while they are not heard, it is guessed."""
        shared = self._fleet is not None and self._fleet.known and self._fleet.believed(self._now())
        return self._fleet.covered_until if self._fleet and shared else self._now()

    def _reckon(self, changed: Iterable[_Place]) -> None:
        """What follows from all that was learnt: estimates, projections, whether to believe them."""
        now = self._now()
        drains = {region: place.drain for region, place in self._places.items()}
        found = estimates(drains, self._fleet.drains if self._fleet else {})
        for region, place in self._places.items():
            place.projection.expect(found.get(region, 0.0), now)
        for place in changed:
            place.projection.rebuild(now)
        error = self.model_error
        self._believed = error <= ERROR_MAX if self._believed else error < ERROR_BACK
        inflow = sum(place.projection.inflow for place in self._places.values())
        self._k = min(max(inflow * self._ttl_s / len(self._places), SMOOTHING[0]), SMOOTHING[1])

    @property
    def model_error(self) -> float:
        """How wrong the projected depths were of late, as a part of the depths: the worst Region's median."""
        since = self._now() - 2 * self._ttl_s  # an error of long ago says nothing
        places = [place for place in self._places.values() if place.rules.weight > 0 and place.known_at >= since]
        judged = [place for place in places if place.drain.confident and not place.drain.stalled]
        errors = [place.projection.error for place in judged]
        return max((error for error in errors if error is not None), default=0.0)

    def admits(self, region: Region, count: int) -> int:
        """Return how many of `count` messages may be sent there in a call now; its end goes to `learn`."""
        return self._places[region].breaker.admits(count)

    def withdraw(self, region: Region) -> None:
        """A call that `admits` let through was not made after all."""
        self._places[region].breaker.withdraw()

    def learn(self, region: Region, succeeded: bool) -> None:
        """Take the end of a call that sent messages there."""
        breaker = self._places[region].breaker
        before = breaker.state
        breaker.record(succeeded, self._now())
        if breaker.state is not before:
            self._look_again()
        self.notify()

    def capacity(self, region: Region) -> Capacity:
        """Whoever knows what is left of a Region's workers may say so here; our reports tell the other dispatchers."""
        return self._places[region].capacity

    # --- the fleet ----------------------------------------------------------------------------------------------

    def forgotten(self) -> list[str]:
        """Return the dispatchers whose last reports are of no use any more."""
        return self._fleet.forgotten(self._now()) if self._fleet else []

    def report(self, *, gone: bool = False) -> Report:
        """Return our word to the other dispatchers: what we sent, and the most that we shall have sent by the next.

        `gone`: it is the last, and nothing more will be sent.
        """
        self._look_again()
        now = self._reported_at = self._now()
        sharing = self.dispatchers()
        for region, place in self._places.items():
            view = self.view(region)
            # rounded by chance: of fewer places than dispatchers not all ask for one, or none would get it
            part = int(max(0.0, view.threshold - view.committed) / sharing + self._random.random())
            need = max(2 * (place.own.total - place.at_report), self._under_way_max // sharing, 2 * BATCH)
            place.asked = place.given + (0 if gone else min(part, need))
            place.upto = min(place.upto, place.asked)  # others may count on that as soon as it is written
            place.at_report = place.own.total
        past = max(self.started_at, min(place.own.since for place in self._places.values()))
        places = self._places.items()
        return Report(
            now=Point(now, {region: place.own.total for region, place in places}),
            past=Point(past, {region: place.own.at(past) for region, place in places}),
            upto={region: place.asked for region, place in places},
            drains={region: place.drain.busy for region, place in places if place.drain.confident},
            capacity={region: place.capacity.now(now) for region, place in places},
            readings={region: place.own_reading for region, place in places if place.own_reading},
            rescuing=frozenset(region for region, place in places if place.rescuing_since is not None),
            gone=gone,
        )

    def learn_fleet(self, others: Mapping[str, Report]) -> None:
        """Take the others' reports, as they were when ours was written; we may use what nobody had set aside."""
        if self._fleet is None:
            raise ValueError("this board was made for a dispatcher that is alone")
        self._look_again()
        self._fleet.learn(others, self._now(), self._reported_at)
        for place in self._places.values():
            place.answered = place.asked
        for place in self._places.values():
            place.projection.learn(self._known_until())
        self._reckon(self._places.values())
        for region, place in self._places.items():
            self._take_room(region, place)
            self._take_from_others(region, place)
        self.notify()

    def _take_from_others(self, region: Region, place: _Place) -> None:
        """Take a reading that another dispatcher took after our last one: together all see as often as they are many.

        Not under the original's policy, which goes by its own readings alone.
        """
        newest = self._fleet.newest_reading(region) if self._fleet and self._policy.projects else None
        known_at = place.known_at if place.projection.reading else -math.inf
        if newest and known_at + CLOCKS_S < newest[0] <= self._now():
            asked_at, depth = newest
            # what we sent just before may or may not be in it, since clocks differ a little: then it counts twice
            self._take(region, place, depth, (asked_at, place.own.at(asked_at - self._lag_s - CLOCKS_S)))

    def _take_room(self, region: Region, place: _Place) -> None:
        """Take as much of what we asked for as nobody else had set aside before; who asks later sees that we asked."""
        if self._fleet is None:
            return
        asked = min(place.answered, place.asked)  # what every later report has seen
        if place.projection.reading is None:
            place.upto = asked  # no more than probes anyway
            return
        view = self.view(region)
        aside = self._fleet.set_aside(region, place.projection.shown_at)
        room = view.threshold - (view.committed - view.others_since + max(view.others_since, aside))
        place.upto = min(asked, place.given + max(0, math.floor(room)))

    def dispatchers(self) -> int:
        """Return how many dispatchers are at work, this one included."""
        return 1 + (self._fleet.live(self._now()) if self._fleet else 0)

    def shares_room(self) -> bool:
        """Whether Regions' room is shared with the others by their own word, not by their number alone."""
        return self._fleet is None or self._fleet.believed(self._now())

    def wants_room(self) -> bool:
        """Whether it is worth reporting to the fleet sooner: a Region has room, and our part of it is nearly used up.

        Whoever asks with nothing left waits for the answer, a flood with it.
        """
        if self._fleet is None:
            return False
        short = [
            region
            for region, place in self._places.items()
            if place.upto - place.given < max(BATCH // 2, (place.asked - place.at_report) // 4)
        ]
        views = map(self.view, short)
        return any(view.live and view.allowance < math.floor(view.threshold - view.committed) for view in views)

    def rescuable(self) -> list[Region]:
        """Return the Regions whose waiting messages may be moved elsewhere now: none of them is taken there.

        The other dispatchers hear of it first, so that what is moved does not look to them like what workers take.
        """
        ready = []
        for region, place in self._places.items():
            reading = place.projection.reading
            if not (place.drain.stalled and reading and reading.visible):
                place.rescuing_since = None
                continue
            if place.rescuing_since is None:
                place.rescuing_since = self._now()
            if self._fleet is None or self._fleet.have_reported_since(place.rescuing_since + CLOCKS_S):
                ready.append(region)
        return ready

    def rescue_room(self, source: Region) -> tuple[int, list[Region]]:
        """Return how many messages of `source` may be moved now, and which Regions none may be moved to.

        Only to where sends work and messages are taken, or they would go round between Regions that serve none. A
        Region of which nothing is known yet gets one, to see.
        """
        out, sure = [source], False
        for region, view in self.views().items():
            trusted = view.live and self._places[region].breaker.trusted
            works = self._places[region].drain.works
            if not trusted or not (works or view.own_since <= 0):
                out.append(region)
            elif region != source:
                sure = sure or works
        room = self.room(without=out)
        return (room if sure else min(room, 1)), out

    # --- choosing -----------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy in force: a projecting one gives way while there are no estimates, or wrong ones."""
        if self._policy.projects and not (
            self._believed and any(p.projection.drain_rate for p in self._places.values())
        ):
            return Policy.INVERSE_DEPTH_SMOOTHED
        return self._policy

    def serves(self, model: str) -> bool:
        """Whether any Region serves a model, if only a withdrawn one: such a message waits."""
        return bool(self.serving(model)) or any(place.rules.serves(model) for place in self._places.values())

    def serving(self, model: str) -> frozenset[Region]:
        """Return the Regions that serve a model and are not withdrawn, whether or not they may get more now."""
        known = self._serving.get(model)
        if known is None:
            places = self._places.items()
            known = frozenset(r for r, place in places if place.rules.weight > 0 and place.rules.serves(model))
            if len(model) <= NAME_REMEMBERED and len(self._serving) < MODELS_REMEMBERED:
                self._serving[model] = known
        return known

    def book(
        self,
        flight: Flight,
        model: str,
        priority: Priority = Priority.NORMAL,
        without: Collection[Region] = (),
    ) -> Choice | None:
        """Choose a Region and book a place there in one step; None: nobody may get this message now.

        A place that the flight had elsewhere is given up only when a new one is found. Messages go in runs, so that
        sends are full also with many Regions: to where the last one went, as often as messages are on their way there
        or to the usual Region, up to a batch. Of few messages each is chosen for; of many, ten to one Region are a
        moment of its traffic. Shares are kept all the same, since a run is paid for before the next begins.
        """
        serving = self.serving(model)
        if choice := self._follow_run(flight, serving, priority, without):
            return choice
        able = serving.difference(without)
        if (found := self._choose(able, priority)) is None:
            return None
        region, split = found
        seen, place, shadow = self._seen, self._places[region], None
        if self._shadow:
            out = seen.views.keys() - able
            shadow = next(iter(self._allotted(seen.views, self._shadow, self._shadow_credit, 1, priority, out)), None)
        view = seen.views[region]
        choice = Choice(region, self.policy, view.wait_s, shadow)
        if view.live and self._policy is not Policy.INVERSE_DEPTH and not self._shadow:
            length = min(BATCH, max(place.booked, self._booked // len(self._places)))
            self._run = _Run(choice, priority, serving, split, seen.at, length, flight.visible_until)
        self._move(flight, region)
        return choice

    def _choose(
        self, able: frozenset[Region], priority: Priority, *, anew: bool = False
    ) -> tuple[Region, _Split] | None:
        """Return a Region for one message, and what it was chosen by; None: none of those that are able has room."""
        # where all is for the shortest wait, a look that serves several runs would send them all to one Region
        seen = self._look(anew=anew or priority is Priority.HIGH or self._policy is Policy.TWO_CHOICES)
        split = seen.splits.get((able, priority))
        if split is None:
            some = shares(seen.views, self.policy, k=self._k, priority=priority, without=seen.views.keys() - able)
            split = _Split(some, {region: seen.views[region].budget(priority) + seen.given[region] for region in some})
            seen.splits[able, priority] = split
        room = {region: max(0, upto - self._places[region].given) for region, upto in split.upto.items()}
        if any(room.values()):
            (region,) = allot(split.shares, self._credit, 1, room)
            return region, split
        return self._choose(able, priority, anew=True) if seen.changed else None

    def book_all(
        self, flights: Sequence[Flight], model: str, priority: Priority = Priority.NORMAL
    ) -> list[Choice | None]:
        """The same for flights that came together, each with its own choice."""
        choices: list[Choice | None] = []
        while left := flights[len(choices) :]:
            choice = self.book(left[0], model, priority)
            if choice is None:
                return [*choices, *[None] * len(left)]
            choices.append(choice)
            if run := self._run:  # which it began, or follows: whoever is next would follow too
                place = self._places[run.choice.region]
                following = left[1 : 1 + min(run.length - run.count, run.split.upto[run.choice.region] - place.given)]
                run.count += len(following)
                for flight in following:
                    self._move(flight, run.choice.region)
                choices += [run.choice] * len(following)
        return choices

    def _follow_run(
        self, flight: Flight, serving: frozenset[Region], priority: Priority, without: Collection[Region]
    ) -> Choice | None:
        """Book a place in the run that goes on; pay for it if it does not. Who may go elsewhere has other shares."""
        run = self._run
        if run is None:
            return None
        region = run.choice.region
        place = self._places[region]
        fits = run.priority is priority and run.serving == serving and region not in without
        fits = fits and run.receive == flight.visible_until
        room = place.given < run.split.upto[region]
        young = self._now() < run.looked_at + LOOK_S
        if fits and room and young and run.count < run.length:
            run.count += 1
            self._move(flight, region)
            return run.choice
        self._end_run()
        return None

    def _look_again(self) -> None:
        """Something is known that the last looks did not see."""
        self._end_run()
        self._looked_at = self._seen.at = -math.inf

    def _look(self, *, anew: bool = False) -> _Look:
        """Return a look to choose by. `anew`: with all that was booked and sent."""
        now, seen = self._now(), self._seen
        if now >= seen.at + LOOK_S:
            self._seen = _Look(now, self.views(), {region: place.given for region, place in self._places.items()})
        elif anew or len(seen.changed) > self._booked // LOOK_PART:
            for region in set(seen.changed):
                seen.views[region], seen.given[region] = self.view(region), self._places[region].given
            seen.splits, seen.changed = {}, []
        return self._seen

    def _end_run(self) -> None:
        """Pay for what followed the run's first message, which is paid for."""
        if (run := self._run) is None:
            return
        self._run = None
        more = run.count - 1
        for region, share in run.split.shares.items() if more else ():
            paid = more if region == run.choice.region else 0
            self._credit[region] = min(max(self._credit[region] + more * share - paid, -BATCH), BATCH)

    def allot(self, count: int) -> dict[Region, int]:
        """Return where `count` messages that come together go; what nobody has room for is left out. Books nothing."""
        return self._allotted(self.views(), self.policy, self._credit, count, Priority.NORMAL, ())

    def _allotted(
        self,
        views: Mapping[Region, RegionView],
        policy: Policy,
        credit: dict[Region, float],
        count: int,
        priority: Priority,
        without: Collection[Region],
    ) -> dict[Region, int]:
        split = shares(views, policy, k=self._k, priority=priority, without=without)
        return allot(split, credit, count, {region: views[region].budget(priority) for region in split})

    def follow(self, flight: Flight, model: str, region: Region, without: Collection[Region] = ()) -> Choice:
        """Move a flight, which has a place, to the Region where a copy of its message may be; return where it is now.

        A second copy in the same Region is better than one elsewhere, as long as sends work there: while it may get
        nothing, or its last call failed, any other Region is better, and the flight's own place if there is none.
        """
        here = flight.region
        able = region in self.serving(model) and region not in (*flight.refused_by, *without)
        if able and self._places[region].breaker.trusted and (here == region or self.view(region).budget() > 0):
            self._move(flight, region)
        else:
            self.book(flight, model, without=[region, *flight.refused_by, *without])
        if flight.region is None:
            raise ValueError("a flight without a place cannot follow")
        return Choice(flight.region, "takeover", self.view(flight.region).wait_s)

    def accepted(self, *flights: Flight) -> None:
        """Their Regions have the messages: they count as sent until a reading that was asked for later shows them."""
        for region, messages in Counter([flight.region for flight in flights]).items():
            if region is not None:
                self.count(region, messages)
        self.unbook(*flights)

    def count(self, region: Region, messages: int) -> None:
        """Messages were put into a Region's queue, or fewer than none: taken out of it to go elsewhere."""
        place = self._places[region]
        place.own.add(messages, self._now())
        place.projection.sent(messages, self._now())
        if messages < 0:
            self._look_again()  # it has more room, but no more may be on their way there
        self._seen.changed.append(region)

    def unbook(self, *flights: Flight) -> None:
        """Give their places up, where they have one."""
        for flight in flights:
            if flight.region is not None:
                self._places[flight.region].booked -= 1
                self._booked -= 1
                self._seen.changed.append(flight.region)
                flight.place(None)
        self.notify()

    def _move(self, flight: Flight, region: Region) -> None:
        if flight.region is not None:
            self.unbook(flight)
        self._places[region].booked += 1
        self._booked += 1
        self._seen.changed.append(region)
        flight.place(region)

    # --- looking ------------------------------------------------------------------------------------------------

    def view(self, region: Region) -> RegionView:
        place, now = self._places[region], self._now()
        projection, rules = place.projection, place.rules
        projected = projection.level(now) + place.booked
        own_since = place.own.total - place.own_shown + place.booked
        others_since = projection.others_since(now)
        original = self._policy is Policy.INVERSE_DEPTH
        resumed = max(projected, projection.reading.visible if projection.reading else 0) <= RESUME * rules.threshold
        return RegionView(
            depth=projection.reading,
            age_s=now - place.known_at,
            own_since=own_since,
            others_since=others_since,
            under_way=place.booked,
            projected=projected,
            drain=projection.drain_rate,
            capacity=self._capacity(region, place, now),
            stalled=place.drain.stalled and not original,
            breaker=place.breaker.state,
            weight=rules.weight,
            threshold=rules.threshold,
            allowance=self._allowance(place, own_since, now),
            overloaded=place.overloaded and not resumed and not original,
            credited=self._credited(place),
            ttl_s=self._ttl_s,
            under_way_max=self._under_way_max,
        )

    def _allowance(self, place: _Place, own_since: int, now: float) -> int:
        if self._fleet is None:
            return NO_LIMIT
        if self._fleet.learned_at is None:
            return 0  # nobody knows yet what the others have set aside
        if not self._fleet.believed(now):  # nor any more: take each of them for one like us
            room = place.rules.threshold - place.projection.level(now) - place.booked - self._fleet.known * own_since
            return max(0, math.floor(room / (1 + self._fleet.known)))
        return max(0, place.upto - place.given)

    def _credited(self, place: _Place) -> float:
        if self._policy is Policy.INVERSE_DEPTH or not self._believed or not place.projection.drain_rate:
            return 0.0
        return min(1.0, place.drain.observed / place.projection.drain_rate)

    def _capacity(self, region: Region, place: _Place, now: float) -> float:
        own = place.capacity.now(now)
        reported = self._fleet.lost(region) if self._fleet else []
        return together([own, *(remaining(left, now - at) for left, at in reported)]) if reported else own

    def views(self) -> dict[Region, RegionView]:
        return {region: self.view(region) for region in self._places}

    def shares(self) -> dict[Region, float]:
        return shares(self.views(), self.policy, k=self._k)

    def shadow_shares(self) -> dict[Region, float]:
        """Return what the shares would be under the shadow policy; none without one."""
        return shares(self.views(), self._shadow, k=self._k) if self._shadow else {}

    def explain(self) -> dict[Region, dict[str, Any]]:
        """Return, for each Region, all that a choice goes by, and why it gets messages or not."""
        views, split = self.views(), self.shares()
        return {
            region: {
                "depth": view.depth.visible if view.depth else None,
                "in_flight": view.depth.in_flight if view.depth else None,
                "delayed": view.depth.delayed if view.depth else None,
                "reading_age_seconds": round(view.age_s, 1) if view.depth else None,
                "sent_since_reading": view.own_since,
                "sent_by_others_since_reading": round(view.others_since),
                "projected_depth": round(view.projected),
                "drain_per_second": round(view.drain, 3) or None,
                "projected_wait_seconds": round(view.wait_s, 2) if view.drain else None,
                "capacity": round(view.capacity, 3),
                "weight": view.weight,
                "share": round(split.get(region, 0.0), 4),
                "threshold": view.threshold,
                "budget": view.budget(),
                "breaker": view.breaker,
                "health": view.health,
                "reason": view.reason,
            }
            for region, view in views.items()
        }

    def room(self, without: Collection[Region] = ()) -> int:
        """Messages that may be routed now, over all Regions but these."""
        views = self.views()
        return sum(views[region].budget() for region in shares(views, self.policy, k=self._k, without=without))

    def has_room(self, count: int) -> bool:
        """Whether at least so many messages may be routed now, as far as a look of a moment ago tells.

        It decides how many are asked for; where each may go is looked at when it is booked.
        """
        given = sum([place.given for place in self._places.values()])
        if self._now() >= self._looked_at + LOOK_S:
            self._looked_at, self._room_upto = self._now(), given + self.room()
        return self._room_upto - given >= count

    def works_somewhere(self) -> bool:
        """Whether a Region whose sends succeed may get more."""
        return any(v.breaker is BreakerState.CLOSED and v.budget() > 0 for v in self.views().values())

    def out_of_play(self, region: Region) -> bool:
        """Whether a new reading might put the Region back into play: it is worth asking sooner."""
        view, depth = self.view(region), self._places[region].projection.reading
        nobody = depth is not None and depth.visible > 0 and not depth.in_flight
        out = view.breaker is not BreakerState.CLOSED or not view.budget() or (nobody and not view.stalled)
        return out and view.weight > 0

    def any_depth_read(self) -> bool:
        return any(place.projection.reading is not None for place in self._places.values())

    def any_depth_known(self) -> bool:
        """A reading is young enough to go by."""
        return any(view.freshness is not Freshness.UNKNOWN for view in self.views().values())

    # --- waiting ------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Wake whoever waits: something changed."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def change(self) -> None:
        """Return at the next change, or soon: ages change by themselves."""
        changed = self._changed = self._changed or asyncio.Event()
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await changed.wait()
        except TimeoutError:
            return
