"""A ledger in memory: the state machine of docs/guarantees.md, written a second time on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dispatcher.errors import LeaseLostError
from dispatcher.model import (
    Choice,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    DifferentWork,
    Duplicate,
    Elsewhere,
    Held,
    Lapsed,
    LapsedMove,
    Move,
    MoveAnswer,
    Region,
    Unmovable,
)
from tests.fakes.faults import Faults, each


@dataclass(frozen=True, slots=True)
class Item:
    request_id: str
    state: str
    owner: str
    lease_end: float
    region: Region | None
    work: str
    generation: int
    source_message_id: str
    expires_at: int
    sqs_message_id: str | None = None
    move: Move | None = None  # under way, or left by somebody who died


@dataclass(frozen=True, slots=True)
class Write:
    """One change of the table."""

    at: float
    operation: str
    item: Item


class FakeLedger:
    """Satisfies the pipeline's `Ledger`. `now` is the clock that its callers share (epoch seconds).

    `leased` hears of every item whose lease was written just now.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        retention_s: float = 21 * 86400,
        faults: Faults | None = None,
        leased: Callable[[Item], None] = lambda _: None,
    ) -> None:
        self._now = now
        self._retention_s = retention_s
        self._leased = leased
        self.faults = faults or Faults()
        self.items: dict[str, Item] = {}
        self.writes: list[Write] = []

    def writes_of(self, request_id: str) -> list[Write]:
        return [write for write in self.writes if write.item.request_id == request_id]

    async def claim(self, request: ClaimRequest) -> ClaimAnswer:
        return await self.faults.call("claim", lambda: self._claim(request))

    async def claim_all(self, requests: Sequence[ClaimRequest]) -> Sequence[bool | Exception]:
        answers = await each(self.claim(request) for request in requests)
        return [answer if isinstance(answer, Exception) else isinstance(answer, Claimed) for answer in answers]

    async def look(self, request: ClaimRequest) -> ClaimAnswer | None:
        def work() -> ClaimAnswer | None:
            item = self.items.get(request.message.request_id)
            return self._judged(item, request) if item else None

        return await self.faults.call("look", work)

    async def take_over(self, old: Lapsed, request: ClaimRequest) -> Claimed | None:
        def work() -> Claimed | None:
            item = self.items.get(request.message.request_id)
            if item is None or (item.state, item.owner, _text(item.lease_end)) != (old.state, old.token, old.lease_end):
                return None
            return self._insert("take_over", request, old.generation)

        return await self.faults.call("take_over", work)

    async def confirm(self, claim: Claimed, sqs_message_id: str) -> None:
        def work() -> None:
            item = self._owned(claim)
            self._put("confirm", replace(item, state="dispatched", lease_end=0.0, sqs_message_id=sqs_message_id))

        await self.faults.call("confirm", work)

    async def confirm_all(self, confirmations: Sequence[tuple[Claimed, str]]) -> Sequence[Exception | None]:
        return await each(self.confirm(*confirmation) for confirmation in confirmations)

    async def retarget(self, claim: Claimed, choice: Choice) -> Claimed:
        def work() -> Claimed:
            item = self._undecided(claim)
            if item.region not in (claim.region, choice.region):
                raise LeaseLostError("the claim has gone on")
            self._put("retarget", replace(item, region=choice.region))
            return claim._replace(region=choice.region)

        return await self.faults.call("retarget", work)

    async def renew(self, claim: Claimed, lease_end: float) -> Claimed:
        def work() -> Claimed:
            self._put("renew", replace(self._undecided(claim), lease_end=lease_end))
            return claim._replace(lease_end=lease_end)

        return await self.faults.call("renew", work)

    async def release(self, claim: Claimed, *, rejected: bool = False) -> None:
        def work() -> None:
            state = "rejected" if rejected else "released"
            self._put("release", replace(self._undecided(claim), state=state, lease_end=0.0, region=None))

        await self.faults.call("release", work)

    async def begin_move(self, move: Move, over: LapsedMove | None = None) -> MoveAnswer:
        def work() -> MoveAnswer:
            item = self.items.get(move.request_id)
            if item is None or item.state != "dispatched" or item.expires_at <= self._now():
                return Unmovable("the ledger says something else")
            there = item.move
            if item.work != move.work or (there and there.choice.region == move.source):
                return Unmovable("other work, or just being moved here")
            if item.region != move.source:
                return Elsewhere()
            same = over and there and (there.token, _text(there.lease_end)) == (over.token, over.until)
            if there is None or there.token == move.token or same:
                self._put("begin_move", replace(item, move=move))
                return move
            if there.lease_end > self._now():
                return Unmovable("another moves it")
            return LapsedMove(there.token, _text(there.lease_end), there.choice.region)

        return await self.faults.call("begin_move", work)

    async def end_move(self, move: Move, sqs_message_id: str) -> None:
        def work() -> None:
            item = self.items.get(move.request_id)
            if item is None or item.move is None or item.move.token != move.token:
                if item and (item.region, item.sqs_message_id) == (move.choice.region, sqs_message_id):
                    return
                raise LeaseLostError("the move is another's")
            moved = replace(item, region=move.choice.region, sqs_message_id=sqs_message_id, move=None)
            self._put("end_move", moved)

        await self.faults.call("end_move", work)

    async def abandon_move(self, move: Move) -> None:
        def work() -> None:
            item = self.items.get(move.request_id)
            if item and item.move and item.move.token == move.token:
                self._put("abandon_move", replace(item, move=None))

        await self.faults.call("abandon_move", work)

    async def ping(self) -> None:
        await self.faults.call("ping", lambda: None)

    async def read(self, request_id: str) -> dict[str, str] | None:
        item = self.items.get(request_id)
        if item is None:
            return None
        fields = {
            "request_id": item.request_id,
            "state": item.state,
            "owner": item.owner,
            "lease_end": _text(item.lease_end),
            "region": item.region,
            "expires_at": str(item.expires_at),
            "sqs_message_id": item.sqs_message_id,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _claim(self, request: ClaimRequest) -> ClaimAnswer:
        item = self.items.get(request.message.request_id)
        return self._judged(item, request) if item else self._insert("claim", request)

    def _judged(self, item: Item, request: ClaimRequest) -> ClaimAnswer:
        if item.state == "claimed" and item.owner == request.token:
            return Claimed(item.request_id, item.owner, item.region or request.region, item.lease_end)
        over = Lapsed(item.state, item.owner, _text(item.lease_end), None, item.generation)
        if item.expires_at <= self._now() or request.message.generation > item.generation:
            return replace(over, generation=request.message.generation)
        if item.work != request.message.work:
            return DifferentWork()
        match item.state:
            case "dispatched":
                return Duplicate()
            case "claimed" if item.lease_end > self._now():
                return Held(item.lease_end)
            case "claimed":
                return replace(over, region=item.region)
            case _:
                return over

    def _insert(self, operation: str, request: ClaimRequest, generation: int | None = None) -> Claimed:
        self._put(
            operation,
            Item(
                request_id=request.message.request_id,
                state="claimed",
                owner=request.token,
                lease_end=request.lease_end,
                region=request.region,
                work=request.message.work,
                generation=request.message.generation if generation is None else generation,
                source_message_id=request.source_message_id,
                expires_at=0,
            ),
        )
        return Claimed(request.message.request_id, request.token, request.region, request.lease_end)

    def _owned(self, claim: Claimed) -> Item:
        item = self.items.get(claim.request_id)
        if item is None or item.owner != claim.token:
            raise LeaseLostError("the claim is another's")
        return item

    def _undecided(self, claim: Claimed) -> Item:
        item = self._owned(claim)
        if item.state == "dispatched":
            raise LeaseLostError("it is dispatched")
        return item

    def _put(self, operation: str, item: Item) -> None:
        item = replace(item, expires_at=int(self._now() + self._retention_s))
        self.items[item.request_id] = item
        self.writes.append(Write(self._now(), operation, item))
        if operation in ("claim", "take_over", "renew"):
            self._leased(item)


def _text(lease_end: float) -> str:
    return f"{lease_end:.3f}"
