"""Tells the other dispatchers what was sent, and hears from them: at each depth reading, and when room runs short."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import structlog

from dispatcher.board import Board
from dispatcher.errors import AwsError, Cause, Stage
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.fleet import Report
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

LOOK_S = 0.1
APART_S, APART_MAX_S = 0.25, 1.0
"""When room runs short: between two reports, of whoever; and between two of one, since then it has to wait."""
STUCK_S = 60.0
MANY = 16  # dispatchers


@dataclass(frozen=True, slots=True)
class FleetReporter:
    """One report at a time, so that each is answered before the next is made; after a failed one, later and later."""

    board: Board
    exchange: Callable[[Report, Sequence[str]], Awaitable[Mapping[str, Report]]]
    metrics: Metrics
    heartbeats: Heartbeats
    now: Callable[[], float]  # loop time
    random: Random
    interval_s: float

    async def run(self) -> None:
        """Run until cancelled. While no report gets through, the last known number of dispatchers is gone by."""
        self.heartbeats.expect("fleet", self.interval_s + STUCK_S)
        failures = 0
        while True:
            self.heartbeats.beat("fleet")
            readings, reported_at = self.board.readings, self.now()
            failures = 0 if await self.report() else failures + 1
            if failures:
                apart_s = backoff_s(failures, self.random, first_s=APART_MAX_S, most_s=self.interval_s)
            else:
                apart_s = min(APART_S * self.board.dispatchers(), APART_MAX_S)
            # the item is written whole: many dispatchers, or many Regions' readings, must not make it a hot one
            often = self.interval_s / 4 if self.board.dispatchers() <= MANY else self.interval_s
            while not (self.now() >= reported_at + apart_s and self.board.wants_room()):
                read = self.board.readings > readings and self.now() >= reported_at + often
                if read or self.now() >= reported_at + self.interval_s:
                    break
                await asyncio.sleep(LOOK_S)

    async def report(self, *, gone: bool = False) -> bool:
        """Report once; return whether that was answered. `gone`: for the last time."""
        try:
            self.board.learn_fleet(await self.exchange(self.board.report(gone=gone), self.board.forgotten()))
            return True
        except AwsError as fault:
            self.metrics.error(Stage.ROUTE, fault.cause)
            log.warning("fleet.unreported", fault=str(fault))
        except Exception:  # another process's word must never end ours
            self.metrics.error(Stage.ROUTE, Cause.UNEXPECTED)
            log.exception("fleet.unread")
        return False
