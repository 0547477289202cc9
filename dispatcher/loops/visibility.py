"""Extends the visibility of every delivery in flight, also while draining, so that none goes to another dispatcher."""

import asyncio
from dataclasses import dataclass

import structlog

from dispatcher.errors import AwsError, Cause, Stage
from dispatcher.inflight import Flight, InFlight, Step
from dispatcher.pipeline import Pipeline
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger()

STUCK_S = 60.0
NAME = "visibility"


@dataclass(frozen=True, slots=True)
class VisibilityExtender:
    pipeline: Pipeline
    in_flight: InFlight
    heartbeats: Heartbeats
    metrics: Metrics

    async def run(self) -> None:
        """Run until cancelled. A call that hangs delays no other delivery's; a failed one is due again."""
        terms = self.pipeline.terms
        every_s = min(terms.visibility_s, terms.lease_s) / 2  # a lease is renewed with the visibility
        self.heartbeats.expect(NAME, STUCK_S)
        async with asyncio.TaskGroup() as group:
            while True:
                self.heartbeats.beat(NAME)
                soon = asyncio.get_running_loop().time() + terms.visibility_s - every_s
                for flight in sorted(self.in_flight, key=lambda flight: flight.visible_until):
                    if flight.visible_until >= soon:
                        break
                    if not (flight.lost or flight.step is Step.ENDED or flight.changing.locked()):
                        group.create_task(self._extend(flight))
                await asyncio.sleep(min(1.0, every_s / 10))

    async def _extend(self, flight: Flight) -> None:
        try:
            await self.pipeline.extend(flight)
        except AwsError as fault:
            self.metrics.error(Stage.EXTEND, fault.cause)
            log.warning("visibility.not_extended", message_id=flight.delivery.message_id, fault=str(fault))
        except Exception:  # a bug met with one delivery is that delivery's; it is due again
            self.metrics.error(Stage.EXTEND, Cause.UNEXPECTED)
            log.exception("visibility.failed", message_id=flight.delivery.message_id)
