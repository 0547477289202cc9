"""From what is known of each Region to the Region that a message goes to. Pure: no clock, no client.

A policy gives each Region a weight; everything else stands around it and holds for all of them: a reading's age, a
budget of sends, the breaker, the probe share, and a bound on what one Region may hold up.

| policy | weight |
| --- | --- |
| `projected-wait` | capacity × drain / (projected wait + 10 s) |
| `inverse-depth` | 1 / (visible + 1): the original, exactly |
| `inverse-depth-smoothed` | capacity / (visible + k) |
| `two-choices` | of two Regions drawn at random, the one with the shorter projected wait |
| `fixed` | 1 |

Each is multiplied by the operator's static weight.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import floor

from dispatcher.model import Depth, Policy, Priority, Region
from dispatcher.policy.breaker import BreakerState

W0_S = 10.0
"""Seconds added to every wait: differences far below it mean nothing. Any value from 2 to 60 s does as well."""
PROBE_SHARE = 0.02
"""Of new messages, for all Regions that are unknown or stalled: enough to see a recovery, too little to hurt."""
PROBES_PER_SECOND = 1.0
RESUME = 0.8
"""Of the threshold: an overloaded Region gets messages again when it is down to this."""
LOW_STOPS_AT = 0.8
"""Of the threshold, for messages of low priority."""
HIGH_TOLERANCE_S = 1.0
"""Waits this close to the shortest are as good for a message of high priority."""
SMOOTHING = (300.0, 1000.0)
"""Bounds of k (docs/routing.md, "The policies")."""


class Freshness(StrEnum):
    FRESH = "fresh"  # up to the TTL
    STALE = "stale"  # up to twice the TTL: half the weight
    UNKNOWN = "unknown"  # older, or never read: the probe share only. Never zero messages


@dataclass
class RegionView:
    """What is known of one Region at one moment. Rates are messages per second."""

    depth: Depth | None  # the last reading; None: never read
    age_s: float  # since that reading was asked for, or since the start
    own_since: int  # own messages accepted since the moment that the reading shows, or on their way
    others_since: float  # what other dispatchers sent since then, as far as known
    under_way: int  # own messages on their way
    projected: float  # messages that wait there now, as far as known, those on their way included
    drain: float  # that its workers take; 0: nobody knows
    capacity: float  # part of its usual workers that is left
    stalled: bool  # messages wait there and none is taken
    breaker: BreakerState
    weight: float
    threshold: int
    allowance: int  # what may still be sent before the next report to the fleet
    overloaded: bool  # it was at the threshold, and has not come down to where it resumes
    credited: (
        float  # part of what the workers should have taken since the reading that makes room: what is certain of it
    )
    ttl_s: float
    under_way_max: int  # a Region that hangs holds up no more than this

    @cached_property
    def freshness(self) -> Freshness:
        if self.depth is None or self.age_s > 2 * self.ttl_s:
            return Freshness.UNKNOWN
        return Freshness.FRESH if self.age_s <= self.ttl_s else Freshness.STALE

    @property
    def visible(self) -> int:
        return self.depth.visible if self.depth else 0

    @cached_property
    def wait_s(self) -> float:
        """Seconds until a new message there would meet a worker; 0 while nobody knows."""
        return self.projected / self.drain if self.drain else 0.0

    @cached_property
    def committed(self) -> float:
        """Messages that count against the threshold."""
        without_drain = self.visible + self.own_since + self.others_since
        return without_drain - self.credited * max(0.0, without_drain - self.projected)

    @property
    def probing(self) -> bool:
        """It gets no more than probes while there is a better Region."""
        return self.stalled or self.freshness is Freshness.UNKNOWN

    @property
    def live(self) -> bool:
        """It is at work, whether or not it may get more now."""
        return self.weight > 0 and self.breaker is not BreakerState.OPEN and not self.probing

    def budget(self, priority: Priority = Priority.NORMAL) -> int:
        """Messages of a priority that may be routed here now."""
        if self.breaker is BreakerState.OPEN or self.weight <= 0 or self.overloaded:
            return 0
        stop = self.threshold * LOW_STOPS_AT if priority is Priority.LOW else self.threshold
        room = min(floor(stop - self.committed), self.allowance, self.under_way_max - self.under_way)
        if self.freshness is Freshness.UNKNOWN:
            room = min(room, int(self.age_s * PROBES_PER_SECOND) - self.own_since)
        if self.breaker is BreakerState.HALF_OPEN:
            room = min(room, 1 - self.under_way)
        return max(0, room)

    @property
    def health(self) -> str:
        """Whether it gets messages, in a word or two; `reason` has the sentence."""
        if self.weight == 0:
            return "withdrawn"
        if self.breaker is not BreakerState.CLOSED:
            return f"breaker {self.breaker.replace('_', '-')}"
        if self.freshness is Freshness.UNKNOWN:
            return "unknown"
        if self.stalled:
            return "stalled"
        if self.overloaded or self.visible >= self.threshold:
            return "overloaded"
        if self.under_way >= self.under_way_max:
            return "slow"
        if self.allowance <= 0:
            return "waiting for its part of the room"
        return str(self.freshness) if self.budget() else "budget spent"

    @property
    def reason(self) -> str:
        """What `health` means, as a sentence for whoever watches."""
        age = f"its depth was last read {self.age_s:.0f} s ago" if self.depth else "its depth was never read"
        match self.health:
            case "withdrawn":
                return "Its weight is 0: it gets none until that is changed."
            case "breaker open":
                return "Sending there fails: it gets none until its queue answers again."
            case "breaker half-open":
                return "Its queue answers again: one message at a time goes there, to see."
            case "unknown":
                return f"{age.capitalize()}: it gets a message now and then, to see."
            case "stalled":
                seen = "" if self.freshness is Freshness.FRESH else f" ({age})"
                return f"Messages wait there and no worker takes one{seen}: next to none go there, unless all are so."
            case "overloaded":
                return f"It reached its threshold: it gets none until it is down to {RESUME * self.threshold:.0f}."
            case "slow":
                return "Half of all that is under way goes there and is not answered: it gets none until that is."
            case "waiting for its part of the room":
                return "The other dispatchers have its room until the next report, seconds from now."
            case "budget spent":
                return "What it had room for is sent: it gets more when its workers took some."
            case Freshness.STALE:
                return f"{age.capitalize()}: it gets half of its share."
        if self.capacity < 0.995:
            return f"It works with {100 * self.capacity:.0f} % of its workers, as far as known."
        return "It gets its share of new messages."


def weights(policy: Policy, views: Mapping[Region, RegionView], *, k: float, w0_s: float = W0_S) -> dict[Region, float]:
    """Return each Region's weight. `k`: messages, for `inverse-depth-smoothed`; `w0_s`: seconds."""
    if policy is Policy.TWO_CHOICES:
        return _two_choices(views)
    return {region: _weight(policy, view, k, w0_s) * _static(view) for region, view in views.items()}


def _weight(policy: Policy, view: RegionView, k: float, w0_s: float) -> float:
    match policy:
        case Policy.PROJECTED_WAIT:
            return view.capacity * view.drain / (view.wait_s + w0_s)
        case Policy.INVERSE_DEPTH:
            return 1.0 / (view.visible + 1)
        case Policy.INVERSE_DEPTH_SMOOTHED:
            return view.capacity / (view.visible + k)
        case Policy.FIXED | Policy.TWO_CHOICES:
            return 1.0


def _static(view: RegionView) -> float:
    return view.weight * (0.5 if view.freshness is Freshness.STALE else 1.0)


def _two_choices(views: Mapping[Region, RegionView]) -> dict[Region, float]:
    """Return how likely each Region has the shorter wait of two drawn by weight and capacity; ties are shared."""
    if len(views) == 1:
        return dict.fromkeys(views, 1.0)
    chances = dict.fromkeys(views, 0.0)
    odds = {region: _static(view) * view.capacity for region, view in views.items()}
    total = sum(odds.values())
    for first, one in views.items():
        rest = total - odds[first]
        for second, other in views.items():
            if second == first or rest <= 0:
                continue
            drawn = odds[first] / total * odds[second] / rest
            if one.wait_s == other.wait_s:
                chances[first] += drawn / 2
                chances[second] += drawn / 2
            else:
                chances[first if one.wait_s < other.wait_s else second] += drawn
    return chances


def shares(
    views: Mapping[Region, RegionView],
    policy: Policy,
    *,
    k: float = SMOOTHING[0],
    priority: Priority = Priority.NORMAL,
    without: Collection[Region] = (),
) -> dict[Region, float]:
    """Return the share of new messages of each Region that may get one; they sum to 1, or there are none.

    Regions that are unknown or stalled get the probe share together, and only beside one that is neither. With every
    depth unknown nobody gets anything, since unknown is not zero; with all of them stalled, none is worse than another.
    `without`: Regions out of the question for this message.
    """
    able = {r: v for r, v in views.items() if r not in without}
    stalled_alike = not any(view.live for view in able.values())
    known: dict[Region, RegionView] = {}
    probed: list[Region] = []
    for region, view in able.items():
        if view.budget(priority) <= 0:
            continue
        if view.freshness is Freshness.UNKNOWN:
            probed.append(region)
        elif view.stalled and not stalled_alike:
            if view.own_since < view.age_s * PROBES_PER_SECOND:
                probed.append(region)
        else:
            known[region] = view
    if priority is Priority.HIGH and policy.projects and known:
        shortest = min(view.wait_s for view in known.values())
        known = {r: v for r, v in known.items() if v.wait_s <= shortest + HIGH_TOLERANCE_S}
    weighed = weights(policy, known, k=k)
    total = sum(weighed.values())
    if not total:
        return {}
    probing = PROBE_SHARE if probed else 0.0
    return {r: w / total * (1 - probing) for r, w in weighed.items() if w} | dict.fromkeys(
        probed, probing / max(1, len(probed))
    )


def allot(
    shares: Mapping[Region, float],
    credit: dict[Region, float],
    count: int,
    room: Mapping[Region, int],
) -> dict[Region, int]:
    """Return how many of `count` messages go to each Region: largest remainder, carried in `credit` from run to run.

    Each message adds every share to its Region's credit, and a Region pays with its credit for what it gets; so any run
    of messages is split as the shares say, to within a message or so, where a draw for each would scatter by its square
    root. A Region gets no more than its `room`; what nobody has room for is left out.
    """
    for region, share in shares.items():
        credit[region] = credit.get(region, 0.0) + share * count
    got: dict[Region, int] = {}
    able = [region for region in shares if room[region] > 0]  # in order, so that ties fall alike in every process
    everybody = len(able) == len(shares)
    while count > 0 and able:
        best = max(able, key=lambda region: credit[region])
        take = min(count, room[best] - got.get(best, 0), max(1, floor(credit[best])))
        got[best] = got.get(best, 0) + take
        credit[best] -= take
        count -= take
        if got[best] >= room[best]:
            able.remove(best)
            everybody = everybody and not count
    if not everybody:  # what a full Region could not take is not owed to it, nor do those owe it who took it
        for region in shares:
            credit[region] = min(max(credit[region], -1.0), 1.0)
    return got
