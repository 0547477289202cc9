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
        return self._holding(self.board.room())

    def _holding(self, room: int) -> str | None:
        if self.ledger.state is BreakerState.OPEN:
            return "the ledger does not answer"
        if room <= 0:
            return "no Region may get more" if self.board.any_depth_known() else "no Region's depth is known"
        if self.in_flight.parking_full:
            return "half of what is held only waits: for a Region of its own, or for AWS to answer (see the log)"
        return None

    def room(self) -> int:
        """Messages that may be asked for now: each with a slot here and a place in some Region."""
        free = self.in_flight.free
        if free <= 0:
            return 0
        seekers = free + self.in_flight.asked + len(self.in_flight) - self.in_flight.placed  # at most
        room = seekers if self.board.has_room(seekers) else self.board.room()
        if self._holding(room) is not None:
            return 0
        if room >= seekers:
            return free
        return max(0, min(free, room - self.in_flight.unrouted))
