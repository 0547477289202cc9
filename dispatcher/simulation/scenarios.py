"""What is simulated: arrivals, Regions and their workers, and how well dispatchers can see. All times in seconds."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from dispatcher.errors import ConfigurationError
from dispatcher.model import Region

RECORDING = Path(__file__).with_name("recording.jsonl")
"""Written while `make duel` ran: three Regions on an emulator, one of which lost its workers for 30 seconds."""

Rate = Callable[[float], float]
"""Seconds since the start to messages per second."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One Region: a queue and its workers, each of which takes `service_s` for a message, on average."""

    workers: int
    service_s: float = 5.0
    left: Rate = lambda _: 1.0
    """Part of the workers that is there at a time: Spot takes some, and gives them back."""
    backlog: int = 0  # messages that wait at the start
    cold_start_s: float = 0.0  # without work all workers end after ten minutes; this long until the first is back
    weight: float = 1.0

    @property
    def drain(self) -> float:
        """Messages per second that all of its workers take."""
        return self.workers / self.service_s


@dataclass(frozen=True, slots=True)
class Scenario:
    """`load`: arrivals as a part of what all workers can do. `reading_s`: between two readings of a Region's depth."""

    name: str
    about: str
    regions: Mapping[Region, Pool]
    load: float = 0.85
    shape: Rate = lambda _: 1.0
    """Arrivals at a time, as a multiple of the load."""
    seconds: int = 7200
    dispatchers: int = 4
    reading_s: float = 60.0
    lag_s: float = 30.0  # how late SQS's counts are
    threshold: int = 5000
    wrong: Mapping[Region, float] = field(default_factory=dict)
    """Factors that drain estimates are wrong by, whatever is observed."""

    def rate(self, at: float) -> float:
        return self.load * sum(pool.drain for pool in self.regions.values()) * self.shape(at)


def _pools(*workers: int) -> dict[Region, Pool]:
    return {Region(f"region-{chr(97 + n)}"): Pool(count) for n, count in enumerate(workers)}


_UNEQUAL = _pools(200, 150, 100, 50)
_A, _B, _C, _D = _UNEQUAL
_EQUAL = _pools(125, 125, 125, 125)


def _lost(at: float) -> float:
    return 0.1 if 1800 <= at < 3000 else 1.0


def _bursts(at: float) -> float:
    return 5.0 if at % 1200 < 120 else 0.556


def _day(at: float) -> float:
    return 1.0 + 0.6 * math.sin(2 * math.pi * at / 7200)


BUILT_IN: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("equal", "four Regions alike", _EQUAL),
        Scenario("unequal", "drains of 40, 30, 20 and 10 messages per second", _UNEQUAL),
        Scenario(
            "spot-loss",
            "the largest Region falls to 10 % of its workers for 20 minutes",
            {**_UNEQUAL, _A: replace(_UNEQUAL[_A], left=_lost)},
            load=0.6,
        ),
        Scenario("burst", "two minutes of fivefold traffic every twenty", _UNEQUAL, load=0.6, shape=_bursts),
        Scenario("diurnal", "traffic that comes and goes like a day, in two hours", _UNEQUAL, load=0.6, shape=_day),
        Scenario(
            "cold-start",
            "workers that end without work and take four minutes to come back",
            {region: replace(pool, cold_start_s=240.0) for region, pool in _UNEQUAL.items()},
            load=0.5,
            shape=lambda at: 1.0 if at % 3600 < 1800 else 0.02,
        ),
        Scenario(
            "many-regions",
            "thirty Regions of very different size",
            {Region(f"region-{n:02d}"): Pool(5 + 7 * (n % 10)) for n in range(30)},
            seconds=3600,
        ),
        Scenario("many-dispatchers", "64 dispatchers", _UNEQUAL, dispatchers=64, seconds=1800),
        Scenario(
            "wrong-drain",
            "drain estimates forced wrong, by four times between two Regions",
            _UNEQUAL,
            wrong={_A: 0.5, _D: 2.0},
        ),
        Scenario(
            "snapshot",
            "one Region empty and three with 500 messages, 85 arrive per second",
            {region: replace(pool, backlog=0 if region == _A else 500) for region, pool in _EQUAL.items()},
            seconds=3600,
        ),
    )
}


def recorded(file: Path) -> Scenario:
    """Return what `dispatcher record` wrote as a scenario. Raises ConfigurationError if it cannot be one.

    Arrivals are what all dispatchers sent. Each Region's workers do what they were seen to do while messages waited, or
    at best, where none ever waited.
    """
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        frames = [(float(line["at"]), line["regions"]) for line in lines]
        rows = {
            Region(region): [(at, seen[region]) for at, seen in frames if region in seen]
            for region in {name for _, seen in frames for name in seen}
        }
        pools = {region: _observed(seen) for region, seen in sorted(rows.items())}
        spans = [
            (at - frames[0][0], max(0.0, sum(new[r]["sent"] - old[r]["sent"] for r in new if r in old) / (at - before)))
            for (before, old), (at, new) in pairwise(frames)
        ]
    except OSError as fault:
        raise ConfigurationError([f"{file}: {fault.strerror}"]) from fault
    except (ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError) as fault:
        raise ConfigurationError([f"{file}: not what 'dispatcher record' writes ({fault!r})"]) from fault
    if len(frames) < 3:
        raise ConfigurationError([f"{file}: too short; record for a few minutes at least"])
    total = sum(pool.drain for pool in pools.values())
    if not total:
        raise ConfigurationError([f"{file}: no worker took anything while it was recorded"])
    every_s = max(1.0, frames[-1][0] - frames[0][0]) / (len(frames) - 1)
    return Scenario(
        "recorded",
        f"{file.name}: {len(pools)} Regions, {frames[-1][0] - frames[0][0]:.0f} s",
        pools,
        load=1.0,
        shape=lambda at: next((rate for until, rate in spans if at < until), 0.0) / total,
        seconds=int(spans[-1][0]),
        dispatchers=1,
        reading_s=every_s,
        lag_s=0.0,
    )


def _observed(seen: Sequence[tuple[float, Mapping[str, int]]]) -> Pool:
    """Return one worker a second for each message per second: how long one takes is not in a recording."""
    busy, all_of_them = [0.0], [0.0]
    for (before, old), (at, new) in pairwise(seen):
        grown = new["visible"] + new["in_flight"] - old["visible"] - old["in_flight"]
        rate = max(0.0, (new["sent"] - old["sent"] - grown) / (at - before))
        all_of_them.append(rate)
        if min(old["visible"], new["visible"]) > 0:
            busy.append(rate)
    rate = sum(busy) / (len(busy) - 1) if len(busy) > 3 else max(all_of_them)
    workers = max(1, round(rate * 5.0))
    return Pool(workers if rate else 0, service_s=workers / rate if rate else 5.0, backlog=int(seen[0][1]["visible"]))
