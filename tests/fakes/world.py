"""The whole dispatcher on fakes, several processes of it if need be, with what must hold written into the world."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from dispatcher.board import Board, RegionRules
from dispatcher.clock import Clock
from dispatcher.errors import AwsError, Cause, HeldOffError, LeaseTooShortError
from dispatcher.gate import Gate
from dispatcher.inflight import InFlight
from dispatcher.lifecycle import Lifecycle
from dispatcher.loops.depths import DepthRefresher
from dispatcher.loops.intake import Intake
from dispatcher.loops.pulse import LedgerWatch
from dispatcher.loops.visibility import VisibilityExtender
from dispatcher.model import (
    Attribute,
    Choice,
    ClaimAnswer,
    Claimed,
    ClaimRequest,
    Delivery,
    Lapsed,
    Outcome,
    Outgoing,
    Policy,
    Region,
)
from dispatcher.pipeline import Pipeline, Terms
from dispatcher.policy.breaker import Breaker
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics
from tests.fakes.faults import LIFE, Faults, KilledError, Life, each
from tests.fakes.ledger import FakeLedger, Item
from tests.fakes.queues import Arrival, FakeMaster, FakeQueue

EPOCH_S = 1_750_000_000.0
"""The world's time of day at loop time 0: whoever mixes up the two is off by half a century."""
A, B, C = Region("eu-west-1"), Region("us-east-1"), Region("us-west-2")
SLACK_S = 0.001


def epoch() -> float:
    return EPOCH_S + asyncio.get_running_loop().time()


def body(request_id: str, **fields: object) -> str:
    return json.dumps({"request_id": request_id, "model_name": "m", "input_data_url": "s3://bucket/key", **fields})


@dataclass(frozen=True, slots=True)
class BreakingLedger:
    """The fake ledger with one process's breaker before it, as the real one's `learn`."""

    fake: FakeLedger
    learn: Callable[[bool], None]

    async def _learning[T](self, call: Any) -> T:
        try:
            answer: T = await call
        except AwsError:
            self.learn(False)
            raise
        self.learn(True)
        return answer

    async def claim(self, request: ClaimRequest) -> ClaimAnswer:
        return await self._learning(self.fake.claim(request))

    async def claim_all(self, requests: Sequence[ClaimRequest]) -> Sequence[bool | Exception]:
        answers = await each(self.claim(request) for request in requests)
        return [answer if isinstance(answer, Exception) else isinstance(answer, Claimed) for answer in answers]

    async def look(self, request: ClaimRequest) -> ClaimAnswer | None:
        return await self._learning(self.fake.look(request))

    async def take_over(self, old: Lapsed, request: ClaimRequest) -> Claimed | None:
        return await self._learning(self.fake.take_over(old, request))

    async def confirm(self, claim: Claimed, sqs_message_id: str) -> None:
        await self._learning(self.fake.confirm(claim, sqs_message_id))

    async def confirm_all(self, confirmations: Sequence[tuple[Claimed, str]]) -> Sequence[Exception | None]:
        return await each(self.confirm(*confirmation) for confirmation in confirmations)

    async def retarget(self, claim: Claimed, choice: Choice) -> Claimed:
        return await self._learning(self.fake.retarget(claim, choice))

    async def renew(self, claim: Claimed, lease_end: float) -> Claimed:
        return await self._learning(self.fake.renew(claim, lease_end))

    async def release(self, claim: Claimed, *, rejected: bool = False) -> None:
        await self._learning(self.fake.release(claim, rejected=rejected))

    async def ping(self) -> None:
        await self._learning(self.fake.ping())


@dataclass(frozen=True, slots=True)
class BreakingQueue:
    """A fake regional queue with one process's breaker before it, as the real one's `admits` and `learn`."""

    fake: FakeQueue
    board: Board

    async def send(self, out: Outgoing) -> str:
        region = self.fake.region
        if not self.board.admits(region, 1):
            raise HeldOffError("the breaker is open")
        try:
            sqs_message_id = await self.fake.send(out)
        except LeaseTooShortError:
            self.board.withdraw(region)
            raise
        except AwsError as fault:
            self.board.learn(region, succeeded=fault.cause is Cause.INVALID)
            raise
        self.board.learn(region, succeeded=True)
        return sqs_message_id

    async def send_all(self, outs: Sequence[Outgoing]) -> Sequence[str | Exception]:
        return await each(self.send(out) for out in outs)


class Process:
    """One dispatcher: its own memory, the world's queues and ledger."""

    def __init__(
        self,
        world: "World",
        name: str,
        *,
        slots: int = 100,
        pollers: int = 2,
        drain_s: float = 100.0,
        policy: Policy = Policy.PROJECTED_WAIT,
        weights: Mapping[Region, float] | None = None,
        skew_s: float = 0.0,
        extends: bool = True,
    ) -> None:
        self.world = world
        self.life = Life(name)
        self.registry = CollectorRegistry()
        regions = list(world.regional)
        self.metrics = Metrics(
            self.registry,
            home=A,
            regions=regions,
            policy="inverse-depth",
            version="0",
            revision="0",
            in_flight_limit=slots,
        )
        now = asyncio.get_running_loop().time
        self.clock = Clock(lambda: epoch() + skew_s)
        self.random = Random(name)
        self.board = Board(
            {r: RegionRules((weights or {}).get(r, 1.0), world.threshold, None) for r in regions},
            ttl_s=world.ttl_s,
            slots=slots,
            random=self.random,
            now=now,
            policy=policy,
        )
        self.ledger_breaker = Breaker()
        self.in_flight = InFlight(slots)
        self.gate = Gate(self.board, self.ledger_breaker, self.in_flight)
        self.lifecycle = Lifecycle()
        self.heartbeats = Heartbeats(now)
        self.ledger = BreakingLedger(world.ledger, self._learn_of_ledger)
        queues = {region: BreakingQueue(queue, self.board) for region, queue in world.regional.items()}
        self.pipeline = Pipeline(
            ledger=self.ledger,
            master=world.master,
            regional=lambda region, _: queues[region],
            dead_letters=world.dead_letters,
            board=self.board,
            terms=world.terms,
            clock=self.clock,
            metrics=self.metrics,
            random=self.random,
            gives_way=lambda: self.lifecycle.draining or self.in_flight.parking_full,
        )
        self.intake = Intake(
            receive=self._receive,
            pipeline=self.pipeline,
            board=self.board,
            gate=self.gate,
            in_flight=self.in_flight,
            lifecycle=self.lifecycle,
            heartbeats=self.heartbeats,
            metrics=self.metrics,
            clock=self.clock,
            random=self.random,
            pollers=pollers,
            poll_limit_s=world.master.wait_s + 60,
            drain_s=drain_s,
        )
        self.depths = DepthRefresher(
            self.board,
            {r: q.depth for r, q in world.regional.items()},
            self.metrics,
            self.heartbeats,
            self.clock,
            self.random,
            world.ttl_s,
        )
        self.extender = VisibilityExtender(self.pipeline, self.in_flight, self.heartbeats, self.metrics)
        self.watch = LedgerWatch(
            self.ledger.ping, self.ledger_breaker, self.in_flight, self.heartbeats, self.metrics, self.random
        )
        self._extends = extends
        self.task: asyncio.Task[None] | None = None

    def start(self) -> "Process":
        context = copy_context()
        context.run(LIFE.set, self.life)
        self.task = asyncio.create_task(self._run(), name=self.life.name, context=context)
        return self

    def drain(self) -> None:
        self.lifecycle.drain()

    async def ended(self) -> None:
        """Wait for the process's end."""
        assert self.task is not None
        await asyncio.wait([self.task])

    def kill(self) -> None:
        self.life.kill()

    def value(self, name: str, **labels: str) -> float:
        """Return a sample of this process's metrics."""
        return self.registry.get_sample_value(f"dispatcher_{name}", labels) or 0.0

    def outcomes(self) -> dict[str, int]:
        counts = {str(o): int(self.value("messages_total", outcome=o)) for o in Outcome}
        return {outcome: count for outcome, count in counts.items() if count}

    async def _receive(self, count: int) -> list[Delivery]:
        assert count <= self.in_flight.limit - len(self.in_flight), "asked for more than there are free slots"
        assert len(self.in_flight) + self.in_flight.asked <= self.in_flight.limit
        return await self.world.master.receive(count)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                loops = [self.depths.run(), self.watch.run(), *([self.extender.run()] if self._extends else [])]
                background = [group.create_task(loop) for loop in loops]
                await self.intake.run()
                for task in background:
                    task.cancel()
        except BaseException as ended:  # what killed it may come alone or among others
            if not self.life.dead:
                self.world.violations.append(f"{self.life.name} ended: {ended!r}")

    def _learn_of_ledger(self, succeeded: bool) -> None:
        if succeeded:
            self.ledger_breaker.answered()
        self.ledger_breaker.record(succeeded, asyncio.get_running_loop().time())
        self.board.notify()


class World:
    """Queues and ledger that outlive every process. `violations` must stay empty."""

    def __init__(
        self,
        *regions: Region,
        terms: Terms | None = None,
        receives_max: int = 3,
        threshold: int = 5000,
        ttl_s: float = 60.0,
        wait_s: float = 20.0,
        latency_s: float = 0.005,
        retention_s: float = 21 * 86400,
        allows: Collection[str] = (),
    ) -> None:
        self.allows = (
            allows  # `copies`: on purpose, or after bugs; `uncounted`: a process may end before it counted all
        )
        self.terms = terms or Terms(visibility_s=120, lease_s=90)
        self.threshold = threshold
        self.ttl_s = ttl_s
        self.violations: list[str] = []
        self.ledger = FakeLedger(epoch, leased=self._leased, faults=Faults(latency_s), retention_s=retention_s)
        self.master = FakeMaster(
            epoch,
            visibility_s=self.terms.visibility_s,
            receives_max=receives_max,
            wait_s=wait_s,
            faults=Faults(latency_s),
        )
        self.regional = {r: FakeQueue(r, faults=Faults(latency_s)) for r in regions or (A, B, C)}
        for queue in self.regional.values():
            queue.departed = partial(self._departed, queue.region)
        self.dead_letters = FakeQueue(Region("dead-letters"), faults=Faults(latency_s))
        self.processes: list[Process] = []
        self.submitted: dict[str, str] = {}  # request id by message id

    def start(self, name: str = "", **settings: Any) -> Process:
        process = Process(self, name or f"p{len(self.processes) + 1}", **settings)
        self.processes.append(process)
        return process.start()

    def submit(self, request_id: str, attributes: Mapping[str, Attribute] | None = None, **fields: object) -> str:
        message_id = self.master.send(body(request_id, **fields), attributes)
        self.submitted[message_id] = request_id
        return message_id

    @property
    def arrivals(self) -> list[Arrival]:
        everything = [arrival for queue in self.regional.values() for arrival in queue.arrivals]
        return sorted(everything, key=lambda arrival: arrival.at)

    def arrivals_of(self, request_id: str) -> list[Arrival]:
        return [arrival for arrival in self.arrivals if arrival.request_id == request_id]

    def wall(self, trouble: Any) -> None:
        """The same trouble for every send."""
        for queue in self.regional.values():
            queue.faults.always("send", trouble)

    async def until(self, holds: Callable[[], object], within_s: float = 1000.0) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not holds():
            assert loop.time() < deadline, f"not within {within_s} s\n{self.story()}"
            await asyncio.sleep(0.05)

    async def empty(self, within_s: float = 1000.0) -> None:
        """Wait until the master queue is empty."""
        await self.until(lambda: not self.master.messages, within_s)

    def story(self) -> str:
        lines = [f"{w.at - EPOCH_S:9.3f} {w.operation:9} {w.item}" for w in self.ledger.writes]
        lines += [
            f"{a.at:9.3f} arrives   {a.request_id} {a.region} {a.sender and a.sender.name}" for a in self.arrivals
        ]
        lines += [f"{at:9.3f} visible   {message_id} in {seconds} s" for at, message_id, seconds in self.master.changes]
        lines += [f"{at:9.3f} deleted   {message_id}" for message_id, at in self.master.acknowledged.items()]
        return "\n".join([*sorted(lines), *(str(m) for m in self.master.messages.values()), *self.violations])

    def check(self) -> None:
        """What holds at every moment of every story."""
        if "copies" not in self.allows:
            self._check_copies()
            self._check_releases()
        self._check_nothing_lost()
        for process in self.processes:
            if process.task and process.task.done() and not process.life.dead and "uncounted" not in self.allows:
                ended = sum(process.outcomes().values())
                if ended != process.value("received_total"):
                    self.violations.append(f"{process.life.name}: received ≠ ended, {process.outcomes()}")
                if process.in_flight.asked or len(process.in_flight):
                    self.violations.append(f"{process.life.name}: slots are not all free again")
        assert not self.violations, self.story()

    def _check_copies(self) -> None:
        """A second copy only where a send had started and its confirmation was not yet written."""
        for request_id in set(self.submitted.values()):
            copies = self.arrivals_of(request_id)
            confirmed_at = [w.at - EPOCH_S for w in self.ledger.writes_of(request_id) if w.operation == "confirm"]
            for first, second in pairwise(copies):
                if confirmed_at and second.at > confirmed_at[0]:
                    self.violations.append(f"{request_id}: sent again after it was confirmed")
                gone = {process.life for process in self.processes if process.task and process.task.done()}
                excused = not first.answered or (first.sender and (first.sender.dead or first.sender in gone))
                if not excused:
                    self.violations.append(f"{request_id}: a second copy without a crash or a lost answer")

    def _check_releases(self) -> None:
        """Released only when certainly no Region has it."""
        for released in (w for w in self.ledger.writes if w.operation == "release"):
            mine = [w.at for w in self.ledger.writes if w.item.owner == released.item.owner]
            copies = [a for a in self.arrivals_of(released.item.request_id) if a.at + EPOCH_S >= mine[0]]
            if any(copy.at + EPOCH_S <= released.at for copy in copies):
                self.violations.append(f"{released.item.request_id}: released though a Region has it")

    def _departed(self, region: Region, out: Outgoing) -> None:
        """Nothing starts without a claim that names this Region and outlasts the send."""
        request_id = str(out.attributes["dispatcher.request_id"].value)
        item = self.ledger.items.get(request_id)
        if item is None or item.state != "claimed" or item.region != region:
            self.violations.append(f"{request_id}: sent to {region}, and the ledger says {item}")
        elif item.lease_end - epoch() < self.terms.send_timeout_s - SLACK_S:
            self.violations.append(f"{request_id}: sent with {item.lease_end - epoch():.3f} s of lease left")

    def _check_nothing_lost(self) -> None:
        dead = {message.message_id for message in self.master.dead}
        rejected = {arrival.out.body for arrival in self.dead_letters.arrivals}
        for message_id, request_id in self.submitted.items():
            safe = (
                message_id in self.master.messages
                or message_id in dead
                or self.arrivals_of(request_id)
                or any(f'"request_id": "{request_id}"' in text for text in rejected)
            )
            if not safe:
                self.violations.append(f"{request_id}: lost")

    def _leased(self, item: Item) -> None:
        """A lease ends before the visibility does, by a margin, whenever it is written."""
        message = self.master.messages.get(item.source_message_id)
        margin_s = min(5.0, self.terms.visibility_s / 10)
        if message is not None and item.lease_end - EPOCH_S > message.visible_at - margin_s + SLACK_S:
            self.violations.append(
                f"{item.request_id}: lease until {item.lease_end - EPOCH_S:.3f}, visible at {message.visible_at:.3f}"
            )

    async def end(self) -> None:
        """Stop what still runs, as a crash would."""
        for process in self.processes:
            process.kill()
        await asyncio.gather(*(p.task for p in self.processes if p.task), return_exceptions=True)
        left = [t for t in asyncio.all_tasks() if t.get_context().get(LIFE) is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@asynccontextmanager
async def world(*regions: Region, **settings: Any) -> AsyncIterator[World]:
    """A world that is checked when its story ends well."""
    here = World(*regions, **settings)

    def met(_: object, context: Mapping[str, Any]) -> None:
        if not isinstance(context.get("exception"), KilledError):
            here.violations.append(f"unhandled: {context.get('message')} {context.get('exception')!r}")

    asyncio.get_running_loop().set_exception_handler(met)
    try:
        yield here
        here.check()
    finally:
        await here.end()
    assert not here.violations, here.story()
