"""Packing: which of the waiting items depart together. Pure: no await, no clock."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one call may carry."""

    items: int
    size: int | None = None  # bytes, over all items; None: no limit


def pack[T](
    waiting: Sequence[T],
    limits: BatchLimits,
    *,
    size_of: Callable[[T], int],
    key_of: Callable[[T], Hashable] | None = None,
) -> tuple[list[T], list[T]]:
    """Split `waiting` into what departs now and what stays, both in order.

    The first item always departs, even alone over the limit: the far side will say what is wrong with it. Of items
    with one key only the first departs: AWS refuses a batch that names a key twice. Once an item does not fit, only
    smaller ones behind it may still take the room.
    """
    if key_of is None and sum(map(size_of, waiting[: limits.items])) <= (limits.size or 0):
        return list(waiting[: limits.items]), list(waiting[limits.items :])
    departing: list[T] = []
    staying: list[T] = []
    keys: set[Hashable] = set()
    size = 0
    for position, item in enumerate(waiting):
        if len(departing) == limits.items:
            staying.extend(waiting[position:])
            break
        key = key_of(item) if key_of else None
        more = size_of(item)
        fits = not departing or limits.size is None or size + more <= limits.size
        if fits and (key_of is None or key not in keys):
            departing.append(item)
            keys.add(key)
            size += more
        else:
            staying.append(item)
    return departing, staying
