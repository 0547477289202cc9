"""Decisions 17: when nothing is received, and how much may be asked for."""

from dispatcher.board import Board
from dispatcher.gate import Gate
from dispatcher.inflight import Flight, InFlight
from dispatcher.model import Delivery, Depth
from dispatcher.policy.breaker import Breaker, BreakerState
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
