"""What part of a Region's usual workers is left after Spot took some back. Pure: time is handed in, in seconds.

An interruption is known two minutes before the drain shows it, and replacements come without notice: so a loss counts
at once, and is forgotten by half every five minutes.
"""

import math
from collections.abc import Iterable

LEAST = 0.1
HALF_LIFE_S = 300.0


class Capacity:
    def __init__(self) -> None:
        self._lost = 0.0
        self._at = 0.0

    def now(self, now: float) -> float:
        """Return the part that is left, from LEAST to 1."""
        return remaining(1.0 - self._lost, now - self._at)

    def put(self, left: float, now: float) -> None:
        """Somebody who knows says what is left."""
        self._lost, self._at = 1.0 - min(max(left, LEAST), 1.0), now

    def lose(self, share: float, now: float) -> None:
        """An interruption takes this share of what is left."""
        self.put(self.now(now) * (1.0 - share), now)


def together(parts: Iterable[float]) -> float:
    """Return what is left after losses that different dispatchers heard of."""
    return max(LEAST, math.prod(parts))


def remaining(left: float, seconds: float) -> float:
    """Return what is left, so many seconds after it was `left`."""
    return 1.0 - (1.0 - left) * math.exp2(-max(0.0, seconds) / HALF_LIFE_S)
