"""When to stop calling something that fails, and when to try it again. Pure: time is handed in."""

from collections import deque
from enum import StrEnum

FAILURES_IN_A_ROW = 5
WINDOW_S = 30.0
CALLS_IN_WINDOW_MIN = 6
"""Half of the window's calls failing opens the breaker, if there were at least this many to judge by."""


class BreakerState(StrEnum):
    CLOSED = "closed"  # calls flow
    OPEN = "open"  # none does
    HALF_OPEN = "half_open"  # one at a time, to see


class Breaker:
    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self._on_trial = False
        self._in_a_row = 0
        self._window: deque[tuple[float, bool]] = deque()
        self._failures = 0  # in the window

    @property
    def trusted(self) -> bool:
        """Calls flow, and the last one did not fail."""
        return self.state is BreakerState.CLOSED and self._in_a_row == 0

    def admits(self, count: int) -> int:
        """Return how many of `count` items may go in a call now. Half-open that is one, whose end `record` hears of."""
        if self.state is BreakerState.HALF_OPEN and not self._on_trial:
            self._on_trial = True
            return min(count, 1)
        return count if self.state is BreakerState.CLOSED else 0

    def withdraw(self) -> None:
        """The call that `admits` let through was never made: nothing was learnt of it, and another may be."""
        self._on_trial = False

    def record(self, succeeded: bool, now: float) -> None:
        """Learn how a call ended at `now` (seconds, any steady clock)."""
        self._on_trial = False
        if succeeded and self.state is not BreakerState.CLOSED:
            self._window.clear()
            self._failures = 0  # a new start: what failed before it opened is not held against it
        self._window.append((now, succeeded))
        self._failures += not succeeded
        while self._window[0][0] < now - WINDOW_S:
            _, did_succeed = self._window.popleft()
            self._failures -= not did_succeed
        if succeeded:
            self._in_a_row = 0
            if self.state is BreakerState.HALF_OPEN:
                self.state = BreakerState.CLOSED
        else:
            self._in_a_row += 1
        half = len(self._window) >= CALLS_IN_WINDOW_MIN and 2 * self._failures >= len(self._window)
        if not succeeded and (self.state is BreakerState.HALF_OPEN or self._in_a_row >= FAILURES_IN_A_ROW or half):
            self.state = BreakerState.OPEN

    def answered(self) -> None:
        """A probe of the dependency succeeded: let one call through to see."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
