"""The time of day that dispatchers agree on: the local clock, corrected by the `Date` of AWS's answers.

Leases are written by one process and read by another. Comparing them on two uncorrected clocks would steal live
claims or keep dead ones for ever; AWS's clock is the one that all of them see.
"""

import time
from collections.abc import Callable


class Clock:
    def __init__(self, local: Callable[[], float] = time.time) -> None:
        self._local = local
        self.offset_s = 0.0
        self.heard = False  # AWS's clock, ever

    def now(self) -> float:
        """Epoch seconds on AWS's clock, as far as its answers tell."""
        return self._local() + self.offset_s

    def local(self) -> float:
        """Epoch seconds on this machine's clock; brackets a call for `observe`."""
        return self._local()

    def observe(self, date: float, asked_at: float, answered_at: float) -> None:
        """Learn from an answer whose `Date` said `date` (whole epoch seconds), between two readings of `local()`.

        AWS's clock stood in [date, date + 1) at some moment of the call, so the offset lies between the two bounds
        below; it moves only as far as they force it to.
        """
        self.heard = True
        self.offset_s = min(max(self.offset_s, date - answered_at), date + 1 - asked_at)
