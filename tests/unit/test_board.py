"""The board: choice and booking are one step, and what was sent since a reading is not forgotten."""

from collections import Counter
from random import Random

import pytest

from dispatcher.board import Board, RegionRules
from dispatcher.inflight import Flight
from dispatcher.model import Delivery, Depth, Policy, Region
from dispatcher.policy.breaker import FAILURES_IN_A_ROW, BreakerState
from dispatcher.policy.routing import Freshness

A, B = Region("a"), Region("b")
MODEL = "gpt-l-7b"


class World:
    """A board with every depth read, on a clock that stands until it is moved."""

    def __init__(
        self, *regions: Region, threshold: int = 100, slots: int = 1000, seed: int = 0, read: bool = True
    ) -> None:
        self.now = 1_000.0
        self.rules = {region: RegionRules(1.0, threshold, None) for region in regions}
        self.board = Board(
            self.rules, ttl_s=60.0, slots=slots, random=Random(seed), now=lambda: self.now, policy=Policy.INVERSE_DEPTH
        )
        for region in regions if read else ():
            self.read(region)

    def read(self, region: Region, visible: int = 0) -> None:
        self.board.post(region, Depth(visible, 0, 0), self.board.begin_reading(region))

    def book(self, model: str = MODEL) -> tuple[Flight, Region | None]:
        flight = Flight(Delivery("m", "r", "{}", {}, None, 0.0, 1), received_at=self.now, visible_until=self.now + 120)
        choice = self.board.book(flight, model)
        return flight, choice.region if choice else None

    def send(self) -> Region | None:
        flight, region = self.book()
        if region is not None:
            self.board.accepted(flight)
        return region

    def open_breaker(self, region: Region) -> None:
        for _ in range(FAILURES_IN_A_ROW):
            self.board.learn(region, succeeded=False)
        assert self.board.view(region).breaker is BreakerState.OPEN


def test_a_choice_books_its_place_so_that_the_next_one_sees_it() -> None:
    world = World(A, threshold=3)
    flights = [world.book() for _ in range(5)]
    assert [region for _, region in flights] == [A, A, A, None, None]
    assert [flight.region for flight, _ in flights] == [A, A, A, None, None]
    assert world.board.room() == 0


def test_a_place_that_is_given_up_is_free_again() -> None:
    world = World(A, threshold=1)
    flight, _ = world.book()
    world.board.unbook(flight)
    world.board.unbook(flight)
    assert world.board.room() == 1
    assert flight.region is None


def test_what_was_accepted_counts_until_a_later_reading_shows_it() -> None:
    world = World(A, threshold=3)
    assert [world.send() for _ in range(4)] == [A, A, A, None]
    world.read(A, visible=1)
    assert world.board.view(A).own_since == 0
    assert world.board.room() == 2


def test_a_reading_that_was_asked_for_before_an_acceptance_does_not_forget_it() -> None:
    """The Region counted before the message came; taking its answer for the whole truth would send it too much."""
    world = World(A, threshold=3)
    world.send()
    begun = world.board.begin_reading(A)
    world.send()
    booked, _ = world.book()
    world.board.post(A, Depth(1, 0, 0), begun)
    assert world.board.view(A).own_since == 2
    world.board.accepted(booked)
    assert world.board.room() == 0
    assert world.send() is None


def test_a_reading_is_as_old_as_the_moment_it_was_asked_for() -> None:
    world = World(A)
    begun = world.board.begin_reading(A)
    world.now += 50
    world.board.post(A, Depth(0, 0, 0), begun)
    assert world.board.view(A).age_s == 50


def test_a_region_that_hangs_holds_at_most_half_of_the_slots() -> None:
    world = World(A, B, threshold=10_000, slots=100)
    got: Counter[Region | None] = Counter()
    for _ in range(1000):
        flight, region = world.book()
        got[region] += 1
        if region == B:  # B answers, A hangs
            world.board.accepted(flight)
    assert got[A] == 50
    assert got[B] == 950


def test_a_region_that_serves_other_models_is_passed_over() -> None:
    world = World(A, B)
    world.rules[A].models = frozenset({"other"})
    assert {world.book()[1] for _ in range(20)} == {B}
    assert world.board.serving(MODEL)


def test_a_model_that_no_region_serves_gets_none() -> None:
    world = World(A, B)
    for region in (A, B):
        world.rules[region].models = frozenset({"other"})
    assert world.book()[1] is None
    assert not world.board.serving(MODEL)


def test_half_open_a_region_gets_one_message_and_the_next_when_that_one_ended() -> None:
    world = World(A, B)
    world.open_breaker(A)
    assert {world.send() for _ in range(20)} == {B}
    world.read(A)
    booked = [world.book() for _ in range(20)]
    assert [region for _, region in booked].count(A) == 1
    assert world.board.admits(A, 10) == 1
    assert world.board.admits(A, 10) == 0
    world.board.learn(A, succeeded=True)
    assert A in [world.book()[1] for _ in range(20)]


def test_an_open_region_that_refuses_its_trial_gets_nothing_until_it_is_read_again() -> None:
    world = World(A, B)
    world.open_breaker(A)
    world.read(A)
    world.board.admits(A, 1)
    world.board.learn(A, succeeded=False)
    assert {world.send() for _ in range(20)} == {B}


def test_a_region_that_was_never_read_gets_nothing_from_a_start_in_the_dark() -> None:
    world = World(A, B, read=False)
    world.now += 300
    assert world.book()[1] is None
    assert world.board.room() == 0
    assert not world.board.any_depth_read()


def test_a_region_that_goes_unread_becomes_stale_then_unknown_and_is_only_probed() -> None:
    world = World(A, B, threshold=10_000, slots=10_000)
    seen = []
    for _ in range(3):
        seen.append(world.board.view(A).freshness)
        world.now += 61
        world.read(B)
    assert seen == [Freshness.FRESH, Freshness.STALE, Freshness.UNKNOWN]
    got = Counter(world.send() for _ in range(1000))
    assert 0 < got[A] <= 25


def test_a_second_choice_leaves_the_refusing_region_and_its_place() -> None:
    world = World(A, B, threshold=1)
    flight, first = world.book()
    assert first is not None
    second = world.board.book(flight, MODEL, without=[first])
    assert second is not None
    assert {first, second.region} == {A, B}
    assert world.board.view(first).under_way == 0
    assert world.board.view(flight.region or A).under_way == 1


def test_a_place_is_kept_when_no_other_is_found() -> None:
    world = World(A)
    flight, _ = world.book()
    assert world.board.book(flight, MODEL, without=[A]) is None
    assert flight.region == A


def test_a_takeover_goes_to_the_written_region_only_while_that_may_get_a_message() -> None:
    world = World(A, B, threshold=1)
    flight, first = world.book()
    other = B if first == A else A
    assert world.board.follow(flight, MODEL, other).region == other == flight.region
    late, place = world.book()
    assert place == first, "the one place that is left"
    assert world.board.follow(late, MODEL, other).region == first == late.region, "full"
    assert world.board.follow(late, MODEL, Region("gone")).region == first


def test_a_takeover_goes_elsewhere_while_the_last_call_to_the_written_region_failed() -> None:
    world = World(A, B)
    world.board.learn(A, succeeded=False)
    flights = [world.book()[0] for _ in range(10)]
    assert {world.board.follow(flight, MODEL, A).region for flight in flights} == {B}
    world.board.learn(A, succeeded=True)
    assert {world.board.follow(flight, MODEL, A).region for flight in flights} == {A}


def test_dispatchers_that_start_together_do_not_all_begin_with_the_same_region() -> None:
    firsts = Counter(World(A, B, Region("c"), seed=seed).send() for seed in range(300))
    assert len(firsts) == 3
    assert min(firsts.values()) > 50


@pytest.mark.parametrize("counts", [(100, 100, 100)])
def test_equal_regions_are_equal_within_two_percent(counts: tuple[int, ...]) -> None:
    regions = [Region(str(n)) for n in range(len(counts))]
    world = World(*regions, threshold=100_000)
    for region, visible in zip(regions, counts, strict=True):
        world.read(region, visible)
    got = Counter(world.send() for _ in range(6000))
    assert max(got.values()) / min(got.values()) < 1.02


def test_a_model_that_only_a_withdrawn_region_serves_is_served_but_nobody_may_get_it() -> None:
    world = World(A, B)
    world.board._places[A].rules.weight = 0.0
    world.board._places[B].rules.models = frozenset({"another"})
    assert world.board.serves(MODEL)
    assert world.board.serving(MODEL) == set()
