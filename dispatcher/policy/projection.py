"""What a queue looks like now, from a reading that is old and sends that are known. Pure: time (s) is handed in.

    projected depth = reading + sends since − what the workers took since, and never below nothing

A reading shows the queue as it was `lag_s` before it was asked for: SQS's counts are that late.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from statistics import median

from dispatcher.model import Depth
from dispatcher.policy.drain import Drain

HISTORY_MAX = 4000  # grains: a quarter of an hour without a pause
GRAIN_S = 0.25  # sends closer together than this are kept as one
LOOK_S = 1.0  # readings closer together than this are one
PENDING = 64  # readings that wait for the others' reports: far more than come before a dispatcher counts as dead
WINDOW_MIN = 0.75  # of the interval
ERRORS = 5  # readings in which the model is judged (docs/routing.md)
SMALL, OF_FLOW, OF_DEPTH = 50.0, 0.5, 0.2
"""An error is measured against the largest of: messages, parts of what workers should have taken, of what waits. With
the depth alone chance looks like error in a short queue, and error like chance in a long one.
"""


class Sends:
    """How many messages went to one Region, and when."""

    def __init__(self, now: float) -> None:
        self.total = 0
        self.since = now  # the history goes back this far
        self._times: list[float] = []  # each the last send of its grain
        self._totals: list[int] = []  # after it
        self._grain_began = now
        self._before = 0  # the total when the history begins

    def add(self, count: int, now: float) -> None:
        """Count messages sent now; fewer than none where some were taken out again."""
        self.total += count
        if self._times and now - self._grain_began < GRAIN_S:
            self._times[-1], self._totals[-1] = now, self.total
        else:
            self._grain_began = now
            self._times.append(now)
            self._totals.append(self.total)
            if len(self._times) > HISTORY_MAX:  # a Region that is not read for long
                self.forget(self._times[HISTORY_MAX // 2])

    def cut(self) -> None:
        """Keep what comes from now on apart from what came before."""
        self._grain_began = float("-inf")

    def at(self, time: float) -> int:
        """Return how many had certainly been sent at `time`."""
        index = bisect_right(self._times, time)
        return self._totals[index - 1] if index else self._before

    def between(self, after: float, until: float) -> Iterator[tuple[float, int]]:
        """Give each moment in (after, until] with how many were sent then."""
        first, last = bisect_right(self._times, after), bisect_right(self._times, until)
        total = self._totals[first - 1] if first else self._before
        for index in range(first, last):
            yield self._times[index], self._totals[index] - total
            total = self._totals[index]

    def forget(self, before: float) -> None:
        index = bisect_right(self._times, before)
        if index:
            self._before = self._totals[index - 1]
            del self._times[:index], self._totals[:index]
        self.since = max(self.since, before)


class Projection:
    """One Region's. `others` is how many messages all other dispatchers had sent there at a time, as far as known.

    `interval_s`: between two readings, as a rule. Nothing is learnt from readings much closer together: what others
    sent in so short a time is known too badly.
    """

    def __init__(
        self, drain: Drain, own: Sends, others: Callable[[float], float], *, lag_s: float, interval_s: float
    ) -> None:
        self.drain = drain
        self.drain_rate = 0.0  # messages per second in force; 0: nobody knows
        self.reading: Depth | None = None
        self.shown_at = 0.0  # what the reading shows is the queue at this time
        self.inflow = 0.0  # messages per second from all dispatchers, between the last two readings
        self._own = own
        self._others = others
        self._lag_s = lag_s
        self._interval_s = interval_s
        self._learnt: tuple[float, Depth] | None = None  # the reading up to which was learnt, and what time it shows
        self._pending: deque[tuple[float, Depth, bool]] = deque(maxlen=PENDING)
        self._errors: deque[float] = deque(maxlen=ERRORS)
        self._level = 0.0
        self._level_at = 0.0
        self._others_rate = 0.0
        self._others_shown = 0.0  # what they had sent at `shown_at`

    def post(self, depth: Depth, asked_at: float, *, disturbed: bool = False) -> None:
        """Take a reading. `disturbed`: dispatchers move messages out of the queue."""
        shown_at = asked_at - self._lag_s
        if self.reading is not None and shown_at >= self.shown_at + LOOK_S and not disturbed:
            self.drain.look(self.reading, depth)
        self._pending.append((shown_at, depth, disturbed))
        self.reading = depth
        self.shown_at = shown_at

    def learn(self, known_until: float) -> None:
        """Learn from the readings what the workers took, and how wrong the projection was.

        Only as far as it is known, not guessed, what the others had sent: until then readings wait.
        """
        while self._pending and self._pending[0][0] <= known_until:
            shown_at, depth, disturbed = self._pending.popleft()
            if self._learnt is None:
                self._learnt = shown_at, depth
            since, old = self._learnt
            seconds = shown_at - since
            if seconds < WINDOW_MIN * self._interval_s:
                continue
            sent = self._own.at(shown_at) - self._own.at(since) + self._others(shown_at) - self._others(since)
            self.inflow = max(0.0, sent / seconds)
            actual, projected = _waiting(depth), self._replay(_waiting(old), since, shown_at)
            if self.drain.confident and not disturbed:
                scale = max(SMALL, OF_FLOW * self.drain_rate * seconds, OF_DEPTH * actual)
                self._errors.append((actual - projected) / scale)
            self.drain.learn(old, depth, sent, seconds, self.drain_rate, projected, disturbed=disturbed)
            self._learnt = shown_at, depth

    @property
    def needs_since(self) -> float:
        """Return from when on own sends must be remembered."""
        return min(self.shown_at, self._learnt[0]) if self._learnt else self.shown_at

    def expect(self, drain_rate: float, now: float) -> None:
        """From now on the workers are thought to take so many messages per second."""
        if drain_rate != self.drain_rate:
            self._level, self._level_at = self.level(now), now
            self.drain_rate = drain_rate

    def rebuild(self, now: float) -> None:
        """Project anew from the last reading, with what is known by now of drain and of others' sends."""
        if self.reading is not None:
            self._level = self._replay(_waiting(self.reading), self.shown_at, now)
            self._others_shown = self._others(self.shown_at)
        self._others_rate = max(0.0, self._others(now + 1.0) - self._others(now))
        self._level_at = now

    def sent(self, count: int, now: float) -> None:
        """Own messages were accepted."""
        self._level = self.level(now) + count
        self._level_at = now

    def level(self, now: float) -> float:
        """Return the messages that wait there now, as far as can be known."""
        change = (self._others_rate - self.drain_rate) * (now - self._level_at)
        return max(0.0, self._level + change)

    def others_since(self, now: float) -> float:
        """Return what the other dispatchers sent since the moment that the reading shows."""
        return self._others(now) - self._others_shown if self.reading else 0.0

    @property
    def error(self) -> float | None:
        """How far the projections were off, always to the same side; None before there are enough to judge by.

        The median of the last readings' relative errors, with their signs: chance errs to both sides.
        """
        return abs(median(self._errors)) if len(self._errors) == ERRORS else None

    def _replay(self, level: float, after: float, until: float) -> float:
        """Let the sends of (after, until] arrive and the workers work; a queue that is empty stays empty."""
        if until <= after:
            return level
        slope = (self._others(until) - self._others(after)) / (until - after) - self.drain_rate
        for time, count in self._own.between(after, until):
            level = max(0.0, max(0.0, level + slope * (time - after)) + count)
            after = time
        return max(0.0, level + slope * (until - after))


def _waiting(depth: Depth) -> int:
    return depth.visible + depth.delayed
