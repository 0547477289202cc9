"""Packing: which of the waiting items depart together. Pure: no await, no clock."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call may carry."""

    items: int
    size: int | None = None  # bytes, over all items; None: no limit


type Packed = tuple[Any, int, Hashable, *tuple[Any, ...]]
"""An item, its size in bytes, its key, and what else is kept of it: plain tuples, since each message is in four."""


def pack[T: Packed](waiting: Sequence[T], limits: BatchLimits) -> tuple[Sequence[T], Sequence[T]]:
    """Split `waiting` into what departs now and what stays, both in order.

    The first item always departs, even alone over the limit: the far side will say what is wrong with it. Of items
    with one key only the first departs: AWS refuses a batch that names a key twice. Once an item does not fit, only
    smaller ones behind it may still take the room.
    """
    room = float("inf") if limits.size is None else limits.size
    keys = {item[2] for item in waiting}
    if len(waiting) == len(keys) <= limits.items and sum([item[1] for item in waiting]) <= room:
        return waiting, []
    departing: list[T] = []
    staying: list[T] = []
    keys = set()
    for item in waiting:
        size, key = item[1], item[2]
        if len(departing) < limits.items and (size <= room or not departing) and key not in keys:
            departing.append(item)
            keys.add(key)
            room -= size
        else:
            staying.append(item)
    return departing, staying
