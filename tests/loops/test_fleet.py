"""When the other dispatchers are told and heard: soon enough that a flood never waits for it, seldom enough to pay."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from dispatcher.board import Board, RegionRules
from dispatcher.errors import Cause, RefusedError
from dispatcher.loops.fleet import APART_S, FleetReporter
from dispatcher.model import Depth, Region
from dispatcher.policy.fleet import Fleet, Report
from dispatcher.telemetry.heartbeats import Heartbeats
from dispatcher.telemetry.metrics import Metrics
from tests.virtual_time import run_virtual

REGIONS = [Region("a"), Region("b"), Region("c")]
INTERVAL_S = 15.0
ANSWER_S = 0.02


@dataclass(eq=False)
class Item:
    """The ledger's item that all reports are in; an exchange takes a moment."""

    reports: dict[str, Report] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    throttled: bool = False
    reporting: set[asyncio.Task[None]] = field(default_factory=set)
    written: int = 0

    async def exchange(self, name: str, report: Report) -> Mapping[str, Report]:
        await asyncio.sleep(ANSWER_S)
        self.tried[name] += 1
        if self.throttled:
            raise RefusedError(Cause.THROTTLED, "as asked")
        self.reports[name] = report
        self.written += 1
        return {other: said for other, said in self.reports.items() if other != name}


def joined(name: str, item: Item, *, threshold: int) -> Board:
    """A dispatcher that has read every depth, and reports from now on until the loop ends."""
    now = asyncio.get_running_loop().time
    board = Board(
        {region: RegionRules(1.0, threshold, None) for region in REGIONS},
        ttl_s=4 * INTERVAL_S,
        slots=1000,
        random=Random(name),
        now=now,
        fleet=Fleet(INTERVAL_S),
    )
    for region in REGIONS:
        board.post(region, Depth(0, 0, 0), board.begin_reading(region))

    async def exchange(report: Report, _forgotten: Sequence[str]) -> Mapping[str, Report]:
        return await item.exchange(name, report)

    reporter = FleetReporter(board, exchange, Metrics.unread(), Heartbeats(now), now, Random(name), INTERVAL_S)
    item.reporting.add(asyncio.create_task(reporter.run()))
    return board


def send(board: Board, count: int) -> int:
    """Send up to `count`; return how many found a Region."""
    got = board.allot(count)
    for region, part in got.items():
        board.count(region, part)
    return sum(got.values())


@pytest.mark.parametrize(
    ("dispatchers", "per_second"), [(1, 700), (1, 2000), (1, 5000), (4, 700), (8, 300), (16, 100), (40, 100)]
)
def test_a_flood_out_of_the_blue_hardly_waits_for_room_that_there_is(dispatchers: int, per_second: int) -> None:
    async def scenario() -> None:
        item = Item()
        fleet = [joined(str(n), item, threshold=1_000_000) for n in range(dispatchers)]
        await asyncio.sleep(40.0)  # idle
        before = item.written
        waiting = [0.0] * dispatchers
        for tick in range(200):
            for n, board in enumerate(fleet):
                waiting[n] += per_second / 20
                waiting[n] -= send(board, int(waiting[n]))
            most = 0.2 * per_second if dispatchers > 1 else 0.0
            assert max(waiting) <= 1 + most, f"{tick / 20} s into the flood"
            await asyncio.sleep(0.05)
        assert item.written - before <= 10 * dispatchers, "a few reports of each, each twice as far"

    run_virtual(scenario())


@pytest.mark.parametrize("dispatchers", [1, 2, 8])
def test_dispatchers_that_run_short_report_once_a_second_or_together_four_times(dispatchers: int) -> None:
    async def scenario() -> None:
        item = Item()
        fleet = [joined(str(n), item, threshold=400) for n in range(dispatchers)]
        await asyncio.sleep(INTERVAL_S)  # each has heard of all
        before, began = item.written, asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 10.0:
            for board in fleet:
                send(board, 5)
            await asyncio.sleep(0.05)
        assert item.written - before <= 10.0 * max(1 / APART_S, dispatchers) + dispatchers

    run_virtual(scenario())


def test_full_regions_are_no_reason_to_report_until_a_reading_shows_room() -> None:
    async def scenario() -> None:
        item = Item()
        board = joined("one", item, threshold=100)
        await asyncio.sleep(1.0)
        for _ in range(10):
            send(board, 50)
            await asyncio.sleep(0.5)
        assert not send(board, 50), "they are full"
        before = item.written
        await asyncio.sleep(INTERVAL_S - 4.0)
        assert item.written <= before + 1
        for region in REGIONS:  # workers took some, but not enough for it to get more again
            board.post(region, Depth(90, 0, 0), board.begin_reading(region))
        await asyncio.sleep(INTERVAL_S / 2)
        assert item.written <= before + 2
        for region in REGIONS:
            board.post(region, Depth(10, 0, 0), board.begin_reading(region))
        assert send(board, 500) <= 30, "more than ten each, nobody knows yet whether others have set it aside"
        await asyncio.sleep(2 * APART_S)
        assert send(board, 50)

    run_virtual(scenario())


@pytest.mark.parametrize("dispatchers", [1, 16])
@pytest.mark.parametrize("answered_s", [0.0, 60.0], ids=["from the start", "later"])
def test_while_no_report_is_answered_they_come_seldom(dispatchers: int, answered_s: float) -> None:
    async def scenario() -> None:
        item = Item()
        item.throttled = not answered_s
        fleet = [joined(str(n), item, threshold=1000) for n in range(dispatchers)]
        await asyncio.sleep(answered_s)
        item.throttled = True
        item.tried.clear()
        for _ in range(1200):
            for board in fleet:
                send(board, 1)
            await asyncio.sleep(0.1)
        assert max(item.tried.values()) <= 2 * 120 / INTERVAL_S + 5

    run_virtual(scenario())


def test_a_region_that_may_get_nothing_is_no_reason_to_report() -> None:
    async def scenario() -> None:
        item = Item()
        board = joined("one", item, threshold=10_000)
        await asyncio.sleep(1.0)
        for region in REGIONS:
            board.count(region, 450)  # of 500 that it asked for
            for _ in range(10):
                board.learn(region, False)  # its breaker opens
        before = item.written
        await asyncio.sleep(3.0)
        assert item.written == before

    run_virtual(scenario())
