"""A master queue and regional queues in memory, as SQS behaves: visibility, receipts, receive counts, redrive."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from dispatcher.errors import Cause, RefusedError
from dispatcher.model import Attribute, Delivery, Depth, Outgoing, Region
from tests.fakes.faults import LIFE, Faults, Life, each

RECEIVE_MAX_S = 43200


@dataclass(slots=True, eq=False)
class Stored:
    message_id: str
    body: str
    attributes: Mapping[str, Attribute]
    trace_header: str | None
    sent_at: float
    visible_at: float  # loop time
    received_at: float = 0.0
    receives: int = 0
    receipt: str = ""  # the last one given out; all older ones are stale


class FakeMaster:
    """Satisfies the pipeline's `Master`; `receive` is the intake's. `now` is epoch seconds."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        visibility_s: int = 120,
        wait_s: float = 20.0,
        receives_max: int = 3,
        faults: Faults | None = None,
    ) -> None:
        self._now = now
        self.visibility_s = visibility_s
        self.wait_s = wait_s
        self.receives_max = receives_max
        self.faults = faults or Faults()
        self.messages: dict[str, Stored] = {}
        self.dead: list[Stored] = []  # what redrive set aside
        self.asked: list[int] = []  # how many each receive asked for
        self.spent: dict[str, int] = {}  # receives by message id, also of messages that are gone
        self.acknowledged: dict[str, float] = {}  # loop time by message id
        self.changes: list[tuple[float, str, int]] = []  # loop time, message id, seconds
        self._numbers = count(1)
        self._arrived = asyncio.Event()

    def send(
        self, body: str, attributes: Mapping[str, Attribute] | None = None, trace_header: str | None = None
    ) -> str:
        message_id = f"m-{next(self._numbers)}"
        now = asyncio.get_running_loop().time()
        self.messages[message_id] = Stored(message_id, body, attributes or {}, trace_header, self._now(), now)
        self._arrived.set()
        return message_id

    async def receive(self, count: int) -> list[Delivery]:
        self.asked.append(count)
        loop = asyncio.get_running_loop()
        await self.faults.call("receive", lambda: None)  # the request; its answer is a call of its own
        deadline = loop.time() + self.wait_s
        while not (deliveries := self._receive(count)) and loop.time() < deadline:
            self._arrived.clear()
            wakes_at = min([deadline, *(m.visible_at for m in self.messages.values())])
            try:
                async with asyncio.timeout_at(wakes_at):
                    await self._arrived.wait()
            except TimeoutError:
                continue
        return await self.faults.call("received", lambda: deliveries)

    async def acknowledge(self, delivery: Delivery) -> None:
        def work() -> None:
            message = self.messages.get(delivery.message_id)
            if message is None:
                return
            if message.receipt != delivery.receipt_handle:
                raise RefusedError(Cause.INVALID, "stale receipt", "ReceiptHandleIsInvalid")
            del self.messages[delivery.message_id]
            self.acknowledged[delivery.message_id] = asyncio.get_running_loop().time()

        await self.faults.call("acknowledge", work)

    async def acknowledge_all(self, deliveries: Sequence[Delivery]) -> Sequence[Exception | None]:
        return await each(self.acknowledge(delivery) for delivery in deliveries)

    async def keep_invisible(self, delivery: Delivery, seconds: int) -> None:
        def work() -> None:
            now = asyncio.get_running_loop().time()
            message = self.messages.get(delivery.message_id)
            if message is None or message.receipt != delivery.receipt_handle:
                raise RefusedError(Cause.INVALID, "stale receipt", "ReceiptHandleIsInvalid")
            if message.visible_at <= now:
                raise RefusedError(Cause.INVALID, "not in flight", "MessageNotInflight")
            if now + seconds - message.received_at > RECEIVE_MAX_S:
                raise RefusedError(Cause.INVALID, "more than twelve hours", "InvalidParameterValue")
            message.visible_at = now + seconds
            self.changes.append((now, delivery.message_id, seconds))
            self._arrived.set()

        await self.faults.call("keep_invisible", work)

    def _visible(self) -> list[Stored]:
        now = asyncio.get_running_loop().time()
        return [message for message in self.messages.values() if message.visible_at <= now]

    def _receive(self, count: int) -> list[Delivery]:
        now = asyncio.get_running_loop().time()
        deliveries: list[Delivery] = []
        for message in self._visible():
            if message.receives >= self.receives_max:
                self.dead.append(self.messages.pop(message.message_id))
                continue
            if len(deliveries) == count:
                break
            message.receives += 1
            self.spent[message.message_id] = message.receives
            message.receipt = f"{message.message_id}#{message.receives}"
            message.received_at = now
            message.visible_at = now + self.visibility_s
            deliveries.append(
                Delivery(
                    message.message_id,
                    message.receipt,
                    message.body,
                    message.attributes,
                    message.trace_header,
                    message.sent_at,
                    message.receives,
                )
            )
        return deliveries


@dataclass(slots=True, eq=False)
class Arrival:
    """One copy in a regional queue."""

    at: float  # loop time
    region: Region
    out: Outgoing
    sender: Life | None
    answered: bool = False  # the sender heard of it

    @property
    def request_id(self) -> str:
        attribute = self.out.attributes.get("dispatcher.request_id")
        return str(attribute.value) if attribute else ""


@dataclass(slots=True, eq=False)
class FakeQueue:
    """Satisfies the pipeline's `Queue`. `linger_s` passes before `departs` is asked, as in a lane."""

    region: Region
    linger_s: float = 0.02
    faults: Faults = field(default_factory=Faults)
    arrivals: list[Arrival] = field(default_factory=list)
    visible: int | None = None  # what a depth reading says; None: the truth
    departures: list[tuple[float, str]] = field(default_factory=list)  # loop time and body: sends that started
    departed: Callable[[Outgoing], None] = lambda _: None  # hears of every send that starts
    reads: list[float] = field(default_factory=list)  # loop time: when the depth was asked for

    async def send(self, out: Outgoing) -> str:
        await asyncio.sleep(self.linger_s)
        out.departs()
        self.departures.append((asyncio.get_running_loop().time(), out.body))
        self.departed(out)

        def work() -> Arrival:
            arrival = Arrival(asyncio.get_running_loop().time(), self.region, out, LIFE.get())
            self.arrivals.append(arrival)
            return arrival

        def answered(arrival: Arrival) -> None:
            arrival.answered = True

        arrival = await self.faults.call("send", work, answered)
        return f"{self.region}-{self.arrivals.index(arrival) + 1}"

    async def send_all(self, outs: Sequence[Outgoing]) -> Sequence[str | Exception]:
        return await each(self.send(out) for out in outs)

    async def depth(self) -> Depth:
        self.reads.append(asyncio.get_running_loop().time())
        visible = self.visible
        return await self.faults.call(
            "depth", lambda: Depth(len(self.arrivals) if visible is None else visible, in_flight=0, delayed=0)
        )
