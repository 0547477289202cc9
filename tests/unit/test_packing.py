from collections.abc import Hashable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.lanes.batch import BatchLimits, pack


class Item(NamedTuple):
    name: int
    size: int = 0
    key: Hashable = ""


def items(*sizes: int) -> list[Item]:
    return [Item(n, size) for n, size in enumerate(sizes)]


def packed(waiting: list[Item], limits: BatchLimits, *, by_key: bool = False) -> tuple[list[int], list[int]]:
    if not by_key:
        waiting = [Item(item.name, item.size, key=n) for n, item in enumerate(waiting)]
    departing, staying = pack(waiting, limits)
    return [item.name for item in departing], [item.name for item in staying]


@pytest.mark.parametrize(
    ("sizes", "limits", "departing"),
    [
        ((), BatchLimits(3), []),
        ((1, 1), BatchLimits(3), [0, 1]),
        ((1, 1, 1, 1), BatchLimits(3), [0, 1, 2]),
        ((50, 50, 1), BatchLimits(9, 100), [0, 1]),
        ((50, 51), BatchLimits(9, 100), [0]),
        ((200, 1), BatchLimits(9, 100), [0]),
        ((60, 60, 40), BatchLimits(9, 100), [0, 2]),
        ((10**9,) * 3, BatchLimits(9, None), [0, 1, 2]),
    ],
)
def test_what_departs_fills_the_limits(sizes: tuple[int, ...], limits: BatchLimits, departing: list[int]) -> None:
    assert packed(items(*sizes), limits)[0] == departing


def test_of_items_with_one_key_the_first_departs() -> None:
    waiting = [Item(0, key="a"), Item(1, key="a"), Item(2, key="b"), Item(3, key="a")]
    assert packed(waiting, BatchLimits(9), by_key=True) == ([0, 2], [1, 3])


WAITING = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc"))).map(
    lambda rows: [Item(n, size, key) for n, (size, key) in enumerate(rows)]
)
LIMITS = st.builds(BatchLimits, st.integers(1, 5), st.none() | st.integers(1, 20))


@given(WAITING, LIMITS, st.booleans())
def test_packing_loses_nothing_keeps_order_and_respects_limits(
    waiting: list[Item], limits: BatchLimits, by_key: bool
) -> None:
    departing, staying = packed(waiting, limits, by_key=by_key)
    assert departing == sorted(departing)
    assert staying == sorted(staying)
    assert sorted(departing + staying) == list(range(len(waiting)))
    assert len(departing) <= limits.items
    size = sum(waiting[n].size for n in departing)
    assert limits.size is None or len(departing) <= 1 or size <= limits.size
    if by_key:
        assert len({waiting[n].key for n in departing}) == len(departing)


@given(WAITING, LIMITS, st.booleans())
def test_packing_always_makes_progress_and_the_first_in_line_always_departs(
    waiting: list[Item], limits: BatchLimits, by_key: bool
) -> None:
    departed: list[int] = []
    left = waiting
    while left:
        departing, staying = packed(left, limits, by_key=by_key)
        assert departing[0] == left[0].name
        departed += departing
        left = [waiting[n] for n in staying]
    assert sorted(departed) == list(range(len(waiting)))


@given(WAITING, LIMITS)
def test_twins_depart_in_the_order_they_came(waiting: list[Item], limits: BatchLimits) -> None:
    """Of one size: a smaller item may take room that a larger one could not."""
    same = [Item(item.name, 1, item.key) for item in waiting]
    departed: list[Item] = []
    left = same
    while left:
        departing, staying = packed(left, limits, by_key=True)
        departed += [same[n] for n in departing]
        left = [same[n] for n in staying]
    for key in "abc":
        of_key = [item.name for item in departed if item.key == key]
        assert of_key == sorted(of_key)
