"""Lots and looks: flights booked together go where they would go one by one; no look hides that there is no room."""

import math
from random import Random

import pytest

from dispatcher.board import LOOK_S, Board, RegionRules, _Look
from dispatcher.inflight import Flight
from dispatcher.model import Delivery, Depth, Policy, Priority, Region
from dispatcher.policy.routing import shares

A, B, C = Region("a"), Region("b"), Region("c")
RULES = {
    A: RegionRules(1.0, 600, None, 5.0),
    B: RegionRules(2.0, 300, frozenset({"m"}), 3.0),
    C: RegionRules(1.0, 1000, None),
}
DELIVERY = Delivery("m", "r", "{}", {}, None, 0.0, 1)


class Forgetful(Board):
    """Goes by what is so now."""

    def _look(self, *, anew: bool = False) -> _Look:
        self._seen.at = -math.inf
        return super()._look()


class Twins:
    """Two boards that hear the same: one books in lots, the other one by one."""

    def __init__(self, seed: int, policy: Policy, shadow: Policy | None, other: type[Board], slots: int) -> None:
        self.now = 1_000.0
        self.lots, self.single = (
            kind(
                RULES, ttl_s=20.0, slots=slots, random=Random(seed), now=lambda: self.now, policy=policy, shadow=shadow
            )
            for kind in (Board, other)
        )
        self.flying: list[tuple[Flight, Flight]] = []

    def step(self, random: Random) -> None:
        region = random.choice([*RULES])
        match random.choice(["book"] * 4 + ["land"] * 2 + ["give up", "count", "read", "learn", "follow", "time"]):
            case "book":
                model, priority, receive = random.choice("mx"), random.choice([*Priority]), self.now + 120
                many = random.randint(1, 10)
                pairs = [(Flight(DELIVERY, 0.0, receive), Flight(DELIVERY, 0.0, receive)) for _ in range(many)]
                together = self.lots.book_all([one for one, _ in pairs], model, priority)
                assert together == [self.single.book(other, model, priority) for _, other in pairs]
                self.flying += pairs
            case "land" | "give up" as end:
                random.shuffle(self.flying)
                some, self.flying = self.flying[::2], self.flying[1::2]
                for board, flights in ((self.lots, [p[0] for p in some]), (self.single, [p[1] for p in some])):
                    (board.accepted if end == "land" else board.unbook)(*flights)
            case "count":
                messages = random.randint(-2, 3)
                self.lots.count(region, messages)
                self.single.count(region, messages)
            case "read":
                depth = Depth(random.randint(0, 900), random.randint(0, 5), 0)
                for board in (self.lots, self.single):
                    board.post(region, depth, board.begin_reading(region))
            case "learn":
                succeeded = random.random() < 0.4
                self.lots.learn(region, succeeded)
                self.single.learn(region, succeeded)
            case "follow":
                placed = [pair for pair in self.flying if pair[0].region]
                for one, other in placed[:1]:
                    assert self.lots.follow(one, "m", region) == self.single.follow(other, "m", region)
            case "time":  # between two looks both see the same only if it stands
                self.now += random.choice([1.01 * LOOK_S, 1.0, 5.0, 30.0])


@pytest.mark.parametrize("shadow", [None, Policy.FIXED])
@pytest.mark.parametrize("policy", [*Policy])
@pytest.mark.parametrize("slots", [60, 6000])
def test_a_lot_goes_where_its_flights_would_go_one_by_one(policy: Policy, shadow: Policy | None, slots: int) -> None:
    for seed in range(6):
        twins, random = Twins(seed, policy, shadow, Board, slots), Random(seed)
        for _ in range(100):
            twins.step(random)
            assert all(one.region == other.region for one, other in twins.flying)
            assert twins.lots.views() == twins.single.views()


@pytest.mark.parametrize("policy", [*Policy])
def test_a_look_knows_whatever_came_or_went_since(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is renewed after each change it is as good as a new one: what it does not hear of it would not renew."""
    monkeypatch.setattr("dispatcher.board.LOOK_PART", 10**9)
    for seed in range(6):
        twins, random = Twins(seed, policy, None, Forgetful, 60), Random(seed)
        for _ in range(100):
            twins.step(random)
            assert all(one.region == other.region for one, other in twins.flying)


@pytest.mark.parametrize("policy", [*Policy])
@pytest.mark.parametrize("slots", [60, 6000])
def test_whatever_a_look_says_nobody_gets_more_than_there_is_room_for_nor_is_there_none_while_some_is_left(
    policy: Policy, slots: int
) -> None:
    stale = 0
    for seed in range(6):
        twins, random = Twins(seed, policy, None, Board, slots), Random(seed)
        board = twins.single
        for _ in range(60):
            twins.step(random)
            model, priority = random.choice("mx"), random.choice([*Priority])
            for _ in range(random.randint(0, 40)):
                views = board.views()
                out = views.keys() - board.serving(model)
                receive = random.choice([1.0, 2.0])
                pair = Flight(DELIVERY, 0.0, receive), Flight(DELIVERY, 0.0, receive)
                choice, _ = twins.single.book(pair[0], model, priority), twins.lots.book(pair[1], model, priority)
                twins.flying.append((pair[1], pair[0]))
                stale += bool(board._seen.changed[:-1])
                if choice is None:
                    assert not shares(views, board.policy, k=board._k, priority=priority, without=out)
                else:
                    assert choice.region not in out
                    assert views[choice.region].budget(priority) >= 1
    assert slots == 60 or stale > 500, "looks were kept"
