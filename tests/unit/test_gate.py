"""When nothing is received, and how much may be asked for."""

from collections.abc import Callable
from random import Random
from unittest.mock import patch

import pytest

from dispatcher.board import LOOK_S, Board, RegionRules
from dispatcher.gate import Gate
from dispatcher.inflight import Flight, InFlight
from dispatcher.model import Delivery, Depth
from dispatcher.policy.breaker import FAILURES_IN_A_ROW, Breaker, BreakerState
from dispatcher.policy.fleet import Fleet
from tests.unit.test_board import A, B, World


def parked() -> Flight:
    return Flight(Delivery("m", "r", "{}", {}, None, 0.0, 1), received_at=0.0, visible_until=120.0, parked=True)


def gate(board: Board, *, limit: int = 100) -> Gate:
    return Gate(board, Breaker(), InFlight(limit))


def test_as_many_are_asked_for_as_have_a_slot_and_a_place() -> None:
    assert gate(World(A, threshold=7).board).room() == 7
    assert gate(World(A, threshold=700).board, limit=5).room() == 5


def test_what_open_polls_may_bring_has_its_place_taken_already() -> None:
    full = gate(World(A, threshold=7).board)
    full.in_flight.ask(7)
    assert full.room() == 0
    assert full.holding() is None
    few = gate(World(A, threshold=7).board, limit=10)
    few.in_flight.ask(5)
    assert few.room() == 2


def test_nothing_is_received_while_no_region_may_get_anything() -> None:
    world = World(A)
    world.read(A, visible=100)
    assert gate(world.board).holding()
    assert gate(world.board).room() == 0


def test_nothing_is_received_while_the_ledger_does_not_answer() -> None:
    shut = gate(World(A).board)
    shut.ledger.state = BreakerState.OPEN
    assert shut.holding()
    assert shut.room() == 0


def test_messages_parked_for_a_full_region_do_not_keep_others_from_an_open_one() -> None:
    """A's are parked, B has five places: B's messages are received though more are parked than B could take."""
    world = World(A, B, threshold=100)
    world.read(A, visible=100)
    world.read(B, visible=95)
    open_for_b = gate(world.board)
    for _ in range(20):
        open_for_b.in_flight.add(parked())
    assert open_for_b.holding() is None
    assert open_for_b.room() > 0


def test_when_half_of_the_slots_are_parked_receiving_stops() -> None:
    full = gate(World(A).board)
    for _ in range(50):
        full.in_flight.add(parked())
    assert full.holding()
    assert full.room() == 0


def test_a_depth_that_falls_opens_the_gate_again() -> None:
    world = World(A)
    world.read(A, visible=100)
    shut = gate(world.board)
    assert shut.holding()
    world.board.post(A, Depth(10, 0, 0), world.board.begin_reading(A))
    assert shut.room() == 90


def looks(act: Callable[[], object]) -> int:
    """Return how often all Regions are looked at meanwhile."""
    with patch.object(Board, "views", autospec=True, side_effect=Board.views) as views:
        act()
    return views.call_count


def test_polls_of_one_moment_share_a_look_at_the_regions() -> None:
    world = World(A, B, threshold=1000)
    ample = gate(world.board)
    assert looks(ample.room) == 1
    assert looks(lambda: [ample.room() for _ in range(20)]) == 0
    world.now += LOOK_S
    assert looks(ample.room) == 1


def test_what_was_booked_since_is_no_room_any_more() -> None:
    world = World(A, threshold=150)
    ample = gate(world.board)
    assert ample.room() == 100
    flights = [world.book()[0] for _ in range(100)]
    for flight in flights[:50]:
        world.board.accepted(flight)
    assert not world.board.has_room(51)
    assert ample.room() == 50


@pytest.mark.parametrize(
    "news",
    [
        lambda world: world.read(A, visible=1000),
        lambda world: [world.board.learn(A, succeeded=False) for _ in range(FAILURES_IN_A_ROW)],
        lambda world: world.board.report(),
    ],
    ids=["reading", "breaker", "report"],
)
def test_whatever_is_newer_is_looked_at(news: Callable[[World], object]) -> None:
    world = World(A, B, threshold=1000)
    ample = gate(world.board)
    ample.room()
    news(world)
    assert looks(ample.room) >= 1


def test_the_word_of_the_fleet_is_looked_at() -> None:
    rules = {A: RegionRules(1.0, 1000, None)}
    board = Board(rules, ttl_s=60.0, slots=1000, random=Random(0), now=lambda: 1_000.0, fleet=Fleet(15.0))
    board.post(A, Depth(0, 0, 0), board.begin_reading(A))
    board.report()
    assert not board.has_room(1), "nobody knows what the others have set aside"
    board.learn_fleet({})
    assert board.has_room(1)


def test_scarce_room_is_told_as_it_is() -> None:
    """Room that came back within the moment is seen: whoever finds none waits for a second."""
    world = World(A, B, threshold=1000, slots=20)
    scarce = gate(world.board)
    flights = [world.book()[0] for _ in range(20)]
    assert scarce.room() == 0
    for flight in flights:
        world.board.accepted(flight)
    assert scarce.room() == 20
