"""The dead-letter queue: what is in it and why, send it back, drop it.

Nothing here holds a message without its lease on it: whatever is received and not sent back or dropped is made visible
again, and if this process dies, SQS does that. A message leaves the queue only after the master queue has accepted it,
after the ledger proved that its request was dispatched, or because the operator said to drop it.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

from dispatcher.aws.clients import Caller, Clients
from dispatcher.aws.ledger import PROBE_KEY, read_item
from dispatcher.aws.master import MasterQueue
from dispatcher.aws.queues import read_depth, redrive_target
from dispatcher.aws.regional import SendingQueue
from dispatcher.clock import Clock
from dispatcher.commands.advice import naming
from dispatcher.errors import AwsError, DispatcherError, PoisonError
from dispatcher.model import Attribute, Delivery, Message, Outgoing, Region
from dispatcher.policy.claims import State
from dispatcher.policy.decode import GENERATION, decode, request_id_of
from dispatcher.policy.envelope import REASON, forwarded
from dispatcher.settings import Settings

POOL = 10
ATTEMPTS = 3
BATCH = 10  # SQS: messages a receive
HIDDEN_S, HIDDEN_LONG_S = 60, 600  # while it is looked at; if we die it is back then
WAIT_S = 1  # a long poll asks all of SQS's servers; a short one, some
EMPTY_POLLS = 2  # in a row, and the queue counts as seen
BY_SQS = "received too often without an end: SQS moved it here"


class NoDeadLetterQueueError(DispatcherError):
    """There is none to look into."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One message of the dead-letter queue. `age_s`: seconds since a client sent it."""

    delivery: Delivery
    request_id: str | None
    reason: str
    age_s: float

    @property
    def values(self) -> dict[str, str | int | float | None]:
        return {
            "message_id": self.delivery.message_id,
            "request_id": self.request_id,
            "reason": self.reason,
            "age_seconds": round(self.age_s, 1),
            "receives": self.delivery.receives,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: all without a word, else those whose reason contains the text, or of one of the ids."""

    reason: str = ""
    request_ids: frozenset[str] = frozenset()

    def __call__(self, letter: Letter) -> bool:
        return self.reason.lower() in letter.reason.lower() and (
            not self.request_ids or letter.request_id in self.request_ids
        )


class Fate(StrEnum):
    """What a redrive did with a letter."""

    REDRIVEN = "redriven"
    DISPATCHED = "already_dispatched"  # dropped: the ledger proves that a Region got it
    INVALID = "still_invalid"  # left: it would be rejected again
    OTHER_WORK = "other_work"  # left: its id stands for different work
    NO_ROOM = "no_room"  # left: SQS's limits leave no room for the generation
    BACK = "came_back"  # left: its request was sent back in this run already; it was rejected again, or is a twin
    NOT_MEANT = "not_meant"  # left
    FAILED = "failed"  # left: a call to AWS failed


MEANING = {
    Fate.REDRIVEN: "sent back to the master queue",
    Fate.DISPATCHED: "dropped: their requests were dispatched already (--again sends such ones once more)",
    Fate.INVALID: "left: they would be rejected again for what their bodies say",
    Fate.NO_ROOM: "left: the next generation, which --again gives them, has no room beside what they carry",
    Fate.OTHER_WORK: "left: their ids stand for different work (--again dispatches them all the same)",
    Fate.BACK: "left: their requests were sent back a moment ago, and these are twins, or were rejected again",
    Fate.NOT_MEANT: "left: not meant",
    Fate.FAILED: "left: a call to AWS failed; try again",
}


class Mailbox:
    """The dead-letter queue, open to be swept."""

    def __init__(self, queue: MasterQueue, size: int, clock: Clock) -> None:
        self.queue = queue
        self._clock = clock  # SQS's
        self.size = size  # about
        self._held: dict[str, Delivery] = {}  # by message id: what is to be made visible again

    async def sweep(self) -> AsyncGenerator[list[Letter]]:
        """Give every letter once, in batches; then make visible again what was not dropped. Raises AwsError."""
        empty = 0
        try:
            while empty < EMPTY_POLLS:
                deliveries = await self.queue.receive(BATCH)
                empty = 0 if deliveries else empty + 1
                known = [d for d in deliveries if d.message_id in self._held]
                new = [d for d in deliveries if d not in known]
                self._held |= {d.message_id: _without_contents(d) for d in deliveries}
                if known:  # it takes longer than they are hidden
                    await asyncio.gather(*(self.queue.keep_invisible(d, HIDDEN_LONG_S) for d in known))
                if new:
                    yield [_letter(delivery, self._clock.now()) for delivery in new]
        finally:
            left = self._held.values()
            await asyncio.gather(*(self.queue.keep_invisible(d, 0) for d in left), return_exceptions=True)
            self._held.clear()

    async def drop(self, letter: Letter) -> None:
        """Raises AwsError."""
        await self.queue.acknowledge(self._held[letter.delivery.message_id])
        del self._held[letter.delivery.message_id]


@asynccontextmanager
async def opened(settings: Settings, clients: Clients) -> AsyncIterator[Mailbox]:
    """Open the dead-letter queue. Raises NoDeadLetterQueueError, UnusableError."""
    caller = await clients.open("sqs", Region(settings.home_region), pool=POOL, attempts=ATTEMPTS)
    url = settings.dead_letter_queue_url
    if url is None:
        with naming(f"the master queue {settings.master_queue_url}", "DISPATCHER_MASTER_QUEUE_URL"):
            url = await redrive_target(caller, settings.master_queue_url)
    if url is None:
        raise NoDeadLetterQueueError(
            "the master queue has no redrive policy, and DISPATCHER_DEAD_LETTER_QUEUE_URL is not set"
        )
    with naming(f"the dead-letter queue {url}", "DISPATCHER_DEAD_LETTER_QUEUE_URL"):
        size = (await read_depth(caller, url)).visible
    async with MasterQueue(url, caller, caller, wait_s=WAIT_S, visibility_s=HIDDEN_S) as queue:
        yield Mailbox(queue, size, clients.clock)


async def look(mailbox: Mailbox, wanted: Wanted, *, most: int, seen: Callable[[int], None]) -> list[Letter]:
    """Return up to `most` letters, oldest first. They count one receive more, and are visible again at once."""
    letters: list[Letter] = []
    async with aclosing(mailbox.sweep()) as sweep:
        async for batch in sweep:
            seen(len(batch))
            # a thousand bodies of a mebibyte would not fit
            letters += [replace(one, delivery=_without_contents(one.delivery)) for one in batch if wanted(one)]
            if len(letters) >= most:
                break
    return sorted(letters[:most], key=lambda letter: -letter.age_s)


async def purge(mailbox: Mailbox, meant: Collection[Letter], seen: Callable[[int], None]) -> int:
    """Drop those that were looked at before, and no others; return how many are gone. Raises AwsError."""
    ids = {letter.delivery.message_id for letter in meant}
    gone = 0
    async with aclosing(mailbox.sweep()) as sweep:
        async for batch in sweep:
            dropped = [letter for letter in batch if letter.delivery.message_id in ids]
            await asyncio.gather(*map(mailbox.drop, dropped))
            gone += len(dropped)
            seen(len(dropped))
            if gone == len(ids):
                break
    return gone


@dataclass(frozen=True, slots=True)
class Redrive:
    """`again`: also what was dispatched, once more, on purpose. `per_second`: messages."""

    mailbox: Mailbox
    master: SendingQueue
    table: Caller
    settings: Settings
    clients: Clients
    wanted: Wanted
    again: bool
    per_second: float
    fates: Counter[Fate] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # of AWS, in its own words
    _sent: set[tuple[str, str]] = field(default_factory=set)
    """Id and work of what was sent: a live dispatcher may reject it again, under a new message id."""

    async def run(self, seen: Callable[[int], None]) -> Counter[Fate]:
        """Send back what is meant and was not dispatched. Return what became of how many; with a fault of AWS in
        between, of how many till then.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        together = max(1, min(BATCH, int(self.per_second)))
        try:
            async with aclosing(self.mailbox.sweep()) as sweep:
                async for batch in sweep:
                    for at in range(0, len(batch), together):
                        some = batch[at : at + together]
                        self.fates.update(await asyncio.gather(*map(self._one, some)))
                        seen(len(some))
                        ahead_s = self.fates[Fate.REDRIVEN] / self.per_second - (loop.time() - started)
                        await asyncio.sleep(max(0.0, ahead_s))
        except AwsError as fault:
            self.faults.append(str(fault))
        return self.fates

    async def _one(self, letter: Letter) -> Fate:
        if not self.wanted(letter):
            return Fate.NOT_MEANT
        try:
            message = decode(letter.delivery.body, letter.delivery.attributes)
        except PoisonError:
            return Fate.INVALID
        try:
            return await self._send_back(letter, message)
        except AwsError as fault:
            self.faults.append(str(fault))
            return Fate.FAILED

    async def _send_back(self, letter: Letter, message: Message) -> Fate:
        item = await read_item(self.table, self.settings.ledger_table, message.request_id) or {}
        known = bool(item) and float(item.get("expires_at", "inf")) > self.clients.clock.now()
        generation = int(item.get("generation", "0")) if known else 0
        delivery = letter.delivery
        kept = {name: value for name, value in delivery.attributes.items() if name != REASON}
        if known and message.generation <= generation:
            dispatched, same_work = item.get("state") == State.DISPATCHED, item.get("work") == message.work
            if self.again and (dispatched or not same_work):
                kept.pop(GENERATION, None)
                kept = forwarded(delivery.body, kept, {GENERATION: Attribute("Number", str(generation + 1))})
                if GENERATION not in kept:
                    return Fate.NO_ROOM
            elif not same_work:
                return Fate.OTHER_WORK
            elif dispatched:
                await self.mailbox.drop(letter)
                return Fate.DISPATCHED
        late = message.deadline is not None and message.deadline <= self.clients.clock.now()
        if late or not any(rules.serves(message.model_name) for rules in self.settings.regions.values()):
            return Fate.INVALID
        if (message.request_id, message.work) in self._sent:
            return Fate.BACK
        self._sent.add((message.request_id, message.work))
        await self.master.send(Outgoing(delivery.body, kept, delivery.trace_header))
        await self.mailbox.drop(letter)
        return Fate.REDRIVEN


@asynccontextmanager
async def redriving(
    settings: Settings, clients: Clients, wanted: Wanted, *, again: bool, per_second: float
) -> AsyncIterator[Redrive]:
    """Open what a redrive needs. Raises NoDeadLetterQueueError, UnusableError."""
    home = Region(settings.home_region)
    async with AsyncExitStack() as stack:
        mailbox = await stack.enter_async_context(opened(settings, clients))
        caller = await clients.open("sqs", home, pool=POOL, attempts=ATTEMPTS)
        table = await clients.open("dynamodb", home, pool=POOL, attempts=ATTEMPTS)
        with naming(f"the master queue {settings.master_queue_url}", "DISPATCHER_MASTER_QUEUE_URL"):
            await read_depth(caller, settings.master_queue_url)
        with naming(f"the table {settings.ledger_table}", "DISPATCHER_LEDGER_TABLE"):
            await read_item(table, settings.ledger_table, PROBE_KEY)
        master = await stack.enter_async_context(SendingQueue(settings.master_queue_url, caller))
        yield Redrive(mailbox, master, table, settings, clients, wanted, again, per_second)


def _without_contents(delivery: Delivery) -> Delivery:
    return delivery._replace(body="", attributes={})


def _letter(delivery: Delivery, now: float) -> Letter:
    reason = delivery.attributes.get(REASON)
    return Letter(
        delivery,
        request_id_of(delivery.body),
        str(reason.value) if reason else BY_SQS,
        max(0.0, now - delivery.sent_at),
    )
