"""How many messages a Region's workers take per second, and whether they take any at all. Pure.

What was taken between two readings is what was sent less what the queue grew by, messages in workers' hands included:
messages that come back from a lost worker are nothing taken, and a queue that workers empty says only that they can do
at least that much.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from statistics import median

from dispatcher.model import Depth, Region

BUSY_WINDOWS = 3
"""Readings with messages waiting all along, before an estimate is believed."""
BUSY_SHARE = 0.1
"""Of what was taken between two readings: with as much still waiting at both ends, the queue was not empty between."""
NEWEST_MAX = 0.5
"""Most that one reading counts for in the estimate; less where few messages are taken and chance rules."""
SHRINKAGE = 20.0
"""Messages taken at which a reading counts for half of what it could: their number scatters by its square root."""
SIGMAS = 1.0
"""Standard deviations by which what was taken may have been luck."""
BEHIND_SIGMAS = 2.0
"""Standard deviations by which more waits than was projected, before workers are thought to have fallen behind."""
OPTIMISM = 1.5
"""A Region that was never short of workers can do more than it was seen to do; by how much shows when it gets more."""
OUTGROWN, GROWTH = 0.85, 1.1
"""Taking the first part of the estimate with nothing waiting shows that more is possible: it grows by the second."""
SURE_SIGMAS = 4.0
"""Standard deviations that leave no doubt about one reading."""
COLLAPSED, COLLAPSED_SIGMAS = 0.5, 3.0
"""A Region that falls behind at less than this part of its estimate, and not by chance, is believed at once: to doubt
it costs more.
"""
DISTURBANCE = 50
"""Messages that were moved and not yet reported: fewer than these are no sign of work."""
REMEMBERED = 10
"""Readings that count as of late."""
STILL, IDLE_WINDOWS, IDLE_MESSAGES = 0.1, 2, 5.0
"""A queue stands still when no more than this part of what was due was taken, at so many readings in a row, and so many
messages were due: by chance none is taken then once in 150 times.
"""
SPREAD = (0.05, 20.0)
"""Estimates stay within these multiples of their median."""


@dataclass(slots=True)
class Drain:
    """What is learnt of one Region's workers, in messages per second.

    `prior` is the operator's own word, None without one.
    """

    prior: float | None = None
    busy_windows: int = 0
    busy: float = 0.0  # smoothed over readings with messages waiting all along: what the workers can do
    _late: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """What they took between the last readings, and in how many seconds."""
    works: bool = False  # something was taken, and nothing speaks against it since
    stalled: bool = False  # messages wait and none is taken
    _like_work: float = 0.0  # messages that seem taken since dispatchers began to move some out
    _before: float = 0.0  # what the workers could do before they collapsed
    _early: float = 0.0
    """Messages, as a negative number, that were there at the last reading before they counted as sent."""
    _idle_windows: int = 0  # in a row
    _idle_due: float = 0.0  # messages that should have been taken in them

    @property
    def least(self) -> float:
        """What the workers can do at least: they did it of late, over two readings, luck left out.

        Over two, because what others sent is known badly at a reading, and what is missed at one is found at the next.
        """
        rates = (
            (first + second - SIGMAS * sqrt(first + second)) / (seconds + more)
            for (first, seconds), (second, more) in pairwise(self._late)
        )
        return max(0.0, *rates) if len(self._late) > 1 else 0.0

    @property
    def confident(self) -> bool:
        return self.busy_windows >= BUSY_WINDOWS

    @property
    def observed(self) -> float:
        """What the workers were seen to do, and nothing assumed; 0 while they do nothing."""
        return 0.0 if self.stalled else self.busy if self.confident else self.least

    def learn(
        self,
        old: Depth,
        new: Depth,
        sent: float,
        seconds: float,
        expected: float,
        projected: float,
        *,
        disturbed: bool = False,
    ) -> None:
        """Take two readings `seconds` apart with `sent` messages sent between.

        `expected` is the drain in force, and `projected` the messages that should wait by now if it were right.
        `disturbed`: messages are being moved out, and a few of those may look like work.
        """
        if seconds <= 0:
            return
        if disturbed:
            self._like_work += sent - (_all(new) - _all(old))
            self.stalled = self.stalled and self._like_work < DISTURBANCE
            return
        self._like_work = 0.0
        waiting = min(old.visible, new.visible)
        found = sent - (_all(new) - _all(old))
        # what was just being sent at the last reading may have been in it, and is counted as sent only now
        taken = max(0.0, found + self._early)
        self._early = min(0.0, found)
        # no more can be taken than was there
        self._look_for_stall(old, new, taken, min(seconds * expected, old.visible + max(0.0, sent)))
        self.works = (self.works or taken >= 1) and not self.stalled
        if taken or waiting:  # else nobody was asked to do anything
            self._late.append((taken, seconds))
        some = max(2.0, BUSY_SHARE * taken)
        # workers that fell behind were busy from where they did, though nothing waited at first
        fell_behind = new.visible >= some and new.visible / 2 >= projected + BEHIND_SIGMAS * sqrt(
            max(sent, 0.0) + taken
        )
        if waiting >= some or fell_behind:
            self._learn_busy(taken, seconds, expected)
        elif self.confident and taken > OUTGROWN * self.busy * seconds:
            certain = (taken - SURE_SIGMAS * sqrt(taken)) / seconds
            self.busy = max(self.busy * GROWTH, self.least, certain)

    def look(self, old: Depth, new: Depth) -> None:
        """Take two readings however close together: they may show that nobody works there."""
        self.stalled = self.stalled or _nobody(old, new)
        self.works = self.works and not self.stalled

    def _learn_busy(self, taken: float, seconds: float, expected: float) -> None:
        due = expected * seconds
        if taken < due * COLLAPSED and due - taken > COLLAPSED_SIGMAS * sqrt(due):
            self._before = max(self._before, expected)
            self.busy, self.busy_windows = taken / seconds, max(self.busy_windows, BUSY_WINDOWS)
            self._late.clear()
            return
        if self.confident and taken > due / COLLAPSED and taken - due > SURE_SIGMAS * sqrt(taken):
            self.busy, self._before = taken / seconds, 0.0  # the workers are back
            return
        count = max(taken, self.busy * seconds)
        newest = NEWEST_MAX * count / (count + SHRINKAGE)
        if not self.confident:
            newest = max(newest, 1 / (self.busy_windows + 1))
        self.busy += newest * (taken / seconds - self.busy)
        self.busy_windows += 1

    def _look_for_stall(self, old: Depth, new: Depth, taken: float, due: float) -> None:
        """`due`: messages that should have been taken."""
        if self.stalled and taken >= 1 and taken > STILL * due and not _nobody(old, new):
            self.stalled = False
            # workers that are back are as many as they were, until a reading shows otherwise
            self.busy, self._before = max(self.busy, self._before), 0.0
        if not (old.visible and new.visible) or taken > STILL * due:
            self._idle_windows, self._idle_due = 0, 0.0
            return
        self._idle_windows += 1
        self._idle_due += due
        if self._idle_windows >= IDLE_WINDOWS and self._idle_due >= IDLE_MESSAGES:
            self.stalled = True

    def estimate(self, otherwise: float) -> float:
        """Return what is believed; `otherwise` is the best guess for a Region of which too little is known."""
        guess = max(OPTIMISM * self.least, self.prior or otherwise)
        return guess + (self.busy - guess) * min(1.0, self.busy_windows / BUSY_WINDOWS)


def estimates(drains: Mapping[Region, Drain], peers: Mapping[Region, float]) -> dict[Region, float]:
    """Return every Region's estimate, none while nothing is known of any. `peers`: what other dispatchers believe.

    A Region of which too little is known is taken for an average one, or for what others believe of it.
    """
    known = [drain.busy for drain in drains.values() if drain.confident and not drain.stalled and drain.busy]
    if not known:  # nobody was ever short of workers: the best that any did is what each may be able to do
        known = [max(drain.least for drain in drains.values())]
    if not any(known):
        known = [*peers.values()] or [drain.prior for drain in drains.values() if drain.prior]
    if not known:
        return {}
    typical = median(known)
    found = {region: drain.estimate(peers.get(region, typical)) for region, drain in drains.items()}
    middle = median([rate for region, rate in found.items() if rate and not drains[region].stalled] or [typical])
    least, most = (middle * times for times in SPREAD)
    return {region: min(max(rate, least), most) for region, rate in found.items()}


def _nobody(old: Depth, new: Depth) -> bool:
    """Messages wait, nobody holds any, and they do not become fewer."""
    return bool(old.visible and new.visible >= old.visible and not old.in_flight and not new.in_flight)


def _all(depth: Depth) -> int:
    return depth.visible + depth.in_flight + depth.delayed
