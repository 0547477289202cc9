"""Lots: flights booked together go where they would go one by one, and no kept view hides what was booked or sent."""

import math
from collections.abc import Mapping
from random import Random

import pytest

from dispatcher.board import LOOK_S, Board, RegionRules
from dispatcher.inflight import Flight
from dispatcher.model import Delivery, Depth, Policy, Priority, Region
from dispatcher.policy.routing import RegionView

A, B, C = Region("a"), Region("b"), Region("c")
RULES = {
    A: RegionRules(1.0, 60, None, 5.0),
    B: RegionRules(2.0, 30, frozenset({"m"}), 3.0),
    C: RegionRules(1.0, 100, None),
}
DELIVERY = Delivery("m", "r", "{}", {}, None, 0.0, 1)


class Forgetful(Board):
    """Keeps no view."""

    def _look(self) -> Mapping[Region, RegionView]:
        self._seen_at = -math.inf
        return super()._look()


class Twins:
    """Two boards that hear the same: one books in lots, by views that it keeps; the other one by one, by new ones."""

    def __init__(self, seed: int, policy: Policy, shadow: Policy | None) -> None:
        self.now = 1_000.0
        self.kept, self.fresh = (
            kind(RULES, ttl_s=20.0, slots=60, random=Random(seed), now=lambda: self.now, policy=policy, shadow=shadow)
            for kind in (Board, Forgetful)
        )
        self.flying: list[tuple[Flight, Flight]] = []

    def step(self, random: Random) -> None:
        region = random.choice([*RULES])
        match random.choice(["book", "book", "book", "land", "give up", "count", "read", "learn", "follow", "time"]):
            case "book":
                model, priority, receive = random.choice("mx"), random.choice([*Priority]), self.now + 120
                pairs = [(Flight(DELIVERY, 0.0, receive), Flight(DELIVERY, 0.0, receive)) for _ in range(10)]
                pairs = pairs[: random.randint(1, 10)]
                together = self.kept.book_all([one for one, _ in pairs], model, priority)
                assert together == [self.fresh.book(other, model, priority) for _, other in pairs]
                self.flying += pairs
            case "land" | "give up" as end:
                random.shuffle(self.flying)
                some, self.flying = self.flying[::2], self.flying[1::2]
                for board, flights in ((self.kept, [p[0] for p in some]), (self.fresh, [p[1] for p in some])):
                    (board.accepted if end == "land" else board.unbook)(*flights)
            case "count":
                messages = random.randint(-2, 3)
                self.kept.count(region, messages)
                self.fresh.count(region, messages)
            case "read":
                depth = Depth(random.randint(0, 90), random.randint(0, 5), 0)
                for board in (self.kept, self.fresh):
                    board.post(region, depth, board.begin_reading(region))
            case "learn":
                succeeded = random.random() < 0.4
                self.kept.learn(region, succeeded)
                self.fresh.learn(region, succeeded)
            case "follow":
                placed = [pair for pair in self.flying if pair[0].region]
                for one, other in placed[:1]:
                    assert self.kept.follow(one, "m", region) == self.fresh.follow(other, "m", region)
            case "time":  # between two looks both see the same only if it stands
                self.now += random.choice([1.01 * LOOK_S, 1.0, 5.0, 30.0])


@pytest.mark.parametrize("shadow", [None, Policy.FIXED])
@pytest.mark.parametrize("policy", [*Policy])
def test_a_lot_goes_where_its_flights_would_go_one_by_one(policy: Policy, shadow: Policy | None) -> None:
    for seed in range(12):
        twins, random = Twins(seed, policy, shadow), Random(seed)
        for _ in range(100):
            twins.step(random)
            where = [(one.region, other.region) for one, other in twins.flying]
            assert all(one == other for one, other in where)
            assert twins.kept.views() == twins.fresh.views()
