"""What the pipeline relies on of a queue that it sends to: on the fake, on MiniStack, and under a scripted client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from dispatcher.aws.regional import SendingQueue
from dispatcher.errors import AmbiguousError, Cause, HeldOffError, LeaseTooShortError, RefusedError
from dispatcher.model import Attribute, Outgoing, Region
from dispatcher.pipeline import RegionalQueue
from dispatcher.policy.breaker import Breaker, BreakerState
from tests.contracts.conftest import clients_on, kinds
from tests.fakes.faults import Faults
from tests.fakes.queues import FakeQueue
from tests.virtual_time import run_virtual

HOME = Region("us-east-1")
TEXT = 'žluťoučký "kůň" \\u0000 \t\n {"a":  1}  '
TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"


@dataclass(slots=True)
class Breaking:
    """What a queue's breaker says, and what it heard."""

    admits: bool = True
    learned: list[bool] = field(default_factory=list)


@dataclass(slots=True)
class Subject:
    queue: RegionalQueue
    received: Callable[[int], Any]  # how many messages to wait for → their bodies, attributes and ids
    breaking: Breaking


def out(
    body: str, attributes: Mapping[str, Attribute] | None = None, departs: Callable[[], None] = lambda: None
) -> Outgoing:
    return Outgoing(body, attributes or {}, None, departs)


def too_short() -> None:
    raise LeaseTooShortError("the lease would not outlast the send")


@pytest.fixture(
    params=kinds("fake", "fake-aws", "ministack", "ministack-lean", others=("localstack", "localstack-lean"))
)
async def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    breaking = Breaking()
    if request.param == "fake":
        fake = FakeQueue(HOME, faults=Faults(latency_s=0.001))

        async def in_memory(_: int) -> list[tuple[str, dict[str, Attribute]]]:
            return [(arrival.out.body, dict(arrival.out.attributes)) for arrival in fake.arrivals]

        yield Subject(fake, in_memory, breaking)
        return
    async with AsyncExitStack() as stack:
        clients = await clients_on(str(request.param), request, monkeypatch, stack)
        call = await clients.open("sqs", HOME, pool=10, attempts=1)
        url = (await call("create_queue", QueueName=f"regional-{uuid4().hex}"))["QueueUrl"]
        queue = SendingQueue(
            url, call, admits=lambda count: count if breaking.admits else 0, learn=breaking.learned.append
        )
        await stack.enter_async_context(queue)

        async def on_emulator(count: int) -> list[tuple[str, dict[str, Attribute]]]:
            found = []
            for _ in range(count + 2):
                answer = await call(
                    "receive_message", QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
                )
                for message in answer.get("Messages") or []:
                    attributes = {
                        name: Attribute(value["DataType"], value.get("BinaryValue", value.get("StringValue", "")))
                        for name, value in (message.get("MessageAttributes") or {}).items()
                    }
                    found.append((message["Body"], attributes))
                if len(found) >= count:
                    break
            return found

        yield Subject(queue, on_emulator, breaking)


async def test_a_message_arrives_byte_for_byte_with_its_attributes(subject: Subject) -> None:
    attributes = {
        "text": Attribute("String", "ž"),
        "number": Attribute("Number", "12.5"),
        "binary": Attribute("Binary.custom", bytes(range(256))),
        "dispatcher.request_id": Attribute("String", "r"),
    }
    sqs_message_id = await subject.queue.send(out(TEXT, attributes))
    assert sqs_message_id
    assert await subject.received(1) == [(TEXT, attributes)]


async def test_of_those_sent_together_each_hears_its_own(subject: Subject) -> None:
    answers = await subject.queue.send_all([out("1"), out("2", departs=too_short), out("3")])
    assert isinstance(answers[1], LeaseTooShortError)
    assert len({answer for answer in answers if isinstance(answer, str)}) == 2
    assert sorted(body for body, _ in await subject.received(2)) == ["1", "3"]


async def test_twenty_five_at_once_each_get_an_id_of_their_own(subject: Subject) -> None:
    ids = await asyncio.gather(*(subject.queue.send(out(f"{number}")) for number in range(25)))
    assert len(set(ids)) == 25
    assert sorted(body for body, _ in await subject.received(25)) == sorted(f"{number}" for number in range(25))


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp, of any request over 1 MiB
async def test_large_bodies_are_packed_by_bytes(subject: Subject) -> None:
    """Twelve of 200 kB: ten of them would be twice what a batch may hold."""
    bodies = [f"{number:02}" + "é" * 100_000 for number in range(12)]
    await asyncio.gather(*(subject.queue.send(out(body)) for body in bodies))
    assert sorted(body for body, _ in await subject.received(12)) == bodies


async def test_departs_is_asked_right_before_the_send_and_may_keep_the_message(subject: Subject) -> None:
    departed: list[str] = []
    ends = await asyncio.gather(
        subject.queue.send(out("a", departs=lambda: departed.append("a"))),
        subject.queue.send(out("b", departs=too_short)),
        subject.queue.send(out("c", departs=lambda: departed.append("c"))),
        return_exceptions=True,
    )
    assert isinstance(ends[1], LeaseTooShortError)
    assert sorted(departed) == ["a", "c"]
    assert sorted(body for body, _ in await subject.received(2)) == ["a", "c"]


async def test_alone_with_a_lease_too_short_nothing_is_sent(subject: Subject) -> None:
    with pytest.raises(LeaseTooShortError):
        await subject.queue.send(out("a", departs=too_short))
    assert await subject.received(1) == []


@pytest.mark.parametrize("subject", ["ministack"], indirect=True)
async def test_a_held_off_breaker_sends_nothing_and_nothing_departs(subject: Subject) -> None:
    subject.breaking.admits = False
    departed: list[str] = []
    with pytest.raises(HeldOffError):
        await subject.queue.send(out("a", departs=lambda: departed.append("a")))
    assert not departed
    assert not subject.breaking.learned
    assert await subject.received(1) == []


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp, of any request over 1 MiB
@pytest.mark.parametrize("subject", ["ministack"], indirect=True)
async def test_a_message_that_sqs_refuses_is_told_and_its_batch_mates_go(subject: Subject) -> None:
    """More than a queue takes: its fault alone, and the queue works well."""
    ends = await asyncio.gather(
        subject.queue.send(out("a")),
        subject.queue.send(out("b" * (1024 * 1024 + 1))),
        subject.queue.send(out("c")),
        return_exceptions=True,
    )
    assert isinstance(ends[1], RefusedError)
    assert isinstance(ends[0], str)
    assert isinstance(ends[2], str)
    assert sorted(body for body, _ in await subject.received(2)) == ["a", "c"]


# --- under a scripted client --------------------------------------------------------------------------------


class ScriptedCaller:
    """A client that answers as told; `sent` has the bodies of each call."""

    def __init__(self, answer: Callable[[list[dict[str, Any]]], Mapping[str, Any]], takes_s: float = 0.0) -> None:
        self._answer = answer
        self._takes_s = takes_s
        self.sent: list[tuple[float, list[str]]] = []

    def prepare(self, *operations: str) -> None: ...

    async def __call__(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        entries = parameters["Entries"]
        self.sent.append((asyncio.get_running_loop().time(), [entry["MessageBody"] for entry in entries]))
        await asyncio.sleep(self._takes_s)
        return self._answer(entries)


def _all_well(entries: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {"Successful": [{"Id": entry["Id"], "MessageId": f"id-{entry['MessageBody']}"} for entry in entries]}


def _one_at_a_time(entries: list[dict[str, Any]]) -> Mapping[str, Any]:
    if len(entries) > 1:
        code = "AWS.SimpleQueueService.BatchRequestTooLong"
        raise RefusedError(Cause.REFUSED, "too long", code)
    return _all_well(entries)


def test_entries_that_the_answer_leaves_out_are_ambiguous_not_sent() -> None:
    async def story() -> None:
        caller = ScriptedCaller(lambda entries: _all_well(entries[:1]))
        async with SendingQueue("url", caller) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            ends = await asyncio.gather(queue.send(out("a")), queue.send(out("b")), return_exceptions=True)
        assert ends[0] == "id-a"
        assert isinstance(ends[1], AmbiguousError)

    run_virtual(story())


def test_a_batch_too_long_for_the_queue_is_split_until_it_fits() -> None:
    async def story() -> None:
        caller = ScriptedCaller(_one_at_a_time)
        async with SendingQueue("url", caller) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            ids = await asyncio.gather(*(queue.send(out(str(n))) for n in range(10)))
        assert ids == [f"id-{n}" for n in range(10)]

    run_virtual(story())


def test_the_lease_is_looked_at_again_right_before_each_call_of_a_split_batch() -> None:
    """Split ten ways, with slow answers, the last calls start a minute and more after the batch departed.

    A lease that outlasted a send then may be over by now, and its message somebody else's.
    """

    async def story() -> None:
        caller = ScriptedCaller(_one_at_a_time, takes_s=9.0)
        now = asyncio.get_running_loop().time

        def departs() -> None:
            if now() > 60.0:  # a lease that ends at 70 s, and ten seconds for a send
                raise LeaseTooShortError("the lease would not outlast the send")

        async with SendingQueue("url", caller) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            await asyncio.gather(*(queue.send(out(str(n), departs=departs)) for n in range(10)), return_exceptions=True)
        late = [bodies for at, bodies in caller.sent if at > 60.0]
        assert not late, f"sent after the lease was too short: {late}"

    run_virtual(story())


def test_a_call_that_was_never_made_says_nothing_of_the_queue() -> None:
    """Half-open, one call is let through to see. If its only message stays, nothing was seen."""

    async def story() -> None:
        breaker = Breaker()
        for _ in range(5):
            breaker.record(succeeded=False, now=0.0)
        breaker.answered()
        caller = ScriptedCaller(_all_well)
        queue = SendingQueue(
            "url",
            caller,  # type: ignore[arg-type]  # a Caller in all that is used
            admits=breaker.admits,
            withdraw=breaker.withdraw,
            learn=lambda succeeded: breaker.record(succeeded, 0.0),
        )
        async with queue:
            with pytest.raises(LeaseTooShortError):
                await queue.send(out("a", departs=too_short))
            assert not caller.sent
            assert breaker.state is BreakerState.HALF_OPEN, "closed without a single call"
            assert await queue.send(out("b")) == "id-b", "and the next may be the one to see"

    run_virtual(story())


def test_a_sender_that_was_cancelled_before_its_batch_departs_does_not_depart() -> None:
    """At a drain's deadline the carrier is cancelled and its batch is due, in the same turn of the loop.

    The carrier hands back, releasing the claim; a send that starts now would be a copy without a claim.
    """

    async def story() -> None:
        caller = ScriptedCaller(_all_well)
        departed: list[str] = []
        loop = asyncio.get_running_loop()
        async with SendingQueue("url", caller) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            sender = asyncio.create_task(queue.send(out("a", departs=lambda: departed.append("a"))))
            loop.call_soon(sender.cancel)  # runs right before the lane departs, since it is idle
            await asyncio.wait([sender])
            await asyncio.sleep(1)
        assert sender.cancelled()
        assert not departed
        assert not caller.sent

    run_virtual(story())


def test_the_trace_header_travels() -> None:
    async def story() -> None:
        seen: list[dict[str, Any]] = []

        def answer(entries: list[dict[str, Any]]) -> Mapping[str, Any]:
            seen.extend(entries)
            return _all_well(entries)

        async with SendingQueue("url", ScriptedCaller(answer)) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            await queue.send(Outgoing("a", {}, TRACE, lambda: None))
        assert seen[0]["MessageSystemAttributes"]["AWSTraceHeader"]["StringValue"] == TRACE

    run_virtual(story())


@pytest.mark.parametrize("code", ["InvalidMessageContents", "AWS.SimpleQueueService.BatchRequestTooLong"])
def test_a_call_refused_for_one_message_s_sake_is_told_apart_and_opens_no_breaker(code: str) -> None:
    """SQS may refuse a whole call where it could have refused an entry: the mates must not be condemned with it."""

    async def story() -> None:
        def answer(entries: list[dict[str, Any]]) -> Mapping[str, Any]:
            if "bad" in [entry["MessageBody"] for entry in entries]:
                cause = Cause.INVALID if code == "InvalidMessageContents" else Cause.REFUSED
                raise RefusedError(cause, "no", code)
            return _all_well(entries)

        learned: list[bool] = []
        async with SendingQueue("url", ScriptedCaller(answer), learn=learned.append) as queue:  # type: ignore[arg-type]  # a Caller in all that is used
            bodies = ["a", "b", "bad", "c", "d"]
            sent = await asyncio.gather(*(queue.send(out(body)) for body in bodies), return_exceptions=True)
        assert [s for s in sent if isinstance(s, str)] == ["id-a", "id-b", "id-c", "id-d"]
        refused = sent[2]
        assert isinstance(refused, RefusedError)
        assert refused.cause is Cause.INVALID
        assert all(learned)

    run_virtual(story())
