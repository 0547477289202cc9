"""What a refused claim means: the old item and the new request to a verdict. Pure.

The order of the checks (docs/guarantees.md) matters: each closes a way to lose a message or to send it twice.
"""

from dataclasses import dataclass
from enum import StrEnum

from dispatcher.model import (
    Claimed,
    ClaimRequest,
    DifferentWork,
    Duplicate,
    Elsewhere,
    Held,
    Lapsed,
    LapsedMove,
    Move,
    Region,
    Unmovable,
)


class State(StrEnum):
    """Of a request in the ledger."""

    CLAIMED = "claimed"
    DISPATCHED = "dispatched"
    RELEASED = "released"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Record:
    """One item of the ledger. Times are epoch seconds; `lease_end` is kept as the ledger spells it."""

    request_id: str
    state: str
    token: str
    lease_end: str
    region: Region | None
    work: str
    generation: int
    expires_at: float


def judge(old: Record, request: ClaimRequest, now: float) -> Claimed | Duplicate | Held | DifferentWork | Lapsed:
    """Return what becomes of `request`, given the item that refused it, at `now` (epoch seconds, corrected)."""
    if old.token == request.token and old.state == State.CLAIMED:
        # our own write, met again after its answer was lost
        return Claimed(request.message.request_id, old.token, old.region or request.region, float(old.lease_end))
    forgotten = old.expires_at <= now  # TTL sweeps late, by days: past its end an item counts as absent
    if forgotten or request.message.generation > old.generation:
        return Lapsed(old.state, old.token, old.lease_end, None, request.message.generation)
    if old.work != request.message.work:
        return DifferentWork()
    if old.state == State.DISPATCHED:
        return Duplicate()
    if old.state in (State.RELEASED, State.REJECTED):  # certainly in no Region
        return Lapsed(old.state, old.token, old.lease_end, None, old.generation)
    if float(old.lease_end) <= now:  # claimed, or a state that only a newer version knows
        return Lapsed(old.state, old.token, old.lease_end, old.region, old.generation)
    return Held(float(old.lease_end))


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What an item says of where its request is, and of who moves it where."""

    state: str
    region: str
    mover: str
    moving_to: str
    moving_until: str
    expires_at: float
    work: str


def judge_move(old: Whereabouts, move: Move, now: float) -> Move | LapsedMove | Elsewhere | Unmovable:
    """Return what becomes of a move, given the item that refused it, at `now` (epoch seconds, corrected)."""
    if old.state != State.DISPATCHED or old.expires_at <= now:
        return Unmovable(f"the ledger says {old.state or 'nothing'}")
    if old.work != move.work:
        return Unmovable("the ledger has other work under this id")
    if old.mover and old.moving_to == move.source:
        return Unmovable("it is just being moved here")  # whoever deleted it now might delete the only copy
    if old.region != move.source:
        return Elsewhere()
    if old.mover == move.token:
        return move
    if not old.mover:
        return Unmovable("it changed meanwhile")
    if float(old.moving_until) > now:
        return Unmovable("another dispatcher moves it")
    return LapsedMove(old.mover, old.moving_until, Region(old.moving_to))
