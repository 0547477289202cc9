import pytest

from dispatcher import inflight
from dispatcher.inflight import BODY_BYTES_MAX, Flight, InFlight, Step
from dispatcher.model import Delivery, Region


def flight(**fields: object) -> Flight:
    made = Flight(Delivery("m", "r", "{}", {}, None, 0.0, 1), received_at=0.0, visible_until=120.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_slots_are_taken_by_what_is_held_and_by_what_open_polls_may_bring() -> None:
    held = InFlight(10)
    held.ask(4)
    first = flight()
    held.add(first)
    assert (held.free, len(held)) == (5, 1)
    held.answered(4)
    held.remove(first)
    assert (held.free, len(held)) == (10, 0)


def test_nothing_more_is_asked_for_while_the_bodies_held_fill_their_share_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inflight, "BODY_BYTES_MAX", 2_500)
    held = InFlight(10)
    large = [flight(delivery=Delivery(f"m{n}", "r", "x" * 1_000, {}, None, 0.0, 1)) for n in range(3)]
    for each in large:
        assert held.free > 0
        held.add(each)
    assert held.free == 0
    held.remove(large[0])
    assert held.free == 8


def test_two_deliveries_that_look_alike_are_two() -> None:
    held = InFlight(10)
    for _ in range(2):
        held.add(flight())
    assert held.free == 8


def test_deliveries_may_end_while_they_are_looked_through() -> None:
    held = InFlight(10)
    for _ in range(3):
        held.add(flight())
    for each in held:
        held.remove(each)
    assert len(held) == 0


def test_what_has_no_region_yet_is_told_from_what_has_one_or_needs_none() -> None:
    held = InFlight(10)
    held.ask(2)
    held.add(flight())
    held.add(flight(region=Region("a")))
    held.add(flight(step=Step.ACCEPTED))
    held.add(flight(parked=True))
    assert held.unrouted == 3


def test_parking_is_full_when_half_of_the_slots_only_wait() -> None:
    held = InFlight(4)
    held.add(flight(parked=True))
    held.add(flight())
    assert not held.parking_full
    held.add(flight(parked=True))
    assert held.parking_full


def test_parking_is_full_when_half_of_the_memory_only_waits() -> None:
    held = InFlight(1000)
    large = Delivery("m", "r", "x" * 1_000_000, {}, None, 0.0, 1)
    waiting = BODY_BYTES_MAX // 2 // 1_000_000 + 1
    for _ in range(waiting):
        held.add(Flight(large, received_at=0.0, visible_until=0.0, parked=True))
    assert held.parking_full
    assert held.free > 0
