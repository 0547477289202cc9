"""What people want to see beside the state of the moment: the last minutes, the last choices, the last warnings.

Nothing here knows a request's id or its body: whoever sees the HTTP port may read all of it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from dispatcher.model import Choice, Message, Outcome, Region
from dispatcher.telemetry.metrics import Metrics

HISTORY = 120  # samples, one a second
WINDOW = 30  # samples that rates and ages are of
CHOICES, WARNINGS = 8, 8
TEXT_SHOWN = 240  # characters of somebody else's text
_TOLD = ("region", "queue", "stage", "on", "capacity", "fault", "hint")
"""What of a warning is shown; the rest of it, ids above all, is for the log."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float  # steady clock, seconds
    received: int
    dispatched: int
    waiting: int  # visible in the master queue, at its last reading
    ages: Mapping[float, float]  # how many messages, ever, were no older than that when a Region accepted them


@dataclass(slots=True)
class _Warning:
    event: str
    what: dict[str, str]
    times: int
    last_at: float  # epoch seconds


def kind(event: object, what: Mapping[str, str]) -> object:
    """What warnings are counted together by."""
    return (event, *(what.get(name) for name in ("region", "queue", "stage", "on")))


class Live:
    """`sample` is called once a second; whoever waits in `next_sample` is woken by it."""

    def __init__(self, metrics: Metrics, home: Region, now: Callable[[], float]) -> None:
        self._metrics = metrics
        self._home = home
        self._now = now
        self._samples: deque[_Sample] = deque(maxlen=HISTORY + 1)
        self._choices: deque[tuple[float, Message, Choice]] = deque(maxlen=CHOICES)
        self._warnings: dict[object, _Warning] = {}
        self._sampled = asyncio.Event()

    def sample(self) -> None:
        self._samples.append(
            _Sample(
                self._now(),
                _value(self._metrics.received),
                _value(self._metrics.messages.labels(Outcome.DISPATCHED)),
                _value(self._metrics.queue_messages.labels("master", self._home, "visible")),
                _buckets(self._metrics.message_age),
            )
        )
        self._sampled.set()
        self._sampled = asyncio.Event()

    async def next_sample(self) -> None:
        await self._sampled.wait()

    def chose(self, found: Sequence[tuple[Message, Choice]]) -> None:
        """Messages were given to Regions."""
        now = time.time()
        self._choices.extend([(now, message, choice) for message, choice in found])

    def warn(self, event: Mapping[str, Any]) -> None:
        """A line of the log, from warning up."""
        what = {name: str(event[name])[:TEXT_SHOWN] for name in _TOLD if event.get(name) not in (None, "")}
        key = kind(event.get("event"), what)
        times = self._warnings.pop(key).times if key in self._warnings else 0  # it goes to the end
        self._warnings[key] = _Warning(str(event.get("event")), what, times + 1, time.time())
        if len(self._warnings) > WARNINGS:
            del self._warnings[next(iter(self._warnings))]

    def explain(self) -> dict[str, Any]:
        """Return all of it, newest first; rates are per second."""
        samples = list(self._samples)
        pairs = list(pairwise(samples))
        received = [_rate(old, new, new.received - old.received) for old, new in pairs]
        dispatched = [_rate(old, new, new.dispatched - old.dispatched) for old, new in pairs]
        return {
            "received_per_second": _mean(received[-WINDOW:]),
            "dispatched_per_second": _mean(dispatched[-WINDOW:]),
            "message_age_seconds": _ages(samples[-WINDOW - 1 :]),
            "window_seconds": WINDOW,
            "history": {"dispatched_per_second": dispatched, "master": [new.waiting for _, new in pairs]},
            "choices": [
                {
                    "at": at,
                    "region": choice.region,
                    "model_name": message.model_name[:TEXT_SHOWN],
                    "priority": message.priority,
                    "policy": choice.policy,
                    "projected_wait_seconds": round(choice.wait_s, 2),
                }
                for at, message, choice in reversed(self._choices)
            ],
            "warnings": [asdict(warning) for warning in reversed(self._warnings.values())],
        }

    def queue(self, name: str) -> dict[str, int]:
        """Return the depth of a queue of the catalogue at its last reading, of all Regions together."""
        depth: dict[str, int] = {}
        for (queue, state), count in _values(self._metrics.queue_messages, "queue", "state").items():
            if queue == name:
                depth[state] = int(count)
        return depth

    def totals(self) -> dict[str, int]:
        """Return what was received since the start, and how it ended."""
        ended = _values(self._metrics.messages, "outcome")
        return {"received": int(_values(self._metrics.received)[()])} | {o: int(ended[o,]) for o in Outcome}


def _values(metric: MetricWrapperBase, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the sums of a counter's or gauge's series by some of its labels."""
    sums: dict[tuple[str, ...], float] = {}
    for family in metric.collect():
        for sample in family.samples:
            key = tuple(sample.labels[label] for label in labels)
            sums[key] = sums.get(key, 0.0) + sample.value
    return sums


def _value(series: MetricWrapperBase) -> int:
    """Return the value of one series of a counter or a gauge."""
    (family,) = series.collect()
    return int(family.samples[0].value)


def _buckets(histogram: Histogram) -> dict[float, float]:
    (family,) = histogram.collect()
    return {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}


def _rate(old: _Sample, new: _Sample, count: int) -> float:
    return round(count / max(new.at - old.at, 0.001), 1)


def _mean(rates: list[float]) -> float | None:
    return round(sum(rates) / len(rates), 1) if rates else None


def _ages(samples: list[_Sample]) -> dict[str, float] | None:
    """Return the median and the 95th percentile of what was accepted between the first and the last; None: nothing was.

    Linear within a bucket, as Prometheus does it; what is above the last bound is said to be as old as that bound.
    """
    if not samples:
        return None
    first, last = samples[0].ages, samples[-1].ages
    counts = {bound: last[bound] - first[bound] for bound in last}
    total = max(counts.values())
    if not total:
        return None
    return {"p50": _quantile(counts, 0.5 * total), "p95": _quantile(counts, 0.95 * total)}


def _quantile(counts: Mapping[float, float], rank: float) -> float:
    below, lower = 0.0, 0.0
    for bound, upto in counts.items():
        if upto >= rank:
            if bound == float("inf"):
                return lower
            return round(lower + (bound - lower) * (rank - below) / (upto - below), 3)
        below, lower = upto, bound
    return lower
