"""A lane gathers single calls into batched ones and hands each caller its own answer.

It promises that every `submit` ends: with its results, each item's own, or its caller's cancellation. It does not know
what it carries.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from itertools import count, repeat
from types import TracebackType
from typing import Self

from dispatcher.errors import AmbiguousError
from dispatcher.lanes.batch import BatchLimits, pack

mates: ContextVar[tuple[Context, ...]] = ContextVar("mates", default=())
"""Inside a flush: the contexts of those who wait for it, for whoever traces."""


_UNANSWERED = AmbiguousError("no answer yet")


class LaneClosedError(Exception):
    """Submitted to a lane that has ended; nothing was done."""


@dataclass(slots=True, eq=False)
class _Party[ResultT]:
    """Items that were submitted together: who waits for them is woken once, when the last one is answered."""

    departs_by: float  # loop time
    answers: list[ResultT | Exception]  # in order of the items
    missing: int
    complete: asyncio.Future[None]
    context: Context

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self.complete.done()


type _Entry[ItemT, ResultT] = tuple[ItemT, int, Hashable, _Party[ResultT], int]
"""An item, its size, its key, its party and its place there."""


class Lane[ItemT, ResultT]:
    """Batches depart when full by items or bytes, or `linger_s` after their first item, and at once while hurried.

    An `eager` lane lingers only while a batch of it flies, since before that nobody else is likely to come: then its
    first item takes along what is submitted in the same turn of the loop, such as the rest of a receive. In a `whole`
    lane items that were submitted together depart together, if one batch has room for all of them.

    At most `flushes_max` fly together; what arrives meanwhile waits and fills the next batch. `flush` returns a
    result or an exception for each item, in order. When it raises, each of its items gets that error; for an item it
    left unanswered, the error is AmbiguousError. Leaving the context lets everything submitted end.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]],
        *,
        limits: BatchLimits,
        linger_s: float,
        flushes_max: int,
        eager: bool = False,
        whole: bool = False,
        size_of: Callable[[ItemT], int] | None = None,
        key_of: Callable[[ItemT], Hashable] | None = None,
    ) -> None:
        """`size_of`: bytes of an item; without it nothing is counted. `key_of`: two items with the same key are never
        in one batch; without it each has its own.
        """
        self._flush = flush
        self._limits = limits
        self._linger_s = linger_s
        self._flushes_max = flushes_max
        self._eager = eager
        self._whole = whole
        self._size_of = size_of
        self._key_of = key_of
        self._unlike = count()  # keys of items that have none
        self._waiting: list[_Entry[ItemT, ResultT]] = []
        self._waiting_size = 0
        self._flying = 0
        self._hurried = False
        self._timer: asyncio.Handle | None = None
        self._flights: dict[asyncio.Task[None], Sequence[_Entry[ItemT, ResultT]]] = {}
        self._landing = asyncio.Event()  # set by each
        self._open = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self.hurry()
        for flight, batch in self._flights.items():
            if all(party.gone for _, _, _, party, _ in batch):
                flight.cancel()
        try:
            while self._flying and fault is None:
                self._landing.clear()
                await self._landing.wait()
        finally:  # after a fault or a cancellation something may be left; its callers must not wait for ever
            late, self._waiting = self._waiting, []
            self._answer(late, [LaneClosedError("the lane ended before this item departed") for _ in late])
            for flight in self._flights:
                flight.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)

    async def submit(self, item: ItemT) -> ResultT:
        """Return the item's own result or raise its own error.

        A cancellation before departure withdraws the item; after it, the answer is lost but its batch-mates are not.
        """
        answers = await self.submit_all([item])
        try:
            if isinstance(answers[0], Exception):
                raise answers[0]
            return answers[0]
        finally:
            del answers  # or an error's own traceback would hold it, and all that it knows, until the collector looks

    async def submit_all(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        """Return each item's own result or error, in order, once all have one: for much less than one `submit` each.

        They depart as single ones would, and need not be in one batch. A cancellation withdraws what has not departed.
        Those that fill a batch by themselves wait for nobody: their caller flies it, and a cancellation cuts it off.
        """
        if not self._open:
            raise LaneClosedError("the lane is closed")
        if not items:
            return []
        loop, many = self._loop, len(items)
        sizes = [*map(self._size_of, items)] if self._size_of else [0] * many
        if self._may_fly_alone(sizes):
            return await self._fly_alone(items)
        # not subscripted: at run time that costs as much as all the rest
        party: _Party[ResultT] = _Party(
            loop.time() + self._linger_s, [_UNANSWERED] * many, many, loop.create_future(), copy_context()
        )
        keys = [*map(self._key_of, items)] if self._key_of else self._unlike
        self._waiting += zip(items, sizes, keys, repeat(party), range(many))
        self._waiting_size += sum(sizes)
        if self._timer is None and self._eager and not self._flying:
            self._timer = loop.call_soon(self._on_time)
        elif self._timer is None or self._full:
            self._depart()
        try:
            await party.complete
        except asyncio.CancelledError:
            self._waiting = [entry for entry in self._waiting if entry[3] is not party]
            self._waiting_size = sum([size for _, size, _, _, _ in self._waiting])
            raise
        answers, party.answers = party.answers, []  # as above: errors lead back to the party
        return answers

    def hurry(self) -> None:
        """From now on nothing waits for company: while draining there is none to come."""
        self._hurried = True
        self._linger_s = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._depart()

    @property
    def _full(self) -> bool:
        size = self._limits.size
        return len(self._waiting) >= self._limits.items or (size is not None and self._waiting_size >= size)

    def _most(self) -> int:
        """How many of those that wait may depart in the next batch."""
        most = self._limits.items
        if self._whole and len(self._waiting) > most:
            parties = [party for _, _, _, party, _ in self._waiting[: most + 1]]
            if parties[-1] is parties[-2]:  # it would be cut
                return parties.index(parties[-1]) or most
        return most

    def _on_time(self) -> None:
        self._timer = None
        self._depart()

    def _depart(self) -> None:
        """Start every flush that is due, and set the timer for the next one."""
        loop = self._loop
        while self._waiting and self._flying < self._flushes_max:
            due = self._waiting[0][3].departs_by
            idle = self._eager and not self._flying
            if not (self._full or self._hurried or idle or due <= loop.time()):
                if self._timer is None:  # one that is set rings no later, and looks again
                    self._timer = loop.call_at(due, self._on_time)
                return
            most = self._most()
            batch, staying = pack(self._waiting[:most], self._limits)
            self._waiting = [*staying, *self._waiting[most:]]
            self._waiting_size -= sum([size for _, size, _, _, _ in batch])
            self._flying += 1
            flight = loop.create_task(self._fly(batch))
            self._flights[flight] = batch
            flight.add_done_callback(self._landed)
        if not self._waiting and self._timer is not None:  # or the next item would wait for it, idle as the lane is
            self._timer.cancel()
            self._timer = None

    def _may_fly_alone(self, sizes: Sequence[int]) -> bool:
        """Whether items of these sizes fill a batch by themselves, and one may fly now."""
        full = len(sizes) == self._limits.items and (self._limits.size is None or sum(sizes) <= self._limits.size)
        return full and self._key_of is None and self._flying < self._flushes_max

    async def _fly_alone(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        """In the caller's own task, without a party and a task of its own: most batches of a busy lane go so."""
        self._flying += 1
        before = mates.set((copy_context(),))
        try:
            return await self._results(items)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return _cut_off(items)  # something of the client's own was cancelled
        finally:
            mates.reset(before)
            self._land()

    async def _fly(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        # whose caller has gone is withdrawn till now
        batch = [entry for entry in batch if not entry[3].complete.done()]
        if not batch:
            return
        mates.set(tuple([entry[3].context for entry in batch]))
        # apart: a frame that an error came through must not hold it
        self._answer(batch, await self._results([entry[0] for entry in batch]))

    async def _results(self, items: Sequence[ItemT]) -> Sequence[ResultT | Exception]:
        try:
            return _one_each(await self._flush(items), len(items))
        except Exception as fault:  # each of the batch gets it
            return [fault] * len(items)

    def _answer(self, batch: Sequence[_Entry[ItemT, ResultT]], results: Sequence[ResultT | Exception]) -> None:
        for (_, _, _, party, index), result in zip(batch, results, strict=True):
            party.answers[index] = result
            party.missing -= 1
            if not party.missing and not party.gone:
                party.complete.set_result(None)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        """However the flight ended, cancelled before its first step included, nobody waits on."""
        batch = self._flights.pop(flight)
        if flight.cancelled() or flight.exception():
            self._answer(batch, _cut_off(batch))
        self._land()

    def _land(self) -> None:
        self._flying -= 1
        self._landing.set()
        self._depart()


def _cut_off(items: Sequence[object]) -> Sequence[AmbiguousError]:
    return [AmbiguousError("the call was cut off") for _ in items]


def _one_each[ResultT](results: Sequence[ResultT | Exception], many: int) -> Sequence[ResultT | Exception]:
    if len(results) == many:
        return results
    missing = [AmbiguousError("no answer for this item") for _ in range(len(results), many)]
    return [*results, *missing][:many]
