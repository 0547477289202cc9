"""How many polls are open at once: as many as come back full. Pure.

A parked poll is woken by a single message, so ten of them bring ten times one message where one would have brought ten:
more calls for the same work, and emptier batches behind them.
"""

from dataclasses import dataclass

RECEIVE_MAX = 10  # SQS: messages a receive (ReceiveMessage reference)
FEW = 2  # messages that were not worth a poll beside another
PAUSE_S = 0.02  # after a short receive nothing waits: what comes in this time comes with one call


@dataclass(slots=True)
class Receives:
    """`most`: polls that may be open at once."""

    most: int
    wanted: int = 1

    def came(self, count: int) -> float:
        """A receive brought `count` messages; return for how long (seconds) its poller pauses."""
        if count >= RECEIVE_MAX:
            self.wanted = min(self.most, self.wanted + 1)
        elif count <= FEW:
            self.wanted = max(1, self.wanted - 1)
        return PAUSE_S if self.wanted == 1 and 0 < count < RECEIVE_MAX else 0.0
