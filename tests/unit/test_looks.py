"""One look at the Regions serves many messages, and never promises more than a new one would."""

from collections.abc import Callable
from random import Random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.board import LOOK_S, LOOKS_MAX, Board, RegionRules
from dispatcher.inflight import Flight
from dispatcher.model import Delivery, Depth, Policy, Priority, Region
from dispatcher.policy.breaker import FAILURES_IN_A_ROW
from dispatcher.policy.fleet import Fleet, Point, Report

A, B, C = REGIONS = Region("a"), Region("b"), Region("c")
TTL_S = 60.0


class World:
    def __init__(self, *, policy: Policy = Policy.FIXED, shadow: Policy | None = None, threshold: int = 60) -> None:
        self.now = 1_000.0
        self.board = Board(
            {
                A: RegionRules(1.0, threshold, None),
                B: RegionRules(2.0, threshold, frozenset({"m"})),
                C: RegionRules(1.0, threshold, None),
            },
            ttl_s=TTL_S,
            slots=100,
            random=Random(3),
            now=lambda: self.now,
            policy=policy,
            shadow=shadow,
            fleet=Fleet(TTL_S / 4, lag_s=0.0),
        )
        self.flying: list[Flight] = []
        self.learn(others_aside=0)
        for region in REGIONS:
            self.post(region, 0)

    def post(self, region: Region, visible: int) -> None:
        self.board.post(region, Depth(visible, 0, 0), self.board.begin_reading(region))

    def learn(self, others_aside: int) -> None:
        """Hear of another dispatcher that sent nothing and keeps so many places in each Region."""
        self.board.report()
        nothing = dict.fromkeys(REGIONS, 0)
        aside = dict.fromkeys(REGIONS, others_aside)
        self.board.learn_fleet({"other": Report(Point(self.now, nothing), Point(900.0, nothing), aside, {}, {})})

    def book(self, model: str = "m", priority: Priority = Priority.NORMAL) -> Region | None:
        flight = Flight(Delivery("m", "r", "{}", {}, None, 0.0, 1), received_at=0.0, visible_until=1e9)
        if self.board.book(flight, model, priority):
            self.flying.append(flight)
        return flight.region

    def looks_taken(self, act: Callable[[], object]) -> int:
        with patch.object(Board, "views", autospec=True, side_effect=Board.views) as views:
            act()
        return views.call_count


OPERATIONS = st.one_of(
    st.tuples(st.just("book"), st.sampled_from(["m", "other"]), st.sampled_from(Priority)),
    st.tuples(st.just("book"), st.just("m"), st.just(Priority.NORMAL)),
    st.tuples(st.sampled_from(["accepted", "unbook"])),
    st.tuples(st.just("fail"), st.sampled_from(REGIONS)),
    st.tuples(st.just("succeed"), st.sampled_from(REGIONS)),
    st.tuples(st.just("post"), st.sampled_from(REGIONS), st.integers(0, 100)),
    st.tuples(st.just("learn"), st.integers(0, 80)),
    st.tuples(st.just("report")),
    st.tuples(st.just("count"), st.sampled_from(REGIONS), st.integers(-3, 10)),
    st.tuples(st.just("wait"), st.floats(0.001, 0.06)),
)


@settings(max_examples=400)
@given(st.lists(OPERATIONS, max_size=60))
def test_no_look_promises_more_than_a_new_one_would(operations: list[tuple[object, ...]]) -> None:
    """Whatever happens in between: a place is booked only where a new look would find room, too."""
    world = World()
    board = world.board
    for what, *more in operations:
        match what, more:
            case "book", [str(model), Priority() as priority]:
                budgets = {region: view.budget(priority) for region, view in board.views().items()}
                chosen = world.book(model, priority)
                assert chosen is None or budgets[chosen] > 0
                assert chosen is not None or not any(budgets[r] for r in board.serving(model))
            case "accepted" | "unbook", _:
                if world.flying:
                    getattr(board, str(what))(world.flying.pop(0))
            case "fail", [str(region)]:
                for _ in range(FAILURES_IN_A_ROW):
                    board.learn(Region(region), succeeded=False)
            case "succeed", [str(region)]:
                board.learn(Region(region), succeeded=True)
            case "post", [str(region), int(visible)]:
                world.post(Region(region), visible)
            case "learn", [int(aside)]:
                world.learn(aside)
            case "report", _:
                board.report()
            case "count", [str(region), int(messages)]:
                board.count(Region(region), messages)
            case "wait", [float(seconds)]:
                world.now += seconds
        assert 0 <= board.room() <= sum(view.budget() for view in board.views().values())


def test_messages_and_polls_of_one_moment_share_a_look() -> None:
    world = World()
    assert world.looks_taken(world.board.room) == 1
    world.now += LOOK_S
    assert world.looks_taken(world.board.room) == 1


def test_each_priority_has_a_look_of_its_own() -> None:
    world = World()
    world.book(priority=Priority.LOW)  # which stops at four fifths of the threshold
    assert world.board.room() == sum(view.budget() for view in world.board.views().values())


@pytest.mark.parametrize(
    "news",
    [
        lambda world: world.post(A, 5),
        lambda world: world.board.report(),
        lambda world: world.board.learn_fleet({}),
        lambda world: [world.board.learn(A, succeeded=False) for _ in range(FAILURES_IN_A_ROW)],
    ],
    ids=["reading", "report", "fleet", "breaker"],
)
def test_whatever_is_newer_is_looked_at(news: Callable[[World], object]) -> None:
    world = World()
    world.board.room()
    news(world)
    assert world.looks_taken(world.board.room) == 1


def test_after_a_probe_is_looked_anew() -> None:
    """Of a Region that is stalled the next probe waits a second, whatever room it has."""
    world = World(threshold=1000)
    world.now += 3 * TTL_S
    world.post(A, 0)
    world.post(B, 0)
    while world.book() is not C:  # of which nothing is known by now
        world.board.accepted(world.flying.pop())
    assert world.looks_taken(world.board.room) == 1


def test_a_call_that_changes_nothing_of_a_breaker_costs_no_look() -> None:
    world = World()
    world.board.room()
    world.board.learn(A, succeeded=True)
    assert world.looks_taken(world.board.room) == 0


@pytest.mark.parametrize(("policy", "shadow"), [(Policy.INVERSE_DEPTH, None), (Policy.FIXED, Policy.INVERSE_DEPTH)])
def test_the_original_and_whoever_compares_look_for_each_message(policy: Policy, shadow: Policy | None) -> None:
    world = World(policy=policy, shadow=shadow)
    assert world.looks_taken(lambda: [world.book() for _ in range(10)]) == 10


def test_no_more_looks_are_kept_than_there_are_kinds_of_messages() -> None:
    """Which Regions a message may not go to is up to the models of a client's choosing, and to refusals."""
    regions = [Region(f"r{number}") for number in range(LOOKS_MAX + 5)]
    board = Board(
        {region: RegionRules(1.0, 60, None) for region in regions},
        ttl_s=TTL_S,
        slots=100,
        random=Random(3),
        now=lambda: 1_000.0,
        policy=Policy.FIXED,
    )
    for region in regions:
        board.post(region, Depth(0, 0, 0), board.begin_reading(region))
    for region in regions:
        board.room(without=[region])
        assert len(board._looks) <= LOOKS_MAX
