"""From what is known of each Region to the Region that a message goes to. Pure: no clock, no client.

`inverse-depth` is the original's policy, exactly: weight 1 / (visible + 1), Regions at or over the threshold left out.
Around it stand guards that hold for every policy: a reading's age, a budget of sends until the next reading, the
breaker, and a bound on what one Region may hold up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dispatcher.model import Depth, Region
from dispatcher.policy.breaker import BreakerState

PROBE_SHARE = 0.02
"""Of new messages, for all Regions of unknown depth together: enough to notice a recovery, too little to hurt."""
PROBES_PER_SECOND = 1.0


class Freshness(StrEnum):
    FRESH = "fresh"  # up to the TTL
    STALE = "stale"  # up to twice the TTL: half the weight
    UNKNOWN = "unknown"  # older, or never read: the probe share only. Never zero messages


@dataclass(frozen=True, slots=True)
class RegionView:
    """What is known of one Region at one moment."""

    depth: Depth | None  # the last reading; None: never read
    age_s: float  # since that reading was asked for, or since the start
    sent_since: int  # own messages accepted since then or on their way
    under_way: int  # of these, on their way
    breaker: BreakerState
    weight: float
    threshold: int
    ttl_s: float
    under_way_max: int  # a Region that hangs holds up no more than this

    @property
    def freshness(self) -> Freshness:
        if self.depth is None or self.age_s > 2 * self.ttl_s:
            return Freshness.UNKNOWN
        return Freshness.FRESH if self.age_s <= self.ttl_s else Freshness.STALE

    @property
    def budget(self) -> int:
        """Messages that may still be routed here before the next reading."""
        visible = self.depth.visible if self.depth else 0
        room = self.threshold - visible - self.sent_since
        if self.freshness is Freshness.UNKNOWN:
            room = min(room, int(self.age_s * PROBES_PER_SECOND) - self.sent_since)
        room = min(room, self.under_way_max - self.under_way)
        if self.breaker is BreakerState.HALF_OPEN:
            room = min(room, 1 - self.under_way)
        return max(0, room) if self.breaker is not BreakerState.OPEN and self.weight > 0 else 0

    @property
    def health(self) -> str:
        """Why it gets messages or not, in words."""
        if self.weight == 0:
            return "withdrawn"
        if self.breaker is not BreakerState.CLOSED:
            return f"breaker {self.breaker.replace('_', '-')}"
        if self.freshness is Freshness.UNKNOWN:
            return "unknown"
        if self.depth and self.depth.visible >= self.threshold:
            return "overloaded"
        if self.under_way >= self.under_way_max:
            return "slow"
        return str(self.freshness) if self.budget else "budget spent"


def inverse_depth(view: RegionView) -> float:
    """The original's weight, times the static one; halved while the reading is stale."""
    visible = view.depth.visible if view.depth else 0
    return view.weight / (visible + 1) * (0.5 if view.freshness is Freshness.STALE else 1.0)


def shares(views: Mapping[Region, RegionView]) -> dict[Region, float]:
    """Return the share of new messages of each Region that may get one; they sum to 1, or there are none.

    Regions of unknown depth get the probe share together, and only beside a Region that is known: with every depth
    unknown nobody gets anything, since unknown is not zero.
    """
    known = {r: inverse_depth(v) for r, v in views.items() if v.budget and v.freshness is not Freshness.UNKNOWN}
    unknown = [r for r, v in views.items() if v.budget and v.freshness is Freshness.UNKNOWN]
    total = sum(known.values())
    if not total:
        return {}
    probing = PROBE_SHARE if unknown else 0.0
    return {r: w / total * (1 - probing) for r, w in known.items()} | {r: probing / len(unknown) for r in unknown}


def pick(shares: Mapping[Region, float], credit: dict[Region, float]) -> Region:
    """Return the next message's Region: largest remainder, carried in `credit` from message to message.

    Each message adds every share to its Region's credit and takes one whole from the largest, so any run of messages
    is split as the shares say, to within a message or so, where a draw for each would scatter by its square root.
    """
    for region, share in shares.items():
        credit[region] = credit.get(region, 0.0) + share
    best = max(shares, key=lambda region: credit[region])
    credit[best] -= 1.0
    return best
