"""The ledger: one DynamoDB item per request, and the conditional writes that move it from state to state.

    new ──claim──▶ claimed ──confirm──▶ dispatched
                    │  ▲
            release │  │ take over: also once its lease is over
                    ▼  │
                  released

Every write but the first names the token of the claim that it changes: who lost a claim can do nothing to it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from decimal import Decimal
from typing import Any, Self

from dispatcher.aws.clients import Caller
from dispatcher.aws.faults import cause_of
from dispatcher.clock import Clock
from dispatcher.errors import AmbiguousError, AwsError, Cause, LeaseLostError, RefusedError
from dispatcher.lanes.batch import BatchLimits
from dispatcher.lanes.lane import Lane
from dispatcher.model import (
    Choice,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    DifferentWork,
    Duplicate,
    Held,
    Lapsed,
    LapsedMove,
    Move,
    MoveAnswer,
    Region,
)
from dispatcher.policy.claims import Record, State, Whereabouts, judge, judge_move
from dispatcher.telemetry.metrics import Metrics

STATEMENTS_MAX = 25  # DynamoDB: statements a batch (BatchExecuteStatement reference)
KEYS_MAX = 100  # DynamoDB: keys a batch (BatchGetItem reference)
CLAIM_LINGER_S = 0.02
READ_LINGER_S = 0.1  # for duplicates, which nobody waits for
CONFIRM_LINGER_S = 0.025  # off the latency path; but the window in which a crash may duplicate ends with it

_REFUSED_CODES = {
    "ConditionalCheckFailed",
    "ConditionalCheckFailedException",
    "DuplicateItem",
    "DuplicateItemException",
}
_MOVE_NAMES = {"#mover": "mover", "#to": "moving_to", "#until": "moving_until"}
Item = dict[str, dict[str, str]]
"""Attributes by name, as DynamoDB spells them: `{"state": {"S": "claimed"}}`."""
PROBE_KEY = "\x00probe"  # no request has it: ids are printable


class Ledger:
    """Use as a context: its lanes run inside.

    `retention_s`: how long an item is remembered after its last write. `learn` hears whether each call was answered:
    the breaker's food.
    """

    def __init__(
        self,
        table: str,
        caller: Caller,
        *,
        clock: Clock,
        metrics: Metrics,
        retention_s: float,
        batching: bool,
        learn: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._table = table
        self._caller = caller
        self._clock = clock
        self._metrics = metrics
        self._retention_s = retention_s
        self._learn = learn
        limits = BatchLimits(items=STATEMENTS_MAX)
        self._claims = Lane[ClaimRequest, None](
            self._claim_batch if batching else self._claim_each,
            limits=limits,
            linger_s=CLAIM_LINGER_S if batching else 0.0,
            flushes_max=8,
            eager=True,
            key_of=lambda request: request.message.request_id,
        )
        self._reads = Lane[str, Mapping[str, Any] | None](
            self._read,
            limits=BatchLimits(items=KEYS_MAX),
            linger_s=READ_LINGER_S,
            flushes_max=4,
            key_of=lambda request_id: request_id,
        )
        self._confirms = Lane[tuple[Claimed, str], None](
            self._confirm_batch if batching else self._confirm_each,
            limits=limits,
            linger_s=CONFIRM_LINGER_S if batching else 0.0,
            flushes_max=8,
            key_of=lambda confirmation: confirmation[0].request_id,
        )
        self._stack = AsyncExitStack()
        caller.prepare("put_item", "update_item", "get_item", "batch_execute_statement", "batch_get_item")

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._claims)
        await self._stack.enter_async_context(self._reads)
        await self._stack.enter_async_context(self._confirms)
        return self

    async def __aexit__(self, *reason: Any) -> None:
        await self._stack.__aexit__(*reason)

    def hurry(self) -> None:
        self._claims.hurry()
        self._reads.hurry()
        self._confirms.hurry()

    # --- transitions -------------------------------------------------------------------------------------------

    async def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """new → claimed, on condition that the ledger has no such item; refused, say what the old item means.

        Safe to repeat: our own claim is recognised by its token. Raises AwsError.
        """
        try:
            try:
                await self._claims.submit(request)
            except _ConditionError as refusal:
                return await self._refused(request, refusal.item)
        except AwsError:
            self._metrics.claims.labels("error").inc()
            raise
        self._metrics.claims.labels("claimed").inc()
        return _claimed(request)

    async def claim_all(self, requests: Sequence[ClaimRequest]) -> Sequence[bool | Exception]:
        """The same for several at once; returns each one's fault, or whether it is claimed: `look` says what by."""
        refusals = await self._claims.submit_all(requests)
        claimed = refusals.count(None)
        self._metrics.claims.labels("claimed").inc(claimed)
        if claimed == len(requests):
            return [True] * claimed
        self._metrics.claims.labels("error").inc(sum(isinstance(refusal, AwsError) for refusal in refusals))
        return [
            True if refusal is None else False if isinstance(refusal, _ConditionError) else refusal
            for refusal in refusals
        ]

    async def look(self, request: ClaimRequest) -> ClaimAnswer | None:
        """Return what the item means that refused a claim; None: there is none any more. Raises AwsError."""
        item = await self._reads.submit(request.message.request_id)
        return self._judged(request, item) if item else None

    async def take_over(self, old: Lapsed, request: ClaimRequest) -> Claimed | None:
        """Replace what is over by our claim, on condition that it is still exactly that: same token, state and lease.

        A claim renewed or taken by someone else in between differs in one of them. None: it does; claim again.
        """
        try:
            await self._write(
                "put_item",
                # a twin of a lower generation that finishes a claim leaves nothing of the higher one to do
                Item=_item(request) | self._alike(State.CLAIMED) | {"generation": {"N": str(old.generation)}},
                ConditionExpression="#token = :token AND #state = :state AND #lease = :lease",
                ExpressionAttributeNames={"#token": "owner", "#state": "state", "#lease": "lease_end"},
                ExpressionAttributeValues={
                    ":token": {"S": old.token},
                    ":state": {"S": old.state},
                    ":lease": {"N": old.lease_end},
                },
            )
        except _ConditionError:
            return None
        self._metrics.claims.labels("taken_over").inc()
        return _claimed(request)

    async def confirm(self, claim: Claimed, sqs_message_id: str) -> None:
        """claimed → dispatched, on condition of our token alone.

        A lapsed lease does not matter while nobody took over, and a repeat after a lost answer changes nothing.
        Raises LeaseLostError if the claim is another's, AwsError.
        """
        await self._confirms.submit((claim, sqs_message_id))

    async def confirm_all(self, confirmations: Sequence[tuple[Claimed, str]]) -> Sequence[Exception | None]:
        """The same for several at once; returns each one's own error, or None."""
        return await self._confirms.submit_all(confirmations)

    async def retarget(self, claim: Claimed, choice: Choice) -> Claimed:
        """claimed for A → claimed for B, fenced, before B is tried: a takeover must know where a copy may be.

        On condition that it is still claimed for A, or already for B: when the claim has gone on to C, a try that was
        long on its way must not bring it back.
        """
        chosen = _chosen(choice)
        sets = ", ".join(f"#{name} = :{name}" for name in chosen)
        values = {f":{name}": value for name, value in chosen.items()} | {":left": {"S": claim.region}}
        names = {f"#{name}": name for name in chosen}
        await self._update(claim, sets, values, names, only_if="(#region = :left OR #region = :region)")
        return Claimed(claim.request_id, claim.token, choice.region, claim.lease_end)

    async def renew(self, claim: Claimed, lease_end: float) -> Claimed:
        """Move the lease's end (epoch seconds). The visibility must already reach past it."""
        await self._update(claim, "#lease = :lease", {":lease": {"N": _number(lease_end)}}, {"#lease": "lease_end"})
        return Claimed(claim.request_id, claim.token, claim.region, lease_end)

    async def release(self, claim: Claimed, *, rejected: bool = False) -> None:
        """claimed → released (or rejected): lease 0, no Region. Only when certainly no Region has it."""
        state = State.REJECTED if rejected else State.RELEASED
        await self._update(
            claim,
            "#state = :to, #lease = :zero REMOVE #region",
            {":to": {"S": state}, ":zero": {"N": "0"}},
            {"#lease": "lease_end", "#region": "region"},
        )

    # --- moves -------------------------------------------------------------------------------------------------

    async def begin_move(self, move: Move, over: LapsedMove | None = None) -> MoveAnswer:
        """dispatched in A → the same, being moved to B; on condition that nobody moves it, or just `over` did.

        Safe to repeat: our own intent is recognised by its token. Raises AwsError.
        """
        free = "attribute_not_exists(#mover) OR #mover = :token"
        if over:
            free = "#mover = :token OR (#mover = :old AND #until = :old_until)"
        values = {
            ":token": {"S": move.token},
            ":to": {"S": move.choice.region},
            ":until": {"N": _number(move.lease_end)},
            ":dispatched": {"S": State.DISPATCHED},
            ":source": {"S": move.source},
            ":work": {"S": move.work},
            ":now": {"N": _number(self._clock.now())},
        }
        if over:
            values |= {":old": {"S": over.token}, ":old_until": {"N": over.until}}
        try:
            await self._write(
                "update_item",
                Key={"request_id": {"S": move.request_id}},
                UpdateExpression="SET #mover = :token, #to = :to, #until = :until",
                ConditionExpression=(
                    f"#state = :dispatched AND #region = :source AND #work = :work AND #expires > :now AND ({free})"
                ),
                ExpressionAttributeNames={
                    **_MOVE_NAMES,
                    "#state": "state",
                    "#region": "region",
                    "#work": "work",
                    "#expires": "expires_at",
                },
                ExpressionAttributeValues=values,
            )
        except _ConditionError as refusal:
            return judge_move(_whereabouts(refusal.item or {}), move, self._clock.now())
        return move

    async def end_move(self, move: Move, sqs_message_id: str) -> None:
        """dispatched in A, being moved → dispatched in B. Raises LeaseLostError if the move is not ours any more."""
        chosen = _chosen(move.choice)
        sets = ", ".join(f"#{name} = :{name}" for name in chosen)
        now = self._clock.now()
        try:
            await self._write(
                "update_item",
                Key={"request_id": {"S": move.request_id}},
                UpdateExpression=(
                    f"SET {sets}, #id = :id, #from = :from, #at = :at, #expires = :expires REMOVE #mover, #to, #until"
                ),
                ConditionExpression="#mover = :token",
                ExpressionAttributeNames=_MOVE_NAMES
                | {f"#{name}": name for name in chosen}
                | {"#id": "sqs_message_id", "#from": "moved_from", "#at": "moved_at", "#expires": "expires_at"},
                ExpressionAttributeValues={
                    **{f":{name}": value for name, value in chosen.items()},
                    ":token": {"S": move.token},
                    ":id": {"S": sqs_message_id or "-"},
                    ":from": {"S": move.source},
                    ":at": {"N": _number(now)},
                    ":expires": {"N": str(int(now + self._retention_s))},
                },
            )
        except _ConditionError as refusal:
            item = refusal.item or {}
            ours = (_text(item, "region", "S"), _text(item, "sqs_message_id", "S"))
            if ours != (move.choice.region, sqs_message_id or "-"):  # else it was written, and the answer lost
                raise LeaseLostError("the move is another's") from refusal

    async def abandon_move(self, move: Move) -> None:
        """Take our intent back, because certainly no other Region has it. Raises AwsError."""
        with suppress(_ConditionError):  # it is another's by now, or was never written
            await self._write(
                "update_item",
                Key={"request_id": {"S": move.request_id}},
                UpdateExpression="REMOVE #mover, #to, #until",
                ConditionExpression="#mover = :token",
                ExpressionAttributeNames=_MOVE_NAMES,
                ExpressionAttributeValues={":token": {"S": move.token}},
            )

    async def ping(self) -> None:
        """Return if the table answers reads; raise AwsError."""
        await self._caller("get_item", TableName=self._table, Key={"request_id": {"S": PROBE_KEY}})
        self._learn(True)

    # --- claims ------------------------------------------------------------------------------------------------

    async def _claim_batch(self, requests: Sequence[ClaimRequest]) -> Sequence[Exception | None]:
        written = _fields(self._alike(State.CLAIMED))
        lot: tuple[Choice, float] | None = None
        text = ""  # one for those that go together, which follow one another
        statements = []
        for request in requests:
            if lot != (request.choice, request.lease_end):
                lot = request.choice, request.lease_end
                text = _inserting(self._table, [*_fields(_of_lot(request)), *written])
            statements.append({"Statement": text, "Parameters": _own(request)})
        return await self._statements(statements)

    async def _claim_each(self, requests: Sequence[ClaimRequest]) -> Sequence[Exception | None]:
        async def one(request: ClaimRequest) -> Exception | None:
            try:
                await self._write(
                    "put_item",
                    Item=_item(request) | self._alike(State.CLAIMED),
                    ConditionExpression="attribute_not_exists(request_id)",
                )
            except (_ConditionError, AwsError) as refusal:
                return refusal
            return None

        return await asyncio.gather(*map(one, requests))

    async def _refused(self, request: ClaimRequest, item: Mapping[str, Any] | None) -> ClaimAnswer:
        """Return what the item that refused the claim means; read it if the refusal did not bring it."""
        answer = self._judged(request, item) if item else await self.look(request)
        if answer is None:  # it vanished between the refusal and the read; the caller's next try inserts again
            raise RefusedError(Cause.REFUSED, "the refusing item vanished")
        return answer

    def _judged(self, request: ClaimRequest, item: Mapping[str, Any]) -> ClaimAnswer:
        answer = judge(_record(item), request, self._clock.now())
        match answer:
            case Claimed():
                self._metrics.claims.labels("own").inc()
            case Duplicate():
                self._metrics.claims.labels("duplicate").inc()
            case Held():
                self._metrics.claims.labels("held").inc()
            case DifferentWork() | Lapsed():
                pass  # the one is a reject; the other is counted when it is taken over
        return answer

    async def _read(self, request_ids: Sequence[str]) -> Sequence[Mapping[str, Any] | None]:
        """Read items by distinct ids (the lane sees to it). One left out counts as vanished."""
        keys = [{"request_id": {"S": request_id}} for request_id in request_ids]
        answer = await self._caller(
            "batch_get_item", RequestItems={self._table: {"Keys": keys, "ConsistentRead": True}}
        )
        items = (answer.get("Responses") or {}).get(self._table) or []
        found = {_text(item, "request_id", "S"): item for item in items if item}
        return [found.get(request_id) for request_id in request_ids]

    def _alike(self, state: State) -> Item:
        """What a whole batch that is written now has in common: its state, when, and how long it is remembered."""
        now = self._clock.now()
        return {
            "state": {"S": state},
            f"{state}_at": {"N": _number(now)},
            "expires_at": {"N": str(int(now + self._retention_s))},
        }

    # --- confirmations -----------------------------------------------------------------------------------------

    def _confirmed(self) -> Item:
        return {**self._alike(State.DISPATCHED), "lease_end": {"N": "0"}}

    async def _confirm_batch(self, confirmations: Sequence[tuple[Claimed, str]]) -> Sequence[Exception | None]:
        text = _updating(self._table, ["sqs_message_id"], self._confirmed())
        statements = [
            {"Statement": text, "Parameters": [{"S": sent_as or "-"}, {"S": claim.request_id}, {"S": claim.token}]}
            for claim, sent_as in confirmations
        ]
        outcomes = await self._statements(statements)
        return [LeaseLostError("confirm") if isinstance(o, _ConditionError) else o for o in outcomes]

    async def _confirm_each(self, confirmations: Sequence[tuple[Claimed, str]]) -> Sequence[Exception | None]:
        async def one(claim: Claimed, sqs_message_id: str) -> Exception | None:
            changes = {**self._confirmed(), "sqs_message_id": {"S": sqs_message_id or "-"}}
            sets = ", ".join(f"#{name} = :{name}" for name in changes)
            try:
                await self._write(
                    "update_item",
                    Key={"request_id": {"S": claim.request_id}},
                    UpdateExpression=f"SET {sets}",
                    ConditionExpression="#owner = :owner",
                    ExpressionAttributeNames={"#owner": "owner"} | {f"#{name}": name for name in changes},
                    ExpressionAttributeValues={":owner": {"S": claim.token}} | {f":{n}": v for n, v in changes.items()},
                )
            except _ConditionError:
                return LeaseLostError("confirm")
            except AwsError as fault:
                return fault
            return None

        return await asyncio.gather(*(one(*confirmation) for confirmation in confirmations))

    # --- calls -------------------------------------------------------------------------------------------------

    async def _update(
        self, claim: Claimed, sets: str, values: Mapping[str, Any], names: Mapping[str, str], *, only_if: str = ""
    ) -> None:
        """Change our claim: our token, and not yet dispatched. A repeat after a lost answer changes nothing."""
        condition = "#owner = :owner AND #state <> :dispatched"
        try:
            await self._write(
                "update_item",
                Key={"request_id": {"S": claim.request_id}},
                UpdateExpression=f"SET #expires = :expires, {sets}",
                ConditionExpression=f"{condition} AND {only_if}" if only_if else condition,
                ExpressionAttributeNames={"#owner": "owner", "#state": "state", "#expires": "expires_at", **names},
                ExpressionAttributeValues={
                    ":expires": {"N": str(int(self._clock.now() + self._retention_s))},
                    ":owner": {"S": claim.token},
                    ":dispatched": {"S": State.DISPATCHED},
                    **values,
                },
            )
        except _ConditionError as refusal:
            raise LeaseLostError("the claim is another's") from refusal

    async def _write(self, operation: str, **parameters: Any) -> None:
        """One conditional write. Raises _ConditionError with the item that refused it, AwsError."""
        try:
            await self._caller(
                operation, TableName=self._table, ReturnValuesOnConditionCheckFailure="ALL_OLD", **parameters
            )
        except AwsError as fault:
            refused = fault.code in _REFUSED_CODES
            self._learn(refused)
            if refused:
                raise _ConditionError(fault.answer.get("Item")) from fault
            raise
        self._learn(True)

    async def _statements(self, statements: Sequence[Mapping[str, Any]]) -> list[Exception | None]:
        """Run a batch; one outcome per statement: None, _ConditionError, or AwsError."""
        try:
            answer = await self._caller("batch_execute_statement", Statements=statements)
        except AwsError as fault:
            self._learn(False)
            return [fault] * len(statements)
        responses = answer.get("Responses") or []
        outcomes: list[Exception | None] = [
            None if response and "Error" not in response else _member_outcome(response) for response in responses
        ]
        if len(responses) != len(statements):  # then nobody knows which is whose
            outcomes = [AmbiguousError(f"{len(responses)} answers to {len(statements)} statements")] * len(statements)
        self._learn(not all(isinstance(outcome, AwsError) for outcome in outcomes))
        return outcomes


async def read_item(call: Caller, table: str, request_id: str) -> dict[str, str] | None:
    """Return the item of a request, values as text; None if the ledger has none."""
    answer = await call("get_item", TableName=table, Key={"request_id": {"S": request_id}}, ConsistentRead=True)
    item = answer.get("Item")
    return {name: str(next(iter(value.values()))) for name, value in item.items()} if item else None


class _ConditionError(Exception):
    """The write's condition did not hold. `item`: what stood there, if the call says so."""

    def __init__(self, item: Mapping[str, Any] | None = None) -> None:
        super().__init__("condition not met")
        self.item = item


def _member_outcome(response: Mapping[str, Any] | None) -> Exception | None:
    if response is None:
        return AmbiguousError("no answer to this statement")
    error = response.get("Error")
    if not error:
        return None
    code = str(error.get("Code") or "")
    if code in _REFUSED_CODES:
        return _ConditionError()
    # members are never retried by the SDK; the caller tries again, and recognises its own write if this one was done
    return RefusedError(cause_of(code) or Cause.REFUSED, f"{code}: {error.get('Message') or ''}", code)


def _inserting(table: str, alike: Sequence[str]) -> str:
    """A statement with a parameter for each of `_OWN`; the fields that are alike in a batch stand in it."""
    return f'INSERT INTO "{table}" VALUE {{{", ".join([*_OWN_FIELDS, *alike])}}}'


def _fields(alike: Item) -> list[str]:
    return [f"'{name}': {_literal(value)}" for name, value in alike.items()]


def _updating(table: str, names: Sequence[str], alike: Item) -> str:
    """The same for a change of our claim: after `names` come the request's id and the claim's token."""
    sets = [f'SET "{name}" = ?' for name in names] + [f'SET "{n}" = {_literal(v)}' for n, v in alike.items()]
    return f'UPDATE "{table}" {" ".join(sets)} WHERE "request_id" = ? AND "owner" = ?'


def _literal(value: Mapping[str, str]) -> str:
    """A value of ours in PartiQL; nothing that anybody sent becomes part of a statement."""
    ((kind, text),) = value.items()
    return text if kind == "N" else f"'{text}'"


def _item(request: ClaimRequest) -> Item:
    return dict(zip(_OWN, _own(request), strict=True)) | _of_lot(request)


_OWN = ("request_id", "owner", "work", "generation", "source_message_id")
_OWN_FIELDS = [f"'{name}': ?" for name in _OWN]


def _own(request: ClaimRequest) -> list[dict[str, str]]:
    """What a claim's item has of its own."""
    message, token, _, _, source_message_id = request
    return [
        {"S": message.request_id},
        {"S": token},
        {"S": message.work},
        {"N": str(message.generation)},
        {"S": source_message_id},
    ]


def _of_lot(request: ClaimRequest) -> Item:
    """What it has in common with those that go together."""
    return {"lease_end": {"N": _number(request.lease_end)}, **_chosen(request.choice)}


def _claimed(request: ClaimRequest) -> Claimed:
    return Claimed(request.message.request_id, request.token, request.region, request.lease_end)


def _chosen(choice: Choice) -> Item:
    """The Region, and why it was chosen."""
    return {
        "region": {"S": choice.region},
        "policy": {"S": choice.policy},
        "projected_wait_s": {"N": _number(choice.wait_s)},
    }


def _text(item: Mapping[str, Any], name: str, kind: str, otherwise: str = "") -> str:
    return str((item.get(name) or {}).get(kind, otherwise))


def _record(item: Mapping[str, Any]) -> Record:
    region = _text(item, "region", "S")
    return Record(
        request_id=_text(item, "request_id", "S"),
        state=_text(item, "state", "S"),
        token=_text(item, "owner", "S"),
        lease_end=_text(item, "lease_end", "N", "0"),
        region=Region(region) if region else None,
        work=_text(item, "work", "S"),
        generation=int(Decimal(_text(item, "generation", "N", "0"))),
        expires_at=float(_text(item, "expires_at", "N", "inf")),
    )


def _whereabouts(item: Mapping[str, Any]) -> Whereabouts:
    return Whereabouts(
        state=_text(item, "state", "S"),
        region=_text(item, "region", "S"),
        mover=_text(item, "mover", "S"),
        moving_to=_text(item, "moving_to", "S"),
        moving_until=_text(item, "moving_until", "N", "0"),
        expires_at=float(_text(item, "expires_at", "N", "inf")),
        work=_text(item, "work", "S"),
    )


def _number(value: float) -> str:
    return f"{value:.3f}"
