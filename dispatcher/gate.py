"""Whether anything is received at all. While nothing could be done with a message, it stays in the master queue."""

from dataclasses import dataclass

from dispatcher.board import Board
from dispatcher.inflight import InFlight
from dispatcher.policy.breaker import Breaker, BreakerState


@dataclass(frozen=True, slots=True)
class Gate:
    board: Board
    ledger: Breaker
    in_flight: InFlight

    def holding(self) -> str | None:
        """Why nothing is received; None when something would be."""
        if self.ledger.state is BreakerState.OPEN:
            return "the ledger does not answer"
        if self.board.room() <= 0:
            return "no Region may get more" if self.board.any_depth_known() else "no Region's depth is known"
        if self.in_flight.parking_full:
            return "half of what is held only waits: for a Region of its own, or for AWS to answer (see the log)"
        return None

    def room(self) -> int:
        """Messages that may be asked for now: each with a slot here and a place in some Region."""
        if self.holding() is not None:
            return 0
        return max(0, min(self.in_flight.free, self.board.room() - self.in_flight.unrouted))
