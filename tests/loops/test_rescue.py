"""Rescue: what waits in a Region that serves none goes to others, once; killed anywhere, nothing is lost."""

import asyncio
import json
from collections import Counter
from contextvars import copy_context
from dataclasses import dataclass, field
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from dispatcher.board import Board, RegionRules
from dispatcher.clock import Clock
from dispatcher.errors import Cause
from dispatcher.lifecycle import Lifecycle
from dispatcher.model import Choice, Claimed, ClaimRequest, Depth, Outgoing, Policy, Region
from dispatcher.pipeline import Terms
from dispatcher.policy.decode import decode
from dispatcher.policy.drain import Drain
from dispatcher.rescue import VISIBILITY_S, Rescue
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics
from tests.fakes.faults import LIFE, Faults, Life, Trouble, lost_answer, lost_request, refused, slow
from tests.fakes.ledger import FakeLedger
from tests.fakes.queues import FakeMaster
from tests.fakes.world import A, B, C, body, epoch
from tests.virtual_time import run_virtual


@dataclass(eq=False)
class Sender:
    """A regional queue as senders see it: what is accepted is in `queue`."""

    queue: FakeMaster
    faults: Faults = field(default_factory=Faults)

    async def send(self, out: Outgoing) -> str:
        await asyncio.sleep(0.02)
        out.departs()
        return await self.faults.call("send", lambda: self.queue.send(out.body, out.attributes, out.trace_header))


class World:
    def __init__(self) -> None:
        self.queues = {
            region: FakeMaster(epoch, visibility_s=VISIBILITY_S, wait_s=0, receives_max=100) for region in (A, B, C)
        }
        self.senders = {region: Sender(queue) for region, queue in self.queues.items()}
        self.ledger = FakeLedger(epoch)
        self.standing = {A}
        self.lifecycle = Lifecycle()
        self.lives: list[Life] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def waits_in(self, region: Region, request_id: str, *, known: bool = True, **fields: object) -> None:
        """A dispatched request waits there."""
        if known:
            message = decode(body(request_id, **fields), {})
            request = ClaimRequest(message, f"t-{request_id}", Choice(region, "fixed", 0.0), epoch() + 90, "s")
            claim = await self.ledger.claim(request)
            assert isinstance(claim, Claimed)
            await self.ledger.confirm(claim, "first")
        self.queues[region].send(body(request_id, **fields))

    def start(self, name: str, *, threshold: int = 1000, elsewhere: frozenset[str] | None = None) -> "World":
        """`elsewhere`: the models that B and C serve; None: all of them."""
        now = asyncio.get_running_loop().time
        board = Board(
            {region: RegionRules(1.0, threshold, None if region == A else elsewhere) for region in self.queues},
            ttl_s=60.0,
            slots=100,
            random=Random(name),
            now=now,
            policy=Policy.FIXED,
        )
        metrics = Metrics(
            CollectorRegistry(), home=A, regions=list(self.queues), policy="fixed", version="0", revision="0",
            in_flight_limit=1,
        )  # fmt: skip
        rescue = Rescue(
            ledger=self.ledger,
            consumers=lambda region: [self.queues[region]],
            regional=lambda region, _: self.senders[region],
            board=board,
            lifecycle=self.lifecycle,
            terms=Terms(visibility_s=120, lease_s=90),
            clock=Clock(epoch),
            metrics=metrics,
            heartbeats=Heartbeats(now),
            random=Random(name),
        )
        life = Life(name)
        self.lives.append(life)
        context = copy_context()
        context.run(LIFE.set, life)
        self.board, self.metrics = board, metrics
        self.tasks.append(asyncio.create_task(self._run(board, rescue), name=name, context=context))
        return self

    async def _run(self, board: Board, rescue: Rescue) -> None:
        """A is read as standing still; the loop does the rest."""

        async def read() -> None:
            while True:
                for region, queue in self.queues.items():
                    # nobody works in A; elsewhere all that comes is taken, though it stays where the test can see it
                    visible = len(queue._visible()) if region in self.standing else 0
                    held = len(queue.messages) - visible if region in self.standing else 0
                    board.post(region, Depth(visible, held, 0), board.begin_reading(region))
                await asyncio.sleep(15.0)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read())
                group.create_task(rescue.run())
        except BaseException:
            if not self.lives[-1].dead:
                raise

    def value(self, outcome: str) -> float:
        return float(self.metrics.rescued.labels(A, outcome)._value.get())

    def where(self) -> dict[str, Counter[Region]]:
        """By request, the Regions where it is and how often."""
        found: dict[str, Counter[Region]] = {}
        for region, queue in self.queues.items():
            for message in queue.messages.values():
                found.setdefault(json.loads(message.body)["request_id"], Counter())[region] += 1
        return found

    async def until_a_is_empty(self, within_s: float = 900.0) -> None:
        deadline = asyncio.get_running_loop().time() + within_s
        while self.queues[A].messages:
            assert asyncio.get_running_loop().time() < deadline, self.where()
            await asyncio.sleep(0.5)

    async def end(self) -> None:
        for life in self.lives:
            life.kill()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def test_what_waits_in_a_stalled_region_goes_to_the_others_once() -> None:
    async def story() -> None:
        world = World()
        for n in range(30):
            await world.waits_in(A, f"r{n}")
        world.start("one")
        await world.until_a_is_empty()
        for request_id, where in world.where().items():
            assert where.total() == 1
            assert world.ledger.items[request_id].region in where, "the ledger knows where it is now"
            assert world.ledger.items[request_id].state == "dispatched"
        assert len(world.where()) == 30
        assert world.value("moved") == 30
        message = next(iter(world.queues[B].messages.values()))
        assert str(message.attributes["dispatcher.region"].value) == B
        assert all(spent == 1 for spent in world.queues[A].spent.values())
        await world.end()

    run_virtual(story())


def test_nothing_is_touched_while_the_region_drains() -> None:
    async def story() -> None:
        world = World()
        for n in range(200):
            await world.waits_in(A, f"r{n}")
        world.start("one")
        for _ in range(100):  # a worker takes one now and then
            await asyncio.sleep(5)
            for delivery in await world.queues[A].receive(1):
                await world.queues[A].acknowledge(delivery)
        assert not world.queues[B].messages
        assert not world.queues[C].messages
        await world.end()

    run_virtual(story())


def test_nothing_goes_round_between_regions_that_all_stand_still() -> None:
    async def story() -> None:
        world = World()
        world.standing = {A, B, C}
        for n in range(9):
            await world.waits_in([A, B, C][n % 3], f"r{n}")
        world.start("one")
        await asyncio.sleep(900)
        assert [len(queue.messages) for queue in world.queues.values()] == [3, 3, 3]
        assert not any(queue.spent for queue in world.queues.values())
        await world.end()

    run_virtual(story())


def test_a_process_that_drains_begins_no_rescue() -> None:
    async def story() -> None:
        world = World()
        await world.waits_in(A, "r")
        world.lifecycle.drain()
        world.start("one")
        await asyncio.sleep(300)
        assert not world.queues[A].spent
        await world.end()

    run_virtual(story())


def test_no_more_is_taken_out_than_others_have_room_for() -> None:
    """B and C are seen to work, then everything stands still."""

    async def story() -> None:
        world = World()
        for n in range(4):
            await world.waits_in(A, f"r{n}")
        world.start("one", threshold=10)
        await world.until_a_is_empty()
        await asyncio.sleep(60)
        world.standing = {A, B, C}
        for n in range(40):
            await world.waits_in(A, f"s{n}")
        await asyncio.sleep(300)
        assert 0 < len(world.queues[B].messages) <= 10
        assert 0 < len(world.queues[C].messages) <= 10
        left = world.queues[A].messages
        spent = sum(count for message_id, count in world.queues[A].spent.items() if message_id in left)
        assert spent <= 2, "what cannot go is not received"
        await world.end()

    run_virtual(story())


def test_a_stall_ends_after_a_rescue_has_emptied_the_queue_and_workers_take_what_comes() -> None:
    """Only probes come by then, and they are few: all of them taken is as much as can be."""
    drain = Drain(busy_windows=9, busy=40.0)
    drain.look(Depth(50, 0, 0), Depth(60, 0, 0))
    assert drain.stalled
    drain.learn(Depth(0, 0, 0), Depth(0, 1, 0), 5, 15.0, 40.0, 0.0)
    assert not drain.stalled


@pytest.mark.parametrize("case", ["a stranger", "poison", "another's model"])
def test_what_cannot_be_moved_is_left_and_seldom_received(case: str) -> None:
    async def story() -> None:
        world = World()
        if case == "poison":
            world.queues[A].send("no JSON")
        else:
            await world.waits_in(A, "r", known=case != "a stranger")
        world.start("one", elsewhere=frozenset({"other"}) if case == "another's model" else None)
        await asyncio.sleep(3600)
        assert len(world.queues[A].messages) == 1
        assert sum(world.queues[A].spent.values()) <= 2, "every receive is one of few"
        assert not world.queues[B].messages
        await world.end()

    run_virtual(story())


def test_what_cannot_be_moved_stops_no_other_and_is_no_dead_letter_for_hours() -> None:
    """Three receives are all that a regional queue allows."""

    async def story() -> None:
        world = World()
        world.queues[A].receives_max = 3
        for n in range(30):
            await world.waits_in(A, f"r{n}", known=n % 3 > 0)
        world.start("one")
        await asyncio.sleep(4 * 3600)
        assert not world.queues[A].dead
        assert len(world.queues[A].messages) == 10
        assert world.value("moved") == 20
        await world.end()

    run_virtual(story())


def test_while_nothing_can_be_sent_elsewhere_nothing_becomes_a_dead_letter() -> None:
    async def story() -> None:
        world = World()
        world.queues[A].receives_max = 3
        for n in range(5):
            await world.waits_in(A, f"r{n}")
        for sender in world.senders.values():
            sender.faults.always("send", refused(Cause.THROTTLED))
        world.start("one")
        await asyncio.sleep(3600)
        assert not world.queues[A].dead
        assert len(world.queues[A].messages) == 5
        await world.end()

    run_virtual(story())


def test_a_copy_of_what_is_dispatched_elsewhere_is_deleted() -> None:
    async def story() -> None:
        world = World()
        await world.waits_in(B, "r")
        world.queues[A].send(body("r"))
        world.start("one")
        await world.until_a_is_empty()
        assert world.where()["r"] == Counter({B: 1})
        assert world.value("copy_deleted") == 1
        await world.end()

    run_virtual(story())


def _check(world: World, *, extra: int) -> None:
    """Nothing is lost; copies more only where sends may have happened before a crash, or their answers were lost."""
    for request_id, where in world.where().items():
        assert world.ledger.items[request_id].region in where, (request_id, where, world.ledger.items[request_id])
        assert where.total() <= 1 + extra, (request_id, where)


def test_killed_at_any_await_it_loses_nothing_and_repeats_only_in_its_window() -> None:
    async def story(fatal: int) -> int:
        world = World()
        for n in range(2):
            await world.waits_in(A, f"r{n}")
        world.start("one")
        first = world.lives[0]
        first.dies = lambda _, number: number == fatal
        for _ in range(600):
            if first.dead or not world.queues[A].messages:
                break
            await asyncio.sleep(0.5)
        passed = list(first.passed)
        world.start("two")
        await world.until_a_is_empty()
        assert len(world.where()) == 2, "nothing lost"
        sent = any(point == "send:done" for point in passed)
        _check(world, extra=int(first.dead and sent))
        copies = sum(where.total() - 1 for where in world.where().values())
        await world.end()
        return copies if first.dead else -1

    copies = []
    for fatal in range(1, 200):
        copies.append(run_virtual(story(fatal)))
        if copies[-1] < 0:
            break
    assert len(copies) > 20, "it died at every point"
    assert max(copies) <= 2


@pytest.mark.parametrize(
    "trouble",
    [refused(), refused(Cause.THROTTLED), lost_request(), lost_answer(), lost_answer(8.0), slow(before_s=3.0)],
    ids=["refused", "throttled", "lost-request", "lost-answer", "late-answer", "slow"],
)
@pytest.mark.parametrize("operation", ["begin_move", "end_move", "abandon_move", "send", "acknowledge", "receive"])
def test_a_fault_of_any_call_loses_nothing(operation: str, trouble: Trouble) -> None:
    async def story() -> None:
        world = World()
        for n in range(3):
            await world.waits_in(A, f"r{n}")
        world.start("one")
        if operation == "send":
            for sender in world.senders.values():
                sender.faults.on("send", trouble, 1, 2)
        elif operation in ("acknowledge", "receive"):
            world.queues[A].faults.on(operation, trouble, 1, 2)
        else:
            world.ledger.faults.on(operation, trouble, 1, 2)
        await world.until_a_is_empty(50_000)  # what was refused is hidden for long
        assert len(world.where()) == 3
        _check(world, extra=4 if operation == "send" and trouble.worked else 0)
        if operation == "send" and trouble.worked:
            assert world.metrics.errors.labels("send", "ambiguous")._value.get() >= 1, "copies are bounded by a count"
        await world.end()

    run_virtual(story())


def test_a_copy_that_one_rescuer_has_just_sent_is_not_deleted_by_another() -> None:
    """It goes from A to B, its end is written late, and meanwhile B is rescued, too."""

    async def story() -> None:
        world = World()
        world.standing = {A, B}
        await world.waits_in(A, "r")
        await world.waits_in(B, "s")
        world.ledger.faults.always("end_move", slow(before_s=20.0))
        world.start("one")
        world.start("two")
        await asyncio.sleep(600)
        found = world.where()
        assert found.keys() == {"r", "s"}
        assert all(where.total() >= 1 for where in found.values())
        await world.end()

    run_virtual(story())


def test_two_rescuers_do_not_move_one_message_twice() -> None:
    async def story() -> None:
        world = World()
        for n in range(60):
            await world.waits_in(A, f"r{n}")
        world.start("one")
        world.start("two")
        await world.until_a_is_empty()
        _check(world, extra=0)
        assert len(world.where()) == 60
        await world.end()

    run_virtual(story())
