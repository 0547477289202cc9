"""What the other dispatchers send, and how a Region's room is shared with them. Pure: time is handed in, in seconds.

Each dispatcher reports, after its readings, what it has sent to each Region and the total that it will not pass
before its next report (`upto`). Reports are writes to one item, so each sees every earlier one. Who reports may use of
a Region's room what nobody who reported before has set aside: however many there are, and whoever comes new, together
they never pass a threshold.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dispatcher.model import Depth, Region

CLOCKS_S = 1.0
"""Dispatchers' clocks, as far as AWS's answers tell, differ by less."""
POINTS_KEPT = 100
"""Reports of each that are kept, over as long as a reading may be old; of more frequent ones only as many."""
DEAD_AFTER, DEAD_AFTER_MIN_S = 2.0, 5.0
"""Intervals without a report: one may fail, or come late. Seconds at least: a call and a clock take their time."""
READING_MAX_INTERVALS = 8
"""A reading older than two TTLs, of four intervals each, counts for nothing."""
FORGOTTEN_AFTER, FORGOTTEN_AFTER_MIN_S = 40.0, 60.0
"""Intervals, and seconds at least: then a report is taken out of the item."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one dispatcher had sent to each Region at a time."""

    at: float
    sent: Mapping[Region, int]


@dataclass(frozen=True, slots=True)
class Report:
    """One dispatcher's own word."""

    now: Point
    past: Point  # an earlier one: who meets this dispatcher for the first time can tell old sends from new
    upto: Mapping[Region, int]
    drains: Mapping[Region, float]  # messages per second that it believes a Region's workers take
    capacity: Mapping[Region, float]
    readings: Mapping[Region, tuple[float, Depth]] = field(default_factory=dict)
    """The last ones that it took itself, each with the time when it was asked for."""
    rescuing: frozenset[Region] = frozenset()  # out of which it moves messages
    gone: bool = False  # it has ended


class Fleet:
    """All other dispatchers, as one of them sees them.

    `interval_s`: how often each reports, without its jitter. `lag_s`: how late the counts of a reading are.
    """

    def __init__(self, interval_s: float, *, lag_s: float = 0.0) -> None:
        self._dead_after_s = max(DEAD_AFTER * interval_s, DEAD_AFTER_MIN_S)
        self._remembered_s = lag_s + 3 * READING_MAX_INTERVALS * interval_s / 2 + CLOCKS_S
        self._spacing_s = self._remembered_s / POINTS_KEPT
        self._forgotten_after_s = max(FORGOTTEN_AFTER * interval_s, FORGOTTEN_AFTER_MIN_S)
        self._points: dict[str, deque[Point]] = {}
        self._last: dict[str, Report] = {}
        self.learned_at: float | None = None
        self._heard_at: float | None = None  # when our last report that was answered was made
        self._totals: dict[Region, float] = {}  # of all others, when last learnt
        self._rates: dict[Region, float] = {}  # messages per second since; the dead send none
        self._peer_rates: dict[str, dict[Region, float]] = {}
        self._lost: dict[Region, list[tuple[float, float]]] = {}
        self.drains: dict[Region, float] = {}  # what the others believe of each Region's workers, on average
        self.rescuing: set[Region] = set()  # out of which others move messages
        self.covered_until = 0.0  # what all others had sent by then is known
        self.known = 0  # how many others were at work when last learnt

    def learn(self, reports: Mapping[str, Report], now: float, reported_at: float | None = None) -> None:
        """Take what the item holds, our own report left out; that one was made at `reported_at`."""
        self._heard_at = now if reported_at is None else reported_at
        for name in self._points.keys() - reports.keys():
            del self._points[name], self._last[name]
        for name, report in reports.items():
            points = self._points.setdefault(name, deque([report.past]))
            if report.now.at > points[-1].at:
                if len(points) > 1 and points[-1].at - points[-2].at < self._spacing_s:
                    points.pop()
                points.append(report.now)
            while len(points) > 2 and points[1].at < now - self._remembered_s:
                points.popleft()
            self._last[name] = report
        self.learned_at = now
        self.known = self.live(now)
        reported = [said.now.at for name, said in self._last.items() if self._is_live(name, now)]
        self.covered_until = min(reported, default=now)
        self.rescuing = {r for name, said in self._last.items() if self._is_live(name, now) for r in said.rescuing}
        self.drains = _means(report.drains for report in self._last.values())
        self._lost = {
            region: [
                (left, report.now.at)
                for report in self._last.values()
                if (left := report.capacity.get(region, 1.0)) < 1.0
            ]
            for region in {region for report in self._last.values() for region in report.capacity}
        }
        self._peer_rates = {
            name: {region: self._rate(points, region) for region in points[-1].sent} if self._is_live(name, now) else {}
            for name, points in self._points.items()
        }
        regions = {region for points in self._points.values() for region in points[-1].sent}
        self._rates = {r: sum(rates.get(r, 0.0) for rates in self._peer_rates.values()) for r in regions}
        self._totals = {region: self._total(region, now) for region in regions}

    def believed(self, now: float) -> bool:
        """Whether what is known of the others is young enough to go by."""
        return self._heard_at is not None and now - self._heard_at <= self._dead_after_s

    def live(self, now: float) -> int:
        """Return how many others are at work."""
        return sum(1 for name in self._last if self._is_live(name, now))

    def forgotten(self, now: float) -> list[str]:
        """Return those that have been silent for so long that their reports are of no use."""

        def kept_s(said: Report) -> float:
            return min(self._remembered_s, self._forgotten_after_s) if said.gone else self._forgotten_after_s

        return [name for name, said in self._last.items() if now - said.now.at > kept_s(said)]

    def total(self, region: Region, time: float) -> float:
        """Return what all others had sent there at `time`, between and after reports by their rate."""
        if self.learned_at is not None and time >= self.learned_at:
            return self._totals.get(region, 0.0) + self._rates.get(region, 0.0) * (time - self.learned_at)
        return self._total(region, time)

    def set_aside(self, region: Region, since: float) -> int:
        """Return the most that all others can have sent there after `since`, until their next reports.

        What the dead had set aside is free again for a reading that shows what they had still sent of it.
        """
        return sum(
            max(0, self._at_most(report, region, since) - _certainly(self._points[name], region, since - CLOCKS_S))
            for name, report in self._last.items()
        )

    def newest_reading(self, region: Region) -> tuple[float, Depth] | None:
        """Return the last reading that any of the others took, with the time when it was asked for."""
        found = [said.readings[region] for said in self._last.values() if region in said.readings]
        return max(found, key=lambda reading: reading[0], default=None)

    def have_reported_since(self, time: float) -> bool:
        """Whether all others that are at work have reported after `time`, and so read what was reported before."""
        return all(
            said.now.at > time for name, said in self._last.items() if self._is_live(name, self.learned_at or time)
        )

    def lost(self, region: Region) -> list[tuple[float, float]]:
        """Return the parts of its workers that others know to be left there, each with the time when it was so."""
        return self._lost.get(region, [])

    def _is_live(self, name: str, now: float) -> bool:
        report = self._last[name]
        return not report.gone and now - report.now.at <= self._dead_after_s

    def _at_most(self, report: Report, region: Region, since: float) -> int:
        sent = report.now.sent.get(region, 0)
        lapsed = since > report.now.at + self._dead_after_s + CLOCKS_S  # nothing is sent so late after a report
        return sent if report.gone or lapsed else max(sent, report.upto.get(region, 0))

    def _total(self, region: Region, time: float) -> float:
        total = 0.0
        for name, points in self._points.items():
            total += self._sent(points, region, time)
            if time > points[-1].at:
                total += self._peer_rates[name].get(region, 0.0) * (time - points[-1].at)
        return total

    @staticmethod
    def _rate(points: deque[Point], region: Region) -> float:
        """Messages per second between its last two reports."""
        before, last = points[-2] if len(points) > 1 else points[-1], points[-1]
        seconds = last.at - before.at
        return max(0.0, (last.sent.get(region, 0) - before.sent.get(region, 0)) / seconds) if seconds > 0 else 0.0

    @staticmethod
    def _sent(points: deque[Point], region: Region, time: float) -> float:
        """Between two points by their slope; outside of them the nearer one's."""
        later = points[-1]
        if time >= later.at:
            return later.sent.get(region, 0)
        for point in reversed(points):
            if point.at <= time:
                part = (time - point.at) / (later.at - point.at)
                return point.sent.get(region, 0) + part * (later.sent.get(region, 0) - point.sent.get(region, 0))
            later = point
        return later.sent.get(region, 0)


def _certainly(points: deque[Point], region: Region, time: float) -> int:
    """Return what had certainly been sent by `time`: the last word from before it."""
    for point in reversed(points):
        if point.at <= time:
            return point.sent.get(region, 0)
    return points[0].sent.get(region, 0)


def _means(each: Iterable[Mapping[Region, float]]) -> dict[Region, float]:
    found: dict[Region, list[float]] = {}
    for values in each:
        for region, value in values.items():
            found.setdefault(region, []).append(value)
    return {region: sum(values) / len(values) for region, values in found.items()}
