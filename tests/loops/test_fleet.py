"""When the other dispatchers are told and heard: soon enough that a flood never waits for it, seldom enough to pay."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from dispatcher.board import Board, RegionRules
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
    written: list[float] = field(default_factory=list)

    async def exchange(self, name: str, report: Report) -> Mapping[str, Report]:
        await asyncio.sleep(ANSWER_S)
        self.reports[name] = report
        self.written.append(asyncio.get_running_loop().time())
        return {other: said for other, said in self.reports.items() if other != name}


def dispatcher(name: str, item: Item, *, threshold: int) -> tuple[Board, FleetReporter]:
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

    return board, FleetReporter(board, exchange, Metrics.unread(), Heartbeats(now), now, INTERVAL_S)


@pytest.mark.parametrize("per_second", [700, 2000, 5000])
def test_a_flood_out_of_the_blue_never_waits_for_room_that_there_is(per_second: int) -> None:
    async def scenario() -> None:
        item = Item()
        board, reporter = dispatcher("one", item, threshold=1_000_000)
        reporting = asyncio.create_task(reporter.run())
        await asyncio.sleep(40.0)  # idle
        before = len(item.written)
        for tick in range(200):
            wanted = round(per_second * (tick + 1) / 20) - round(per_second * tick / 20)
            got = board.allot(wanted)
            for region, count in got.items():
                board.count(region, count)
            assert sum(got.values()) == wanted, f"{tick / 20} s into the flood"
            await asyncio.sleep(0.05)
        assert len(item.written) - before <= 10, "ten seconds of it cost a few reports, each twice as far"
        reporting.cancel()

    run_virtual(scenario())


@pytest.mark.parametrize("dispatchers", [1, 2, 8])
def test_dispatchers_that_run_short_together_report_no_more_often_than_one(dispatchers: int) -> None:
    async def scenario() -> None:
        item = Item()
        fleet = [dispatcher(str(n), item, threshold=400) for n in range(dispatchers)]
        reporting = [asyncio.create_task(reporter.run()) for _, reporter in fleet]
        await asyncio.sleep(INTERVAL_S)  # each has heard of all
        before, began = len(item.written), asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 10.0:
            for board, _ in fleet:
                for region, count in board.allot(5).items():
                    board.count(region, count)
            await asyncio.sleep(0.05)
        assert len(item.written) - before <= 10.0 / APART_S + dispatchers
        for task in reporting:
            task.cancel()

    run_virtual(scenario())


def test_full_regions_are_no_reason_to_report_until_a_reading_shows_room() -> None:
    async def scenario() -> None:
        item = Item()
        board, reporter = dispatcher("one", item, threshold=100)
        reporting = asyncio.create_task(reporter.run())
        await asyncio.sleep(1.0)
        while got := board.allot(50):
            for region, count in got.items():
                board.count(region, count)
            await asyncio.sleep(0.5)
        before = len(item.written)
        await asyncio.sleep(INTERVAL_S - 4.0)
        assert len(item.written) <= before + 1
        for region in REGIONS:
            board.post(region, Depth(10, 0, 0), board.begin_reading(region))
        assert not board.allot(50), "nobody knows yet that the others have set nothing aside"
        await asyncio.sleep(2 * APART_S)
        assert board.allot(50)
        reporting.cancel()

    run_virtual(scenario())
