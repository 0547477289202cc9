"""Packing: which of the waiting items depart together. Pure: no await, no clock."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call may carry."""

    items: int
    size: int | None = None  # bytes, over all items; None: no limit


class Packed(Protocol):
    """What can be packed."""

    @property
    def size(self) -> int: ...  # bytes

    @property
    def key(self) -> Hashable | None: ...  # no two of a batch may have the same, but for None


def pack[T: Packed](waiting: Sequence[T], limits: BatchLimits) -> tuple[list[T], list[T]]:
    """Split `waiting` into what departs now and what stays, both in order.

    The first item always departs, even alone over the limit: the far side will say what is wrong with it. Of items
    with one key only the first departs: AWS refuses a batch that names a key twice. Once an item does not fit, only
    smaller ones behind it may still take the room.
    """
    departing: list[T] = []
    staying: list[T] = []
    keys: set[Hashable] = set()
    room = float("inf") if limits.size is None else limits.size
    for position, item in enumerate(waiting):
        if len(departing) == limits.items:
            staying.extend(waiting[position:])
            break
        key = item.key
        if (item.size <= room or not departing) and (key is None or key not in keys):
            departing.append(item)
            if key is not None:
                keys.add(key)
            room -= item.size
        else:
            staying.append(item)
    return departing, staying
