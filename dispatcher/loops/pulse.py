"""Once a second: is the event loop late, what do the gauges say, and does the ledger answer again?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import structlog

from dispatcher.board import Board
from dispatcher.errors import AwsError, Stage
from dispatcher.gate import Gate
from dispatcher.inflight import InFlight, Step
from dispatcher.lifecycle import Lifecycle
from dispatcher.model import Policy, Region
from dispatcher.policy.backoff import backoff_s
from dispatcher.policy.breaker import Breaker, BreakerState
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.live import Live
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

BEAT_S = 1.0
POORLY = ("withdrawn", "breaker open", "breaker half-open", "unknown", "stalled", "overloaded", "slow")
STUCK_S = 30.0


@dataclass(frozen=True, slots=True)
class Pulse:
    board: Board
    gate: Gate
    in_flight: InFlight
    ledger_breaker: Breaker
    lifecycle: Lifecycle
    heartbeats: Heartbeats
    metrics: Metrics
    live: Live

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        self.heartbeats.expect("pulse", STUCK_S)
        was_holding: str | None = None
        in_force = self.board.policy
        poorly: dict[Region, str] = {}
        while True:
            self.heartbeats.beat("pulse")
            self.show()
            self.live.sample()
            holding = self.gate.holding()
            if holding != was_holding:
                log.info("intake.holding" if holding else "intake.receiving", reason=holding)
                was_holding = holding
            if self.board.policy is not in_force:
                in_force = self.board.policy
                log.info("policy.changed", policy=in_force, model_error=round(self.board.model_error, 2))
            self._tell_health(poorly)
            due = loop.time() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.metrics.loop_lag.set(max(0.0, loop.time() - due))

    def _tell_health(self, poorly: dict[Region, str]) -> None:
        """Log when a Region is no longer well, for another reason, or well again; `poorly` is what was said last."""
        for region, view in self.board.views().items():
            health = view.health if view.health in POORLY else ""
            if health == poorly.get(region, ""):
                continue
            poorly[region] = health
            log.info("region.changed", region=region, health=view.health, reason=view.reason)

    def show(self) -> None:
        """Bring the gauges up to date."""
        shares, shadow = self.board.shares(), self.board.shadow_shares()
        for region, view in self.board.views().items():
            self.metrics.eligible.labels(region).set(region in shares)
            self.metrics.share.labels(region).set(shares.get(region, 0.0))
            self.metrics.shadow_share.labels(region).set(shadow.get(region, 0.0))
            self.metrics.breaker_open.labels(region).set(view.breaker is BreakerState.OPEN)
            self.metrics.expected_wait.labels(region).set(view.wait_s)
            self.metrics.drain_rate.labels(region).set(view.drain)
            self.metrics.capacity.labels(region).set(view.capacity)
            self.metrics.stalled.labels(region).set(view.stalled)
            self.metrics.budget.labels(region).set(view.budget())
        for policy in Policy:
            self.metrics.policy_info.labels(policy).set(policy is self.board.policy)
        self.metrics.model_error.set(self.board.model_error)
        self.metrics.fleet.set(self.board.dispatchers())
        self.metrics.fleet_unshared.set(not self.board.shares_room())
        self.metrics.breaker_open.labels("ledger").set(self.ledger_breaker.state is BreakerState.OPEN)
        self.metrics.loop_tasks.set(len(asyncio.all_tasks()))
        self.metrics.in_flight.set(len(self.in_flight))
        self.metrics.draining.set(self.lifecycle.draining)
        self.metrics.holding.set(self.gate.holding() is not None)


@dataclass(frozen=True, slots=True)
class LedgerWatch:
    """Asks the ledger whether it is back, when no delivery in hand is asking already."""

    ping: Callable[[], Awaitable[None]]
    breaker: Breaker
    in_flight: InFlight
    heartbeats: Heartbeats
    metrics: Metrics
    random: Random

    async def run(self) -> None:
        """Run until cancelled."""
        self.heartbeats.expect("ledger", STUCK_S)
        failures = 0
        while True:
            self.heartbeats.beat("ledger")
            asking = any(flight.step is Step.CLAIMING for flight in self.in_flight)
            if self.breaker.state is BreakerState.CLOSED or asking:
                failures = 0
                await asyncio.sleep(BEAT_S)
                continue
            try:
                await self.ping()
            except AwsError as fault:
                self.metrics.error(Stage.LEDGER, fault.cause)
                failures += 1
            await asyncio.sleep(backoff_s(failures, self.random, first_s=1.0))
