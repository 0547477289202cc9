"""What the pipeline relies on of a ledger, on the fake and on emulators alike."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import uuid4

import pytest

from dispatcher.aws.clients import Caller
from dispatcher.aws.ledger import Ledger, read_item
from dispatcher.aws.provision import create_table
from dispatcher.clock import Clock
from dispatcher.errors import AmbiguousError, AwsError, LeaseLostError
from dispatcher.model import (
    Choice,
    Claimed,
    ClaimRequest,
    DifferentWork,
    Duplicate,
    Elsewhere,
    Held,
    Lapsed,
    LapsedMove,
    Message,
    Move,
    Priority,
    Region,
    Unmovable,
)
from dispatcher.pipeline import Ledger as LedgerProtocol
from dispatcher.rescue import MoveLedger
from dispatcher.telemetry.metrics import Metrics
from tests.contracts.conftest import clients_on, kinds
from tests.fakes.faults import Faults, lost_answer
from tests.fakes.ledger import FakeLedger

HOME = Region("us-east-1")
A, B, C = Region("eu-west-1"), Region("us-west-2"), Region("ap-south-1")
RETENTION_S = 1000.0
Read = Callable[[str], Awaitable[dict[str, str] | None]]


class Time:
    """A time of day that moves when told: leases end without waiting for them."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s


class LosingCaller:
    """A client whose next answer to a write is lost on its way back."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.lose_next = False

    def prepare(self, *operations: str) -> None:
        self._caller.prepare(*operations)

    async def __call__(self, operation: str, **parameters: Any) -> Any:
        try:
            answer = await self._caller(operation, **parameters)
        except AwsError:
            if self.lose_next:
                self.lose_next = False
                raise AmbiguousError("the answer was lost") from None
            raise
        if self.lose_next:
            self.lose_next = False
            raise AmbiguousError("the answer was lost")
        return answer


class BothProtocols(LedgerProtocol, MoveLedger, Protocol):
    """All that anybody asks of a ledger."""


@dataclass(slots=True)
class Subject:
    """A ledger under test, seen by two dispatchers."""

    one: "BothProtocols"
    two: "BothProtocols"
    time: Time
    read: Read
    lose_next: Callable[[str], None]


def chosen(region: Region) -> Choice:
    return Choice(region, "projected-wait", 1.5)


def request(request_id: str, *, lease_s: float = 90.0, at: Time, region: Region = A, **changes: Any) -> ClaimRequest:
    message = Message(request_id, "m", Priority.NORMAL, "work", 0)._replace(**changes)
    return ClaimRequest(message, uuid4().hex, chosen(region), at.now() + lease_s, f"source-{uuid4().hex}")


KINDS = kinds(
    "fake", "fake-aws-batched", "fake-aws-single", "ministack-batched", "ministack-single", "ministack-lean-batched",
    "moto-single",
    others=("dynamodb-local-batched", "dynamodb-local-single", "dynamodb-local-lean-batched"),
)  # fmt: skip


@pytest.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    kind = str(request.param)
    clock = Time()
    if kind == "fake":
        faults = Faults(latency_s=0.001)
        fake = FakeLedger(clock.now, retention_s=RETENTION_S, faults=faults)
        yield Subject(fake, fake, clock, fake.read, lambda operation: faults.on(operation, lost_answer()))
        return
    async with AsyncExitStack() as stack:
        metrics = Metrics.unread()
        clients = await clients_on(kind, request, monkeypatch, stack)
        table = "fake-ledger"
        caller = await clients.open("dynamodb", HOME, pool=20, attempts=1)
        if not kind.startswith("fake"):
            table = f"contract-{kind}-{os.environ.get('PYTEST_XDIST_WORKER', '')}"
            await create_table(caller, table)
        losing = LosingCaller(caller)

        async def ledger() -> Ledger:
            made = Ledger(
                table,
                losing,  # type: ignore[arg-type]  # a Caller in all that a ledger uses
                clock=Clock(clock.now),
                metrics=metrics,
                retention_s=RETENTION_S,
                batching=kind.endswith("batched"),
            )
            return await stack.enter_async_context(made)

        def lose(_: str) -> None:
            losing.lose_next = True

        async def read(request_id: str) -> dict[str, str] | None:
            return await read_item(caller, table, request_id)

        yield Subject(await ledger(), await ledger(), clock, read, lose)


@pytest.fixture
def ids() -> Iterator[Callable[[], str]]:
    """Names that no other test takes, with characters that a key may hold."""
    yield lambda: f"ré/{uuid4().hex} '\"#"


Ids = Callable[[], str]


async def _claimed(subject: Subject, wanted: ClaimRequest) -> Claimed:
    claim = await subject.one.claim(wanted)
    assert isinstance(claim, Claimed)
    return claim


async def test_claims_made_together_each_have_their_own_answer(subject: Subject, ids: Ids) -> None:
    names = [ids(), ids(), ids()]
    await subject.one.claim(request(names[1], at=subject.time))
    wanted = [request(name, at=subject.time) for name in names]
    claimed = await subject.two.claim_all(wanted)
    assert claimed == [True, False, True], "no fault, but a refusal: `look` tells what by"
    assert isinstance(await subject.two.look(wanted[1]), Held)
    assert await subject.two.look(request(ids(), at=subject.time)) is None
    assert [(await subject.read(name) or {})["owner"] for name in names[::2]] == [r.token for r in wanted[::2]]


async def test_confirmations_made_together_each_have_their_own_end(subject: Subject, ids: Ids) -> None:
    one, two = [await _claimed(subject, request(ids(), at=subject.time)) for _ in range(2)]
    well, ill = await subject.one.confirm_all([(one, "m-1"), (two._replace(token="another's"), "m-2")])
    assert well is None
    assert isinstance(ill, LeaseLostError)
    states = [(await subject.read(claim.request_id) or {})["state"] for claim in (one, two)]
    assert states == ["dispatched", "claimed"]


async def test_a_new_request_is_claimed_with_what_was_asked(subject: Subject, ids: Ids) -> None:
    wanted = request(ids(), at=subject.time)
    claim = await subject.one.claim(wanted)
    assert claim == Claimed(wanted.message.request_id, wanted.token, A, wanted.lease_end)
    item = await subject.read(wanted.message.request_id)
    assert item is not None
    assert (item["state"], item["owner"], item["region"]) == ("claimed", wanted.token, A)
    assert abs(float(item["lease_end"]) - wanted.lease_end) < 0.01


async def test_our_own_claim_is_recognised_after_a_lost_answer(subject: Subject, ids: Ids) -> None:
    wanted = request(ids(), at=subject.time)
    subject.lose_next("claim")
    with pytest.raises(AmbiguousError):
        await subject.one.claim(wanted)
    again = await subject.one.claim(wanted)
    assert isinstance(again, Claimed)
    assert (again.token, again.region) == (wanted.token, A)


async def test_our_own_claim_is_recognised_even_when_its_lease_is_over_and_others_differ(
    subject: Subject, ids: Ids
) -> None:
    """Own token comes first of the checks: before age, generation and work."""
    wanted = request(ids(), at=subject.time)
    await _claimed(subject, wanted)
    subject.time.ahead_s = RETENTION_S + 10
    assert isinstance(await subject.one.claim(wanted), Claimed)
    other = wanted._replace(message=wanted.message._replace(work="other", generation=5))
    assert isinstance(await subject.one.claim(other), Claimed)


async def test_an_expired_item_counts_as_absent_even_a_dispatched_one_of_other_work(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    await subject.one.confirm(await _claimed(subject, first), "id")
    subject.time.ahead_s = RETENTION_S + 2
    second = request(first.message.request_id, at=subject.time, work="other")
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    assert over.region is None
    assert isinstance(await subject.two.take_over(over, second), Claimed)


async def test_a_higher_generation_replaces_a_dispatched_one_and_an_equal_one_does_not(
    subject: Subject, ids: Ids
) -> None:
    first = request(ids(), at=subject.time, generation=3)
    await subject.one.confirm(await _claimed(subject, first), "id")
    for generation in (0, 3):
        assert await subject.two.claim(request(first.message.request_id, at=subject.time, generation=generation)) == (
            Duplicate()
        )
    higher = request(first.message.request_id, at=subject.time, generation=4, work="other")
    over = await subject.two.claim(higher)
    assert isinstance(over, Lapsed)
    assert over.region is None
    assert isinstance(await subject.two.take_over(over, higher), Claimed)
    assert isinstance(
        await subject.one.claim(request(first.message.request_id, at=subject.time, generation=3)), (DifferentWork)
    )


@pytest.mark.parametrize("released", [False, True])
async def test_a_twin_of_a_lower_generation_that_finishes_a_claim_leaves_nothing_of_the_higher_to_do(
    subject: Subject, ids: Ids, released: bool
) -> None:
    first = request(ids(), at=subject.time, generation=3)
    claim = await _claimed(subject, first)
    if released:
        await subject.one.release(claim)
    else:
        subject.time.ahead_s = 91
    twin = request(first.message.request_id, at=subject.time)
    over = await subject.two.claim(twin)
    assert isinstance(over, Lapsed)
    taken = await subject.two.take_over(over, twin)
    assert taken is not None
    await subject.two.confirm(taken, "id")
    again = request(first.message.request_id, at=subject.time, generation=3)
    assert await subject.one.claim(again) == Duplicate()


@pytest.mark.parametrize("state", ["claimed", "dispatched", "released", "rejected"])
async def test_different_work_is_told_in_every_state(subject: Subject, ids: Ids, state: str) -> None:
    first = request(ids(), at=subject.time)
    claim = await _claimed(subject, first)
    if state == "dispatched":
        await subject.one.confirm(claim, "id")
    elif state != "claimed":
        await subject.one.release(claim, rejected=state == "rejected")
    answer = await subject.two.claim(request(first.message.request_id, at=subject.time, work="other"))
    assert answer == DifferentWork()


async def test_dispatched_is_a_duplicate(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    await subject.one.confirm(await _claimed(subject, first), "id")
    assert await subject.two.claim(request(first.message.request_id, at=subject.time)) == Duplicate()
    assert await subject.one.claim(first) == Duplicate(), "also to the one who dispatched it"


async def test_a_live_claim_is_held_until_its_lease_ends(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    await _claimed(subject, first)
    held = await subject.two.claim(request(first.message.request_id, at=subject.time))
    assert isinstance(held, Held)
    assert abs(held.until - first.lease_end) < 0.01


async def test_a_lapsed_claim_is_taken_over_with_the_region_where_a_copy_may_be(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time, region=B)
    await _claimed(subject, first)
    subject.time.ahead_s = 91
    second = request(first.message.request_id, at=subject.time)
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    assert (over.state, over.token, over.region) == ("claimed", first.token, B)
    taken = await subject.two.take_over(over, second)
    assert taken == Claimed(first.message.request_id, second.token, A, second.lease_end)
    assert isinstance(await subject.one.claim(request(first.message.request_id, at=subject.time)), Held)


@pytest.mark.parametrize("rejected", [False, True])
async def test_a_released_claim_is_taken_over_at_once_and_names_no_region(
    subject: Subject, ids: Ids, rejected: bool
) -> None:
    first = request(ids(), at=subject.time)
    await subject.one.release(await _claimed(subject, first), rejected=rejected)
    item = await subject.read(first.message.request_id)
    assert item is not None
    assert item["state"] == ("rejected" if rejected else "released")
    assert float(item["lease_end"]) == 0
    assert "region" not in item
    second = request(first.message.request_id, at=subject.time)
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    assert over.region is None
    assert isinstance(await subject.two.take_over(over, second), Claimed)


async def test_a_claim_renewed_meanwhile_is_not_taken_over(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    claim = await _claimed(subject, first)
    subject.time.ahead_s = 91
    second = request(first.message.request_id, at=subject.time)
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    await subject.one.renew(claim, subject.time.now() + 90)
    assert await subject.two.take_over(over, second) is None
    assert isinstance(await subject.two.claim(second), Held)


@pytest.mark.parametrize("change", ["confirmed", "released", "gone to a third"])
async def test_a_takeover_of_what_has_changed_meanwhile_is_refused(subject: Subject, ids: Ids, change: str) -> None:
    first = request(ids(), at=subject.time)
    claim = await _claimed(subject, first)
    subject.time.ahead_s = 91
    second, third = (request(first.message.request_id, at=subject.time) for _ in range(2))
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    if change == "confirmed":
        await subject.one.confirm(claim, "id")
    elif change == "released":
        await subject.one.release(claim)
    else:
        assert await subject.one.take_over(over, third)
    assert await subject.two.take_over(over, second) is None


async def test_of_many_takers_exactly_one_wins(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    await _claimed(subject, first)
    subject.time.ahead_s = 91
    takers = [request(first.message.request_id, at=subject.time) for _ in range(8)]
    over = await subject.one.claim(takers[0])
    assert isinstance(over, Lapsed)
    sides = [subject.one, subject.two] * 4
    won = await asyncio.gather(*(side.take_over(over, taker) for side, taker in zip(sides, takers, strict=True)))
    (winner,) = [claim for claim in won if claim]
    item = await subject.read(first.message.request_id)
    assert item is not None
    assert item["owner"] == winner.token


async def test_a_lost_answer_to_a_takeover_is_met_again_as_our_own_claim(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    await _claimed(subject, first)
    subject.time.ahead_s = 91
    second = request(first.message.request_id, at=subject.time)
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    subject.lose_next("take_over")
    with pytest.raises(AmbiguousError):
        await subject.two.take_over(over, second)
    assert await subject.two.take_over(over, second) is None
    own = await subject.two.claim(second)
    assert isinstance(own, Claimed)
    assert own.token == second.token


async def test_who_lost_the_claim_can_do_nothing_to_it(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time)
    old = await _claimed(subject, first)
    subject.time.ahead_s = 91
    second = request(first.message.request_id, at=subject.time)
    over = await subject.two.claim(second)
    assert isinstance(over, Lapsed)
    assert await subject.two.take_over(over, second)
    before = await subject.read(first.message.request_id)
    for change in (
        subject.one.confirm(old, "id"),
        subject.one.retarget(old, chosen(B)),
        subject.one.renew(old, subject.time.now() + 500),
        subject.one.release(old),
        subject.one.release(old, rejected=True),
    ):
        with pytest.raises(LeaseLostError):
            await change
    assert await subject.read(first.message.request_id) == before


async def test_nothing_can_be_done_to_a_claim_that_was_never_written(subject: Subject, ids: Ids) -> None:
    nobody = Claimed(ids(), uuid4().hex, A, subject.time.now() + 90)
    for change in (
        subject.one.confirm(nobody, "id"),
        subject.one.retarget(nobody, chosen(B)),
        subject.one.renew(nobody, subject.time.now() + 500),
        subject.one.release(nobody),
    ):
        with pytest.raises(LeaseLostError):
            await change
    assert await subject.read(nobody.request_id) is None


async def test_a_retarget_that_was_long_on_its_way_does_not_bring_a_claim_back(subject: Subject, ids: Ids) -> None:
    claim = await _claimed(subject, request(ids(), at=subject.time, region=A))
    to_b = await subject.one.retarget(claim, chosen(B))
    to_c = await subject.one.retarget(to_b, chosen(C))
    assert await subject.one.retarget(to_b, chosen(C)) == to_c, "a repeat changes nothing"
    with pytest.raises(LeaseLostError):
        await subject.one.retarget(claim, chosen(B))
    assert (await subject.read(claim.request_id) or {})["region"] == C


async def test_generations_of_many_digits_are_told_apart(subject: Subject, ids: Ids) -> None:
    first = request(ids(), at=subject.time, generation=10**37 + 1)
    await subject.one.confirm(await _claimed(subject, first), "id")
    same = request(first.message.request_id, at=subject.time, generation=10**37 + 1)
    assert await subject.two.claim(same) == Duplicate()
    higher = request(first.message.request_id, at=subject.time, generation=10**37 + 2)
    assert isinstance(await subject.two.claim(higher), Lapsed)


async def test_a_dispatched_request_is_neither_released_nor_renewed_nor_retargeted(subject: Subject, ids: Ids) -> None:
    claim = await _claimed(subject, request(ids(), at=subject.time))
    await subject.one.confirm(claim, "id")
    for change in (
        subject.one.release(claim),
        subject.one.renew(claim, subject.time.now() + 500),
        subject.one.retarget(claim, chosen(B)),
    ):
        with pytest.raises(LeaseLostError):
            await change
    item = await subject.read(claim.request_id)
    assert item is not None
    assert item["state"] == "dispatched"


@pytest.mark.parametrize("operation", ["confirm", "retarget", "renew", "release"])
async def test_a_repeat_after_a_lost_answer_is_harmless(subject: Subject, ids: Ids, operation: str) -> None:
    claim = await _claimed(subject, request(ids(), at=subject.time))
    until = subject.time.now() + 80

    async def change() -> None:
        match operation:
            case "confirm":
                await subject.one.confirm(claim, "id")
            case "retarget":
                assert await subject.one.retarget(claim, chosen(B)) == claim._replace(region=B)
            case "renew":
                assert await subject.one.renew(claim, until) == claim._replace(lease_end=until)
            case _:
                await subject.one.release(claim)

    subject.lose_next(operation)
    with pytest.raises(AmbiguousError):
        await change()
    after_first = await subject.read(claim.request_id)
    await change()
    after_second = await subject.read(claim.request_id)
    assert after_first and after_second
    moments = {"dispatched_at", "expires_at"}
    assert {k: v for k, v in after_first.items() if k not in moments} == {
        k: v for k, v in after_second.items() if k not in moments
    }


async def test_a_lapsed_claim_that_nobody_took_is_confirmed(subject: Subject, ids: Ids) -> None:
    claim = await _claimed(subject, request(ids(), at=subject.time))
    subject.time.ahead_s = 400
    await subject.one.confirm(claim, "the-sqs-id")
    item = await subject.read(claim.request_id)
    assert item is not None
    assert (item["state"], item["sqs_message_id"]) == ("dispatched", "the-sqs-id")


async def test_forty_claims_of_twenty_ids_have_twenty_winners(subject: Subject, ids: Ids) -> None:
    names = [ids() for _ in range(20)]
    wanted = [request(name, at=subject.time) for name in names for _ in range(2)]
    sides = [subject.one, subject.two] * 20
    answers = await asyncio.gather(*(side.claim(one) for side, one in zip(sides, wanted, strict=True)))
    winners = [answer.request_id for answer in answers if isinstance(answer, Claimed)]
    assert sorted(winners) == sorted(names)
    assert sum(isinstance(answer, Held) for answer in answers) == 20


async def test_twins_of_one_dispatcher_at_one_moment_have_one_winner(subject: Subject, ids: Ids) -> None:
    """DynamoDB refuses a batch that names a key twice; the callers must not notice."""
    name = ids()
    answers = await asyncio.gather(*(subject.one.claim(request(name, at=subject.time)) for _ in range(6)))
    assert sum(isinstance(answer, Claimed) for answer in answers) == 1
    assert sum(isinstance(answer, Held) for answer in answers) == 5


async def test_more_than_a_batch_at_once_each_gets_its_own_answer(subject: Subject, ids: Ids) -> None:
    wanted = [request(ids(), at=subject.time) for _ in range(60)]
    claims = await asyncio.gather(*map(subject.one.claim, wanted))
    assert [claim.token for claim in claims if isinstance(claim, Claimed)] == [one.token for one in wanted]
    stranger = Claimed(wanted[7].message.request_id, "another's", A, 0.0)
    mixed = [stranger if i == 7 else claim for i, claim in enumerate(claims) if isinstance(claim, Claimed)]
    ends = await asyncio.gather(*(subject.one.confirm(claim, "id") for claim in mixed), return_exceptions=True)
    assert [i for i, end in enumerate(ends) if end is not None] == [7]
    assert isinstance(ends[7], LeaseLostError)


@pytest.mark.parametrize("write", ["claim", "take_over", "confirm", "retarget", "renew", "release"])
async def test_an_item_is_remembered_for_the_retention_after_its_last_write(
    subject: Subject, ids: Ids, write: str
) -> None:
    wanted = request(ids(), at=subject.time, lease_s=50)
    claim = await _claimed(subject, wanted)
    if write != "claim":
        subject.time.ahead_s = 300
    match write:
        case "take_over":
            second = request(claim.request_id, at=subject.time)
            over = await subject.two.claim(second)
            assert isinstance(over, Lapsed)
            assert await subject.two.take_over(over, second)
        case "confirm":
            await subject.one.confirm(claim, "id")
        case "retarget":
            await subject.one.retarget(claim, chosen(B))
        case "renew":
            await subject.one.renew(claim, subject.time.now() + 50)
        case "release":
            await subject.one.release(claim)
        case _:
            pass
    item = await subject.read(claim.request_id)
    assert item is not None
    assert abs(int(item["expires_at"]) - subject.time.now() - RETENTION_S) < 3


async def test_a_claim_that_is_renewed_for_longer_than_the_retention_stays_held(subject: Subject, ids: Ids) -> None:
    """Renewed half-way, and live: past the first write's retention it must not count as absent."""
    claim = await _claimed(subject, request(ids(), at=subject.time))
    subject.time.ahead_s = RETENTION_S - 50
    await subject.one.renew(claim, subject.time.now() + 90)
    subject.time.ahead_s = RETENTION_S + 10
    assert isinstance(await subject.two.claim(request(claim.request_id, at=subject.time)), Held)


# --- moves: from a Region that serves none to another -----------------------------------------------------------


async def dispatched(subject: Subject, request_id: str) -> None:
    claim = await _claimed(subject, request(request_id, at=subject.time))
    await subject.one.confirm(claim, "sqs-1")


def move(subject: Subject, request_id: str, *, to: Region = B, source: Region = A, lease_s: float = 45.0) -> Move:
    return Move(request_id, "work", uuid4().hex, source, chosen(to), subject.time.now() + lease_s)


async def test_a_move_leaves_the_request_dispatched_all_along_and_ends_in_the_other_region(
    subject: Subject, ids: Ids
) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    mine = move(subject, request_id)
    assert await subject.one.begin_move(mine) == mine
    item = await subject.read(request_id)
    assert item is not None
    assert (item["state"], item["region"]) == ("dispatched", A)
    assert await subject.two.claim(request(request_id, at=subject.time)) == Duplicate()
    await subject.one.end_move(mine, "sqs-2")
    item = await subject.read(request_id)
    assert item is not None
    assert (item["state"], item["region"], item["sqs_message_id"]) == ("dispatched", B, "sqs-2")
    assert await subject.two.begin_move(move(subject, request_id)) == Elsewhere(), "a copy that was left in A"


async def test_nobody_else_moves_it_meanwhile_and_a_lapsed_move_is_taken_over_with_its_region(
    subject: Subject, ids: Ids
) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    dead = move(subject, request_id, lease_s=30.0)
    await subject.one.begin_move(dead)
    mine = move(subject, request_id)
    assert isinstance(await subject.two.begin_move(mine), Unmovable)
    subject.time.ahead_s += 40.0
    over = await subject.two.begin_move(mine)
    assert isinstance(over, LapsedMove)
    assert (over.token, over.region) == (dead.token, B)
    mine = replace(mine, lease_end=subject.time.now() + 45.0)
    assert await subject.two.begin_move(mine, over) == mine
    with pytest.raises(LeaseLostError):
        await subject.one.end_move(dead, "sqs-2")
    await subject.one.abandon_move(dead)
    await subject.two.end_move(mine, "sqs-3")
    item = await subject.read(request_id)
    assert item is not None
    assert (item["region"], item["sqs_message_id"]) == (B, "sqs-3")


async def test_two_takers_over_of_one_lapsed_move_never_both_have_it(subject: Subject, ids: Ids) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    await subject.one.begin_move(move(subject, request_id, lease_s=1.0))
    subject.time.ahead_s += 5.0
    first, second = move(subject, request_id), move(subject, request_id)
    over = await subject.one.begin_move(first)
    assert isinstance(over, LapsedMove)
    answers = await asyncio.gather(subject.one.begin_move(first, over), subject.two.begin_move(second, over))
    assert sum(answer in (first, second) for answer in answers) == 1


async def test_an_abandoned_move_is_as_if_it_had_never_begun(subject: Subject, ids: Ids) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    first = move(subject, request_id)
    await subject.one.begin_move(first)
    await subject.one.abandon_move(first)
    second = move(subject, request_id)
    assert await subject.two.begin_move(second) == second


async def test_a_copy_that_is_just_arriving_is_not_taken_for_one_too_many(subject: Subject, ids: Ids) -> None:
    """It is being moved from A to B: whoever rescues out of B meanwhile must not delete what may be the only copy."""
    request_id = ids()
    await dispatched(subject, request_id)
    first = move(subject, request_id, to=B, lease_s=5.0)
    await subject.one.begin_move(first)
    assert isinstance(await subject.two.begin_move(move(subject, request_id, source=B, to=A)), Unmovable)
    subject.time.ahead_s += 60.0
    assert isinstance(await subject.two.begin_move(move(subject, request_id, source=B, to=A)), Unmovable), "even late"
    await subject.one.end_move(first, "sqs-2")


async def test_other_work_under_the_same_id_is_not_moved(subject: Subject, ids: Ids) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    assert isinstance(await subject.one.begin_move(replace(move(subject, request_id), work="other")), Unmovable)


@pytest.mark.parametrize("state", ["unknown", "claimed", "released", "forgotten"])
async def test_only_what_is_dispatched_is_moved(subject: Subject, ids: Ids, state: str) -> None:
    request_id = ids()
    if state == "forgotten":
        await dispatched(subject, request_id)
        subject.time.ahead_s += RETENTION_S + 5.0
    elif state != "unknown":
        claim = await _claimed(subject, request(request_id, at=subject.time))
        if state == "released":
            await subject.one.release(claim)
    assert isinstance(await subject.one.begin_move(move(subject, request_id)), Unmovable)


async def test_a_request_that_is_dispatched_again_on_purpose_ends_a_move(subject: Subject, ids: Ids) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    mine = move(subject, request_id)
    await subject.one.begin_move(mine)
    again = request(request_id, at=subject.time, generation=7)
    over = await subject.two.claim(again)
    assert isinstance(over, Lapsed)
    assert await subject.two.take_over(over, again) is not None
    with pytest.raises(LeaseLostError):
        await subject.one.end_move(mine, "sqs-2")


@pytest.mark.parametrize("write", ["begin_move", "end_move", "abandon_move"])
async def test_a_write_of_a_move_whose_answer_was_lost_may_be_repeated(subject: Subject, ids: Ids, write: str) -> None:
    request_id = ids()
    await dispatched(subject, request_id)
    mine = move(subject, request_id)

    async def do() -> object:
        match write:
            case "begin_move":
                return await subject.one.begin_move(mine)
            case "end_move":
                await subject.one.end_move(mine, "sqs-2")
            case _:
                await subject.one.abandon_move(mine)
        return None

    if write != "begin_move":
        await subject.one.begin_move(mine)
    subject.lose_next(write)
    with pytest.raises(AmbiguousError):
        await do()
    assert await do() in (None, mine)
