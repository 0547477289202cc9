"""Runs: of many messages ten that follow one another go to one Region; shares, thresholds and eligibility hold."""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from random import Random

import pytest

from dispatcher.board import BATCH, LOOK_S, Board, RegionRules
from dispatcher.inflight import Flight
from dispatcher.model import Delivery, Depth, Policy, Priority, Region
from dispatcher.policy.breaker import FAILURES_IN_A_ROW
from dispatcher.policy.routing import HIGH_TOLERANCE_S

A, B, C = Region("a"), Region("b"), Region("c")


class World:
    def __init__(
        self,
        weights: dict[Region, float],
        *,
        threshold: int = 100_000,
        policy: Policy = Policy.FIXED,
        shadow: Policy | None = None,
        models: Mapping[Region, frozenset[str]] = {},
        drain: float | None = None,
    ) -> None:
        self.now = 1_000.0
        rules = {
            region: RegionRules(weight, threshold, models.get(region), drain) for region, weight in weights.items()
        }
        self.board = Board(
            rules, ttl_s=60.0, slots=10_000, random=Random(3), now=lambda: self.now, policy=policy, shadow=shadow
        )
        for region in weights:
            self.board.post(region, Depth(0, 0, 0), self.board.begin_reading(region))
        self.flying: list[Flight] = []

    def book(
        self,
        *,
        model: str = "m",
        without: tuple[Region, ...] = (),
        priority: Priority = Priority.NORMAL,
        receive: float = 1e9,
    ) -> Region | None:
        flight = Flight(Delivery("m", "r", "{}", {}, None, 0.0, 1), received_at=0.0, visible_until=receive)
        choice = self.board.book(flight, model, priority, without)
        self.flying.append(flight)
        return choice.region if choice else None

    def land(self, flying: int) -> None:
        """Let the oldest be accepted until so many are on their way."""
        while len(self.flying) > flying:
            self.board.accepted(self.flying.pop(0))

    def busy(self, messages: int, flying: int = 200) -> list[Region | None]:
        """Book messages one after the other while so many are on their way."""
        chosen = []
        for _ in range(messages):
            chosen.append(self.book())
            self.land(flying)
        return chosen


def lengths(chosen: list[Region | None]) -> list[int]:
    return [len(list(run)) for _, run in groupby(chosen)]


def test_of_few_messages_each_is_chosen_for() -> None:
    world = World({A: 1, B: 1, C: 1})
    chosen = []
    for _ in range(9):
        chosen.append(world.book())
        world.land(0)
    assert set(lengths(chosen)) == {1}


def test_a_burst_on_idle_regions_is_spread() -> None:
    got = Counter(World({A: 1, B: 1, C: 1}).busy(10))
    assert max(got.values()) <= 5


def test_of_many_a_send_s_worth_follows_one_another() -> None:
    world = World({A: 1, B: 1, C: 1})
    world.busy(500)
    assert sum(lengths(world.busy(3000))) / len(lengths(world.busy(3000))) > 0.9 * BATCH


@pytest.mark.parametrize("weights", [{A: 1.0, B: 1.0, C: 1.0}, {A: 8.0, B: 4.0, C: 2.0}, {A: 20.0, B: 1.0}])
def test_shares_are_kept_to_within_a_run(weights: dict[Region, float]) -> None:
    world = World(weights)
    got = Counter(world.busy(7000))
    total = sum(weights.values())
    for region, weight in weights.items():
        assert got[region] == pytest.approx(7000 * weight / total, abs=2 * BATCH)


def test_shares_are_kept_while_a_third_region_is_full() -> None:
    """What it cannot take is not owed to it, and the others split the rest as before."""
    world = World({A: 4.0, B: 1.0, C: 5.0})
    world.busy(300)
    world.board.capacity(C).put(0.0, world.now)
    for _ in range(FAILURES_IN_A_ROW):
        world.board.learn(C, succeeded=False)
    got = Counter(world.busy(3000))
    assert got[C] == 0
    assert got[A] == pytest.approx(2400, abs=3 * BATCH)


def test_shares_are_kept_among_messages_that_may_not_all_go_everywhere() -> None:
    """Who goes along in a run is paid for by the shares of whoever began it: they must be its own."""
    world = World({A: 1.0, B: 2.0, C: 1.0}, models={C: frozenset({"m"})})
    random, got = Random(5), Counter[tuple[str, Region | None]]()
    for _ in range(12_000):
        model = random.choice("mn")
        got[model, world.book(model=model)] += 1
        world.land(200)
    everywhere, elsewhere = (sum(count for (to, _), count in got.items() if to == model) for model in "mn")
    assert got["n", C] == 0
    assert got["m", C] == pytest.approx(everywhere / 4, abs=3 * BATCH)
    assert got["m", A] + got["n", A] == pytest.approx(everywhere / 4 + elsewhere / 3, abs=3 * BATCH)


@pytest.mark.parametrize(
    ("policy", "priority"), [(Policy.PROJECTED_WAIT, Priority.HIGH), (Policy.TWO_CHOICES, Priority.NORMAL)]
)
def test_who_goes_to_the_shortest_wait_goes_by_the_waits_of_now(policy: Policy, priority: Priority) -> None:
    """By a look that serves several runs all of them would go to one Region, until the next look."""
    world = World({A: 1.0, B: 1.0}, policy=policy, drain=10.0)
    world.busy(2000, flying=1000)
    for _ in range(3):
        world.board.count(B, 50)  # five seconds of waiting more
        for number in range(100):
            world.book(priority=priority, receive=number // BATCH)
            world.land(1000)
        here, there = (view.wait_s for view in world.board.views().values())
        assert abs(here - there) <= HIGH_TOLERANCE_S + BATCH / 10.0


def test_no_run_goes_past_a_threshold() -> None:
    world = World({A: 1.0, B: 1.0}, threshold=57)
    got = Counter(world.busy(500))
    assert got[A] == got[B] == 57
    assert got[None] == 500 - 114


def test_a_run_ends_when_its_region_is_out_of_the_question() -> None:
    world = World({A: 1.0, B: 1.0})
    world.busy(400)
    here = world.book()
    other = B if here is A else A
    assert here
    assert [world.book(without=(here,)) for _ in range(3)] == [other] * 3


def test_a_run_ends_when_its_breaker_opens() -> None:
    world = World({A: 1.0, B: 1.0})
    world.busy(400)
    here = world.book()
    assert here
    for _ in range(FAILURES_IN_A_ROW):
        world.board.learn(here, succeeded=False)
    assert here not in {world.book() for _ in range(BATCH)}


def test_a_run_is_of_one_priority_and_of_one_moment() -> None:
    world = World({A: 1.0, B: 1.0})
    world.busy(400)
    world.book()
    begun = world.board._run
    world.book(priority=Priority.HIGH)
    assert world.board._run is not begun
    begun = world.board._run
    assert begun
    assert begun.priority is Priority.HIGH
    world.book(priority=Priority.HIGH)
    assert world.board._run is begun
    world.now += 2 * LOOK_S
    world.book(priority=Priority.HIGH)
    assert world.board._run is not begun


def test_a_run_goes_on_no_longer_than_the_look_that_it_was_chosen_by() -> None:
    world = World({A: 1.0, B: 1.0})
    world.busy(400)
    world.now += LOOK_S
    world.book(receive=1e9 + 1)  # looks
    world.now += 0.9 * LOOK_S
    world.book(receive=1e9 + 2)  # goes by that look
    begun = world.board._run
    world.now += 0.2 * LOOK_S
    world.book(receive=1e9 + 2)
    assert world.board._run is not begun


def test_a_run_ends_with_its_receive() -> None:
    """What came together is claimed together: a run across two receives would be sent in two parts."""
    world = World({A: 1.0, B: 1.0})
    world.busy(400)
    begun = world.board._run
    world.book(receive=1e9 + 1)
    assert world.board._run is not begun
    assert world.board._run
    assert world.board._run.count == 1


@pytest.mark.parametrize(("policy", "shadow"), [(Policy.INVERSE_DEPTH, None), (Policy.FIXED, Policy.INVERSE_DEPTH)])
def test_the_original_and_whoever_compares_know_no_runs(policy: Policy, shadow: Policy | None) -> None:
    world = World({A: 1.0, B: 1.0}, policy=policy, shadow=shadow)
    world.busy(400)
    world.book()
    assert world.board._run is None


def test_what_is_on_its_way_is_counted_to_the_last_message() -> None:
    world = World({A: 1.0, B: 1.0})
    world.busy(400)
    world.land(0)
    assert world.board._booked == 0
    assert all(view.under_way == 0 for view in world.board.views().values())


def test_a_newer_reading_ends_a_run() -> None:
    """Or it would go on to a Region that is known to be full."""
    world = World({A: 1.0, B: 1.0}, threshold=1000)
    world.busy(400, flying=100)
    here = world.book()
    assert here
    world.board.post(here, Depth(5000, 0, 0), world.board.begin_reading(here))
    assert here not in {world.book() for _ in range(BATCH)}


def test_a_client_cannot_fill_the_memory_with_names() -> None:
    world = World({A: 1.0})
    for number in range(3000):
        assert world.board.serves(f"model-{number}")
        assert world.board.serves(f"{number}" * 1000)
    kept = world.board._serving
    assert sum(map(len, kept)) <= 1000 * 200
    assert len(kept) <= 1000
